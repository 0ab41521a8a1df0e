"""C2, C4, C4b, C7: claims about DSC, each a linear contrast of arms with seeds and groups both random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxseg.analysis.statistics import two_way_interval
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    doubts_of_arms,
    doubts_of_groups,
    dsc_contrast,
    gain,
)
from jaxseg.study.claims.findings import Finding, Lacking, Quantity, few_seeds, judge, quantity
from jaxseg.study.claims.gate import gated
from jaxseg.study.claims.rules import BAND, DELTA, FLAT_SLOPE, MIN_SIZES, OF_SCRATCH, VOID


class Trio(NamedTuple):
    """Arms of C7."""

    frozen: str = "frozen_random_encoder"
    scratch: str = "scratch"
    prior: str = "prior"


def of_dsc(name: str, d: Float[np.ndarray, "seeds groups"], level: float, size: int | None = None) -> Quantity:
    """A contrast of DSC with its two-way interval."""
    num_seeds, num_groups = d.shape
    return quantity(name, two_way_interval(d, confidence=1 - level), num_seeds, num_groups, size)


def sizes_with(evidence: Evidence, pair: Pair) -> list[int]:
    """Training set sizes at which both arms have scores, by number of cases; one number of cases counts once."""
    record, sizes = evidence.record, {}
    for size, scores in evidence.scores.items():
        if set(pair) <= scores.seeds.keys():
            sizes[record.number_of_cases(size)] = size
    return [sizes[number] for number in sorted(sizes)]


def common_rows(
    contrasts: Sequence[tuple[Seeds, Float[np.ndarray, "seeds groups"]]], what: str
) -> Float[np.ndarray, "contrasts seeds groups"]:
    """Contrasts on the seeds that all of them have; their groups must be the same."""
    seeds = contrasts[0][0]
    for own, _ in contrasts:
        seeds = np.intersect1d(seeds, own)
    if len({d.shape[1] for _, d in contrasts}) > 1:
        raise Lacking(f"{what} have different test groups")
    return np.stack([d[np.isin(own, seeds)] for own, d in contrasts])


def slope(
    x: Sequence[float] | Float[np.ndarray, " points"], d: Float[np.ndarray, "points seeds groups"]
) -> Float[np.ndarray, "seeds groups"]:
    """Least-squares slope over the points, seed by seed and group by group: a linear contrast like any other."""
    centred = np.asarray(x, np.float64) - np.mean(x)
    return np.tensordot(centred / np.sum(centred**2), d, 1)


def _doubts(evidence: Evidence, pair: Pair, d: Float[np.ndarray, "seeds groups"]) -> list[str]:
    return [*few_seeds(d.shape[0]), *doubts_of_groups(d.shape[1]), *doubts_of_arms(evidence, pair.arm)]


def _doubts_of_draws(evidence: Evidence) -> list[str]:
    """Sizes are compared only where a size means more than the one draw of cases that every seed was given."""
    if not evidence.record.one_draw:
        return []
    return ["all seeds share one draw of the training cases at each smaller size; needs subset in vary"]


def doubts_of_cell(cell: Cell, pair: Pair) -> list[str]:
    """What forbids a verdict on one cell of C2 alone."""
    return _doubts(cell.evidence, pair, gain(cell.evidence, pair, cell.size).d)


class Cell(NamedTuple):
    """The gain on one target at one training set size."""

    name: str
    evidence: Evidence
    size: int


def c2_cells(cells: Sequence[Cell], pair: Pair, level: float) -> Finding:
    """The gain depends on task and data: over cells of one or several studies, Bonferroni over cells."""
    if len(cells) < 2:
        raise Lacking(f"needs at least 2 training set sizes or targets, has {len(cells)}")
    gains = [gain(cell.evidence, pair, cell.size).d for cell in cells]
    quantities = [
        of_dsc(f"gain, {cell.name}", d, level / len(cells), cell.size) for cell, d in zip(cells, gains, strict=True)
    ]
    doubts: list[str] = []
    for cell, d in zip(cells, gains, strict=True):
        doubts += _doubts(cell.evidence, pair, d)
    targets = [cell.evidence.record.target for cell in cells]
    if len(set(targets)) < len(targets):
        doubts += [doubt for cell in cells for doubt in _doubts_of_draws(cell.evidence)]
    # Limits are known wherever there is no doubt.
    lows, highs = [q.low for q in quantities], [q.high for q in quantities]
    return judge(
        "C2",
        quantities,
        supported=max(lows) > DELTA and min(highs) < max(lows),
        contradicted=max(highs) - min(lows) <= BAND,
        doubts=list(dict.fromkeys(doubts)),
    )


def size_name(evidence: Evidence, size: int) -> str:
    """For quantities: how many training cases."""
    return f"{evidence.record.number_of_cases(size)} training cases"


def c2(evidence: Evidence, pair: Pair) -> Finding:
    """The gain depends on data: over the training set sizes of one study."""
    for arm in pair:
        evidence.arm(arm)
    cells = [Cell(size_name(evidence, size), evidence, size) for size in sizes_with(evidence, pair)]
    return c2_cells(cells, pair, evidence.level)


def c4(evidence: Evidence, pair: Pair) -> Finding:
    """The gain is larger when data is smaller: slope of the gain over doublings of the training set."""
    for arm in pair:
        evidence.arm(arm)
    sizes = sizes_with(evidence, pair)
    if len(sizes) < MIN_SIZES:
        raise Lacking(f"needs at least {MIN_SIZES} training set sizes, has {len(sizes)}")
    gains = [gain(evidence, pair, size) for size in sizes]
    d = common_rows([(found.seeds, found.d) for found in gains], "training set sizes")
    x = [math.log2(evidence.record.number_of_cases(size)) for size in sizes]
    change = of_dsc("slope of the gain a doubling", slope(x, d), evidence.level, -1)
    smallest = of_dsc(f"gain, {size_name(evidence, sizes[0])}", gains[0].d, evidence.level, sizes[0])
    return judge(
        "C4",
        [change, smallest],
        supported=change.high < 0 and smallest.low > DELTA,
        contradicted=change.low > FLAT_SLOPE,
        doubts=[*_doubts(evidence, pair, d[0]), *_doubts_of_draws(evidence)],
    )


def c4b(evidence: Evidence, pair: Pair) -> Finding:
    """No gain at full size."""
    d = gain(evidence, pair).d
    found = of_dsc(f"gain, {size_name(evidence, evidence.size)}", d, evidence.level)
    doubts = _doubts(evidence, pair, d)
    number, full = evidence.record.number_of_cases(evidence.size), evidence.record.full_size
    if number < full:
        doubts.append(f"needs all {full} training cases (train_cases 0), has at most {number}")
    return judge(
        "C4b",
        [found],
        supported=found.low > -DELTA and found.high < DELTA,
        contradicted=found.low > DELTA or found.high < -DELTA,
        doubts=doubts,
    )


def accurate_without_encoder(evidence: Evidence, arms: Trio) -> Finding:
    """C7 without its gate."""
    frozen, scratch, prior = arms
    margins = [
        (f"{frozen} - {OF_SCRATCH} {scratch}", {frozen: 1.0, scratch: -OF_SCRATCH}),
        (f"{frozen} - 0.5 {scratch} - 0.5 {prior}", {prior: -0.5, frozen: 1.0, scratch: -0.5}),
        (f"{prior} - {VOID} {scratch}", {prior: 1.0, scratch: -VOID}),
    ]
    over_scratch, over_half, prior_over = (
        of_dsc(name, dsc_contrast(evidence, weights).d, evidence.level) for name, weights in margins
    )
    doubts = [*few_seeds(over_scratch.n_seeds), *doubts_of_groups(over_scratch.n_groups)]
    if prior_over.value >= 0:
        doubts.append(f"void: the mean label map alone reaches {VOID:.0%} of {scratch}")
    return judge(
        "C7",
        [over_scratch, over_half, prior_over],
        supported=over_scratch.low > 0 and over_half.low > 0,
        contradicted=over_scratch.high < 0,
        doubts=doubts,
        shown=[over_scratch, over_half],
    )


def c7(evidence: Evidence, arms: Trio) -> Finding:
    """A frozen random encoder is quite accurate: 0.9 of scratch, and above half way from the prior to it."""
    return gated(
        evidence,
        lambda scratch: accurate_without_encoder(evidence, arms._replace(scratch=scratch)),
        (arms.scratch, arms.frozen),
        arms.scratch,
    )
