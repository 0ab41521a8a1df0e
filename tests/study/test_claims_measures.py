"""What each claim measures, and what counts in it: filters, representations, rest, and steps to a level."""

import numpy as np
import pandas as pd
import pytest

from jaxseg.study import claims
from jaxseg.study.claims.answer import plain_answer
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.filters import controlled_share
from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED, UNDECIDED, VOID
from jaxseg.study.claims.judging import judge_claim
from jaxseg.study.claims.training import times
from simulated import tables as sim
from tests.study.whole_study import altered, changed, judged, rng

# -------------------------------------------------------------------------------------------------------- filters


def test_decoder_frozen_and_small_layers_do_not_count_as_encoder(study):
    rows = study.tables["filters"]
    wild = rows["layer"].str.startswith("decoder/")
    assert judged(changed(study, "filters", angle_deg=rows["angle_deg"].mask(wild, 89.0)), "C5").verdict == SUPPORTED
    # 40 of the encoder's 48 filters are in its last two layers.
    small = rows["layer"] == "encoder/level_0/conv_0"
    assert judged(changed(study, "filters", angle_deg=rows["angle_deg"].mask(small, 89.0)), "C5").verdict == SUPPORTED
    large = rows["layer"] == "encoder/level_1/conv_0"
    masked = changed(study, "filters", angle_deg=rows["angle_deg"].mask(large, 89.0))
    assert judged(masked, "C5").verdict == CONTRADICTED
    assert "no trained encoder filters" in judged(changed(study, "filters", trained=False), "C6").reason


def test_angles_that_hang_on_the_rate_say_so(study):
    rows = study.tables["filters"]
    turned = rows["angle_deg"] + 30 * (rows["arm"] == "scratch_high") + 13 * (rows["arm"] != "scratch_high")
    found = judged(changed(study, "filters", angle_deg=turned), "C5")
    assert (found.verdict, found.reason.endswith("depends on the rate")) == (UNDECIDED, False)
    split = rows["angle_deg"] + 30 * (rows["arm"] == "scratch_high") + 9 * (rows["arm"] != "scratch_high")
    late = rows["step"] == sim.STEPS
    growing = split - 10 * ~late
    found = judged(changed(study, "filters", angle_deg=growing), "C5")
    assert found.verdict == UNDECIDED
    assert "depends on the rate" in found.reason  # below 30 now, and above after another doubling


def by_rate(means, angles, diverged=()):
    """Scratch at several rates, with its mean DSC and median angle at each; at some every run diverged."""
    names = {rate: "scratch" if rate == 1e-3 else f"scratch_{rate:g}" for rate in means}
    arms = {names[rate]: sim.arm(rates={0: (rate,)}, like="same") for rate in means}
    levels = {names[rate]: {0: level} for rate, level in means.items() if rate not in diverged}
    rows = [sim.filters(rng(1), (names[rate],), angle=angles[rate]) for rate in means]
    cases = sim.cases(rng(0), levels, spread=(1e-4, 1e-4, 1e-4))
    return sim.study(sim.record(**arms), cases=cases, filters=pd.concat(rows))


def test_rates_between_those_of_the_grid_change_nothing_but_may_be_the_best():
    grid = {3.33e-4: 0.8, 1e-3: 0.8, 3e-3: 0.8}
    found = judged(by_rate(grid | {2e-3: 0.8}, dict.fromkeys([*grid, 2e-3], 20.0)), "C5")
    assert (found.verdict, len(found.quantities)) == (SUPPORTED, 4)
    # At 3e-4 filters change little, but the best of all rates is 0.015 better.
    means = {3e-4: 0.845, 1e-3: 0.848, 2e-3: 0.860, 6e-3: 0.851}
    found = judged(by_rate(means, {3e-4: 10.0, 1e-3: 60.0, 2e-3: 60.0, 6e-3: 60.0}), "C5")
    assert found.verdict == CONTRADICTED
    assert [q.key for q in found.quantities] == ["angle 0.002", "angle 0.006"]


def test_a_rate_at_which_every_run_diverged_is_not_among_the_best():
    grid = {1e-3: 0.8, 3e-3: 0.8, 3e-2: 0.8}
    found = judged(by_rate(grid, dict.fromkeys(grid, 20.0), diverged=(3e-2,)), "C5")
    assert (found.verdict, len(found.quantities)) == (SUPPORTED, 2)


