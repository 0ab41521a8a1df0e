"""Tables of scores and curves against direct computation, with misses, placebos, folds and few seeds."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxseg.analysis import statistics
from jaxseg.analysis.folds import fold_interval
from jaxseg.reserved import POOLED
from jaxseg.study.score import comparisons as tables
from jaxseg.types import UserError

ARMS = ("scratch", "transfer", "scratch_b")


def make_cases(num_seeds=8, sizes=(4, 8), folds=(0, 1), num_cases=6, gain=0.05, seed=0):
    """A study's cases.csv: seed, group and residual effects, a gain of transfer, the placebo with own seeds."""
    rng = np.random.default_rng(seed)
    rows = []
    for arm, size, fold in itertools.product(ARMS, sizes, folds):
        level = rng.normal(0, 0.01, num_seeds)
        for s, case, label in itertools.product(range(num_seeds), range(num_cases), "ab"):
            absent = label == "b" and case == 0
            dsc = 0.7 + gain * (arm == "transfer") + level[s] + 0.01 * case + rng.normal(0, 0.01)
            rows.append(
                {
                    **{"arm": arm, "seed": s + 100 * (arm == "scratch_b"), "train_cases": size, "fold": fold},
                    **{"case": f"f{fold}c{case}", "group": f"f{fold}g{case // 2}", "label": label},
                    **{"dsc": math.nan if absent else dsc, "hd95": math.nan if absent else 10 * (1 - dsc)},
                    **{"assd": math.nan if absent else 3 * (1 - dsc), "nsd": math.nan},
                    **{"unit": "mm", "hd_definition": "pooled", "status": "both_empty" if absent else "ok"},
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def cases():
    return make_cases()


@pytest.fixture(scope="module")
def summary(cases):
    return tables.summary(cases)


@pytest.fixture(scope="module")
def comparisons(cases):
    return tables.comparisons(cases, ARMS, confidence=0.95, rng=np.random.default_rng(0))


def pick(table, **values):
    """The only row with these values."""
    for column, value in values.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def contrast_by_hand(cases, arm, size, fold, label, metric="dsc"):
    """D[seed, group] with pandas alone."""
    chosen = cases[(cases["train_cases"] == size) & (cases["fold"] == fold) & (cases["status"] == "ok")]
    if label != "mean":
        chosen = chosen[chosen["label"] == label]
    by_case = chosen.groupby(["arm", "seed", "group", "case"])[metric].mean()
    wide = by_case.groupby(level=["arm", "seed", "group"]).mean().unstack("group")
    return wide.loc[arm].to_numpy() - wide.loc["scratch"].to_numpy()


def test_summary_by_hand(cases, summary):
    row = pick(summary, arm="transfer", train_cases=8, fold=1, label="b", metric="hd95")
    chosen = cases[(cases["arm"] == "transfer") & (cases["train_cases"] == 8) & (cases["fold"] == 1)]
    chosen = chosen[(chosen["label"] == "b") & (chosen["status"] == "ok")]
    # Group g0 has one case with the label, g1 and g2 two each: groups count alike.
    by_seed = chosen.groupby(["seed", "group"])["hd95"].mean().groupby(level="seed").mean().to_numpy()
    interval = statistics.t_interval(by_seed)
    assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx(interval[:3])
    assert row["sd"] == pytest.approx(by_seed.std(ddof=1))
    assert row[["unit", "n_seeds", "n_groups", "n_cases"]].tolist() == ["mm", 8, 3, 5]
    assert row[["n_missed", "n_spurious", "n_absent"]].tolist() == [0, 0, 8]


def test_tables_hold_every_combination_once(summary, comparisons):
    # 2 sizes, 2 folds and both together, 2 labels and their mean, 3 metrics (NSD has no value), 3 arms or 2 pairs.
    assert len(summary) == 2 * 3 * 3 * 3 * 3
    assert len(comparisons) == 2 * 3 * 3 * 3 * 2
    keys = ["train_cases", "fold", "label", "metric"]
    assert not summary.duplicated([*keys, "arm"]).any()
    assert not comparisons.duplicated([*keys, "arm_a"]).any()
    assert set(comparisons["arm_b"]) == {"scratch"}
    assert tuple(comparisons.columns) == tables.COMPARISON_COLUMNS
    assert tuple(summary.columns) == tables.SUMMARY_COLUMNS


def test_comparison_equals_its_parts(cases, comparisons):
    for label, metric in itertools.product(("a", "b", "mean"), ("dsc", "assd")):
        row = pick(comparisons, arm_a="transfer", train_cases=4, fold=0, label=label, metric=metric)
        d = contrast_by_hand(cases, "transfer", 4, 0, label, metric)
        interval = statistics.two_way_interval(d)
        assert row[["mean_diff", "ci_low", "ci_high"]].tolist() == pytest.approx(list(interval[:3]))
        assert row["p"] == pytest.approx(statistics.sign_flip(d.mean(1)))
        assert row["effect_size"] == pytest.approx(statistics.standardized_difference(d.mean(1)))
        assert row[["n_seeds", "n_groups", "n_cases"]].tolist() == [8, 3, 5 if label == "b" else 6]
        assert row["inference"] == "new seeds and groups"


def test_difference_of_summaries_is_the_comparison(summary, comparisons):
    for fold, label, metric in itertools.product((POOLED, 0, 1), ("a", "mean"), ("dsc", "hd95")):
        keys = {"train_cases": 8, "fold": fold, "label": label, "metric": metric}
        means = [pick(summary, arm=arm, **keys)["mean"] for arm in ("transfer", "scratch")]
        assert pick(comparisons, arm_a="transfer", **keys)["mean_diff"] == pytest.approx(means[0] - means[1])


def test_folds_together(cases, comparisons):
    row = pick(comparisons, arm_a="transfer", train_cases=4, fold=POOLED, label="mean", metric="dsc")
    d = np.concatenate([contrast_by_hand(cases, "transfer", 4, fold, "mean") for fold in (0, 1)], 1)
    assert row[["mean_diff", "ci_low", "ci_high"]].tolist() == pytest.approx(list(statistics.two_way_interval(d)[:3]))
    assert row[["n_groups", "n_cases"]].tolist() == [6, 12]


def test_p_maxt_is_of_the_fold(cases, comparisons):
    one = cases[cases["fold"] == 0]
    alone = tables.comparisons(one, ARMS, confidence=0.95, rng=np.random.default_rng(0))
    within = comparisons[comparisons["fold"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, within)
    assert (within["p_maxt"] >= within["p"]).all()
    # A copy of a family adds no test: the maximum stays where it was.
    twice = tables.comparisons(
        pd.concat([one, one.assign(train_cases=one["train_cases"] + 100)]),
        ARMS,
        confidence=0.95,
        rng=np.random.default_rng(0),
    )
    np.testing.assert_allclose(twice["p_maxt"].to_numpy()[: len(alone)], alone["p_maxt"])


def test_gain_found_placebo_not(comparisons):
    pooled = comparisons[(comparisons["fold"] == POOLED) & (comparisons["label"] == "mean")]
    gain, placebo = (pooled[pooled["arm_a"] == arm] for arm in ("transfer", "scratch_b"))
    assert (gain["p"] == 2 / 2**8).all()
    assert (gain["p_maxt"] < 0.05).all()
    assert (gain["probability_of_improvement"] == 1).all()
    assert (gain.loc[gain["metric"] == "dsc", "ci_low"] > 0).all()
    assert (gain.loc[gain["metric"] != "dsc", "ci_high"] < 0).all()
    assert (placebo["p_maxt"] > 0.05).all()
    assert (gain["note"] == "").all()
    assert (placebo["note"] == "no seed in common: matched in order").all()


def test_seeds_are_paired_by_number_whatever_their_order(cases, comparisons):
    shuffled = cases.sample(frac=1, random_state=1)
    got = tables.comparisons(shuffled, ARMS, confidence=0.95, rng=np.random.default_rng(0))
    keys = ["train_cases", "fold", "label", "metric", "arm_a"]
    pd.testing.assert_frame_equal(
        got.sort_values(keys).reset_index(drop=True), comparisons.sort_values(keys).reset_index(drop=True)
    )


def test_few_seeds_and_one_group_are_said(cases):
    few = cases[(cases["seed"] % 100 < 3) & (cases["group"] == "f0g1")]
    got = tables.comparisons(few, ARMS[:2], confidence=0.95, rng=np.random.default_rng(0))
    assert (got["inference"] == "new seeds, on these cases").all()
    assert (got["note"] == "fewer than 8 seeds: no verdict, p cannot be below 0.25").all()
    assert (got["p_min"] == 0.25).all()
    one = tables.comparisons(few[few["seed"] == 0], ARMS[:2], confidence=0.95, rng=np.random.default_rng(0))
    assert (one["inference"] == "descriptive").all()
    assert one["ci_low"].isna().all()
    assert (one["p"] == 1).all()


def _missed(cases, distance):
    """Transfer's seed 3 misses label a of one case in fold 0."""
    cases = cases[(cases["train_cases"] == 4) & (cases["fold"] == 0)].copy()
    hit = (cases["arm"] == "transfer") & (cases["seed"] == 3) & (cases["case"] == "f0c2") & (cases["label"] == "a")
    cases.loc[hit, ["dsc", "hd95", "assd", "status"]] = [0.0, distance, distance, "missed"]
    return cases


@pytest.mark.parametrize("distance", [math.nan, math.inf, 300.0])
def test_misses_are_counted_beside_every_mean(cases, distance):
    cases = _missed(cases, distance)
    summary = tables.summary(cases)
    for label, missed in (("a", 1), ("b", 0), ("mean", 1)):
        of_label = summary[(summary["arm"] == "transfer") & (summary["label"] == label)]
        assert (of_label["n_missed"] == missed).all()
    comparisons = tables.comparisons(cases, ARMS, confidence=0.95, rng=np.random.default_rng(0))
    row = pick(comparisons, arm_a="transfer", label="a", metric="hd95")
    assert row[["n_missed_a", "n_missed_b"]].tolist() == [1, 0]
    reached = pick(summary, arm="transfer", label="a", metric="hd95")
    assert reached[["n_seeds", "n_groups"]].tolist() == [8, 3]
    if math.isnan(distance):
        assert math.isfinite(reached["mean"])
        assert row["n_cases"] == 5
        assert row["note"] == "1 cases without a value for every run left out"
    elif math.isinf(distance):
        assert (reached["mean"], row["mean_diff"]) == (math.inf, math.inf)
        assert row[["ci_low", "ci_high", "p", "p_maxt", "effect_size"]].isna().all()
        assert reached[["ci_low", "ci_high", "sd"]].isna().all()
        assert (row["inference"], row["note"]) == ("descriptive", "infinite distances: no interval")
    else:
        assert row["n_cases"] == 6
        assert row["note"] == ""
    assert pick(comparisons, arm_a="transfer", label="a", metric="dsc")["n_cases"] == 6


def test_a_run_that_has_no_distance_at_all_is_no_seed_of_it(cases):
    cases = cases[(cases["train_cases"] == 4) & (cases["fold"] == 0)].copy()
    cases.loc[(cases["arm"] == "transfer") & (cases["seed"] == 3), "hd95"] = math.nan
    assert pick(tables.summary(cases), arm="transfer", label="a", metric="hd95")["n_seeds"] == 7


def test_spurious_cases_enter_no_mean(cases, summary):
    changed = cases.copy()
    hit = changed["status"] == "both_empty"
    changed.loc[hit, ["status", "dsc"]] = ["spurious", 0.0]
    got = tables.summary(changed)
    assert (got.loc[got["label"] != "a", "n_spurious"] == got.loc[got["label"] != "a", "n_absent"]).all()
    pd.testing.assert_frame_equal(got.drop(columns="n_spurious"), summary.drop(columns="n_spurious"))


def test_without_scratch_the_first_arm_is_the_baseline_and_lost_arms_are_left_out(cases):
    two = cases[cases["arm"] != "scratch"]
    got = tables.comparisons(two, ("transfer", "scratch_b", "lost"), confidence=0.95, rng=np.random.default_rng(0))
    assert set(zip(got["arm_a"], got["arm_b"], strict=True)) == {("scratch_b", "transfer")}
    lost = tables.comparisons(two, ("scratch", "transfer"), confidence=0.95, rng=np.random.default_rng(0))
    assert lost.empty
    assert tuple(lost.columns) == tables.COMPARISON_COLUMNS
    with pytest.raises(UserError, match="status"):
        tables.summary(cases.drop(columns="status"))


# -------------------------------------------------------------------------------------------- folds rotate over seeds


@pytest.fixture(scope="module")
def rotating():
    """Seed s is tested on fold s mod 2 alone; cases of fold 1 are harder, and fold 0 has a group fewer."""
    cases = make_cases(num_seeds=12, sizes=(4,))
    cases = cases[(cases["seed"] % 2 == cases["fold"]) & (cases["group"] != "f0g2")]
    harder = 0.2 * (cases["fold"] == 1)
    return cases.assign(dsc=cases["dsc"] - harder, hd95=cases["hd95"] + 50 * harder)


def compared(cases):
    return tables.comparisons(cases, ARMS, confidence=0.95, rng=np.random.default_rng(0))


def test_folds_that_rotate_are_compared_by_their_mean(rotating):
    blocks = [contrast_by_hand(rotating, "transfer", 4, fold, "mean") for fold in (0, 1)]
    row = pick(compared(rotating), arm_a="transfer", fold=POOLED, label="mean", metric="dsc")
    assert row[["mean_diff", "ci_low", "ci_high"]].tolist() == pytest.approx(list(fold_interval(blocks)[:3]))
    assert row["mean_diff"] == pytest.approx(np.mean([d.mean() for d in blocks]))
    assert row[["n_seeds", "n_groups", "n_cases"]].tolist() == [12, 5, 10]
    by_seed = np.concatenate([d.mean(1) for d in blocks])
    assert row[["p", "p_min"]].tolist() == pytest.approx([statistics.sign_flip(by_seed), 2 / 2**12])
    assert (row["inference"], row["note"]) == ("new seeds and groups", "")
    assert row["probability_of_improvement"] == 1, "every run of a fold; not those of the easy fold over the hard one"
    inside = (sum(((d.mean(1) - d.mean()) ** 2).sum() for d in blocks) / 10) ** 0.5
    assert row["effect_size"] == pytest.approx(row["mean_diff"] / inside, rel=0.1)


def test_the_mean_over_folds_that_rotate_is_that_of_their_seeds(rotating):
    summary = tables.summary(rotating)
    row = pick(summary, arm="transfer", fold=POOLED, label="mean", metric="dsc")
    parts = [pick(summary, arm="transfer", fold=fold, label="mean", metric="dsc") for fold in (0, 1)]
    assert row["mean"] == pytest.approx(np.mean([part["mean"] for part in parts]))
    assert row["sd"] == pytest.approx(np.mean([part["sd"] ** 2 for part in parts]) ** 0.5)
    assert row["sd"] < 0.05, "folds differ by 0.2, which no seed does"
    half = np.hypot(*[part["sd"] / 6**0.5 for part in parts]) / 2
    assert stats.t.ppf(0.975, 10) * half < (row["ci_high"] - row["ci_low"]) / 2 < stats.t.ppf(0.975, 5) * half
    assert row[["n_seeds", "n_groups", "n_cases"]].tolist() == [12, 5, 10]
    own = pick(summary, arm="scratch", fold=POOLED, label="mean", metric="dsc")
    difference = pick(compared(rotating), arm_a="transfer", fold=POOLED, label="mean", metric="dsc")["mean_diff"]
    assert row["mean"] - own["mean"] == pytest.approx(difference)
    assert summary[["mean", "ci_low", "ci_high", "sd", "iqm"]].notna().all(axis=None)
    scores = tables.seed_scores(rotating).set_index(["arm", "label", "metric", "seed", "fold"])["value"].unstack("fold")
    pd.testing.assert_series_equal(scores[POOLED], scores[0].fillna(scores[1]), check_names=False)


def test_a_fold_without_a_run_of_an_arm_leaves_no_mean_over_folds(rotating):
    lost = rotating[(rotating["arm"] != "transfer") | (rotating["fold"] == 0)]
    row = pick(tables.summary(lost), arm="transfer", fold=POOLED, label="mean", metric="dsc")
    assert math.isnan(row["mean"])
    row = pick(compared(lost), arm_a="transfer", fold=POOLED, label="mean", metric="dsc")
    assert row[["mean_diff", "ci_low", "p"]].isna().all()
    assert row["note"] == (
        "fewer than 8 seeds: no verdict, p cannot be below 0.031; no run of both arms in 1 of 2 folds: "
        "no mean over folds"
    )


def test_a_label_that_no_case_of_a_fold_holds_is_averaged_over_the_others(rotating):
    without = rotating.copy()
    absent = (without["fold"] == 0) & (without["label"] == "b")
    without.loc[absent, ["dsc", "hd95", "assd", "status"]] = [math.nan, math.nan, math.nan, "both_empty"]
    own = {"label": "b", "metric": "dsc"}
    found, summary = compared(without), tables.summary(without)
    for fold in (POOLED, 1):
        row = pick(found, arm_a="transfer", fold=fold, **own)
        assert row[["n_seeds", "n_groups"]].tolist() == [6, 3]
    for table, arm, column in ((found, "arm_a", "mean_diff"), (summary, "arm", "mean")):
        pooled, alone = (pick(table, fold=fold, **{arm: "transfer"}, **own)[column] for fold in (POOLED, 1))
        assert pooled == alone


# -------------------------------------------------------------------------------------------------------- convergence


def make_curves(slopes, length=100, every=10, final=0.8):
    """Validation DSC rises to `final` at slope per step; a row every 5 steps, an evaluation every `every`."""
    rows = [
        {
            **{"arm": arm, "seed": seed, "train_cases": size, "fold": fold, "step": step, "seconds": step / 10},
            "loss": 1.0,
            "val_dsc": min(final, slope * step) if step % every == 0 else math.nan,
        }
        for (arm, seed, size, fold), slope in slopes.items()
        for step in range(0, length + 1, 5)
    ]
    return pd.DataFrame(rows)


def test_convergence_by_hand():
    # Target 0.99 x 0.8 = 0.792: a slope of 0.01 passes it at 80, known at the next evaluation; 0.02 at 40, then 50.
    curves = make_curves(
        {
            ("transfer", 0, 4, 0): 0.02,
            ("scratch", 0, 4, 0): 0.01,
            ("scratch", 1, 4, 0): 0.01,
            ("transfer", 1, 4, 0): 1e-3,
        }
    )
    got = tables.convergence(curves, ("scratch", "transfer"))
    assert got.columns.tolist() == ["arm", "seed", "train_cases", "fold", "target_dsc", "step", "seconds", "censored"]
    assert got["arm"].tolist() == ["scratch", "scratch", "transfer", "transfer"]
    assert got["step"].tolist() == [90, 90, 50, 100]
    assert got["seconds"].tolist() == [9.0, 9.0, 5.0, 10.0]
    assert got["censored"].tolist() == [False, False, False, True]
    assert got["target_dsc"].tolist() == pytest.approx([0.99 * 0.8] * 4)
    lower = tables.convergence(curves, ("scratch", "transfer"), fraction=0.45)
    assert lower["step"].tolist() == [50, 50, 30, 100]


def test_each_variant_has_its_own_target():
    curves = make_curves({("scratch", 0, 4, 0): 0.01, ("scratch", 0, 8, 0): 0.01, ("scratch", 0, 8, 1): 0.01})
    curves.loc[curves["train_cases"] == 8, "val_dsc"] *= 0.5
    got = tables.convergence(curves, ("scratch",))
    np.testing.assert_allclose(got["target_dsc"], [0.792, 0.396, 0.396])
    assert got["fold"].tolist() == [0, 0, 1]


def test_divergence_and_missing_arms():
    curves = make_curves({("scratch", 0, 4, 0): 0.01, ("scratch", 1, 4, 0): 0.01, ("scratch", 2, 4, 0): 0.01})
    curves.loc[(curves["seed"] == 1) & (curves["step"] > 40), "val_dsc"] = math.nan
    got = tables.convergence(curves, ("scratch", "transfer"))
    assert got["censored"].tolist() == [False, True, False]
    assert got["step"].tolist() == [90, 100, 90]
    alone = tables.convergence(curves.assign(arm="transfer"), ("scratch", "transfer"))
    assert alone["target_dsc"].isna().all()
    assert alone["censored"].all()
    nothing = tables.convergence(curves.assign(val_dsc=math.nan), ("scratch",))
    assert nothing.empty
    with pytest.raises(UserError, match=r"curves\.csv lacks the columns val_dsc"):
        tables.convergence(curves.drop(columns="val_dsc"), ("scratch",))


# -------------------------------------------------------------------------------------------------------- other tables


def test_worst_cases(cases):
    one = _missed(cases, 300.0)
    got = tables.worst_cases(one, limit=3)
    assert got.loc[0, ["case", "label", "min", "n_missed", "n_runs"]].tolist() == ["f0c2", "a", 0.0, 1, 24]
    assert got["mean"].is_monotonic_increasing
    assert got.columns[:2].tolist() == ["train_cases", "fold"]
    far = tables.worst_cases(one, metric="hd95", limit=1)
    assert far.loc[0, ["case", "label", "max"]].tolist() == ["f0c2", "a", 300.0]


def test_worst_cases_name_the_worst_run():
    rows = [
        *[(seed, 8, "bad", dsc, "ok" if dsc else "missed") for seed, dsc in enumerate((0.3, 0.0, 0.6))],
        *[(seed, 8, "good", 0.9, "ok") for seed in range(3)],
        (0, 8, "empty", math.nan, "both_empty"),
        *[(seed, 0, "bad", 0.7, "ok") for seed in range(3)],
    ]
    columns = ["seed", "train_cases", "case", "dsc", "status"]
    table = pd.DataFrame(rows, columns=columns).assign(arm="a", fold=0, group="p", label="x")
    got = tables.worst_cases(table, limit=2).set_index(["train_cases", "case"])
    assert list(got.index) == [(8, "bad"), (0, "bad"), (8, "good")]
    assert got.loc[(8, "bad"), ["min", "max", "worst_arm", "worst_seed", "n_missed", "n_runs"]].tolist() == [
        *(0.0, 0.6, "a", 1, 1, 3)
    ]
    assert got.loc[(8, "bad"), "mean"] == pytest.approx(0.3)
    assert len(tables.worst_cases(table, limit=1)) == 2
