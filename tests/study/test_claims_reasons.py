"""The reason wherever no verdict can be given, and what decides where one can."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxseg.study import claims
from jaxseg.study.claims import gate
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from jaxseg.study.claims.rules import RULES
from jaxseg.study.claims.study_tables import StudyTables
from jaxseg.study.claims.table import JUDGES, judge_claim
from jaxseg.study.claims.training import times
from simulated import tables as sim
from tests.study.whole_study import changed, judged, reasons, rng, whole_study


def test_seven_seeds_are_too_few():
    found = reasons(whole_study(seeds=7))
    for claim in JUDGES:
        assert found[claim].verdict == INCONCLUSIVE
        assert "needs at least 8 seeds, has 7" in found[claim].reason, claim
        assert found[claim].quantities


@pytest.mark.parametrize(
    ("claim", "change", "reason"),
    [
        ("C1", {"without": "transfer"}, "no arm transfer"),
        ("C1", {"drop": "curves"}, "no table curves.csv"),
        ("C1", {"without": "scratch_double"}, "not converged: .* not known: no arm scratch_double"),
        (
            "C1",
            {"arms": {"scratch": sim.arm(schedule="cosine")}},
            "not converged: scratch trained with schedule cosine",
        ),
        ("C2", {"sizes": (0,)}, "needs at least 2 training set sizes or targets, has 1"),
        ("C2", {"one_draw": True}, "all seeds share one draw"),
        ("C3", {}, "needs several studies"),
        ("C4", {"sizes": (8, 16, 0)}, "needs at least 4 training set sizes, has 3"),
        ("C4", {"one_draw": True}, "all seeds share one draw"),
        ("C4b", {"sizes": (8, 16)}, "needs all 64 training cases .* has at most 16"),
        ("C4b", {"groups": 2}, "needs at least 3 test groups, has 2"),
        ("C5", {"drop": "filters"}, "no table filters.csv"),
        ("C5", {"without": "scratch"}, "no arm scratch"),
        ("C6", {"drop": "filter_controls"}, "no table filter_controls.csv"),
        ("C7", {"without": "frozen_random_encoder"}, "no arm frozen_random_encoder"),
        ("C7", {"without": "prior"}, "no arm prior"),
        ("C8", {"without": "prior"}, r"C7 is open \(no arm prior\)"),
        ("C8", {"comparison": "other_start"}, "no other_start similarities"),
        ("C9", {"comparison": "across_arms"}, "no pairs of scratch and transfer"),
        ("C9", {"arms": {"transfer": sim.arm(one_source=True)}}, "one source"),
        ("C10", {"drop": "pairs", "comparison": "within_arm"}, "no within_arm similarities .*; no table pairs.csv"),
        ("C10", {"arms": {"transfer": sim.arm(one_source=True)}}, "one source"),
        ("C11", {"comparison": "to_source"}, "no to_source similarities"),
        ("C11b", {"arms": {"transfer": sim.arm(one_source=True)}}, "one source"),
    ],
)
def test_what_is_missing_is_said(study, claim, change, reason):
    tables, record = dict(study.tables), study.record
    if change.get("drop"):
        del tables[change["drop"]]
    if without := change.get("without"):
        record = record._replace(arms={name: arm for name, arm in record.arms.items() if name != without})
        for name, rows in tables.items():
            for column in {"arm", "arm_a", "arm_b"} & set(rows.columns):
                rows = rows[rows[column] != without]
            tables[name] = rows
    if comparison := change.get("comparison"):
        tables["similarity"] = tables["similarity"][tables["similarity"]["comparison"] != comparison]
    if sizes := change.get("sizes"):
        tables = {"cases": tables["cases"][tables["cases"]["train_cases"].isin(sizes)]}
    if groups := change.get("groups"):
        names = tables["cases"]["group"].unique()[:groups]
        tables["cases"] = tables["cases"][tables["cases"]["group"].isin(names)]
    record = record._replace(
        arms={**record.arms, **change.get("arms", {})}, one_draw=change.get("one_draw", record.one_draw)
    )
    found = judge_claim(claim, gather(StudyTables(record, tables)))
    assert found.verdict == INCONCLUSIVE
    assert pd.Series([found.reason]).str.contains(reason).all(), found.reason


def test_decoder_frozen_and_small_layers_do_not_count_as_encoder(study):
    rows = study.tables["filters"]
    wild = rows["layer"].str.startswith("decoder/")
    assert judged(changed(study, "filters", angle_deg=rows["angle_deg"].mask(wild, 89.0)), "C5").verdict == SUPPORTED
    # 40 of the encoder's 48 filters are in its last two layers.
    small = rows["layer"] == "encoder/level_0/conv_0"
    assert judged(changed(study, "filters", angle_deg=rows["angle_deg"].mask(small, 89.0)), "C5").verdict == SUPPORTED
    large = rows["layer"] == "encoder/level_1/conv_0"
    assert (
        judged(changed(study, "filters", angle_deg=rows["angle_deg"].mask(large, 89.0)), "C5").verdict == CONTRADICTED
    )
    assert "no trained encoder filters" in judged(changed(study, "filters", trained=False), "C6").reason


def test_a_test_that_misses_its_control_says_nothing_by_silence(study):
    shares = study.tables["filter_controls"]
    blunt = shares["smallest_share"].mask(shares["quantity"] == "spectrum", 0.4)
    found = judged(changed(study, "filter_controls", smallest_share=blunt), "C6")
    assert found.verdict == INCONCLUSIVE
    assert "excess spectral energy finds its control at a share of 0.3 in layers with only 0%" in found.reason
    loud = study.tables["filters"]["spectral_end"] + 0.5
    both = changed(changed(study, "filter_controls", smallest_share=blunt), "filters", spectral_end=loud)
    assert judged(both, "C6").verdict == CONTRADICTED


def test_anatomy_alone_makes_the_frozen_encoder_void(study):
    cases = study.tables["cases"]
    near = cases["dsc"] + 0.35 * (cases["arm"] == "prior")
    found = judged(changed(study, "cases", dsc=near), "C7")
    assert found.verdict == INCONCLUSIVE
    assert found.reason.startswith("void: the mean label map alone reaches 85% of scratch")


def test_an_encoder_that_must_learn_is_no_encoder_that_need_not(study):
    cases = study.tables["cases"]
    worse = cases["dsc"] - 0.3 * (cases["arm"] == "frozen_random_encoder")
    found = reasons(changed(study, "cases", dsc=worse))
    assert found["C7"].verdict == found["C8"].verdict == CONTRADICTED
    assert "C7 is contradicted" in found["C8"].reason


def test_layers_in_which_unrelated_networks_are_alike_are_left_out(study):
    rows = study.tables["similarity"]
    alike = (rows["layer"] == "decoder/level_0") & (rows["comparison"] == "to_other_source")
    found = judged(changed(study, "similarity", value=rows["value"].mask(alike, 0.97)), "C11")
    assert not any("decoder/level_0" in q.name for q in found.quantities)
    alike = (rows["layer"].str.startswith("encoder")) & (rows["comparison"] == "other_start")
    found = judged(changed(study, "similarity", value=rows["value"].mask(alike, 0.97)), "C8")
    assert "only 0 of 3 encoder layers can be used" in found.reason


def test_a_diverged_run_has_no_time_to_target():
    study = curves_study()
    curves = study.tables["curves"]
    died = (curves["arm"] == "transfer") & (curves["seed"] == 7) & (curves["step"] > 500)
    gone = curves.assign(**{name: curves[name].mask(died) for name in ("loss", "val_dsc")})
    found = judge_claim("C1", gather(study._replace(tables={"curves": gone})))
    assert found.quantities[0].n_seeds == 7
    assert "has 7" in found.reason


def test_nothing_at_all():
    empty = StudyTables(sim.record("scratch"), {})
    found = claims.claims(empty)
    assert set(found.loc[found["role"] == "claim", "verdict"]) == {INCONCLUSIVE}
    assert set(found["claim"]) == {*RULES, ""}
    assert "nothing to compare" in found.loc[found["role"] == "answer", "reason"].item()


def test_rules_of_another_version_give_no_verdict(study):
    found = reasons(study._replace(record=study.record._replace(rule_version=2)))
    assert {finding.verdict for finding in found.values()} == {INCONCLUSIVE}
    assert "version 2 of the rules" in found["C1"].reason


def test_diverged_runs_are_named(study):
    record = study.record._replace(arms={**study.record.arms, "transfer": sim.arm(diverged=2, runs=10)})
    assert "2 of 10 runs of transfer" in reasons(study._replace(record=record))["C4b"].reason


# -------------------------------------------------------------------------------------------------------------- gate G


def test_change_over_the_last_quarter_is_that_of_a_line():
    steps = np.arange(1.0, 101)
    rise, level = gate.last_quarter_change(steps, np.stack([3 + 0.02 * steps, np.ones(100)]), 100)
    assert rise == pytest.approx([0.02 * 25, 0])
    assert level == pytest.approx([3 + 0.02 * 88, 1])
    assert np.isnan(gate.last_quarter_change(steps[:80:40], np.ones((2, 2)), 100)[0]).all()


def test_error_of_the_change_is_how_much_it_differs_between_runs_at_rest():
    steps = np.arange(10.0, 1001, 10)
    rest = rng(0).normal(2.0, 0.3, (4000, len(steps)))
    rise, _ = gate.last_quarter_change(steps, rest, 1000)
    errors = gate.last_quarter_error(steps, rest, 1000)
    assert np.sqrt((errors**2).mean()) == pytest.approx(rise.std(), rel=0.03)
    assert gate.last_quarter_error(steps, 3 + 0.1 * steps[None], 1000) == pytest.approx([0], abs=1e-6)
    assert np.isnan(gate.last_quarter_error(steps[:2], rest[:, :2], 20)).all()


def test_a_gate_that_runs_at_rest_would_fail_says_so():
    study = curves_study()
    curves = study.tables["curves"]
    late = np.where(curves["loss"].notna(), rng(3).normal(1, 0.5, len(curves)), 0)
    scattered = gather(study._replace(tables={"curves": curves.assign(loss=curves["loss"] + late)}))
    assert "too uncertain to tell rest from change" in gate.unconverged(scattered, "scratch")
    declining = gate.unconverged(gather(curves_study(decline=0.3)), "scratch")
    assert "Standard errors of a run's changes" in declining
    assert "too uncertain" not in declining


def curves_study(**more):
    speeds = {"scratch": 1.0, "scratch_double": 1.0, "transfer": 1.8}
    return sim.study(sim.record(*speeds), curves=sim.curves(rng(2), speeds, **more))


def test_runs_that_still_improve_have_not_converged():
    assert "0 of 8 runs of scratch" in gate.unconverged(gather(curves_study(decline=0.3)), "scratch")
    study = curves_study()
    curves = study.tables["curves"]
    falling = curves.assign(loss=curves["loss"] * (1 - 0.2 * curves["step"] / 1000))
    found = judge_claim("C1", gather(study._replace(tables={"curves": falling})))
    assert found.verdict == INCONCLUSIVE
    assert found.reason.startswith("not converged: in the last quarter")
    assert judge_claim("C1", gather(study)).verdict == SUPPORTED


def test_one_run_in_eight_may_still_move():
    study = curves_study(noise=0.0005)
    curves = study.tables["curves"]

    def moving(seeds):
        late = curves["seed"].isin(seeds) & (curves["arm"] == "transfer")
        return gather(
            study._replace(
                tables={"curves": curves.assign(loss=curves["loss"] * (1 - 0.5 * late * curves["step"] / 1e3))}
            )
        )

    assert gate.unconverged(moving([3]), "transfer") == ""
    assert "6 of 8 runs of transfer" in gate.unconverged(moving([3, 4]), "transfer")


def test_verdict_that_longer_training_changes_does_not_stand():
    levels = {"scratch": {0: 0.7}, "scratch_double": {0: 0.9}, "frozen_random_encoder": {0: 0.7}, "prior": {0: 0.3}}
    curves = sim.curves(rng(1), dict.fromkeys(("scratch", "scratch_double", "frozen_random_encoder"), 1.0))
    study = sim.study(sim.record(*levels), cases=sim.cases(rng(0), levels), curves=curves)
    found = judge_claim("C7", gather(study))
    assert found.verdict == INCONCLUSIVE
    assert "with scratch trained for twice the steps it is contradicted" in found.reason


# --------------------------------------------------------------------------------------------------- steps to target


def test_ratio_of_steps_and_pretraining():
    study = curves_study(spread=0.0, level_sd=0.0, noise=0.0, every=1)
    found = times(gather(study), Pair())
    # Times to a share f of the level are tau log(1 / (1 - f)), and the target is known two validations later.
    assert found.ratio.estimate == pytest.approx(1.8, rel=0.02)
    reached = 60 * math.log(100)
    assert found.total.estimate == pytest.approx(reached / (reached / 1.8 + 500), rel=0.02)


def test_censored_runs_count_against_transfer_and_no_verdict_hangs_on_it():
    speeds = {"scratch": 1.0, "scratch_double": 1.0, "transfer": 1.0}
    curves = sim.curves(rng(4), speeds, spread=0.0, level_sd=0.0, noise=0.0)
    stuck = (curves["arm"] == "transfer") & (curves["seed"] < 4)
    curves["val_dsc"] *= np.where(stuck, 0.9, 1.0)
    found = times(gather(sim.study(sim.record(*speeds), curves=curves)), Pair())
    reached = curves.loc[curves["val_dsc"] >= 0.99 * 0.8, "step"].min() + sim.EVERY
    assert found.ratio.estimate == pytest.approx((reached / 2000) ** 0.5)
    assert found.turned.estimate == pytest.approx((2 * reached / 2000) ** 0.5, rel=0.01)
    assert found.censored == (0.0, 0.5)


def test_too_few_validations():
    found = judge_claim("C1", gather(curves_study(every=100)))
    assert "validated every 100 steps, needs at least every 20" in found.reason


def test_some_pairs_are_enough_for_a_barrier(study):
    pairs = study.tables["pairs"]
    ring = (pairs["seed_b"] - pairs["seed_a"]).isin([1, 7])
    kept = pairs[(pairs["quantity"] != "barrier") | ring]
    fewer = study._replace(tables={**study.tables, "pairs": kept})
    before, after = (judged(one, "C10").quantities[3] for one in (study, fewer))
    assert after.name == before.name == "ratio of distances, barrier"
    assert after.low < before.value < after.high


def test_fewer_pairs_give_wider_limits():
    """Not in every study, but on average over studies."""
    logs = []
    for seed in range(20):
        pairs = sim.pairs({"barrier": sim.points(rng(seed), k=20)})
        ring = (pairs["seed_b"] - pairs["seed_a"]).isin([1, 7])
        of = [
            judged(StudyTables(sim.record("scratch", "transfer"), {"pairs": rows}), "C10").quantities[0]
            for rows in (pairs, pairs[ring])
        ]
        logs.append([np.log(q.high / q.low) for q in of])
    every, some = np.mean(logs, axis=0)
    assert some > 1.1 * every


def test_parameters_alone_say_nothing(study):
    """Independent draws are sqrt(2) norms apart in whatever arm: a ratio of 1 that no study could miss."""
    pairs = study.tables["pairs"]
    parameters = pairs["quantity"] == "parameter_distance"
    less = pairs["value"].mask(~parameters & (pairs["arm_a"] == "transfer"), 0.1 * pairs["value"]).mask(parameters, 1.4)
    found = judged(StudyTables(study.record, {"pairs": pairs.assign(value=less)}), "C10")
    assert found.verdict == INCONCLUSIVE
    assert [q.value for q in found.quantities if "parameters" in q.name] == pytest.approx([1])
