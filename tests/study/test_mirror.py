"""What a tracker shows of a study: every run with its settings, curves and scores, and what is not there yet."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxseg.manifest import DamagedError
from jaxseg.settings import parse
from jaxseg.study import files, record, recorded_runs
from jaxseg.study.mirror import STUDY, Mirror, MirroredRun, _metric_names, _summary_of, mirror
from jaxseg.study.plan.binding import read_binding
from jaxseg.types import UserError
from tests.tiny_study import tiny_config


def by_key(found: Mirror) -> dict[str, MirroredRun]:
    return {run.key: run for run in found.runs}


def values(run: MirroredRun, name: str) -> dict[int, float]:
    return {point.step: point.value for point in run.points if point.name == name}


@pytest.fixture
def unfinished(tiny_study: Path, tmp_path: Path) -> Path:
    """The tiny study as it is between training and evaluation, without its results."""
    folder = tmp_path / "study"
    shutil.copytree(tiny_study, folder)
    shutil.rmtree(folder / "results")
    (folder / "report.html").unlink()
    return folder


def test_every_run_stands_below_its_arm_and_every_arm_below_the_study(tiny_study: Path) -> None:
    found = mirror(tiny_study)
    keys = [run.key for run in found.runs]
    assert len(set(keys)) == len(keys)
    assert all(run.parent in keys[:index] for index, run in enumerate(found.runs) if run.parent is not None)
    study = record.read(tiny_study)
    assert study is not None
    assert {key for key in keys if key.startswith("run:")} == {
        f"run:{recorded_runs.named(run.key)}" for run in study.runs_of("train")
    }
    assert {run.key for run in found.runs if run.parent == STUDY} == {f"arm:{name}" for name in study.arms}
    assert found.missing == ()
    assert {run.state for run in found.runs} == {"finished"}
    binding = read_binding(tiny_study)
    assert binding is not None
    for run in found.runs:
        assert (run.tags["study"], run.tags["data"]) == (binding.study, binding.data) == (found.study, binding.data)
        assert run.tags["version.jax"] == study.versions["jax"]


def test_a_study_that_is_being_written_is_shown_and_not_called_finished(tiny_study: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_study, tmp_path / "study")
    with files.locked(tmp_path / "study"):
        found = mirror(tmp_path / "study")
    states = {run.key.partition(":")[0]: run.state for run in found.runs}
    assert states == {STUDY: "running", "arm": "running", "run": "finished"}
    assert found.missing == ("the end of the study: a process works on it, and what it wrote so far is shown",)
    assert by_key(found).keys() == by_key(mirror(tiny_study)).keys()


def test_params_are_the_resolved_settings_of_the_arm(tiny_study: Path) -> None:
    found = by_key(mirror(tiny_study))
    for arm in parse(tiny_config()).arms:
        params = found[f"arm:{arm.name}"].params
        assert params["init"] == arm.init
        assert params["optim.lr"] == str(arm.optim.lr)
        assert params["source.data"] == arm.source.data
        assert set(dataclasses.asdict(arm)) == {name.partition(".")[0] for name in params}
        for seed in (0, 1):
            run = found[f"run:{arm.name}/n0_fold0/seed_{seed}"]
            assert {**params, "train_cases": "0"}.items() <= run.params.items()
            assert (run.params["seed"], run.params["lr"]) == (str(seed), "0.001")
    assert "target.data" in found[STUDY].params
    assert not [name for name in found[STUDY].params if name.startswith(("arms", "report", "runtime", "num_seeds"))]


def test_metrics_are_the_tables(tiny_study: Path) -> None:
    found = by_key(mirror(tiny_study))
    curves = files.read_table(tiny_study / "results" / "curves.csv")
    scores = files.read_table(tiny_study / "results" / "seed_scores.csv")
    summary = files.read_table(tiny_study / "results" / "summary.csv")
    for arm in ("scratch", "transfer", "frozen_random_encoder"):
        run = found[f"run:{arm}/n0_fold0/seed_1"]
        own = curves[(curves["arm"] == arm) & (curves["seed"] == 1)]
        for name in ("loss", "val_dsc"):
            rows = own[own[name].notna()]
            assert values(run, name) == dict(zip(rows["step"], rows[name], strict=True))
        held = scores[(scores["arm"] == arm) & (scores["seed"] == 1) & (scores["metric"] == "dsc")]
        assert set(held["label"]) == {"blobs 1", "blobs 2", "mean"}
        for label, value in zip(held["label"], held["value"], strict=True):
            assert values(run, f"test_dsc/{label}") == {8: value}
        row = summary[(summary["arm"] == arm) & (summary["label"] == "mean") & (summary["metric"] == "dsc")]
        assert values(found[f"arm:{arm}"], "test_dsc/mean") == {0: row["mean"].item()}
    assert not [point for run in found.values() for point in run.points if not np.isfinite(point.value)]


def test_the_page_with_its_pictures_stays_here_if_asked(tiny_study: Path) -> None:
    with_page = {path.name for path in by_key(mirror(tiny_study))[STUDY].files}
    assert with_page == {"report.html", "claims.csv", "summary.csv", "comparisons.csv", "config.json", "study.json"}
    without = by_key(mirror(tiny_study, page=False))[STUDY]
    assert {path.name for path in without.files} == with_page - {"report.html"}
    assert without.state == "finished"


def test_before_the_evaluation_curves_come_from_checkpoints(tiny_study: Path, unfinished: Path) -> None:
    found, finished = by_key(mirror(unfinished)), by_key(mirror(tiny_study))
    missing = mirror(unfinished).missing
    assert missing == (
        "test scores of 6 of 6 networks: written by the stages evaluate and analyze",
        "report.html, results/claims.csv, results/summary.csv, results/comparisons.csv: written at the end",
    )
    assert {run.state for run in found.values()} == {"running"}
    for key, run in found.items():
        assert run.points == tuple(point for point in finished[key].points if not point.name.startswith("test_"))
        assert run.params == finished[key].params
        assert run.tags == finished[key].tags


def test_what_cannot_be_read_is_said_and_the_rest_is_there(unfinished: Path) -> None:
    study = record.read(unfinished)
    assert study is not None
    jobs = sorted({run.directory for run in study.runs_of("train")})
    shutil.rmtree(unfinished / jobs[0] / "checkpoints")
    for meta in (unfinished / jobs[1]).rglob("metadata"):
        meta.write_bytes(b"{")
    found = mirror(unfinished)
    lost = {f"run:{recorded_runs.named(run.key)}" for run in study.runs_of("train") if run.directory in jobs[:2]}
    assert {key for key, run in by_key(found).items() if key.startswith("run:") and not run.points} == lost
    assert f"curves of {len(lost)} of 6 networks: no checkpoint of their job yet" in found.missing
    assert f"curves of {jobs[1]}: the last checkpoint cannot be read at the moment" in found.missing


def test_a_run_that_diverged_has_failed(tiny_study: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_study, tmp_path / "study")
    study = record.read(tmp_path / "study")
    assert study is not None
    runs = tuple(
        dataclasses.replace(run, diverged_at=3) if run.key == ("transfer", 0, 0, 1) and run.kind == "train" else run
        for run in study.runs
    )
    record.write(tmp_path / "study", dataclasses.replace(study, runs=runs))
    found = by_key(mirror(tmp_path / "study"))
    assert found["run:transfer/n0_fold0/seed_1"].state == "failed"
    assert found["run:transfer/n0_fold0/seed_1"].tags["diverged_at"] == "3"
    assert found["run:transfer/n0_fold0/seed_0"].state == "finished"


def test_a_study_that_did_not_begin_to_train_is_refused(tiny_study: Path, tmp_path: Path) -> None:
    for name in ("config.json", "study.json"):
        files.write_text(tmp_path / name, (tiny_study / name).read_text(encoding="utf-8"))
    with pytest.raises(UserError, match="has not begun to train"):
        mirror(tmp_path)
    files.write_text(tmp_path / "data.json", "[]")
    with pytest.raises(DamagedError):
        mirror(tmp_path)


def test_labels_of_any_spelling_have_names_of_their_own() -> None:
    names = _metric_names(["mean", "a+b", "a/b", "a_b", "..", "Låb el"])
    assert len(set(names.values())) == len(names)
    assert names["mean"] == "mean"
    assert sorted(names[label] for label in ("a+b", "a/b", "a_b")) == ["a_b", "a_b_2", "a_b_3"]
    assert names[".."] == "__"


def test_means_of_several_sizes_and_folds_are_told_apart() -> None:
    rows = [("scratch", 4, 0, 0.5), ("scratch", 4, -1, 0.6), ("scratch", 8, 0, 0.7), ("transfer", 4, 0, 0.9)]
    table = pd.DataFrame(rows, columns=["arm", "train_cases", "fold", "mean"]).assign(label="mean", metric="dsc")
    found = {point.name: point.value for point in _summary_of("scratch", table, {"mean": "mean"})}
    assert found == {"n4_fold0/test_dsc/mean": 0.5, "n4/test_dsc/mean": 0.6, "n8_fold0/test_dsc/mean": 0.7}
    assert [point.name for point in _summary_of("transfer", table, {"mean": "mean"})] == ["test_dsc/mean"]
