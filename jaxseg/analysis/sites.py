"""Which windows and voxel positions stand for a task when networks are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

BAND = 5
"""Voxels around the reference's foreground that count as near it."""
OUTSIDE = -1
"""Label of what a window holds beyond its case."""


def draw_corners(
    label: Int[np.ndarray, "*spatial"], patch: Sequence[int], count: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Corners of windows around voxels drawn from the foreground (from all voxels where there is none).

    Windows lie inside the case; along an axis that is shorter than the patch they are centred, and begin before it.
    """
    where = np.argwhere(label > 0)
    if not len(where):
        where = np.argwhere(np.ones(label.shape, bool))
    chosen = where[rng.integers(0, len(where), count)]
    room = np.array(label.shape) - np.array(patch)
    centred = -((-room) // 2)
    corners = np.where(room >= 0, np.clip(chosen - np.array(patch) // 2, 0, np.maximum(room, 0)), centred)
    return [tuple(int(start) for start in corner) for corner in corners]


def cut(array: np.ndarray, corner: Sequence[int], patch: Sequence[int], *, fill: float) -> np.ndarray:
    """The window of an array whose first axes are spatial, filled where it reaches beyond the case."""
    window = np.full((*patch, *array.shape[len(patch) :]), fill, array.dtype)
    take, put = [], []
    for start, size, length in zip(corner, patch, array.shape, strict=False):
        low, high = max(start, 0), min(start + size, length)
        take.append(slice(low, high))
        put.append(slice(low - start, high - start))
    window[tuple(put)] = array[tuple(take)]
    return window


def near(mask: Bool[np.ndarray, "*spatial"], margin: int = BAND) -> Bool[np.ndarray, "*spatial"]:
    """The mask and all voxels within `margin` steps of it, over faces, edges and corners."""
    axes = tuple(range(mask.ndim))
    return ndimage.maximum_filter(mask, size=2 * margin + 1, mode="constant", axes=axes) if mask.any() else mask.copy()


def draw_positions(
    label: Int[np.ndarray, "*patch"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "positions axes"]:
    """Voxel positions in a window: a third in the foreground, a third in the band around it, a third elsewhere.

    All voxels of a case have one volume, so equal chances for voxels are equal chances for cubic millimetres. A zone
    without a voxel leaves its share to the others. Positions can occur twice.

    Args:
        label: Of the window; `OUTSIDE` where it holds nothing of the case.
        count: How many.
        rng: Seeded alike for all networks.
    """
    foreground = label > 0
    around = near(foreground) & (label == 0)
    zones = [np.argwhere(zone) for zone in (foreground, around, (label == 0) & ~around)]
    zones = [zone for zone in zones if len(zone)]
    quotas = [count * (index + 1) // len(zones) - count * index // len(zones) for index in range(len(zones))]
    return np.concatenate([zone[rng.integers(0, len(zone), quota)] for zone, quota in zip(zones, quotas, strict=True)])


def nearest_sites(
    positions: Int[np.ndarray, "positions axes"], patch: Sequence[int], grid: Sequence[int]
) -> Int[np.ndarray, " positions"]:
    """The flat index, on a layer's grid over the window, of the site nearest to each position.

    >>> nearest_sites(np.array([[0], [3], [7]]), (8,), (4,)).tolist()
    [0, 1, 3]
    """
    sites = (2 * positions + 1) * np.array(grid) // (2 * np.array(patch))
    return np.ravel_multi_index(tuple(sites.T), tuple(grid))


def first_of_each(sites: Int[np.ndarray, "windows positions"]) -> Int[np.ndarray, " unique"]:
    """Where, in the flattened positions of all windows, each site of each window is met first."""
    numbered = sites + (1 + sites.max()) * np.arange(len(sites))[:, None]
    return np.sort(np.unique(numbered.ravel(), return_index=True)[1])
