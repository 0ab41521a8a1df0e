"""Means over folds with different seeds: a seed is tested on one fold, and each fold has its own seeds and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxseg.analysis.statistics import Interval, two_way_interval
from jaxseg.analysis.variance_components import Components, Source, components, expected_variance, variance_split


def t_quantile(df: float, confidence: float) -> float:
    """Return the half width, in standard errors, of a two-sided interval from Student's t."""
    return float(special.stdtrit(df, (1 + confidence) / 2))


def standard_error(low: float, high: float, df: float, confidence: float) -> float:
    """Return the standard error from the limits of a t interval."""
    return (high - low) / 2 / t_quantile(df, confidence)


def fold_interval(blocks: Sequence[Float[np.ndarray, "seeds groups"]], *, confidence: float = 0.95) -> Interval:
    """Return the interval of the mean over folds, for new seeds on new groups.

    Folds share no seed and no group, so their two-way intervals are independent. The variance of the mean over folds is
    the sum of their variances over the number of folds squared, with Satterthwaite's degrees of freedom. With one fold
    this is `two_way_interval`.

    Args:
        blocks: One array per fold, with a value in every cell.
        confidence: Level of the interval.
    """
    if len(blocks) == 1:
        return two_way_interval(blocks[0], confidence=confidence)
    parts = [two_way_interval(block, confidence=confidence) for block in blocks]
    estimate = float(np.mean([part.estimate for part in parts]))
    if any(math.isnan(part.low) for part in parts):
        return Interval(estimate, math.nan, math.nan, math.nan)
    variances = (
        np.array([standard_error(part.low, part.high, part.df, confidence) ** 2 for part in parts]) / len(parts) ** 2
    )
    if not variances.sum():
        return Interval(estimate, estimate, estimate, min(part.df for part in parts))
    df = variances.sum() ** 2 / np.sum(variances**2 / np.array([part.df for part in parts]))
    half = t_quantile(float(df), confidence) * math.sqrt(variances.sum())
    return Interval(estimate, estimate - half, estimate + half, float(df))


def components_over_folds(blocks: Sequence[Float[np.ndarray, "seeds groups"]]) -> Components:
    """Return the variance components of one fold, averaged over folds."""
    parts = np.array([components(block) for block in blocks])
    return Components(*map(float, parts.mean(0)))


def variance_split_over_folds(
    blocks: Sequence[Float[np.ndarray, "*levels groups"]], factors: Sequence[str]
) -> list[Source]:
    """Return the sources of variance within one fold, averaged over folds.

    Args:
        blocks: One fully crossed array per fold; folds need not have the same numbers of levels.
        factors: Names of the axes.

    Returns:
        The sources as `variance_split` gives them for one fold. Shares are those of the averaged components, and
        degrees of freedom are summed.
    """
    parts = [variance_split(block, factors) for block in blocks]
    if len(parts) == 1:
        return parts[0]
    variances = [float(np.mean([source.variance for source in sources])) for sources in zip(*parts, strict=True)]
    total = sum(max(variance, 0.0) for variance in variances)
    return [
        Source(first[0].factors, variance, max(variance, 0.0) / total if total else math.nan, sum(s.df for s in first))
        for variance, first in zip(variances, zip(*parts, strict=True), strict=True)
    ]


def expected_half_width_over_folds(
    spread: Components, seeds: int, groups: int, folds: int, *, confidence: float = 0.95
) -> float:
    """Return `expected_half_width` for `fold_interval`, with these numbers of seeds and groups in each fold.

    Of folds that are alike, Satterthwaite's degrees of freedom are those of one times their number.
    """
    variance, df = expected_variance(spread, seeds, groups)
    return t_quantile(df * folds, confidence) * math.sqrt(variance / folds)
