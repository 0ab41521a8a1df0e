"""What is kept of a finished study: enough to read it, to pool it with others, and to run a part of it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jaxseg.report import write_report
from tests.conftest import ROOT
from tests.programs import run, start
from tests.report.tables_builder import write_claims, write_workdir

STUDIES = ROOT / "docs" / "studies"


def configs_of(*arguments: object, cwd: Path = ROOT) -> dict[str, dict]:
    return json.loads(run("tools.published", *arguments, cwd=cwd))


def test_published_scores_come_again(tiny_study: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    printed = run("tools.publish_study", tiny_study, kept)
    size = sum(path.stat().st_size for path in kept.rglob("*.*"))
    assert printed == f"{kept}: {size / 1e6:.2f} MB\n"
    assert size < 5e5
    again = run("tools.rerun_study", kept, tmp_path / "again", "--arm=scratch", "--seeds=1").splitlines()
    assert again[-5].endswith(" mean scores of scratch, all training cases")
    assert again[-4] == "largest difference: 0"
    before, _, after = again[-3].removeprefix("seed 1: mean DSC ").partition(", again ")
    assert before == after
    assert again[-1].startswith("means moved by 0.00 of what")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study of two sizes, whose config and record name folders of this machine."""
    arms, place = ("scratch", "transfer"), tmp_path_factory.mktemp("made") / "study"
    workdir = write_claims(write_workdir(place, arms=arms, sizes=(4, 16), seeds=3, n_cases=5))
    write_report(workdir)
    config, record = (json.loads((workdir / name).read_text()) for name in ("config.json", "study.json"))
    config["source"] = {"data": "/home/someone/sets/hearts+/media/disk/heads", "unit": "mm"}
    config["pretrain"] = {"from_workdir": "/home/someone/import"}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "study.json").write_text(json.dumps(record | {"stores": {"hearts": "/home/someone/stores/hearts"}}))
    return workdir


@pytest.fixture
def workdir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


def test_results_are_kept_and_no_place_of_the_machine(workdir: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    run("tools.publish_study", workdir, kept, "--figures=learning_curves,differences")
    found = json.loads((kept / "config.json").read_text())
    assert found["source"] == {"data": "PATH/hearts+PATH/heads", "unit": "mm"}
    assert found["pretrain"] == {"from_workdir": "PATH/import"}
    assert json.loads((kept / "study.json").read_text())["stores"] == {"hearts": "PATH/hearts"}
    results = {path.name for path in (kept / "results").iterdir()}
    assert {"claims.csv", "test_groups.csv", "comparisons.csv", "summary.csv", "seed_scores.csv"} <= results
    assert not {"cases.csv", "curves.csv", "similarity.csv"} & results
    for path in kept.glob("results/*"):
        assert path.read_bytes() == (workdir / path.relative_to(kept)).read_bytes()
    # Of a figure for each training set size, that of the largest is kept.
    curves = {path.name: path.read_bytes() for path in (workdir / "figures").glob("learning_curves_n*.svg")}
    assert len(set(curves.values())) == 2
    assert (kept / "figures" / "learning_curves.svg").read_bytes() == curves["learning_curves_n16.svg"]
    assert {path.name for path in (kept / "figures").iterdir()} == {"learning_curves.svg", "differences.svg"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda workdir, kept: (workdir / "results" / "claims.csv").unlink(), "no results/claims.csv in"),
        (lambda workdir, kept: (kept.mkdir(), (kept / "mine.txt").write_text("")), "holds something else than a"),
        (lambda workdir, kept: shutil.rmtree(workdir / "figures"), "no figure differences in"),
    ],
)
def test_what_is_no_study_or_would_be_lost_is_refused(workdir: Path, tmp_path: Path, change, message: str) -> None:
    change(workdir, tmp_path / "kept")
    done = start("tools.publish_study", workdir, tmp_path / "kept", "--figures=differences")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "kept" / "study.json").exists()


def test_the_rate_that_was_chosen_is_taken(tiny_study: Path, tmp_path: Path) -> None:
    for name in ("config.json", "study.json"):
        shutil.copyfile(tiny_study / name, tmp_path / name)
    record = (tmp_path / "study.json").read_text()
    (tmp_path / "study.json").write_text(record.replace('"lr": 0.001', '"lr": 0.0625'))
    made = configs_of(tmp_path, "--arm=transfer", "--seeds=0")[str(tmp_path)]
    arm = made["arms"]["transfer"]
    assert (list(made["arms"]), arm["train_cases"], arm["optim"]["lr"], made["seed_ids"]) == (
        ["transfer"], [0], 0.0625, [0]
    )  # fmt: skip


def test_a_published_config_stands_whatever_the_defaults_are(tmp_path: Path) -> None:
    """With the defaults of a later version, where hardly anything is as it was."""

    def kept(before: dict, after: dict) -> None:
        for name, value in before.items():
            if isinstance(value, dict):
                kept(value, after[name])
            else:
                assert after[name] == value, name

    (tmp_path / "configs").mkdir()
    source = (ROOT / "configs" / "default.py").read_text().replace("def get_config(", "def get_config_now(")
    (tmp_path / "configs" / "default.py").write_text(f"""{source}

def get_config():
    made = get_config_now()
    for section in (made.optim, made.loss, made.target, made.target.augment, made.pretrain, made.evaluate):
        for name, value in section.items():
            if isinstance(value, float | int):
                section[name] = type(value)(value + 1)
    return made
""")
    folders = sorted(path.parent for path in STUDIES.rglob("config.json"))
    assert folders
    found = configs_of(*folders, cwd=tmp_path)
    for folder in folders:
        kept(json.loads((folder / "config.json").read_text()), found[str(folder)])
