"""C4, C4b: the gain by training set size, and with all cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxseg.study.claims.controls import POSITIVE_CONTROL
from jaxseg.study.claims.dsc import blocks_of, dsc_quantity, gain, gain_weights, of_blocks, size_name, sizes_with
from jaxseg.study.claims.evidence import Evidence, Pair, doubts_of_rates, scope_of
from jaxseg.study.claims.findings import Lacking, Measured, Quantity, Ruling, Void, unique
from jaxseg.study.claims.rules import DELTA, MIN_SIZES, SIZE_MATTERS


def doubts_of_draws(evidence: Evidence, pair: Pair) -> list[str]:
    """Returns the doubt that a comparison of sizes rests on a single draw of cases, which all seeds of an arm share."""
    if not any(evidence.arm(arm).one_draw for arm in pair):
        return []
    return ["all seeds share one draw of the training cases at each smaller size; needs subset in vary"]


def slope_weights(evidence: Evidence, pair: Pair, sizes: list[int]) -> dict[tuple[str, int], float]:
    """Returns the weights whose contrast is the least-squares slope of the gain per doubling of the training set."""
    x = np.log2([evidence.record.number_of_cases(size) for size in sizes])
    centred = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    weights: dict[tuple[str, int], float] = {}
    for size, weight in zip(sizes, centred, strict=True):
        weights |= gain_weights(pair, size, float(weight))
    return weights


def falls_with_size(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Supports the claim if the gain falls as cases are added and is present at the smallest size."""
    slope, smallest = found["slope"], found["smallest"]
    supported = slope.high < 0 and smallest.low > 0
    absent = slope.low > 0 or smallest.high < DELTA
    return Ruling(supported, sensitive and absent, f"{smallest.grade} at the smallest size" if supported else "")


def c4(evidence: Evidence, pair: Pair) -> Measured:
    """Tests whether the gain is larger when data is smaller, by its slope over doublings of the training set.

    Raises `Void` if fewer cases do not make the task harder, that is if scratch loses nothing by them.
    """
    for arm in pair:
        evidence.arm(arm)
    sizes = sizes_with(evidence, pair)
    if len(sizes) < MIN_SIZES:
        raise Lacking(f"needs at least {MIN_SIZES} training set sizes, has {len(sizes)}")
    fewest, most = sizes[0], sizes[-1]
    lost = of_blocks(
        f"{pair.baseline}, {size_name(evidence, most)} less {size_name(evidence, fewest)}",
        blocks_of(evidence, {(pair.baseline, most): 1.0, (pair.baseline, fewest): -1.0}),
        evidence.confidence,
        key="lost",
        train_cases=-1,
    )
    name = "slope of the gain a doubling of the training set"
    slope, doubts = dsc_quantity(evidence, name, slope_weights(evidence, pair, sizes), key="slope", size=-1)
    smallest, more = gain(evidence, pair, fewest, key="smallest")
    doubts = [*doubts, *more, *doubts_of_draws(evidence, pair), *doubts_of_rates(evidence, *pair, sizes=sizes)]
    if not doubts and not lost.low > SIZE_MATTERS:
        raise Void(f"{lost.text()}: low not above {SIZE_MATTERS}, so that fewer cases make no harder task here")
    return Measured(
        (slope, smallest, lost),
        falls_with_size,
        unique(doubts),
        (pair.baseline, pair.arm),
        scope_of(evidence, pair.arm),
        lambda: gains(evidence, fewest),
    )


def gains(evidence: Evidence, size: int) -> bool:
    """Returns whether the positive control gains over scratch at a training set size, without a doubt about it."""
    control = Pair(POSITIVE_CONTROL)
    try:
        found, doubts = gain(evidence, control, size)
        return not [*doubts, *doubts_of_rates(evidence, *control, sizes=(size,))] and found.low > 0
    except (Lacking, Void):
        return False


def is_none(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Supports the claim if there is no material gain. A loss is no gain either; the grade tells them apart."""
    full = found["gain"]
    return Ruling(full.high < DELTA, full.low > DELTA, "there is a loss" if full.high < 0 else "")


def c4b(evidence: Evidence, pair: Pair) -> Measured:
    """Tests for non-superiority at full size; raises `Lacking` if the study never trains on all cases."""
    number, full = evidence.record.number_of_cases(evidence.size), evidence.record.full_size
    if number < full:
        raise Lacking(f"needs all {full} training cases (train_cases 0), has at most {number}")
    found, doubts = gain(evidence, pair)
    found = dataclasses.replace(found, thresholds=(DELTA,))
    doubts = [*doubts, *doubts_of_rates(evidence, *pair)]
    return Measured((found,), is_none, unique(doubts), (pair.baseline, pair.arm), scope_of(evidence, pair.arm))
