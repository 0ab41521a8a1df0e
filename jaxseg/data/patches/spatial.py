"""Spatial augmentation: flips and right-angle turns by index arithmetic, affine maps by interpolation.

A patch is read once, already turned: nothing is copied to flip it. Image and label use the same coordinates, with
linear interpolation for the image and the nearest voxel for the label. The voxels may be a whole case inside a cohort
or a box around the patch: the arithmetic, and hence every bit of the result, is the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from jaxseg.settings import AugmentSettings
from jaxseg.types import Boxes, Cohort


@flax.struct.dataclass
class Voxels:
    """The readable part of a case: a box of it in C order, somewhere in a flat buffer."""

    image: Float[Array, "voxels channels"]
    label: Num[Array, " voxels"]
    offset: Int[Array, ""]
    """Offset of the box in the buffer."""
    corner: Int[Array, " ndim"]
    """Coordinates in the case of the first voxel of the box."""
    extent: Int[Array, " ndim"]
    """Shape of the box."""
    shape: Int[Array, " ndim"]
    """Shape of the case."""


def whole_case(cohort: Cohort, case: Int[Array, ""]) -> Voxels:
    """Return a case of a cohort that is on the device."""
    shape = cohort.shapes[case]
    return Voxels(cohort.image, cohort.label, cohort.offsets[case], jnp.zeros_like(shape), shape, shape)


def boxed_case(boxes: Boxes, patch: Int[Array, ""], shape: Int[Array, " ndim"]) -> Voxels:
    """Return the box for one patch of one step."""
    here = jax.tree.map(lambda leaf: leaf[patch], boxes)
    return Voxels(here.image, here.label, jnp.zeros((), jnp.int32), here.corner, here.extent, shape)


@flax.struct.dataclass
class Turn:
    """A signed permutation of axes: output axis o runs along case axis `axis[o]`, backwards where `flip[o]`."""

    axis: Int[Array, " ndim"]
    flip: Bool[Array, " ndim"]


def draw_turn(key: Key[Array, ""], augment: AugmentSettings, ndim: int) -> Turn:
    """Draw a right-angle turn in a random plane of `rotate90`, then flips; the identity if both are off."""
    axis = jnp.arange(ndim, dtype=jnp.int32)
    flip = jnp.zeros(ndim, dtype=bool)
    numbers = jax.random.uniform(key, (2 + ndim,))
    planes = list(itertools.combinations(augment.rotate90, 2))
    if planes:
        first, second = jnp.asarray(planes, dtype=jnp.int32)[(numbers[0] * len(planes)).astype(jnp.int32)]
        quarter = (numbers[1] * 4).astype(jnp.int32)
        swapped = jnp.where(axis == first, second, jnp.where(axis == second, first, axis))
        axis = jnp.where(quarter % 2 == 1, swapped, axis)
        # One quarter turn is a swap and one flip, two are both flips, three are a swap and the other flip.
        place = jnp.arange(ndim, dtype=jnp.int32)
        flip = ((place == first) & ((quarter == 1) | (quarter == 2))) | ((place == second) & (quarter >= 2))
    if augment.flip:
        flip = flip ^ ((numbers[2:] < 0.5) & jnp.asarray([place in augment.flip for place in range(ndim)]))
    return Turn(axis, flip)


def draw_affine(
    key: Key[Array, ""], augment: AugmentSettings, spacing: Float[Array, " ndim"]
) -> Float[Array, "ndim ndim"]:
    """Draw a small rotation and scaling in mm as a matrix on voxel offsets; the identity unless drawn."""
    ndim = spacing.shape[0]
    planes = list(itertools.combinations(range(ndim), 2))
    numbers = jax.random.uniform(key, (2 + len(planes),), minval=-1.0, maxval=1.0)
    drawn = numbers[0] < 2.0 * augment.affine - 1.0
    angles = jnp.where(drawn, numbers[2:] * math.radians(augment.rotation_deg), 0.0)
    matrix = jnp.eye(ndim) * jnp.where(drawn, (1.0 + augment.scale) ** numbers[1], 1.0)
    for angle, (one, other) in zip(angles, planes, strict=True):
        turn = jnp.eye(ndim).at[one, one].set(jnp.cos(angle)).at[other, other].set(jnp.cos(angle))
        turn = turn.at[one, other].set(-jnp.sin(angle)).at[other, one].set(jnp.sin(angle))
        # The few multiplications are written out, since a matrix product may have reduced precision on accelerators.
        matrix = (matrix[:, :, None] * turn[None, :, :]).sum(axis=1)
    return matrix * spacing[None, :] / spacing[:, None]


def lift_turn(turn: Turn, slice_axis: int) -> Turn:
    """Lift a turn of slices to the volume that they lie in."""
    plane = _plane(slice_axis)
    axis = jnp.arange(3, dtype=jnp.int32).at[plane].set(plane[turn.axis])
    return Turn(axis, jnp.zeros(3, dtype=bool).at[plane].set(turn.flip))


def lift_matrix(matrix: Float[Array, "2 2"], slice_axis: int) -> Float[Array, "3 3"]:
    """Lift an affine map within slices to the volume that they lie in."""
    plane = _plane(slice_axis)
    return jnp.eye(3).at[plane[:, None], plane[None, :]].set(matrix)


def _plane(slice_axis: int) -> Int[Array, " 2"]:
    return jnp.asarray([axis for axis in range(3) if axis != slice_axis], dtype=jnp.int32)


def box_size(
    augment: AugmentSettings,
    size: Sequence[int],
    shapes: Int[np.ndarray, "cases ndim"],
    spacing_mm: Float[np.ndarray, "cases ndim"],
    slice_axis: int | None,
) -> tuple[int, ...]:
    """Return the shape of a box that holds all voxels a patch may read; no larger than the largest case.

    Args:
        augment: Settings. Turns need equal patch sizes, so they change nothing; an affine map widens the box.
        size: Size of the patch, along the axes of a case.
        shapes: Shapes of all cases from which patches are cut.
        spacing_mm: Voxel sizes of the same cases.
        slice_axis: Axis that affine maps leave alone; None if there is none.
    """
    reaches = size if augment.affine == 0 else _affine_reach(augment, size, spacing_mm, slice_axis)
    return tuple(min(reach, int(largest)) for reach, largest in zip(reaches, shapes.max(axis=0), strict=True))


def _affine_reach(
    augment: AugmentSettings, size: Sequence[int], spacing_mm: Float[np.ndarray, "cases ndim"], slice_axis: int | None
) -> tuple[int, ...]:
    """`box_size` through any affine map that may be drawn, for cases without end."""
    sine = math.sin(math.radians(min(augment.rotation_deg, 90.0)))
    # Three rotations by at most this angle one after another: every entry off the diagonal is a sum of at most two
    # products, each with a sine in it.
    mixed = min(1.0, sine * (1.0 + sine))
    extents = []
    for axis, count in enumerate(size):
        if axis == slice_axis:
            extents.append(count)
            continue
        reach = float(count)
        for other, length in enumerate(size):
            if other not in (axis, slice_axis):
                reach += mixed * length * float((spacing_mm[:, other] / spacing_mm[:, axis]).max())
        # A voxel more on either side, for interpolation and rounding.
        extents.append(math.ceil((1.0 + augment.scale) * reach) + 3)
    return tuple(extents)


def box_corner(
    start: Int[Array, " ndim"], size: Sequence[int], extent: Sequence[int], shape: Int[Array, " ndim"]
) -> Int[Array, " ndim"]:
    """Return the first voxel of the box for a patch that starts here, in a case of this shape.

    The box has the same centre as the patch, to half a voxel, unless it would then reach out of the case, where nothing
    is read: it is then moved inside. A box wider than the case begins where the case does.
    """
    margin = jnp.asarray([(wide - count) // 2 for wide, count in zip(extent, size, strict=True)], dtype=jnp.int32)
    return jnp.clip(start - margin, 0, jnp.maximum(shape - jnp.asarray(extent, dtype=jnp.int32), 0))


def cut(
    voxels: Voxels, start: Int[Array, " ndim"], size: Sequence[int], turn: Turn
) -> tuple[Float[Array, "*patch channels"], Int[Array, " *patch"], Bool[Array, " *patch"]]:
    """Cut a patch from a box of one case, turned: image and label (0 outside the case), and a mask of its inside."""
    ndim = len(size)
    strides = _strides(voxels.extent)
    position = jnp.zeros((1,) * ndim, dtype=jnp.int32)
    inside = jnp.ones((1,) * ndim, dtype=bool)
    for place, count in enumerate(size):
        index = jnp.arange(count, dtype=jnp.int32)
        index = start[turn.axis[place]] + jnp.where(turn.flip[place], count - 1 - index, index)
        along = [1] * ndim
        along[place] = count
        axis = turn.axis[place]
        inside = inside & ((index >= 0) & (index < voxels.shape[axis])).reshape(along)
        position = position + ((index - voxels.corner[axis]) * strides[axis]).reshape(along)
    return *_read(voxels, position, inside), inside


def cut_affine(
    voxels: Voxels,
    start: Int[Array, " ndim"],
    size: Sequence[int],
    turn: Turn,
    matrix: Float[Array, "ndim ndim"],
) -> tuple[Float[Array, "*patch channels"], Int[Array, " *patch"], Bool[Array, " *patch"]]:
    """Do `cut` through an affine map about the patch's centre; the identity gives the same result bit for bit."""
    ndim = len(size)
    strides = _strides(voxels.extent)
    half = jnp.asarray([(count - 1) / 2 for count in size], dtype=jnp.float32)
    # Column o of the map is the displacement in the case of one step along output axis o.
    columns = matrix[:, turn.axis] * jnp.where(turn.flip, -1.0, 1.0)[None, :]
    where = []
    for axis in range(ndim):
        value = jnp.broadcast_to(start[axis].astype(jnp.float32) + half[axis], tuple(size))
        for place, count in enumerate(size):
            along = [1] * ndim
            along[place] = count
            step = (jnp.arange(count, dtype=jnp.float32) - (count - 1) / 2) * columns[axis, place]
            value = value + step.reshape(along)
        where.append(value)
    nearest = [jnp.rint(value).astype(jnp.int32) for value in where]
    inside, position = _position(nearest, voxels, strides)
    _, label = _read(voxels, position, inside)

    low = [jnp.floor(value) for value in where]
    share = [value - base for value, base in zip(where, low, strict=True)]
    image = jnp.zeros((*size, voxels.image.shape[1]), dtype=jnp.float32)
    for corner in itertools.product((0, 1), repeat=ndim):
        # Beyond the border the border voxel is repeated; voxels with their centre outside are masked below.
        index = [
            jnp.clip(base.astype(jnp.int32) + up, 0, voxels.shape[axis] - 1)
            for axis, (base, up) in enumerate(zip(low, corner, strict=True))
        ]
        _, flat = _position(index, voxels, strides)
        weight = jnp.ones(tuple(size), dtype=jnp.float32)
        for part, up in zip(share, corner, strict=True):
            weight = weight * (part if up else 1.0 - part)
        values = voxels.image.at[voxels.offset + flat].get(mode="promise_in_bounds")
        image = image + weight[..., None] * values.astype(jnp.float32)
    return jnp.where(inside[..., None], image, 0.0), label, inside


