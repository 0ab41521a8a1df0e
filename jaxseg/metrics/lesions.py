"""Detection of lesions: connected components of two masks, counted as found, missed and spurious.

A component is connected through faces, edges and corners (8 neighbours of a pixel, 26 of a voxel), so that a lesion
that is thin along a diagonal is one. The rules are those of Commowick et al. (2018, doi:10.1038/s41598-018-31911-7)
without their limit on how much a prediction may cover beside a lesion; in the terms of Maier-Hein et al. (2024,
doi:10.1038/s41592-023-02151-z), components are matched by the intersection over the reference:

- A lesion of the reference is **found** if the prediction covers at least a given share of its voxels, otherwise it is
  **missed**. One predicted component may find several lesions that it joins, and several may find one together.
- A predicted component is **spurious** if it shares no voxel with the reference.

Components smaller than a given volume do not count: those of the prediction are left out, and those of the reference
are neither found nor missed, though a prediction that touches one is not spurious.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Int

from jaxseg.metrics.overlap import bounding_box, check_masks
from jaxseg.types import UserError

FOUND_SHARE = 0.1
"""Share of a lesion's voxels that a prediction covers to find it, as Commowick et al. have it."""

COLUMNS = (
    *("lesions_found", "lesions_missed", "lesions_predicted", "lesions_spurious"),
    *("lesion_sensitivity", "lesion_precision", "lesion_f1"),
)
"""Keys of `lesion_scores`."""


class LesionRule(NamedTuple):
    """What is counted as a lesion, and when it is found."""

    names: tuple[str, ...]
    """Labels or regions whose components are lesions."""
    overlap: float = FOUND_SHARE
    """Least share of a lesion's voxels that is predicted where it is found."""
    min_volume: float = 0.0
    """Least volume of a component that counts, in unit^ndim."""


class LesionCounts(NamedTuple):
    """Components of a reference and a predicted mask."""

    found: int
    missed: int
    predicted: int
    """Predicted components, spurious ones included."""
    spurious: int


def count_lesions(
    pred: Bool[np.ndarray, "*spatial"],
    ref: Bool[np.ndarray, "*spatial"],
    *,
    overlap: float = FOUND_SHARE,
    min_voxels: float = 0.0,
) -> LesionCounts:
    """Count the components of two masks on one grid.

    Args:
        pred: Predicted mask.
        ref: Reference mask.
        overlap: Least share of a lesion's voxels that is predicted where it is found, above 0 and up to 1.
        min_voxels: Least size of a component that counts.

    Raises:
        UserError: A mask is not boolean, the shapes differ, or `overlap` is no such share.

    >>> ref = np.array([1, 1, 0, 1, 0, 0], bool)
    >>> count_lesions(np.array([0, 1, 0, 0, 0, 1], bool), ref)
    LesionCounts(found=1, missed=1, predicted=2, spurious=1)
    """
    check_masks(pred, ref)
    if not 0 < overlap <= 1:
        raise UserError(f"metrics: `overlap` is {overlap}; a share above 0 and up to 1 is needed.")
    box = bounding_box(pred | ref)
    pred_ids, pred_sizes = _components(pred[box])
    ref_ids, ref_sizes = _components(ref[box])
    # A component of exactly the least size counts, whatever rounding made of a volume divided by that of a voxel.
    min_voxels *= 1 - 1e-9
    counts = pred_sizes >= min_voxels
    kept = np.concatenate([[False], counts])[pred_ids]
    covered = np.bincount(ref_ids[kept], minlength=len(ref_sizes) + 1)[1:]
    touching = np.bincount(pred_ids[ref_ids > 0], minlength=len(pred_sizes) + 1)[1:] > 0
    lesions = ref_sizes >= min_voxels
    found = lesions & (covered / ref_sizes >= overlap)
    return LesionCounts(
        found=int(found.sum()),
        missed=int((lesions & ~found).sum()),
        predicted=int(counts.sum()),
        spurious=int((counts & ~touching).sum()),
    )


def _components(mask: Bool[np.ndarray, "*spatial"]) -> tuple[Int[np.ndarray, "*spatial"], Int[np.ndarray, " n"]]:
    """The number of the component that each voxel is in, 0 outside, and the sizes of the components."""
    whole = scipy.ndimage.generate_binary_structure(mask.ndim, mask.ndim)
    numbers, count = scipy.ndimage.label(mask, structure=whole)
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)[1:]


def lesion_scores(counts: LesionCounts) -> dict[str, float]:
    """Compute all scores from counts.

    Returns:
        The counts; `lesion_sensitivity` = found / (found + missed), NaN without a lesion; `lesion_precision` = 1 -
        spurious / predicted, NaN without a predicted component; and `lesion_f1`, their harmonic mean, which is 0 where
        all lesions are missed or all that is predicted is spurious, and NaN where there is neither lesion nor spurious
        component.

    >>> lesion_scores(LesionCounts(found=1, missed=1, predicted=2, spurious=0))["lesion_f1"]
    0.6666666666666666
    """
    found, missed, predicted, spurious = counts
    sensitivity = found / (found + missed) if found + missed else math.nan
    precision = 1 - spurious / predicted if predicted else math.nan
    if found and predicted:
        f1 = 2 * sensitivity * precision / (sensitivity + precision)
    else:
        f1 = 0.0 if missed or spurious else math.nan
    values = (found, missed, predicted, spurious, sensitivity, precision, f1)
    return dict(zip(COLUMNS, map(float, values), strict=True))
