"""The forms of a case: as its files are listed, as it was read, and as it is prepared; and the source of cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Num

from jaxseg.data import digests

_Value = TypeVar("_Value")

Folds = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
"""Pairs (train, val) of case names for each fold; `val` is held out."""
Refused = tuple[tuple[str, str], ...]
"""Pairs (case, reason) of cases that were left out."""


class NamedRegion(NamedTuple):
    """A region of a task by its values in label files."""

    name: str
    values: tuple[int, ...]
    """Every value of which the region is made."""
    written: int
    """The value that the region writes into a predicted label map; one of its own."""


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """Files of one case on disk, before anything of them was read."""

    name: str
    group: str
    """Patient, animal or examination; the name of the case itself if none is published."""
    images: tuple[str, ...]
    """One path per channel, or a single path to a 4-D file with all channels."""
    label: str | None
    part: int = 0
    """Index of the part of a pooled source that the case is from."""
    patient: str = dataclasses.field(kw_only=True)
    """Name of the patient in the case's own set: `group`, except in a pooled source (see `formats.pooled`)."""
    published: bool = dataclasses.field(kw_only=True)
    """Whether the set publishes this name as that of a patient; otherwise it is just the case's."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a pooled source, as its own files describe it."""

    name: str
    labels: tuple[tuple[str, int], ...]
    """Every label that the part annotates, with its value in the part's files."""
    ignore: int | None
    modality: tuple[str, ...]
    """Modality of each channel."""


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """Description of a prepared case, without its voxels."""

    name: str
    group: str
    """What splits never cut: a patient, or several of whom images are copies of each other."""
    shape: tuple[int, ...]
    """Shape on the training grid, canonical axes; 2-D tasks have two entries."""
    spacing_mm: tuple[float, ...]
    """Voxel sizes of the training grid."""
    own_shape: tuple[int, ...]
    """Shape on the case's own grid, canonical axes, on which metrics are computed."""
    own_spacing_mm: tuple[float, ...]
    voxels_per_label: tuple[int, ...]
    """Number of voxels of each label or region on the case's own grid, background first."""
    warnings: tuple[str, ...]
    image_sha256: str = ""
    """SHA-256 of the bytes of the image file, or of the list of the channel files' checksums. Without files, it is that
    of the array in a TFDS dataset, or of the parameters of a synthetic case."""
    label_sha256: str = ""
    """SHA-256 of the label file, in the same way."""
    voxels_sha256: str = ""
    """SHA-256 of the image's voxels as they were read, on canonical axes and before any processing, without axes of a
    single voxel. It is the same for the same image in another folder, under another name or compressed anew."""
    voxels_per_value: tuple[int, ...] = ()
    """Number of voxels of each class of the label map, background first, where regions are made of several; otherwise
    empty."""
    part: int = 0
    """Index of the part of a pooled source that the case is from."""
    patient: str = dataclasses.field(kw_only=True)
    """Name of the patient in the case's own set, by which other sets know the patient; `group` may be another name."""
    published: bool = dataclasses.field(kw_only=True)
    """Whether the set publishes this name as that of a patient; otherwise it is just the case's."""


@dataclasses.dataclass(frozen=True)
class CaseArrays:
    """One prepared case in memory."""

    record: CaseRecord
    image: Float[np.ndarray, "*spatial channels"]
    label: Num[np.ndarray, " *spatial"]
    reference: Num[np.ndarray, " *own_spatial"]
    """The label map on the case's own grid (canonical axes); the same array as `label` when spacing is native."""


@dataclasses.dataclass(frozen=True)
class CaseList:
    """The cases of a task before any voxel was read."""

    name: str
    labels: tuple[tuple[str, int], ...]
    """Every label name of dataset.json with its value in the files, without the background. Where dataset.json has
    regions, its values with themselves as names."""
    ignore: int | None
    """Value of voxels without a known label (nnU-Net's `ignore`), which count neither in training nor in evaluation."""
    modality: tuple[str, ...]
    """Modality of each channel."""
    cases: tuple[CaseFiles, ...]
    """Cases in name order."""
    refused: Refused
    warnings: tuple[str, ...]
    splits: Folds | None
    """Pairs (train, val) of case names for each fold, from splits_final.json or dataset.json."""
    sources: tuple[Path, ...] = ()
    """Files beside images and labels that the preparation depends on."""
    regions: tuple[NamedRegion, ...] = ()
    """The regions of dataset.json, in its order; empty if it has labels."""
    parts: tuple[Part, ...] = ()
    """The parts of a pooled source; empty where there is one source."""


@dataclasses.dataclass(frozen=True)
class RawCase:
    """One case as it was read: canonical axes, its own spacing, and label values as in the file."""

    image: Float[np.ndarray, "*spatial channels"]
    label: Num[np.ndarray, " *spatial"]
    spacing_mm: tuple[float, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """The cases of one `data` string and the functions that read them."""

    listing: CaseList
    read: Callable[[CaseFiles], RawCase]
    """Reads a case; raises BadCaseError if it cannot be used."""
    grid_of: Callable[[CaseFiles], tuple[tuple[int, ...], tuple[float, ...]] | None]
    """Returns shape and spacing from the header alone; None if it is unreadable, an empty shape if it has none."""
    identity: Callable[[digests.Progress | None], str]
    """Returns the checksum of the contents of all inputs: the same for a copy of a folder, another if one byte changes.
    Files that changed since they were last read are read again, with progress."""
    digests_of: Callable[[CaseFiles], tuple[str, str]]
    """Returns the checksums of image and label; see `CaseRecord.image_sha256`."""


def of_part(values: Sequence[_Value], part: int, channels: int) -> tuple[_Value, ...]:
    """Return what belongs to the channels of one part, of values by part and channel.

    >>> of_part("abcd", 1, 2)
    ('c', 'd')
    """
    return tuple(values[part * channels : (part + 1) * channels])
