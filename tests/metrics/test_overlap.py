"""Overlap ratios by hand and by their identities."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medpy.metric import binary

from jaxseg import metrics
from jaxseg.metrics import Counts
from jaxseg.types import UserError


def _masks(counts, size=64):
    """Masks in a row of voxels with these counts."""
    pred, ref = np.zeros((2, size), bool)
    ends = np.cumsum(counts)
    pred[: ends[1]] = True
    ref[: ends[0]] = True
    ref[ends[1] : ends[2]] = True
    return pred, ref


def test_by_hand():
    pred, ref = _masks((6, 2, 4))
    assert metrics.count_voxels(pred, ref) == Counts(6, 2, 4)
    assert metrics.dsc(pred, ref) == 12 / 18
    assert metrics.iou(pred, ref) == 6 / 12
    assert metrics.precision(pred, ref) == 6 / 8
    assert metrics.recall(pred, ref) == 6 / 10
    assert metrics.volume_error(pred, ref) == pytest.approx(-0.2)


@given(st.tuples(*(st.integers(0, 20),) * 3))
def test_identities_and_medpy(numbers):
    pred, ref = _masks(numbers)
    scores = metrics.overlap_scores(metrics.count_voxels(pred, ref))
    both, pred_only, ref_only = numbers
    if not any(numbers):
        assert all(math.isnan(v) for v in scores.values())
        return
    assert scores["dsc"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))
    assert scores["dsc"] == pytest.approx(binary.dc(pred, ref))
    assert scores["iou"] == pytest.approx(binary.jc(pred, ref))
    if both + pred_only:
        assert scores["precision"] == pytest.approx(binary.precision(pred, ref))
    if both + ref_only:
        assert scores["recall"] == pytest.approx(binary.recall(pred, ref))
        assert scores["volume_error"] == pytest.approx(binary.ravd(pred, ref)) or both + pred_only == 0


@pytest.mark.parametrize(
    ("numbers", "status", "dsc", "precision", "recall"),
    [
        ((1, 0, 0), "ok", 1.0, 1.0, 1.0),
        ((0, 3, 2), "ok", 0.0, 0.0, 0.0),
        ((0, 0, 2), "missed", 0.0, math.nan, 0.0),
        ((0, 3, 0), "spurious", 0.0, 0.0, math.nan),
        ((0, 0, 0), "both_empty", math.nan, math.nan, math.nan),
    ],
)
def test_status_and_undefined_ratios(numbers, status, dsc, precision, recall):
    pred, ref = _masks(numbers)
    assert metrics.mask_status(metrics.count_voxels(pred, ref)) == status
    got = [metrics.dsc(pred, ref), metrics.precision(pred, ref), metrics.recall(pred, ref)]
    np.testing.assert_equal(got, [dsc, precision, recall])


def test_label_maps_are_refused():
    with pytest.raises(UserError, match="boolean"):
        metrics.dsc(np.zeros((2, 2), int), np.zeros((2, 2), bool))
    with pytest.raises(UserError, match="one grid"):
        metrics.dsc(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
