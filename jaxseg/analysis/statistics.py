"""Statistics over seeds and groups of cases: intervals, sign flips, jackknife, effect sizes, variance split, planning.

Axis conventions: seeds come before groups, `d[seed, group]`. A group (patient, animal, examination) holds the mean of
its cases, so groups count alike however many cases each has; the group is the unit that is sampled. Random draws come
from an explicit `np.random.Generator`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

MIN_SEEDS = 8
"""Below this number of seeds no verdict is given."""


class Interval(NamedTuple):
    """An estimate with its confidence limits; NaN limits where the data cannot give any."""

    estimate: float
    low: float
    high: float
    df: float
    """Degrees of freedom of the t quantile."""


class Components(NamedTuple):
    """Variance components of a contrast D[seed, group]."""

    seed: float
    group: float
    residual: float


def _t_interval(estimate: float, variance: float, df: float, confidence: float) -> Interval:
    half = float(special.stdtrit(df, (1 + confidence) / 2)) * math.sqrt(variance)
    return Interval(float(estimate), float(estimate - half), float(estimate + half), float(df))


def t_interval(values: Float[np.ndarray, " seeds"], *, confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean over seeds: new seeds, on these cases.

    Args:
        values: one number a seed; NaN where there is none (left out).
        confidence: level of the interval.

    Returns:
        The interval; NaN limits below two seeds.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2 or not np.isfinite(values).all():
        estimate = float(values.mean()) if len(values) and not np.isinf(values).any() else math.nan
        return Interval(estimate, math.nan, math.nan, math.nan)
    return _t_interval(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1, confidence)


def mean_squares(d: Float[np.ndarray, "seeds groups"]) -> tuple[float, float, float]:
    """Mean squares of seeds, groups and residual of a two-way layout with one value a cell.

    Expected values, with S seeds and G groups: G var_seed + var_res, S var_group + var_res, var_res.
    """
    num_seeds, num_groups = d.shape
    grand = d.mean()
    by_seed, by_group = d.mean(1), d.mean(0)
    residual = d - by_seed[:, None] - by_group[None, :] + grand
    return (
        float(num_groups * np.sum((by_seed - grand) ** 2) / (num_seeds - 1)),
        float(num_seeds * np.sum((by_group - grand) ** 2) / (num_groups - 1)),
        float(np.sum(residual**2) / ((num_seeds - 1) * (num_groups - 1))),
    )


def _variance_of_mean(squares: tuple[float, float, float], num_seeds: int, num_groups: int) -> tuple[float, float]:
    """Variance of the grand mean and its Satterthwaite degrees of freedom, from the three mean squares."""
    seed, group, residual = squares
    df_seed, df_group = num_seeds - 1, num_groups - 1
    cells = num_seeds * num_groups
    total, floor = seed + group - residual, max(seed, group)
    if total <= floor:
        # One of the two effects is estimated as nothing: the mean varies at least as the other alone makes it.
        return floor / cells, float(df_seed if seed >= group else df_group)
    spread = seed**2 / df_seed + group**2 / df_group + residual**2 / (df_seed * df_group)
    return total / cells, total**2 / spread


def two_way_interval(d: Float[np.ndarray, "seeds groups"], *, confidence: float = 0.95) -> Interval:
    """Interval of a mean over seeds and groups, both random: new seeds on new groups.

    Var = (MS_seed + MS_group - MS_res) / (S G), at least the larger of MS_seed and MS_group over S G; t with
    Satterthwaite's degrees of freedom (Satterthwaite 1946, doi:10.2307/3002019, on the combination of mean squares;
    those of the floor where it holds). Cells must be complete. Groups of unlike numbers of cases count alike: that
    leaves the residual variance unequal over groups, which `docs/coverage.py` shows to keep the coverage.

    Args:
        d: one value a cell, for instance the difference of two arms.
        confidence: level of the interval.

    Returns:
        The interval. With one group it is `t_interval` over seeds (on this group); with one seed limits are NaN.

    Raises:
        ValueError: if a cell is not finite.
    """
    d = np.asarray(d, np.float64)
    if not np.isfinite(d).all():
        raise ValueError("two_way_interval needs a finite value in every cell; leave out groups or seeds that lack one")
    num_seeds, num_groups = d.shape
    if num_groups == 1 or num_seeds < 2:
        return t_interval(d.mean(1), confidence=confidence)
    variance, df = _variance_of_mean(mean_squares(d), num_seeds, num_groups)
    return _t_interval(float(d.mean()), variance, df, confidence)


# --------------------------------------------------------------------------------------------------------- sign flips


def minimum_p(num_seeds: int) -> float:
    """Smallest two-sided p that sign flips of this many paired seeds can give: 2 / 2^n."""
    return 2.0 ** (1 - num_seeds) if num_seeds else 1.0


def sign_vectors(
    num_seeds: int, max_flips: int, rng: np.random.Generator | None
) -> tuple[list[Float[np.ndarray, "block seeds"]], int, bool]:
    """Blocks of flip vectors, how many there are, and whether they are all that exist.

    Two-sided statistics are the same for a vector and its negative, so the first seed keeps its sign: every vector
    stands for two.
    """
    free = max(num_seeds - 1, 0)
    if 2**free <= max_flips:
        codes = np.arange(2**free)
        flips = 1.0 - 2.0 * ((codes[:, None] >> np.arange(free)) & 1)
        whole = np.concatenate([np.ones((len(codes), min(num_seeds, 1))), flips], 1)
        return [whole[i : i + 4096] for i in range(0, len(whole), 4096)], len(whole), True
    if rng is None:
        raise ValueError(f"{num_seeds} seeds have too many sign flips to list them all: pass `rng`")
    sizes = [min(4096, max_flips - i) for i in range(0, max_flips, 4096)]
    return [1.0 - 2.0 * rng.integers(0, 2, (size, num_seeds)) for size in sizes], max_flips, False


def max_t_sign_flip(
    d: Float[np.ndarray, "tests seeds"], *, rng: np.random.Generator | None = None, max_flips: int = 2**14
) -> tuple[Float[np.ndarray, " tests"], Float[np.ndarray, " tests"]]:
    """Sign-flip p values of paired differences, single and adjusted for the whole family by the largest statistic.

    Under the null of a test every seed's difference is symmetric about 0. One flip vector is drawn for all tests, so
    the adjusted p (Westfall and Young 1993; single step) keeps the correlation between tests. The statistic is
    |sum of d| / sqrt(sum of d^2), a monotone function of |t| that flips leave a variance of 1, so that tests with
    different numbers of seeds count alike in the maximum.

    Args:
        d: one row a test, one column a seed; NaN where a test lacks the seed (left out of its sums).
        rng: needed when there are more than `max_flips` distinct flips; else all are listed and p is exact.
        max_flips: how many flip vectors to list or draw.

    Returns:
        (p, p_max): two-sided, each test alone, and adjusted for the family. A row of zeros has p = 1. With drawn
        flips the observed one counts among them, (1 + hits) / (1 + flips).

    Raises:
        ValueError: if flips must be drawn and `rng` is missing.
    """
    d = np.nan_to_num(np.asarray(d, np.float64), nan=0.0)
    norm = np.sqrt(np.sum(d**2, 1))
    scaled = d / np.where(norm > 0, norm, 1.0)[:, None]
    observed = np.abs(scaled.sum(1))
    # Equal sums must compare as equal whatever the order of their terms.
    threshold = observed - 1e-9
    hits, hits_max = np.zeros(len(d)), np.zeros(len(d))
    blocks, count, exact = sign_vectors(d.shape[1], max_flips, rng)
    for flips in blocks:
        flipped = np.abs(flips @ scaled.T)
        hits += np.sum(flipped >= threshold, 0)
        hits_max += np.sum(flipped.max(1, initial=0.0)[:, None] >= threshold, 0)
    if exact:
        return hits / count, hits_max / count
    return (1 + hits) / (1 + count), (1 + hits_max) / (1 + count)


def sign_flip(
    d: Float[np.ndarray, " seeds"], *, rng: np.random.Generator | None = None, max_flips: int = 2**14
) -> float:
    """Two-sided sign-flip p of paired differences over seeds, on these cases; see `max_t_sign_flip`.

    >>> sign_flip(np.array([1.0, 2.0, 3.0]))
    0.25
    """
    d = np.asarray(d, np.float64)
    return float(max_t_sign_flip(d[None, ~np.isnan(d)], rng=rng, max_flips=max_flips)[0][0])


# ---------------------------------------------------------------------------------------------------------- jackknife


def jackknife(
    statistic: Callable[[Int[np.ndarray, " kept"]], float],
    num_seeds: int,
    *,
    confidence: float = 0.95,
    log: bool = False,
) -> Interval:
    """Leave-one-seed-out interval of a quantity made of pairs of runs (similarity, disagreement, distance).

    Pairs share runs, so they are no independent sample; leaving out a seed leaves out all its pairs. t interval on
    S - 1 degrees of freedom with Var = (S - 1) / S * sum of (theta_-i - mean)^2 (Tukey 1958; Efron and Stein 1981).

    Args:
        statistic: the quantity from the seeds kept (indices 0..num_seeds-1), pairs of a run with itself left out.
        num_seeds: at least 3: one seed fewer must still make a pair.
        confidence: level of the interval.
        log: work on the logarithm, for ratios; the estimate and limits are given back on the plain scale.

    Returns:
        The interval; NaN limits below 3 seeds, or where a value is not finite (a ratio of 0 on the log scale).
    """
    everyone = np.arange(num_seeds)

    def value(kept: Int[np.ndarray, " kept"]) -> float:
        plain = float(statistic(kept))
        if not log:
            return plain
        return math.log(plain) if plain > 0 else math.nan

    estimate = float(statistic(everyone))
    if num_seeds < 3:
        return Interval(estimate, math.nan, math.nan, math.nan)
    left_out = np.array([value(np.delete(everyone, i)) for i in everyone])
    centre = value(everyone)
    if not (np.isfinite(left_out).all() and math.isfinite(centre)):
        return Interval(estimate, math.nan, math.nan, math.nan)
    variance = (num_seeds - 1) / num_seeds * float(np.sum((left_out - left_out.mean()) ** 2))
    interval = _t_interval(centre, variance, num_seeds - 1, confidence)
    if not log:
        return interval
    return Interval(estimate, math.exp(interval.low), math.exp(interval.high), interval.df)


def from_left_out(values: Float[np.ndarray, " all_and_left_out"], *, confidence: float = 0.95) -> Interval:
    """`jackknife` of a quantity whose values, of all seeds and with each left out in turn, are known already."""
    whole, parts = float(values[0]), values[1:]

    def value(kept: Int[np.ndarray, " kept"]) -> float:
        if len(kept) == len(parts):
            return whole
        return float(parts[np.setdiff1d(np.arange(len(parts)), kept)[0]])

    return jackknife(value, len(parts), confidence=confidence)


def mean_of_pairs(
    matrix: Float[np.ndarray, "*axes seeds seeds"], kept: Int[np.ndarray, " kept"]
) -> Float[np.ndarray, "*axes"]:
    """Means over pairs of different seeds among those kept that have a value; the diagonal is never used.

    Not all pairs need be there (NaN), as long as each seed is in as many: leaving out one then leaves out its share.

    >>> float(mean_of_pairs(np.array([[9.0, 1.0], [3.0, 9.0]]), np.array([0, 1])))
    2.0
    """
    pairs = matrix[..., kept[:, None], kept][..., ~np.eye(len(kept), dtype=bool)]
    known = ~np.isnan(pairs)
    with np.errstate(invalid="ignore"):
        return np.where(known, pairs, 0.0).sum(-1) / known.sum(-1)


# ------------------------------------------------------------------------------------------- effect sizes, robust means


def standardized_difference(d: Float[np.ndarray, " seeds"]) -> float:
    """Hedges' g of paired differences: mean / sd, times Hedges' (1981) exact small-sample factor.

    NaN below three seeds (the factor does not exist for two) or where the differences are all equal.
    """
    d = np.asarray(d, np.float64)
    d = d[~np.isnan(d)]
    df = len(d) - 1
    if df < 2 or not np.isfinite(d).all() or np.ptp(d) == 0:
        return math.nan
    correction = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
    return float(d.mean() / d.std(ddof=1) * correction)


def probability_of_improvement(a: Float[np.ndarray, " runs_a"], b: Float[np.ndarray, " runs_b"]) -> float:
    """Probability that a run of `a` scores higher than a run of `b`, ties counting half (Agarwal et al. 2021, eq. 2).

    Higher is better; swap the arguments for distances. NaN if either has no run.

    >>> probability_of_improvement(np.array([1.0, 3.0]), np.array([2.0, 3.0]))
    0.375
    """
    a, b = (np.asarray(x, np.float64)[~np.isnan(x)] for x in (a, b))
    if not (len(a) and len(b)):
        return math.nan
    return float(np.mean((a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])))


def interquartile_mean(values: Float[np.ndarray, "*shape"]) -> float:
    """Mean of the middle half of all values, a quarter (rounded down) cut from each end (Agarwal et al. 2021).

    >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    values = np.asarray(values, np.float64).ravel()
    values = values[~np.isnan(values)]
    return float(stats.trim_mean(values, 0.25)) if len(values) else math.nan


