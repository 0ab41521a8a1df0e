"""Quantities drawn from tables, against numbers worked out by hand; and tables that are hard to read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxseg.report.effects import seed_scores, speeds
from jaxseg.report.tables import POOLED, Tables, Variant, of_variant, read_tables, variants_of
from jaxseg.types import UserError
from tests.report.tables_builder import write_workdir


def _tables(steps: dict[str, list[float | None]], *, length: int = 100, pretrain: int = 50) -> Tables:
    """A study whose arms reach the target at these steps, seed by seed; None: never."""
    rows = [
        (arm, seed, 8, 0, 0.9, length if step is None else step, step is None)
        for arm, of_arm in steps.items()
        for seed, step in enumerate(of_arm)
    ]
    columns = ["arm", "seed", "train_cases", "fold", "target_dsc", "step", "censored"]
    study = {
        "arms": {arm: {"init": "pretrained" if arm == "transfer" else "random"} for arm in steps},
        "pretrain": {"steps": pretrain},
        "train": {"steps": length},
    }
    return Tables(study, {}, None, None, pd.DataFrame(rows, columns=columns), None, None, None, (), {})


def test_speed_is_the_geometric_mean_over_seeds_with_a_t_interval_on_logarithms():
    (speed,) = speeds(_tables({"scratch": [80, 60, 90], "transfer": [20, 30, 30]}), "scratch")
    logs = np.log([4.0, 2.0, 3.0])
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert (speed.ratio, speed.low, speed.high) == pytest.approx((24 ** (1 / 3), math.exp(low), math.exp(high)))
    # 50 steps of pretraining on top: 80/70, 60/80, 90/80
    assert speed.total_ratio == pytest.approx((80 / 70 * 60 / 80 * 90 / 80) ** (1 / 3))


def test_runs_that_never_reach_the_target_count_as_claim_c1_says():
    (speed,) = speeds(_tables({"scratch": [None, 50, None], "transfer": [25, None, None]}), "scratch")
    # scratch censored: 100 / 25; transfer censored: 50 / 200; both: 1
    assert speed.ratio == pytest.approx((4 * 0.25 * 1) ** (1 / 3))
    assert (speed.n_censored, speed.n_censored_baseline, speed.n_runs) == (2, 2, 3)


def test_speed_without_pretrained_weights_has_no_total_and_one_seed_no_interval():
    (speed,) = speeds(_tables({"scratch": [40], "frozen": [80]}), "scratch")
    assert speed.ratio == pytest.approx(0.5)
    assert all(math.isnan(x) for x in (speed.low, speed.high, speed.total_ratio, speed.total_low))


def test_arms_without_a_seed_in_common_have_no_speed():
    tables = _tables({"scratch": [40, 50], "scratch_b": [40, 50]})
    assert tables.convergence is not None
    moved = tables.convergence["arm"] == "scratch_b"
    tables.convergence.loc[moved, "seed"] += 100
    assert speeds(tables, "scratch") == []


def _cases(rows: list[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["seed", "case", "group", "label", "dsc", "status"])
    return table.assign(arm="a", train_cases=0, fold=0)


def test_scores_average_labels_then_cases_then_groups_and_count_misses():
    rows = [
        (0, "c1", "p1", "x", 0.8, "ok"),
        (0, "c1", "p1", "y", 0.0, "missed"),  # c1: 0.4
        (0, "c2", "p1", "x", 0.6, "ok"),
        (0, "c2", "p1", "y", 0.0, "spurious"),  # the reference lacks y: c2 is 0.6, p1 is 0.5
        (0, "c3", "p2", "x", 0.9, "ok"),
        (0, "c3", "p2", "y", float("nan"), "both_empty"),  # p2: 0.9
    ]
    scored = seed_scores(_cases(rows))
    assert scored["value"].tolist() == pytest.approx([0.7])


def test_folds_are_shown_together_where_rows_for_that_exist():
    table = pd.DataFrame({"train_cases": [8, 8, 8, 0], "fold": [POOLED, 0, 1, 0], "mean": [1, 2, 3, 4]})
    small, whole = variants_of(table)
    assert (small, whole) == (Variant(8, POOLED), Variant(0, 0))
    assert of_variant(table, small)["mean"].tolist() == [1]
    assert of_variant(table[1:], small)["mean"].tolist() == [2, 3]
    assert of_variant(table, whole)["mean"].tolist() == [4]


def test_names_that_look_like_missing_numbers_stay_names(tmp_path: Path):
    workdir = write_workdir(tmp_path, arms=("NA", "nan"), labels=("null", "007"), case_name="{:02d}")
    tables = read_tables(workdir)
    assert tables.cases is not None
    assert set(tables.cases["arm"]) == {"NA", "nan"}
    assert set(tables.cases["label"]) == {"null", "007"}
    assert tables.cases["case"].iloc[0] == "00"
    assert tables.cases["hd95"].isna().any()


def test_a_folder_that_is_no_workdir_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"No study\.json in .*workdir"):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", b"{", "study.json is not readable JSON"),
        ("results/cases.csv", b"arm,seed\na,0\n", r"lacks the column\(s\) train_cases, case"),
        ("results/examples.npz", b"no archive", "examples.npz is not readable"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    workdir = write_workdir(tmp_path, seeds=1)
    (workdir / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tables(workdir)


def test_a_table_with_a_header_alone_counts_as_missing(tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=1)
    path = workdir / "results" / "curves.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert read_tables(workdir).curves is None


def test_tables_without_a_fold_column_have_one_fold(tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=1)
    for name in ("cases", "summary"):
        path = workdir / "results" / f"{name}.csv"
        pd.read_csv(path).drop(columns="fold").to_csv(path, index=False)
    tables = read_tables(workdir)
    assert tables.cases is not None
    assert set(tables.cases["fold"]) == {0}
    assert json.loads((workdir / "study.json").read_text()) == tables.study
