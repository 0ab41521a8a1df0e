"""Resolution of a task's `data` string to a list of cases and a function that reads one of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxseg import paths
from jaxseg.data import digests
from jaxseg.data.cases import CaseFiles, CaseList, RawCase, Source
from jaxseg.data.formats import decathlon, layouts, pooled, synthetic, tfds_source
from jaxseg.data.formats.files import reading, table
from jaxseg.data.volumes import volume
from jaxseg.types import UserError

SCHEMES = ("synthetic", "msd", "tfds")
"""Prefixes of `data` before a colon. Everything else is a folder."""


def open_source(data: str, *, ndim: int, cache: Path, labelled: bool = True) -> Source:
    """Resolve a `data` string.

    Args:
        data: A folder in Decathlon or nnU-Net layout, `synthetic:FAMILY[?...]`, `msd:TaskNN_Name` or `tfds:NAME?...`;
            or several of these, `A+B` (see `pooled`).
        ndim: 2 or 3.
        cache: Folder of downloads and of the checksums of files.
        labelled: Whether cases have label maps. Otherwise the images alone are listed and read, every voxel of a case
            is background, and a folder needs no labels (see `unlabelled`).

    Raises:
        UserError: There is no data, or it cannot be used for `ndim` axes.
    """
    parts = pooled.split_data(data, SCHEMES)
    if len(parts) == 1:
        return _open_one(data, ndim, cache, labelled=labelled)
    spellings = [resolved(part) for part in parts]
    for part, spelling in zip(parts, spellings, strict=True):
        if spellings.count(spelling) > 1:
            raise UserError(f"data {data!r} pools {part} with itself; name each source once")
        if part == "target":
            raise UserError(
                f"data {data!r}: 'target' stands for the cases of the target that runs do not train on, and cannot be "
                "pooled with others; give the folders themselves, of which cases that the target is tested on are "
                "held out"
            )
    return pooled.pool([_open_one(part, ndim, cache, labelled=labelled) for part in parts], data)


def is_pooled(data: str) -> bool:
    """Return whether a `data` string names several sources."""
    return len(pooled.split_data(data, SCHEMES)) > 1


def _open_one(data: str, ndim: int, cache: Path, *, labelled: bool) -> Source:
    scheme, separator, rest = data.partition(":")
    if separator and scheme == "synthetic":
        return _synthetic(rest, ndim) if labelled else _without_labels(_synthetic(rest, ndim))
    if separator and scheme == "msd":
        return _folder(decathlon.find_task(rest, cache=cache), ndim, cache, labelled=labelled)
    if separator and scheme == "tfds":
        opened = tfds_source.open_tfds(rest, ndim=ndim, store_dir=cache)
        return opened if labelled else _without_labels(opened)
    if not data:
        raise UserError(
            "`data` is empty; it takes a folder (Decathlon or nnU-Net layout), synthetic:FAMILY, msd:TASK or tfds:NAME."
        )
    return _folder(paths.expand(data), ndim, cache, labelled=labelled)


def resolved(data: str) -> str:
    """Return one spelling for all strings that name the same data: `~` and links in a folder's path are resolved."""

    def one(part: str) -> str:
        scheme, separator, _ = part.partition(":")
        return part if separator and scheme in SCHEMES else os.path.realpath(paths.expand(part))

    return pooled.SIGN.join(map(one, pooled.split_data(data, SCHEMES)))


def _without_labels(source: Source) -> Source:
    """A source that has labels, as one without them."""

    def read(files: CaseFiles) -> RawCase:
        return _unlabelled(source.read(files))

    listing = dataclasses.replace(source.listing, labels=(), ignore=None, splits=None, regions=())
    return dataclasses.replace(
        source, listing=listing, read=read, digests_of=lambda files: (source.digests_of(files)[0], "")
    )


def _unlabelled(raw: RawCase) -> RawCase:
    """A case of which every voxel is background."""
    return dataclasses.replace(raw, label=np.zeros(raw.image.shape[:-1], np.uint8))


def is_elsewhere(data: str) -> bool:
    """Return whether a `data` string names a folder that this machine does not have."""

    def one(part: str) -> bool:
        scheme, separator, _ = part.partition(":")
        return not (separator and scheme in SCHEMES) and not paths.expand(part).exists()

    return any(map(one, pooled.split_data(data, SCHEMES)))


