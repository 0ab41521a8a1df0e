"""The reason wherever no verdict can be given, and what decides where one can."""

import dataclasses
import re

import pandas as pd
import pytest

from jaxseg.study import claims
from jaxseg.study.claims.accuracy import falls_with_size
from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.findings import (
    CONTRADICTED,
    OF_DSC,
    SUPPORTED,
    UNDECIDED,
    VOID,
    Measured,
    Quantity,
    judge,
)
from jaxseg.study.claims.judging import JUDGES, judge_claim
from jaxseg.study.claims.study_tables import StudyTables
from simulated import tables as sim
from tests.study.whole_study import altered, changed, judged, reasons, rng, whole_study, without


def test_too_few_seeds_are_no_verdict():
    found = reasons(whole_study(seeds=14))  # of seven source networks
    for claim in JUDGES:
        if claim in ("C5", "C6", "C7", "C8"):
            continue  # of scratch and frozen encoders, which have fourteen
        assert found[claim].verdict == UNDECIDED, claim
        assert "needs at least 8" in found[claim].reason, claim
        assert "has 7" in found[claim].reason
        assert found[claim].quantities


LACKING = [
    ("C1", {"without": "transfer"}, "no arm transfer"),
    ("C1", {"drop": "curves"}, "no table curves.csv"),
    ("C2", {"sizes": (0,)}, "needs at least 5 targets or training set sizes, has 1"),
    ("C3", {}, "needs several studies"),
    ("C4", {"sizes": (8, 16, 0)}, "needs at least 4 training set sizes, has 3"),
    ("C4b", {"sizes": (8, 16)}, "needs all 64 training cases .* has at most 16"),
    ("C5", {"drop": "filters"}, "no table filters.csv"),
    ("C5", {"without": "scratch"}, "no arm scratch"),
    ("C5", {"without": "scratch_low"}, "needs scratch at 3 learning rates or more, .* has 0.001, 0.003"),
    ("C6", {"drop": "filter_controls"}, "no table filter_controls.csv"),
    ("C7", {"without": "frozen_random_encoder"}, "no arm frozen_random_encoder"),
    ("C7", {"without": "prior"}, "no arm prior"),
    ("C8", {"without": "pooled_encoder"}, "no arm pooled_encoder"),
    ("C9", {"comparison": "across_arms"}, "no pairs of scratch and transfer"),
    ("C10", {"arms": {"transfer": sim.arm(sources={s: s for s in range(16)})}}, "needs several fine-tunings"),
    ("C10", {"drop": "pairs", "comparison": "within_arm"}, "no within_arm similarities .*; no table pairs.csv"),
    ("C11", {"comparison": "to_source"}, "no to_source similarities"),
]


@pytest.mark.parametrize(("claim", "change", "reason"), LACKING)
def test_what_a_study_lacks_is_said_and_is_no_verdict(study, claim, change, reason):
    found = judge_claim(claim, gather(altered(study, change)))
    assert found.lacks
    assert found.verdict == ""
    assert pd.Series([found.needs]).str.contains(reason).all(), found.needs


DOUBTFUL = [
    ("C2", {"arms": {"transfer": sim.arm(one_draw=True)}}, "all seeds share one draw"),
    ("C4", {"arms": {"transfer": sim.arm(one_draw=True)}}, "all seeds share one draw"),
    ("C4b", {"groups": 2}, "needs at least 3 test groups, has 2"),
    ("C9", {"arms": {"transfer": sim.arm(one_source=True)}}, "one source"),
]


@pytest.mark.parametrize(("claim", "change", "reason"), DOUBTFUL)
def test_what_forbids_a_verdict_is_said(study, claim, change, reason):
    found = judge_claim(claim, gather(altered(study, change)))
    assert (found.verdict, found.lacks) == (UNDECIDED, False)
    assert reason in found.reason
    assert reason in found.needs


def test_one_draw_of_an_arm_that_is_not_compared_forbids_nothing(study):
    crossed = altered(study, {"arms": {"crossed": sim.arm(one_draw=True)}})
    assert [judged(crossed, claim).verdict for claim in ("C2", "C4")] == [SUPPORTED, SUPPORTED]


# ------------------------------------------------------------------------------------------- one source, rates, looks


def test_one_source_network_makes_a_finding_of_this_checkpoint(study):
    arms = {"transfer": sim.arm(one_source=True, pretrain_steps=1500)}
    found = reasons(altered(study, {"arms": arms}))
    for claim in ("C1", "C4", "C10", "C11"):
        assert found[claim].verdict == SUPPORTED, claim
        assert "of this checkpoint alone" in found[claim].reason
    table = claims.claims(altered(study, {"arms": arms}))
    assert table.loc[table["role"] == "answer", "reason"].iloc[0].startswith("This checkpoint on hippo")


