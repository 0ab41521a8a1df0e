"""Corruptions of patches: what they keep, what they change, and what they depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.data.patches import corrupt, sampling

PATCHES = [(16, 8), (8, 8, 4)]
"""With an axis that is shorter than the others."""
KEYS = jax.random.split(jax.random.key(0, impl="threefry2x32"), 64)


@functools.cache
def patch_of(shape, channels=2):
    """A patch of voxels that all differ, with a border outside the case, where the image is 0."""
    rng = np.random.default_rng(0)
    image = rng.permutation(np.prod(shape) * channels).reshape(*shape, channels).astype(np.float32) / 10
    inside = np.ones(shape, bool)
    inside[-2:] = False
    return np.where(inside[..., None], image, 0).astype(np.float32), inside


@functools.cache
def corrupted(shape, objective):
    """The patch under every key, and the weights."""
    image, inside = patch_of(shape)
    made = jax.jit(jax.vmap(corrupt.make_corrupt(objective), in_axes=(0, None, None)))(KEYS, image, inside)
    return tuple(map(np.asarray, made))


def blocks_of(array, block):
    """`[blocks, voxels, ...]` of an array with one more axis than the block."""
    split = array.reshape(*(n for size, b in zip(array.shape, block, strict=False) for n in (size // b, b)), -1)
    ndim = len(block)
    order = (*range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2), 2 * ndim)
    return split.transpose(order).reshape(-1, int(np.prod(block)), array.shape[-1])


@pytest.mark.parametrize("shape", PATCHES)
def test_masked_blocks_are_a_fixed_share_and_everything_else_can_be_seen(shape):
    image, inside = patch_of(shape)
    found, weight = corrupted(shape, "masked")
    block = corrupt.block_shape(shape, corrupt.MASKED_BLOCK)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: corrupt.draw_mask(key, shape)))(KEYS[:8]))
    for mask, one in zip(masks, found[:8], strict=True):
        whole = blocks_of(mask[..., None], block)[..., 0]
        assert (whole.all(1) | ~whole.any(1)).all()
        assert whole.all(1).sum() == round(corrupt.MASKED * len(whole))
        seen = inside & ~mask
        np.testing.assert_array_equal(one[seen], image[seen])
        hidden = inside & mask
        np.testing.assert_allclose(one[hidden], np.broadcast_to(image[seen].mean(0), one[hidden].shape), rtol=1e-5)
        assert not one[~inside].any()
    np.testing.assert_array_equal(weight[7], (inside & mask).astype(np.float32))
    # Every place is hidden under some key, and none under all.
    assert 0 < weight[:, inside].mean(0).min() < weight[:, inside].mean(0).max() < 1


@pytest.mark.parametrize("shape", PATCHES)
def test_shuffling_keeps_what_each_block_holds_and_its_channels_together(shape):
    image, _ = patch_of(shape)
    block = corrupt.block_shape(shape, corrupt.SHUFFLED_BLOCK)
    assert np.prod(block) > 1
    before = blocks_of(image, block)
    rng, counts = np.random.default_rng(1), corrupt.shuffle_numbers(shape)
    numbers = [jnp.asarray(rng.random(count, np.float32)) for count in counts]
    shuffle = jax.jit(lambda share: corrupt.shuffle_blocks(*numbers, image, share=share))
    kept = {}
    for share in (1e-9, 0.5, 1.0):
        after = blocks_of(np.asarray(shuffle(share)), block)
        for old, new in zip(before, after, strict=True):
            assert sorted(map(tuple, old)) == sorted(map(tuple, new))
        kept[share] = np.mean([np.array_equal(*pair) for pair in zip(before, after, strict=True)])
    assert kept[1e-9] == 1
    assert 1 > kept[0.5] > kept[1.0]


def test_intensities_are_mapped_by_curves_that_rise_or_fall_over_the_same_range():
    values = np.linspace(-3, 5, 101, dtype=np.float32)[:, None]
    low, high = jnp.float32([-3]), jnp.float32([5])
    numbers = np.random.default_rng(0).random((64, corrupt.CURVE_NUMBERS), np.float32)
    curves = jax.jit(jax.vmap(lambda own: corrupt.map_intensities(own, values, low, high)))
    mapped = np.asarray(curves(numbers))[..., 0]
    steps = np.diff(mapped, axis=1)
    rising, falling = (steps >= -1e-5).all(1), (steps <= 1e-5).all(1)
    assert (rising ^ falling).all()
    assert 16 < rising.sum() < 48
    np.testing.assert_allclose(np.sort(mapped[:, [0, -1]], axis=1), [[-3, 5]] * len(mapped), atol=1e-4)
    # They are curves and no lines: the middle of the range goes all over it.
    assert mapped[rising, 50].std() > 0.5
    constant = np.full((4, 4, 1), 2, np.float32)
    flat = jax.jit(corrupt.map_intensities)(numbers[0], constant, *[jnp.float32([2])] * 2)
    np.testing.assert_array_equal(flat, constant)


def boxes_hold(shape, sizes):
    """Voxels of the smallest single box, and of as many of the largest as there may be."""
    least, most = (np.prod([max(1, round(size * side)) for size in shape]) for side in sizes)
    return least, corrupt.BOXES * most


@pytest.mark.parametrize(("inner", "sizes"), [(1.0, corrupt.INNER_SIZE), (0.0, corrupt.OUTER_SIZE)])
@pytest.mark.parametrize("shape", PATCHES)
def test_noise_is_painted_in_boxes_or_around_them_within_the_range_of_each_channel(shape, inner, sizes, monkeypatch):
    monkeypatch.setattr(corrupt, "INNER", inner)
    image, _ = patch_of(shape)
    low, high = image.min(tuple(range(len(shape)))), image.max(tuple(range(len(shape))))
    rng = np.random.default_rng(0)
    numbers = rng.random((len(KEYS), corrupt.box_numbers(len(shape))), np.float32)
    noise = rng.random((len(KEYS), *image.shape), np.float32)
    paint = jax.jit(jax.vmap(corrupt.paint, in_axes=(0, 0, None, None, None)))
    painted = np.asarray(paint(numbers, noise, image, low, high))
    assert (painted >= low).all()
    assert (painted <= high).all()
    changed = (painted != image).any(-1).reshape(len(KEYS), -1)
    boxed = (changed if inner else ~changed).sum(1)
    least, most = boxes_hold(shape, sizes)
    assert least <= boxed.min() < boxed.max() <= most
    assert changed.any(0).mean() > 0.8  # they lie anywhere


@pytest.mark.parametrize("objective", ["restore", "masked"])
@pytest.mark.parametrize("shape", PATCHES)
def test_a_corruption_is_a_function_of_key_and_patch(shape, objective):
    image, inside = patch_of(shape)
    found, weight = corrupted(shape, objective)
    alone = jax.jit(corrupt.make_corrupt(objective))(KEYS[3], image, inside)
    np.testing.assert_allclose(found[3], alone[0], rtol=1e-5)
    np.testing.assert_array_equal(weight[3], alone[1])
    assert len({one.tobytes() for one in found}) > 0.9 * len(KEYS)
    assert np.isfinite(found).all()
    assert not found[:, ~inside].any()
    assert not weight[:, ~inside].any()
    if objective == "restore":
        assert weight[:, inside].all()
    make = jax.jit(sampling.corrupted_batch, static_argnums=3)
    batch = make(KEYS[:2], np.stack([image] * 2), np.stack([inside] * 2), objective)
    np.testing.assert_allclose(batch.image, found[:2], rtol=1e-5)
    np.testing.assert_array_equal(batch.label.image, np.stack([image] * 2))
    np.testing.assert_array_equal(batch.label.weight, weight[:2])


def test_a_patch_outside_of_its_case_stays_empty():
    image, inside = np.zeros((8, 8, 1), np.float32), np.zeros((8, 8), bool)
    for objective in ("restore", "masked"):
        for array in jax.jit(corrupt.make_corrupt(objective))(KEYS[0], image, inside):
            np.testing.assert_array_equal(array, 0)


def test_labels_are_no_objective_that_corrupts():
    with pytest.raises(ValueError, match="corrupts nothing"):
        corrupt.make_corrupt("labels")
