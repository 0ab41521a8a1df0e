"""Sources of variance (seeds, groups of cases, crossed factors), and the number of seeds that an interval needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxseg.analysis.statistics import mean_squares, variance_of_mean


class Components(NamedTuple):
    """Variance components of a contrast D[seed, group]."""

    seed: float
    group: float
    residual: float


class Source(NamedTuple):
    """One row of a variance split."""

    factors: tuple[str, ...]
    """Factors whose interaction this is; one factor for a main effect."""
    variance: float
    """Variance component; a negative value (a chance estimate of a small component) is kept as it is."""
    share: float
    """Share of the sum of components, in which negative ones are 0."""
    df: int


def variance_split(values: Float[np.ndarray, "*shape"], factors: Sequence[str]) -> list[Source]:
    """Split the variance of a fully crossed design into its factors and their interactions, all random.

    The method of moments is applied to the mean squares: a component is the alternating sum of the mean squares of all
    terms that contain it, over the number of values that share it (Cornfield and Tukey 1956,
    doi:10.1214/aoms/1177728067). With one value per cell, the interaction of all factors contains the residual.

    Args:
        values: One axis per factor, for instance [init, order, group].
        factors: Names of the factors.

    Returns:
        One source for each non-empty set of factors, main effects first.

    Raises:
        ValueError: Names and axes differ in number, a factor has one level, or a cell is not finite.
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


def components(d: Float[np.ndarray, "seeds groups"]) -> Components:
    """Estimate the variance components of D[seed, group] by the method of moments, truncated at 0.

    Args:
        d: Complete values for at least two seeds and two groups.
    """
    num_seeds, num_groups = d.shape
    seed, group, residual = mean_squares(np.asarray(d, np.float64))
    return Components(
        max((seed - residual) / num_groups, 0.0), max((group - residual) / num_seeds, 0.0), max(residual, 0.0)
    )


def expected_half_width(spread: Components, num_seeds: int, num_groups: int, *, confidence: float = 0.95) -> float:
    """Return the half width of `two_way_interval` to expect with this spread: its formula at the expected mean squares.

    Args:
        spread: Components of the contrast, for instance from a pilot's `components`.
        num_seeds: Number of seeds, at least 2.
        num_groups: Number of groups, at least 1; with one group, the interval is over seeds alone.
        confidence: Level of the interval.
    """
    variance, df = expected_variance(spread, num_seeds, num_groups)
    return float(special.stdtrit(df, (1 + confidence) / 2)) * math.sqrt(variance)


def expected_variance(spread: Components, num_seeds: int, num_groups: int) -> tuple[float, float]:
    """Return the variance of the mean, and its degrees of freedom, to expect with this spread.

    See `expected_half_width` for the arguments.
    """
    seed = num_groups * spread.seed + spread.residual
    if num_groups == 1:
        return seed / num_seeds, float(num_seeds - 1)
    squares = (seed, num_seeds * spread.group + spread.residual, spread.residual)
    return variance_of_mean(squares, num_seeds, num_groups)


def plan_seeds(
    spread: Components, num_groups: int, half_width: float, *, confidence: float = 0.95, max_seeds: int = 1024
) -> int | None:
    """Return the fewest seeds that bring the interval to a half width; None if even `max_seeds` do not.

    More seeds do not reduce the contribution of groups: with few groups, a half width may be out of reach.
    """
    for num_seeds in range(2, max_seeds + 1):
        if expected_half_width(spread, num_seeds, num_groups, confidence=confidence) <= half_width:
            return num_seeds
    return None
