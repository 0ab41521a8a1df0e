"""Calibration of probabilities: counts in bins, which add up over slabs and cases, and the error computed from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxseg.types import UserError

BINS = 15
"""Number of equal bins of [0, 1], as in Guo et al. 2017."""
_ROUNDING = 1e-3
"""How far a probability may be outside [0, 1]: those of a region are sums of means over many windows."""


class CalibrationBins(NamedTuple):
    """Voxels by their predicted probability. The counts of several slabs or cases add up element by element."""

    voxels: Float[np.ndarray, " bins"]
    probability: Float[np.ndarray, " bins"]
    """Sum of the probabilities."""
    positive: Float[np.ndarray, " bins"]
    """Number of voxels that do have the label."""

    def merge(self, other: CalibrationBins) -> CalibrationBins:
        """Return the sum of two sets of bins."""
        return CalibrationBins(*(a + b for a, b in zip(self, other, strict=True)))


def count_bins(
    probability: Float[np.ndarray, "*shape"], ref: Bool[np.ndarray, "*shape"], *, bins: int = BINS
) -> CalibrationBins:
    """Sort voxels into bins by the probability of one label.

    Args:
        probability: Probability that each voxel has the label.
        ref: Whether each voxel has the label.
        bins: Number of equal bins of [0, 1].

    Raises:
        UserError: The shapes differ, `ref` is not boolean, or a probability is outside [0, 1] by more than rounding.
    """
    if probability.shape != ref.shape or ref.dtype != np.bool_:
        raise UserError(
            f"metrics: a calibration needs probabilities and a boolean mask of one shape, got {probability.shape} and "
            f"{ref.dtype} {ref.shape}."
        )
    values = probability.ravel().astype(np.float64)
    if values.size and not (values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING):
        raise UserError(f"metrics: probabilities lie between 0 and 1, got {values.min():g} to {values.max():g}.")
    index = np.clip((values * bins).astype(np.int64), 0, bins - 1)
    return CalibrationBins(
        np.bincount(index, minlength=bins).astype(np.float64),
        np.bincount(index, weights=values, minlength=bins),
        np.bincount(index[ref.ravel()], minlength=bins).astype(np.float64),
    )


def expected_calibration_error(counts: CalibrationBins) -> float:
    """Return the mean over voxels of |mean probability - frequency| of their bin; NaN without a voxel."""
    total = counts.voxels.sum()
    return float(np.abs(counts.probability - counts.positive).sum() / total) if total else float("nan")


def calibration_error(
    probability: Float[np.ndarray, "*shape"], ref: Bool[np.ndarray, "*shape"], *, bins: int = BINS
) -> float:
    """Return the expected calibration error of one label against the rest (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Args:
        probability: Probability that each voxel has the label.
        ref: Whether each voxel has the label.
        bins: Number of equal bins of [0, 1].

    Raises:
        UserError: See `count_bins`.

    >>> calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False]))
    0.25
    """
    return expected_calibration_error(count_bins(probability, ref, bins=bins))