def test_rates_chosen_arm_by_arm_are_exploratory_and_carry_no_verdict(study):
    other = {"transfer": study.record.arms["transfer"]._replace(rates={0: (3e-3,)})}
    found = reasons(altered(study, {"arms": other}))
    for claim in ("C1", "C4b", "C9", "C10", "C11"):
        assert found[claim].verdict == UNDECIDED, claim
        assert "rates differ between what is compared: 0.001 (scratch), 0.003 (transfer)" in found[claim].exploratory
    assert found["C5"].exploratory == ""
    assert found["C4b"].quantities[0].grade == "no material difference"  # graded all the same
    assert found["C1"].needs.startswith("one learning rate for all arms")


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        ({"own_rate": True}, "were chosen for each arm by itself (transfer)"),
        ({"rates": {0: (3e-4, 1e-3)}}, "differ between what is compared: 0.0003 (transfer), 0.001 (transfer and"),
    ],
    ids=["of its own, if the same by chance", "by fold"],
)
def test_rates_of_their_own_carry_no_verdict_however_they_fell(study, changed, doubt):
    own = {"transfer": study.record.arms["transfer"]._replace(rates={0: (1e-3,)})._replace(**changed)}
    found = reasons(altered(study, {"arms": own}))
    for claim in ("C1", "C4b", "C9", "C10", "C11"):
        assert found[claim].verdict == UNDECIDED, claim
        assert doubt in found[claim].exploratory


def test_rules_newer_than_a_study_make_it_exploratory(study):
    found = reasons(study._replace(record=study.record._replace(rule_version=1)))
    assert found["C1"].verdict == SUPPORTED
    assert all("rules of version 2 on a study that was begun under version 1" in f.exploratory for f in found.values()
               if not f.lacks)  # fmt: skip


def looked(seeds, looks=(), grown_from=(), speed=1.6):
    speeds = {"scratch": 1.0, "transfer": speed}
    record = sim.record(*speeds)._replace(looks=looks, grown_from=grown_from)
    curves = sim.curves(rng(3), speeds, seeds=seeds, gain=0.0122, noise=0.003)
    return sim.study(record, curves=curves)


def test_declared_looks_have_their_levels_and_say_when_a_verdict_fell():
    early = claims.judging.judge_claims(looked(16, looks=(8, 16), speed=2.5))["C1"]
    assert (early.verdict, early.look) == (SUPPORTED, 8)
    assert early.quantities[0].confidence == pytest.approx(1 - 0.0054)
    late = claims.judging.judge_claims(looked(16, looks=(8, 16), speed=1.0))["C1"]
    assert (late.verdict, late.look) == (UNDECIDED, 16)
    assert late.quantities[0].confidence == pytest.approx(1 - 0.0492)
    before = claims.judging.judge_claims(looked(6, looks=(8, 16)))["C1"]
    assert before.verdict == UNDECIDED
    assert "the first look is at 8 seeds, has 6" in before.reason


def test_before_the_first_look_nothing_is_answered():
    early = placebo_too(10, looks=(16, 32))
    better = early.tables["cases"]["dsc"] + 0.05 * (early.tables["cases"]["arm"] == "transfer")
    table = claims.claims(changed(early, "cases", dsc=better)).set_index("role")
    answer = table.loc[["answer"]].iloc[0]
    assert answer["ci_low"] > 0
    assert (answer["grade"], answer["needs"]) == (UNDECIDED, "the first look is at 16 seeds, has 10")
    assert "material gain" not in answer["reason"]


def test_what_makes_the_gain_is_not_graded_before_the_first_look():
    levels = {"transfer": {0: 0.85}, "mean_var": {0: 0.8}, "first_1": {0: 0.849}, "scratch": {0: 0.8}}
    record = sim.record(*levels, first_1=sim.arm(init="pretrained:encoder/level_0"))
    cases = sim.cases(rng(0), levels, seeds=10, spread=(0.001, 0.001, 0.004))
    for looks, early in (((16, 32), True), ((8, 16), False)):
        table = claims.claims(sim.study(record._replace(looks=looks), cases=cases))
        graded = table[table["role"] == "graded"]
        assert set(graded["claim"]) == {"mean_var", "first_k"}
        assert graded["quantity"].str.startswith("fewest levels").any() != early
        assert (graded["needs"] == "the first look is at 16 seeds, has 10").all() == early
        assert (set(graded["grade"]) - {""} == {UNDECIDED}) == early


