"""Fits the arm without a network: how far the mean label map of the training cases goes, as anatomy alone.

Label maps are overlaid with their fields of view aligned and nothing else: what the prior reaches is what
cropping and positioning of the images give away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num

from jaxseg.data.volumes.resample import resize_linear
from jaxseg.regions import THRESHOLD, mask

THRESHOLDS = np.linspace(0.05, 0.95, 19)


Members = Sequence[Sequence[int]]
"""The classes of a label map that each label or region is made of."""


def mean_labels(labels: Sequence[Num[np.ndarray, " *spatial"]], members: Members) -> Float[np.ndarray, "*common names"]:
    """Computes how often each voxel of a common grid, of the cases' median shape, has each name.

    Args:
        labels: Label maps of any shapes; voxels of unknown label count for none.
        members: The classes of each name.
    """
    shape = tuple(int(size) for size in np.median([label.shape for label in labels], axis=0))
    total = np.zeros((*shape, len(members)), np.float32)
    for label in labels:
        masks = np.stack([mask(label, classes) for classes in members], -1)
        total += resize_linear(masks.astype(np.float32), shape)
    return total / len(labels)


def best_thresholds(
    mean: Float[np.ndarray, "*common classes"], labels: Sequence[Num[np.ndarray, " *spatial"]], members: Members
) -> Float[np.ndarray, " names"]:
    """Finds for each label or region the threshold at which the mean has the largest mean DSC with the cases.

    The mean begins with the background, which has no threshold.
    """
    dsc = np.full((len(labels), len(members), len(THRESHOLDS)), np.nan)
    for row, label in zip(dsc, labels, strict=True):
        # How many thresholds each voxel's share reaches: all DSCs come from its histogram.
        reached = np.searchsorted(THRESHOLDS, resize_linear(mean, label.shape)[..., 1:], side="right")
        for index, classes in enumerate(members):
            truth = mask(label, classes)
            if truth.any():
                said, both = (_at_least(values) for values in (reached[..., index], reached[..., index][truth]))
                row[index] = 2 * both / (said + truth.sum())
    held = ~np.isnan(dsc)
    return THRESHOLDS[(np.where(held, dsc, 0).sum(0) / np.maximum(held.sum(0), 1)).argmax(-1)]


def _at_least(reached: Num[np.ndarray, " *any"]) -> Num[np.ndarray, " thresholds"]:
    """How many values reach at least the first threshold, the second, and so on."""
    counts = np.bincount(reached.ravel(), minlength=len(THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:]


def fit_prior(
    labels: Sequence[Num[np.ndarray, " *spatial"]], members: Members, *, overlapping: bool = False
) -> Float[np.ndarray, "*common outputs"]:
    """Fits the prior to training cases: scores on the common grid, from which labels are decided as from a network's.

    A label scores its share divided by its threshold, and background scores 1: a label is predicted where it passes its
    threshold, the one that passes by most where several do. A region that may overlap others has no background beside
    it, and scores `regions.THRESHOLD` where it reaches its own.

    Args:
        labels: Label maps of the training cases.
        members: The classes of each label or region.
        overlapping: Whether these are regions.
    """
    mean = mean_labels(labels, [(0,), *members])
    scores = mean / np.concatenate([[1.0], best_thresholds(mean, labels, members)])
    if overlapping:
        return (THRESHOLD * scores[..., 1:]).astype(np.float32)
    scores[..., 0] = 1.0
    return scores.astype(np.float32)
