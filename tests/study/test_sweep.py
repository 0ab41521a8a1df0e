"""Points of a sweep: their names, how they went, and their tables put together."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pandas as pd
import pytest

from jaxseg.report import write_sweep_report
from jaxseg.study import claims, files, sweep
from jaxseg.types import UserError


def test_a_grid_is_every_combination_the_last_axis_fastest():
    points = sweep.make_points(["optim.lr=1e-3;1e-4", "config.train.steps=8; 16;24"], [])
    assert points[0] == (("optim.lr", "1e-3"), ("train.steps", "8"))
    assert [dict(point)["train.steps"] for point in points] == ["8", "16", "24"] * 2
    assert [dict(point)["optim.lr"] for point in points] == ["1e-3"] * 3 + ["1e-4"] * 3


def test_a_list_is_crossed_with_a_grid():
    points = sweep.make_points(["base_seed=0;1"], ["optim.lr=1e-3;train.steps=8", "optim.lr=1e-4"])
    assert [dict(point) for point in points] == [
        {"optim.lr": "1e-3", "train.steps": "8", "base_seed": "0"},
        {"optim.lr": "1e-3", "train.steps": "8", "base_seed": "1"},
        {"optim.lr": "1e-4", "base_seed": "0"},
        {"optim.lr": "1e-4", "base_seed": "1"},
    ]


@pytest.mark.parametrize(
    ("grid", "points", "message"),
    [
        ([], [], "nothing to vary"),
        (["optim.lr"], [], r"is not FIELD=VALUE;VALUE"),
        (["optim.lr=1;;2"], [], r"is not FIELD=VALUE;VALUE"),
        (["optim.lr=1;1"], [], "names a value twice"),
        (["optim.lr=1;2", "optim.lr=3;4"], [], "optim.lr is varied twice"),
        (["optim.lr=1;2"], ["optim.lr=3"], "optim.lr is varied twice"),
        ([], ["optim.lr=1;steps"], r"is not FIELD=VALUE;FIELD=VALUE"),
        ([], ["optim.lr=1;optim.lr=2"], "sets a field twice"),
    ],
)
def test_mistakes_in_a_grid(grid, points, message):
    with pytest.raises(UserError, match=message):
        sweep.make_points(grid, points)


def test_names_are_folders_and_tell_points_apart():
    values = [
        0.1,
        0.1000000001,
        (8,),
        (8, 16),
        ((1, 2), (2, 2)),
        ((1, 2, 2), (2,)),
        "a/b",
        "a_b",
        "a b",
        "",
        True,
        "x" * 300,
    ]
    names = [sweep.point_name({"field": value}) for value in values]
    assert len(set(names)) == len(names)
    assert all("/" not in name and " " not in name and len(name) < 200 for name in names)
    assert sweep.point_name({"optim.lr": float("1e-3")}) == sweep.point_name({"optim.lr": 0.001})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of four points, of which two are done."""
    folder = tmp_path / "sweep"
    for rate, state in zip((0.1, 0.2, 0.3, 0.4), ("done", "done", "failed", None), strict=True):
        point = made(folder, rate)
        if state is None:
            continue
        sweep.write_state(
            point.workdir, state, seconds=60.0, attempts=1, message="<b>no memory</b>" * (state == "failed")
        )
        if state == "done":
            tables = point.workdir / "results"
            key = {
                "train_cases": 8,
                "fold": 0,
                "label": "mean",
                "metric": "dsc",
                "n_seeds": 8,
                "n_groups": 4,
                "n_cases": 4,
            }
            arms = pd.DataFrame(
                [key | {"arm": arm, "mean": rate, "ci_low": 0.0, "ci_high": 0.5} for arm in ("007", "b")]
            )
            files.write_table(tables / "summary.csv", arms)
            row = key | {"arm_a": "b", "arm_b": "007", "mean_diff": rate, "ci_low": 0.0, "ci_high": 0.5, "p": 0.5}
            files.write_table(tables / "comparisons.csv", pd.DataFrame([row]))
            files.write_table(tables / "prepared_target.csv", arms)
    return folder


def made(folder: Path, rate: float) -> sweep.Point:
    return sweep.make_point(folder, (("optim.lr", str(rate)),), {"optim.lr": rate, "target.patch": (8, 8)})


def points_of(folder: Path) -> list[sweep.Point]:
    return [made(folder, rate) for rate in (0.1, 0.2, 0.3, 0.4)]


