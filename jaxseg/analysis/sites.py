"""Windows and voxel positions that represent a task when networks are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

BAND = 5
"""Distance in voxels from the reference's foreground that counts as near it."""
OUTSIDE = -1
"""Label of the part of a window beyond its case."""


def draw_corners(
    label: Int[np.ndarray, "*spatial"], patch: Sequence[int], count: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Draw corners of windows around voxels of the foreground (of the whole case if there is none).

    Windows lie inside the case; along an axis shorter than the patch they are centred and begin before the case.
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
    """Cut the window of an array whose first axes are spatial; the part beyond the case gets the value `fill`."""
    window = np.full((*patch, *array.shape[len(patch) :]), fill, array.dtype)
    take, put = [], []
    for start, size, length in zip(corner, patch, array.shape, strict=False):
        low, high = max(start, 0), min(start + size, length)
        take.append(slice(low, high))
        put.append(slice(low - start, high - start))
    window[tuple(put)] = array[tuple(take)]
    return window


def near(mask: Bool[np.ndarray, "*spatial"], margin: int = BAND) -> Bool[np.ndarray, "*spatial"]:
    """Return the mask with all voxels within `margin` steps of it, over faces, edges and corners."""
    axes = tuple(range(mask.ndim))
    return ndimage.maximum_filter(mask, size=2 * margin + 1, mode="constant", axes=axes) if mask.any() else mask.copy()


def draw_positions(
    label: Int[np.ndarray, "*patch"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "positions axes"]:
    """Draw voxel positions in a window: a third in the foreground, a third in the band around it, a third elsewhere.

    All voxels of a case have the same volume, so equal chances for voxels are equal chances for cubic millimetres. A
    zone without voxels leaves its share to the others. A position can be drawn more than once.

    Args:
        label: Label map of the window; `OUTSIDE` where the window is beyond the case.
        count: Number of positions.
        rng: Generator with the same seed for all networks.
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
    """Return the flat index, on a layer's grid over the window, of the site nearest to each position.

    >>> nearest_sites(np.array([[0], [3], [7]]), (8,), (4,)).tolist()
    [0, 1, 3]
    """
    sites = (2 * positions + 1) * np.array(grid) // (2 * np.array(patch))
    return np.ravel_multi_index(tuple(sites.T), tuple(grid))


def first_of_each(
    sites: Int[np.ndarray, "windows positions"], windows: Int[np.ndarray, " windows"]
) -> Int[np.ndarray, " unique"]:
    """Return the index, in the flattened positions of all windows, at which each site of each window occurs first.

    Args:
        sites: Flat indices of sites.
        windows: Number of each window; one that was drawn twice, as where it covers its case, has one number.
    """
    numbered = sites + (1 + sites.max()) * windows[:, None]
    return np.sort(np.unique(numbered.ravel(), return_index=True)[1])
