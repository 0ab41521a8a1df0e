"""The page of claims: what it names exists, it is made from its results, and the tool tells passing from failing."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.programs import run, start

CLAIMS = [
    claim | {"topic": topic["name"]}
    for topic in tomllib.loads((ROOT / "tools" / "verification_claims.toml").read_text())["topic"]
    for claim in topic["claims"]
]
COMMANDS = sorted({claim["command"] for claim in CLAIMS})
SELECTIONS = [command for command in COMMANDS if command.startswith("pytest ")]
NEEDS = {"", "hours", "images", "torch", "gpu", "person"}


def test_claims_are_known_by_their_words() -> None:
    assert len({claim["claim"] for claim in CLAIMS}) == len(CLAIMS) > 90
    assert {claim.get("needs", "") for claim in CLAIMS} == NEEDS
    for claim in CLAIMS:
        assert "|" not in claim["claim"] + claim["command"]


def names_of(place: Path) -> set[str]:
    """The tests of a file, or of every file of a folder."""
    files = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
    trees = [ast.parse(file.read_text()) for file in files]
    return {node.name for tree in trees for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}  # fmt: skip


@pytest.mark.parametrize("command", SELECTIONS)
def test_every_selection_of_a_claim_selects_a_test(command: str) -> None:
    words = shlex.split(command)[1:]
    after = dict(itertools.pairwise(words))
    places = [word for word in words if word.startswith("tests")]
    names: set[str] = set()
    for place in places:
        path, _, name = place.partition("::")
        found = names_of(ROOT / path)
        assert found, path
        assert not name or name in found, place
        names |= {name} if name else found
    for word in re.findall(r"\w+", after.get("-k", "")):
        assert word in ("and", "or", "not") or any(word in name for name in names), word


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m ")])
def test_every_program_of_a_claim_exists(command: str) -> None:
    module = shlex.split(command)[2]
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()


def test_the_page_is_made_from_its_results(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    results.write_bytes((ROOT / "docs" / "verification.json").read_bytes())
    run("tools.verify", "--collect", f"--results={results}", f"--page={page}")
    assert results.read_bytes() == (ROOT / "docs" / "verification.json").read_bytes()
    assert page.read_text() == (ROOT / "docs" / "verification.md").read_text()
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == len(CLAIMS)
    recorded = {row["claim"] for row in json.loads(results.read_text()) if row["outcome"] == "recorded"}
    assert recorded <= {claim["claim"] for claim in CLAIMS if "needs" in claim}


CLAIMS_OF_TWO = """
[[topic]]
name = "Arithmetic"

[[topic.claims]]
claim = "One and one are two"
command = "pytest {folder}/test_sums.py::test_two"

[[topic.claims]]
claim = "One and one are three"
command = "pytest {folder}/test_sums.py::test_three"

[[topic.claims]]
claim = "The sun rises"
command = "python -m absent"
needs = "person"
"""


def test_a_claim_that_passes_and_one_that_fails(tmp_path: Path) -> None:
    claims, results, page = (tmp_path / name for name in ("claims.toml", "results.json", "page.md"))
    claims.write_text(CLAIMS_OF_TWO.format(folder=tmp_path))
    (tmp_path / "test_sums.py").write_text(
        "def test_two():\n    assert 1 + 1 == 2\n\n\ndef test_three():\n    assert 1 + 1 == 3\n"
    )
    done = start("tools.verify", f"--claims={claims}", f"--results={results}", f"--page={page}", "--with=person")
    assert done.returncode == 1
    passed, failed = json.loads(results.read_text())
    assert (passed["claim"], passed["outcome"], passed["figure"]) == ("One and one are two", "passed", "1 passed")
    assert (failed["claim"], failed["outcome"], failed["figure"]) == ("One and one are three", "failed", "1 failed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", passed["date"])
    assert re.fullmatch(r".+, \d+ cores", passed["machine"])
    text = page.read_text()
    assert "## Arithmetic\n" in text
    assert f"| One and one are two | `pytest {tmp_path}/test_sums.py::test_two` | passed: 1 passed |" in text
    assert "| The sun rises | `python -m absent` | not run |  |  |  |" in text
    # What passed stays when the other alone is run again.
    start("tools.verify", f"--claims={claims}", f"--results={results}", f"--page={page}", "--only=three")
    assert json.loads(results.read_text()) == [passed, failed]
    results.write_text(json.dumps([failed]))
    done = start("tools.verify", f"--claims={claims}", f"--results={results}", f"--page={page}", "--missing")
    assert (done.returncode, done.stdout) == (0, "passed 1 passed: One and one are two\n")
    assert json.loads(results.read_text()) == [passed, failed]
