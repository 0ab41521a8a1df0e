"""Regions: structures that overlap, each a union of the classes of a label map (nnU-Net's region-based training).

A network of regions has one output per region and no background; each output says by itself, through a sigmoid, whether
a voxel lies in its region. Label maps stay what they are on disk and in memory. They are turned into the masks of
regions where a loss or a score needs these, and predicted masks into a label map: in order, every region writes one
class over what the regions before it have written, as `regions_class_order` says in nnU-Net's dataset.json.

The functions take NumPy and JAX arrays alike and return arrays of the same kind.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

THRESHOLD = 0.5
"""A voxel lies in a region if its probability is above this; at exactly this value it does not, as in nnU-Net."""


@dataclasses.dataclass(frozen=True)
class Regions:
    """The regions of a task, in the order of the network's outputs."""

    members: tuple[tuple[int, ...], ...]
    """Classes of the label map that each region is made of."""
    written: tuple[int, ...]
    """The class that each region writes into a label map; one of its own."""

    @property
    def classes(self) -> int:
        """Number of classes of a label map, without the background. The next index marks voxels without a label."""
        return max(max(group) for group in self.members)


def count_outputs(structures: int, regions: Regions | None) -> int:
    """Return the outputs of a network: one per structure and, where structures exclude each other, the background."""
    return structures + 1 if regions is None else structures


def mask(label: Any, classes: Sequence[int]) -> Any:
    """Return where a label map has any of some classes."""
    return functools.reduce(operator.or_, (label == index for index in classes))


def masks(label: Any, regions: Regions) -> Any:
    """Return the masks of all regions, on a new last axis."""
    return label.__array_namespace__().stack([mask(label, group) for group in regions.members], axis=-1)


def decide(probabilities: Any, regions: Regions | None) -> Any:
    """Return the label map that probabilities stand for.

    Args:
        probabilities: `[..., outputs]`.
        regions: The regions that the outputs are of, which write their classes in order where they are above
            `THRESHOLD`; None if they are classes that exclude each other, of which the likeliest is taken.
    """
    if regions is None:
        return probabilities.argmax(-1)
    return write([probabilities[..., index] > THRESHOLD for index in range(len(regions.written))], regions)


def write(inside: Sequence[Any], regions: Regions) -> Any:
    """Return the label map of masks, one per region: later regions overwrite earlier ones."""
    xp = inside[0].__array_namespace__()
    label = xp.zeros(inside[0].shape, xp.int32)
    for found, value in zip(inside, regions.written, strict=True):
        label = xp.where(found, xp.asarray(value, dtype=xp.int32), label)
    return label


def without(label: Any, index: int, regions: Regions) -> Any:
    """Return what the other regions make of a label map where one region is taken away.

    Regions that are part of it go with it. A voxel takes the class that the last of the other regions around it writes,
    and becomes background if there is none.
    """
    gone = set(regions.members[index])
    xp = label.__array_namespace__()
    table = [0] * (regions.classes + 1)
    for value in range(1, len(table)):
        for group, written in zip(regions.members, regions.written, strict=True):
            if value in group and not set(group) <= gone:
                table[value] = written
    return xp.asarray(table, dtype=label.dtype)[label]
