"""Corruption of patches inside the compiled step, for networks that learn to restore images without labels.

| objective | what the network sees | whose error counts |
| --- | --- | --- |
| `restore` | intensities mapped, blocks shuffled, noise painted inside or outside boxes | every voxel |
| `masked` | random blocks hidden | the hidden voxels |

`restore` follows Models Genesis (Zhou et al. 2019, arXiv:1908.06912; 2021, doi:10.1016/j.media.2020.101840), and
`masked` follows masked autoencoders (He et al. 2021, arXiv:2111.06377; for volumes Chen et al. 2022, arXiv:2204.11716).
Every corruption is a pure function of a key and a patch with any number of axes and channels. Voxels outside the case
stay 0 and never count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxseg.settings.schema import Objective

INTENSITY = 0.9
"""Probability that the intensities of a patch are mapped; half of the maps fall instead of rising."""
SHUFFLE = 0.5
"""Probability that a patch is shuffled, and share of its blocks in which it then is."""
ORDERS = 8
"""Orders in which blocks of one patch may be shuffled; one for every block would take as long as the training step."""
PAINT = 0.9
"""Probability that a patch is painted on."""
INNER = 0.2
"""Share of the painted patches that are painted inside boxes; the others are painted everywhere but inside boxes."""
BOXES = 5
"""Most boxes in a painted patch. Each is drawn with the probability `ANOTHER` after the one before it."""
ANOTHER = 0.95
INNER_SIZE = 1 / 6, 1 / 3
OUTER_SIZE = 3 / 7, 4 / 7
"""Smallest and largest box, as shares of the patch along each axis."""
MASKED = 0.6
"""Share of the blocks that are hidden."""
SHUFFLED_BLOCK, MASKED_BLOCK = 4, 8
"""Largest block along an axis, in voxels."""
BLOCKS = 4
"""Least number of blocks along an axis, where it has as many voxels."""

Image = Float[Array, "*patch channels"]
Inside = Bool[Array, " *patch"]
Corrupt = Callable[[Key[Array, ""], Image, Inside], tuple[Image, Float[Array, " *patch"]]]


def make_corrupt(objective: Objective) -> Corrupt:
    """Make the corruption of one patch.

    Args:
        objective: `restore` or `masked`.

    Returns:
        `corrupt(key, image, inside) -> (corrupted, weight)`, where `inside` marks the voxels inside the case, and the
        weight is 1 where the error of the restored image counts and 0 elsewhere.
    """
    if objective == "labels":
        raise ValueError("the objective 'labels' corrupts nothing")
    change = _restorable if objective == "restore" else _with_masked_blocks

    def corrupt(key: Key[Array, ""], image: Image, inside: Inside) -> tuple[Image, Float[Array, " *patch"]]:
        corrupted, counted = change(key, image, inside)
        return jnp.where(inside[..., None], corrupted, 0.0), (counted & inside).astype(jnp.float32)

    return corrupt


def _restorable(key: Key[Array, ""], image: Image, inside: Inside) -> tuple[Image, Inside]:
    """A patch with local shuffling, mapped intensities and painting, each with its own probability."""
    patch = inside.shape
    sizes = (3, CURVE_NUMBERS, box_numbers(len(patch)), *shuffle_numbers(patch), image.size)
    # All numbers of a patch are drawn in one call, since every further call would lengthen compilation.
    drawn = jax.random.uniform(key, (sum(sizes),))
    chance, curve, boxes, chosen, orders, noise = jnp.split(drawn, np.cumsum(sizes)[:-1].tolist())
    low, high = value_range(image, inside)
    shuffled = shuffle_blocks(chosen, orders, image, share=SHUFFLE)
    image = jnp.where(chance[0] < SHUFFLE, shuffled, image)
    mapped = map_intensities(curve, image, low, high)
    image = jnp.where(chance[1] < INTENSITY, mapped, image)
    painted = paint(boxes, noise.reshape(image.shape), image, low, high)
    return jnp.where(chance[2] < PAINT, painted, image), jnp.ones_like(inside)


def _with_masked_blocks(key: Key[Array, ""], image: Image, inside: Inside) -> tuple[Image, Inside]:
    """A patch whose hidden voxels have the mean of those that can be seen, and a mask of the hidden ones."""
    hidden = draw_mask(key, inside.shape)
    seen = (inside & ~hidden)[..., None]
    axes = tuple(range(inside.ndim))
    mean = jnp.where(seen, image, 0.0).sum(axes, keepdims=True) / jnp.maximum(seen.sum(axes, keepdims=True), 1)
    return jnp.where(hidden[..., None], mean, image), hidden


# ------------------------------------------------------------------------------- the pieces, from uniform numbers


def value_range(image: Image, inside: Inside) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Return the least and the largest intensity of each channel inside the case."""
    mask, axes = inside[..., None], tuple(range(inside.ndim))
    low = jnp.where(mask, image, jnp.inf).min(axes)
    high = jnp.where(mask, image, -jnp.inf).max(axes)
    known = inside.any()
    return jnp.where(known, low, 0.0), jnp.where(known, high, 0.0)


