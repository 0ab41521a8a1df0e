"""Calibration error by hand, by its extremes, and the same in parts as in one piece."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import metrics
from jaxseg.types import UserError


def test_by_hand():
    """Three bins: two voxels at 0.1 (none positive), two at 0.5 (one), one at 1 (yes): (0.2 + 0 + 0) / 5."""
    probability = np.array([0.1, 0.1, 0.5, 0.5, 1.0])
    ref = np.array([False, False, True, False, True])
    assert metrics.calibration_error(probability, ref, bins=3) == pytest.approx(0.04)
    # One bin for all: mean probability 0.44 against a frequency of 0.4.
    assert metrics.calibration_error(probability, ref, bins=1) == pytest.approx(0.04)


def test_certain_and_right_is_0_certain_and_wrong_is_1():
    ref = np.random.default_rng(0).random((4, 5)) < 0.5
    assert metrics.calibration_error(ref.astype(np.float32), ref) == 0.0
    assert metrics.calibration_error((~ref).astype(np.float32), ref) == 1.0
    assert math.isnan(metrics.calibration_error(np.zeros((0, 3)), np.zeros((0, 3), bool)))


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not():
    rng = np.random.default_rng(1)
    probability = rng.random(200_000)
    ref = rng.random(200_000) < probability
    assert metrics.calibration_error(probability, ref) < 0.005
    sharp = probability**4 / (probability**4 + (1 - probability) ** 4)
    assert metrics.calibration_error(sharp, ref) > 0.1


@given(st.integers(0, 50), st.integers(0, 1000))
def test_parts_add_up(cut, seed):
    rng = np.random.default_rng(seed)
    probability, ref = rng.random(50).astype(np.float32), rng.random(50) < 0.5
    parts = [metrics.count_bins(probability[part], ref[part]) for part in (slice(cut), slice(cut, None))]
    whole = metrics.calibration_error(probability, ref)
    assert metrics.expected_calibration_error(parts[0].merge(parts[1])) == pytest.approx(whole, abs=1e-12)


def test_sums_of_rounded_probabilities_are_probabilities():
    """Stitched from many windows, those of the labels of a region add up to a little more than 1."""
    over = np.full(8, 1 + 4.4e-6, np.float32)
    counts = metrics.count_bins(over, np.ones(8, bool))
    assert (counts.voxels[-1], counts.positive[-1]) == (8, 8)
    assert metrics.expected_calibration_error(counts) < 1e-5


def test_mistakes_are_named():
    with pytest.raises(UserError, match="one shape"):
        metrics.calibration_error(np.zeros(3), np.zeros(4, bool))
    with pytest.raises(UserError, match="boolean"):
        metrics.calibration_error(np.zeros(3), np.zeros(3))
    with pytest.raises(UserError, match=r"between 0 and 1, got 0 to 1\.01"):
        metrics.calibration_error(np.array([0.0, 1.01]), np.zeros(2, bool))
    with pytest.raises(UserError, match="between 0 and 1, got 0 to 2"):
        metrics.calibration_error(np.array([0.0, 2.0]), np.zeros(2, bool))
