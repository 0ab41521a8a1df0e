"""Patches: where they come from, how often, and that the numbers of a seed depend on nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.patches import cohort as cohort_module
from jaxseg.data.patches import sampling
from jaxseg.types import RunInputs, UserError

KEY = jax.random.key(0, impl="threefry2x32")


@pytest.fixture(scope="module")
def prepared(make_task, write_set, volume_of, tmp_path_factory):
    """Three cases of other shapes; image values name their voxel, so that every copy can be traced."""
    folder = tmp_path_factory.mktemp("sampling")
    shapes = ((12, 11, 10), (6, 13, 9), (10, 5, 6))
    volumes = {}
    for index, shape in enumerate(shapes):
        voxel = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        label = np.zeros(shape, np.uint8)
        label[1:3, 1:4, 2:4] = 1
        if index != 1:
            label[-1, -1, -1] = 2
        volumes[f"case_{index}"] = np.stack([voxel + 1, np.full(shape, index, np.float32)], axis=-1), label
    write_set(folder / "set", volumes, modality={"0": "place", "1": "case"})
    task = make_task(folder / "set", normalization="none")
    return data.prepare_task(task, ndim=3, store_dir=folder / "store")


@pytest.fixture(scope="module")
def cohort(prepared):
    return data.build_cohort(prepared, [record.name for record in prepared.cases])


def run_of(*cases, width=4):
    padded = jnp.asarray([*cases, *[99] * (width - len(cases))], dtype=jnp.int32)
    return RunInputs(cases=padded, num_cases=jnp.int32(len(cases)), rate=jnp.float32(1))


def reference_patch(prepared, case, start, patch):
    """The box of one case, zero outside, by plain NumPy."""
    loaded = data.load_case(prepared, prepared.cases[case].name)
    image = np.zeros((*patch, loaded.image.shape[-1]), np.float32)
    label = np.zeros(patch, np.int32)
    for index in np.ndindex(*patch):
        place = tuple(np.asarray(start) + index)
        if all(0 <= p < n for p, n in zip(place, loaded.label.shape, strict=True)):
            image[index], label[index] = loaded.image[place], loaded.label[place]
    return image, label


def test_the_cohort_holds_every_case_at_its_offset(prepared, cohort):
    for index, record in enumerate(prepared.cases):
        case = data.load_case(prepared, record.name)
        here = slice(int(cohort.offsets[index]), int(cohort.offsets[index]) + case.label.size)
        np.testing.assert_array_equal(cohort.image[here].reshape(case.image.shape), case.image)
        np.testing.assert_array_equal(cohort.label[here].reshape(case.label.shape), case.label)
        for row, value in enumerate((1, 2)):
            used = cohort.foreground[index, row, : int(cohort.num_foreground[index, row])]
            np.testing.assert_array_equal(used, np.flatnonzero(case.label == value))


def test_normalised_intensities_take_half_the_bytes_and_others_keep_their_range(prepared, cohort):
    names = [record.name for record in prepared.cases]
    scaled = data.build_cohort(dataclasses.replace(prepared, normalization=("zscore", "zscore")), names)
    assert (cohort.image.dtype, scaled.image.dtype) == (jnp.float32, jnp.float16)
    np.testing.assert_array_equal(scaled.image, np.asarray(cohort.image).astype(np.float16))
    for held, normalization in ((cohort, ("zscore", "none")), (scaled, ("zscore", "percentile"))):
        task = dataclasses.replace(prepared, normalization=normalization)
        assert cohort_module.cohort_bytes(task, names) == held.image.nbytes + held.label.nbytes


def test_kept_foreground_is_a_draw_of_the_seed_and_the_case(prepared):
    names = [record.name for record in prepared.cases]
    whole, few, again = (data.build_cohort(prepared, names, points=points) for points in (4096, 5, 5))
    assert few.foreground.shape == (3, 2, 5)
    np.testing.assert_array_equal(few.foreground, again.foreground)
    assert set(np.asarray(few.foreground[0, 0]).tolist()) < set(np.asarray(whole.foreground[0, 0]).tolist())
    alone = data.build_cohort(prepared, names[:1], points=5)
    np.testing.assert_array_equal(alone.foreground[0], few.foreground[0])
    other = data.build_cohort(prepared, names, points=5, seed=1)
    assert not np.array_equal(other.foreground, few.foreground)


def test_room_for_more_cases_changes_no_patch(prepared, cohort, make_task):
    names = [record.name for record in prepared.cases]
    few, many = (data.room_of([(prepared, names[:1]), (prepared, names)], points=points) for points in (5, 4096))
    assert few == (cohort.label.size, len(names), 5)
    assert many == (*few[:2], 12 * 11 * 10)  # no more positions than the largest case has voxels
    larger = data.build_cohort(prepared, names, room=cohort_module.Room(many.voxels + 100, many.cases + 2, 40))
    assert larger.label.shape == (many.voxels + 100,)
    assert larger.shapes.shape == (many.cases + 2, 3)
    assert larger.foreground.shape[2] == 40
    sample = jax.jit(data.make_sample(make_task("unused", patch=(8, 8, 8), foreground=0.5), batch=16))
    found, expected = (sample(jax.random.key(3), one, run_of(0, 2, width=6)) for one in (larger, cohort))
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.label, expected.label)


def test_more_voxels_than_positions_are_refused():
    cohort_module.check_size(2**31 - 1, "set", 3)
    with pytest.raises(UserError, match=r"2,147,483,648 voxels together"):
        cohort_module.check_size(2**31, "set", 3)


@pytest.fixture(scope="module")
def many(make_task, cohort):
    """Draws of 256 patches: smaller than every case along some axes, larger along others."""
    task = make_task("unused", patch=(8, 8, 8), foreground=0.5)
    sample = jax.jit(data.make_sample(task, batch=256))
    places = jax.jit(
        jax.vmap(
            lambda key: sampling.draw_place(
                sampling.fold_in_name(key, "place"), cohort, run_of(0, 1, 2), patch=task.patch, foreground=0.5
            )
        )
    )
    keys = jax.vmap(lambda index: jax.random.fold_in(KEY, index))(jnp.arange(256))
    return sample, *places(keys)


def test_patches_are_copies_with_zeros_outside(prepared, cohort, many):
    sample, cases, starts = many
    batch = sample(KEY, cohort, run_of(0, 1, 2))
    for index in range(24):
        image, label = reference_patch(prepared, int(cases[index]), np.asarray(starts[index]), (8, 8, 8))
        np.testing.assert_array_equal(batch.image[index], image)
        np.testing.assert_array_equal(batch.label[index], label)


def test_patches_stay_inside_large_cases_and_around_small_ones(prepared, many):
    _, cases, starts = many
    for case, start in zip(np.asarray(cases), np.asarray(starts), strict=True):
        for first, size in zip(start, prepared.cases[case].shape, strict=True):
            assert min(0, size - 8) <= first <= max(0, size - 8)
    assert set(np.asarray(cases).tolist()) == {0, 1, 2}


def test_only_the_runs_own_cases_are_drawn(cohort, many):
    sample, _, _ = many
    batch = sample(KEY, cohort, run_of(2, 0))
    seen = set(np.unique(np.asarray(batch.image[..., 1])[np.asarray(batch.image[..., 0]) > 0]).tolist())
    assert seen == {0.0, 2.0}


def test_a_seeds_patches_do_not_depend_on_the_batch_or_on_other_seeds(cohort, many, make_task):
    sample, _, _ = many
    whole = sample(KEY, cohort, run_of(0, 1, 2))
    few = jax.jit(data.make_sample(make_task("unused", patch=(8, 8, 8)), batch=3))
    np.testing.assert_array_equal(few(KEY, cohort, run_of(0, 1, 2)).image, whole.image[:3])
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(jnp.arange(4))
    runs = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), run_of(0, 1, 2))
    together = jax.jit(jax.vmap(few, in_axes=(0, None, 0)))(keys, cohort, runs)
    np.testing.assert_array_equal(together.image[0], whole.image[:3])
    assert not np.array_equal(together.image[1], together.image[0])


def test_every_start_is_equally_likely_in_large_and_small_cases(cohort):
    draw = jax.jit(
        jax.vmap(lambda key, run: sampling.draw_place(key, cohort, run, patch=(8, 8, 8), foreground=0.0)[1], (0, None))
    )
    keys = jax.random.split(KEY, 6000)
    for case, ranges in ((0, ((0, 4), (0, 3), (0, 2))), (1, ((-2, 0), (0, 5), (0, 1)))):
        starts = np.asarray(draw(keys, run_of(case)))
        for axis, (low, high) in enumerate(ranges):
            counts = np.bincount(starts[:, axis] - low)
            expected = 6000 / (high - low + 1)
            assert len(counts) == high - low + 1
            assert ((counts - expected) ** 2 / expected).sum() < 20


def test_foreground_patches_contain_the_drawn_voxel_and_labels_are_equally_likely(prepared, cohort, make_task):
    sample = jax.jit(data.make_sample(make_task("unused", patch=(4, 4, 4), foreground=1.0), batch=1500))
    labels = np.asarray(sample(KEY, cohort, run_of(0)).label)
    has = [(labels == value).any(axis=(1, 2, 3)) for value in (1, 2)]
    assert (has[0] | has[1]).all()
    # Label 2 is one voxel in a corner far from label 1: it is there exactly when it was drawn.
    assert abs(has[1].mean() - 0.5) < 0.05
    lacking = np.asarray(sample(KEY, cohort, run_of(1)).label)
    assert (lacking == 1).any(axis=(1, 2, 3)).all()


def test_cases_without_foreground_are_sampled_anyway(cohort, many):
    sample, _, _ = many
    empty = cohort.replace(num_foreground=jnp.zeros_like(cohort.num_foreground))
    voxels = np.asarray(sample(KEY, empty, run_of(0, 1)).image[..., 0])
    assert (voxels > 0).any(axis=(1, 2, 3)).all()


def test_halves_of_sampling_compose_to_the_whole(cohort, make_task):
    """Patches read on one device and finished on another are those of the step that does both."""
    intensities = dict.fromkeys(("gamma", "contrast", "brightness", "blur", "low_resolution", "noise"), 0.5)
    task = make_task("unused", augment={"flip": (0, 2), "affine": 0.5, **intensities})
    whole = jax.jit(data.make_sample(task, batch=2))(KEY, cohort, run_of(0, 1))
    raw = jax.jit(sampling.make_gather(task, batch=2))(KEY, cohort, run_of(0, 1))
    parts = jax.jit(sampling.make_finish(task))(KEY, raw)
    np.testing.assert_allclose(whole.image, parts.image, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(whole.label, parts.label)
    # Intensities change no label.
    np.testing.assert_array_equal(whole.label, raw.label)


def test_settings_that_do_not_fit_are_refused(make_task):
    task = make_task("unused")
    for change, message in (
        ({"flip": (3,)}, "different axes from 0 to 2"),
        ({"rotate90": (1,)}, "two or more axes"),
    ):
        augment = dataclasses.replace(task.augment, **change)
        with pytest.raises(UserError, match=message):
            data.make_sample(dataclasses.replace(task, augment=augment), batch=1)
    uneven = make_task("unused", patch=(8, 8, 4), augment={"rotate90": (0, 2)})
    with pytest.raises(UserError, match="of equal patch size"):
        data.make_sample(uneven, batch=1)
    with pytest.raises(UserError, match=r"foreground = 2\.0; allowed: a share from 0 to 1"):
        data.make_sample(make_task("unused", foreground=2.0), batch=1)
