"""Grids, patches and levels that suit images: pure functions of what is known of the images.

The rules for strides and kernels are those of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): an axis is
halved while it is long enough and its voxels are shorter than twice the shortest, and a kernel does not reach across
voxels that are twice as long. Grids and patches follow from structures instead of from the largest patch that fits a
GPU: what a budget allows is known here, and may be much less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxseg.study.proposal.fingerprint import Fingerprint

FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
"""Coarser grids, as multiples of the shortest voxel edge."""
LEAST_ACROSS, ACROSS, MOST_ACROSS = 4.0, 8.0, 40.0
"""Voxels across the thinnest label: a coarser grid leaves the least where time is short, and the second number where it
costs nothing to speak of. A grid with more than the last is finer than labels ask for."""
THICK = 3.0
"""Ratio of the longest to the shortest voxel edge above which volumes are stacks of slices."""
SAME = 1.1
"""Ratio of voxel sizes up to which two grids count as the same, and need no resampling."""
HALF = 0.5
"""Length of a patch over that of the image: where a structure lies tells much of what it is, as in ultrasound."""
SHORTEST = {2: 64, 3: 32}
"""Voxels that a patch should have along an axis, where the image has so many: near its border less is seen."""
LEAST = {2: 32, 3: 16}
"""Voxels that it has where time or memory are short."""
LONGEST = {2: 512, 3: 160}
"""Voxels that a patch has along an axis at most."""
BEYOND = 1.2
"""Length of a patch over that of the image up to which it is worth to have the image in one window."""
_EDGE = 4
"""Voxels along an axis of the coarsest level at least."""
MOST_LEVELS = {2: 6, 3: 5}


@dataclasses.dataclass(frozen=True)
class View:
    """Images along the axes that the network has: of volumes taken slice by slice, those within a slice."""

    axes: tuple[int, ...]
    """The axes of the images that these are."""
    shape: tuple[float, ...]
    """Voxels, the median of all cases."""
    spacing: tuple[float, ...]
    varies: bool
    """Whether voxel sizes differ between cases, along other axes than that across thick slices."""
    extent: tuple[float, ...]
    """Lengths of the longest label; those of the image where there are no labels."""
    longest: str
    thickness: float
    """That of the thinnest label; infinite where there are no labels."""
    thinnest: str

    @property
    def thick(self) -> tuple[int, ...]:
        """Axes across thick slices."""
        return tuple(axis for axis, size in enumerate(self.spacing) if size > THICK * min(self.spacing))

    @property
    def lengths(self) -> tuple[float, ...]:
        """Lengths of the image."""
        return tuple(n * size for n, size in zip(self.shape, self.spacing, strict=True))


def view(found: Fingerprint, slice_axis: int | None = None) -> View:
    """Returns the images of a task as a network sees them that takes volumes whole, or slices across an axis."""
    axes = tuple(axis for axis in range(found.ndim) if axis != slice_axis)
    spacing = tuple(found.spacing_mm[axis] for axis in axes)
    shape = tuple(found.shape[axis] for axis in axes)
    spans = [found.spacing_range[axis] for axis in axes if found.spacing_mm[axis] <= THICK * min(spacing)]
    lengths = tuple(n * size for n, size in zip(shape, spacing, strict=True))
    # A label that hardly any case has should not decide the grid of all.
    labels = [label for label in found.labels if label.present >= 0.1] or list(found.labels)
    long = max(labels, key=lambda label: max(label.extent_mm[axis] for axis in axes), default=None)
    thin = min(labels, key=lambda label: label.thickness_mm, default=None)
    return View(
        axes=axes,
        shape=shape,
        spacing=spacing,
        varies=any(high > SAME * low for low, high in spans),
        extent=lengths if not labels else tuple(max(label.extent_mm[axis] for label in labels) for axis in axes),
        longest="" if long is None else long.name,
        thickness=math.inf if thin is None else thin.thickness_mm,
        thinnest="" if thin is None else thin.name,
    )


def grids(seen: View) -> list[tuple[float, ...]]:
    """Returns voxel sizes to choose from, the finest first; the edges of coarser ones become ever more equal.

    The finest is the images' own, unless the thinnest label is so thick that a coarser grid shows all of its shape.
    """
    found = [seen.spacing]
    shortest = min(seen.spacing)
    for factor in FACTORS[1:]:
        edge = factor * shortest
        spacing = tuple(max(size, edge) for size in seen.spacing)
        coarser = [axis for axis, size in enumerate(seen.spacing) if edge > size]
        enough = all(seen.lengths[axis] / edge >= SHORTEST[len(spacing)] for axis in coarser)
        if across(seen, spacing) < LEAST_ACROSS or not enough:
            break
        if math.isfinite(seen.thickness) and across(seen, spacing) >= MOST_ACROSS:
            found = []
        found.append(spacing)
    return found


def across(seen: View, spacing: Sequence[float]) -> float:
    """Returns the voxels across the thinnest label on a grid."""
    return seen.thickness / min(spacing)


def wanted_size(seen: View, spacing: Sequence[float], around: float) -> tuple[float, ...]:
    """Returns the voxels along each axis of a patch with the longest label and what lies around it, within the image.

    Args:
        seen: The images.
        spacing: The grid.
        around: Length of the patch over that of the label.
    """
    ndim = len(spacing)
    size = []
    for length, extent, edge in zip(seen.lengths, seen.extent, spacing, strict=True):
        context = max(around * extent / edge, HALF * length / edge, SHORTEST[ndim])
        size.append(max(1.0, min(length / edge, context, LONGEST[ndim])))
    # Of a few voxels nothing is left to normalize at the coarsest level; what lies beyond an image is empty.
    return tuple(size) if math.prod(size) >= (2 * _EDGE) ** 2 else tuple(max(n, 2.0 * _EDGE) for n in size)


def shrunk(size: Sequence[float], voxels: float) -> tuple[float, ...]:
    """Returns a size of at most so many voxels, with the longest axes shortened and none below the shortest size."""
    shortest = LEAST[len(size)]
    found = list(size)
    while math.prod(found) > voxels:
        axis = max(range(len(found)), key=lambda axis: found[axis])
        if found[axis] <= shortest:
            break
        found[axis] = max(0.9 * found[axis], float(shortest))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Levels:
    """Strides of the levels below the first, and kernels of all levels, per axis."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """What each axis of a patch must be a multiple of."""
        return (
            tuple(math.prod(along) for along in zip(*self.strides, strict=True)) if self.strides else (1,) * self.ndim
        )

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.kernels[0])

    def patch(self, size: Sequence[float], whole: Sequence[float]) -> tuple[int, ...]:
        """Returns the patch that is closest to a size, or the next larger where it then holds a whole image.

        Args:
            size: Voxels along each axis.
            whole: Voxels of the image.
        """
        found = []
        for length, image, divisor in zip(size, whole, self.divisors, strict=True):
            above = math.ceil(length / divisor - 1e-6) * divisor
            holds = above >= image and above <= BEYOND * length
            found.append(above if holds else max(1, round(length / divisor)) * divisor)
        return tuple(found)


def within(seen: View, spacing: Sequence[float], patch: Sequence[int], divisors: Sequence[int]) -> tuple[int, ...]:
    """Returns the part of a patch that images of another task fill, with a few voxels left at the coarsest level."""
    filled = [
        min(size, math.ceil(length / edge / divisor - 1e-6) * divisor)
        for size, length, edge, divisor in zip(patch, seen.lengths, spacing, divisors, strict=True)
    ]
    while math.prod(size // divisor for size, divisor in zip(filled, divisors, strict=True)) < _EDGE:
        short = [axis for axis, size in enumerate(filled) if size < patch[axis]]
        if not short:
            break
        axis = min(short, key=lambda axis: filled[axis] // divisors[axis])
        filled[axis] += divisors[axis]
    return tuple(filled)


def levels(size: Sequence[float], spacing: Sequence[float]) -> Levels:
    """Returns the levels for patches of about a size, on a grid."""
    ndim = len(size)
    now, edges = list(size), list(spacing)
    strides: list[tuple[int, ...]] = []
    kernels = [_kernel(now, edges)]
    while len(kernels) < MOST_LEVELS[ndim]:
        long_enough = [axis for axis in range(ndim) if now[axis] >= 2 * _EDGE]
        halved = [axis for axis in long_enough if edges[axis] < 2 * min(edges[other] for other in long_enough)]
        if not halved:
            break
        strides.append(tuple(2 if axis in halved else 1 for axis in range(ndim)))
        for axis in halved:
            now[axis], edges[axis] = now[axis] / 2, edges[axis] * 2
        kernels.append(_kernel(now, edges))
    return Levels(tuple(strides), tuple(kernels))


def _kernel(size: Sequence[float], edges: Sequence[float]) -> tuple[int, ...]:
    # An axis of one or two voxels has no neighbours to look at, and does not say how fine the grid is.
    shortest = min((edge for edge, length in zip(edges, size, strict=True) if length >= 3), default=min(edges))
    return tuple(
        3 if length >= 3 and edge < 2 * shortest * (1 + 1e-6) else 1 for edge, length in zip(edges, size, strict=True)
    )
