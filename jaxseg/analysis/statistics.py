"""Statistics over seeds and groups of cases: intervals, sign flips, jackknife, effect sizes.

Axis convention: seeds come before groups, `d[seed, group]`. A group (patient, animal, examination) has the mean of its
cases as its value, so that groups count alike however many cases each has; the group is the unit that is sampled.
Random draws come from an explicit `np.random.Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

MIN_SEEDS = 8
"""Number of seeds below which no verdict is given."""


class Interval(NamedTuple):
    """An estimate with its confidence limits; the limits are NaN if the data cannot give any."""

    estimate: float
    low: float
    high: float
    df: float
    """Degrees of freedom of the t quantile."""


def _t_interval(estimate: float, variance: float, df: float, confidence: float) -> Interval:
    half = float(special.stdtrit(df, (1 + confidence) / 2)) * math.sqrt(variance)
    return Interval(float(estimate), float(estimate - half), float(estimate + half), float(df))


def t_interval(values: Float[np.ndarray, " seeds"], *, confidence: float = 0.95) -> Interval:
    """Return Student's t interval of a mean over seeds, for new seeds on these cases.

    Args:
        values: One number per seed; NaN where there is none (left out).
        confidence: Level of the interval.

    Returns:
        The interval; its limits are NaN with fewer than two seeds.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2 or not np.isfinite(values).all():
        estimate = float(values.mean()) if len(values) and not np.isinf(values).any() else math.nan
        return Interval(estimate, math.nan, math.nan, math.nan)
    return _t_interval(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1, confidence)


def mean_squares(d: Float[np.ndarray, "seeds groups"]) -> tuple[float, float, float]:
    """Return the mean squares of seeds, groups and residual of a two-way layout with one value per cell.

    With S seeds and G groups, their expected values are G var_seed + var_res, S var_group + var_res and var_res.
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


def variance_of_mean(squares: tuple[float, float, float], num_seeds: int, num_groups: int) -> tuple[float, float]:
    """Return the variance of the grand mean and its Satterthwaite degrees of freedom from the three mean squares."""
    seed, group, residual = squares
    df_seed, df_group = num_seeds - 1, num_groups - 1
    cells = num_seeds * num_groups
    total, floor = seed + group - residual, max(seed, group)
    if total <= floor:
        # One of the two effects is estimated as zero: the mean varies at least as much as the other effect alone
        # implies.
        return floor / cells, float(df_seed if seed >= group else df_group)
    spread = seed**2 / df_seed + group**2 / df_group + residual**2 / (df_seed * df_group)
    return total / cells, total**2 / spread


def two_way_interval(d: Float[np.ndarray, "seeds groups"], *, confidence: float = 0.95) -> Interval:
    """Return the interval of a mean over seeds and groups, both random, for new seeds on new groups.

    Var = (MS_seed + MS_group - MS_res) / (S G), but at least the larger of MS_seed and MS_group over S G. The t
    quantile has Satterthwaite's degrees of freedom (Satterthwaite 1946, doi:10.2307/3002019) for this combination of
    mean squares, or for the floor where it applies. Cells must be complete. Groups with different numbers of cases
    count alike: this leaves the residual variance unequal over groups, which keeps the coverage, as `tools/coverage.py`
    shows.

    Args:
        d: One value per cell, for instance the difference of two arms.
        confidence: Level of the interval.

    Returns:
        The interval. With one group it is `t_interval` over seeds (on this group); with one seed the limits are NaN.

    Raises:
        ValueError: A cell is not finite.
    """
    d = np.asarray(d, np.float64)
    if not np.isfinite(d).all():
        raise ValueError("two_way_interval needs a finite value in every cell; leave out groups or seeds that lack one")
    # The model is d[s, g] = mean + a[s] + b[g] + e[s, g], all random. The mean over cells then varies by
    # var_a / S + var_b / G + var_e / (S G). MS_seed and MS_group each hold var_e once (see `mean_squares`), so their
    # sum holds it once too often, and MS_res is taken off.
    num_seeds, num_groups = d.shape
    if num_groups == 1 or num_seeds < 2:
        return t_interval(d.mean(1), confidence=confidence)
    variance, df = variance_of_mean(mean_squares(d), num_seeds, num_groups)
    return _t_interval(float(d.mean()), variance, df, confidence)


# --------------------------------------------------------------------------------------------------------- sign flips


def minimum_p(num_seeds: int) -> float:
    """Return the smallest two-sided p that sign flips of this many paired seeds can give: 2 / 2^n."""
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
    """Return sign-flip p values of paired differences, single and adjusted for the family by the largest statistic.

    Under the null of a test, every seed's difference is symmetric about 0. One flip vector is drawn for all tests, so
    that the adjusted p (Westfall and Young 1993; single step) keeps the correlation between tests. The statistic is
    |sum of d| / sqrt(sum of d^2), a monotone function of |t| that has variance 1 under flips, so that tests with
    different numbers of seeds count alike in the maximum.

    Args:
        d: One row per test and one column per seed; NaN where a test lacks the seed (left out of its sums).
        rng: Generator, needed if there are more than `max_flips` distinct flips; otherwise all are listed and p is
            exact.
        max_flips: Number of flip vectors to list or draw at most.

    Returns:
        (p, p_max): two-sided p values of each test alone, and adjusted for the family. A row of zeros has p = 1. If
        flips are drawn, the observed one counts among them, (1 + hits) / (1 + flips).

    Raises:
        ValueError: Flips must be drawn and `rng` is missing.
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
    """Return the two-sided sign-flip p of paired differences over seeds, on these cases; see `max_t_sign_flip`.

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
    """Return the leave-one-seed-out interval of a quantity of pairs of runs (similarity, disagreement, distance).

    Pairs share runs, so they are not an independent sample; leaving out a seed leaves out all of its pairs. This is a t
    interval on S - 1 degrees of freedom with Var = (S - 1) / S * sum of (theta_-i - mean)^2 (Tukey 1958; Efron and
    Stein 1981).

    Args:
        statistic: Computes the quantity from the indices of the kept seeds, without pairs of a run with itself.
        num_seeds: Number of seeds, at least 3: without one seed there must still be a pair.
        confidence: Level of the interval.
        log: Whether to work on the logarithm, for ratios; estimate and limits are returned on the plain scale.

    Returns:
        The interval; its limits are NaN below 3 seeds, or if a value is not finite (a ratio of 0 on the log scale).
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
    # The spread of the left-out values is about 1 / (S - 1) of that between seeds, hence the factor below.
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
    """Return `jackknife` of a quantity whose values, with all seeds and without each in turn, are already known."""
    whole, parts = float(values[0]), values[1:]

    def value(kept: Int[np.ndarray, " kept"]) -> float:
        if len(kept) == len(parts):
            return whole
        return float(parts[np.setdiff1d(np.arange(len(parts)), kept)[0]])

    return jackknife(value, len(parts), confidence=confidence)