def test_runs_of_a_crossed_arm_are_no_seeds_of_the_study():
    eight, sixteen = looked(8, looks=(8, 16), speed=2.5), looked(16, looks=(8, 16), speed=2.5)
    rows = sixteen.tables["curves"]
    crossed = rows[rows["arm"] == "scratch"].assign(arm="crossed")
    arms = eight.record.arms | {"crossed": sim.arm(crossed=True)}
    more = sim.study(
        eight.record._replace(arms=arms), curves=pd.concat([eight.tables["curves"], crossed], ignore_index=True)
    )
    found = claims.judging.judge_claims(more)["C1"]
    assert (found.look, found.quantities[0].confidence) == (8, pytest.approx(1 - 0.0054))
    assert claims.judging.judged_evidence(more).level == 0.0054


def test_no_claim_is_judged_from_runs_of_crossed_streams():
    """They share starts and orders of batches: sixteen of them are not sixteen seeds."""
    study = looked(16, looks=(16,), speed=2.5)
    assert judged(study, "C1").verdict == SUPPORTED
    crossed = altered(study, {"arms": {"transfer": study.record.arms["transfer"]._replace(crossed=True)}})
    found = judged(crossed, "C1")
    assert (found.verdict, found.lacks) == ("", True)
    assert "runs of transfer share ids of crossed random streams" in found.needs


def test_undeclared_seeds_change_no_verdict_and_are_shown_apart():
    grown, first = looked(16, grown_from=(8,)), looked(16)
    found = claims.judging.judge_claims(grown)["C1"]
    only = claims.judging.judge_claims(claims.judging.first_seeds(first, 8))["C1"]
    assert found.quantities == only.quantities
    assert "looks were not declared: judged at the first 8 seeds, of 16" in found.reason
    table = claims.claims(grown)
    later = table[table["role"] == "all seeds"]
    assert (later["exploratory"].all(), set(later["verdict"]), later["n_seeds"].max()) == (True, {""}, 16)


def placebo_too(seeds, **more):
    """A study of two arms and the placebo, with a start that loads the first level of the encoder."""
    arms = ("scratch", "transfer", "scratch_b", "first_1")
    record = sim.record(*arms, first_1=sim.arm(init="pretrained:encoder/level_0"))._replace(**more)
    cases = sim.cases(rng(2), {arm: {0: 0.8} for arm in arms}, seeds=seeds)
    return sim.study(record, cases=cases)


@pytest.mark.parametrize(("more", "level"), [({"looks": (8, 32)}, 0.9946), ({"grown_from": (8,)}, 0.95)], ids=str)
def test_controls_rest_on_the_seeds_that_the_claim_rests_on(more, level):
    table = claims.claims(placebo_too(16, **more))
    judged = table[table["claim"] == "C4b"].set_index("role")
    assert judged.loc["claim", ["n_seeds", "confidence"]].tolist() == [8, pytest.approx(level)]
    for role in ("control", "graded"):
        rows = table[(table["role"] == role) & table["ci_low"].notna()]
        assert set(rows["n_seeds"]) == {8}, role
        assert rows["confidence"].tolist() == pytest.approx([0.95] * len(rows)), role


def test_label_swaps_of_eight_seeds_cannot_reach_the_level_of_a_first_look(study):
    assert judge_claim("C9", gather(study)).verdict == SUPPORTED
    found = judge_claim("C9", gather(study, level=0.0054))
    assert found.verdict == UNDECIDED
    assert found.needs == "more seeds: with 8 p is never below 0.0078, and the level is 0.0054"


def family(seed):
    """A study whose C7 is open, beside a speed-up."""
    draw, speeds = rng(seed), {"scratch": 1.0, "transfer": 1.35}
    levels = {"scratch": {0: 0.8}, "frozen_random_encoder": {0: 0.72}, "prior": {0: 0.3}}
    record = sim.record(*levels, "transfer")
    return sim.study(record, curves=sim.curves(draw, speeds, gain=0.0122), cases=sim.cases(draw, levels))


