"""The data of a task, case by case, before anything of it is prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.data import digests
from jaxseg.data.cases import Folds, NamedRegion, Part, Refused, Source
from jaxseg.data.formats import sources
from jaxseg.data.volumes import volume
from jaxseg.settings import TaskSettings


@dataclasses.dataclass(frozen=True)
class ListedCase:
    """Name and contents of one case."""

    name: str
    group: str
    image_sha256: str
    """See `CaseRecord.image_sha256`."""
    label_sha256: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The cases of a task and what is said about them.

    Two listings are equal if and only if the data of one can stand in for the data of the other.
    """

    labels: tuple[tuple[str, int], ...]
    """Every label with its value in the files, without the background."""
    ignore: int | None
    """Value of voxels without a known label."""
    modality: tuple[str, ...]
    """Modality of each channel."""
    cases: tuple[ListedCase, ...]
    """Cases in name order, including those that turn out to be unusable when they are read."""
    refused: Refused
    """Pairs (case, reason) of what is no case, such as an image without a label."""
    splits: Folds | None
    """Pairs (train, val) of case names for each fold that the data prescribes."""
    regions: tuple[NamedRegion, ...] = ()
    """The regions that the data prescribes; empty if it has labels."""
    parts: tuple[Part, ...] = ()
    """The parts of a pooled source; empty where there is one source."""

    def to_json(self) -> dict[str, Any]:
        """Return the listing as JSON values, without regions and parts where there are none."""
        rare = ("regions", "parts")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in rare or value}


EMPTY = Listing((), None, (), (), (), None)


def from_json(tree: Mapping[str, Any]) -> Listing:
    """Restore the listing that `Listing.to_json` returned."""
    return Listing(
        labels=tuple((name, value) for name, value in tree["labels"]),
        ignore=tree["ignore"],
        modality=tuple(tree["modality"]),
        cases=tuple(ListedCase(**case) for case in tree["cases"]),
        refused=tuple((name, reason) for name, reason in tree["refused"]),
        splits=splits_from_json(tree["splits"]),
        regions=regions_from_json(tree.get("regions", ())),
        parts=parts_from_json(tree.get("parts", ())),
    )


def splits_from_json(folds: Any) -> Folds | None:
    """Convert folds to tuples, which JSON turned into lists."""
    return None if folds is None else tuple((tuple(train), tuple(val)) for train, val in folds)


def regions_from_json(regions: Sequence[Any]) -> tuple[NamedRegion, ...]:
    """Convert regions to tuples, which JSON turned into lists."""
    return tuple(NamedRegion(name, tuple(values), written) for name, values, written in regions)


def parts_from_json(parts: Iterable[Mapping[str, Any]]) -> tuple[Part, ...]:
    """Restore the parts of a pooled source."""
    return tuple(
        Part(
            name=part["name"],
            labels=tuple((name, value) for name, value in part["labels"]),
            ignore=part["ignore"],
            modality=tuple(part["modality"]),
        )
        for part in parts
    )


def list_cases(task: TaskSettings, *, ndim: int, store_dir: Path, progress: digests.Progress | None = None) -> Listing:
    """List the cases of a task's data as it is now. Files are read only if they changed since they were last read.

    Args:
        task: Settings, of which `data` and `as_slices` are used.
        ndim: Number of axes of the network, 2 or 3.
        store_dir: Folder of the stores of all tasks, where checksums of files are remembered.
        progress: Called with the files that are read, if this takes long.

    Raises:
        UserError: There is no data, or it cannot be listed.
    """
    with volume.quiet_nibabel():
        axes = 3 if task.as_slices else ndim
        source = sources.open_source(task.data, ndim=axes, cache=Path(store_dir), labelled=task.labelled)
        source.identity(progress)
        return listing_of(source)


def listing_of(source: Source) -> Listing:
    """Return the listing of an open source."""
    listed = source.listing
    return Listing(
        labels=listed.labels,
        ignore=listed.ignore,
        modality=listed.modality,
        cases=tuple(ListedCase(case.name, case.group, *source.digests_of(case)) for case in listed.cases),
        refused=listed.refused,
        splits=listed.splits,
        regions=listed.regions,
        parts=listed.parts,
    )
