"""Sampling of patches from a cohort inside the compiled step, as a function of the key alone.

The start of a patch is uniform among those that keep the patch inside the case or, where the case is smaller than the
patch, among those that keep the case inside the patch. Outside the case the image is 0 (the mean, after z-scoring) and
the label is background; prediction pads in the same way. A share of the patches is drawn to contain a foreground
voxel: a label is drawn uniformly among those of the case, then one of its voxels, then a start whose patch contains it
(before any affine map). If a task takes volumes slice by slice, patches are one voxel thick and that axis is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxseg.data.patches import augment, corrupt, spatial
from jaxseg.settings import TaskSettings
from jaxseg.settings.kinds import check
from jaxseg.settings.rules import check_task, needs
from jaxseg.settings.schema import Objective
from jaxseg.streams import fold_in_name
from jaxseg.types import Batch, Cohort, PartialLabel, Restoration, RunInputs

Sample = Callable[[Key[Array, ""], Cohort, RunInputs], Batch]


@flax.struct.dataclass
class Place:
    """Origin of a patch."""

    case: Int[Array, ""]
    """Index of the case in the cohort."""
    start: Int[Array, " ndim"]
    """First voxel, along the axes of the case; negative where the case is smaller than the patch."""
    turn: spatial.Turn
    matrix: Float[Array, "ndim ndim"] | None
    """Affine map about the centre of the patch; None if there is none."""


@flax.struct.dataclass
class RawBatch:
    """Patches as they were read, before intensity augmentation."""

    image: Float[Array, "batch *patch channels"]
    label: Int[Array, " batch *patch"]
    inside: Bool[Array, " batch *patch"]
    """Mask of the voxels inside the case."""
    annotated: Bool[Array, "batch classes"] | None = None
    """See `Cohort.annotated`."""


def make_sample(task: TaskSettings, *, batch: int, objective: Objective = "labels") -> Sample:
    """Make the function that draws one run's batch of one step.

    Args:
        task: Settings, of which the patch, the share of foreground patches and the augmentation are used.
        batch: Number of patches in a batch.
        objective: What the network learns; without labels, patches are corrupted (see `corrupt`), and the batch holds
            what is to be restored in the place of labels.

    Returns:
        A pure function of a key, the cohort and the run's inputs; patch b depends only on the key and b.

    Raises:
        UserError: The augmentation does not fit the patch.
    """
    gather, finish = make_gather(task, batch=batch), make_finish(task, objective)

    def sample(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> Batch:
        return finish(key, gather(key, cohort, run))

    return sample


def make_gather(task: TaskSettings, *, batch: int) -> Callable[[Key[Array, ""], Cohort, RunInputs], RawBatch]:
    """Make the first half of `make_sample`, which chooses places and reads them, turned.

    Voxels come from the cohort, or from the run's boxes if it has them.
    """
    draw = make_draw(task)
    axis = task.slice_axis

    def one(key: Key[Array, ""], patch: Int[Array, ""], cohort: Cohort, run: RunInputs) -> RawBatch:
        place = draw(key, cohort, run)
        if run.boxes is None:
            voxels = spatial.whole_case(cohort, place.case)
        else:
            voxels = spatial.boxed_case(run.boxes, patch, cohort.shapes[place.case])
        if place.matrix is None:
            image, label, inside = spatial.cut(voxels, place.start, task.window, place.turn)
        else:
            image, label, inside = spatial.cut_affine(voxels, place.start, task.window, place.turn, place.matrix)
        annotated = None if cohort.annotated is None else cohort.annotated[place.case]
        if axis is None:
            return RawBatch(image, label, inside, annotated)
        return RawBatch(image.squeeze(axis), label.squeeze(axis), inside.squeeze(axis), annotated)

    def gather(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> RawBatch:
        keys, patches = patch_keys(key, batch), jnp.arange(batch)
        return jax.vmap(one, in_axes=(0, 0, None, None))(keys, patches, cohort, run)

    return gather


def make_draw(task: TaskSettings) -> Callable[[Key[Array, ""], Cohort, RunInputs], Place]:
    """Make the function of a key that draws the origin of one patch; it reads no voxel of the cohort.

    Raises:
        UserError: The augmentation does not fit the patch.
    """
    settings, axis = task.augment, task.slice_axis
    check(task)
    check_task(task, len(task.patch), needs(""))
    plane = [place for place in range(len(task.window)) if place != axis]

    def draw(key: Key[Array, ""], cohort: Cohort, run: RunInputs) -> Place:
        foreground = task.foreground
        case, start = draw_place(fold_in_name(key, "place"), cohort, run, patch=task.window, foreground=foreground)
        turn = spatial.draw_turn(fold_in_name(key, "turn"), settings, len(plane))
        matrix = None
        if settings.affine > 0:
            spacing = jnp.ones(len(plane)) if cohort.spacing is None else cohort.spacing[case][jnp.asarray(plane)]
            matrix = spatial.draw_affine(fold_in_name(key, "affine"), settings, spacing)
        if axis is not None:
            turn = spatial.lift_turn(turn, axis)
            matrix = None if matrix is None else spatial.lift_matrix(matrix, axis)
        return Place(case, start, turn, matrix)

    return draw


def make_finish(task: TaskSettings, objective: Objective = "labels") -> Callable[[Key[Array, ""], RawBatch], Batch]:
    """Make the second half of `make_sample`, the intensity augmentation and then the corruption, if there is one.

    It takes the same key and no cohort.
    """

    def change(key: Key[Array, ""], image: Float[Array, "*patch channels"], inside: Bool[Array, " *patch"]) -> Array:
        return augment.augment_intensity(key, image, inside, task.augment)

    def finish(key: Key[Array, ""], raw: RawBatch) -> Batch:
        keys = patch_keys(key, raw.image.shape[0])
        image = jax.vmap(change)(keys, raw.image, raw.inside)
        if objective == "labels":
            label = raw.label if raw.annotated is None else PartialLabel(raw.label, raw.annotated)
            return Batch(image=image, label=label)
        return corrupted_batch(jax.vmap(lambda key: fold_in_name(key, "corrupt"))(keys), image, raw.inside, objective)

    return finish


def corrupted_batch(
    keys: Key[Array, " batch"],
    image: Float[Array, "batch *patch channels"],
    inside: Bool[Array, " batch *patch"],
    objective: Objective,
) -> Batch:
    """Return patches as a network sees them that is to restore them, each corrupted with its own key."""
    corrupted, weight = jax.vmap(corrupt.make_corrupt(objective))(keys, image, inside)
    return Batch(image=corrupted, label=Restoration(image, weight))


def patch_keys(key: Key[Array, ""], batch: int) -> Key[Array, " batch"]:
    """Return a key for every patch of a batch; it does not depend on the size of the batch."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch))


def draw_place(
    key: Key[Array, ""], cohort: Cohort, run: RunInputs, *, patch: Sequence[int], foreground: float
) -> tuple[Int[Array, ""], Int[Array, " ndim"]]:
    """Draw a cohort index and the first voxel of a patch (negative where the case is smaller than the patch)."""
    # All numbers of a patch are drawn in one call, since every further call would lengthen compilation.
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
    """Return an index below `count` from a number in [0, 1); it is uniform up to count / 2^23."""
    return jnp.minimum((number * count.astype(jnp.float32)).astype(jnp.int32), count - 1)
