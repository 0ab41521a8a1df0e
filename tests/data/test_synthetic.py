"""Synthetic tasks: a function of their string, with the labels, difficulty and likeness asked for."""

import numpy as np
import pytest

from jaxseg.data.formats import synthetic
from jaxseg.data.formats.synthetic import make_case, parse


@pytest.mark.parametrize("family", synthetic.FAMILIES)
@pytest.mark.parametrize("shape", ["24x24x24", "48x40"])
def test_every_case_has_every_label_and_mostly_background(family, shape):
    for labels in (1, 3):
        task = parse(f"{family}?shape={shape}&labels={labels}&channels=2")
        for index in range(6):
            image, label = make_case(task, index)
            assert image.shape == (*task.shape, 2)
            assert image.dtype == np.float32
            assert np.isfinite(image).all()
            counts = np.bincount(label.ravel(), minlength=labels + 1)
            assert (counts[1:] > 0.002 * label.size).all()
            assert 0.25 < counts[0] / label.size < 0.995


def test_a_case_is_a_function_of_the_string_and_its_number():
    first, again = (make_case(parse(text), 3) for text in ("blobs", "blobs?n=99"))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for other in ("boxes", "blobs?seed=1", "blobs?noise=0.2"):
        assert not np.array_equal(make_case(parse(other), 3)[0], first[0])
    assert not np.array_equal(make_case(parse("blobs"), 4)[1], first[1])


def test_groups_are_shared_by_successive_cases_and_by_no_other_task():
    task = parse("blobs?per_group=3")
    groups = [task.group_name(index) for index in range(6)]
    assert len(set(groups)) == 2
    assert groups[0] == groups[2]
    assert groups[0] not in {parse("blobs?seed=1&per_group=3").group_name(index) for index in range(6)}


def likeness(one, other):
    """Closeness of mean intensity and grain over the labels, 0 where the anatomies are the same."""
    anatomies = [synthetic._anatomy(parse(text)) for text in (one, other)]
    parts = [np.concatenate([a.mean.ravel(), a.place.ravel(), np.log(a.grain)]) for a in anatomies]
    return float(np.abs(parts[0] - parts[1]).mean())


def test_relatedness_runs_from_one_task_to_strangers():
    distances = [likeness("blobs", f"blobs?seed=3&relatedness={share}") for share in (1, 0.9, 0.5, 0)]
    assert distances[0] < 1e-12
    assert distances == sorted(distances)
    assert distances[-1] > 0.1


def separation(text):
    """How far the labels' mean intensities lie from the background's, in deviations of the background."""
    image, label = make_case(parse(text), 0)
    values = image[..., 0]
    return abs(values[label == 1].mean() - values[label == 0].mean()) / values[label == 0].std()


def test_contrast_and_noise_set_the_difficulty():
    assert separation("blobs?contrast=2") > separation("blobs") > separation("blobs?contrast=0.3")
    assert separation("blobs") > separation("blobs?noise=3")


def test_size_scales_the_shapes():
    small, large = (np.count_nonzero(make_case(parse(f"blobs?size={size}"), 0)[1]) for size in (0.6, 1))
    assert small < 0.5 * large


def test_shells_are_nested():
    _, label = make_case(parse("shells?labels=2&shape=32x32x32"), 0)
    grown = np.pad(label, 1)
    for axis in range(3):
        for step in (-1, 1):
            neighbours = np.roll(grown, step, axis)[1:-1, 1:-1, 1:-1]
            assert not (neighbours[label == 2] == 0).any() or (neighbours[label == 2] > 0).mean() > 0.95
