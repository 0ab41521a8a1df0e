"""Write label maps and other volumes on the grid that they came from, in any format of the table.

The header of every written file says so, with a checksum of the voxels. Only such files are ever replaced: an image, a
reference, or a prediction that somebody has corrected by hand is never overwritten.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num

from jaxseg.data.formats.files import table
from jaxseg.data.volumes import headers, resample
from jaxseg.data.volumes.volume import Geometry
from jaxseg.regions import Regions
from jaxseg.types import UserError

_MARK = "jaxseg "
"""Beginning of the description in the header of a written file; a checksum of the voxels follows."""
_SUM_TOLERANCE = 0.02
"""How far the sum of a voxel's class probabilities may be from 1, by rounding in short floating point formats."""


def write_prediction(
    prediction: Num[np.ndarray, " *grid"],
    geometry: Geometry,
    path: str | Path,
    *,
    label_values: Sequence[int] | None = None,
    regions: Regions | None = None,
    replace: bool = False,
) -> None:
    """Write a label map on the grid of the input: for NIfTI, with its sform, qform, codes and units.

    The format is that of the path's ending; `geometry.ending` is that of the input. The file is
    written atomically, and it replaces nothing but an earlier file that was written here.

    Args:
        prediction: Class indices `[*spatial]` or probabilities `[*spatial, outputs]`, on canonical axes: on the
            prepared grid (they are then resampled) or on the grid of the input.
        geometry: The geometry from `read_image`.
        path: Path with an ending of the table of formats.
        label_values: See `to_nifti`.
        regions: See `to_nifti`.
        replace: Whether to replace any existing file; for folders that belong to the writer.

    Raises:
        UserError: Another file has this path; see `is_own`.
        ValueError: The prediction is on neither grid, its probabilities are not of the classes or regions, or the path
            has another ending or one of a format that does not hold it, as PNG does not hold several slices.
    """
    _save(to_nifti(prediction, geometry, label_values=label_values, regions=regions), Path(path), replace)


def write_map(
    values: Float[np.ndarray, " *own"], geometry: Geometry, path: str | Path, *, replace: bool = False
) -> None:
    """Write numbers (entropies, probabilities) as float32 on the grid of the input; see `write_prediction`.

    Args:
        values: Values on the input's own grid, on canonical axes.
        geometry: The geometry from `read_image`.
        path: Path with an ending of a format that holds fractions, which PNG does not.
        replace: See `write_prediction`.

    Raises:
        UserError: Another file has this path; see `is_own`.
        ValueError: The path has another ending.
    """
    _save(_on_file_grid(values, geometry, np.float32), Path(path), replace)


def is_own(path: Path) -> bool:
    """Return whether a file was written here and has not been changed since."""
    try:
        row = table.of_name(path.name)
        if row is None:
            return False
        image: Any = row.read_header(str(path))
        said = image.header["descrip"].item().decode("ascii").rstrip("\0")
        return said.startswith(_MARK) and said == _description(np.asanyarray(image.dataobj), row)
    except _UNREADABLE:
        return False


_UNREADABLE = (
    *(OSError, EOFError, zlib.error, ValueError, KeyError, AttributeError, MemoryError, OverflowError),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ImportError),
)
"""Exceptions that reading an arbitrary file can raise."""


def _description(voxels: np.ndarray, row: table.Format) -> str:
    """The mark of voxels; slices of a format whose pictures have none are not counted."""
    if row is not table.NIFTI and voxels.ndim == 3 and voxels.shape[2] == 1:
        voxels = voxels[..., 0]
    plain = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{plain.dtype.str} {plain.shape} ".encode() + plain.tobytes())
    return f"{_MARK}{digest.hexdigest()[:48]}"  # the field has 80 bytes


def refuse_foreign(path: Path) -> None:
    """Refuse to write a prediction where another file exists.

    Raises:
        UserError: The path exists and is not our own file; see `is_own`.
    """
    if os.path.lexists(path) and not is_own(path):
        raise UserError(
            f"{path} was not written by jaxseg, or has been changed since; it is not replaced. Move it away, or have "
            "the predictions written to another folder."
        )


