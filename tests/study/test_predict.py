"""Scores of whole cases on the training grid."""

from __future__ import annotations

import numpy as np

from jaxseg.metrics import dsc
from jaxseg.study.predict import confusion, dsc_from_confusion


def test_dsc_of_all_runs_at_once_is_the_metric_of_each() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    predictions = rng.integers(0, 3, (4, 5, 6, 7))
    scores = dsc_from_confusion(confusion(predictions, label, 3))
    expected = [[dsc(prediction == k, label == k) for k in (1, 2)] for prediction in predictions]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_a_label_that_the_reference_lacks_has_no_dsc() -> None:
    label = np.array([0, 1, 1, 0], np.uint8)
    scores = dsc_from_confusion(confusion(np.array([[0, 1, 2, 2]]), label, 3))
    np.testing.assert_array_equal(scores, [[2 / 3, np.nan]])


def test_voxels_of_unknown_label_count_for_nothing() -> None:
    known = np.array([0, 1, 1, 2], np.uint8)
    prediction = np.array([[0, 1, 2, 2]])
    extended = np.append(known, [3, 3]).astype(np.uint8)
    counts = confusion(np.append(prediction, [[1, 2]], axis=1), extended, 3)
    np.testing.assert_array_equal(counts, confusion(prediction, known, 3))