# ------------------------------------------------------------------------------------------------------------ folder


def _folder(folder: Path, ndim: int, store_dir: Path, *, labelled: bool) -> Source:
    listing = layouts.read_folder(folder) if labelled else layouts.read_unlabelled(folder)
    paths = [path for case in listing.cases for path in _files_of(case)]
    found: dict[str, digests.FileDigest] = {}

    def read_all(progress: digests.Progress | None = None) -> dict[str, digests.FileDigest]:
        if not found:
            found.update(digests.of_files([*paths, *listing.sources], store_dir=store_dir, progress=progress))
        return found

    def identity(progress: digests.Progress | None) -> str:
        return _folder_identity(folder, listing, read_all(progress))

    def digests_of(files: CaseFiles) -> tuple[str, str]:
        sums = [
            [read_all()[path].sha256 for path in table.with_parts(part)]
            for part in (files.images, [files.label] if files.label else [])
        ]
        images, label = (one[0] if len(one) == 1 else digests.of_values(one) if one else "" for one in sums)
        return images, label

    def read(files: CaseFiles) -> RawCase:
        raw = _read_files(files, ndim) if labelled else _read_image(files, ndim)
        for path in _files_of(files):
            if path in found and digests.stamp_of(path) != found[path].stamp:
                raise UserError(f"{path} changed while it was being prepared. Start again when nothing writes to it.")
        return raw

    return Source(listing, read, lambda files: _header_grid(files, ndim), identity, digests_of)


def _files_of(case: CaseFiles) -> list[str]:
    return table.with_parts([*case.images, *([case.label] if case.label else [])])


def _read_files(files: CaseFiles, ndim: int) -> RawCase:
    image, geometry, warnings = reading.read_channels(files.images, ndim)
    if files.label is None:
        raise volume.BadCaseError("it has no label")
    own = geometry.canonical_affine()
    label, affine, label_warnings = reading.read_label(files.label, like=own, image=files.images[0])
    warnings += volume.compare_grids(geometry.volume_shape(), own, label.shape, affine, "its label")
    warnings += tuple(f"label: {text}" for text in label_warnings if text not in warnings)
    if geometry.slice_axis is not None:
        label = label.take(0, axis=geometry.slice_axis)
    return RawCase(image, label, geometry.own_spacing_mm, warnings)


def _read_image(files: CaseFiles, ndim: int) -> RawCase:
    image, geometry, warnings = reading.read_channels(files.images, ndim)
    return RawCase(image, np.zeros(image.shape[:-1], np.uint8), geometry.own_spacing_mm, warnings)


def _header_grid(files: CaseFiles, ndim: int) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    try:
        geometry = volume.geometry_of(reading.open_image(files.images[0]), ndim, files.images[0])
    except volume.BadCaseError:
        return None
    return geometry.own_shape, geometry.own_spacing_mm


def _folder_identity(folder: Path, listing: CaseList, found: Mapping[str, digests.FileDigest]) -> str:
    """Names below the folder and checksums of files: the folder's own name, links and times of change do not count."""
    entries = []
    for case in listing.cases:
        files = [[os.path.relpath(path, folder), found[path].sha256] for path in _files_of(case)]
        entries.append([case.name, case.group, case.published, files])
    described = [[path.name, found[str(path)].sha256] for path in listing.sources]
    refused = [[name, reason.replace(str(folder), ".")] for name, reason in listing.refused]
    return digests.of_values(entries, described, refused)


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

    listing = CaseList(
        name=f"synthetic_{task.family}",
        labels=tuple((f"{task.family} {value}", value) for value in range(1, task.labels + 1)),
        ignore=None,
        modality=("synthetic",) * task.channels,
        cases=tuple(
            CaseFiles(name, group, (), None, patient=group, published=True)
            for name, group in ((name, task.group_name(index)) for name, index in index_of.items())
        ),
        refused=(),
        warnings=(),
        splits=None,
    )

    def digests_of(files: CaseFiles) -> tuple[str, str]:
        made = digests.of_values(task.identity, index_of[files.name])
        return made, made

    identity = digests.of_values(task.identity, task.n)
    return Source(listing, read, lambda files: (task.shape, task.spacing), lambda progress: identity, digests_of)