def test_tables_of_the_points_that_are_done_stand_together(folder: Path):
    files.write_table(folder / "results" / "stale.csv", pd.DataFrame({"x": [1]}))
    sweep.write_sweep(folder, "rates", points_of(folder))
    found = {path.name for path in (folder / "results").glob("*.csv")}
    assert found == {"points.csv", "summary.csv", "comparisons.csv"}
    summary = files.read_table(folder / "results" / "summary.csv")
    assert list(summary.columns[:4]) == ["point", "optim.lr", "target.patch", "train_cases"]
    assert summary["optim.lr"].tolist() == summary["mean"].tolist() == [0.1, 0.1, 0.2, 0.2]
    assert summary["arm"].tolist() == ["007", "b"] * 2
    assert set(summary["target.patch"]) == {"(8, 8)"}
    points = files.read_table(folder / "results" / "points.csv")
    assert points["state"].tolist() == ["done", "done", "failed", "new"]
    assert points["message"].astype(bool).tolist() == [False, False, True, False]


def test_the_page_compares_points_and_names_the_failed(folder: Path):
    sweep.write_sweep(folder, "rates", points_of(folder))
    text = write_sweep_report(folder).read_text()
    assert "4 points of <b>rates</b>, 2 done" in text
    assert "optim.lr=0.3 failed: &lt;b&gt;no memory&lt;/b&gt;" in text
    assert 'href="points/optim.lr=0.1/report.html"' in text
    assert 'href="points/optim.lr=0.3/report.html"' not in text
    assert "lr 0.2" in text
    assert (folder / "figures" / "sweep_differences.svg").exists()
    with pytest.raises(UserError, match=r"no sweep\.json"):
        write_sweep_report(folder / "points")


def test_a_point_with_one_fold_is_shown_beside_one_with_several(folder: Path):
    results = made(folder, 0.2).workdir / "results"
    for name in ("summary", "comparisons"):
        one = files.read_table(results / f"{name}.csv")
        files.write_table(results / f"{name}.csv", pd.concat([one.assign(fold=fold) for fold in (-1, 0, 1)]))
    sweep.write_sweep(folder, "rates", points_of(folder))
    text = write_sweep_report(folder).read_text()
    drawn = (folder / "figures" / "sweep_differences.svg").read_text()
    for rate in ("0.1", "0.2"):
        assert drawn.count(f">lr {rate}<") == 1
        assert text.count(f">{rate}00 ") == 2, "two arms, each in one row"


def test_the_page_shows_what_targets_give_together(folder: Path):
    sweep.write_sweep(folder, "rates", points_of(folder))
    assert 'id="targets"' not in write_sweep_report(folder).read_text()
    row = {
        "claim": "C2",
        "role": "study",
        "study": "a",
        "quantity": "gain",
        "value": 0.02,
        "ci_low": 0,
        "ci_high": 0.04,
    }
    rows = [row | {"target": target} for target in ("007", "<b>")]
    files.write_table(folder / "results" / "over_targets.csv", pd.DataFrame(rows))
    text = write_sweep_report(folder).read_text()
    assert 'id="targets"' in text
    assert "2 targets can speak of it" in text
    assert ">007<" in (folder / "figures" / "over_targets.svg").read_text()


def test_a_point_whose_process_is_gone_was_interrupted(folder: Path):
    point = made(folder, 0.4)
    assert point.state == "new"
    sweep.write_state(point.workdir, "running", attempts=1)
    assert point.state == "interrupted"
    with open(point.workdir / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert point.state == "running"
    sweep.write_state(point.workdir, "done")
    assert point.state == "done"
    assert json.loads((point.workdir / sweep.RECORD).read_text())["attempts"] == 1


def test_what_a_failed_process_said(tmp_path: Path):
    log = tmp_path / "log"
    assert sweep.failure(log, 1) == "exit status 1"
    log.write_text("error: old\nerror: optim.lr = 0\nlast words\n\n")
    assert sweep.failure(log, 2) == "optim.lr = 0"
    assert sweep.failure(log, 1) == "exit status 1: last words"
    assert sweep.failure(log, -9) == "killed by signal 9: last words"


def test_verdicts_over_the_targets_of_a_sweep(folder: Path):
    points = points_of(folder)
    for point, target in zip(points[:2], ("hippocampus", "nerve"), strict=True):
        task = {"name": target, "noise": 0.0, "labels": ["a"], "channels": 1, "normalization": ["zscore"]}
        task |= {"cases": {"train": 8, "val": 1, "test": 1}}
        record = {"name": "rates", "rule_version": 2, "runs": [], "arms": {}, "source": None, "target": task}
        files.write_json(point.workdir / "study.json", record)
        claims.write_claims(point.workdir)
    sweep.write_sweep(folder, "rates", points)
    table = files.read_table(folder / "results" / "claims_over_studies.csv")
    assert table["claim"].nunique() == 13
    assert set(table["verdict"]) == {"undecided"}
    assert "needs at least 4 targets that can speak of it, has 0" in table.loc[table["claim"] == "C1", "reason"].iloc[0]
    # Of one target there is nothing to put together.
    files.write_json(points[1].workdir / "study.json", files.read_json(points[0].workdir / "study.json"))
    sweep.write_sweep(folder, "rates", points)
    assert not (folder / "results" / "claims_over_studies.csv").exists()
