"""C2, C3: whether gains differ between targets or training set sizes, and whether harder tasks gain more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxseg.analysis.folds import fold_interval, standard_error
from jaxseg.analysis.random_effects import heterogeneity, regression_slope, welch_p
from jaxseg.study.claims.accuracy import doubts_of_draws
from jaxseg.study.claims.controls import PLACEBO
from jaxseg.study.claims.dsc import Blocks, blocks_of, gain, gain_weights, of_blocks, size_name, sizes_with
from jaxseg.study.claims.evidence import Evidence, Pair, Seeds, doubts_of_rates, scope_of, units
from jaxseg.study.claims.findings import Lacking, Measured, Quantity, Ruling, quantity, unique
from jaxseg.study.claims.needs import MAX_TARGETS
from jaxseg.study.claims.rules import LEVEL, MIN_CELLS, MIN_TARGETS_C3, NOISE_LEVELS, TAU
from jaxseg.text import significant_interval


class Cell(NamedTuple):
    """The gain on one target or at one training set size, as the test of equality needs it."""

    gain: Quantity
    variance: float
    df: float


def cell_of(found: Quantity) -> Cell:
    """Returns the cell of a gain that is measured on a target of its own."""
    return Cell(found, standard_error(found.low, found.high, found.df, found.confidence) ** 2, found.df)


def differ(level: float) -> Callable[[Mapping[str, Quantity], bool], Ruling]:
    """Returns the rule of C2 at a significance level."""

    def rule(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
        tau, p = found["tau"], found["p"]
        return Ruling(p.value <= level and tau.value >= TAU, tau.high < TAU)

    return rule


def differences(cells: Sequence[Cell], level: float, what: str) -> tuple[Quantity, ...]:
    """Computes tau of the gains with its limits, Welch's p for their equality, and the gains themselves.

    Raises `Lacking` if there are fewer than five gains.
    """
    if len(cells) < MIN_CELLS:
        raise Lacking(f"needs at least {MIN_CELLS} {what}, has {len(cells)}")
    y, v, df = (np.array(column) for column in zip(*((c.gain.value, c.variance, c.df) for c in cells), strict=True))
    seeds = min(cell.gain.n_seeds for cell in cells)
    if not np.isfinite(v).all() or not (v > 0).all():
        tau, p = Quantity("tau of the gain", math.nan, key="tau", n_seeds=seeds), math.nan
    else:
        found = heterogeneity(y, v, df, confidence=1 - level)
        tau = Quantity(
            f"tau of the gain over {len(cells)} {what}",
            found.tau,
            found.low,
            found.high,
            confidence=1 - level,
            key="tau",
            n_seeds=seeds,
            train_cases=-1,
            thresholds=(TAU,),
        )
        p = welch_p(y, v, df)
    return tau, Quantity("p of equal gains", p, key="p", n_seeds=seeds, train_cases=-1), *(c.gain for c in cells)


def targets_to_differ(cells: Sequence[Cell], level: float) -> str:
    """Returns how many more targets would show that gains differ, if those to come differ as these do.

    Args:
        cells: The gains of at least two targets, which do not show it.
        level: The significance level.
    """
    y, v, df = (np.array(column) for column in zip(*((c.gain.value, c.variance, c.df) for c in cells), strict=True))
    if not np.isfinite(v).all() or not (v > 0).all() or heterogeneity(y, v, df, confidence=1 - level).tau < TAU:
        return ""
    for more in range(1, MAX_TARGETS):
        if welch_p(y, v, df, among=len(y) + more) <= level:
            return f"about {more} more targets, if they differ as these do"
    return "no realistic number of targets: they differ too little"


def _cells_of_sizes(evidence: Evidence, pair: Pair, sizes: Sequence[int]) -> tuple[list[Cell], list[str]]:
    """Gains at the sizes of one study, whose seeds and groups are the same.

    What sizes have in common does not make them differ. The variance that counts is therefore that of each gain about
    their mean, times K / (K - 1): that of K independent gains which differ by as much.
    """
    gains = [gain(evidence, pair, size, key=f"gain {size}") for size in sizes]
    cells, count = [], len(sizes)
    for size, (found, _) in zip(sizes, gains, strict=True):
        weights: dict[tuple[str, int], float] = {}
        for other in sizes:
            weights |= gain_weights(pair, other, (other == size) - 1 / count)
        limits = fold_interval(blocks_of(evidence, weights).d)
        variance = standard_error(limits.low, limits.high, limits.df, 0.95) ** 2 * count / (count - 1)
        cells.append(Cell(found, variance, limits.df))
    return cells, [doubt for _, more in gains for doubt in more]


def c2(evidence: Evidence, pair: Pair) -> Measured:
    """Tests whether the gain depends on the data, over the training set sizes of one study."""
    for arm in pair:
        evidence.arm(arm)
    sizes = sizes_with(evidence, pair)
    if len(sizes) < MIN_CELLS:
        raise Lacking(f"needs at least {MIN_CELLS} targets or training set sizes, has {len(sizes)}")
    cells, doubts = _cells_of_sizes(evidence, pair, sizes)
    doubts += [*doubts_of_draws(evidence, pair), *doubts_of_rates(evidence, *pair, sizes=sizes)]
    quantities = differences(cells, evidence.level, "training set sizes")
    scope = "; ".join(filter(None, ("of training set sizes alone", scope_of(evidence, pair.arm))))
    return Measured(quantities, differ(evidence.level), unique(doubts), pair, scope, shown=("tau", "p"))


# ------------------------------------------------------------------------------------------------- C3, harder tasks


def noise_slope(noisy: Mapping[float, Evidence], pair: Pair) -> Quantity:
    """Computes the slope of the gain per doubling of the noise on one target, which is graded support for C3.

    Raises `Lacking` if levels are missing, or differ in target, size, cases or folds.
    """
    missing = [level for level in NOISE_LEVELS if level not in noisy]
    if missing:
        raise Lacking(f"needs noise levels {', '.join(map(str, NOISE_LEVELS))}; lacks {', '.join(map(str, missing))}")
    evidences = [noisy[level] for level in NOISE_LEVELS]
    if any("cases" not in evidence.tables for evidence in evidences):
        raise Lacking("they are compared seed by seed and need cases.csv, which published studies leave out")
    if len({(e.record.target, e.record.number_of_cases(e.size)) for e in evidences}) > 1:
        raise Lacking("the noise levels are of different targets or training set sizes")
    if len({frozenset(evidence.tables["cases"]["case"]) for evidence in evidences}) > 1:
        raise Lacking("the noise levels have different test cases")
    found = [blocks_of(e, gain_weights(pair, e.size)) for e in evidences]
    x = np.log2(NOISE_LEVELS)
    centred = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    seeds, blocks = [], []
    for fold in range(min(len(one.d) for one in found)):
        shared = found[0].seeds[fold]
        for one in found:
            shared = np.intersect1d(shared, one.seeds[fold])
        rows = [one.d[fold][np.isin(one.seeds[fold], shared)] for one in found]
        if len({d.shape for d in rows}) > 1:
            raise Lacking("noise levels have different test groups")
        seeds.append(shared)
        blocks.append(np.tensordot(centred, np.stack(rows), 1))
    whole = Blocks(tuple(seeds), tuple(blocks))
    numbers = {"n_seeds": whole.n_seeds, "n_groups": whole.n_groups, "train_cases": -1, "key": "noise"}
    limits = fold_interval(whole.d, confidence=1 - LEVEL)
    return quantity("slope of the gain a noise level", limits, 1 - LEVEL, **numbers)


class Task(NamedTuple):
    """The difficulty of a target and the gain of transfer on it."""

    difficulty: float
    gain: Quantity
    doubts: tuple[str, ...]


def task_of(evidence: Evidence, size: int, pair: Pair) -> Task:
    """Measures the baseline's distance from a perfect DSC and, on other seeds, the gain.

    Both on the same seeds would correlate by themselves: a seed unlucky for the baseline is hard, and gains much.
    """
    arms = evidence.record.arms
    measured = PLACEBO in arms and all(len(scores.seeds.get(PLACEBO, ())) for scores in evidence.scores[size])
    doubts = doubts_of_rates(evidence, *pair, *([PLACEBO] if measured else []), sizes=(size,))
    if measured:
        if arms[PLACEBO].training != arms[pair.baseline].training:
            doubts.append(
                f"{PLACEBO}, which measures the difficulty, was not trained with the settings of {pair.baseline}"
            )
        other = blocks_of(evidence, {(PLACEBO, size): 1.0})
        found, more = gain(evidence, pair, size)
        return Task(1 - float(np.mean([d.mean() for d in other.d])), found, unique([*doubts, *more]))
    both, own = blocks_of(evidence, gain_weights(pair, size)), blocks_of(evidence, {(pair.baseline, size): 1.0})
    if min(len(seeds) for seeds in both.seeds) < 4:
        raise Lacking(f"needs other seeds for the difficulty of {evidence.record.target} (arm {PLACEBO})")
    aside = [seeds[1::2] for seeds in both.seeds]
    held = [
        float(own.d[i][np.isin(own.seeds[i], _seeds_of_units(evidence, size, i, pair, units_aside))].mean())
        for i, units_aside in enumerate(aside)
    ]
    kept = [~np.isin(seeds, gone) for seeds, gone in zip(both.seeds, aside, strict=True)]
    used = Blocks(
        tuple(seeds[rows] for seeds, rows in zip(both.seeds, kept, strict=True)),
        tuple(d[rows] for d, rows in zip(both.d, kept, strict=True)),
        both.seeds_each,
    )
    halved = [f"half of them measure the difficulty, which an arm {PLACEBO} would"] if used.doubts() else []
    found = of_blocks(f"gain, {size_name(evidence, size)}", used, 1 - LEVEL, key="gain")
    return Task(1 - float(np.mean(held)), found, unique([*doubts, *used.doubts(), *halved]))


def _seeds_of_units(evidence: Evidence, size: int, fold: int, pair: Pair, of: Seeds) -> Seeds:
    """Seeds of the baseline behind units of a gain; runs of one source network are one unit, and share no seed."""
    seeds = evidence.scores[size][fold].seeds
    shared = np.intersect1d(seeds[pair.arm], seeds[pair.baseline])
    # Arms without a seed in common are matched in order, and the units are the baseline's seeds.
    return shared[np.isin(units(evidence, pair.arm, shared), of)] if len(shared) else of


def follows(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Supports the claim if the gain rises with the difficulty of the targets."""
    slope, noise = found["slope"], found.get("noise")
    note = ""
    if noise is not None:
        word = "rises" if noise.low > 0 else "falls" if noise.high < 0 else "neither clearly rises nor falls"
        note = f"over noise levels the gain {word} {significant_interval(noise.low, noise.high)} (graded support)"
    return Ruling(slope.low > 0, slope.high < 0, note)


def c3(tasks: Mapping[str, Task], noise: Quantity | None) -> Measured:
    """Tests by meta-regression over targets whether harder tasks gain more; noise levels are shown beside it.

    Args:
        tasks: The difficulty and gain of each target.
        noise: The result of `noise_slope`, if the study has noise levels.
    """
    if len(tasks) < MIN_TARGETS_C3:
        raise Lacking(f"needs at least {MIN_TARGETS_C3} targets of one source and training set size, has {len(tasks)}")
    cells = [cell_of(task.gain) for task in tasks.values()]
    x = np.array([task.difficulty for task in tasks.values()])
    y, v = (np.array(column) for column in zip(*((c.gain.value, c.variance) for c in cells), strict=True))
    limits = regression_slope(x, y, v, confidence=1 - LEVEL)
    seeds = min(cell.gain.n_seeds for cell in cells)
    name = f"slope of the gain on {len(tasks)} targets' difficulty"
    more = {"n_seeds": seeds, "train_cases": -1, "key": "slope", "thresholds": (0.0,)}
    quantities = [quantity(name, limits, 1 - LEVEL, **more)]
    quantities += [noise] if noise is not None else []
    return Measured(tuple(quantities), follows, unique([d for task in tasks.values() for d in task.doubts]))