def _strides(shape: Int[Array, " ndim"]) -> Int[Array, " ndim"]:
    """Voxels between neighbours along each axis, C order."""
    ones = jnp.ones((1,), dtype=jnp.int32)
    return jnp.concatenate([jnp.cumprod(shape[:0:-1], dtype=jnp.int32)[::-1], ones])


def _position(
    index: Sequence[Int[Array, " *patch"]], voxels: Voxels, strides: Int[Array, " ndim"]
) -> tuple[Bool[Array, " *patch"], Int[Array, " *patch"]]:
    inside = jnp.ones((1,) * len(index), dtype=bool)
    position = jnp.zeros((1,) * len(index), dtype=jnp.int32)
    for axis, value in enumerate(index):
        inside = inside & (value >= 0) & (value < voxels.shape[axis])
        position = position + (value - voxels.corner[axis]) * strides[axis]
    return inside, position


def _read(
    voxels: Voxels, position: Int[Array, " *patch"], inside: Bool[Array, " *patch"]
) -> tuple[Float[Array, "*patch channels"], Int[Array, " *patch"]]:
    # Positions outside the case, where another case or nothing lies, read the first voxel and are masked. If a caller
    # does not use one part of the pair, it is never computed.
    flat = voxels.offset + jnp.where(inside, position, 0)
    image = voxels.image.at[flat].get(mode="promise_in_bounds").astype(jnp.float32)
    label = voxels.label.at[flat].get(mode="promise_in_bounds").astype(jnp.int32)
    return jnp.where(inside[..., None], image, 0.0), jnp.where(inside, label, 0)
