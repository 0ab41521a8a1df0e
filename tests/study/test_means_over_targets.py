"""What rules ask of the means over targets where targets know different quantities, or have several studies."""

from __future__ import annotations

import dataclasses

import pytest

from jaxseg.study.claims import over_targets, pooling
from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED, UNDECIDED, Finding, Quantity
from jaxseg.study.claims.judging import JUDGES
from jaxseg.study.claims.told import TargetStudy, Told
from simulated import tables as sim


def number(key: str, value: float, half: float = 0.5, *, count: int = 1, thresholds: tuple[float, ...] = (0.0,)):
    """A quantity of a study with 8 seeds, whose interval shares the level with others."""
    more = {"df": 7, "confidence": 1 - 0.05 / count, "n_seeds": 8, "fall": 0.0, "rise": 0.0}
    return Quantity(key, value, value - half, value + half, key=key, thresholds=thresholds, **more)


def target_study(claim: str, *quantities: Quantity, target: str) -> TargetStudy:
    """What a study tells that can speak of one claim alone."""
    claims = {name: Told(left_out="no table") for name in JUDGES} | {claim: Told(quantities)}
    return TargetStudy(sim.record("scratch", "transfer", target=target), frozenset(), claims, {})


def judged(claim: str, *studies: tuple[Quantity, ...], targets: str = "abcdefghij") -> Finding:
    made = (target_study(claim, *own, target=target) for own, target in zip(studies, targets, strict=False))
    return over_targets.judge_over({f"s{i}": one for i, one in enumerate(made)})[claim].finding


def angles(**by_rate: float) -> tuple[Quantity, ...]:
    """The angles of C5 at rates such as `e3`, 1e-3."""
    rates = {f"{float(f'1{name[:1]}-{name[1:]}'):g}": value for name, value in by_rate.items()}
    return tuple(number(f"angle {rate}", at, count=len(rates), thresholds=(30, 45)) for rate, at in rates.items())


def test_angles_are_pooled_whatever_rates_the_targets_have():
    little = judged("C5", angles(e3=10), angles(e3=11), angles(e4=10, e3=60), angles(e4=9))
    assert little.verdict == SUPPORTED
    assert [q.key for q in little.quantities] == ["angle slowest", "angle fastest"]
    much = judged("C5", angles(e3=60), angles(e3=59), angles(e4=58, e3=60), angles(e5=61))
    assert much.verdict == CONTRADICTED
    # The faster of the rates that train as well does not contradict what the slower leaves open.
    split = judged("C5", *[angles(e4=35, e3=60 + i) for i in range(5)])
    assert split.verdict == UNDECIDED


def deep(early: float, **levels: float) -> tuple[Quantity, ...]:
    """The reuse of deep encoder levels and of the early ones, as C11 has them."""
    found = [
        number(f"reuse encoder/{name}", at, 0.02, count=len(levels), thresholds=(0.05, 0.1))
        for name, at in levels.items()
    ]
    return (*found, number("early", early, 0.02, thresholds=(0.1,)))


def test_a_level_that_few_targets_know_is_not_one_that_is_not_reused():
    alone = [deep(0.5, level_2=0.0)] * 2 + [deep(0.5, level_3=0.0)] * 3
    found = judged("C11", *alone)
    assert found.verdict == UNDECIDED
    assert "fewer than 4 targets know reuse encoder/level_2, reuse encoder/level_3" in found.reason
    both = [deep(0.5 + i / 100, level_2=0.0) for i in range(4)]
    assert judged("C11", *both).verdict == CONTRADICTED
    assert judged("C11", *both, deep(0.5, level_3=0.3)).verdict == UNDECIDED


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_the_level_of_a_mean_is_not_that_of_the_study_named_first(order):
    studies = [deep(0.5, level_2=0.07), deep(0.5, level_2=0.07, level_3=0.01, level_4=0.01)]
    found = judged("C11", *(studies[i] for i in order), deep(0.52, level_2=0.08), deep(0.5, level_2=0.075))
    by_key = {q.key: q for q in found.quantities}
    assert by_key["reuse encoder/level_2"].confidence == pytest.approx(0.95)
    assert [q.key for q in found.quantities][:2] == ["reuse encoder/level_2", "early"]
    five = judged("C11", *[deep(0.5, level_2=0.07, level_3=0.01)] * 5)
    assert {q.key: q.confidence for q in five.quantities}["reuse encoder/level_3"] == pytest.approx(0.975)