def test_without_a_look_halfway_filters_cannot_be_found_to_change_little(study):
    ends = study.tables["filters"]["step"] == sim.STEPS
    half = study._replace(tables={**study.tables, "filters": study.tables["filters"][ends]})
    for claim in ("C5", "C6"):
        found = judged(half, claim)
        assert (found.verdict, "needs analysis.half" in found.reason) == (UNDECIDED, True), claim
        assert found.needs == "a look at the networks after half of their steps (analysis.half)"


def test_a_test_that_misses_its_control_says_nothing_by_silence(study):
    shares = study.tables["filter_controls"]
    blunt = shares["smallest_share"].mask(shares["quantity"] == "spectrum", 0.4)
    found = judged(changed(study, "filter_controls", smallest_share=blunt), "C6")
    assert found.verdict == UNDECIDED
    assert "excess spectral energy finds its control at a share of 0.3 in layers with only 0%" in found.reason
    loud = study.tables["filters"]["spectral_end"] + 0.5
    both = changed(changed(study, "filter_controls", smallest_share=blunt), "filters", spectral_end=loud)
    assert judged(both, "C6").verdict == CONTRADICTED


@pytest.mark.parametrize("rotate", [False, True])
def test_a_control_that_was_found_in_one_fold_is_not_found_in_all(study, rotate):
    """Four layers, each of whose controls is found in another one of four folds."""
    rows, controls = (study.tables[name] for name in ("filters", "filter_controls"))
    layers = list(dict.fromkeys(controls["layer"]))
    per_fold = pd.concat([
        controls.assign(fold=fold, smallest_share=np.where(controls["layer"] == layers[fold], 0.2, np.nan))
        for fold in range(4)
    ])  # fmt: skip
    of_folds = [rows[rows["seed"] % 4 == fold] if rotate else rows for fold in range(4)]
    filters = pd.concat([own.assign(fold=fold) for fold, own in enumerate(of_folds)])
    # The controls of another arm say nothing of this one.
    others = per_fold.assign(arm="scratch_b", smallest_share=0.1)
    tables = {"filters": filters, "filter_controls": pd.concat([per_fold, others])}
    cases = sim.cases(rng(0), {"scratch": {0: 0.8}}, seeds=16, folds=4, rotate=rotate)
    evidence = gather(study._replace(tables={**tables, "cases": cases}))
    own = evidence.tables["filters"].query("arm == 'scratch' and layer.str.startswith('encoder/')")
    assert controlled_share(evidence, "spectrum", own) == pytest.approx(0.25)
    assert controlled_share(evidence, "spectrum", own.assign(arm="transfer")) == 0
    found = judge_claim("C6", evidence)
    assert (found.verdict, "in layers with only 25%" in found.reason) == (UNDECIDED, True)


def test_filters_without_permuted_weights_can_contradict_but_not_support(study):
    old = study.tables["filters"].drop(columns="auc_permuted")
    found = judged(study._replace(tables={**study.tables, "filters": old}), "C6")
    assert found.verdict == UNDECIDED
    assert "AUC, filters against their own weights permuted: not measured" in found.reason
    assert "nan" not in found.reason
    loud = old.assign(spectral_end=old["spectral_end"] + 0.5)
    assert judged(study._replace(tables={**study.tables, "filters": loud}), "C6").verdict == CONTRADICTED


def test_what_makes_the_gain_is_graded():
    levels = {
        name: {0: 0.8 + by}
        for name, by in (("transfer", 0.05), ("mean_var", 0.0), ("first_1", 0.02), ("first_3", 0.049))
    }
    inits = {"first_1": "pretrained:encoder/level_0", "first_3": "pretrained:encoder/level_[0-2]"}
    record = sim.record(*levels, **{name: sim.arm(init=init) for name, init in inits.items()})
    cases = sim.cases(rng(0), levels, spread=(0.001, 0.001, 0.004))
    table = claims.claims(sim.study(record, cases=cases))
    found = table[table["role"] == "graded"].set_index("quantity")
    assert found.loc["transfer - mean_var", "grade"] == "material gain"
    assert found.loc["transfer - first 1 levels", "grade"] == "material gain"
    assert found.loc["transfer - first 3 levels", "value"] == pytest.approx(0.001, abs=0.004)
    assert found.loc["fewest levels within 0.01 DSC of transfer", "value"] == 3
    assert set(found["verdict"]) == {""}


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        ("first_1", ["transfer - mean_var", "transfer - first 3 levels"]),
        ("mean_var", ["", "transfer - first 1 levels"]),
    ],
)
def test_an_arm_that_is_lost_takes_no_other_part_with_it(lost, left):
    levels = {"transfer": {0: 0.85}, "mean_var": {0: 0.8}, "first_1": {0: 0.82}, "first_3": {0: 0.849}}
    inits = {"first_1": "pretrained:encoder/level_0", "first_3": "pretrained:encoder/level_[0-2]"}
    record = sim.record(*levels, **{name: sim.arm(init=init) for name, init in inits.items()})
    gone = record.arms[lost]._replace(diverged=8, runs=8)
    cases = sim.cases(rng(0), levels, spread=(0.001, 0.001, 0.004))
    study = sim.study(record._replace(arms=record.arms | {lost: gone}), cases=cases[cases["arm"] != lost])
    table = claims.claims(study)
    found = table[table["role"] == "graded"]
    assert found["quantity"].tolist()[:2] == left
    why = f"no scores of arm {lost}: 8 of its 8 runs diverged"
    part = "first_k" if lost == "first_1" else "mean_var"
    assert found.loc[found["claim"] == part, "reason"].str.contains(why).all()


