"""Resampling between grids over the same field of view: images by splines, label maps through one-hot volumes.

A grid of n voxels of size s becomes round(n s / t) voxels of size about t that cover exactly the same extent, so that
voxel centres stay aligned and a round trip does not drift. Outside the field of view the border voxel is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Num

from jaxseg import threads
from jaxseg.regions import Regions, decide

THICK = 3.0
"""Ratio of voxel length to width from which images are resampled linearly: cubic splines ring across thick slices."""


def new_grid(
    shape: Sequence[int], spacing_mm: Sequence[float], wanted_mm: Sequence[float]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return shape and spacing of the grid closest to the wanted spacing over the same extent; 0 keeps an axis.

    >>> new_grid((10, 9), (1.0, 2.0), (2.0, 2.0))
    ((5, 9), (2.0, 2.0))
    """
    pairs = [_new_axis(n, s, t) for n, s, t in zip(shape, spacing_mm, wanted_mm, strict=True)]
    return tuple(n for n, _ in pairs), tuple(s for _, s in pairs)


def _new_axis(size: int, spacing: float, wanted: float) -> tuple[int, float]:
    # Spacings that differ by header rounding (0.799999) are the same grid.
    if wanted == 0 or abs(spacing - wanted) <= 1e-4 * wanted:
        return size, spacing
    new = max(1, round(size * spacing / wanted))
    return new, size * spacing / new


def resize_image(
    image: Float[np.ndarray, "*spatial channels"],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
) -> Float[np.ndarray, "*new channels"]:
    """Resample an image by cubic splines, clipped to its own range: an overshoot is no measurement.

    Linear interpolation is used instead where voxels are much longer than wide.

    Args:
        image: Image to resample.
        shape: Shape of the new grid, over the same extent.
        spacing_mm: Spacing of the image's own grid.
    """
    if image.shape[:-1] == tuple(shape):
        return image
    if max(spacing_mm) > THICK * min(spacing_mm):
        return resize_linear(image, shape)
    factors = [new / old for new, old in zip(shape, image.shape[:-1], strict=True)]
    parts = []
    for channel in np.moveaxis(image, -1, 0):
        part = scipy.ndimage.zoom(channel, factors, order=3, mode="nearest", grid_mode=True)
        parts.append(np.clip(part, channel.min(), channel.max()))
    return np.stack(parts, axis=-1)


def resize_labels(label: Num[np.ndarray, " *spatial"], shape: Sequence[int]) -> Num[np.ndarray, " *new"]:
    """Resample a label map: each voxel gets the label with the largest linearly resampled indicator, the lower on ties.

    Args:
        label: Label map to resample.
        shape: Shape of the new grid, over the same extent.
    """
    if label.shape == tuple(shape):
        return label
    best = np.full(tuple(shape), -1.0, dtype=np.float32)
    out = np.zeros(tuple(shape), dtype=label.dtype)
    for value in np.unique(label):
        share = resize_linear((label == value).astype(np.float32)[..., None], shape)[..., 0]
        # The tolerance keeps a tie a tie if the two shares were summed in another order.
        better = share > best + 1e-6
        out[better] = value
        best[better] = share[better]
    return out


def resize_mask(mask: Bool[np.ndarray, " *spatial"], shape: Sequence[int]) -> Bool[np.ndarray, " *new"]:
    """Resample a mask: a voxel belongs to it if its linearly resampled share is at least half.

    Args:
        mask: Mask to resample.
        shape: Shape of the new grid, over the same extent.
    """
    if mask.shape == tuple(shape):
        return mask
    # The tolerance keeps half a half if the share was summed in another order.
    return resize_linear(mask.astype(np.float32)[..., None], shape)[..., 0] >= 0.5 - 1e-6


def labels_from_probabilities(
    probabilities: Float[np.ndarray, "*spatial classes"], shape: Sequence[int], regions: Regions | None = None
) -> Num[np.ndarray, " *new"]:
    """Return class indices on another grid: probabilities are resampled linearly, then the largest wins.

    Probabilities of regions are decided as in `regions.decide`.
    """
    classes = probabilities.shape[-1] if regions is None else regions.classes + 1
    kind = np.uint8 if classes <= 256 else np.uint16
    if probabilities.shape[:-1] != tuple(shape):
        probabilities = resize_linear(np.asarray(probabilities, dtype=np.float32), shape)
    return decide(probabilities, regions).astype(kind)


def resize_planes(
    parts: Iterable[Float[np.ndarray, "run planes *rest classes"]],
    old: Sequence[int],
    new: Sequence[int],
    *,
    pool: threads.Pool = None,
) -> Iterator[Float[np.ndarray, "run new_planes *new_rest classes"]]:
    """Resample volumes linearly that arrive in slabs along their first spatial axis.

    Only the planes on either side of the next new plane are kept, so that memory does not grow with the first axis.

    Args:
        parts: Consecutive slabs that together cover the old grid.
        old: Spatial shape of all slabs together.
        new: Spatial shape wanted, over the same extent.
        pool: Threads that share the runs.

    Yields:
        Consecutive slabs of the new grid.
    """
    if tuple(old) == tuple(new):
        yield from parts
        return
    weights = _weights(old[0], new[0])
    used = weights > 0
    first, last = used.argmax(1), used.shape[1] - 1 - used[:, ::-1].argmax(1)
    held, begin, made = None, 0, 0
    for part in parts:
        held = part if held is None else np.concatenate([held, part], axis=1)
        end = begin + held.shape[1]
        stop = int(np.searchsorted(last, end))
        if stop > made:
            yield _resized(held, weights[made:stop, begin:end], new[1:], pool)
            made = stop
        needed = int(first[made]) if made < len(first) else end
        held, begin = held[:, max(needed - begin, 0) :], min(max(needed, begin), end)


def _resized(
    slab: Float[np.ndarray, "run planes *rest classes"], weights: np.ndarray, rest: Sequence[int], pool: threads.Pool
) -> Float[np.ndarray, "run new_planes *new_rest classes"]:
    shape = (len(weights), *rest)
    made = np.empty((len(slab), *shape, slab.shape[-1]), np.result_type(weights, slab))

    def of_run(run: int) -> None:
        made[run] = resize_linear(np.tensordot(weights, slab[run], axes=(1, 0)), shape)

    threads.share(pool, of_run, len(slab))
    return made


def resize_linear(
    image: Float[np.ndarray, "*spatial channels"], shape: Sequence[int]
) -> Float[np.ndarray, "*new channels"]:
    """Resample linearly along every axis."""
    for axis, new in enumerate(shape):
        old = image.shape[axis]
        if old != new:
            image = np.moveaxis(np.tensordot(_weights(old, new), image, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(image)


def _weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Linear interpolation at the centres of `new` equal parts of `old` voxels, border voxels repeated."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(np.floor(centres).astype(int), max(old - 2, 0))
    share = (centres - low).astype(np.float32)
    weights = np.zeros((new, old), dtype=np.float32)
    rows = np.arange(new)
    weights[rows, low] += 1 - share
    weights[rows, np.minimum(low + 1, old - 1)] += share
    return weights
