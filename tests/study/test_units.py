"""Seeds that share a source network count as one in every table that gives an interval over seeds."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from jaxseg.analysis import statistics
from jaxseg.study import claims
from jaxseg.study.claims import drawn
from jaxseg.study.claims.dsc import blocks_of, gain_weights
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.layers import layer_table, similarity_means
from jaxseg.study.claims.study_tables import StudyTables
from jaxseg.study.record import StudyRecord
from jaxseg.study.score import comparisons, detection, power, scores
from jaxseg.study.score.units import Sources, joint_units, mean_of_units, sources_of
from jaxseg.types import RunKey
from simulated import tables as sim
from tests.study.whole_study import judged, rng

NESTED, SEEDS, SOURCES = "transfer_nested", 16, 8
PAIRED = Sources({NESTED: {seed: seed // 2 for seed in range(SEEDS)}})
ARMS = ("scratch", NESTED)
LIMITS = ["value", "ci_low", "ci_high"]


def nested_cases(draw: np.random.Generator, *, first_seed: int = 0, sd: float = 0.02, groups: int = 6) -> pd.DataFrame:
    """Scores of scratch and of an arm with as good runs on average, two of which share what their source is like."""
    source = np.repeat(sd * draw.normal(size=SOURCES), 2)
    by_group = 0.05 * draw.normal(size=groups)
    rows = [
        {
            **{
                "arm": arm,
                "seed": seed + first_seed * (arm == NESTED),
                "train_cases": 0,
                "fold": 0,
                "case": f"c{group}",
            },
            **{"group": f"g{group}", "label": "blob", "status": "ok", "lesions_spurious": math.nan},
            "dsc": 0.8 + by_group[group] + source[seed] * (arm == NESTED) + 0.003 * draw.normal(),
        }
        for arm, seed, group in itertools.product(ARMS, range(SEEDS), range(groups))
    ]
    return pd.DataFrame(rows)


def compared(cases: pd.DataFrame, sources: Sources) -> pd.Series:
    table = comparisons.comparisons(
        cases, ARMS, confidence=0.95, rng=np.random.default_rng(0), metrics=("dsc",), sources=sources
    )
    return table[table["label"] == "mean"].iloc[0]


def differences(cases: pd.DataFrame) -> np.ndarray:
    """D[seed, group] of the arms, seeds in order."""
    wide = cases.pivot(index=["arm", "seed"], columns="group", values="dsc")
    return wide.loc[NESTED].to_numpy() - wide.loc["scratch"].to_numpy()


# ----------------------------------------------------------------------------------------------------------- the units


def test_units_are_source_networks_unless_there_is_one_for_all() -> None:
    seeds = np.array([0, 1, 2, 5])
    assert PAIRED.units(NESTED, seeds).tolist() == [0, 0, 1, 2]
    assert PAIRED.units("scratch", seeds).tolist() == seeds.tolist()
    assert PAIRED.units(NESTED, np.array([3, 99])).tolist() == [3, 99], "not a run of the record"
    assert PAIRED._replace(one=frozenset({NESTED})).units(NESTED, seeds).tolist() == seeds.tolist()


def test_runs_of_crossed_streams_are_one_unit() -> None:
    sources = PAIRED._replace(crossed=frozenset({NESTED}))
    assert len(set(sources.units(NESTED, np.array([1, 2, 3])))) == 1
    assert not sources.shared(NESTED)


def test_seeds_belong_together_that_share_a_source_in_any_arm() -> None:
    first, second = np.array([0, 0, 1, 1, 2]), np.array([7, 8, 8, 9, 5])
    assert joint_units([first, second]).tolist() == [0, 0, 0, 0, 4]
    assert joint_units([np.arange(3), np.arange(3)]).tolist() == [0, 1, 2]
    assert mean_of_units(np.array([1.0, 3.0, 5.0]), np.array([2, 2, 1])).tolist() == [5.0, 2.0]


def test_sources_are_read_off_the_record() -> None:
    def run(arm: str, seed: int, source: int | None, ids: tuple[int, ...] = ()) -> SimpleNamespace:
        init, order, subset = ids or (seed,) * 3
        key = None if source is None else RunKey("source", 0, 0, source)
        return SimpleNamespace(arm=arm, seed=seed, source=key, init_id=init, order_id=order, subset_id=subset)

    runs = [run("scratch", 0, None), run(NESTED, 0, 0), run(NESTED, 1, 0), run(NESTED, 2, 1)]
    runs += [run("transfer_one", 0, 0), run("transfer_one", 1, 0)]
    runs += [
        run("crossed", 10 * init + order, None, (init, order, 0)) for init, order in itertools.product((0, 1), (0, 1))
    ]
    runs += [run("orders", seed, None, (0, seed, 0)) for seed in range(3)]
    study = SimpleNamespace(arms=("scratch", NESTED, "transfer_one", "crossed", "orders"))
    study.runs_of = lambda kind: runs if kind == "train" else []
    study.sources = lambda arm: StudyRecord.sources(study, arm)  # type: ignore[arg-type]
    found = sources_of(study)  # type: ignore[arg-type]
    assert found.of[NESTED] == {0: 0, 1: 0, 2: 1}
    assert found.one == {"transfer_one"}
    assert found.crossed == {"crossed"}
    assert (found.shared(NESTED), found.shared("transfer_one"), found.shared("scratch")) == (True, False, False)
    assert sources_of(None).of == {}


# ----------------------------------------------------------------------------------------------------------- the scores


def test_a_comparison_averages_the_runs_of_a_source_before_all_else() -> None:
    cases = nested_cases(rng(0))
    row = compared(cases, PAIRED)
    d = differences(cases).reshape(SOURCES, 2, -1).mean(1)
    limits = statistics.two_way_interval(d)
    assert row[["mean_diff", "ci_low", "ci_high"]].tolist() == pytest.approx(list(limits[:3]))
    assert row[["p", "p_min"]].tolist() == pytest.approx([statistics.sign_flip(d.mean(1)), 2 / 2**SOURCES])
    assert row["effect_size"] == pytest.approx(statistics.standardized_difference(d.mean(1)))
    assert (row["n_seeds"], row["inference"]) == (SOURCES, "new source networks and groups")
    assert row["note"] == (
        "seeds of transfer_nested that share a source network count as one: 8 source networks (16 seeds)"
    )
    few = compared(cases[cases["seed"] < 6], PAIRED)
    assert few["note"].startswith("fewer than 8 source networks: no verdict, p cannot be below 0.25; ")


@pytest.mark.parametrize("first_seed", [0, 1000])
def test_a_crossed_arm_has_its_mean_over_all_runs_and_no_interval(first_seed: int) -> None:
    """Sixteen runs of four starts and four orders are no sixteen draws: none is independent of all others."""
    cases = nested_cases(rng(0), first_seed=first_seed)
    if first_seed:  # no seed in common, and other numbers of runs
        cases = cases[(cases["arm"] == NESTED) | (cases["seed"] < 4)]
    sources = Sources(crossed=frozenset({NESTED}))
    row = compared(cases, sources)
    means = cases.groupby("arm")["dsc"].mean()
    assert row["mean_diff"] == pytest.approx(means[NESTED] - means["scratch"])
    assert row[["ci_low", "ci_high"]].isna().all()
    assert (row["n_seeds"], row["inference"]) == (1, "descriptive")
    assert row["note"] == f"runs of {NESTED} share ids of crossed streams and count as one: no interval"
    summary = comparisons.summary(cases, metrics=("dsc",), sources=sources)
    own = summary[(summary["arm"] == NESTED) & (summary["label"] == "mean")].iloc[0]
    assert own["mean"] == pytest.approx(means[NESTED])
    assert own[["ci_low", "ci_high"]].isna().all()
    assert own["n_seeds"] == 1
    assert own["sd"] > 0


@pytest.mark.parametrize("first_seed", [0, 1000])
def test_arms_that_do_not_differ_are_told_apart_as_rarely_as_promised(first_seed: int) -> None:
    """Of 300 labels with a true difference of 0, taking seeds for independent finds one in five."""
    sources = Sources({NESTED: {seed + first_seed: seed // 2 for seed in range(SEEDS)}})
    draw = rng(1)
    cases = pd.concat(
        [nested_cases(draw, first_seed=first_seed, groups=3).assign(label=f"label {k}") for k in range(300)]
    )
    shares = {}
    for name, own in (("sources", sources), ("seeds", Sources())):
        table = comparisons.comparisons(
            cases, ARMS, confidence=0.95, rng=np.random.default_rng(0), metrics=("dsc",), sources=own
        )
        of_labels = table[table["label"] != "mean"]
        shares[name] = [(of_labels["ci_low"] * of_labels["ci_high"] > 0).mean(), (of_labels["p"] <= 0.05).mean()]
    assert max(shares["sources"]) < 0.08
    assert min(shares["seeds"]) > 0.12, "the draws would show it"


def test_a_family_of_seeds_and_sources_adjusts_its_flips_together() -> None:
    """Beside an arm with a source for each seed, flips of shared sources keep the p that they have alone."""
    cases = nested_cases(rng(2), sd=0.001)
    other = cases[cases["arm"] == NESTED].assign(arm="transfer")
    both = pd.concat([cases, other.assign(dsc=other["dsc"] + 0.002)])
    sources = Sources({**PAIRED.of, "transfer": {seed: seed for seed in range(SEEDS)}})
    table = comparisons.comparisons(
        both, (*ARMS, "transfer"), confidence=0.95, rng=np.random.default_rng(0), metrics=("dsc",), sources=sources
    )
    of_mean = table[table["label"] == "mean"].set_index("arm_a")
    assert of_mean["n_seeds"].to_dict() == {NESTED: SOURCES, "transfer": SEEDS}
    assert of_mean.loc[NESTED, "p"] == pytest.approx(compared(cases, PAIRED)["p"], abs=0.02), (
        "flips are drawn, or listed"
    )
    assert (of_mean["p_maxt"] >= of_mean["p"]).all()


def test_one_source_for_all_seeds_counts_seeds_and_says_so() -> None:
    cases = nested_cases(rng(0))
    one = Sources({NESTED: dict.fromkeys(range(SEEDS), 0)}, frozenset({NESTED}))
    row, plain = compared(cases, one), compared(cases, Sources())
    assert row["note"] == "all seeds of transfer_nested start from one source network: of this checkpoint alone"
    assert row.drop("note").to_dict() == plain.drop("note").to_dict()
    assert row["n_seeds"] == SEEDS


def test_what_an_arm_reaches_has_an_interval_over_sources_and_the_spread_of_runs() -> None:
    cases = nested_cases(rng(0))
    table = comparisons.summary(cases, metrics=("dsc",), sources=PAIRED)
    row = table[(table["arm"] == NESTED) & (table["label"] == "mean")].iloc[0]
    by_seed = cases[cases["arm"] == NESTED].groupby("seed")["dsc"].mean().to_numpy()
    limits = statistics.t_interval(by_seed.reshape(SOURCES, 2).mean(1))
    assert row[["mean", "ci_low", "ci_high"]].tolist() == pytest.approx(list(limits[:3]))
    assert row["sd"] == pytest.approx(by_seed.std(ddof=1))
    assert row["n_seeds"] == SOURCES
    assert table.loc[table["arm"] == "scratch", "n_seeds"].tolist() == [SEEDS, SEEDS]
    lost = comparisons.summary(cases[cases["seed"] != 0], metrics=("dsc",), sources=PAIRED)
    row = lost[(lost["arm"] == NESTED) & (lost["label"] == "mean")].iloc[0]
    assert row["mean"] == pytest.approx(np.mean([by_seed[1], *by_seed[2:].reshape(-1, 2).mean(1)]))


def test_lesions_and_plans_count_sources_too() -> None:
    cases = nested_cases(rng(0)).assign(region=False)
    cases["lesions_spurious"] = cases["dsc"]
    fixed = {"confidence": 0.95, "sources": PAIRED}
    of_lesions = detection.differences(cases.assign(**dict.fromkeys(detection.OF_LESIONS, 1.0)), ("blob",), ARMS,
                                       rng=np.random.default_rng(0), **fixed)  # fmt: skip
    row = of_lesions[(of_lesions["metric"] == "lesions_spurious") & (of_lesions["label"] == "blob")].iloc[0]
    usual = compared(cases, PAIRED)
    assert row[["ci_low", "ci_high", "n_seeds"]].tolist() == pytest.approx(
        usual[["ci_low", "ci_high", "n_seeds"]].tolist()
    )
    shown = detection.summary(cases.assign(**dict.fromkeys(detection.OF_LESIONS, 1.0)), ("blob",), **fixed)
    assert set(shown.loc[shown["arm"] == NESTED, "n_seeds"]) == {SOURCES}
    plan = power.planning(cases, ARMS, metrics=("dsc",), **fixed).query("label == 'mean'").set_index("n_seeds")
    own = plan.loc[SOURCES]
    assert own["sd_seed"] == pytest.approx(0.02, rel=0.6)
    assert own["half_width"] == pytest.approx((usual["ci_high"] - usual["ci_low"]) / 2, rel=0.1)


def test_claims_make_a_gain_of_the_same_rows() -> None:
    """With runs of one number and with runs that have numbers of their own, the arm's sources are the rows."""
    for first_seed in (0, 1000):
        cases = nested_cases(rng(0), first_seed=first_seed)
        nested = {seed + first_seed: seed // 2 for seed in range(SEEDS)}
        record = sim.record("scratch", **{NESTED: sim.arm(sources=nested)})
        blocks = blocks_of(gather(sim.study(record, cases=cases)), gain_weights(Pair(NESTED, "scratch"), 0))
        np.testing.assert_allclose(blocks.d[0], differences(cases).reshape(SOURCES, 2, -1).mean(1))
        assert (blocks.n_seeds, blocks.seeds_each) == (SOURCES, 2)


def test_a_row_keeps_its_place_where_it_loses_a_seed() -> None:
    cases = nested_cases(rng(0))
    (found,) = scores.read_scores(cases, ("dsc",), each_label=False)
    (lost,) = scores.read_scores(cases[cases["seed"] != 2], ("dsc",), each_label=False)
    weights = {NESTED: 1.0, "scratch": -1.0}
    whole, part = (scores.contrast(one, weights, "dsc", PAIRED) for one in (found, lost))
    assert whole.names.tolist() == part.names.tolist() == list(range(SOURCES))
    assert (whole.seeds.tolist()[:3], part.seeds.tolist()[:3]) == ([0, 2, 4], [0, 3, 4])
    np.testing.assert_allclose(part.d[1], differences(cases)[3])
    np.testing.assert_allclose(whole.d[2:], part.d[2:])


# ------------------------------------------------------------------------------------------------------ layers, curves


def of_layers(study: StudyTables) -> pd.DataFrame:
    return layer_table(gather(study), {0: 0}).set_index(["arm", "comparison", "layer", "quantity"]).sort_index()


def test_layers_count_sources_as_the_claims_do(study: StudyTables) -> None:
    """The study has sixteen runs of transfer from eight source networks."""
    filters = sim.filters(rng(3), ("transfer",), seeds=SEEDS).assign(relative_change=1.0, norm_ratio=1.0)
    study = study._replace(tables={**study.tables, "filters": pd.concat([study.tables["filters"], filters])})
    layers = of_layers(study)
    c11 = {q.key: q for q in judged(study, "C11").quantities}["reuse encoder/level_2"]
    row = layers.loc["transfer", "to_source", "encoder/level_2", "rho"]
    assert row[LIMITS].tolist() == pytest.approx([c11.value, c11.low, c11.high])
    assert row["n_seeds"] == c11.n_seeds == SOURCES
    assert set(layers.loc["transfer"]["n_seeds"]) == {SOURCES}
    assert set(layers.loc["scratch"].dropna(subset=["value"])["n_seeds"]) == {SEEDS}
    ends = filters[filters["step"] == sim.STEPS].query("layer == 'encoder/level_1/conv_0'").sort_values("seed")
    limits = statistics.t_interval(ends["angle_deg"].to_numpy().reshape(SOURCES, 2).mean(1))
    row = layers.loc["transfer", "", "encoder/level_1/conv_0", "angle_deg"]
    assert row[LIMITS].tolist() == pytest.approx(list(limits[:3]))
    reuse = claims.shown.reuse_table(layers.reset_index())
    assert set(reuse.loc[reuse["arm"] == "transfer", "n_seeds"]) == {SOURCES}


def test_means_over_layers_leave_out_a_source_with_all_its_runs(study: StudyTables) -> None:
    table = similarity_means(gather(study), {0: 0}).set_index(["comparison", "arm_a", "arm_b", "index"])
    seeds = table.loc[:, :, :, "cka_cases"]["n_seeds"].to_dict()
    assert seeds["within_arm", "transfer", "transfer"] == seeds["across_arms", "scratch", "transfer"] == SOURCES
    assert seeds["to_source", "transfer", "transfer"] == seeds["to_other_source", "scratch", "transfer"] == SOURCES
    assert seeds["within_arm", "scratch", "scratch"] == SEEDS
    rows = study.tables["similarity"].query("comparison == 'within_arm' and arm_a == 'transfer'")
    pairs = rows[rows["index"] == "cka_cases"].groupby(["seed_a", "seed_b"])["value"].mean()
    matrix = np.full((SEEDS, SEEDS), np.nan)
    for (a, b), value in pairs.items():
        matrix[a, b] = matrix[b, a] = value
    kept = [[seed for seed in range(SEEDS) if seed // 2 != source] for source in range(SOURCES)]
    left_out = np.array([statistics.mean_of_pairs(matrix, np.array(seeds)) for seeds in kept])
    error = math.sqrt((SOURCES - 1) / SOURCES * ((left_out - left_out.mean()) ** 2).sum())
    row = table.loc["within_arm", "transfer", "transfer", "cka_cases"]
    assert (row["ci_high"] - row["ci_low"]) / 2 == pytest.approx(2.364624 * error, rel=1e-5)


def test_curves_and_budgets_have_bands_over_sources() -> None:
    value = {seed: 0.8 + 0.01 * (seed // 2) + 0.001 * seed for seed in range(SEEDS)}
    fixed = {"arm": NESTED, "train_cases": 0, "fold": 0}
    rows = [{**fixed, "seed": seed, "step": step, "loss": 1 - one, "val_dsc": one, "value": one, "metric": "val_dsc"}
            for (seed, one), step in itertools.product(value.items(), (5, 10))]  # fmt: skip
    limits = statistics.t_interval(np.array([*value.values()]).reshape(SOURCES, 2).mean(1))
    _, means = drawn.drawn_curves(pd.DataFrame(rows), (), confidence=0.95, sources=PAIRED)
    budget = drawn.budget_means(pd.DataFrame(rows), confidence=0.95, sources=PAIRED)
    for table in (means[means["quantity"] == "val_dsc"], budget):
        assert table[LIMITS].to_numpy() == pytest.approx(np.array([limits[:3]] * 2))
        assert table["n_runs"].tolist() == [SEEDS, SEEDS]


@pytest.mark.parametrize("rotate", [False, True])
def test_a_seed_of_several_folds_is_one_in_bands(rotate: bool) -> None:
    """Where each seed is tested on every fold it starts from the same weights in all; where folds rotate it has one."""
    values = np.array([[0.5, 0.6], [0.7, 0.8], [0.9, 1.1]])
    runs = [(seed + 3 * fold * rotate, fold, value) for (seed, fold), value in np.ndenumerate(values)]
    fixed = {"arm": "a", "train_cases": 0, "step": 8}
    rows = pd.DataFrame([{**fixed, "seed": seed, "fold": fold, "loss": value, "val_dsc": value, "value": value,
                          "metric": "val_dsc"} for seed, fold, value in runs])  # fmt: skip
    expected = statistics.t_interval(values.ravel() if rotate else values.mean(1))
    _, means = drawn.drawn_curves(rows, (), confidence=0.95)
    for table in (means[means["quantity"] == "val_dsc"], drawn.budget_means(rows, confidence=0.95)):
        assert table[LIMITS].to_numpy()[0] == pytest.approx(expected[:3])


def test_runs_that_diverge_later_are_in_no_mean_of_a_budget() -> None:
    """Run 2 is the best at a quarter of the steps, and has no value at their end."""
    values = {0: (0.5, 0.7), 1: (0.6, 0.8), 2: (0.9, math.nan)}
    rows = [("a", seed, 0, 0, step, "val_dsc", value) for seed, own in values.items()
            for step, value in zip((15, 60), own, strict=True)]  # fmt: skip
    # Of scores on test cases a diverged run has no row at the end.
    rows += [(*row[:5], "dsc", row[6]) for row in rows if not math.isnan(row[6])]
    table = pd.DataFrame(rows, columns=["arm", "seed", "train_cases", "fold", "step", "metric", "value"])
    found = drawn.budget_means(table, confidence=0.95).set_index(["metric", "step"])
    for metric in ("val_dsc", "dsc"):
        assert found.loc[metric]["value"].tolist() == pytest.approx([0.55, 0.75])
        assert found.loc[metric]["n_runs"].tolist() == [2, 2]
        assert found.loc[metric]["share"].tolist() == [0.25, 1.0]
