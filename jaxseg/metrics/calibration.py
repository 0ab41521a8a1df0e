"""Calibration of probabilities: counts in bins, which add up over slabs and cases, and the error drawn from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxseg.types import UserError

BINS = 15
"""Equal parts of [0, 1], as Guo et al. 2017 take them."""


class CalibrationBins(NamedTuple):
    """Voxels by the probability given to them. Those of several slabs or cases add up element by element."""

    voxels: Float[np.ndarray, " bins"]
    probability: Float[np.ndarray, " bins"]
    """Sum of the probabilities."""
    positive: Float[np.ndarray, " bins"]
    """Voxels that do hold the label."""

    def merge(self, other: CalibrationBins) -> CalibrationBins:
        """The bins of both together."""
        return CalibrationBins(*(a + b for a, b in zip(self, other, strict=True)))


def count_bins(
    probability: Float[np.ndarray, "*shape"], ref: Bool[np.ndarray, "*shape"], *, bins: int = BINS
) -> CalibrationBins:
    """Sorts voxels into bins by the probability of one label.

    Args:
        probability: that each voxel holds the label.
        ref: whether it does.
        bins: number of equal parts of [0, 1].

    Raises:
        UserError: if the shapes differ, `ref` is not boolean or a probability lies outside [0, 1].
    """
    if probability.shape != ref.shape or ref.dtype != np.bool_:
        raise UserError(
            f"metrics: a calibration needs probabilities and a boolean mask of one shape, got {probability.shape} and "
            f"{ref.dtype} {ref.shape}."
        )
    values = probability.ravel().astype(np.float64)
    if values.size and not (values.min() >= -1e-6 and values.max() <= 1 + 1e-6):
        raise UserError(f"metrics: probabilities lie between 0 and 1, got {values.min():g} to {values.max():g}.")
    index = np.clip((values * bins).astype(np.int64), 0, bins - 1)
    return CalibrationBins(
        np.bincount(index, minlength=bins).astype(np.float64),
        np.bincount(index, weights=values, minlength=bins),
        np.bincount(index[ref.ravel()], minlength=bins).astype(np.float64),
    )


def expected_calibration_error(counts: CalibrationBins) -> float:
    """Mean over voxels of |mean probability - frequency| of their bin; NaN without a voxel."""
    total = counts.voxels.sum()
    return float(np.abs(counts.probability - counts.positive).sum() / total) if total else float("nan")


def calibration_error(
    probability: Float[np.ndarray, "*shape"], ref: Bool[np.ndarray, "*shape"], *, bins: int = BINS
) -> float:
    """Expected calibration error of one label against the rest (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Args:
        probability: that each voxel holds the label.
        ref: whether it does.
        bins: number of equal parts of [0, 1].

    Raises:
        UserError: see `count_bins`.

    >>> calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False]))
    0.25
    """
    return expected_calibration_error(count_bins(probability, ref, bins=bins))