def test_claims_of_one_family_share_the_level():
    def decided(study, level):
        return judge_claim("C1", gather(study, level=level)).verdict == SUPPORTED

    narrow = next(s for s in map(family, range(99)) if decided(s, 0.05) and not decided(s, 0.025))
    found = claims.judging.judge_claims(narrow)
    assert (found["C7"].verdict, found["C1"].verdict) == (UNDECIDED, UNDECIDED)
    assert "supported alone, but not where it shares the level with C7 (Holm)" in found["C1"].reason
    clear = next(s for s in map(family, range(99)) if decided(s, 0.025))
    assert claims.judging.judge_claims(clear)["C1"].verdict == SUPPORTED
    alone = without(narrow, "frozen_random_encoder")  # a study that never asks about C7 shares nothing
    assert claims.judging.judge_claims(alone)["C1"].verdict == SUPPORTED


def test_what_would_decide_a_claim_counts_those_that_it_shares_the_level_with():
    def seeds(found):
        return int(re.match(r"about (\d+) seeds", found.needs)[1])

    def opened(study):
        return judge_claim("C1", gather(study)).verdict == UNDECIDED

    open_one = next(s for s in map(family, range(99)) if opened(s))
    found, alone = claims.judging.judge_claims(open_one), judge_claim("C1", gather(open_one))
    assert found["C7"].verdict == found["C1"].verdict == UNDECIDED
    assert seeds(found["C1"]) > seeds(alone)
    assert seeds(found["C1"]) == seeds(judge_claim("C1", gather(open_one), sharing=2))


def test_an_arm_whose_runs_all_diverged_is_asked_about_and_shares_the_level():
    study = next(s for s in map(family, range(9)))
    lost = study.tables["cases"].query("arm != 'frozen_random_encoder'")
    arms = study.record.arms | {"frozen_random_encoder": sim.arm(diverged=8)}
    gone = study._replace(record=study.record._replace(arms=arms), tables=study.tables | {"cases": lost})
    found = claims.judging.judge_claims(gone)["C7"]
    assert (found.verdict, found.lacks) == (VOID, False)
    assert "no scores of arm frozen_random_encoder: 8 of its" in found.reason


# ------------------------------------------------------------------------------------------------ void, sensitivity


def test_anatomy_alone_makes_the_frozen_encoder_void(study):
    cases = study.tables["cases"]
    near = cases["dsc"] + 0.35 * (cases["arm"] == "prior")
    found = judged(changed(study, "cases", dsc=near), "C7")
    assert found.verdict == VOID
    assert found.reason.startswith("the mean label map alone reaches 85% of scratch")


def test_fewer_cases_that_are_no_harder_make_the_slope_void(study):
    cases = study.tables["cases"]
    lost = cases["train_cases"].map({8: 0.2, 16: 0.1, 32: 0.05, 48: 0.02, 0: 0.0})
    found = judged(changed(study, "cases", dsc=cases["dsc"] + lost), "C4")
    assert found.verdict == VOID
    assert "fewer cases make no harder task here" in found.reason


def test_an_absence_counts_only_where_a_control_shows_the_effect():
    quiet = {"gain": 0.0122, "spread": 0.02, "noise": 0.001, "level_sd": 0.001}
    speeds = {"scratch": 1.0, "transfer": 1.0}
    found = judged(sim.study(sim.record(*speeds), curves=sim.curves(rng(1), speeds, **quiet)), "C1")
    assert (found.verdict, "nothing here could have shown it" in found.reason) == (UNDECIDED, True)
    assert found.needs.startswith("an arm self_transfer that shows the effect")
    speeds["self_transfer"] = 2.0
    curves = sim.curves(rng(1), speeds, **quiet)
    found = judged(sim.study(sim.record(*speeds), curves=curves), "C1")
    assert found.verdict == CONTRADICTED
    control = curves["arm"] == "self_transfer"
    few = sim.study(sim.record(*speeds), curves=curves[~control | (curves["seed"] < 3)])
    assert judged(few, "C1").verdict == UNDECIDED
    other_rate = {"self_transfer": sim.arm(rates={0: (1e-2,)}), "scratch": sim.arm(rates={0: (1e-3,)})}
    assert judged(sim.study(sim.record(*speeds, **other_rate), curves=curves), "C1").verdict == UNDECIDED
    # It leaves no cases to train its source on if it takes them all: those of its largest size count.
    sizes = sim.at_sizes(curves, (8, 16, 0))
    largest = sizes[(sizes["train_cases"] > 0) | (sizes["arm"] != "self_transfer")]
    without_all = sim.study(sim.record(*speeds), curves=largest)
    assert judged(without_all, "C1").verdict == CONTRADICTED
    shown = claims.claims(without_all).query("role == 'control' and arm == 'self_transfer' and claim == 'C1'")
    assert set(shown["train_cases"]) == {16}
    assert set(shown["verdict"]) == {SUPPORTED}
    assert shown["reason"].str.contains("its source is the target task itself, with 16 training cases; ").all()
    slow = {"scratch": 1.0, "transfer": 0.5}
    found = judged(sim.study(sim.record(*slow), curves=sim.curves(rng(1), slow, **quiet)), "C1")
    assert (found.verdict, "slower" in found.reason) == (CONTRADICTED, True)


