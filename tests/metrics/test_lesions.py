"""Lesions of masks drawn by hand: split, joined, touching, small, and none at all."""

import math

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxseg import metrics
from jaxseg.metrics.cases import COLUMNS
from jaxseg.metrics.lesions import COLUMNS as LESION_COLUMNS
from jaxseg.types import UserError


def mask(text):
    """A 2-D mask from rows of # and dots."""
    return np.array([[character == "#" for character in row] for row in text.split()])


ONE = mask("###.... ###.... ......# ......#")
DRAWN = {
    "as it is": (ONE, ONE, (2, 0, 2, 0)),
    "one missed, one spurious": (mask("###.... ###.... ....... #......"), ONE, (1, 1, 2, 1)),
    "joined": (mask("####### ####### ....### ....###"), ONE, (2, 0, 1, 0)),
    "split": (mask("#.#.... #.#.... ......# ......."), ONE, (2, 0, 3, 0)),
    "touching at corners": (
        mask("......# .....#. ....#.. ...#..."),
        mask("......# .....#. ....#.. ...#..."),
        (1, 0, 1, 0),
    ),
    "beside it": (mask("....... ....... ###.... ###...."), mask("###.... ###.... ....... ......."), (0, 1, 1, 1)),
    "nothing predicted": (mask("....... ....... ....... ......."), ONE, (0, 2, 0, 0)),
    "nothing there": (ONE, mask("....... ....... ....... ......."), (0, 0, 2, 2)),
    "nothing at all": (mask("...."), mask("...."), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("ndim", [2, 3])
def test_drawn_masks(name, ndim):
    pred, ref, expected = DRAWN[name]
    if ndim == 3:
        pred, ref = (np.stack([one, np.zeros_like(one)]) for one in (pred, ref))
    assert metrics.count_lesions(pred, ref) == expected


def test_corners_connect_in_three_dimensions():
    ref = np.zeros((3, 3, 3), bool)
    ref[0, 0, 0] = ref[1, 1, 1] = ref[2, 2, 2] = True
    pred = np.zeros_like(ref)
    pred[0, 0, 0] = True
    assert metrics.count_lesions(pred, ref) == (1, 0, 1, 0)
    assert scipy.ndimage.label(ref)[1] == 3


@pytest.mark.parametrize(("covered", "found"), [(0, 0), (2, 0), (3, 1), (10, 1)])
def test_a_lesion_is_found_from_the_asked_share_on(covered, found):
    ref = np.ones((1, 10), bool)
    pred = np.arange(10)[None] < covered
    assert metrics.count_lesions(pred, ref, overlap=0.3) == (found, 1 - found, covered > 0, 0)
    with pytest.raises(UserError, match="`overlap` is 0"):
        metrics.count_lesions(pred, ref, overlap=0)


def test_small_components_do_not_count():
    ref = mask("##..#.... .........")
    pred = mask("##..#..#. .........")
    assert metrics.count_lesions(pred, ref) == (2, 0, 3, 1)
    assert metrics.count_lesions(pred, ref, min_voxels=2) == (1, 0, 1, 0)
    wide = mask("##..##... .........")  # touches a lesion that is too small to count
    assert metrics.count_lesions(wide, ref, min_voxels=2) == (1, 0, 2, 0)


def test_a_lesion_of_exactly_the_least_volume_counts():
    """27 mm^3 over voxels of 3 x 3 x 0.6 mm is a little more than 5 in floating point."""
    ref = np.zeros((3, 3, 12), np.uint8)
    ref[1, 1, 1:6] = ref[1, 1, 8:12] = 1
    options = {"spacing_mm": (3.0, 3.0, 0.6), "unit": "mm", "hd_definition": "pooled", "surface_empty": "diagonal"}
    rule = metrics.LesionRule(("tumour",), min_volume=27.0)
    (row,) = metrics.case_metrics(ref, ref, labels=("tumour",), tolerance_mm=None, lesions=rule, **options)
    assert [row[name] for name in LESION_COLUMNS[:4]] == [1, 0, 1, 0]


def test_ratios():
    scores = metrics.lesion_scores(metrics.LesionCounts(found=3, missed=1, predicted=5, spurious=2))
    assert tuple(scores) == LESION_COLUMNS
    assert (scores["lesion_sensitivity"], scores["lesion_precision"]) == (0.75, 0.6)
    assert scores["lesion_f1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    for counts, expected in (
        ((0, 2, 0, 0), (0.0, math.nan, 0.0)),
        ((0, 0, 2, 2), (math.nan, 0.0, 0.0)),
        ((0, 0, 0, 0), (math.nan, math.nan, math.nan)),
        ((0, 1, 1, 0), (0.0, 1.0, 0.0)),
    ):
        found = metrics.lesion_scores(metrics.LesionCounts(*counts))
        np.testing.assert_equal([found[f"lesion_{name}"] for name in ("sensitivity", "precision", "f1")], expected)


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(bool, (2, 5, 6)), st.sampled_from([0.1, 0.5, 1.0]))
def test_counts_add_up_and_a_perfect_prediction_finds_all(both, overlap):
    pred, ref = both
    counts = metrics.count_lesions(pred, ref, overlap=overlap)
    whole = np.ones((3, 3))
    assert counts.found + counts.missed == scipy.ndimage.label(ref, whole)[1]
    assert counts.predicted == scipy.ndimage.label(pred, whole)[1] >= counts.spurious
    perfect = metrics.count_lesions(ref, ref, overlap=overlap)
    assert perfect == (counts.found + counts.missed, 0, counts.found + counts.missed, 0)


def test_rows_of_a_case_have_them_for_labels_and_regions_that_are_lesions():
    ref, pred = np.zeros((12, 12), np.uint8), np.zeros((12, 12), np.uint8)
    ref[1:3, 1:3], ref[8, 8], ref[5, 5] = 1, 1, 2
    pred[1:3, 1:3], pred[5, 5] = 1, 1
    options = {
        **{"labels": ("tumour", "cyst"), "spacing_mm": (2.0, 0.5), "unit": "mm", "hd_definition": "pooled"},
        **{"surface_empty": "diagonal", "tolerance_mm": None, "regions": {"all": ("tumour", "cyst")}},
    }
    assert all(tuple(row) == COLUMNS for row in metrics.case_metrics(pred, ref, **options))
    rule = metrics.LesionRule(("tumour", "all"))
    tumour, cyst, both = metrics.case_metrics(pred, ref, **options, lesions=rule)
    assert tuple(tumour) == (*COLUMNS, *LESION_COLUMNS)
    assert [tumour[name] for name in LESION_COLUMNS[:4]] == [1, 1, 2, 1]
    assert [both[name] for name in LESION_COLUMNS[:4]] == [2, 1, 2, 0]
    assert all(math.isnan(cyst[name]) for name in LESION_COLUMNS)
    large = metrics.case_metrics(pred, ref, **options, lesions=rule._replace(min_volume=4.0))[0]
    assert [large[name] for name in LESION_COLUMNS[:4]] == [1, 0, 1, 0]  # four pixels of 1 mm^2
    in_voxels = metrics.case_metrics(pred, ref, **options | {"unit": "voxel"}, lesions=rule._replace(min_volume=5.0))[0]
    assert [in_voxels[name] for name in LESION_COLUMNS[:4]] == [0, 0, 0, 0]
