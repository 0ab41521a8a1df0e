"""Measures the structures in a label map: how much of the image they take, how far they reach, how thin they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Num
from scipy import ndimage

_MOST_VOXELS = 2_000_000
"""Voxels of a label's bounding box above which every second, third, ... voxel is looked at."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """One label in one case, described by its typical component: half of the label's voxels lie in larger ones."""

    share: float
    """Share of the image's voxels."""
    extent_mm: tuple[float, ...]
    """Lengths of the component's bounding box."""
    thickness_mm: float
    """Diameter of the largest ball inside the component."""


def measure_label(inside: Bool[np.ndarray, " *spatial"], spacing_mm: Sequence[float]) -> Structure | None:
    """Measures one label of a case; None if the case does not have it.

    Args:
        inside: The voxels of the label.
        spacing_mm: Voxel sizes.
    """
    count = int(np.count_nonzero(inside))
    if not count:
        return None
    box = _bounding_box(inside)
    cut = inside[box]
    step = max(1, int(np.ceil((cut.size / _MOST_VOXELS) ** (1 / cut.ndim))))
    if step > 1 and cut[(slice(None, None, step),) * cut.ndim].any():
        cut = cut[(slice(None, None, step),) * cut.ndim]
    else:
        step = 1
    sizes = tuple(float(size) * step for size in spacing_mm)
    component = _typical_component(cut)
    extent = tuple(n * size for n, size in zip(component.shape, sizes, strict=True))
    return Structure(count / inside.size, extent, thickness_mm(component, sizes))


def thickness_mm(component: Bool[np.ndarray, " *box"], sizes: Sequence[float]) -> float:
    """Measures the diameter of the largest ball inside a component; beyond its array lies nothing of it.

    A distance transform reaches from the centre of a voxel to that of the nearest one outside, which is beyond the
    border by half a voxel of the axis that it lies along. The ball may be larger by one such voxel than twice that
    distance, since its centre may lie between two, but not longer than the component is through its centre.

    Args:
        component: Its voxels.
        sizes: Voxel sizes.

    >>> [thickness_mm(np.ones((4, n, 4), bool), (5.0, 1.0, 2.0)) for n in (1, 2, 3, 30)]
    [1.0, 2.0, 3.0, 8.0]
    """
    padded, size = np.pad(component, 1), np.array(sizes)
    distance, nearest = ndimage.distance_transform_edt(padded, sampling=sizes, return_indices=True)
    centre = np.unravel_index(int(distance.argmax()), padded.shape)
    at: Any = (slice(None), *centre)
    way = np.abs(nearest[at] - centre) * size
    ball = 2 * float(np.linalg.norm(np.maximum(way - size / 2, 0))) + float(size[way.argmax()])
    return min(ball, *(_through(padded, centre, axis) * float(size[axis]) for axis in range(padded.ndim)))


def _through(padded: Bool[np.ndarray, " *box"], centre: Sequence[Any], axis: int) -> int:
    """How many voxels in a row along an axis belong to the component, with one of them; the first and last do not."""
    row: Any = tuple(slice(None) if other == axis else at for other, at in enumerate(centre))
    outside = np.flatnonzero(~padded[row])
    place = int(np.searchsorted(outside, centre[axis]))
    return int(outside[place] - outside[place - 1]) - 1


def _typical_component(inside: Bool[np.ndarray, " *spatial"]) -> Bool[np.ndarray, " *box"]:
    """The component with which, from the largest down, half of the voxels are reached; cut to its bounding box."""
    numbered, _ = ndimage.label(inside)
    sizes = np.bincount(numbered.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")
    number = int(order[np.searchsorted(np.cumsum(sizes[order]), sizes.sum() / 2)]) + 1
    box = ndimage.find_objects(numbered)[number - 1]
    found: Num[np.ndarray, " *box"] = numbered[box] == number
    return found


def _bounding_box(inside: Bool[np.ndarray, " *spatial"]) -> tuple[slice, ...]:
    box = []
    for axis in range(inside.ndim):
        (along,) = np.nonzero(inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis)))
        box.append(slice(int(along[0]), int(along[-1]) + 1))
    return tuple(box)
