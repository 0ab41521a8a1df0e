"""Augmentation: image and label move together, nothing changes unless drawn, and every switch does what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxseg import data
from jaxseg.data.patches import augment, spatial
from jaxseg.settings import AugmentSettings
from jaxseg.types import Cohort, RunInputs

KEY = jax.random.key(1, impl="threefry2x32")
OFF = {"flip": (), "gamma": 0.0, "brightness": 0.0, "noise": 0.0}


def settings_of(**changes):
    return AugmentSettings(**(OFF | changes))


def cohort_of(image, label, spacing=None):
    """A cohort of one case."""
    return Cohort(
        image=jnp.asarray(image.reshape(-1, image.shape[-1])),
        label=jnp.asarray(label.ravel()),
        offsets=jnp.zeros(1, jnp.int32),
        shapes=jnp.asarray([label.shape], jnp.int32),
        foreground=jnp.zeros((1, 1, 1), jnp.int32),
        num_foreground=jnp.zeros((1, 1), jnp.int32),
        spacing=None if spacing is None else jnp.asarray([spacing], jnp.float32),
    )


RUN = RunInputs(cases=jnp.zeros(1, jnp.int32), num_cases=jnp.int32(1), rate=jnp.float32(1))


def draw(make_task, cohort, patch, count, **changes):
    task = make_task("unused", patch=patch, foreground=0.0, augment=changes)
    with jax.numpy_dtype_promotion("strict"):
        return jax.jit(data.make_sample(task, batch=count))(KEY, cohort, RUN)


@pytest.fixture(scope="module")
def cube():
    """A case whose label is a function of the image, so that moving one without the other shows."""
    image = np.arange(6**3, dtype=np.float32).reshape(6, 6, 6)
    return image, (image % 5).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- turns and affine maps


def test_flips_and_turns_are_those_of_numpy_and_move_labels_along(make_task, cube):
    image, label = cube
    batch = draw(make_task, cohort_of(image[..., None], label), (6, 6, 6), 400, flip=(0, 2), rotate90=(0, 1))
    turned = [np.rot90(image, k, axes=(0, 1)) for k in range(4)]
    allowed = {np.flip(array, axes).tobytes(): 0 for array in turned for axes in ((), (0,), (2,), (0, 2))}
    for patch, moved in zip(np.asarray(batch.image[..., 0]), np.asarray(batch.label), strict=True):
        allowed[patch.tobytes()] += 1
        np.testing.assert_array_equal(moved, (patch % 5).astype(int))
    assert len(allowed) == 16
    # Sixteen equally likely outcomes (four turns and two flips); 400 draws leave none out.
    assert min(allowed.values()) > 8


def test_turns_without_flips_never_mirror(make_task, cube):
    image, label = cube
    batch = draw(make_task, cohort_of(image[..., None], label), (6, 6, 6), 200, rotate90=(0, 1, 2))
    proper = {np.rot90(image, k, axes=axes).tobytes() for k in range(4) for axes in ((0, 1), (0, 2), (1, 2))}
    seen = {patch.tobytes() for patch in np.asarray(batch.image[..., 0])}
    assert seen == proper


def test_two_dimensional_patches_turn_too(make_task):
    image = np.arange(36, dtype=np.float32).reshape(6, 6)
    batch = draw(make_task, cohort_of(image[..., None], image.astype(np.uint8)), (6, 6), 64, rotate90=(0, 1))
    seen = {patch.tobytes() for patch in np.asarray(batch.image[..., 0])}
    assert seen == {np.rot90(image, k).tobytes() for k in range(4)}


def test_flips_of_uneven_patches_keep_every_voxel(make_task):
    image = np.arange(5 * 7, dtype=np.float32).reshape(5, 7)
    batch = draw(make_task, cohort_of(image[..., None], image.astype(np.uint8)), (5, 7), 64, flip=(1,))
    seen = {patch.tobytes() for patch in np.asarray(batch.image[..., 0])}
    assert seen == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}


@pytest.fixture(scope="module")
def cutters():
    def of_case(cut):
        def read(cohort, case, start, size, turn, *matrix):
            return cut(spatial.whole_case(cohort, case), start, size, turn, *matrix)

        return jax.jit(read, static_argnames=("size",))

    return of_case(spatial.cut), of_case(spatial.cut_affine)


def test_the_identity_map_reads_the_same_voxels_bit_for_bit(cutters):
    rng = np.random.default_rng(0)
    cohort = cohort_of(rng.standard_normal((9, 8, 7, 2)).astype(np.float32), rng.integers(0, 4, (9, 8, 7), np.uint8))
    turn = spatial.Turn(jnp.asarray([1, 0, 2]), jnp.asarray([False, True, True]))
    for start in ((0, 1, -2), (4, 3, 2)):
        places = (cohort, jnp.int32(0), jnp.asarray(start, jnp.int32), (6, 6, 5), turn)
        plain, mapped = cutters[0](*places), cutters[1](*places, jnp.eye(3))
        for one, other in zip(plain, mapped, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0)])
def test_affine_maps_agree_with_scipy_in_mm(cutters, spacing):
    rng = np.random.default_rng(0)
    image = scipy.ndimage.gaussian_filter(rng.standard_normal((14, 13, 12)), 1).astype(np.float32)
    label = (image > 0).astype(np.uint8)
    matrix = np.asarray(
        spatial.draw_affine(KEY, settings_of(affine=1.0, rotation_deg=20.0, scale=0.2), jnp.asarray(spacing))
    )
    # In mm it is a rotation times a number.
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / np.asarray(spacing))
    factor = np.linalg.det(in_mm) ** (1 / 3)
    np.testing.assert_allclose(in_mm @ in_mm.T, factor**2 * np.eye(3), atol=1e-5)
    assert 1 / 1.2 <= factor <= 1.2
    assert abs(np.degrees(np.arccos((np.trace(in_mm / factor) - 1) / 2))) > 1

    size, start = (8, 8, 8), np.array([2, 3, 1])
    turn = spatial.Turn(jnp.arange(3), jnp.zeros(3, bool))
    got = cutters[1](
        cohort_of(image[..., None], label), jnp.int32(0), jnp.asarray(start, jnp.int32), size, turn, jnp.asarray(matrix)
    )
    centre = start + (np.asarray(size) - 1) / 2
    offset = centre - matrix @ ((np.asarray(size) - 1) / 2)
    expected = scipy.ndimage.affine_transform(image, matrix, offset, output_shape=size, order=1, mode="nearest")
    nearest = scipy.ndimage.affine_transform(label, matrix, offset, output_shape=size, order=0, mode="nearest")
    inside = np.asarray(got[2])
    assert inside.mean() > 0.8
    np.testing.assert_allclose(got[0][..., 0][inside], expected[inside], atol=1e-5)
    assert not np.asarray(got[0])[~inside].any()
    # Half-way between two voxels rounding decides, differently in float32 and float64.
    places = np.einsum("ij,j...->i...", matrix, np.indices(size)) + offset[:, None, None, None]
    clear = inside & (np.abs(places % 1 - 0.5) > 1e-4).all(axis=0)
    assert clear.sum() > 0.99 * inside.sum()
    np.testing.assert_array_equal(got[1][clear], nearest[clear])


def test_affine_is_drawn_as_often_as_asked():
    keys = jax.random.split(KEY, 2000)
    maps = jax.vmap(lambda key: spatial.draw_affine(key, settings_of(affine=0.3), jnp.ones(3)))(keys)
    changed = ~(np.asarray(maps) == np.eye(3)).all(axis=(1, 2))
    assert abs(changed.mean() - 0.3) < 0.04


# --------------------------------------------------------------------------------------------------------- intensities

INTENSITY = ("gamma", "contrast", "brightness", "blur", "low_resolution", "noise")


@pytest.fixture(scope="module")
def patch():
    rng = np.random.default_rng(0)
    image = rng.normal(3.0, 2.0, (8, 7, 6, 2)).astype(np.float32)
    inside = np.ones((8, 7, 6), bool)
    inside[:2] = False
    image[~inside] = 0
    return image, inside


@functools.cache
def compiled(settings):
    return jax.jit(lambda key, image, inside: augment.augment_intensity(key, image, inside, settings))


def changed(patch, key=KEY, **changes):
    with jax.numpy_dtype_promotion("strict"):
        return np.asarray(compiled(settings_of(**changes))(key, *map(jnp.asarray, patch)))


@pytest.mark.parametrize("name", INTENSITY)
def test_each_change_is_drawn_with_its_probability_and_keeps_the_outside(patch, name):
    image, inside = patch
    never = changed(patch, **{name: 1e-9})
    np.testing.assert_array_equal(never, image)
    always = changed(patch, **{name: 1.0})
    assert not always[~inside].any()
    assert np.isfinite(always).all()
    assert np.abs(always - image)[inside].max() > 1e-3


def test_all_changes_together_follow_their_probabilities(patch):
    several = jax.jit(
        jax.vmap(lambda key: augment.augment_intensity(key, *map(jnp.asarray, patch), settings_of(contrast=0.25)))
    )
    out = np.asarray(several(jax.random.split(KEY, 1500)))
    assert abs((out != patch[0]).any(axis=(1, 2, 3, 4)).mean() - 0.25) < 0.04


def test_a_change_does_not_alter_the_draws_of_the_others(patch):
    image, _ = patch
    alone, both = changed(patch, brightness=1.0), changed(patch, brightness=1.0, blur=1e-9, noise=1e-9, gamma=1e-9)
    np.testing.assert_allclose(alone, both, atol=1e-5)
    assert np.abs(alone - image).max() > 0.01


def test_strengths_are_those_documented(patch):
    image, inside = patch
    before = image[inside]
    contrast = changed(patch, contrast=1.0)[inside]
    factor = contrast.std(axis=0) / before.std(axis=0)
    assert ((factor > 0.75) & (factor < 1.25)).all()
    np.testing.assert_allclose(contrast.mean(axis=0), before.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(contrast, (before - before.mean(axis=0)) * factor + before.mean(axis=0), atol=1e-4)
    brightness = changed(patch, brightness=1.0)[inside] - before
    assert (brightness.std(axis=0) < 1e-5).all()
    assert (np.abs(brightness.mean(axis=0)) <= 0.3 * before.std(axis=0)).all()
    gamma = changed(patch, gamma=1.0)[inside]
    np.testing.assert_allclose(gamma.mean(axis=0), before.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(gamma.std(axis=0), before.std(axis=0), rtol=1e-4)
    for channel in range(2):  # monotone: the order of voxels is kept
        np.testing.assert_array_equal(np.argsort(gamma[:, channel]), np.argsort(before[:, channel]))
    noise = changed(patch, noise=1.0)[inside] - before
    assert (noise.std(axis=0) <= 0.33 * before.std(axis=0)).all()


def test_blur_is_a_gaussian_with_repeated_borders():
    matrix = np.asarray(augment._resolution_matrix(15, jnp.float32(1.0), jnp.float32(1.0)))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    impulse = np.zeros(15)
    impulse[7] = 1
    expected = scipy.ndimage.gaussian_filter1d(impulse, 1.0, truncate=7)
    np.testing.assert_allclose(matrix @ impulse, expected, atol=1e-5)


def test_low_resolution_keeps_constants_and_ramps():
    identity = np.asarray(augment._resolution_matrix(12, jnp.float32(0.0), jnp.float32(1.0)))
    np.testing.assert_array_equal(identity, np.eye(12))
    matrix = np.asarray(augment._resolution_matrix(12, jnp.float32(0.0), jnp.float32(2.0)))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    # Every second voxel is kept, the rest are interpolated between them.
    assert (np.abs(matrix).sum(axis=0) > 0).sum() == 6
    assert np.abs(np.diff(matrix @ np.arange(12))[1:-1] - 1).max() < 1e-5


def test_a_constant_patch_stays_finite_under_everything():
    image = np.full((6, 6, 6, 1), 2.0, np.float32)
    out = changed((image, np.ones((6, 6, 6), bool)), **dict.fromkeys(INTENSITY, 1.0))
    np.testing.assert_allclose(out, image, atol=1e-5)
    empty = changed((image * 0, np.zeros((6, 6, 6), bool)), **dict.fromkeys(INTENSITY, 1.0))
    assert not empty.any()


@pytest.mark.parametrize(("slices", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_a_slice_is_augmented_as_an_image_is(make_task, slices, axis):
    """A volume of one slice in any direction, against the same image in a 2-D task: the same draws, turns and maps."""
    rng = np.random.default_rng(0)
    image, label = rng.standard_normal((8, 8)).astype(np.float32), rng.integers(0, 4, (8, 8), np.uint8)
    spacing = [1.0, 1.5]
    flat = cohort_of(image[..., None], label, spacing)
    thick = cohort_of(
        np.expand_dims(image, axis)[..., None], np.expand_dims(label, axis), np.insert(spacing, axis, 5.0)
    )
    changes = {"flip": (1,), "rotate90": (0, 1), "affine": 0.7}
    expected = draw(make_task, flat, (8, 8), 24, **changes)
    task = make_task("unused", patch=(8, 8), as_slices=slices, foreground=0.0, augment=changes)
    got = jax.jit(data.make_sample(task, batch=24))(KEY, thick, RUN)
    np.testing.assert_allclose(got.image, expected.image, atol=1e-5)
    agree = np.asarray(got.label == expected.label)
    assert agree.mean() > 0.995  # half-way between two voxels rounding decides
    assert len({patch.tobytes() for patch in np.asarray(got.label)}) > 12