@pytest.mark.parametrize("arm", ["scratch", "transfer"])
def test_an_arm_that_lost_a_fold_has_no_speed(arm):
    """The mean over the folds that are left would be over other cases."""
    curves = sim.curves(rng(0), {"scratch": 1, "transfer": 2}, seeds=16)
    curves["fold"] = curves["seed"] % 4
    study = sim.study(sim.record("scratch", "transfer"), curves=curves)
    assert judged(study, "C1").verdict == SUPPORTED
    late = (curves["arm"] == arm) & (curves["fold"] == 1) & (curves["step"] > curves["step"].max() / 2)
    found = judged(sim.study(study.record, curves=_without(curves, late)), "C1")
    assert (found.verdict, found.reason) == (VOID, f"every run of {arm} in fold 1 diverged")


def _without(curves, rows):
    """Curves whose runs have diverged in these rows."""
    return curves.assign(loss=curves["loss"].mask(rows), val_dsc=curves["val_dsc"].mask(rows))


# ------------------------------------------------------------------------------------------------- representations


@pytest.mark.parametrize(("seeds", "folds", "least"), [(8, 2, 2**-6), (8, 4, 2**-4), (9, 3, 2**-6)])
def test_swaps_of_a_whole_fold_change_nothing(seeds, folds, least):
    points = sim.points(rng(1), seeds=seeds, shift=3.0, k=6)
    whole = sim.study(sim.record("scratch", "transfer"), similarity=sim.between_runs(points))
    found = judged(sim.in_folds(whole, rng(1), folds=folds), "C9")
    swaps = [q for q in found.quantities if q.key.startswith("p ")]
    assert [q.least for q in swaps] == [least] * 2
    assert all(q.value >= least * 0.99 for q in swaps)
    few = seeds // folds < 4
    assert found.verdict == (UNDECIDED if few else SUPPORTED)
    assert (f"needs at least 4 seeds in each fold, has {seeds // folds}" in found.reason) == few


def test_layers_in_which_unrelated_networks_are_alike_are_left_out(study):
    rows = study.tables["similarity"]
    alike = (rows["layer"] == "encoder/level_1") & (rows["comparison"] == "to_other_source")
    found = judged(changed(study, "similarity", value=rows["value"].mask(alike, 0.97)), "C11")
    early = next(q for q in found.quantities if q.key == "early")
    usual = next(q for q in judged(study, "C11").quantities if q.key == "early")
    assert early.value != usual.value
    deep = (rows["layer"] == "encoder/level_2") & (rows["comparison"] == "to_other_source")
    found = judged(changed(study, "similarity", value=rows["value"].mask(deep, 0.97)), "C11")
    assert "no encoder level below level 1 can be used" in found.needs


def test_tables_of_earlier_versions_have_another_index_and_it_is_named(study):
    rows = study.tables["similarity"]
    old = rows.assign(index=rows["index"].replace("cka_cases", "cka_debiased"))
    found = judged(study._replace(tables={**study.tables, "similarity": old}), "C9")
    assert found.verdict == SUPPORTED
    assert "cka_debiased" in found.reason


def test_runs_of_one_source_network_count_once(study):
    found = judged(study, "C9")
    assert {q.n_seeds for q in found.quantities} == {8}
    alone = sim.arm(sources={seed: seed for seed in range(16)})
    apart = judged(altered(study, {"arms": {"transfer": alone}}), "C9")
    assert {q.n_seeds for q in apart.quantities} == {16}
    # Runs of one source network are closer to each other, which is no excess of those across arms.
    assert apart.quantities[0].value > found.quantities[0].value


