"""A page of thousands of runs: figures draw some of them and say so, and lists are cut."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from jaxseg.report.charts.rows import _asides
from jaxseg.report.sections import provenance
from jaxseg.report.shown import ALL_RUNS, LEAST_RUNS, drawn_runs, drawn_words


def table_of(arms: int, seeds: int, folds: int = 1, steps: int = 1) -> pd.DataFrame:
    every = itertools.product((f"arm{i}" for i in range(arms)), (0,), range(folds), range(seeds), range(steps))
    return pd.DataFrame(list(every), columns=["arm", "train_cases", "fold", "seed", "step"]).assign(value=0.5)


def test_a_figure_draws_all_runs_of_a_usual_study() -> None:
    table = table_of(10, 16, folds=5)
    assert drawn_runs(table) is table
    assert drawn_words(table, "curve_runs") == ""


@pytest.mark.parametrize(("arms", "seeds"), [(5, 2000), (5, 321), (1, 10_000), (400, 25)])
def test_of_many_runs_evenly_spread_ones_are_drawn_whole(arms: int, seeds: int) -> None:
    table = table_of(arms, seeds, steps=2)
    drawn, most = drawn_runs(table), max(LEAST_RUNS, ALL_RUNS // arms)
    assert list(drawn.columns) == list(table.columns)
    assert (drawn.groupby("arm")["seed"].nunique() == most).all()
    assert (drawn.groupby(["arm", "seed"]).size() == 2).all()
    ids = drawn.loc[drawn["arm"] == "arm0", "seed"].unique()
    gaps = pd.Series(ids).diff().dropna()
    assert gaps.max() - gaps.min() <= 1
    assert drawn_words(table, "curve_runs") == (
        f" Of more than {most} runs of an arm and size, {most} are drawn; results/curve_runs.csv has all."
    )


def test_an_arm_of_few_runs_keeps_them_beside_one_of_many() -> None:
    both = pd.concat([table_of(1, 3), table_of(1, 5000).assign(arm="many")])
    assert drawn_runs(both)["arm"].value_counts().to_dict() == {"many": ALL_RUNS // 2, "arm0": 3}


def test_dots_that_would_hide_each_other_are_moved_apart() -> None:
    assert _asides([0.5, 0.1, 0.5, 0.5], (0.0, 1.0)) == pytest.approx([-0.045, 0.0, 0.0, 0.045])


def test_lists_are_cut_and_say_so() -> None:
    assert provenance._seed_words([0, 1, 5]) == "0, 1, 5"
    assert provenance._seed_words(range(2000)) == "0, 1, 2, ..., 1997, 1998, 1999: 2,000 ids"
    assert provenance._first_words(100) == ""
    assert provenance._first_words(2345) == ", the first 100 of 2,345; study.json has all"
