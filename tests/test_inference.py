"""Sliding windows: cover, overlap, stitching, fixed batches, order."""

import concurrent.futures
import dataclasses
import itertools
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import inference, seeds, trees
from jaxseg.models import make_model
from tests import training_parts


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


def test_overlapping_windows_are_averaged_with_their_weights():
    """Two windows of 4 that share 2 voxels and answer 0 and 1: a Gaussian follows the nearer centre."""
    answers = iter([0.0, 1.0])

    def network(windows):
        share = np.full((1, 1, 4), next(answers), np.float32)
        return np.stack([1 - share, share], -1)

    image, options = np.zeros((6, 1), np.float32), {"patch": (4,), "overlap": 0.5, "window_batch": 1}
    (bell,) = inference.join_slabs(inference.predict_slabs(network, [image], **options))
    inner, outer = np.exp(-0.5 * (np.array([0.5, 1.5]) / 0.5) ** 2)
    np.testing.assert_allclose(bell[0, 2:4, 1], [outer / (inner + outer), inner / (inner + outer)], rtol=1e-5)


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


@pytest.mark.parametrize(
    ("overlap", "options"),
    [(0.0, {}), (0.5, {}), (0.9, {}), (0.0, {"flips": (1,)}), (0.5, {"flips": (0, 1)}), (0.7, {})],
    ids=str,
)
@pytest.mark.parametrize(
    ("shapes", "patch"),
    [
        ([(16, 16), (13, 9), (5, 4), (8, 8), (30, 3)], (8, 8)),
        ([(7, 9, 11), (3, 4, 20)], (4, 6, 8)),
    ],
    ids=["2d", "3d"],
)
def test_a_pointwise_network_stitches_to_its_whole_volume_prediction(shapes, patch, overlap, options):
    network, images = Pointwise(), images_of(*shapes)
    slabs = inference.predict_slabs(network, iter(images), patch=patch, overlap=overlap, window_batch=5, **options)
    found = list(inference.join_slabs(slabs))
    assert len(found) == len(images)
    for image, got in zip(images, found, strict=True):
        whole = network.probabilities(image)
        assert got.shape == (2, *image.shape[:-1], 3)
        np.testing.assert_allclose(got, whole, atol=1e-6)
        np.testing.assert_array_equal(got.argmax(-1), whole.argmax(-1))
    # Cases of all shapes share full batches of one shape.
    assert set(network.shapes) == {(5, *patch, 2)}
    windows = sum(len(inference.window_starts(shape, patch, overlap)) for shape in shapes)
    windows *= 2 ** len(options.get("flips", ()))
    assert len(network.shapes) == -(-windows // 5)


def test_a_network_of_1x1x1_kernels_stitches_to_its_whole_volume_prediction():
    """A U-Net of one level, two runs mapped as in a study: 1e-6 in probabilities, label maps to the voxel."""
    kernels = dataclasses.replace(training_parts.MODEL, ndim=3, widths=(4,), norm="none", kernels=((1, 1, 1),))
    model = make_model(kernels, classes=3)
    plan = training_parts.plan_of("loop")
    params = seeds.put(trees.stack([training_parts.random_params(kernels, seed=seed) for seed in (0, 1)]), plan)
    mapped = seeds.map_seeds(inference.make_window_predict(model), plan=plan, shared=(1, 2))

    def predict(windows):
        return np.asarray(mapped(params, {}, windows))

    images = images_of((17, 9, 21), (5, 30, 8), channels=1)
    found = inference.join_slabs(
        inference.predict_slabs(predict, images, patch=(8, 10, 12), overlap=0.5, window_batch=4)
    )
    for image, got in zip(images, found, strict=True):
        whole = predict(image[None])[:, 0]
        np.testing.assert_allclose(got, whole, atol=1e-6)
        np.testing.assert_array_equal(got.argmax(-1), whole.argmax(-1))


def test_two_hundred_shapes_are_one_program_and_hold_no_more_of_the_device():
    """What is compiled and what lies on the device depend on the batch of windows alone."""
    model = make_model(training_parts.MODEL, classes=3)
    network = jax.jit(inference.make_window_predict(model))
    params = training_parts.random_params()
    held = []

    def predict(windows):
        result = network(params, {}, windows)
        held.append(sum(array.nbytes for array in jax.live_arrays()))
        return np.asarray(result)[None]

    def largest(shapes):
        held.clear()
        slabs = inference.predict_slabs(
            predict, images_of(*shapes, channels=1), patch=(8, 8), overlap=0.0, window_batch=16
        )
        assert sum(slab.last for slab in slabs) == len(shapes)
        return max(held)

    shapes = {(3 + index % 17, 4 + index % 23) for index in range(300)}
    assert len(shapes) >= 200
    small_cases, large_case = largest(sorted(shapes)[:200]), largest([(160, 160)])
    assert network._cache_size() == 1
    assert large_case == small_cases


def test_cases_come_as_soon_as_they_are_done_and_are_read_one_by_one():
    network, read = Pointwise(), []

    def reading():
        for index, image in enumerate(images_of((8, 8), (8, 16), (8, 8), (8, 8))):
            read.append(index)
            yield image

    stream = inference.predict_slabs(network, reading(), patch=(8, 8), overlap=0.0, window_batch=2)
    widths = []
    for slab in stream:
        assert slab.last
        assert slab.case == len(widths)
        widths.append((slab.probabilities.shape[2], len(read)))
    # Case 0 and half of case 1 fill the first batch, the rest of it and case 2 the second: none waits for the end.
    assert widths == [(8, 2), (16, 3), (8, 3), (8, 4)]
    assert not list(inference.predict_slabs(network, [], patch=(8, 8), overlap=0.0, window_batch=2))


def test_a_case_comes_in_slabs_no_thicker_than_a_window():
    """Planes are given out as soon as no window to come reaches them, and each exactly once."""
    network, (image,) = Pointwise(), images_of((50, 9))
    slabs = list(inference.predict_slabs(network, [image], patch=(8, 8), overlap=0.5, window_batch=3))
    depths = [slab.probabilities.shape[1] for slab in slabs]
    assert max(depths) <= 8
    assert [slab.start for slab in slabs] == np.cumsum([0, *depths[:-1]]).tolist()
    assert [slab.last for slab in slabs] == [False] * (len(slabs) - 1) + [True]
    assert sum(depths) == 50


def test_memory_does_not_grow_with_the_number_of_planes():
    def answer(windows):
        return np.full((1, *windows.shape[:-1], 4), 0.25, np.float32)

    def peak(planes):
        image = np.zeros((planes, 48, 48, 1), np.float32)
        options = {"patch": (16, 16, 16), "overlap": 0.5, "window_batch": 4}
        tracemalloc.start()
        for _ in inference.predict_slabs(answer, [image], **options):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(256) < 1.2 * peak(32)


def test_flips_average_over_the_mirrored_windows():
    """A network that answers by position alone: the mean over mirrored copies is its mean over mirrored answers."""
    rng = np.random.default_rng(0)
    answers = softmax(rng.normal(size=(1, 4, 6, 2)))

    def network(windows):
        return np.broadcast_to(answers[:, None], (1, len(windows), 4, 6, 2))

    image = np.zeros((4, 6, 1), np.float32)
    options = {"patch": (4, 6), "overlap": 0.0, "window_batch": 3}
    for flips, copies in (((0,), [(), (0,)]), ((0, 1), [(), (0,), (1,), (0, 1)])):
        (got,) = inference.join_slabs(inference.predict_slabs(network, [image], **options, flips=flips))
        expected = np.mean([np.flip(answers[0], axes) for axes in copies], 0)
        np.testing.assert_allclose(got[0], expected, atol=1e-6)


def test_what_the_network_sees_is_mirrored():
    seen = []

    def network(windows):
        seen.extend(windows[..., 0].copy())
        return np.full((1, *windows.shape[:-1], 2), 0.5, np.float32)

    image = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    list(inference.predict_slabs(network, [image], patch=(2, 4), overlap=0.0, window_batch=2, flips=(1,)))
    np.testing.assert_array_equal(seen[0], [[0, 1, 2, 0], [3, 4, 5, 0]])
    np.testing.assert_array_equal(seen[1], [[0, 2, 1, 0], [0, 5, 4, 3]])


@pytest.mark.parametrize("flips", [(), (1,)])
def test_threads_that_share_the_runs_change_no_bit(flips):
    images = images_of((17, 9, 21), (5, 30, 8), (4, 6, 8))
    options = {"patch": (4, 6, 8), "overlap": 0.5, "window_batch": 5, "flips": flips}
    alone = list(inference.predict_slabs(Pointwise(), images, **options))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        shared = list(inference.predict_slabs(Pointwise(), images, **options, pool=pool))
    for one, other in zip(alone, shared, strict=True):
        assert one[:3] == other[:3]
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_the_largest_component_stays():
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [2, 0, 2, 2]], np.uint8)
    got = inference.largest_component(labels, [1])
    np.testing.assert_array_equal(got, [[1, 1, 0, 0], [1, 0, 0, 0], [2, 0, 2, 2]])
    np.testing.assert_array_equal(inference.largest_component(labels, [1, 2])[2], [0, 0, 2, 2])
    np.testing.assert_array_equal(inference.largest_component(labels, []), labels)
    diagonal = np.eye(3, dtype=np.uint8)  # corners do not connect
    assert inference.largest_component(diagonal, [1]).sum() == 1


