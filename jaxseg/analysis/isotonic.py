"""Monotone learning curves, and the step at which each first reaches a level.

A validation curve is noisy, so its first value above a level comes early by luck. The isotonic fit removes noise
without a smoothing width to choose: it is the rising curve closest to the values.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def isotonic_fit(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Return the non-decreasing sequence with the least squared distance from the values.

    The algorithm is to pool adjacent violators (Barlow et al. 1972): whenever a block's mean falls below that of the
    block before it, the two are merged into one.

    >>> isotonic_fit(np.array([1.0, 3.0, 2.0, 4.0])).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        means.append(float(value))
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            size = sizes[-2] + sizes[-1]
            means[-2:] = [(means[-2] * sizes[-2] + means[-1] * sizes[-1]) / size]
            sizes[-2:] = [size]
    return np.repeat(means, sizes)


def first_crossing(steps: Float[np.ndarray, " points"], fitted: Float[np.ndarray, " points"], level: float) -> float:
    """Return the step at which a rising curve reaches a level, linear in log step between points; NaN if it never does.

    Args:
        steps: Steps above 0, increasing.
        fitted: Non-decreasing values, as `isotonic_fit` returns them.
        level: Level to reach. For a curve that starts above it, the result is its first step.

    >>> round(first_crossing(np.array([10.0, 1000.0]), np.array([0.0, 1.0]), 0.5), 6)
    100.0
    """
    after = int(np.searchsorted(fitted, level, side="left"))
    if after == len(fitted):
        return math.nan
    if after == 0:
        return float(steps[0])
    below, above = fitted[after - 1], fitted[after]
    share = (level - below) / (above - below)
    start, end = math.log(steps[after - 1]), math.log(steps[after])
    return math.exp(start + share * (end - start))