def test_variability_needs_both_quantities_to_contradict():
    draw = rng(1)
    of, others = (sim.nested_points(draw, ratio=0.2, between=0.8) for _ in range(2))
    record = sim.record(*of, transfer=sim.arm(sources={seed: seed // 2 for seed in range(16)}))
    tables = {"similarity": sim.between_runs(of), "pairs": sim.pairs({"disagreement": others})}
    assert judged(sim.study(record, **tables), "C10").verdict == CONTRADICTED
    assert judged(sim.study(record, similarity=tables["similarity"]), "C10").verdict == UNDECIDED


def nested_study(**arms):
    """Networks that start from a source each, beside `transfer_nested`, two of whose runs share one."""
    draw = rng(1)
    of = sim.nested_points(draw, ratio=1.2, k=60)
    of["transfer_nested"] = of["transfer"]
    each = {seed: seed for seed in range(16)}
    nested = {seed: seed // 2 for seed in range(16)}
    alike = {"sources": nested, "like": "same", "source": "blobs"}
    more = {name: sim.arm(**{**alike, **own}) for name, own in arms.items()}
    record = sim.record("scratch", transfer=sim.arm(sources=each, like="same", source="blobs"), **more)
    tables = {"similarity": sim.between_runs(of), "pairs": sim.pairs({"disagreement": of})}
    return sim.study(record, **tables)


def test_variability_is_that_of_the_arm_whose_runs_share_a_source():
    study = nested_study(transfer_nested={"diverged": 2, "runs": 18, "seen": ""})
    found = judged(study, "C10")
    assert found.verdict == SUPPORTED
    assert "left out, as diverged: 2 of 18 runs of transfer_nested" in found.reason
    table = claims.claims(study)
    rows = table[(table["claim"] == "C10") & table["role"].isin(["claim", "target"])]
    assert set(rows["arm"]) == {"transfer_nested"}
    assert set(rows["baseline"]) == {"scratch"}


def test_an_arm_that_trains_in_another_way_or_from_one_source_does_not_stand_in():
    study, one = nested_study(transfer_nested={}), {"one_source": True, "source": "blobs"}
    arms = {"transfer_slow_encoder": sim.arm(like="slow", **one), "transfer_one": sim.arm(like="same", **one)}
    first = study._replace(record=study.record._replace(arms={**arms, **study.record.arms}))
    assert judged(first, "C10").verdict == SUPPORTED
    only = {name: arm for name, arm in first.record.arms.items() if name not in ("transfer_nested", "transfer_one")}
    lacking = judged(first._replace(record=study.record._replace(arms=only)), "C10")
    assert lacking.needs.startswith("needs several fine-tunings of each source network")


def test_few_runs_from_scratch_are_few_whatever_transfer_has():
    study = nested_study(transfer_nested={})
    left = {
        name: rows[(rows["arm_a"] != "scratch") | (rows["seed_a"] < 3) & (rows["seed_b"] < 3)]
        for name, rows in study.tables.items()
    }
    found = judged(study._replace(tables=left), "C10")
    assert (found.verdict, found.reason) == (UNDECIDED, "needs at least 8 seeds of scratch, has 3")


# ------------------------------------------------------------------------------------------------------ rest, steps


def test_the_tag_and_the_projection_come_from_the_last_doubling():
    levels = {"scratch": {0: 0.8}, "transfer": {0: 0.83}}
    quiet = {"noise": 1e-6, "spread": 1e-6, "level_sd": 0.0}
    for gain, tag in ((0.002, "at rest"), (0.03, "at 3,000 steps")):
        curves = sim.curves(rng(0), dict.fromkeys(levels, 1.0), gain=gain, **quiet)
        study = sim.study(sim.record(*levels), cases=sim.cases(rng(0), levels), curves=curves)
        found = judged(study, "C4b")
        assert found.tag.startswith(tag)
        late, half = (curves["step"].between(a * 3000 + 1, b * 3000) for a, b in ((0.8, 1), (0.4, 0.5)))
        expected = curves["val_dsc"][late].mean() - curves["val_dsc"][half].mean()
        q = found.quantities[0]
        assert q.low - q.projected_low == pytest.approx(expected, rel=1e-3)
        assert q.projected_high - q.high == pytest.approx(expected, rel=1e-3)
    assert "it need not stand after another doubling" in judged(study, "C4b").reason
    no_curves = judged(sim.study(sim.record(*levels), cases=study.tables["cases"]), "C4b")
    assert no_curves.tag == "not known"
    assert np.isnan(no_curves.quantities[0].projected_low)


def test_a_margin_that_another_doubling_may_take_is_no_support():
    levels = {"scratch": {0: 0.868}, "frozen_random_encoder": {0: 0.80}, "prior": {0: 0.4}}
    for gain, verdict in ((0.003, SUPPORTED), (0.03, UNDECIDED)):
        curves = sim.curves(rng(0), {name: 1.0 for name in levels if name != "prior"}, gain=gain, noise=0.002)
        study = sim.study(sim.record(*levels), cases=sim.cases(rng(0), levels), curves=curves)
        assert judged(study, "C7").verdict == verdict
    found = judged(study, "C7")
    assert (found.reason.endswith("need not after another doubling"), found.needs) == (True, "longer training")
    unknown = judged(sim.study(sim.record(*levels), cases=study.tables["cases"]), "C7")
    assert unknown.verdict == UNDECIDED
    assert unknown.reason.endswith("needs validations at half of the steps and late (train.eval_every)")
    assert unknown.needs == "validations at half of the steps and late"


def curves_study(**more):
    speeds = {"scratch": 1.0, "transfer": 1.8}
    return sim.study(sim.record(*speeds), curves=sim.curves(rng(2), speeds, **{"gain": 0.0122, **more}))


def test_ratio_of_steps_and_pretraining():
    found = times(gather(curves_study(spread=0.0, level_sd=0.0, noise=0.0, every=1)), Pair())
    assert found.ratio.estimate == pytest.approx(1.8, rel=0.02)
    assert found.ratio == found.against == found.turned
    reached = found.total.estimate
    assert reached < 1  # 1,500 steps of pretraining are more than scratch takes to most of its level


def test_censored_runs_are_counted_from_both_sides():
    study = curves_study(spread=0.0, level_sd=0.0, noise=0.0)
    curves = study.tables["curves"]
    stuck = (curves["arm"] == "transfer") & (curves["seed"] < 4)
    low = curves.assign(val_dsc=curves["val_dsc"] * np.where(stuck, 0.96, 1.0))
    found = times(gather(study._replace(tables={"curves": low})), Pair())
    assert found.n_censored == (0, 4)
    assert found.against.estimate < found.ratio.estimate == found.turned.estimate
    # One of three levels is never reached by half of the runs: twice the steps there is 2^(1/6) in the mean.
    assert found.ratio.estimate / found.against.estimate == pytest.approx(2 ** (1 / 6))


def test_a_diverged_run_has_no_time_to_a_level():
    study = curves_study()
    curves = study.tables["curves"]
    died = (curves["arm"] == "transfer") & (curves["seed"] == 7) & (curves["step"] > 500)
    gone = curves.assign(**{name: curves[name].mask(died) for name in ("loss", "val_dsc")})
    found = judge_claim("C1", gather(study._replace(tables={"curves": gone})))
    assert found.quantities[0].n_seeds == 7
    assert "has 7" in found.reason


def test_one_validation_says_nothing_of_speed(study):
    """All seeds are there at the only step that was looked at: a ratio of 1 without any uncertainty."""
    curves = curves_study().tables["curves"]
    last = curves[curves["step"] == curves["step"].max()]
    found = plain_answer(gather(study._replace(tables=dict(study.tables) | {"curves": last})), Pair())
    assert "; steps to 90% to 98% of scratch's level not known from so few validations." in found.text
    assert "times" not in found.text
    assert not {"ratio", "total"} & {q.key for q in found.quantities}


def test_too_few_validations():
    found = judge_claim("C1", gather(curves_study(every=300)))
    assert "validated every 300 steps, needs at least every 60" in found.reason
    whole = curves_study()
    arms = {name: arm._replace(steps=40) for name, arm in whole.record.arms.items()}
    curves = whole.tables["curves"]
    steps = {step: 20 * (1 + place) for place, step in enumerate(sorted(curves["step"].unique())[1:3])}
    short = curves[curves["step"].isin(steps)].assign(step=lambda rows: rows["step"].map(steps))
    found = judge_claim("C1", gather(sim.study(whole.record._replace(arms=arms), curves=short)))
    assert "scratch has 40 steps, needs at least 50, with a validation every fiftieth" in found.reason
