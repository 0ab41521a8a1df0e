"""What is kept of a finished study: enough for its page and tables, and to run a part of it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from configs import default
from docs import publish_study, rerun_study
from jaxseg import settings
from tests.tiny_study import silent, tiny_config

STUDIES = Path(rerun_study.__file__).parent / "studies"


def test_published_scores_come_again(tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_study, "COMPRESSED_ABOVE", 2_000)
    kept = tmp_path / "kept"
    size = publish_study.publish(tiny_study, kept)
    assert size == sum(path.stat().st_size for path in kept.rglob("*.*")) < 5e6
    assert {path.name.removesuffix(".gz") for path in (kept / "results").iterdir()} == {
        path.name for path in (tiny_study / "results").glob("*.csv")
    }
    assert (kept / "results" / "cases.csv.gz").exists()
    pd.testing.assert_frame_equal(*(rerun_study.read_table(place, "cases") for place in (kept, tiny_study)))
    assert (kept / "report.html").read_bytes() == (tiny_study / "report.html").read_bytes()

    both = rerun_study.rerun(kept, tmp_path / "again", "scratch", (1,), silent)
    assert set(both["seed"]) == {1}
    np.testing.assert_array_equal(both["dsc"], both["dsc_again"])
    assert rerun_study.first_loss_difference(kept, tmp_path / "again", "scratch", 0) == 0


def test_a_study_without_source_networks_is_published(tiny_study: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(tiny_study, workdir, ignore=shutil.ignore_patterns("load_tables", "train", "figures"))
    publish_study.publish(workdir, tmp_path / "kept", page=False)
    assert (tmp_path / "kept" / "study.json").exists()


def test_the_rate_that_was_chosen_is_taken(tiny_study: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    publish_study.publish(tiny_study, kept, page=False)
    assert not (kept / "report.html").exists()
    record = (kept / "study.json").read_text()
    (kept / "study.json").write_text(record.replace('"lr": 0.001', '"lr": 0.0625'))
    made, size = rerun_study.config_of(kept, "transfer", (0,))
    assert (size, list(made.arms), made.arms.transfer.optim.lr, made.seed_ids) == (0, ["transfer"], 0.0625, (0,))


GONE = {
    **{"image_interpolation": "cubic", "label_interpolation": "linear", "weights": "gaussian"},
    **{"dice_over": "case", "focal_gamma": 2.0, "decay": "kernel$"},
    **{"windows": 2, "positions": 4096, "barrier_pairs": 32},
}
"""Fields that there are no longer, with what is done now."""


@pytest.fixture
def other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults of a later version, where hardly anything is as it was."""
    get_config = default.get_config

    def later() -> ConfigDict:
        made = get_config()
        for section in (made.optim, made.loss, made.target, made.target.augment, made.pretrain, made.evaluate):
            for name, value in section.items():
                if isinstance(value, float | int):
                    section[name] = type(value)(value + 1)
        return made

    monkeypatch.setattr(default, "get_config", later)


@pytest.mark.usefixtures("other_defaults")
def test_what_a_study_did_not_write_down_is_as_it_was_then(tiny_study: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    publish_study.publish(tiny_study, kept)
    written = json.loads((kept / "config.json").read_text())
    del written["pretrain"]["eval_every"], written["optim"]["lr"], written["loss"]
    (kept / "config.json").write_text(json.dumps(written))
    made, _ = rerun_study.config_of(kept, "scratch", (0,))
    assert (made.pretrain.eval_every, made.optim.lr, made.loss.smooth) == (0, 1e-3, 1.0)
    assert (made.target.foreground, made.target.augment.gamma) == (0.5, 0.0)
    assert made.train.steps == tiny_config().train.steps


@pytest.mark.usefixtures("other_defaults")
@pytest.mark.parametrize("path", sorted(STUDIES.rglob("config.json")), ids=lambda path: path.parent.name)
def test_a_published_config_stands_whatever_the_defaults_are(path: Path) -> None:
    written = settings.from_json(path.read_text())
    filled = json.loads(settings.to_json(rerun_study.with_later_fields(written)))

    def kept(before: dict, after: dict) -> None:
        for name, value in before.items():
            if isinstance(value, dict):
                kept(value, after[name])
            else:
                assert (GONE if name in GONE else after)[name] == value, name

    kept(json.loads(rerun_study.DEFAULTS_THEN.read_text()) | {"arms": {}} | json.loads(path.read_text()), filled)


def test_the_defaults_of_then_are_complete() -> None:
    """Every field of a published study is among them, so none is ever filled from what came later."""

    def names(tree: dict, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for name, value in tree.items():
            found |= names(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
        return {name for name in found if not name.startswith("arms.")}

    then = names(json.loads(rerun_study.DEFAULTS_THEN.read_text()))
    for path in STUDIES.rglob("config.json"):
        assert names(json.loads(path.read_text())) <= then
