"""What a case is: as its files are listed, as it was given, as it is prepared; and where cases come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num

from jaxseg.data import digests

Folds = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
"""(train, val) case names of each fold; `val` is held out."""
Refused = tuple[tuple[str, str], ...]
"""(case, reason) pairs."""


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """Where one case lies on disk, before anything of it was read."""

    name: str
    group: str
    """Patient, animal or examination; the case's own name where none is published."""
    images: tuple[str, ...]
    """One path a channel, or a single path to a 4-D file with all channels."""
    label: str | None


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """What is known of a prepared case without its voxels."""

    name: str
    group: str
    shape: tuple[int, ...]
    """On the training grid, canonical axes; 2-D tasks have two entries."""
    spacing_mm: tuple[float, ...]
    """Of the training grid."""
    own_shape: tuple[int, ...]
    """On the case's own grid, canonical axes, where metrics are computed."""
    own_spacing_mm: tuple[float, ...]
    voxels_per_label: tuple[int, ...]
    """On the case's own grid, background first."""
    warnings: tuple[str, ...]
    image_sha256: str = ""
    """SHA-256 of the bytes of its image file, or of the list of those of its channels' files. Without files: of its
    array in a TFDS dataset, or of what makes a synthetic case."""
    label_sha256: str = ""
    """The same of its label file."""
    voxels_sha256: str = ""
    """Of the image's voxels as they were read, on canonical axes and before anything was done to them. The same image
    in another folder, under another name or compressed anew has the same."""


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
    """A task's cases before any voxel was read."""

    name: str
    labels: tuple[tuple[str, int], ...]
    """Every name of dataset.json with its value in the files, background left out."""
    ignore: int | None
    """Value of voxels without a known label (nnU-Net's `ignore`), counted neither in training nor in evaluation."""
    modality: tuple[str, ...]
    """One entry a channel."""
    cases: tuple[CaseFiles, ...]
    """In name order."""
    refused: Refused
    warnings: tuple[str, ...]
    splits: Folds | None
    """(train, val) case names of each fold in splits_final.json, or as dataset.json gives them."""
    sources: tuple[Path, ...] = ()
    """Files beside images and labels that the preparation depends on."""


@dataclasses.dataclass(frozen=True)
class RawCase:
    """One case as it was given: canonical axes, own spacing, values of its own label coding."""

    image: Float[np.ndarray, "*spatial channels"]
    label: Num[np.ndarray, " *spatial"]
    spacing_mm: tuple[float, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """Cases of one `data` string."""

    listing: CaseList
    read: Callable[[CaseFiles], RawCase]
    """Raises BadCaseError for a case that cannot be used."""
    grid_of: Callable[[CaseFiles], tuple[tuple[int, ...], tuple[float, ...]] | None]
    """Shape and spacing from the header alone: None where it cannot be read, an empty shape where it does not say."""
    identity: Callable[[digests.Progress | None], str]
    """Checksum of all inputs by their content: the same for a copy of a folder, another when a byte changes. Files that
    changed since they were last read are read again, with progress."""
    digests_of: Callable[[CaseFiles], tuple[str, str]]
    """Checksums of image and label, see `CaseRecord.image_sha256`."""
