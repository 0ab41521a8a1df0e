"""The fingerprint of a task's images: what settings are proposed from.

The grid of every case is read from its header; voxels are read of as many cases as say enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.cases import CaseFiles, Part, RawCase, Source
from jaxseg.data.formats import sources, structures
from jaxseg.data.volumes import volume
from jaxseg.regions import mask
from jaxseg.study.proposal.structures import Structure, measure_label
from jaxseg.types import Progress, UserError

FEW, MANY = 5, 40
"""The least and the most cases whose voxels are read, where there are so many."""
_VOXELS = 10**9
"""Voxels that are read altogether, beyond the first few cases: a minute or two of large CT."""
_SAMPLED = 100_000
"""Voxels of a case that its intensities are taken from."""


@dataclasses.dataclass(frozen=True)
class LabelProfile:
    """One label over the cases that were read; sizes are medians over those that have it."""

    name: str
    present: float
    """Share of the cases that have it."""
    share: float
    """Share of the voxels of an image."""
    extent_mm: tuple[float, ...]
    thickness_mm: float


@dataclasses.dataclass(frozen=True)
class ChannelProfile:
    """Intensities of one channel; medians over the cases that were read."""

    modality: str
    low: float
    """The 0.5th percentile of a case."""
    high: float
    """The 99.5th percentile of a case."""
    scales: float
    """Between cases, the 90th percentile of high - low over the 10th: 1 where all have one scale."""
    zeros: float
    """Share of the voxels that are exactly 0."""
    dark: float
    """Share of the voxels from 0 to a twentieth of `high`, without 0 itself."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What is known of a task's images. Axes are canonical; those of 2-D images are the two that are not single."""

    data: str
    name: str
    cases: int
    groups: int
    read: int
    """Cases whose voxels were read."""
    shape: tuple[float, ...]
    """Voxels of an image, the median of all cases for each axis."""
    largest: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    """Voxel sizes, the median of all cases for each axis."""
    spacing_range: tuple[tuple[float, float], ...]
    """The 10th and the 90th percentile of the voxel sizes for each axis."""
    channels: tuple[ChannelProfile, ...]
    labels: tuple[LabelProfile, ...]
    """Labels that occur; empty for images without label maps."""
    missing: tuple[str, ...] = ()
    """Labels of which no case that was read has a voxel."""
    classes: int = 1
    """Outputs of a network: the labels of the task, whether they occur or not, and the background; or the regions."""
    parts: int = 1
    """Parts of a pooled source."""
    listed: tuple[int, ...] = ()
    """Test cases of each fold that the data prescribes; empty where it prescribes none."""
    axes: tuple[int, ...] = (0, 1, 2)
    """The canonical axes that those of an image are: the first runs from left to right."""

    @property
    def ndim(self) -> int:
        """Axes of an image."""
        return len(self.shape)

    @property
    def in_voxels(self) -> bool:
        """Whether the spacing looks unknown: pictures whose voxel size is exactly 1 in every case."""
        scanned = any(channel.modality.upper().startswith(("CT", "MR")) for channel in self.channels)
        return self.ndim == 2 and not scanned and all(span == (1.0, 1.0) for span in self.spacing_range)


def take_fingerprint(
    data: str,
    *,
    labels: Sequence[str] = (),
    regions: Sequence[tuple[str, Sequence[str]]] = (),
    labelled: bool = True,
    cache: Path,
    progress: Progress,
) -> Fingerprint:
    """Takes the fingerprint of a task.

    Args:
        data: As in `TaskSettings.data`.
        labels: Names of the labels or regions to segment; () takes all.
        regions: As in `TaskSettings.regions`.
        labelled: Whether label maps are read. Otherwise images alone are looked at, of folders without labels too, and
            there are no labels or regions to name.
        cache: Folder of downloads.
        progress: Told about every case that is read.

    Raises:
        UserError: If there are no images, or none of them can be read.
    """
    with volume.quiet_nibabel():
        source, ndim = _open(data, cache, labelled=labelled)
        listing = source.listing
        named, made = structures.choose(listing, labels=labels, regions=regions, data=data)
        wanted = [(one.name, one.values) for one in made] or [(name, (value,)) for name, value in named]
        if not listing.cases:
            raise UserError("\n  ".join([f"{data} has no case that can be used", *map(": ".join, listing.refused)]))
        grids = [grid for case in listing.cases if (grid := source.grid_of(case)) is not None and grid[0]]
        kept = _axes(grids, ndim)
        looks = _looks(source, _chosen(listing.cases, grids), kept, wanted, data, progress)
    if not grids:
        grids = [(look.shape, look.spacing) for look in looks]
        kept = tuple(range(len(grids[0][0])))
    shapes, spacings = (np.array([[one[axis] for axis in kept] for one in part]) for part in zip(*grids, strict=True))
    profiles = _profiles([name for name, _ in wanted], looks, listing.parts)
    ranges = np.percentile(spacings, (10, 90), axis=0).T
    return Fingerprint(
        data=data,
        name=listing.name,
        cases=len(listing.cases),
        groups=len({case.group for case in listing.cases}),
        read=len(looks),
        shape=tuple(float(n) for n in np.median(shapes, axis=0)),
        largest=tuple(int(n) for n in shapes.max(axis=0)),
        spacing_mm=tuple(float(size) for size in np.median(spacings, axis=0)),
        spacing_range=tuple((float(low), float(high)) for low, high in ranges),
        channels=tuple(_channel(name, [look.channels[i] for look in looks]) for i, name in enumerate(listing.modality)),
        labels=tuple(profile for profile in profiles.values() if profile is not None),
        missing=tuple(name for name, found in profiles.items() if found is None),
        classes=len(wanted) + (not made),
        parts=max(1, len(listing.parts)),
        listed=tuple(len(test) for _, test in listing.splits or ()),
        axes=kept,
    )


