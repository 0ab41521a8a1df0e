"""Pictures of cases: which slice is cut, and which way up it stands."""

from __future__ import annotations

import numpy as np
import pytest

from jaxseg.study.score.slices import example_slice, place_of, upright


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_a_single_slice_is_shown_as_that_slice_with_its_second_axis_up(axis: int):
    reference = np.zeros(np.insert((4, 3), axis, 1), np.uint8)
    plane = reference.reshape(4, 3)
    plane[3, 2] = 1  # the last along both axes within the slice: on the right, and on top
    where = example_slice(reference)
    assert place_of(where) == (axis, 0)
    picture = upright(reference[where], reference.ndim)
    assert picture.shape == (3, 4)
    assert np.argwhere(picture).tolist() == [[0, 3]]


def test_of_several_slices_the_one_across_the_last_axis_with_most_foreground_is_shown():
    reference = np.zeros((4, 3, 5), np.uint8)
    reference[1, 1, 2] = reference[:2, 2, 3] = 1
    assert place_of(example_slice(reference)) == (2, 3)