CURVE_NUMBERS = 5
_CURVE_POINTS = 64


def map_intensities(
    numbers: Float[Array, " 5"], image: Image, low: Float[Array, " channels"], high: Float[Array, " channels"]
) -> Image:
    """Map intensities through a monotone curve from the range of each channel onto itself.

    The curve is a cubic Bezier from (0, 0) to (1, 1) whose two control points are the first four numbers, anywhere in
    the unit square. Its coordinates never fall: with control values a and b in [0, 1], the derivative
    3 (a (1-t)^2 + 2 (b-a) t (1-t) + (1-b) t^2) has no sign change, because (b-a)^2 <= a (1-b) wherever b < a. With a
    last number of at least 1/2, the curve is mirrored and falls. All channels of a patch share one curve.
    """
    t = jnp.linspace(0.0, 1.0, _CURVE_POINTS)
    weights = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)
    across, up = (weights[0] * numbers[i] + weights[1] * numbers[i + 1] + t**3 for i in (0, 2))
    up = jnp.where(numbers[4] < 0.5, up, 1.0 - up)
    offset, width = (_of_channels(values, image) for values in (low, high - low))
    share = (image - offset) / jnp.where(width > 0, width, 1.0)
    return offset + width * jnp.interp(share, across, up)


def shuffle_numbers(patch: Sequence[int]) -> tuple[int, int]:
    """Return how many numbers `shuffle_blocks` takes: one for each block, and one for each voxel of every order."""
    block = block_shape(patch, SHUFFLED_BLOCK)
    return math.prod(patch) // math.prod(block), ORDERS * math.prod(block)


