"""Patches drawn from a cohort inside the compiled step: one run, one step, a function of the key alone.

A patch start is uniform among those that keep the patch inside the case; where the case is smaller than the patch,
among those that keep the case inside the patch. Outside the case the image is 0 (the mean, after z-scoring) and the
label background; prediction pads in the same way. A share of the patches is drawn to contain a foreground voxel: a
label is drawn uniformly among those the case has, then one of its voxels, then a start whose patch contains it
(before any affine map).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxseg.data import augment, spatial
from jaxseg.streams import fold_in_name
from jaxseg.types import Batch, Cohort, RunInputs, TaskSettings, UserError

Sample = Callable[[Key[Array, ""], Cohort, RunInputs], Batch]


@flax.struct.dataclass
class RawBatch:
    """Patches as they were read, before their intensities are changed."""

    image: Float[Array, "batch *patch channels"]
    label: Int[Array, " batch *patch"]
    inside: Bool[Array, " batch *patch"]
    """Where a patch lies inside its case."""


def make_sample(task: TaskSettings, *, batch: int) -> Sample:
    """The function that draws one run's batch of one step.

    Args:
        task: its patch, share of foreground patches and augmentation are used.
        batch: patches in a batch.

    Returns:
        A pure function of a key, the cohort and the run's inputs; patch b depends on the key and b only.

    Raises:
        UserError: augmentation that does not fit the patch.
    """
    gather, finish = make_gather(task, batch=batch), make_finish(task)

    def sample(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> Batch:
        return finish(key, gather(key, cohort, run))

    return sample


def make_gather(task: TaskSettings, *, batch: int) -> Callable[[Key[Array, ""], Cohort, RunInputs], RawBatch]:
    """The first half of `make_sample`: choose places and read them, turned. Needs the cohort."""
    patch = tuple(task.patch)
    settings = task.augment
    spatial.check_augment(settings, patch)
    if not 0 <= task.foreground <= 1:
        raise UserError(f"foreground is {task.foreground}; a share between 0 and 1 is allowed.")

    def one(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> RawBatch:
        case, start = draw_place(fold_in_name(key, "place"), cohort, run, patch=patch, foreground=task.foreground)
        turn = spatial.draw_turn(fold_in_name(key, "turn"), settings, len(patch))
        if settings.affine == 0:
            return RawBatch(*spatial.cut(cohort, case, start, patch, turn))
        spacing = jnp.ones(len(patch), dtype=jnp.float32) if cohort.spacing is None else cohort.spacing[case]
        matrix = spatial.draw_affine(fold_in_name(key, "affine"), settings, spacing)
        return RawBatch(*spatial.cut_affine(cohort, case, start, patch, turn, matrix))

    def gather(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> RawBatch:
        return jax.vmap(one, in_axes=(0, None, None))(_patch_keys(key, batch), cohort, run)

    return gather


def make_finish(task: TaskSettings) -> Callable[[Key[Array, ""], RawBatch], Batch]:
    """The second half of `make_sample`: change intensities. Takes the same key and no cohort."""

    def change(key: Key[Array, ""], image: Float[Array, "*patch channels"], inside: Bool[Array, " *patch"]) -> Array:
        return augment.augment_intensity(key, image, inside, task.augment)

    def finish(key: Key[Array, ""], raw: RawBatch) -> Batch:
        keys = _patch_keys(key, raw.image.shape[0])
        image = jax.vmap(change)(keys, raw.image, raw.inside)
        return Batch(image=image, label=raw.label)

    return finish


def _patch_keys(key: Key[Array, ""], batch: int) -> Key[Array, " batch"]:
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch))


def draw_place(
    key: Key[Array, ""], cohort: Cohort, run: RunInputs, *, patch: Sequence[int], foreground: float
) -> tuple[Int[Array, ""], Int[Array, " ndim"]]:
    """A cohort index and the first voxel of a patch (negative where the case is smaller than the patch)."""
    # One call for all numbers of a patch: every further one would lengthen compilation.
    numbers = jax.random.uniform(key, (4 + len(patch),))
    case = run.cases[uniform_index(numbers[0], run.num_cases)]
    shape = cohort.shapes[case]
    size = jnp.asarray(patch, dtype=jnp.int32)
    low, high = jnp.minimum(shape - size, 0), jnp.maximum(shape - size, 0)

    counts = cohort.num_foreground[case]
    rank = jnp.cumsum(counts > 0, dtype=jnp.int32)
    label = jnp.argmax(rank == uniform_index(numbers[1], jnp.maximum(rank[-1], 1)) + 1)
    wanted = (numbers[2] < foreground) & (rank[-1] > 0)
    pick = uniform_index(numbers[3], jnp.maximum(counts[label], 1))
    voxel = jnp.stack(jnp.unravel_index(cohort.foreground[case, label, pick], tuple(shape)))
    first = jnp.where(wanted, jnp.maximum(low, voxel - size + 1), low)
    last = jnp.where(wanted, jnp.minimum(high, voxel), high)
    return case, first + uniform_index(numbers[4:], last - first + 1)


def uniform_index(number: Float[Array, " *any"], count: Int[Array, " *any"]) -> Int[Array, " *any"]:
    """An index below `count` from a number in [0, 1); even to count / 2^23."""
    return jnp.minimum((number * count.astype(jnp.float32)).astype(jnp.int32), count - 1)
