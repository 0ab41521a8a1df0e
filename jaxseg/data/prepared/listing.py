"""What a task's data holds, case by case, before anything of it is prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxseg.data import digests
from jaxseg.data.cases import Folds, Refused, Source
from jaxseg.data.formats import sources
from jaxseg.data.volumes import volume
from jaxseg.settings import TaskSettings


@dataclasses.dataclass(frozen=True)
class ListedCase:
    """One case by name and content."""

    name: str
    group: str
    image_sha256: str
    """See `CaseRecord.image_sha256`."""
    label_sha256: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """Cases of a task and what is said about them. Two listings are equal if and only if a task can take one's data for
    the other's.
    """

    labels: tuple[tuple[str, int], ...]
    """Every label with its value in the files, background left out."""
    ignore: int | None
    """Value of voxels without a known label."""
    modality: tuple[str, ...]
    """One entry a channel."""
    cases: tuple[ListedCase, ...]
    """In name order, also those that turn out to be unusable when they are read."""
    refused: Refused
    """(case, reason) of what is no case, such as an image without a label."""
    splits: Folds | None
    """(train, val) case names of each fold that the data prescribes."""

    def to_json(self) -> dict[str, Any]:
        """The listing as JSON values."""
        return dataclasses.asdict(self)


EMPTY = Listing((), None, (), (), (), None)


def from_json(tree: Mapping[str, Any]) -> Listing:
    """The listing that `Listing.to_json` gave."""
    return Listing(
        labels=tuple((name, value) for name, value in tree["labels"]),
        ignore=tree["ignore"],
        modality=tuple(tree["modality"]),
        cases=tuple(ListedCase(**case) for case in tree["cases"]),
        refused=tuple((name, reason) for name, reason in tree["refused"]),
        splits=splits_from_json(tree["splits"]),
    )


def splits_from_json(folds: Any) -> Folds | None:
    """Folds as tuples, which JSON made lists."""
    return None if folds is None else tuple((tuple(train), tuple(val)) for train, val in folds)


def list_cases(task: TaskSettings, *, ndim: int, store_dir: Path, progress: digests.Progress | None = None) -> Listing:
    """The cases that a task's data holds now. Files are read only if they changed since they were last read.

    Args:
        task: its `data` and `as_slices` are used.
        ndim: of the network, 2 or 3.
        store_dir: stores of all tasks, where checksums of files are remembered.
        progress: told about the files that are read where this takes long.

    Raises:
        UserError: no data, or data that cannot be listed.
    """
    with volume.quiet_nibabel():
        source = sources.open_source(task.data, ndim=3 if task.as_slices else ndim, cache=Path(store_dir))
        source.identity(progress)
        return listing_of(source)


def listing_of(source: Source) -> Listing:
    """The listing of an open source."""
    listed = source.listing
    return Listing(
        labels=listed.labels,
        ignore=listed.ignore,
        modality=listed.modality,
        cases=tuple(ListedCase(case.name, case.group, *source.digests_of(case)) for case in listed.cases),
        refused=listed.refused,
        splits=listed.splits,
    )
