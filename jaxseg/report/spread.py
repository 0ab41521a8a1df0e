"""Intervals of what the page averages itself: over seeds, and over pairs of runs, which share seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats


class Interval(NamedTuple):
    """A mean, its limits (NaN where too few seeds make it up), and how many values it is of."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def over_seeds(values: Iterable[float], confidence: float) -> Interval:
    """Mean of one value a seed, with a t interval; undefined values are left out.

    >>> over_seeds([1.0, 2.0, 3.0], 0.95).value
    2.0
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return Interval(math.nan, math.nan, math.nan, 0)
    variance = float(np.var(known, ddof=1)) / len(known) if len(known) > 1 else math.nan
    return _t_interval(float(np.mean(known)), variance, len(known), len(known) - 1, confidence)


def over_pairs(pairs: pd.DataFrame, confidence: float) -> Interval:
    """Mean over pairs of runs, with a leave-one-seed-out jackknife interval.

    Args:
        pairs: columns seed_a, seed_b, value; undefined values are left out.
        confidence: of the interval.
    """
    return jackknife(means_without_a_seed(pairs, seeds_of(pairs)), len(pairs), confidence)


def seeds_of(pairs: pd.DataFrame) -> np.ndarray:
    """Return the seeds that take part in any pair."""
    return np.union1d(pairs["seed_a"], pairs["seed_b"])


def means_without_a_seed(pairs: pd.DataFrame, seeds: np.ndarray) -> Float[np.ndarray, " one_and_seeds"]:
    """Mean over all pairs, then with the pairs of each seed left out in turn.

    Pairs share runs, so they are no independent sample; leaving out a seed leaves out all pairs it has a part in.

    Args:
        pairs: columns seed_a, seed_b, value; undefined values are left out.
        seeds: all that take part.

    Returns:
        NaN where nothing is left.
    """
    known = pairs[np.isfinite(pairs["value"].to_numpy(float))]
    values = known["value"].to_numpy(float)
    a, b = (np.searchsorted(seeds, known[side].to_numpy()) for side in ("seed_a", "seed_b"))
    parts = np.stack([values, np.ones_like(values)])
    # A pair of a seed with itself has one part in it, not two.
    lost = [np.bincount(a, part, len(seeds)) + np.bincount(b, np.where(a == b, 0, part), len(seeds)) for part in parts]
    total, number = (np.concatenate([[part.sum()], part.sum() - out]) for part, out in zip(parts, lost, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(number > 0, total / number, np.nan)


def jackknife(values: Float[np.ndarray, " one_and_seeds"], n: int, confidence: float) -> Interval:
    """Interval of a statistic from its value with each seed left out, t on S - 1 degrees of freedom.

    Args:
        values: of all seeds together, then with each left out in turn.
        n: how many numbers it is made of.
        confidence: of the interval.

    Returns:
        NaN limits below three seeds, or where leaving one out leaves nothing defined.
    """
    s = len(values) - 1
    if s < 3 or not np.isfinite(values).all():
        return Interval(float(values[0]), math.nan, math.nan, n)
    variance = (s - 1) / s * float(np.sum((values[1:] - values[1:].mean()) ** 2))
    return _t_interval(float(values[0]), variance, n, s - 1, confidence)


def _t_interval(value: float, variance: float, n: int, df: int, confidence: float) -> Interval:
    if not math.isfinite(variance):
        return Interval(value, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * math.sqrt(variance)
    return Interval(value, value - half, value + half, n)
