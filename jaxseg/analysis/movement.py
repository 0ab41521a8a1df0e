"""Tests of whether filters moved because the data drove them, or because an optimizer never stands still.

The length of Adam's steps is the rate, whatever the gradient. Even without any direction in the gradients, every weight
takes a random walk, so the angle between start and end means little without the angle of that walk. Two runs that share
their start separate the two: movement driven by the data is the same in both, a walk is not.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from jaxseg.analysis.filters import Kernel, start_end_auc


def walk_length(rates: Float[np.ndarray, " steps"]) -> float:
    """Return the root mean square distance of a weight from its start after Adam's steps on gradients of pure noise.

    An update then has variance 1 before it is multiplied by the rate, and updates do not add up in any direction, so
    the distance is the root of the sum of squared rates: `rate * sqrt(steps)` for a constant rate. Where the end is a
    mean of late weights, the rate of a step counts by the share of them that come after it (`averaging.shares_after`).

    >>> walk_length(np.full(100, 0.01))
    0.1
    """
    return math.sqrt(float(np.sum(np.square(np.asarray(rates, np.float64)))))


def walk_angle(start: Kernel, length: float) -> float:
    """Return the angle, in degrees, between a filter's start and its end after a random walk.

    A walk in many dimensions is at a right angle to its start, so the tangent is the walk's length per weight over the
    size of a weight at the start. For a layer at its initialisation, this size is the initialiser's standard deviation.

    Returns:
        The angle; NaN for a kernel of zeros.

    >>> round(walk_angle(np.full((3, 3, 4, 8), 0.1), 0.1), 6)
    45.0
    """
    size = math.sqrt(float(np.mean(np.square(np.asarray(start, np.float64)))))
    return math.degrees(math.atan(length / size)) if size > 0 else math.nan


def coherence(start: Kernel, end_a: Kernel, end_b: Kernel) -> float:
    """Return the cosine between the paths of two runs from one start: 0 for random walks, 1 if the data drove both.

    Returns:
        The cosine; NaN if one of them did not move.
    """
    a, b = (np.asarray(end, np.float64).ravel() - np.asarray(start, np.float64).ravel() for end in (end_a, end_b))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0 else math.nan


def permuted_within(
    kernels: Float[np.ndarray, "kernels *taps channels features"], rng: np.random.Generator
) -> Float[np.ndarray, "kernels *taps channels features"]:
    """Permute the weights of every filter, over taps and channels together."""
    rows = np.asarray(kernels).reshape(len(kernels), -1, kernels.shape[-1])
    return rng.permuted(rows, axis=1).reshape(kernels.shape)


def permuted_auc(
    kernels: Float[np.ndarray, "runs *taps channels features"],
    rng: np.random.Generator,
    origin: Int[np.ndarray, " runs"] | None = None,
    wave: Int[np.ndarray, " runs"] | None = None,
) -> Float[np.ndarray, " runs"]:
    """Return how well trained filters can be told from their own weights in random order: 0.5 not at all, 1 always.

    Filters moved by noise alone are as easily told from their starts as trained ones, by the shape of their weights'
    distribution. Permuting the weights of each filter keeps that shape and removes the arrangement, which is tested
    here.

    Returns:
        The values of `filters.start_end_auc`, on runs that the classifier was not trained on; NaN with fewer than two
        starts.
    """
    return start_end_auc(permuted_within(kernels, rng), kernels, origin, wave)
