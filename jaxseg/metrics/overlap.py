"""Overlap of two masks: voxel counts, which add up over cases, and ratios, which are computed once at the end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxseg.types import UserError


class Counts(NamedTuple):
    """Voxels of a predicted and a reference mask. Counts of several cases add up element by element."""

    both: int
    """Voxels in both prediction and reference: true positives."""
    pred_only: int
    """Voxels in the prediction only: false positives."""
    ref_only: int
    """Voxels in the reference only: false negatives."""


def check_masks(pred: np.ndarray, ref: np.ndarray) -> None:
    """Refuse masks that are not boolean or differ in shape.

    Raises:
        UserError: The dtype is not bool (a label map passed by mistake would be scored as one big object), or the
            shapes differ.
    """
    for name, mask in (("pred", pred), ("ref", ref)):
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
            raise UserError(
                f"metrics: `{name}` must be a boolean NumPy array, got {got}. Compare a label map with one label "
                f"first, for instance `{name} == 1`."
            )
    if pred.shape != ref.shape:
        raise UserError(
            f"metrics: `pred` and `ref` must lie on one grid, got shapes {pred.shape} and {ref.shape}. Resample the "
            "prediction to the case's own grid first."
        )


def bounding_box(mask: Bool[np.ndarray, "*spatial"], *, margin: int = 0) -> tuple[slice, ...]:
    """Return the smallest box that holds a mask, widened by `margin` within the array; empty for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        box.append(slice(max(int(hit[0]) - margin, 0), int(hit[-1]) + 1 + margin) if len(hit) else slice(0, 0))
    return tuple(box)


def count_voxels(pred: Bool[np.ndarray, "*spatial"], ref: Bool[np.ndarray, "*spatial"]) -> Counts:
    """Count the voxels of two masks on one grid.

    Raises:
        UserError: A mask is not boolean, or the shapes differ.
    """
    check_masks(pred, ref)
    both = int(np.count_nonzero(pred & ref))
    return Counts(both, int(np.count_nonzero(pred)) - both, int(np.count_nonzero(ref)) - both)


def mask_status(counts: Counts) -> str:
    """Return which of the two masks have the label.

    Returns:
        `ok`, `missed` (in the reference only), `spurious` (in the prediction only) or `both_empty`.
    """
    in_pred = counts.both + counts.pred_only > 0
    in_ref = counts.both + counts.ref_only > 0
    if in_ref:
        return "ok" if in_pred else "missed"
    return "spurious" if in_pred else "both_empty"


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def overlap_scores(counts: Counts) -> dict[str, float]:
    """Compute all overlap ratios from voxel counts.

    Returns:
        `dsc` = 2 TP / (2 TP + FP + FN), `iou` = TP / (TP + FP + FN), `precision` = TP / (TP + FP),
        `recall` = TP / (TP + FN) and `volume_error` = (TP + FP) / (TP + FN) - 1, the signed relative error of the
        volume. A ratio whose denominator is zero is NaN, never 0 or 1: if both masks are empty, all five are NaN.

    >>> overlap_scores(Counts(both=2, pred_only=1, ref_only=1))["dsc"]
    0.6666666666666666
    """
    both, pred_only, ref_only = counts
    return {
        "dsc": _ratio(2 * both, 2 * both + pred_only + ref_only),
        "iou": _ratio(both, both + pred_only + ref_only),
        "precision": _ratio(both, both + pred_only),
        "recall": _ratio(both, both + ref_only),
        "volume_error": _ratio(pred_only - ref_only, both + ref_only),
    }


def dsc(pred: Bool[np.ndarray, "*spatial"], ref: Bool[np.ndarray, "*spatial"]) -> float:
    """Return the Dice similarity coefficient; NaN if both masks are empty, 0 if one is.

    Raises:
        UserError: A mask is not boolean, or the shapes differ.
    """
    return overlap_scores(count_voxels(pred, ref))["dsc"]


def iou(pred: Bool[np.ndarray, "*spatial"], ref: Bool[np.ndarray, "*spatial"]) -> float:
    """Return the intersection over union (Jaccard index); NaN if both masks are empty, 0 if one is.

    Raises:
        UserError: A mask is not boolean, or the shapes differ.
    """
    return overlap_scores(count_voxels(pred, ref))["iou"]


def precision(pred: Bool[np.ndarray, "*spatial"], ref: Bool[np.ndarray, "*spatial"]) -> float:
    """Return the share of the prediction that is right; NaN if the prediction is empty.

    Raises:
        UserError: A mask is not boolean, or the shapes differ.
    """
    return overlap_scores(count_voxels(pred, ref))["precision"]


def recall(pred: Bool[np.ndarray, "*spatial"], ref: Bool[np.ndarray, "*spatial"]) -> float:
    """Return the share of the reference that is found; NaN if the reference is empty.

    Raises:
        UserError: A mask is not boolean, or the shapes differ.
    """
    return overlap_scores(count_voxels(pred, ref))["recall"]


def volume_error(pred: Bool[np.ndarray, "*spatial"], ref: Bool[np.ndarray, "*spatial"]) -> float:
    """Return the signed relative volume error, (|pred| - |ref|) / |ref|; NaN if the reference is empty.

    Raises:
        UserError: A mask is not boolean, or the shapes differ.
    """
    return overlap_scores(count_voxels(pred, ref))["volume_error"]
