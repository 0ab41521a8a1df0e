"""Linear probes of a layer: whether it holds the information about labels, whatever its geometry."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

PENALTY = 1e-2
"""Constant added to the diagonal of the covariance, in units of a standardised feature's variance."""
FOLDS = 5
"""Largest number of groups of cases that are held out in turn."""


class Moments(NamedTuple):
    """Weighted sums over points that determine a classifier; those of disjoint sets of points add up."""

    weight: Float[np.ndarray, " labels"]
    x: Float[np.ndarray, "labels channels"]
    xx: Float[np.ndarray, "channels channels"]


def moments(
    x: Float[np.ndarray, "points channels"], label: Int[np.ndarray, " points"], weight: Float[np.ndarray, " labels"]
) -> Moments:
    """Return the sums of some points; `weight` is the weight of one point of each label."""
    counts = np.bincount(label, minlength=len(weight))
    sums = (label[:, None] == np.arange(len(weight))).astype(np.float64).T @ x
    return Moments(weight * counts, weight[:, None] * sums, (x * weight[label][:, None]).T @ x)


def discriminant(sums: Moments, penalty: float = PENALTY) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes `[channels, labels]` and intercepts `[labels]` of Fisher's linear discriminant.

    The score of a label is the log density, up to a term that all labels share, of a Gaussian around its mean with the
    covariance within labels. (Least squares on indicators of the labels would lose a label that lies between two
    others.) Labels that do not occur have a score of minus infinity.
    """
    total, occurs = sums.weight.sum(), sums.weight > 0
    means = sums.x / np.where(occurs, sums.weight, 1)[:, None]
    within = sums.xx / total - (means * (sums.weight / total)[:, None]).T @ means
    mean = sums.x.sum(0) / total
    power = np.diag(sums.xx) / total
    variance = power - np.square(mean)
    # A dead channel has a variance of 0, or a rounding error instead, and gets no slope.
    alive = variance > 1e-12 * power
    sd = np.sqrt(np.where(alive, variance, 1))
    within = np.where(np.outer(alive, alive), within / np.outer(sd, sd), 0) + penalty * np.eye(len(sd))
    slopes = np.linalg.solve(within, np.where(alive, means / sd, 0).T) / sd[:, None]
    return slopes, np.where(occurs, -0.5 * np.sum(means.T * slopes, 0), -np.inf)


def probe_score(
    x: Float[np.ndarray, "points channels"],
    label: Int[np.ndarray, " points"],
    case: Int[np.ndarray, " points"],
    *,
    folds: int = FOLDS,
) -> float:
    """Return the balanced accuracy of a linear probe on positions of held-out cases (Alain and Bengio 2016).

    The probe is a `discriminant` in which all labels weigh the same. (arXiv:1610.01644 uses a logistic regression,
    which has no closed form.) Cases are distributed over folds, and the recall of a label is taken over the held-out
    positions of all folds.

    Args:
        x: Features of each position.
        label: Label of each position.
        case: Case of each position.
        folds: Number of folds; fewer if there are fewer cases.

    Returns:
        The mean recall of the labels that occur; 1 / labels by chance. NaN with a single case or a single label.
    """
    names, truth, counts = np.unique(label, return_inverse=True, return_counts=True)
    cases, of_case = np.unique(case, return_inverse=True)
    if len(names) < 2 or len(cases) < 2:
        return float("nan")
    fold = of_case % min(folds, len(cases))
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)  # so that the moments lose no digits to a large mean
    # The points are summed once, whatever the number of folds: the sums to fit are the total less the held-out ones.
    parts = [moments(x[fold == index], truth[fold == index], 1 / counts) for index in range(fold.max() + 1)]
    whole = Moments(*(np.sum(of_parts, axis=0) for of_parts in zip(*parts, strict=True)))
    right = np.zeros(len(names))
    for index, part in enumerate(parts):
        slopes, intercepts = discriminant(Moments(*(total - own for total, own in zip(whole, part, strict=True))))
        found = (x[fold == index] @ slopes + intercepts).argmax(1)
        asked = truth[fold == index]
        right += np.bincount(asked, found == asked, minlength=len(names))
    return float(np.mean(right / counts))
