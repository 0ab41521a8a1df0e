"""What is kept of a finished study: enough for its page and tables, and to run a part of it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.programs import run
from tests.tiny_study import tiny_config

STUDIES = ROOT / "docs" / "studies"
DEFAULTS_THEN = STUDIES / "defaults_0.1.json"


def configs_of(*arguments: object, cwd: Path = ROOT) -> dict[str, dict]:
    return json.loads(run("tools.published", *arguments, cwd=cwd))


def test_published_scores_come_again(tiny_study: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    printed = run("tools.publish_study", tiny_study, kept, "--compress_above=2000")
    size = sum(path.stat().st_size for path in kept.rglob("*.*"))
    assert printed == f"{kept}: {size / 1e6:.2f} MB\n"
    assert size < 5e6
    assert {path.name.removesuffix(".gz") for path in (kept / "results").iterdir()} == {
        path.name for path in (tiny_study / "results").glob("*.csv")
    }
    compressed, plain = (pd.read_csv(place / "results" / name) for place, name in
                         ((kept, "cases.csv.gz"), (tiny_study, "cases.csv")))  # fmt: skip
    pd.testing.assert_frame_equal(compressed, plain)
    assert (kept / "report.html").read_bytes() == (tiny_study / "report.html").read_bytes()

    again = run("tools.rerun_study", kept, tmp_path / "again", "--arm=scratch", "--seeds=1").splitlines()
    of_seed = plain[(plain["arm"] == "scratch") & (plain["seed"] == 1)]
    mean = f"{of_seed['dsc'].mean():.4f}"
    assert again[-6:-2] == [
        f"{len(of_seed)} scores of scratch, all training cases",
        "first losses: largest relative difference 0.0e+00",
        "DSC of a case: largest difference 0",
        f"seed 1: mean DSC {mean}, again {mean}",
    ]
    assert again[-1].startswith("means moved by 0.00 of what")


def test_a_study_without_source_networks_is_published(tiny_study: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(tiny_study, workdir, ignore=shutil.ignore_patterns("load_tables", "train", "figures"))
    run("tools.publish_study", workdir, tmp_path / "kept", "--without_page")
    assert (tmp_path / "kept" / "study.json").exists()
    assert not (tmp_path / "kept" / "report.html").exists()


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


GONE = {
    **{"image_interpolation": "cubic", "label_interpolation": "linear", "weights": "gaussian"},
    **{"dice_over": "case", "focal_gamma": 2.0, "decay": "kernel$"},
    **{"windows": 2},
}
"""Fields that there are no longer, with what is done now."""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the defaults of a later version, where hardly anything is as it was."""
    folder = tmp_path_factory.mktemp("later")
    (folder / "configs").mkdir()
    source = (ROOT / "configs" / "default.py").read_text().replace("def get_config(", "def get_config_now(")
    (folder / "configs" / "default.py").write_text(f"""{source}

def get_config():
    made = get_config_now()
    for section in (made.optim, made.loss, made.target, made.target.augment, made.pretrain, made.evaluate):
        for name, value in section.items():
            if isinstance(value, float | int):
                section[name] = type(value)(value + 1)
    return made
""")
    return folder


def test_what_a_study_did_not_write_down_is_as_it_was_then(tiny_study: Path, tmp_path: Path, later: Path) -> None:
    written = json.loads((tiny_study / "config.json").read_text())
    del written["pretrain"]["eval_every"], written["optim"]["lr"], written["loss"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    made = configs_of(tmp_path, cwd=later)[str(tmp_path)]
    assert (made["pretrain"]["eval_every"], made["optim"]["lr"], made["loss"]["smooth"]) == (0, 1e-3, 1.0)
    assert (made["target"]["foreground"], made["target"]["augment"]["gamma"]) == (0.5, 0.0)
    assert made["train"]["steps"] == tiny_config().train.steps


def test_a_published_config_stands_whatever_the_defaults_are(later: Path) -> None:
    def kept(before: dict, after: dict) -> None:
        for name, value in before.items():
            if isinstance(value, dict):
                kept(value, after[name])
            else:
                assert (GONE if name in GONE else after)[name] == value, name

    then = json.loads(DEFAULTS_THEN.read_text()) | {"arms": {}}
    folders = sorted(path.parent for path in STUDIES.rglob("config.json"))
    found = configs_of(*folders, cwd=later)
    for folder in folders:
        kept(then | json.loads((folder / "config.json").read_text()), found[str(folder)])


def test_the_defaults_of_then_are_complete() -> None:
    """Every field of a published study is among them, so none is ever filled from what came later."""

    def names(tree: dict, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for name, value in tree.items():
            found |= names(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
        return {name for name in found if not name.startswith("arms.")}

    then = names(json.loads(DEFAULTS_THEN.read_text()))
    later = [*(STUDIES / "which_start").rglob("config.json")]  # these keep no tables to run again from
    for path in {*STUDIES.rglob("config.json")} - {*later}:
        assert names(json.loads(path.read_text())) <= then
