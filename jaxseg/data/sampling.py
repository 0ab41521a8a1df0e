"""Patches drawn from a cohort inside the compiled step: one run, one step, a function of the key alone.

A patch start is uniform among those that keep the patch inside the case; where the case is smaller than the patch,
among those that keep the case inside the patch. Outside the case the image is 0 (the mean, after z-scoring) and the
label background; prediction pads in the same way. A share of the patches is drawn to contain a foreground voxel: a
label is drawn uniformly among those the case has, then one of its voxels, then a start whose patch contains it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxseg.data import augment
from jaxseg.streams import fold_in_name
from jaxseg.types import Batch, Cohort, RunInputs, TaskSettings

Sample = Callable[[Key[Array, ""], Cohort, RunInputs], Batch]


@flax.struct.dataclass
class RawPatch:
    """A patch as it lies in the cohort, wide enough for the augmentation that follows."""

    image: Float[Array, "*wide channels"]
    label: Int[Array, " *wide"]
    inside: Bool[Array, " *wide"]
    """Where the patch lies inside its case."""
    spacing: Float[Array, " ndim"]
    """Of the case, relative: only ratios matter."""


def make_sample(task: TaskSettings, *, batch: int) -> Sample:
    """The function that draws one run's batch of one step.

    Args:
        task: its patch, share of foreground patches and augmentation are used.
        batch: patches in a batch.

    Returns:
        A pure function of a key, the cohort and the run's inputs; patch b depends on the key and b only.
    """
    gather, transform = make_gather(task), augment.make_augment(task)

    def sample(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> Batch:
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch))
        raw = jax.vmap(gather, in_axes=(0, None, None))(keys, cohort, run)
        image, label = jax.vmap(transform)(keys, raw.image, raw.label, raw.inside, raw.spacing)
        return Batch(image=image, label=label)

    return sample


def make_gather(task: TaskSettings) -> Callable[[Key[Array, ""], Cohort, RunInputs], RawPatch]:
    """The first half of sampling: choose a place and cut it out. Exact copies, whatever the device."""
    patch = tuple(task.patch)
    wide = augment.wide_patch(task)

    def gather(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> RawPatch:
        case, start = draw_place(fold_in_name(key, "place"), cohort, run, patch=patch, foreground=task.foreground)
        margin = jnp.asarray([(w - p) // 2 for w, p in zip(wide, patch, strict=True)], dtype=jnp.int32)
        image, label, inside = cut(cohort, case, start - margin, wide)
        return RawPatch(image, label, inside, jnp.ones(len(patch), dtype=jnp.float32))

    return gather


def draw_place(
    key: Key[Array, ""], cohort: Cohort, run: RunInputs, *, patch: Sequence[int], foreground: float
) -> tuple[Int[Array, ""], Int[Array, " ndim"]]:
    """A cohort index and the first voxel of a patch (negative where the case is smaller than the patch)."""
    keys = {name: fold_in_name(key, name) for name in ("case", "start", "foreground", "label", "voxel")}
    case = run.cases[jax.random.randint(keys["case"], (), 0, run.num_cases)]
    shape = cohort.shapes[case]
    size = jnp.asarray(patch, dtype=jnp.int32)
    low, high = jnp.minimum(shape - size, 0), jnp.maximum(shape - size, 0)

    counts = cohort.num_foreground[case]
    # A uniform draw among the labels that the case has, without a shape that depends on how many they are.
    label = jnp.argmax(jnp.where(counts > 0, jax.random.uniform(keys["label"], counts.shape), -1.0))
    wanted = (jax.random.uniform(keys["foreground"]) < foreground) & (counts[label] > 0)
    pick = jax.random.randint(keys["voxel"], (), 0, jnp.maximum(counts[label], 1))
    voxel = jnp.stack(jnp.unravel_index(cohort.foreground[case, label, pick], _as_tuple(shape)))
    first = jnp.where(wanted, jnp.maximum(low, voxel - size + 1), low)
    last = jnp.where(wanted, jnp.minimum(high, voxel), high)
    return case, jax.random.randint(keys["start"], first.shape, first, last + 1)


def _as_tuple(shape: Int[Array, " ndim"]) -> tuple[Array, ...]:
    return tuple(shape[axis] for axis in range(shape.shape[0]))


def cut(
    cohort: Cohort, case: Int[Array, ""], start: Int[Array, " ndim"], size: Sequence[int]
) -> tuple[Float[Array, "*patch channels"], Int[Array, " *patch"], Bool[Array, " *patch"]]:
    """Voxels of a box of one case: image and label, 0 outside the case, and where inside it is."""
    ndim = len(size)
    shape = cohort.shapes[case]
    position = jnp.zeros((1,) * ndim, dtype=jnp.int32)
    inside = jnp.ones((1,) * ndim, dtype=bool)
    for axis, count in enumerate(size):
        along = [1] * ndim
        along[axis] = count
        index = (start[axis] + jnp.arange(count, dtype=jnp.int32)).reshape(along)
        inside = inside & (index >= 0) & (index < shape[axis])
        position = position * shape[axis] + index
    # Positions outside the case are taken from voxel 0 and masked: reading there would be another case's voxels.
    flat = cohort.offsets[case] + jnp.where(inside, position, 0)
    image = cohort.image.at[flat].get(mode="promise_in_bounds").astype(jnp.float32)
    label = cohort.label.at[flat].get(mode="promise_in_bounds").astype(jnp.int32)
    return jnp.where(inside[..., None], image, 0.0), jnp.where(inside, label, 0), inside
