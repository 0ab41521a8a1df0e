"""Label maps in files: references of a task, predictions to compare with them, and the grids of its cases."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num

from jaxseg import paths
from jaxseg.data.cases import CaseFiles, CaseRecord, NamedRegion
from jaxseg.data.formats import image_files, layouts, sources, structures
from jaxseg.data.formats.files import reading
from jaxseg.data.volumes import headers, volume
from jaxseg.types import UserError


class LabelMap(NamedTuple):
    """A label map on canonical axes, of which there are always three."""

    values: Num[np.ndarray, "x y z"]
    """Values as in the file."""
    spacing_mm: tuple[float, ...]
    affine: Float[np.ndarray, "4 4"] | None
    """Affine on canonical axes; None if there is no file."""

    def on_own_axes(self, ndim: int, where: str) -> tuple[Num[np.ndarray, " *own"], tuple[float, ...]]:
        """Return values and spacing on the axes that a case of the task has: in 2-D without the axis across the slice.

        Raises:
            BadCaseError: The task is 2-D and the label map has several slices.
        """
        across = volume.slice_axis_of(self.values.shape, ndim, where)
        kept = [axis for axis in range(3) if axis != across]
        shape = [self.values.shape[axis] for axis in kept]
        return self.values.reshape(shape), tuple(self.spacing_mm[axis] for axis in kept)


class References(NamedTuple):
    """The reference label maps of a task, or of a folder of label maps."""

    labels: tuple[tuple[str, int], ...]
    """Label names with their values in the files; where there are regions, those that these are made of."""
    known: frozenset[int]
    """Every value that a file may hold."""
    ignore: int | None
    """Value of voxels without a known label."""
    cases: tuple[CaseFiles, ...]
    read: Callable[[CaseFiles], LabelMap]
    regions: tuple[NamedRegion, ...] = ()
    """The regions that are scored in place of labels."""
    ndim: int = 3
    """Number of axes of a case, 2 or 3, on which everything is measured."""


def read_label_map(path: str | Path, like: np.ndarray | None = None, image: str | None = None) -> LabelMap:
    """Read a label map from a file, on canonical axes or on those of the canonical affine `like`.

    Args:
        path: Path of the file.
        like: See `reading.read_label`.
        image: See `reading.read_label`.

    Raises:
        UserError: The file cannot be read as a label map.
    """
    try:
        values, affine, _ = reading.read_label(str(path), like, image)
    except volume.BadCaseError as error:
        raise UserError(str(error)) from None
    return LabelMap(values, headers.spacing_mm(affine), affine)


def open_references(
    data: str,
    *,
    ndim: int,
    cache: Path,
    labels: Sequence[str] = (),
    regions: Sequence[tuple[str, Sequence[str]]] = (),
) -> References:
    """Open the references that a `data` string names.

    Args:
        data: The `data` of a task, or a folder that holds only label maps, whose labels are then named by their values.
        ndim: 2 or 3. In 2-D, areas and distances are measured within the slice.
        cache: Folder of downloads.
        labels: Names of some of the labels or regions, in class order; empty for all.
        regions: As in `TaskSettings.regions`.

    Raises:
        UserError: There is no data, or it cannot be used for `ndim` axes.
    """
    folder = paths.expand(data)
    in_set = (folder / "dataset.json").exists() or layouts.part_of_set(folder) is not None
    if folder.is_dir() and not in_set:
        return _label_folder(folder, ndim)
    if sources.is_pooled(data):
        raise UserError(f"references are of one set, and {data!r} pools several; score against one after another")
    source = sources.open_source(data, ndim=ndim, cache=cache)

    def read(files: CaseFiles) -> LabelMap:
        if files.label is not None:
            return read_label_map(files.label, image=files.images[0])
        raw = source.read(files)
        shape, spacing = (*raw.label.shape, 1)[:3], (*raw.spacing_mm, 1.0)[:3]
        return LabelMap(raw.label.reshape(shape), spacing, None)

    listing = source.listing
    chosen, made = structures.choose(listing, labels=labels, regions=regions, data=data)
    known = frozenset({0, *(value for _, value in listing.labels)})
    return References(chosen, known, listing.ignore, listing.cases, read, made, ndim)


def _label_folder(folder: Path, ndim: int) -> References:
    maps = image_files.list_label_maps(folder)
    cases = tuple(dataclasses.replace(case, images=(), label=case.images[0]) for case in maps)
    values: set[int] = set()
    for case in cases:
        with contextlib.suppress(UserError, OSError):  # told when a prediction is scored against it
            values |= {int(value) for value in np.unique(read_label_map(str(case.label)).values)}
    found = sorted(values - {0})
    labels = tuple((str(value), value) for value in found)
    known = frozenset({0, *found})
    return References(labels, known, None, cases, lambda files: read_label_map(str(files.label)), ndim=ndim)


def case_geometries(data: str, *, ndim: int, cache: Path) -> Callable[[CaseRecord], volume.Geometry]:
    """Return a function from a case to the grid on which its prediction is written: that of its image.

    Cases without image files (synthetic, or from a TFDS store) get a grid of their own with its origin at 0. The
    function must not be used inside threads.

    Args:
        data: The `data` of the task.
        ndim: 2 or 3.
        cache: Folder of downloads.
    """
    source = sources.open_source(data, ndim=ndim, cache=cache)
    files = {case.name: case for case in source.listing.cases}

    def geometry(record: CaseRecord) -> volume.Geometry:
        images = files[record.name].images
        if images:
            with volume.quiet_nibabel():
                return volume.geometry_of(reading.open_image(images[0]), ndim, images[0])
        affine = np.diag([*(*record.own_spacing_mm, 1.0)[:3], 1.0])
        shape = (*record.own_shape, 1)[:3]
        return volume.geometry_of(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), ndim, record.name)

    return geometry