def test_outside_a_small_case_the_window_is_zero():
    seen = []

    def note(windows):
        seen.append(windows.copy())
        return np.ones((1, *windows.shape[:-1], 2), np.float32) / 2

    image = np.full((3, 10, 1), 5, np.float32)
    slabs = inference.predict_slabs(note, [image], patch=(6, 8), overlap=0.0, window_batch=3)
    (result,) = inference.join_slabs(slabs)
    assert result.shape == (1, 3, 10, 2)
    np.testing.assert_array_equal(seen[0][:2, 1:4], 5)
    np.testing.assert_array_equal(seen[0][:2, [0, 4, 5]], 0)
    np.testing.assert_array_equal(seen[0][2], 0)  # a batch that is not full


def test_probabilities_of_a_network_merge_shared_parameters():
    model = make_model(training_parts.MODEL, classes=3)
    params = training_parts.random_params()
    windows = images_of((8, 8), (8, 8), channels=1)
    windows = np.stack(windows)
    predict = jax.jit(inference.make_window_predict(model))
    whole = predict(params, {}, windows)
    np.testing.assert_allclose(whole.sum(-1), 1, atol=1e-6)
    shared = {"encoder": params["encoder"]}
    own = {name: params[name] for name in ("decoder", "head")}
    np.testing.assert_array_equal(predict(own, shared, windows), whole)
    np.testing.assert_allclose(whole, softmax(np.asarray(jax.jit(model.apply)({"params": params}, windows))), atol=1e-6)


def test_windows_one_by_one_give_what_they_give_at_once():
    model, params = make_model(training_parts.MODEL, classes=3), training_parts.random_params()
    windows = np.stack(images_of((8, 8), (8, 8), (8, 8), channels=1))
    at_once = jax.jit(inference.make_window_predict(model))(params, {}, windows)
    one_by_one = jax.jit(inference.make_window_predict(model, one_by_one=True))(params, {}, windows)
    assert np.abs(at_once[0] - at_once[1]).max() > 0.1
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-6)
