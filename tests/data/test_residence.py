"""Voxels that stay on the host: the same batches bit for bit, whatever is sent and however it is split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.patches import residence, spatial
from jaxseg.streams import step_key, stream_key
from jaxseg.types import Batch, RunInputs

ROOTS = jnp.stack([stream_key(jnp.uint32(seed), "order") for seed in (3, 8)])
INTENSITIES = dict.fromkeys(("gamma", "contrast", "brightness", "blur", "low_resolution", "noise"), 0.5)


@pytest.fixture(scope="module")
def thick(make_task, write_set, volume_of, save_nifti, tmp_path_factory):
    """Volumes of other shapes and thick slices, smaller than the patch along some axes."""
    folder = tmp_path_factory.mktemp("residence")
    shapes = ((14, 12, 6), (9, 13, 7), (12, 7, 5))
    volumes = {f"case_{index}": volume_of(index, shape=shape) for index, shape in enumerate(shapes)}
    write_set(folder / "set", volumes, affine=np.diag([1.0, 1.25, 4.0, 1.0]))
    return data.prepare_task(make_task(folder / "set"), ndim=3, store_dir=folder / "store")


def runs_of(*cases):
    one = RunInputs(cases=jnp.asarray(cases, jnp.int32), num_cases=jnp.int32(len(cases)), rate=jnp.float32(1))
    other = dataclasses.replace(one, cases=one.cases[::-1], num_cases=jnp.int32(1))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)


TASKS = {
    "patches": {"patch": (8, 8, 4), "augment": {"flip": (0, 2), "rotate90": (0, 1)}},
    "changed": {"patch": (8, 8, 4), "augment": {"flip": (1,), "rotate90": (0, 1), "affine": 0.7, **INTENSITIES}},
    "slices": {"patch": (8, 4), "as_slices": "sagittal", "augment": {"flip": (0,), "affine": 0.7}},
}


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_the_same_bits_wherever_the_voxels_are(thick, make_task, name):
    task = make_task("unused", **TASKS[name])
    names = [record.name for record in thick.cases]
    resident, host = data.build_cohort(thick, names), data.load_cohort(thick, names)
    runs, batch, steps = runs_of(0, 1, 2), 3, range(5, 11)
    send, step_bytes = residence.make_send(task, batch=batch, cohort=host, roots=ROOTS, runs=runs)
    sent = send(steps.start, steps.stop)
    assert isinstance(sent.boxes.image, np.ndarray)
    assert sent.boxes.image.dtype == resident.image.dtype == jnp.float16
    assert step_bytes * len(steps) == sent.boxes.image.nbytes + sent.boxes.label.nbytes
    sample = jax.jit(data.make_sample(task, batch=batch))
    index = residence.without_voxels(host)
    labels = set()
    for run in range(2):
        for place, step in enumerate(steps):
            key, own = step_key(ROOTS[run], step, "sample"), jax.tree.map(lambda leaf, run=run: leaf[run], runs)
            boxes = jax.tree.map(lambda leaf, run=run, place=place: leaf[run, place], sent.boxes)
            expected = sample(key, resident, own)
            got = sample(key, index, dataclasses.replace(own, boxes=boxes))
            assert expected.image.shape == (batch, *task.patch, 1)
            assert expected.image.dtype == jnp.float32
            np.testing.assert_array_equal(got.image, expected.image)
            np.testing.assert_array_equal(got.label, expected.label)
            labels |= set(np.unique(got.label).tolist())
    assert labels == {0, 1, 2}
    # However a training is split into calls, a step gets the same boxes.
    later = send(7, 9).boxes
    np.testing.assert_array_equal(later.image, sent.boxes.image[:, 2:4])


def test_what_lies_outside_a_box_is_never_read(thick, make_task):
    """The bound on what an affine map reads holds at the largest turns and scalings."""
    augment = {"affine": 1.0, "rotation_deg": 30.0, "scale": 0.5, "flip": (0, 1, 2)}
    task = make_task("unused", patch=(6, 6, 4), augment=augment)
    spacing = np.asarray([record.spacing_mm for record in thick.cases])
    endless = np.full_like(spacing, 1000, dtype=int)
    extent = spatial.box_size(task.augment, task.window, endless, spacing, None)
    draw = jax.jit(lambda key: spatial.draw_affine(key, task.augment, jnp.asarray(spacing[0], jnp.float32)))
    half = (np.asarray(task.window) - 1) / 2
    corners = np.stack(np.meshgrid(*[(-h, h) for h in half]), axis=-1).reshape(-1, 3)
    reach = np.max([np.abs(corners @ np.asarray(draw(key)).T) for key in jax.random.split(ROOTS[0], 300)], axis=(0, 1))
    margin = [(wide - size) // 2 for wide, size in zip(extent, task.window, strict=True)]
    # Interpolation reads the voxel below and the voxel above.
    assert (reach + 1 <= half + margin + 0.01).all()
    assert (reach > half).all()
    # No box is larger than the largest case.
    shapes = np.asarray([record.shape for record in thick.cases])
    extent = spatial.box_size(task.augment, task.window, shapes, spacing, None)
    assert extent == (14, 13, 7)
    # One as wide as the case begins where the case does, wherever the patch lies.
    assert not spatial.box_corner(jnp.asarray([8, 7, 3]), task.window, extent, jnp.asarray(extent)).any()


def test_slices_are_patches_one_voxel_thick(thick, make_task):
    plain = make_task("unused", patch=(8, 4, 1), foreground=1.0)
    sliced = make_task("unused", patch=(8, 4), as_slices="axial", foreground=1.0)
    cohort = data.build_cohort(thick, [record.name for record in thick.cases])
    run = jax.tree.map(lambda leaf: leaf[0], runs_of(0, 1, 2))
    volumes, slices = (jax.jit(data.make_sample(task, batch=64))(ROOTS[0], cohort, run) for task in (plain, sliced))
    assert isinstance(slices, Batch)
    np.testing.assert_array_equal(volumes.image[:, :, :, 0], slices.image)
    np.testing.assert_array_equal(volumes.label[..., 0], slices.label)
    assert (np.asarray(slices.label) > 0).any(axis=(1, 2)).all()


def test_auto_keeps_on_the_host_what_would_fill_the_device(thick):
    names = [record.name for record in thick.cases]
    size = sum(np.prod(record.shape) for record in thick.cases) * 3
    assert residence.cohort_bytes(thick, names) == size
    for device_bytes, expected in ((size, "host"), (2 * size, "device")):
        assert residence.choose_residence("auto", thick, names, device_bytes=device_bytes) == expected
        assert residence.choose_residence("device", thick, names, device_bytes=device_bytes) == "device"
        assert residence.choose_residence("host", thick, names, device_bytes=device_bytes) == "host"


def test_what_is_made_ahead_comes_in_order_and_fails_where_it_is_used():
    made = []

    def make(start, stop):
        made.append((start, stop))
        if start == 20:
            raise ZeroDivisionError
        return stop - start

    spans = residence.ahead(make, 4, residence.call_ends(4, 25, 10, 8))
    assert next(spans) == (10, 6)
    assert [next(spans), next(spans)] == [(18, 8), (20, 2)]
    with pytest.raises(ZeroDivisionError):
        next(spans)
    assert made == [(4, 10), (10, 18), (18, 20), (20, 25)]
