"""Sliding windows: cover, overlap, stitching, fixed batches, order."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import inference
from jaxseg.models import make_model
from tests import small


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 24)), min_size=1, max_size=3), st.floats(0, 0.95))
def test_windows_cover_every_voxel_evenly_with_the_overlap(axes, overlap):
    shape, patch = zip(*axes, strict=True)
    starts = inference.window_starts(shape, patch, overlap)
    assert len(set(starts)) == len(starts)
    per_axis = [sorted(set(column)) for column in zip(*starts, strict=True)]
    assert sorted(starts) == sorted(itertools.product(*per_axis))
    for length, size, begins in zip(shape, patch, per_axis, strict=True):
        if length <= size:
            assert begins == [-((size - length) // 2)]  # centred
            continue
        assert begins[0] == 0
        assert begins[-1] == length - size
        steps = np.diff(begins)
        assert steps.max() - steps.min() <= 1  # even
        # At least this share is common to neighbours, unless less than a voxel is left to move by.
        assert steps.max() <= max(size * (1 - overlap), 1)


def test_windows_by_hand():
    assert inference.window_starts((8,), (4,), 0.0) == [(0,), (4,)]
    assert inference.window_starts((8,), (4,), 0.5) == [(0,), (2,), (4,)]
    assert inference.window_starts((9, 3), (4, 6), 0.0) == [(0, -1), (2, -1), (5, -1)]


def test_weights_are_symmetric_and_largest_in_the_middle():
    weight = inference.window_weight((9, 6))
    np.testing.assert_allclose(weight, weight[::-1, ::-1], rtol=1e-6)
    assert np.unravel_index(weight.argmax(), weight.shape)[0] == 4
    assert weight.min() == pytest.approx(1e-3)
    # Two sd (of 1/8 of the patch) from the centre of 9 voxels lies at 2.25 voxels.
    np.testing.assert_allclose(weight[4 + 2, 2] / weight[4, 2], np.exp(-0.5 * (2 / (9 / 8)) ** 2), rtol=1e-5)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class Pointwise:
    """A 1x1 network of two runs in NumPy that notes the shapes it is called with."""

    def __init__(self, channels=2, classes=3):
        self.kernel = np.random.default_rng(0).normal(size=(2, channels, classes)).astype(np.float32)
        self.shapes = []

    def probabilities(self, image):
        return np.stack([softmax(image @ kernel) for kernel in self.kernel])

    def __call__(self, windows):
        self.shapes.append(windows.shape)
        return self.probabilities(windows)


def images_of(*shapes, channels=2):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(*shape, channels)).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    ("shapes", "patch"),
    [
        ([(16, 16), (13, 9), (5, 4), (8, 8), (30, 3)], (8, 8)),
        ([(7, 9, 11), (3, 4, 20)], (4, 6, 8)),
    ],
    ids=["2d", "3d"],
)
def test_a_pointwise_network_stitches_to_its_whole_volume_prediction(shapes, patch, overlap):
    network, images = Pointwise(), images_of(*shapes)
    found = list(inference.predict_cases(network, iter(images), patch=patch, overlap=overlap, window_batch=5))
    assert len(found) == len(images)
    for image, got in zip(images, found, strict=True):
        whole = network.probabilities(image)
        assert got.shape == (2, *image.shape[:-1], 3)
        np.testing.assert_allclose(got, whole, atol=1e-6)
        np.testing.assert_array_equal(got.argmax(-1), whole.argmax(-1))
    # Cases of all shapes share full batches of one shape.
    assert set(network.shapes) == {(5, *patch, 2)}
    windows = sum(len(inference.window_starts(shape, patch, overlap)) for shape in shapes)
    assert len(network.shapes) == -(-windows // 5)


def test_cases_come_as_soon_as_they_are_done_and_are_read_one_by_one():
    network, read = Pointwise(), []

    def reading():
        for index, image in enumerate(images_of((8, 8), (8, 16), (8, 8), (8, 8))):
            read.append(index)
            yield image

    stream = inference.predict_cases(network, reading(), patch=(8, 8), overlap=0.0, window_batch=2)
    widths = []
    for result in stream:
        widths.append((result.shape[2], len(read)))
    # Case 0 and half of case 1 fill the first batch, the rest of it and case 2 the second: none waits for the end.
    assert widths == [(8, 2), (16, 3), (8, 3), (8, 4)]
    assert not list(inference.predict_cases(network, [], patch=(8, 8), overlap=0.0, window_batch=2))


def test_outside_a_small_case_the_window_is_zero():
    seen = []

    def note(windows):
        seen.append(windows.copy())
        return np.ones((1, *windows.shape[:-1], 2), np.float32) / 2

    image = np.full((3, 10, 1), 5, np.float32)
    (result,) = inference.predict_cases(note, [image], patch=(6, 8), overlap=0.0, window_batch=3)
    assert result.shape == (1, 3, 10, 2)
    np.testing.assert_array_equal(seen[0][:2, 1:4], 5)
    np.testing.assert_array_equal(seen[0][:2, [0, 4, 5]], 0)
    np.testing.assert_array_equal(seen[0][2], 0)  # a batch that is not full


def test_probabilities_of_a_network_merge_shared_parameters():
    model = make_model(small.MODEL, classes=3)
    params = small.random_params()
    windows = images_of((8, 8), (8, 8), channels=1)
    windows = np.stack(windows)
    predict = jax.jit(inference.make_window_predict(model))
    whole = predict(params, {}, windows)
    np.testing.assert_allclose(whole.sum(-1), 1, atol=1e-6)
    shared = {"encoder": params["encoder"]}
    own = {name: params[name] for name in ("decoder", "head")}
    np.testing.assert_array_equal(predict(own, shared, windows), whole)
    np.testing.assert_allclose(whole, softmax(np.asarray(jax.jit(model.apply)({"params": params}, windows))), atol=1e-6)
