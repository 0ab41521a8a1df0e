"""Cases stitched and counted on the device, against probabilities stitched on the host."""

import dataclasses

import numpy as np
import pytest

from jaxseg import inference, seeds, trees, validation
from jaxseg.models import make_model
from tests import training_parts

SHAPES_2D = [(13, 21), (8, 8), (5, 30), (16, 3)]
SHAPES_3D = [(9, 11, 10), (17, 6, 12), (3, 8, 9)]


def cases_of(shapes, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    images = [rng.normal(size=(*shape, 1)).astype(np.float32) for shape in shapes]
    # The index after the last class is among them: voxels whose label nobody knows.
    return images, [rng.integers(0, classes + 1, shape).astype(np.uint8) for shape in shapes]


def counted_on_host(predict, images, labels, *, patch, slice_axis=None, classes=3):
    """The counts by another way: whole probabilities, then masks."""
    slabs = inference.predict_slabs(
        inference.by_slices(predict, slice_axis), images, patch=patch, overlap=0.5, window_batch=3
    )
    found = []
    for probabilities, label in zip(inference.join_slabs(slabs), labels, strict=True):
        answer = probabilities.argmax(-1)
        known = label < classes
        found.append(
            [
                [
                    [(run == k)[known & (label == k)].sum(), (label == k).sum(), (run == k)[known].sum()]
                    for k in range(1, classes)
                ]
                for run in answer
            ]
        )
    return np.stack(found, axis=1)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("shapes", "patch", "slice_axis"),
    [
        pytest.param(SHAPES_2D, (8, 8), None, id="2d"),
        pytest.param(SHAPES_3D, (8, 8, 4), None, id="3d"),
        pytest.param(SHAPES_3D, (8, 1, 4), 1, id="slices"),
    ],
)
def test_counts_are_those_of_stitched_probabilities(shapes, patch, slice_axis, strategy):
    ndim = len(patch) - (slice_axis is not None)
    settings = dataclasses.replace(training_parts.MODEL, ndim=ndim)
    model, plan = make_model(settings, classes=3), training_parts.plan_of(strategy)
    params = seeds.put(trees.stack([training_parts.random_params(settings, seed=seed) for seed in range(4)]), plan)
    images, labels = cases_of(shapes)
    predict = seeds.map_seeds(inference.make_window_predict(model), plan=plan, shared=(1, 2))
    expected = counted_on_host(
        lambda windows: np.asarray(predict(params, {}, windows)), images, labels, patch=patch, slice_axis=slice_axis
    )

    canvases = validation.lay_out(images, labels, patch=patch, overlap=0.5, classes=3)
    count = validation.make_case_counts(model, patch=patch, window_batch=3, classes=3, slice_axis=slice_axis)
    mapped = seeds.map_seeds(count, plan=plan, shared=(1, 2, 3))
    found = np.asarray(mapped(params, {}, canvases, np.arange(len(shapes))))
    assert found.shape == (4, len(shapes), 2, 3)
    # A voxel on which two classes are equal to the last bit may fall to either.
    np.testing.assert_allclose(found, expected, atol=1)
    assert (found == expected).mean() > 0.95
    assert len(np.unique(found[..., 0])) > 5
    # Each run may ask for cases of its own, some twice.
    own = np.array([[0, 1], [1, 0], [1, 1], [0, 0]])
    of_own = np.asarray(seeds.map_seeds(count, plan=plan, shared=(1, 2))(params, {}, canvases, seeds.put(own, plan)))
    np.testing.assert_array_equal(of_own, found[np.arange(4)[:, None], own])


def test_every_voxel_of_a_case_is_seen_and_nothing_beside_it():
    """A network that always answers class 1 finds exactly the voxels of known label."""
    settings = dataclasses.replace(training_parts.MODEL, norm="none", widths=(2,), kernels=((1, 1),))
    params = trees.unflatten(
        {
            path: np.zeros_like(leaf) + (np.array([0, 9, 0]) if path == "head/bias" else 0)
            for path, leaf in trees.flatten(training_parts.random_params(settings)).items()
        }
    )
    images, labels = cases_of(SHAPES_2D)
    canvases = validation.lay_out(images, labels, patch=(8, 8), overlap=0.3, classes=3)
    count = validation.make_case_counts(make_model(settings, classes=3), patch=(8, 8), window_batch=4, classes=3)
    found = np.asarray(count(params, {}, canvases, np.arange(len(images))))
    for counts, label in zip(found, labels, strict=True):
        ones, twos = (label == 1).sum(), (label == 2).sum()
        assert counts.tolist() == [[ones, ones, (label < 3).sum()], [0, twos, 0]]


def test_memory_of_canvases_is_what_they_take():
    images, labels = cases_of(SHAPES_3D)
    canvases = validation.lay_out(images, labels, patch=(8, 8, 4), overlap=0.5, classes=3)
    common, own = validation.canvas_bytes(SHAPES_3D, (8, 8, 4), channels=1, classes=3)
    assert canvases.images.nbytes + canvases.labels.nbytes == common
    assert own == 17 * 11 * 12 * 4 * 3
    assert canvases.labels.shape == (3, 17, 11, 12)
