"""The rows of one case agree with the single metrics, and undefined values carry their status."""

import math

import numpy as np
import pytest

from jaxseg import metrics
from jaxseg.metrics.cases import COLUMNS
from jaxseg.types import UserError

SPACING = (0.5, 1.0, 2.0)
OPTIONS = {
    "labels": ("anterior", "posterior", "other"),
    "spacing_mm": SPACING,
    "unit": "mm",
    "hd_definition": "pooled",
    "surface_empty": "diagonal",
    "tolerance_mm": 1.0,
}


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    ref = np.zeros((14, 12, 10), np.uint8)
    ref[3:9, 2:9, 2:7] = 1
    ref[9:12, 2:9, 2:7] = 2
    pred = np.roll(ref, 1, 1)
    pred[rng.random(ref.shape) < 0.02] = 1
    return pred, ref


def test_rows_equal_the_single_metrics(maps):
    pred, ref = maps
    rows = metrics.case_metrics(pred, ref, **OPTIONS | {"hd_definition": "directed"})
    assert [row["label"] for row in rows] == list(OPTIONS["labels"])
    for value, row in enumerate(rows[:2], start=1):
        p, r = pred == value, ref == value
        assert tuple(row) == COLUMNS
        assert (row["status"], row["unit"], row["hd_definition"], row["tolerance"]) == ("ok", "mm", "directed", 1.0)
        for name in ("dsc", "iou", "precision", "recall", "volume_error"):
            assert row[name] == getattr(metrics, name)(p, r)
        assert row["hd95"] == metrics.hd95(p, r, spacing_mm=SPACING, definition="directed")
        assert row["hd"] == metrics.hd(p, r, spacing_mm=SPACING)
        assert row["assd"] == metrics.assd(p, r, spacing_mm=SPACING)
        assert row["nsd"] == metrics.nsd(p, r, spacing_mm=SPACING, tolerance_mm=1.0)
        assert row["volume_ref"] == r.sum() * 1.0
        assert row["volume_pred"] == p.sum() * 1.0
    assert rows[2]["status"] == "both_empty"
    assert all(math.isnan(rows[2][c]) for c in ("dsc", "hd95", "hd", "assd", "nsd", "volume_error"))
    assert rows[2]["volume_pred"] == rows[2]["volume_ref"] == 0.0


def test_missed_and_spurious(maps):
    _, ref = maps
    pred = np.where(ref == 1, 3, 0).astype(np.uint8)
    missed, gone, spurious = metrics.case_metrics(pred, ref, **OPTIONS)
    assert (missed["status"], gone["status"], spurious["status"]) == ("missed", "missed", "spurious")
    diagonal = math.hypot(14 * 0.5, 12 * 1.0, 10 * 2.0)
    assert missed["dsc"] == missed["nsd"] == 0.0
    assert missed["hd95"] == missed["hd"] == missed["assd"] == pytest.approx(diagonal)
    assert spurious["dsc"] == spurious["nsd"] == 0.0
    assert math.isnan(spurious["hd95"])
    assert spurious["volume_pred"] > 0 == spurious["volume_ref"]
    for choice, value in (("nan", math.nan), ("inf", math.inf)):
        row = metrics.case_metrics(pred, ref, **OPTIONS | {"surface_empty": choice})[0]
        np.testing.assert_equal(row["hd95"], value)


def test_voxel_unit_ignores_the_spacing(maps):
    mm = metrics.case_metrics(*maps, **OPTIONS | {"spacing_mm": (1.0, 1.0, 1.0)})
    voxel = metrics.case_metrics(*maps, **OPTIONS | {"unit": "voxel"})
    for a, b in zip(mm, voxel, strict=True):
        np.testing.assert_equal({**a, "unit": "voxel"}, b)


def test_no_tolerance_no_nsd(maps):
    rows = metrics.case_metrics(*maps, **OPTIONS | {"tolerance_mm": None})
    assert all(math.isnan(row["nsd"]) and math.isnan(row["tolerance"]) for row in rows)
    missed = metrics.case_metrics(np.zeros_like(maps[1]), maps[1], **OPTIONS | {"tolerance_mm": None})[0]
    assert math.isnan(missed["nsd"])


def test_regions_are_unions(maps):
    pred, ref = maps
    row = metrics.case_metrics(pred, ref, **OPTIONS, regions={"whole": ("anterior", "posterior")})[3]
    assert row["label"] == "whole"
    assert row["dsc"] == metrics.dsc(pred > 0, ref > 0)
    assert row["hd95"] == metrics.hd95(pred > 0, ref > 0, spacing_mm=SPACING)


def test_voxels_without_a_known_label_count_nowhere(maps):
    pred, ref = maps
    marked = ref.copy()
    marked[:, :, 5:] = 4
    known = np.zeros(ref.shape, bool)
    known[:, :, :5] = True
    expected = metrics.case_metrics(np.where(known, pred, 0), np.where(known, ref, 0), **OPTIONS)
    np.testing.assert_equal(metrics.case_metrics(pred, marked, **OPTIONS, ignore_index=4), expected)
    with pytest.raises(UserError, match="values from 0 to 4"):
        metrics.case_metrics(pred, marked, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred": np.full((2, 2, 2), 4)}, "values from 4 to 4"),
        ({"ref": np.full((2, 2, 2), -1)}, "-1"),
        ({"pred": np.zeros((2, 2, 2))}, "whole numbers"),
        ({"pred": np.zeros((2, 2, 3), int)}, "one grid"),
        ({"unit": "cm"}, "mm, voxel"),
        ({"hd_definition": "max"}, "pooled, directed"),
        ({"surface_empty": "0"}, "diagonal, nan, inf"),
        ({"spacing_mm": (1.0, 1.0)}, "3 axes"),
        ({"tolerance_mm": -1.0}, "tolerance_mm"),
        ({"regions": {"whole": ("core",)}}, "core"),
        ({"regions": {"other": ("anterior",)}}, "names of their own"),
    ],
)
def test_mistakes_are_named(change, words):
    zeros = np.zeros((2, 2, 2), np.uint8)
    arguments = {"pred": zeros, "ref": zeros, **OPTIONS} | change
    with pytest.raises(UserError, match=words):
        metrics.case_metrics(arguments.pop("pred"), arguments.pop("ref"), **arguments)
