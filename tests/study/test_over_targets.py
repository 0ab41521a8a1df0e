"""Verdicts over several studies."""

import numpy as np

from jaxseg.study import claims
from jaxseg.study.claims import over_targets
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import CONTRADICTED, INCONCLUSIVE, SUPPORTED
from jaxseg.study.claims.rules import NOISE_LEVELS
from jaxseg.study.claims.study_tables import StudyTables
from simulated import tables as sim
from tests.study.whole_study import changed, rng, verdict


def gains_study(seed, target, gain, sizes=(0,), source="blobs"):
    levels = {"scratch": dict.fromkeys(sizes, 0.75), "transfer": dict.fromkeys(sizes, 0.75 + gain)}
    record = sim.record(*levels, target=target)._replace(source=source)
    return sim.study(record, cases=sim.cases(rng(seed), levels, spread=(0.002, 0.002, 0.005)))


def over(table, claim):
    return verdict(table, claim, "over studies")


def test_two_targets_must_support():
    one = claims.over_studies({"a": gains_study(0, "hippo", 0.0), "b": gains_study(1, "hippo", 0.0)})
    assert over(one, "C4b")["verdict"] == INCONCLUSIVE
    assert over(one, "C4b")["reason"].startswith("of 1 independent targets 1 support (hippo) and 0 contradict")
    two = claims.over_studies({"a": gains_study(0, "hippo", 0.0), "b": gains_study(1, "nerve", 0.0)})
    assert over(two, "C4b")["verdict"] == SUPPORTED
    three = {"a": gains_study(0, "hippo", 0.0), "b": gains_study(1, "nerve", 0.0), "c": gains_study(2, "lung", 0.03)}
    found = over(claims.over_studies(three), "C4b")
    assert found["verdict"] == INCONCLUSIVE
    assert found["reason"].startswith("mixed: of 3 independent targets 2 support")
    assert "1 contradict (lung)" in found["reason"]


def test_two_phases_of_the_same_hearts_are_one_target():
    both = {"ed": gains_study(0, "cardiac_ed_mr", 0.0), "es": gains_study(1, "cardiac_es_mr", 0.0)}
    # Cases of these studies have the same names, but no groups: names of cases say nothing.
    assert over(claims.over_studies(both), "C4b")["verdict"] == SUPPORTED
    hearts = {
        name: changed(study, "cases", case=study.tables["cases"]["group"] + f"_{name}") for name, study in both.items()
    }
    found = over(claims.over_studies(hearts), "C4b")
    assert found["verdict"] == INCONCLUSIVE
    assert "of 1 independent targets 1 support (cardiac_ed_mr + cardiac_es_mr)" in found["reason"]
    liver = changed(hearts["ed"], "cases", group="liver " + hearts["ed"].tables["cases"]["group"])
    three = hearts | {"liver": liver._replace(record=liver.record._replace(target="liver"))}
    assert over(claims.over_studies(three), "C4b")["verdict"] == SUPPORTED


def test_cells_of_several_targets():
    found = over(claims.over_studies({"a": gains_study(0, "hippo", 0.05), "b": gains_study(1, "nerve", 0.0)}), "C2")
    assert found["verdict"] == SUPPORTED
    assert "hippo" not in found["quantity"]  # cells are named after studies, of which a target may have several
    assert found["quantity"] == "gain, a, 64 training cases"


def test_a_pilot_of_few_seeds_is_left_out_of_the_cells_and_named():
    sound = {"a": gains_study(0, "hippo", 0.05), "b": gains_study(1, "nerve", 0.0)}
    pilot = gains_study(2, "lung", 0.0)
    cases = pilot.tables["cases"]
    few = pilot._replace(tables={"cases": cases[cases["seed"] < 4]})
    found = over(claims.over_studies(sound | {"pilot": few}), "C2")
    assert found["verdict"] == SUPPORTED
    assert found["reason"].endswith("left out: pilot (needs at least 8 seeds, has 4)")
    assert found["ci_low"] == over(claims.over_studies(sound), "C2")["ci_low"]  # nor does it widen intervals
    alone = over(claims.over_studies({"a": sound["a"], "pilot": few}), "C2")
    assert (alone["verdict"], "needs at least 2" in alone["reason"]) == (INCONCLUSIVE, True)