def shuffle_blocks(
    chosen: Float[Array, " blocks"], orders: Float[Array, " numbers"], image: Image, *, share: float
) -> Image:
    """Permute the voxels within blocks of a patch (see `block_shape`); channels stay together.

    Args:
        chosen: Numbers that decide which blocks are shuffled, and in which of the orders.
        orders: Numbers whose ranks are the orders.
        image: The patch.
        share: Probability that a block is shuffled; the others stay as they are.
    """
    patch, channels = image.shape[:-1], image.shape[-1]
    block = block_shape(patch, SHUFFLED_BLOCK)
    ranks = orders.reshape(ORDERS, -1).argsort(-1)
    # What is below the share is again uniform, up to the share, and tells which order.
    which = jnp.clip(jnp.floor(chosen * (ORDERS / share)), 0, ORDERS - 1).astype(jnp.int32)
    stay = jnp.arange(ranks.shape[-1])[None]
    places = jnp.where((chosen < share)[:, None], ranks[which], stay)
    moved = jnp.take_along_axis(_by_blocks(image, block), places[..., None], axis=1)
    # Back from [blocks, voxels, channels]: the axes of blocks and of voxels take turns again.
    counts = tuple(size // length for size, length in zip(patch, block, strict=True))
    ndim = len(patch)
    turns = tuple(place for axis in range(ndim) for place in (axis, ndim + axis))
    return moved.reshape(*counts, *block, channels).transpose(*turns, 2 * ndim).reshape(image.shape)


def _by_blocks(image: Image, block: tuple[int, ...]) -> Float[Array, "blocks voxels channels"]:
    ndim = len(block)
    parts = [part for size, length in zip(image.shape, block, strict=False) for part in (size // length, length)]
    split = image.reshape(*parts, image.shape[-1])
    blocks_first = split.transpose(*range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2), 2 * ndim)
    return blocks_first.reshape(-1, math.prod(block), image.shape[-1])


def box_numbers(ndim: int) -> int:
    """Return how many numbers `paint` takes for its boxes."""
    return 1 + BOXES * (1 + 2 * ndim)


def paint(
    numbers: Float[Array, " numbers"],
    noise: Image,
    image: Image,
    low: Float[Array, " channels"],
    high: Float[Array, " channels"],
) -> Image:
    """Replace voxels by noise, either inside boxes or everywhere outside them.

    Args:
        numbers: The first decides between inside and outside; the others are for each box whether there is one, and its
            length and place along each axis. There is always a first box.
        noise: Numbers from 0 to 1, which stand for `low` to `high`.
        image: The patch.
        low: Least intensity of each channel.
        high: Largest intensity of each channel.
    """
    patch = image.shape[:-1]
    inner, of_boxes = numbers[0] < INNER, numbers[1:].reshape(BOXES, -1)
    least, most = (jnp.where(inner, small, large) for small, large in zip(INNER_SIZE, OUTER_SIZE, strict=True))
    boxes = jnp.cumprod((of_boxes[:, 0] < ANOTHER).at[0].set(True)).astype(bool).reshape(BOXES, *(1 for _ in patch))
    for axis, size in enumerate(patch):
        length, start = of_boxes[:, 1 + 2 * axis], of_boxes[:, 2 + 2 * axis]
        length = jnp.maximum(jnp.round(size * (least + (most - least) * length)), 1.0)
        start = jnp.floor(start * (size - length + 1))
        place = jnp.arange(size, dtype=jnp.float32)[None]
        along = (place >= start[:, None]) & (place < (start + length)[:, None])
        boxes = boxes & along.reshape(BOXES, *(size if other == axis else 1 for other in range(len(patch))))
    values = _of_channels(low, image) + _of_channels(high - low, image) * noise
    return jnp.where((boxes.any(0) == inner)[..., None], values, image)


def draw_mask(key: Key[Array, ""], patch: Sequence[int]) -> Inside:
    """Draw which blocks of a patch are hidden: the share `MASKED` of them, rounded to a whole number."""
    block = block_shape(patch, MASKED_BLOCK)
    counts = tuple(size // length for size, length in zip(patch, block, strict=True))
    numbers = jax.random.uniform(key, (math.prod(counts),))
    rank = numbers.argsort().argsort().reshape(counts)
    hidden = rank < round(MASKED * len(numbers))
    for axis, length in enumerate(block):
        hidden = jnp.repeat(hidden, length, axis)
    return hidden


def block_shape(patch: Sequence[int], most: int) -> tuple[int, ...]:
    """Return the largest blocks of at most `most` voxels that cut every axis of a patch into equal parts.

    An axis has at least `BLOCKS` parts, or as many as it has voxels.

    >>> block_shape((64, 64, 8), 8)
    (8, 8, 2)
    """

    def along(size: int) -> int:
        lengths = range(min(most, max(size // BLOCKS, 1)), 0, -1)
        return next(length for length in lengths if size % length == 0)

    return tuple(map(along, patch))


def _of_channels(values: Float[Array, " channels"], image: Image) -> Float[Array, "*ones channels"]:
    return values.reshape((1,) * (image.ndim - 1) + (-1,))
