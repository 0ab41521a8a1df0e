"""Where scores vary, and what more seeds would bring, against direct computation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxseg.analysis import statistics, variance_components
from jaxseg.analysis.folds import components_over_folds, expected_half_width_over_folds
from jaxseg.study.plan.runs import crossed_seed
from jaxseg.study.score import power
from tests.study.test_comparisons import ARMS, contrast_by_hand, make_cases, pick


@pytest.fixture(scope="module")
def cases():
    return make_cases(sizes=(4,), folds=(0,))


def test_the_variance_of_an_arm_is_split_over_seeds_and_groups(cases):
    got = power.variance(cases, metrics=("dsc",))
    assert tuple(got.columns) == power.VARIANCE_COLUMNS
    assert len(got) == 3 * 3 * 3, "arms x labels with their mean x sources"
    chosen = cases[(cases["arm"] == "transfer") & (cases["label"] == "a")]
    table = chosen.pivot_table(index="seed", columns="group", values="dsc").to_numpy()
    expected = variance_components.variance_split(table, ("seed", "group"))
    for source, name in zip(expected, ("seed", "group", "seed x group"), strict=True):
        row = pick(got, arm="transfer", label="a", source=name)
        assert row[["variance", "share", "df"]].tolist() == pytest.approx([source.variance, source.share, source.df])


CROSSED = ("init", "order", "group")
NESTED = ("init", "order", "init x order", "group", "init x group", "order x group", "init x order x group")


def crossed_cases(levels=4, groups=6, *, truth, seed):
    """An arm of init x order, and a plain one, with variance components put in; `subset` is held at 7."""
    rng = np.random.default_rng(seed)
    shape = (levels, levels, groups)
    values = np.full(shape, 0.8)
    for source, variance in truth.items():
        axes = [n if name in source.split(" x ") else 1 for name, n in zip(CROSSED, shape, strict=True)]
        values = values + rng.normal(0, variance**0.5, axes)
    rows = []
    for (init, order, group), dsc in np.ndenumerate(values):
        ids = {"init_id": init, "order_id": order, "subset_id": 7}
        rows.append({"arm": "crossed", "seed": crossed_seed({"init": init, "order": order, "subset": 7}), **ids,
                     "group": f"g{group}", "dsc": dsc})  # fmt: skip
        if not order:
            ids = dict.fromkeys(ids, init)
            rows.append({"arm": "plain", "seed": init, **ids, "group": f"g{group}", "dsc": dsc})
    table = pd.DataFrame(rows).assign(train_cases=0, fold=0, label="a", status="ok")
    return table.assign(case=table["group"]), values


def test_an_arm_of_crossed_ids_is_split_by_stream():
    """Equal to the two-way table by hand where groups are averaged; a plain arm keeps its seed."""
    table, values = crossed_cases(truth={"init": 1.0, "order x group": 0.5, "init x order x group": 0.1}, seed=1)
    shuffled = table.sample(frac=1, random_state=0)
    got = power.variance(shuffled, metrics=("dsc",)).query("label == 'a'").set_index(["arm", "source"])
    assert set(got.loc["crossed"].index) == set(NESTED)
    assert list(got.loc["plain"].index) == ["seed", "group", "seed x group"]
    expected = {" x ".join(s.factors): s for s in variance_components.variance_split(values, CROSSED)}
    for name, row in got.loc["crossed"].iterrows():
        assert row[["variance", "share", "df"]].tolist() == pytest.approx(list(expected[name])[1:])
    assert got["n_runs"].unique().tolist() == [16, 4]
    assert not got["n_left_out"].any()
    # By hand, init: mean squares over the 24 values of each level, of its interactions over theirs.
    means = {axes: values.mean(axes) for axes in ((1, 2), (0, 2), (0, 1), (2,), (1,))}
    grand, init, order, group = values.mean(), means[1, 2], means[0, 2], means[0, 1]
    ms_order = 6 * np.sum((means[2,] - init[:, None] - order + grand) ** 2) / 9
    ms_group = 4 * np.sum((means[1,] - init[:, None] - group + grand) ** 2) / 15
    residual = values - means[2,][:, :, None] - means[1,][:, None] - values.mean(0)[None]
    residual = residual + init[:, None, None] + order[None, :, None] + group - grand
    ms_init, ms_rest = 24 * np.sum((init - grand) ** 2) / 3, np.sum(residual**2) / 45
    by_hand = (ms_init - ms_order - ms_group + ms_rest) / 24
    assert got.loc["crossed", "init"]["variance"] == pytest.approx(by_hand)


def test_known_components_come_back_from_the_table():
    """Their mean over many studies; what was not put in is 0 on average, so that single estimates are below it."""
    truth = {"init": 0.04, "order": 0.01, "group": 0.09, "init x order": 0.02, "init x order x group": 0.01}
    found = []
    for seed in range(60):
        table, _ = crossed_cases(truth=truth, seed=seed)
        one = power.variance(table[table["arm"] == "crossed"], metrics=("dsc",)).query("label == 'a'")
        found.append(one.set_index("source")["variance"].loc[list(NESTED)])
    estimates = np.array(found)
    error = estimates.std(0, ddof=1) / len(estimates) ** 0.5
    assert np.all(np.abs(estimates.mean(0) - [truth.get(name, 0.0) for name in NESTED]) < 4 * error)
    assert np.all(error < 0.01)
    assert estimates[:, NESTED.index("init x group")].min() < 0


def test_a_crossed_run_that_diverged_leaves_out_its_id():
    table, values = crossed_cases(truth={"init": 1.0, "init x order x group": 0.1}, seed=2)
    lost = table[~((table["init_id"] == 1) & (table["order_id"] == 2) & (table["arm"] == "crossed"))]
    got = power.variance(lost, metrics=("dsc",)).query("label == 'a' and arm == 'crossed'")
    assert got["n_runs"].unique().tolist() == [12]
    assert got["n_left_out"].unique().tolist() == [3]
    expected = variance_components.variance_split(np.delete(values, 2, 1), CROSSED)
    assert got.set_index("source")["variance"]["init"] == pytest.approx(expected[0].variance)
    one_left = table[(table["init_id"] == 0) | (table["order_id"] == 0)].query("arm == 'crossed'")
    assert power.variance(one_left, metrics=("dsc",)).empty, "no two ids of each stream are crossed"


def test_the_plan_looks_ahead_from_the_spread_of_the_difference(cases):
    got = power.planning(cases, ARMS[:2], confidence=0.95, metrics=("dsc", "hd95"))
    assert tuple(got.columns) == power.PLANNING_COLUMNS
    row = pick(got, metric="dsc", label="mean", n_seeds=16)
    d = contrast_by_hand(cases, "transfer", 4, 0, "mean")
    spread = variance_components.components(d)
    assert row[["sd_seed", "sd_group", "sd_residual"]].tolist() == pytest.approx([v**0.5 for v in spread])
    assert row["half_width"] == pytest.approx(variance_components.expected_half_width(spread, 16, 3))
    one = got[(got["metric"] == "dsc") & (got["label"] == "mean")]
    assert one["n_seeds"].tolist() == [4, 8, 16, 32, 64]
    assert one["half_width"].is_monotonic_decreasing
    assert (one["half_width"] > one["half_width_limit"]).all()


def test_endless_seeds_leave_what_the_groups_make(cases):
    """A gain that differs between groups: endless seeds leave a t interval over the three groups."""
    gains = cases["group"].map({"f0g0": 0.0, "f0g1": 0.1, "f0g2": 0.3})
    changed = cases.assign(dsc=cases["dsc"] + gains * (cases["arm"] == "transfer"))
    row = power.planning(changed, ARMS[:2], confidence=0.95, metrics=("dsc",)).iloc[0]
    assert row["sd_group"] > 0.1
    assert row["half_width_limit"] == pytest.approx(stats.t.ppf(0.975, 2) * row["sd_group"] / 3**0.5)
    spread = variance_components.Components(row["sd_seed"] ** 2, row["sd_group"] ** 2, row["sd_residual"] ** 2)
    assert row["half_width_limit"] == pytest.approx(variance_components.expected_half_width(spread, 10**7, 3), rel=1e-4)


def test_the_plan_comes_true_on_average():
    """Half widths of studies with twice the seeds, drawn from the same spread, have the planned mean."""
    rng = np.random.default_rng(0)
    spread = variance_components.Components(1.0, 0.5, 2.0)
    drawn = []
    for _ in range(400):
        d = rng.normal(size=(16, 1)) + 0.5**0.5 * rng.normal(size=(1, 20)) + 2**0.5 * rng.normal(size=(16, 20))
        interval = statistics.two_way_interval(d)
        drawn.append((interval.high - interval.low) / 2)
    assert variance_components.expected_half_width(spread, 16, 20) == pytest.approx(np.mean(drawn), rel=0.05)


def test_folds_that_rotate_over_seeds_are_taken_within_folds():
    made = make_cases(num_seeds=12, sizes=(4,))
    made = made[made["seed"] % 2 == made["fold"]]
    made = made.assign(dsc=made["dsc"] - 0.2 * (made["fold"] == 1))
    got = power.variance(made, metrics=("dsc",)).query("arm == 'transfer' and label == 'mean'")
    for name in ("seed", "group", "seed x group"):
        pooled, *parts = (pick(got, fold=fold, source=name) for fold in (-1, 0, 1))
        assert pooled["variance"] == pytest.approx(np.mean([part["variance"] for part in parts]))
        assert pooled[["df", "n_runs", "n_left_out"]].tolist() == [sum(part["df"] for part in parts), 12, 0]
    assert got.loc[got["fold"] == -1, "share"].sum() == pytest.approx(1)
    plan = power.planning(made, ARMS[:2], confidence=0.95, metrics=("dsc",)).query("label == 'mean' and fold == -1")
    assert plan["n_seeds"].tolist() == [4, 8, 12, 16, 32, 64]
    assert set(plan["n_groups"]) == {6}
    spread = components_over_folds([contrast_by_hand(made, "transfer", 4, fold, "mean") for fold in (0, 1)])
    row = pick(plan, n_seeds=16)
    assert row["sd_seed"] == pytest.approx(spread.seed**0.5)
    assert row["half_width"] == pytest.approx(expected_half_width_over_folds(spread, 8, 3, 2))
    assert row["half_width_limit"] == pytest.approx(stats.t.ppf(0.975, 4) * row["sd_group"] / 6**0.5)


def test_one_seed_or_one_group_gives_no_plan(cases):
    for few in (cases[cases["seed"] % 100 == 0], cases[cases["group"] == "f0g1"]):
        assert power.planning(few, ARMS[:2], confidence=0.95).empty
        assert power.variance(few).empty
    assert isinstance(power.planning(cases.iloc[:0], ARMS, confidence=0.95), pd.DataFrame)