# ------------------------------------------------------------------------------------------------------ variance split


class Source(NamedTuple):
    """One line of a variance split."""

    factors: tuple[str, ...]
    """The factors whose interaction it is; one factor for a main effect."""
    variance: float
    """The component; below 0 (a chance estimate of a small one) is kept as it is."""
    share: float
    """Of the sum of components, those below 0 taken as 0."""
    df: int


def variance_split(values: Float[np.ndarray, "*shape"], factors: Sequence[str]) -> list[Source]:
    """Splits the variance of a fully crossed design into its factors and their interactions, all random.

    Method of moments on the mean squares: a component is the alternating sum of the mean squares of all terms that
    contain it, over the number of values it is shared by (Cornfield and Tukey 1956, doi:10.1214/aoms/1177728067). One
    value a cell: the interaction of all factors holds the residual.

    Args:
        values: one axis a factor, for instance [init, order, group].
        factors: their names.

    Returns:
        One source for each non-empty set of factors, main effects first.

    Raises:
        ValueError: if names and axes differ in number, a factor has one level, or a cell is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != len(factors) or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"variance_split needs one axis of at least 2 levels for each of {tuple(factors)} and a finite value in "
            f"every cell, got shape {values.shape}"
        )
    axes = range(values.ndim)
    subsets = [set(c) for size in range(1, values.ndim + 1) for c in itertools.combinations(axes, size)]
    effects: dict[frozenset[int], np.ndarray] = {frozenset(): values.mean(keepdims=True)}
    squares, dfs = {}, {}
    for subset in subsets:
        key = frozenset(subset)
        means = values.mean(tuple(set(axes) - subset), keepdims=True)
        effects[key] = means - sum(e for k, e in effects.items() if k < key)
        dfs[key] = math.prod(values.shape[a] - 1 for a in subset)
        squares[key] = float(np.sum(effects[key] ** 2)) * values.size / means.size / dfs[key]
    components = {}
    for key in squares:
        signed = sum((-1) ** (len(k) - len(key)) * ms for k, ms in squares.items() if k >= key)
        components[key] = signed / math.prod(values.shape[a] for a in set(axes) - key)
    total = sum(max(c, 0.0) for c in components.values())
    return [
        Source(
            tuple(factors[a] for a in sorted(key)), component, max(component, 0.0) / total if total else math.nan, df
        )
        for (key, component), df in zip(components.items(), dfs.values(), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------ planning


def components(d: Float[np.ndarray, "seeds groups"]) -> Components:
    """Estimates the variance components of D[seed, group] by the method of moments, none below 0.

    Args:
        d: at least two seeds and two groups, complete.
    """
    num_seeds, num_groups = d.shape
    seed, group, residual = mean_squares(np.asarray(d, np.float64))
    return Components(
        max((seed - residual) / num_groups, 0.0), max((group - residual) / num_seeds, 0.0), max(residual, 0.0)
    )


def expected_half_width(spread: Components, num_seeds: int, num_groups: int, *, confidence: float = 0.95) -> float:
    """Half width of `two_way_interval` to expect with this spread: its formula at the expected mean squares.

    Args:
        spread: of the contrast, for instance from a pilot's `components`.
        num_seeds: at least 2.
        num_groups: at least 1; with one, the interval is over seeds alone.
        confidence: level of the interval.
    """
    seed = num_groups * spread.seed + spread.residual
    if num_groups == 1:
        variance, df = seed / num_seeds, float(num_seeds - 1)
    else:
        squares = (seed, num_seeds * spread.group + spread.residual, spread.residual)
        variance, df = _variance_of_mean(squares, num_seeds, num_groups)
    return float(special.stdtrit(df, (1 + confidence) / 2)) * math.sqrt(variance)


def plan_seeds(
    spread: Components, num_groups: int, half_width: float, *, confidence: float = 0.95, max_seeds: int = 1024
) -> int | None:
    """Fewest seeds that bring the interval to a half width; None where even `max_seeds` do not.

    Seeds do not shrink what groups contribute: with few groups a half width may be out of reach.
    """
    for num_seeds in range(2, max_seeds + 1):
        if expected_half_width(spread, num_seeds, num_groups, confidence=confidence) <= half_width:
            return num_seeds
    return None