def test_patients_of_several_studies_of_one_target_count_once():
    """Target a has two studies of its 5 and 7 test groups, the others one study of 10 each."""
    groups = {"a": (5, 7), "b": (10,), "c": (10,), "d": (10,)}
    gains = {
        target: [dataclasses.replace(number("gain", 0.01 * n), n_groups=n) for n in own]
        for target, own in groups.items()
    }
    whole, _ = pooling.over_mean("gain", gains)
    assert (whole.n_groups, whole.n_seeds) == (7 + 30, 8)
    for order in (gains["a"], gains["a"][::-1]):
        assert pooling.average(order, 0.95).n_groups == 7


def test_seeds_that_were_added_without_looks_make_a_verdict_over_targets_exploratory():
    quantities = (number("gain", 0.0, 0.001, thresholds=(0.01,)),)
    made = {target: target_study("C4b", quantities[0], target=target) for target in "abcd"}
    assert over_targets.judge_over(made)["C4b"].finding.exploratory == ""
    later = made["a"]._replace(record=made["a"].record._replace(grown_from=(8,)))
    found = over_targets.judge_over(made | {"a": later})
    assert found["C4b"].finding.exploratory == "a: seeds were added without declared looks"
    declared = made["a"]._replace(record=later.record._replace(looks=(8, 16)))
    assert over_targets.judge_over(made | {"a": declared})["C4b"].finding.exploratory == ""
    assert over_targets.over_studies(made | {"a": later}).set_index("claim").loc["C4b", "exploratory"]


def leads(value: float, *others: float) -> tuple[Quantity, ...]:
    levels = [f"lead encoder/level_{2 + i}" for i in range(1 + len(others))]
    return tuple(number(key, at, 0.1, count=len(levels)) for key, at in zip(levels, (value, *others), strict=True))


def test_several_studies_of_one_target_are_one_chance():
    # Alone, the first study would support at the level over the number of targets.
    assert judged("C11b", leads(0.15)).verdict == SUPPORTED
    chances = [leads(0.15), *[leads(-0.01)] * 9]
    found = judged("C11b", *chances, targets="a" * 10)
    assert found.verdict == UNDECIDED
    assert found.reason.startswith("of 1 targets 0 support at level 0.05 (none)")
    both = judged("C11b", leads(0.15), leads(0.14), leads(-0.01), targets="aab")
    assert (both.verdict, both.quantities[0].value) == (SUPPORTED, 2)


def test_levels_that_only_some_studies_of_a_target_know_share_its_level():
    # Either is just above nothing at 95 %, and both together at 97.5 % are not.
    alone = (number("lead encoder/level_2", 0.11, 0.1),)
    other = (number("lead encoder/level_3", 0.11, 0.1),)
    assert judged("C11b", alone).verdict == SUPPORTED
    assert judged("C11b", alone, other, targets="aa").verdict == UNDECIDED


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_mean_has_its_name_whichever_study_leaves_it_out(order: str):
    """A study names no second ratio that equals its first; the mean is named after one that does."""
    named = {"a": number("against", 1.2), "b": dataclasses.replace(number("against", 1.3), name="")}
    by = {target: [named[target]] for target in order} | {other: [number("against", 1.1)] for other in "cd"}
    mean, _ = pooling.over_mean("against", by)
    assert mean.name == f"{named['a'].name}, mean over 4 targets"
