"""The command that writes what published studies say of a claim together."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from jaxseg.study import files
from jaxseg.study.claims.rules import RULES
from tests.conftest import ROOT
from tests.programs import run, start
from tests.report.tables_builder import write_claims, write_workdir


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five published studies of other targets and patients, one of them with a page, and a folder that is no study."""
    root = tmp_path_factory.mktemp("studies")
    workdir = write_claims(
        write_workdir(tmp_path_factory.mktemp("made") / "study", arms=("scratch", "transfer"), seeds=8)
    )
    for i in range(5):
        results = root / f"to_t{i}" / "results"
        results.mkdir(parents=True)
        record = json.loads((workdir / "study.json").read_text())
        record["target"]["name"] = f"t{i}"
        (results.parent / "study.json").write_text(json.dumps(record))
        shutil.copy(workdir / "results" / "claims.csv", results)
        groups = files.read_table(workdir / "results" / "test_groups.csv")
        groups["group"] = [hashlib.sha256(f"{i} {group}".encode()).hexdigest()[:16] for group in groups["group"]]
        groups.to_csv(results / "test_groups.csv", index=False)
    (root / "to-t1.md").write_text("# A page\n")
    (root / "figures").mkdir()
    return root


def test_a_page_gets_verdict_figure_and_table(studies: Path) -> None:
    printed = run("tools.draw_claims", "C2", "C4b", f"--studies={studies}")
    made = studies / "over_targets"
    assert printed.split() == [str(made / name) for name in ("C2.md", "C2.svg", "C4b.md", "C4b.svg")]
    text = (made / "C4b.md").read_text()
    assert text.startswith("**C4b, no gain at full size: undecided (exploratory).** Gain, mean over 5 targets 0.0")
    assert "To decide it: about " in text.splitlines()[0]
    assert "```{figure} over_targets/C4b.svg" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0][-2:] == ["gain [95 %]", "verdict there |"]
    targets = {row[0].removeprefix("| "): row for row in rows}
    assert {f"t{i}" for i in range(5)} <= set(targets)
    assert targets["t1"][2] == "[to_t1](to-t1.md)"
    assert targets["t2"][2] == "to_t2"
    value = targets["t1"][3].partition(" ")[0]
    assert targets["**mean over targets**"][3].startswith(value)  # five times the same study
    assert targets["how far targets differ, tau"][3].startswith("0.000 [0.000")
    assert ">another target<" in (made / "C4b.svg").read_text()

    run("tools.draw_claims", "C2", "C4b", f"--studies={studies}", "--check")
    shutil.rmtree(studies / "to_t4")
    done = start("tools.draw_claims", "C2", "C4b", f"--studies={studies}", "--check")
    assert done.returncode == 1
    assert all(name in done.stderr for name in ("C2.md", "C2.svg", "C4b.md", "C4b.svg"))
    assert "t4" in text == (made / "C4b.md").read_text()


def test_a_claim_that_no_study_speaks_of_is_refused(studies: Path) -> None:
    done = start("tools.draw_claims", "C7", f"--studies={studies}")
    assert done.returncode == 2
    assert done.stderr.startswith("C7: no study can speak of it")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the studies of this repository say of each claim that one of them can speak of."""
    made = tmp_path_factory.mktemp("made") / "over_targets"
    claims = [claim for claim in RULES if claim != "C3"]
    run("tools.draw_claims", *claims, f"--studies={ROOT / 'docs' / 'studies'}", f"--into={made}")
    return made


@pytest.mark.parametrize("claim", [claim for claim in RULES if claim != "C3"])
def test_what_the_published_studies_say_is_drawn_with_a_number_for_each(published: Path, claim: str) -> None:
    """Studies name what they measured after their own cases and rates; together the same things stand in one column."""
    text = (published / f"{claim}.md").read_text()
    assert text.startswith(f"**{claim}, {RULES[claim].statement}: ")
    cells = [line.split(" | ")[3:-1] for line in text.splitlines() if "](" in line and line.startswith("| ")]
    assert cells
    assert all(any("[" in cell for cell in own) for own in cells)
    assert (published / f"{claim}.svg").stat().st_size > 5_000
