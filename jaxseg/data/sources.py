"""What a task's `data` string names, as a list of cases and a function that reads one of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num

from jaxseg.data import decathlon, layouts, synthetic, volume
from jaxseg.types import CaseFiles, UserError


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

    listing: layouts.CaseList
    read: Callable[[CaseFiles], RawCase]
    """Raises BadCaseError for a case that cannot be used."""
    spacing_of: Callable[[CaseFiles], tuple[float, ...] | None]
    """Spacing from the header alone; None where the header cannot be read."""
    identity: str
    """Changes when any input changes."""


def open_source(data: str, *, ndim: int, cache: Path) -> Source:
    """Resolve a `data` string.

    Args:
        data: a folder in Decathlon or nnU-Net layout, `synthetic:FAMILY[?...]`, `msd:TaskNN_Name` or `tfds:NAME?...`.
        ndim: 2 or 3.
        cache: where downloads are kept.

    Raises:
        UserError: nothing there, or not usable for `ndim` axes.
    """
    scheme, separator, rest = data.partition(":")
    if separator and scheme == "synthetic":
        return _synthetic(rest, ndim)
    if separator and scheme == "msd":
        return _folder(decathlon.find_task(rest, cache=cache), ndim)
    if separator and scheme == "tfds":
        from jaxseg.data import tfds_source  # it builds on this module

        return tfds_source.open_tfds(rest, ndim=ndim)
    if not data:
        raise UserError(
            "`data` is empty; it takes a folder (Decathlon or nnU-Net layout), synthetic:FAMILY, msd:TASK or tfds:NAME."
        )
    return _folder(Path(data).expanduser(), ndim)


def is_elsewhere(data: str) -> bool:
    """Whether a `data` string means a folder that this machine does not have."""
    scheme, separator, _ = data.partition(":")
    return not (separator and scheme in ("synthetic", "msd", "tfds")) and not Path(data).expanduser().exists()


# ------------------------------------------------------------------------------------------------------------ folder


def _folder(folder: Path, ndim: int) -> Source:
    listing = layouts.read_folder(folder)
    return Source(
        listing=listing,
        read=lambda files: _read_files(files, ndim),
        spacing_of=lambda files: _header_spacing(files, ndim),
        identity=_files_identity(folder, listing),
    )


def _read_files(files: CaseFiles, ndim: int) -> RawCase:
    image, geometry, warnings = volume.read_channels(files.images, ndim)
    if files.label is None:
        raise volume.BadCaseError("it has no label")
    label, affine, label_warnings = volume.read_label(files.label)
    own = geometry.affine @ nib.orientations.inv_ornt_aff(
        nib.orientations.io_orientation(geometry.affine), (*geometry.file_shape, 1)[:3]
    )
    shape = list(geometry.own_shape)
    if geometry.slice_axis is not None:
        shape.insert(geometry.slice_axis, 1)
    warnings += volume.compare_grids(shape, own, label.shape, affine, "its label")
    warnings += tuple(f"label: {text}" for text in label_warnings if text not in warnings)
    if geometry.slice_axis is not None:
        label = label.take(0, axis=geometry.slice_axis)
    return RawCase(image, label, geometry.own_spacing_mm, warnings)


def _header_spacing(files: CaseFiles, ndim: int) -> tuple[float, ...] | None:
    try:
        return volume.geometry_of(volume.open_image(files.images[0]), ndim, files.images[0]).own_spacing_mm
    except volume.BadCaseError:
        return None


def _files_identity(folder: Path, listing: layouts.CaseList) -> str:
    """Digest of names, sizes and modification times: contents of large sets are not read to find a prepared store."""
    paths = [path for case in listing.cases for path in (*case.images, case.label) if path]
    entries = [[os.path.relpath(path, folder), *_stamp(path)] for path in paths]
    entries += [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in listing.sources]
    return _digest([entries, [list(item) for item in listing.refused]])


def _stamp(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def _digest(content: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------- synthetic


def _synthetic(text: str, ndim: int) -> Source:
    task = synthetic.parse(text)
    if len(task.shape) != ndim:
        form = "x".join(["24"] * ndim)
        raise UserError(
            f"data 'synthetic:{text}' makes {len(task.shape)}-D images and the model has ndim {ndim}; "
            f"write shape={form} or set model.ndim to {len(task.shape)}."
        )
    index_of = {task.case_name(index): index for index in range(task.n)}

    def read(files: CaseFiles) -> RawCase:
        image, label = synthetic.make_case(task, index_of[files.name])
        return RawCase(image, label, task.spacing, ())

    listing = layouts.CaseList(
        name=f"synthetic_{task.family}",
        labels=tuple((f"{task.family} {value}", value) for value in range(1, task.labels + 1)),
        ignore=None,
        modality=("synthetic",) * task.channels,
        cases=tuple(CaseFiles(name, task.group_name(index), (), None) for name, index in index_of.items()),
        refused=(),
        warnings=(),
        splits=None,
    )
    return Source(listing, read, lambda files: task.spacing, _digest([task.identity, task.n]))