# ------------------------------------------------------------------------------------------------------------ reading


@dataclasses.dataclass(frozen=True)
class _Look:
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: tuple[tuple[float, ...], ...]
    structures: dict[str, Structure]
    part: int
    """Index of the part of a pooled source."""


def _open(data: str, cache: Path, *, labelled: bool) -> tuple[Source, int]:
    """Opens a source as volumes, or as images if it has no volumes."""
    try:
        return sources.open_source(data, ndim=3, cache=cache, labelled=labelled), 3
    except UserError as error:
        if sources.is_elsewhere(data) or data.partition(":")[0] not in sources.SCHEMES:
            raise
        try:
            return sources.open_source(data, ndim=2, cache=cache, labelled=labelled), 2
        except UserError:
            raise error from None


def _axes(grids: Sequence[tuple[tuple[int, ...], tuple[float, ...]]], ndim: int) -> tuple[int, ...]:
    """The axes that images have: of volumes with a single slice in every case, those within the slice."""
    single = [axis for axis in range(ndim) if grids and all(shape[axis] == 1 for shape, _ in grids)]
    dropped = single[-1] if single and ndim == 3 else None
    return tuple(axis for axis in range(ndim) if axis != dropped)


def _chosen(cases: Sequence[CaseFiles], grids: Sequence[tuple[tuple[int, ...], tuple[float, ...]]]) -> list[CaseFiles]:
    """Cases whose voxels are read, evenly spread over all."""
    voxels = float(np.mean([math.prod(shape) for shape, _ in grids])) if grids else 1.0
    count = min(len(cases), max(FEW, min(MANY, int(_VOXELS / voxels))))
    return [cases[int(place)] for place in np.linspace(0, len(cases) - 1, count)]


def _looks(
    source: Source,
    chosen: Sequence[CaseFiles],
    kept: Sequence[int],
    wanted: Sequence[tuple[str, Sequence[int]]],
    data: str,
    progress: Progress,
) -> list[_Look]:
    """Measures those of the chosen cases that can be read.

    Raises:
        UserError: If none of them can.
    """
    looks, reasons = [], []
    for done, files in enumerate(chosen, start=1):
        try:
            raw = source.read(files)
            volume.check_channels(raw.image, len(source.listing.modality))
            looks.append(_look(raw, kept, wanted, files.part))
        except volume.BadCaseError as error:
            reasons.append(f"{files.name}: {error}")
        progress(f"looking at {source.listing.name}", done, len(chosen))
    if not looks:
        raise UserError("\n  ".join([f"none of {len(chosen)} cases of {data} that were tried can be read:", *reasons]))
    return looks


def _look(raw: RawCase, kept: Sequence[int], wanted: Sequence[tuple[str, Sequence[int]]], part: int) -> _Look:
    """Measures one case; label values that no name belongs to are left for the preparation to refuse."""
    image, label, spacing = raw.image, raw.label, raw.spacing_mm
    for axis in sorted({*range(label.ndim)} - {*kept}, reverse=True):
        image, label = image.take(0, axis=axis), label.take(0, axis=axis)
        spacing = (*spacing[:axis], *spacing[axis + 1 :])
    flat = image.reshape(-1, image.shape[-1])
    flat = flat[:: max(1, len(flat) // _SAMPLED)]
    low, high = np.percentile(flat, (0.5, 99.5), axis=0)
    zeros, dark = np.mean(flat == 0, axis=0), np.mean((flat > 0) & (flat < high / 20), axis=0)
    found = {name: measure_label(mask(label, values), spacing) for name, values in wanted}
    return _Look(
        label.shape,
        spacing,
        tuple(tuple(map(float, four)) for four in zip(low, high, zeros, dark, strict=True)),
        {name: structure for name, structure in found.items() if structure is not None},
        part,
    )


def _profiles(wanted: Sequence[str], looks: Sequence[_Look], parts: Sequence[Part]) -> dict[str, LabelProfile | None]:
    """Each structure in the cases that were read and, of a pooled source, are from a part that annotates it."""
    annotated = [{name for name, _ in part.labels} for part in parts]
    return {
        name: _profile(name, [look.structures.get(name) for look in looks if not parts or name in annotated[look.part]])
        for name in wanted
    }


def _profile(name: str, found: Sequence[Structure | None]) -> LabelProfile | None:
    there = [structure for structure in found if structure is not None]
    if not there:
        return None
    return LabelProfile(
        name=name,
        present=len(there) / len(found),
        share=float(np.median([one.share for one in there])),
        extent_mm=tuple(float(length) for length in np.median([one.extent_mm for one in there], axis=0)),
        thickness_mm=float(np.median([one.thickness_mm for one in there])),
    )


def _channel(modality: str, found: Sequence[tuple[float, ...]]) -> ChannelProfile:
    lows, highs, zeros, dark = np.array(found).T
    small, large = np.percentile(highs - lows, (10, 90))
    scales = float(large / small) if small > 0 else math.inf if large > 0 else 1.0
    return ChannelProfile(
        modality, float(np.median(lows)), float(np.median(highs)), scales, *map(float, np.median([zeros, dark], axis=1))
    )
