"""Runs the claims of docs/verification.md and writes what came out: docs/verification.json and the page made from it.

    python -m tools.verify [--only=TEXT] [--missing] [--with=hours,images]
    python -m tools.verify --collect

Claims stand in tools/verification_claims.toml with the command that shows each. Those that `need` something (hours,
images, torch, gpu, person) keep the result that was recorded when they were last run, unless `--with` names the need;
what needs a person never runs here. `--collect` runs nothing and writes the page anew from what is recorded. Of pytest
the figure is its count of tests, read from its JUnit report; of other programs it is the last line that they print.
Ends with status 1 if a claim that was run failed.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PASSED, FAILED, RECORDED = "passed", "failed", "recorded"
INTRO = """\
# Verification

What jaxseg claims, the command that shows it, and what came out when it was last run: `passed` or `failed`, on which
commit, machine and day. Results marked `recorded` were measured once, because they need hours, image sets, PyTorch, a
GPU or a person's eye; commit and day are those that wrote them down, and the command measures them again.

```bash
python -m tools.verify
python -m tools.verify --collect
```

The first command runs every claim that two CPU cores can show in minutes, and writes this page and `verification.json`
beside it; the second writes the page alone, from that file. A new claim is an entry in
`tools/verification_claims.toml`.
"""


class Claim(NamedTuple):
    """What is claimed, and the command that shows it; `needs` says what keeps it from running by default."""

    topic: str
    claim: str
    command: str
    needs: str = ""


class Result(NamedTuple):
    """What came of a claim's command, and with which code, where and when."""

    claim: str
    outcome: str
    figure: str
    commit: str
    machine: str
    date: str


def read_claims(path: Path) -> list[Claim]:
    """The claims of a TOML file, topic by topic."""
    topics = tomllib.loads(path.read_text(encoding="utf-8"))["topic"]
    return [Claim(topic=topic["name"], **claim) for topic in topics for claim in topic["claims"]]


def read_results(path: Path) -> dict[str, Result]:
    """Results by claim; none where the file does not exist yet."""
    if not path.exists():
        return {}
    return {row["claim"]: Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))}


def machine() -> str:
    """The processor's model and how many cores this process may use, without the machine's name."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def git(*arguments: str) -> str:
    """What git says of this checkout; nothing where there is none."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def commit() -> str:
    """The commit that is checked out, marked where files other than the results differ from it."""
    head = git("rev-parse", "--short=7", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/verification.*")
    return f"{head}-dirty" if changed else head


def counted(report: Path) -> str:
    """The figure of a pytest run: how many tests passed, failed and were skipped."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, bad, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    parts = [(total - bad - skipped, "passed"), (bad, "failed"), (skipped, "skipped")]
    return ", ".join(f"{count} {word}" for count, word in parts if count) or "no tests"


def show(command: str) -> tuple[str, str]:
    """Runs a claim's command and returns its outcome and figure."""
    words = shlex.split(command)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        if words[0] == "pytest":
            words = [sys.executable, "-m", *words, "-n", "0", "-q", f"--junitxml={report}"]
        elif words[0] == "python":
            words[0] = sys.executable
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=lambda: os.nice(10)
        )
        printed = done.stdout.strip().splitlines()
        figure = counted(report) if report.exists() else (printed or [""])[-1]
    return (FAILED if done.returncode else PASSED), figure


def page(claims: Sequence[Claim], results: dict[str, Result]) -> str:
    """The page in Markdown: a table a topic."""
    parts = [INTRO]
    for topic, of_topic in itertools.groupby(claims, key=lambda claim: claim.topic):
        rows = ["| claim | command | result | commit | machine | date |", f"|{' --- |' * 6}"]
        for claim in of_topic:
            result = results.get(claim.claim)
            seen = (
                [f"{result.outcome}: {result.figure}" if result.figure else result.outcome] if result else ["not run"]
            )
            seen += [result.commit, result.machine, result.date] if result else [""] * 3
            rows.append(f"| {' | '.join([claim.claim, f'`{claim.command}`', *seen])} |")
        parts.append(f"## {topic}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Runs what is asked for, says so, and writes both files after every claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", help="claims or commands that hold this text")
    parser.add_argument("--missing", action="store_true", help="claims that have no result yet")
    parser.add_argument("--with", dest="needs", default="", help="needs that are met, by commas")
    parser.add_argument("--claims", type=Path, default=Path(__file__).with_name("verification_claims.toml"))
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "verification.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "verification.md")
    asked = parser.parse_args()
    claims, results = read_claims(asked.claims), read_results(asked.results)
    results = {claim.claim: results[claim.claim] for claim in claims if claim.claim in results}
    met = {"", *asked.needs.split(",")} - {"person"}
    wanted = [
        claim
        for claim in claims
        if not asked.collect and claim.needs in met and asked.only in f"{claim.claim}\n{claim.command}"
        if not (asked.missing and claim.claim in results)
    ]
    shown: dict[str, tuple[str, str]] = {}
    about = (commit(), machine(), datetime.datetime.now(datetime.UTC).date().isoformat())
    for claim in wanted:
        if claim.command not in shown:  # several claims may be shown by one command
            shown[claim.command] = show(claim.command)
        results[claim.claim] = Result(claim.claim, *shown[claim.command], *about)
        print(f"{' '.join(shown[claim.command])}: {claim.claim}", flush=True)
        write(asked.results, asked.page, claims, results)
    write(asked.results, asked.page, claims, results)
    sys.exit(any(results[claim.claim].outcome == FAILED for claim in wanted))


def write(results_path: Path, page_path: Path, claims: Sequence[Claim], results: dict[str, Result]) -> None:
    """Writes the results in the order of the claims, and the page."""
    rows = [results[claim.claim]._asdict() for claim in claims if claim.claim in results]
    results_path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page_path.write_text(page(claims, results), encoding="utf-8")


if __name__ == "__main__":
    main()