def of_rule(claim, sensitive, **quantities):
    """A claim's verdict by its rule, from quantities by key: value, low and high."""
    made = tuple(Quantity(key, *limits, key=key, scale=OF_DSC) for key, limits in quantities.items())
    return judge(claim, Measured(made, falls_with_size, sensitive=lambda: sensitive))


def test_an_absence_that_does_not_count_takes_no_support_away():
    falling = {"slope": (-0.0015, -0.0025, -0.0005), "smallest": (0.006, 0.003, 0.009)}
    found = of_rule("C4", False, **falling)
    assert (found.verdict, "gain at the smallest size" in found.reason) == (SUPPORTED, True)
    both = of_rule("C4", True, **falling)  # there, so small a gain is an absence as well
    assert (both.verdict, "meets both" in both.reason) == (UNDECIDED, True)
    rising = falling | {"slope": (0.0015, 0.0005, 0.0025)}
    assert of_rule("C4", False, **rising).needs.startswith("an arm self_transfer that shows the effect")
    assert of_rule("C4", True, **rising).verdict == CONTRADICTED


def test_an_encoder_that_does_no_better_than_none_is_idle(study):
    cases = study.tables["cases"]
    pooled = cases["dsc"] + 0.12 * (cases["arm"] == "pooled_encoder")
    found = judged(changed(study, "cases", dsc=pooled), "C8")
    assert found.verdict == UNDECIDED
    assert "the encoder is idle" in found.reason
    worse = cases["dsc"] - 0.3 * (cases["arm"] == "frozen_random_encoder")
    found = reasons(changed(study, "cases", dsc=worse))
    assert found["C7"].verdict == found["C8"].verdict == CONTRADICTED


def test_nothing_at_all():
    found = claims.claims(StudyTables(sim.record("scratch"), {}))
    assert set(found["role"]) == {"lacking", "answer", "target"}
    assert "nothing to compare" in found.loc[found["role"] == "answer", "reason"].item()


def test_diverged_runs_are_named(study):
    arm = study.record.arms["transfer"]._replace(diverged=2, runs=10)
    assert "2 of 10 runs of transfer" in reasons(altered(study, {"arms": {"transfer": arm}}))["C4b"].reason


def test_source_networks_that_would_decide_are_not_called_seeds():
    levels = {"scratch": {0: 0.8}, "transfer": {0: 0.81}}
    cases = sim.cases(rng(1), levels, groups=42, spread=(0.01, 0.001, 0.01), seeds=16)
    record = sim.record(*levels, transfer=sim.arm(sources={seed: seed // 2 for seed in range(16)}))
    found = judged(sim.study(record, cases=cases), "C4b")
    networks = int(found.needs.split()[1])
    assert found.needs == f"about {networks} source networks ({2 * networks} seeds), if the estimate stays"
    few = cases[cases["seed"] < 14]
    reason = judged(sim.study(record, cases=few), "C4b").reason
    assert reason == "needs at least 8 source networks (16 seeds), has 7"


def test_what_would_decide_an_undecided_gain():
    levels = {"scratch": {0: 0.8}, "transfer": {0: 0.79}}
    few = sim.cases(rng(1), levels, groups=42, spread=(0.02, 0.001, 0.01))
    found = judged(sim.study(sim.record(*levels), cases=few), "C4b")
    assert found.verdict == UNDECIDED
    seeds = int(found.needs.split()[1])
    more = sim.cases(rng(1), levels, groups=42, spread=(0.02, 0.001, 0.01), seeds=2 * seeds)
    later = judged(sim.study(sim.record(*levels), cases=more), "C4b").quantities[0]
    assert (later.high - later.low) < 0.75 * (found.quantities[0].high - found.quantities[0].low)
    patients = sim.cases(rng(3), levels, groups=4, spread=(0.001, 0.05, 0.01))
    found = judged(sim.study(sim.record(*levels), cases=patients), "C4b")
    assert "the patients limit it" in found.needs or "no realistic number" in found.needs
    assert dataclasses.replace(found.quantities[0], low=-1.0, high=-0.5).grade == "material loss"
