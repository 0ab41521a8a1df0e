"""Measures the structures in a label map: how much of the image they take, how far they reach, how thin they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    # The distance reaches from the centre of a voxel to the centre of the nearest one outside, half a voxel beyond the
    # border on either side. Beyond the image lies nothing, so that a structure ends there too.
    distance = ndimage.distance_transform_edt(np.pad(component, 1), sampling=sizes)
    thickness = 2 * float(distance.max()) - min(sizes)
    return Structure(count / inside.size, extent, max(thickness, min(sizes)))


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
