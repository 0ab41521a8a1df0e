"""Where scores vary, and what more seeds would bring, against direct computation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxseg.analysis import statistics
from jaxseg.study import planning
from tests.study.test_comparisons import ARMS, contrast_by_hand, make_cases, pick


@pytest.fixture(scope="module")
def cases():
    return make_cases(sizes=(4,), folds=(0,))


def test_the_variance_of_an_arm_is_split_over_seeds_and_groups(cases):
    got = planning.variance(cases, metrics=("dsc",))
    assert tuple(got.columns) == planning.VARIANCE_COLUMNS
    assert len(got) == 3 * 3 * 3, "arms x labels with their mean x sources"
    chosen = cases[(cases["arm"] == "transfer") & (cases["label"] == "a")]
    table = chosen.pivot_table(index="seed", columns="group", values="dsc").to_numpy()
    expected = statistics.variance_split(table, ("seed", "group"))
    for source, name in zip(expected, ("seed", "group", "seed x group"), strict=True):
        row = pick(got, arm="transfer", label="a", source=name)
        assert row[["variance", "share", "df"]].tolist() == pytest.approx([source.variance, source.share, source.df])


def test_the_plan_looks_ahead_from_the_spread_of_the_difference(cases):
    got = planning.planning(cases, ARMS[:2], confidence=0.95, metrics=("dsc", "hd95"))
    assert tuple(got.columns) == planning.PLANNING_COLUMNS
    row = pick(got, metric="dsc", label="mean", n_seeds=16)
    d = contrast_by_hand(cases, "transfer", 4, 0, "mean")
    spread = statistics.components(d)
    assert row[["sd_seed", "sd_group", "sd_residual"]].tolist() == pytest.approx([v**0.5 for v in spread])
    assert row["half_width"] == pytest.approx(statistics.expected_half_width(spread, 16, 3))
    one = got[(got["metric"] == "dsc") & (got["label"] == "mean")]
    assert one["n_seeds"].tolist() == [4, 8, 16, 32, 64]
    assert one["half_width"].is_monotonic_decreasing
    assert (one["half_width"] > one["half_width_limit"]).all()


def test_endless_seeds_leave_what_the_groups_make(cases):
    """A gain that differs between groups: endless seeds leave a t interval over the three groups."""
    gains = cases["group"].map({"f0g0": 0.0, "f0g1": 0.1, "f0g2": 0.3})
    changed = cases.assign(dsc=cases["dsc"] + gains * (cases["arm"] == "transfer"))
    row = planning.planning(changed, ARMS[:2], confidence=0.95, metrics=("dsc",)).iloc[0]
    assert row["sd_group"] > 0.1
    assert row["half_width_limit"] == pytest.approx(stats.t.ppf(0.975, 2) * row["sd_group"] / 3**0.5)
    spread = statistics.Components(row["sd_seed"] ** 2, row["sd_group"] ** 2, row["sd_residual"] ** 2)
    assert row["half_width_limit"] == pytest.approx(statistics.expected_half_width(spread, 10**7, 3), rel=1e-4)


def test_the_plan_comes_true_on_average():
    """Half widths of studies with twice the seeds, drawn from the same spread, have the planned mean."""
    rng = np.random.default_rng(0)
    spread = statistics.Components(1.0, 0.5, 2.0)
    drawn = []
    for _ in range(400):
        d = rng.normal(size=(16, 1)) + 0.5**0.5 * rng.normal(size=(1, 20)) + 2**0.5 * rng.normal(size=(16, 20))
        interval = statistics.two_way_interval(d)
        drawn.append((interval.high - interval.low) / 2)
    assert statistics.expected_half_width(spread, 16, 20) == pytest.approx(np.mean(drawn), rel=0.05)


def test_one_seed_or_one_group_gives_no_plan(cases):
    for few in (cases[cases["seed"] % 100 == 0], cases[cases["group"] == "f0g1"]):
        assert planning.planning(few, ARMS[:2], confidence=0.95).empty
        assert planning.variance(few).empty
    assert isinstance(planning.planning(cases.iloc[:0], ARMS, confidence=0.95), pd.DataFrame)