def test_a_claim_that_says_can_needs_one_target_at_a_shared_level(study):
    one = study._replace(tables={name: study.tables[name] for name in ("similarity", "pairs")})
    other = StudyTables(study.record._replace(target="nerve"), {})
    found = claims.over_studies({"a": one, "b": other})
    assert over(found, "C10")["verdict"] == SUPPORTED
    assert over(found, "C9")["verdict"] == INCONCLUSIVE
    assert "needs 2 that support" in over(found, "C9")["reason"]


def test_harder_tasks_over_noise_levels_and_targets():
    noisy = {level: gains_study(i, "hippo", 0.01 + 0.02 * i) for i, level in enumerate(NOISE_LEVELS)}
    targets = {str(i): gains_study(i, f"t{i}", 0.01) for i in range(5)}
    for i, one in enumerate(targets.values()):
        lower = one.tables["cases"]["dsc"] - 0.1 * i + 0.01 * i * (one.tables["cases"]["arm"] == "transfer")
        one.tables["cases"]["dsc"] = lower
    found = over(claims.over_studies(targets, noisy=noisy), "C3")
    assert found["verdict"] == SUPPORTED, found["reason"]
    less = over(claims.over_studies(targets, noisy={0.25: noisy[0.25]}), "C3")
    assert "needs noise levels 0.25, 0.5, 1.0, 2.0; lacks 0.5, 1.0, 2.0" in less["reason"]
    few = over(claims.over_studies({k: targets[k] for k in "0123"}, noisy=noisy), "C3")
    assert "needs at least 5 targets of one source and training set size, has 4" in few["reason"]
    falling = {level: gains_study(i, "hippo", 0.07 - 0.02 * i) for i, level in enumerate(NOISE_LEVELS)}
    assert over(claims.over_studies(targets, noisy=falling), "C3")["verdict"] == CONTRADICTED


def test_harder_tasks_are_those_of_the_source_and_size_that_most_targets_share():
    one, pair = {str(i): gains_study(i, f"t{i}", 0.01, sizes=(8, 16)) for i in range(3)}, Pair()
    others = {
        "another source": gains_study(3, "t0", 0.01, sizes=(8, 16), source="shapes"),
        "another size": gains_study(4, "t1", 0.01),
        "small": gains_study(5, "t3", 0.01, sizes=(8,)),
    }
    evidences = {name: gather(study) for name, study in (others | one).items()}
    targets = {name: study.record.target for name, study in (others | one).items()}
    found = over_targets.of_one_source(evidences, targets, pair)
    assert found == {f"t{i}": evidences[str(i)] for i in range(3)} | {"t3": evidences["small"]}
    del evidences["small"]
    assert over_targets.of_one_source(evidences, targets, pair) == {f"t{i}": evidences[str(i)] for i in range(3)}
    assert over_targets.of_one_source({}, {}, pair) == {}


def test_difficulty_is_never_measured_on_the_seeds_of_the_gain():
    # Scratch's luck, not its task, is all that differs between these targets: unlucky seeds make gains.
    draw = rng(0)
    rho = []
    for _ in range(8):
        by_target = {}
        for i in range(6):
            levels = {"scratch": {0: 0.75}, "transfer": {0: 0.77}}
            cases = sim.cases(draw, levels, spread=(0.05, 0.0, 0.001))
            by_target[str(i)] = gather(sim.study(sim.record(*levels, target=str(i)), cases=cases))
        rho.append(over_targets.c3(by_target, {}, Pair()).quantities[0].value)
    assert np.mean(rho) < 0.5


def test_points_of_a_sweep_with_noise_are_the_noise_levels_of_one_target():
    plain = {"a": gains_study(0, "hippo", 0.0), "b": gains_study(1, "nerve", 0.0)}
    levels = {"c": ("nerve", 0.25), "d": ("hippo", 0.25), "e": ("nerve", 0.5)}
    noisy = {
        name: plain["a"]._replace(record=plain["a"].record._replace(target=target, noise=noise))
        for name, (target, noise) in levels.items()
    }
    studies, found = claims.made_noisy(plain | noisy)
    assert studies == plain
    assert found == {0.25: noisy["c"], 0.5: noisy["e"]}
    assert claims.made_noisy(plain) == (plain, {})