def _save(image: Any, path: Path, replace: bool) -> None:
    """Write an image, whole or not at all."""
    if not replace:
        refuse_foreign(path)
    row = table.of_name(path.name)
    suffix = None if row is None else next((ending for ending in row.writes if path.name.endswith(ending)), None)
    if row is None or suffix is None:
        allowed = ", ".join(ending for one in table.FORMATS for ending in one.writes)
        raise ValueError(f"a prediction's file name ends in one of {allowed}, got {path.name}")
    image.header["descrip"] = _description(np.asanyarray(image.dataobj), row)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix=suffix, prefix=".partial-", dir=path.parent)
    os.close(handle)
    try:
        _save_as(row, image, partial)
        os.chmod(partial, 0o666 & ~umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _save_as(row: table.Format, image: Any, path: str) -> None:
    try:
        row.save(image, path)
    except ModuleNotFoundError as error:
        if error.name != row.package:
            raise
        raise UserError(table.missing_package(row, path)) from None


def umask() -> int:
    """Return the permission bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_nifti(
    prediction: Num[np.ndarray, " *grid"],
    geometry: Geometry,
    *,
    label_values: Sequence[int] | None = None,
    regions: Regions | None = None,
) -> Any:
    """Return the image that `write_prediction` writes, in memory.

    Args:
        prediction: See `write_prediction`.
        geometry: The geometry from `read_image`.
        label_values: Values in the file for the classes 1, 2, ... (`PreparedTask.label_values`: those of dataset.json);
            None for the class indices themselves.
        regions: The regions that probabilities are of (`PreparedTask.regions`, `StudyRecord.target.regions`), each of
            which lies where its own is above 0.5; None for those of classes, of which the largest wins.
    """
    labels = to_own_labels(np.asarray(prediction), geometry, regions)
    if label_values is not None:
        labels = np.array([0, *label_values])[labels]
    kind = np.uint8 if labels.size == 0 or labels.max() <= 255 else np.uint16
    return _on_file_grid(labels, geometry, kind)


def _on_file_grid(values: Num[np.ndarray, " *own"], geometry: Geometry, kind: type[np.generic]) -> Any:
    """An image with the grid and header of the input, from an array on canonical axes."""
    values = values.astype(kind)
    if geometry.slice_axis is not None:
        values = np.expand_dims(values, geometry.slice_axis)
    orientation = headers.closest_axes(geometry.affine)
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), orientation)
    values = nib.orientations.apply_orientation(values, back).reshape(geometry.file_shape)
    header = geometry.header.copy()
    header.set_data_dtype(kind)
    header.set_data_shape(geometry.file_shape)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0
    return geometry.image_class(values, geometry.affine, header)


def to_own_labels(
    prediction: Num[np.ndarray, " *grid"], geometry: Geometry, regions: Regions | None = None
) -> Num[np.ndarray, " *own"]:
    """Convert class indices or probabilities on either grid to class indices on the own grid (canonical axes)."""
    ndim = len(geometry.own_shape)
    if prediction.ndim == ndim + 1:
        _check_outputs(prediction, regions)
        return resample.labels_from_probabilities(prediction, geometry.own_shape, regions)
    if prediction.shape == geometry.own_shape:
        return prediction
    if prediction.shape == geometry.shape:
        return resample.resize_labels(prediction, geometry.own_shape)
    raise ValueError(
        f"a prediction of shape {prediction.shape} lies neither on the prepared grid {geometry.shape} "
        f"nor on the input's own grid {geometry.own_shape}"
    )


def _check_outputs(probabilities: Num[np.ndarray, "*grid outputs"], regions: Regions | None) -> None:
    """Refuse probabilities of regions that are not said to be any: the largest of them is no class."""
    if regions is not None:
        if probabilities.shape[-1] != len(regions.members):
            raise ValueError(
                f"probabilities of {len(regions.members)} regions were announced, and there are "
                f"{probabilities.shape[-1]} on the last axis"
            )
    elif not np.allclose(probabilities.sum(-1, dtype=np.float64), 1.0, atol=_SUM_TOLERANCE):
        raise ValueError(
            "the last axis holds no probabilities of classes, which sum to 1; of a network of regions, pass `regions`"
        )