def mean_of_pairs(
    matrix: Float[np.ndarray, "*axes seeds seeds"], kept: Int[np.ndarray, " kept"]
) -> Float[np.ndarray, "*axes"]:
    """Return means over kept seeds of what each has on average with the others; the diagonal is never used.

    This is the mean over pairs where all of them have a value. Others are missing (NaN): runs of different sources, or
    of different folds. Every seed that has a pair counts the same, so that leaving out a seed leaves out its share, and
    not that of the pairs that its fold has left.

    >>> float(mean_of_pairs(np.array([[9.0, 1.0], [3.0, 9.0]]), np.array([0, 1])))
    2.0
    """
    pairs = matrix[..., kept[:, None], kept]
    known = ~np.isnan(pairs) & ~np.eye(len(kept), dtype=bool)
    sums, counts = (part.sum(-1) + part.sum(-2) for part in (np.where(known, pairs, 0.0), known))
    paired = counts > 0
    with np.errstate(invalid="ignore"):
        of_seed = np.divide(sums, counts, out=np.zeros(sums.shape), where=paired)
        return of_seed.sum(-1) / paired.sum(-1)


# ------------------------------------------------------------------------------------------- effect sizes, robust means


def sd_over_seeds(*folds: Float[np.ndarray, " seeds"]) -> float:
    """Return the standard deviation over seeds on the same cases; NaN if no fold has two, or one is not finite.

    Seeds of different folds are tested on different cases, so that each fold is taken about its own mean, and the
    squares are pooled.

    >>> sd_over_seeds(np.array([1.0, 2.0, 3.0])), sd_over_seeds(np.array([1.0, 3.0]), np.array([11.0, 13.0]))
    (1.0, 1.4142135623730951)
    """
    df = sum(len(values) - 1 for values in folds if len(values))
    if df < 1 or not all(np.isfinite(values).all() for values in folds):
        return math.nan
    return math.sqrt(sum(float(np.sum((values - values.mean()) ** 2)) for values in folds if len(values)) / df)


def standardized_difference(*folds: Float[np.ndarray, " seeds"]) -> float:
    """Return Hedges' g of paired differences: mean / sd, times Hedges' (1981) exact small-sample factor.

    Args:
        folds: The differences; several arrays where each fold has seeds of its own. The mean is then that over folds,
            and the sd is `sd_over_seeds`.

    Returns:
        The effect size. It is NaN below two degrees of freedom (three seeds in one fold; the factor does not exist for
        fewer) or if the differences within each fold are all equal.
    """
    known = [d[~np.isnan(d)] for d in (np.asarray(d, np.float64) for d in folds)]
    df = sum(len(d) - 1 for d in known)
    if df < 2 or not all(len(d) and np.isfinite(d).all() for d in known) or all(np.ptp(d) == 0 for d in known):
        return math.nan
    correction = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
    return float(np.mean([d.mean() for d in known]) / sd_over_seeds(*known) * correction)


def probability_of_improvement(a: Float[np.ndarray, " runs_a"], b: Float[np.ndarray, " runs_b"]) -> float:
    """Return the probability that a run of `a` scores above one of `b`; ties are half (Agarwal et al. 2021, eq. 2).

    Higher is better; swap the arguments for distances. The result is NaN if either has no run.

    >>> probability_of_improvement(np.array([1.0, 3.0]), np.array([2.0, 3.0]))
    0.375
    """
    a, b = (np.asarray(x, np.float64)[~np.isnan(x)] for x in (a, b))
    if not (len(a) and len(b)):
        return math.nan
    # How many values of b lie below those of a, and how many at or below: the pairs themselves may be very many.
    below, at_most = (int(np.searchsorted(np.sort(b), a, side).sum()) for side in ("left", "right"))
    return (below + 0.5 * (at_most - below)) / (len(a) * len(b))


def interquartile_mean(values: Float[np.ndarray, "*shape"]) -> float:
    """Return the mean of the middle half of the values, a quarter (rounded down) cut at each end (Agarwal et al. 2021).

    >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    values = np.asarray(values, np.float64).ravel()
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan
    cut = len(values) // 4
    return float(np.partition(values, (cut, len(values) - cut - 1))[cut : len(values) - cut].mean())
