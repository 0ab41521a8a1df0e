"""Placement of a cohort's voxels during training: on the device, or on the host, which sends the voxels that are read.

A cohort on the host may be larger than the device's memory. For every compiled call, the host computes which patches
each run will draw (their places are a function of the run's key, so nothing has to come back from the device), copies a
box with all voxels that each patch may read, and sends the boxes while the device still trains on earlier ones. The
compiled step then does the same arithmetic on the same numbers: batches are identical bit for bit in both cases.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxseg.data.patches import sampling, spatial
from jaxseg.data.patches.cohort import INT32_VOXELS, cohort_bytes
from jaxseg.data.prepared.task import PreparedTask
from jaxseg.settings import TaskSettings
from jaxseg.streams import step_key
from jaxseg.types import Boxes, Cohort, RunInputs

DEVICE_SHARE = 0.5
"""Share of a device's memory above which a cohort stays on the host; networks need the rest."""
SENT_BYTES = 2**28
"""Bytes of the voxels of one compiled call, all runs together."""
IN_FLIGHT = 3
"""Number of calls whose voxels are held at once: one in use, one waiting and one in preparation."""

Sent = TypeVar("Sent")


def choose_residence(setting: str, prepared: PreparedTask, names: Sequence[str], *, device_bytes: int) -> str:
    """Return `device` or `host`.

    Args:
        setting: See `RuntimeSettings.data_residence`.
        prepared: The prepared task.
        names: Names of the cases of the cohort.
        device_bytes: Memory of one device.
    """
    if setting != "auto":
        return setting
    voxels = sum(math.prod(prepared.record(name).shape) for name in names)
    fits = voxels <= INT32_VOXELS and cohort_bytes(prepared, names) <= DEVICE_SHARE * device_bytes
    return "device" if fits else "host"


def held_bytes(where: str, prepared: PreparedTask, names: Sequence[str], *, devices: int, one_memory: bool) -> int:
    """Return the memory, in bytes, that images take from training on all devices together.

    Args:
        where: `device`, for a cohort on each device; or `host`, for the boxes that are sent ahead.
        prepared: The prepared task.
        names: Names of the cases of the cohort.
        devices: Number of devices that train.
        one_memory: Whether the devices' memory is the host's, so that a cohort on the host counts too.
    """
    cohort = cohort_bytes(prepared, names)
    return devices * cohort if where == "device" else IN_FLIGHT * SENT_BYTES + one_memory * cohort


def without_voxels(cohort: Cohort) -> Cohort:
    """Return the part of a cohort that a device needs if the voxels stay on the host."""
    # Offsets refer to voxels, which the device does not have; on the host they may exceed 32 bits.
    offsets = jnp.zeros(len(cohort.offsets), jnp.int32)
    index = dataclasses.replace(cohort, image=cohort.image[:0], label=cohort.label[:0], offsets=offsets)
    return jax.tree.map(jnp.asarray, index)


def call_ends(start: int, total: int, every: int, most: int) -> Iterator[int]:
    """Yield the steps at which compiled calls end: multiples of `every`, the last step, and at most `most` steps apart.

    >>> list(call_ends(4, 21, 10, 4))
    [8, 10, 14, 18, 20, 21]
    """
    while start < total:
        start = min(start + most, (start // every + 1) * every, total)
        yield start


def make_send(
    task: TaskSettings, *, batch: int, cohort: Cohort, roots: Key[Array, " run"], runs: RunInputs
) -> tuple[Callable[[int, int], RunInputs], int]:
    """Make the function that prepares the inputs of one compiled call on the host.

    Args:
        task: Settings, of which patch and augmentation are used.
        batch: Number of patches in a batch.
        cohort: Cohort on the host, as NumPy arrays.
        roots: Root key of the `order` stream of each run.
        runs: Inputs of the runs, without boxes.

    Returns:
        `send(start, stop)`, which returns the runs' inputs for these steps with NumPy boxes, and the bytes of one step.
    """
    processor = jax.local_devices(backend="cpu")[0]
    shapes, spacing = np.asarray(cohort.shapes), np.asarray(cohort.spacing)
    extent = spatial.box_size(task.augment, task.window, shapes, spacing, task.slice_axis)
    voxels, channels = math.prod(extent), cohort.image.shape[1]
    draw = sampling.make_draw(task)
    index, roots, placed = jax.device_put((without_voxels(cohort), roots, runs), processor)

    @jax.jit
    def places(index: Cohort, roots: Key[Array, " run"], runs: RunInputs, steps: Int[Array, " steps"]) -> Array:
        def one(root: Key[Array, ""], run: RunInputs, step: Int[Array, ""]) -> Array:
            def box(key: Key[Array, ""]) -> Array:
                place = draw(key, index, run)
                corner = spatial.box_corner(place.start, task.window, extent, index.shapes[place.case])
                return jnp.concatenate([place.case[None], corner])

            return jax.vmap(box)(sampling.patch_keys(step_key(root, step, "sample"), batch))

        return jax.vmap(jax.vmap(one, in_axes=(None, None, 0)), in_axes=(0, 0, None))(roots, runs, steps)

    def send(start: int, stop: int) -> RunInputs:
        steps = jax.device_put(np.arange(start, stop, dtype=np.int32), processor)
        drawn = np.asarray(places(index, roots, placed, steps))
        image: Any = np.zeros((*drawn.shape[:-1], voxels, channels), cohort.image.dtype)
        label: Any = np.zeros((*drawn.shape[:-1], voxels), cohort.label.dtype)
        for where in np.ndindex(drawn.shape[:-1]):
            case, *first = drawn[where].tolist()
            copy_box(cohort, case, first, extent, image[where], label[where])
        corner: Any = drawn[..., 1:]
        extents: Any = np.broadcast_to(np.asarray(extent, np.int32), corner.shape)
        boxes = Boxes(image, label, corner, extents)
        return dataclasses.replace(runs, boxes=boxes)

    step_bytes = len(roots) * batch * voxels * (channels * cohort.image.dtype.itemsize + cohort.label.dtype.itemsize)
    return send, step_bytes


def copy_box(
    cohort: Cohort, case: int, corner: Sequence[int], extent: Sequence[int], image: np.ndarray, label: np.ndarray
) -> None:
    """Copy a box of a case, from a corner inside it, into flat arrays of zeros; voxels beyond the case stay 0."""
    shape = np.asarray(cohort.shapes[case]).tolist()
    first = int(cohort.offsets[case])
    here = slice(first, first + math.prod(shape))
    widths = [min(wide, size - low) for low, wide, size in zip(corner, extent, shape, strict=True)]
    source = tuple(slice(low, low + width) for low, width in zip(corner, widths, strict=True))
    target = tuple(slice(width) for width in widths)
    image.reshape(*extent, -1)[target] = cohort.image[here].reshape(*shape, -1)[source]
    label.reshape(extent)[target] = cohort.label[here].reshape(shape)[source]


def ahead(make: Callable[[int, int], Sent], start: int, ends: Iterator[int]) -> Iterator[tuple[int, Sent]]:
    """Yield `(end, make(start, end))` for successive spans; each is made in a thread while the one before is in use."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting: list[tuple[int, concurrent.futures.Future[Sent]]] = []
        for end in ends:
            waiting.append((end, pool.submit(make, start, end)))
            start = end
            if len(waiting) == 2:
                done, future = waiting.pop(0)
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
