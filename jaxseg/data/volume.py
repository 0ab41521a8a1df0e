"""NIfTI volumes in and out: canonical axes, checks of one case, and label maps put back on the grid they came from.

Arrays are in x, y, z order with axes closest to right, anterior, superior (RAS+); spacing is in mm. Two-dimensional
tasks read one-slice volumes and drop the slice's axis. Oblique scans keep their obliquity: axes are permuted and
flipped, never rotated, so that reading and writing lose nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num, Shaped

from jaxseg import oserrors
from jaxseg.data import resample

EXTENSIONS = (".nii.gz", ".nii")
_GZIP_LIMIT = 1100
"""Deflate cannot shrink data by more than 1032:1, so a header that claims more describes a broken file."""
_SAME_GRID = 1e-4
_CLOSE_GRID = 0.1
"""Distance between the corners of image and label, in voxels: the same below the first, refused above the second."""


class BadCaseError(ValueError):
    """A case that cannot be used; the text says why, without the case's name."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The grid of one input, kept to put a label map back on it."""

    header: Any
    """NIfTI header of the input (the first channel's file)."""
    image_class: type
    affine: Float[np.ndarray, "4 4"]
    file_shape: tuple[int, ...]
    """Spatial shape as stored, before canonical axes."""
    slice_axis: int | None
    """Canonical axis that a 2-D task dropped."""
    own_shape: tuple[int, ...]
    """Canonical axes, 2 entries in a 2-D task."""
    own_spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    """Of the prepared image, which has another spacing when the task asks for one."""


def strip_extension(name: str) -> str:
    """A file's name without `.nii` or `.nii.gz`; other names unchanged.

    >>> strip_extension("case_01.nii.gz")
    'case_01'
    """
    for extension in EXTENSIONS:
        if name.endswith(extension):
            return name[: -len(extension)]
    return name


# ---------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what reading a broken file can raise into a BadCaseError."""
    try:
        yield
    except BadCaseError:
        raise
    except FileNotFoundError:
        raise BadCaseError(f"{path} does not exist") from None
    except (EOFError, zlib.error) as error:
        raise BadCaseError(f"{path} is truncated or damaged: {error}") from None
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise BadCaseError(f"{path} is not a readable NIfTI file: {error}") from None
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(oserrors.of_machine(error), OSError):
            raise  # a permission or a disk: the file itself may be sound
        raise BadCaseError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


@contextlib.contextmanager
def quiet_nibabel() -> Iterator[None]:
    """Keep nibabel's own lines about headers off the terminal; ours name the case. Not for use inside threads."""
    log = logging.getLogger("nibabel.global")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def open_image(path: str) -> Any:
    """Open a NIfTI file and check its header; voxels are not read yet.

    Raises:
        BadCaseError: not a NIfTI file, a header that its file cannot hold, or voxel sizes that are not positive.
    """
    with _reading(path):
        size = os.stat(path).st_size
        if size == 0:
            raise BadCaseError(f"{path} is empty")
        with open(path, "rb"):
            pass  # nibabel says of a file without permission that its type is unknown
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise BadCaseError(f"{path} is {type(image).__name__}; only NIfTI files are read")
        check_header(image.header, image.shape, path)
        # nibabel mends some fields while loading; what the file says is checked.
        with nib.openers.ImageOpener(path) as stream:
            stored = type(image.header).from_fileobj(stream, check=False)
        zooms = np.asarray(stored["pixdim"][1:4], dtype=float)[[n > 1 for n in (*image.shape, 1, 1)[:3]]]
        if not (np.isfinite(zooms).all() and (zooms > 0).all()):
            raise BadCaseError(f"{path} has voxel sizes {zooms.tolist()} mm; they must be positive")
        claimed = int(np.prod([int(n) for n in image.shape], dtype=object)) * image.get_data_dtype().itemsize
        if claimed > (size if path.endswith(".nii") else size * _GZIP_LIMIT):
            raise BadCaseError(
                f"{path} is truncated or its header is wrong: it claims {claimed:,} bytes of voxels "
                f"(shape {tuple(image.shape)}) and the file has {size:,}"
            )
    return image


def check_header(header: Any, shape: Sequence[int], where: str) -> None:
    """Check the sizes in a NIfTI header.

    Raises:
        BadCaseError: an empty axis, a singular affine, or voxels that are not plain numbers.
    """
    if len(shape) < 2 or any(n < 1 for n in shape):
        raise BadCaseError(f"{where} has shape {tuple(shape)}; at least two axes, none empty, are needed")
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadCaseError(f"{where} has an affine that maps the volume to a plane or to nothing: {affine.tolist()}")
    kind = header.get_data_dtype()
    if kind.fields is not None or kind.kind not in "iuf":
        raise BadCaseError(f"{where} holds {kind} voxels; one real number a voxel and channel is needed")


def header_warnings(header: Any) -> tuple[str, ...]:
    """What is doubtful in a readable header: no orientation code, or sform and qform that disagree."""
    sform, sform_code = header.get_sform(coded=True)
    with contextlib.suppress(Exception):
        qform, qform_code = header.get_qform(coded=True)
        if sform_code == 0 and qform_code == 0:
            return ("the header gives no orientation (sform and qform codes are 0): left and right are a guess",)
        if sform_code > 0 and qform_code > 0 and not np.allclose(sform, qform, rtol=0, atol=1e-2):
            return ("sform and qform disagree; the sform is used",)
    return ()


def _canonical(image: Any, path: str, *, channels: bool) -> tuple[Shaped[np.ndarray, "x y z c"], np.ndarray]:
    """Voxels as stored, on canonical axes with the channels last, and the canonical affine."""
    shape = image.shape
    with _reading(path):
        data = np.asanyarray(image.dataobj)
    if len(shape) == 2:
        data = data[:, :, None]
    if data.ndim == 5 and data.shape[3] == 1:  # NIfTI vector images keep their channels on the fifth axis
        data = data[:, :, :, 0]
    if data.ndim > 4 or (data.ndim == 4 and data.shape[3] != 1 and not channels):
        raise BadCaseError(f"{path} has shape {tuple(shape)}; three axes{' and channels' if channels else ''} at most")
    if data.ndim == 3:
        data = data[..., None]
    orientation = nib.orientations.io_orientation(image.affine)
    if np.isnan(orientation).any():
        raise BadCaseError(f"{path} has an affine without a direction for some axis: {image.affine.tolist()}")
    affine = image.affine @ nib.orientations.inv_ornt_aff(orientation, data.shape[:3])
    return nib.orientations.apply_orientation(data, orientation), affine


def slice_axis_of(shape: Sequence[int], ndim: int, where: str) -> int | None:
    """The canonical axis that a 2-D task drops; None in 3-D.

    Raises:
        BadCaseError: a 2-D task with a volume of several slices.
    """
    if ndim == 3:
        return None
    single = [axis for axis in range(3) if shape[axis] == 1]
    if not single:
        raise BadCaseError(
            f"{where} has {tuple(shape)} voxels, several slices; a 2-D network takes volumes of one slice, or "
            "slices of them: set the task's as_slices to axial, coronal or sagittal"
        )
    return single[-1]


def read_channels(
    paths: Sequence[str], ndim: int
) -> tuple[Float[np.ndarray, "*spatial channels"], Geometry, tuple[str, ...]]:
    """Read the image of one case: one path a channel, or one file with all channels on its fourth axis.

    Returns:
        The voxels (float32, canonical axes), the grid they came from, and warnings.

    Raises:
        BadCaseError: unreadable, or channels on different grids.
    """
    first = open_image(paths[0])
    return channels_of(first, ndim, paths[0], paths[1:])


def channels_of(
    first: Any, ndim: int, where: str, others: Sequence[str] = ()
) -> tuple[Float[np.ndarray, "*spatial channels"], Geometry, tuple[str, ...]]:
    """`read_channels` for an opened image and the paths of further channels."""
    check_header(first.header, first.shape, where)
    warnings = header_warnings(first.header)
    data, affine = _canonical(first, where, channels=not others)
    parts = [data]
    for path in others:
        part, other_affine = _canonical(open_image(path), path, channels=False)
        warnings += compare_grids(data.shape[:3], affine, part.shape[:3], other_affine, f"channel {path}")
        parts.append(part)
    with np.errstate(over="ignore"):
        voxels = np.concatenate([part.astype(np.float32) for part in parts], axis=-1)
    voxels, filled = _finite(voxels, where)
    geometry = geometry_of(first, ndim, where)
    if geometry.slice_axis is not None:
        voxels = voxels.take(0, axis=geometry.slice_axis)
    return voxels, geometry, warnings + filled


def geometry_of(image: Any, ndim: int, where: str) -> Geometry:
    """The grid of an opened image; `shape` is its own shape until a resampling changes it."""
    file_shape = (*image.shape, 1)[:3]
    orientation = nib.orientations.io_orientation(image.affine)
    axes = np.argsort(orientation[:, 0])
    spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
    shape = tuple(int(file_shape[axis]) for axis in axes)
    dropped = slice_axis_of(shape, ndim, where)
    kept = [axis for axis in range(3) if axis != dropped]
    return Geometry(
        header=image.header.copy(),
        image_class=type(image),
        affine=np.array(image.affine, dtype=float),
        file_shape=tuple(image.shape[:3]),
        slice_axis=dropped,
        own_shape=tuple(shape[axis] for axis in kept),
        own_spacing_mm=tuple(float(np.round(spacing[axes[axis]], 6)) for axis in kept),
        shape=tuple(shape[axis] for axis in kept),
    )


def _finite(voxels: np.ndarray, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    bad = ~np.isfinite(voxels)
    count = int(bad.sum())
    if count == 0:
        return voxels, ()
    if count > voxels.size // 2:
        raise BadCaseError(f"{path} has {count:,} of {voxels.size:,} voxels that are NaN or infinite (or overflow)")
    lowest = voxels[~bad].min()
    note = f"{count:,} voxels are NaN or infinite; the smallest finite value, {lowest:g}, was put there"
    return np.where(bad, lowest, voxels), (note,)


def read_label(path: str) -> tuple[Num[np.ndarray, "x y z"], np.ndarray, tuple[str, ...]]:
    """Read a label map as int32 on canonical axes, its affine, and warnings.

    Raises:
        BadCaseError: unreadable, several channels, or values that are not whole numbers.
    """
    image = open_image(path)
    data, affine = _canonical(image, path, channels=False)
    data = data[..., 0]
    if data.dtype.kind == "f":
        if not np.isfinite(data).all():
            raise BadCaseError(f"{path} has NaN or infinite label values")
        rounded = np.rint(data)
        # Scaled integers come back as floats a rounding error away from whole numbers.
        odd = np.abs(data - rounded) > 1e-3
        if odd.any():
            raise BadCaseError(f"{path} has label values that are not whole numbers, such as {data[odd].flat[0]:g}")
        data = rounded
    if data.size and (data.min() < 0 or data.max() > 65535):
        raise BadCaseError(f"{path} has label values from {data.min():g} to {data.max():g}; 0 to 65535 are allowed")
    return data.astype(np.int32), affine, header_warnings(image.header)


def compare_grids(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray, what: str
) -> tuple[str, ...]:
    """Compare two canonical grids by where their corner voxels lie, measured in voxels.

    Returns:
        A warning where the corners differ by more than rounding and by less than a tenth of a voxel.

    Raises:
        BadCaseError: other shapes, or corners further apart.
    """
    if tuple(shape) != tuple(other_shape):
        raise BadCaseError(f"{what} has {tuple(other_shape)} voxels and the image {tuple(shape)} (canonical axes)")
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    moved = np.linalg.solve(affine, other_affine @ corners.T)[:3] - corners.T[:3]
    apart = float(np.abs(moved).max())
    if apart > _CLOSE_GRID:
        raise BadCaseError(
            f"{what} lies up to {apart:.3g} voxels away from the image (allowed: {_CLOSE_GRID}); "
            f"affines {np.round(other_affine, 4).tolist()} and {np.round(affine, 4).tolist()}"
        )
    return (f"{what} lies up to {apart:.2g} voxels away from the image",) if apart > _SAME_GRID else ()


# ---------------------------------------------------------------------------------------------------------- writing


def write_prediction(
    prediction: Num[np.ndarray, " *grid"],
    geometry: Geometry,
    path: str | Path,
    *,
    label_values: Sequence[int] | None = None,
) -> None:
    """Write a label map as NIfTI on the grid of the input, with its sform, qform, codes and units.

    The file appears whole or not at all.

    Args:
        prediction: class indices `[*spatial]` or probabilities `[*spatial, classes]`, on the prepared grid (then
            resampled) or on the input's own grid, canonical axes.
        geometry: from `read_image`.
        path: ends in `.nii` or `.nii.gz`.
        label_values: see `to_nifti`.

    Raises:
        ValueError: the prediction lies on neither grid, or the path has another ending.
    """
    _save(to_nifti(prediction, geometry, label_values=label_values), Path(path))


def write_map(values: Float[np.ndarray, " *own"], geometry: Geometry, path: str | Path) -> None:
    """Write numbers (entropies, probabilities) as float32 NIfTI on the grid of the input; see `write_prediction`.

    Args:
        values: on the input's own grid, canonical axes.
        geometry: from `read_image`.
        path: ends in `.nii` or `.nii.gz`.

    Raises:
        ValueError: the path has another ending.
    """
    _save(_on_file_grid(values, geometry, np.float32), Path(path))


def _save(image: Any, path: Path) -> None:
    """Write an image, whole or not at all."""
    suffix = next((extension for extension in EXTENSIONS if path.name.endswith(extension)), None)
    if suffix is None:
        raise ValueError(f"a prediction's file name ends in .nii.gz or .nii, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix=suffix, prefix=f".{strip_extension(path.name)}-", dir=path.parent)
    os.close(handle)
    try:
        nib.save(image, partial)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_nifti(
    prediction: Num[np.ndarray, " *grid"], geometry: Geometry, *, label_values: Sequence[int] | None = None
) -> Any:
    """The image that `write_prediction` writes, in memory.

    Args:
        prediction: see `write_prediction`.
        geometry: from `read_image`.
        label_values: what the file holds for class 1, 2, ... (`PreparedTask.label_values`: the values of dataset.json);
            None for the class indices themselves.
    """
    labels = to_own_labels(np.asarray(prediction), geometry)
    if label_values is not None:
        labels = np.array([0, *label_values])[labels]
    kind = np.uint8 if labels.size == 0 or labels.max() <= 255 else np.uint16
    return _on_file_grid(labels, geometry, kind)


def _on_file_grid(values: Num[np.ndarray, " *own"], geometry: Geometry, kind: type[np.generic]) -> Any:
    """An image with the grid and header of the input, from an array on canonical axes."""
    values = values.astype(kind)
    if geometry.slice_axis is not None:
        values = np.expand_dims(values, geometry.slice_axis)
    orientation = nib.orientations.io_orientation(geometry.affine)
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), orientation)
    values = nib.orientations.apply_orientation(values, back).reshape(geometry.file_shape)
    header = geometry.header.copy()
    header.set_data_dtype(kind)
    header.set_data_shape(geometry.file_shape)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0
    return geometry.image_class(values, geometry.affine, header)


def to_own_labels(prediction: Num[np.ndarray, " *grid"], geometry: Geometry) -> Num[np.ndarray, " *own"]:
    """Class indices on the input's own grid (canonical axes) from class indices or probabilities on either grid."""
    ndim = len(geometry.own_shape)
    if prediction.ndim == ndim + 1:
        return resample.labels_from_probabilities(prediction, geometry.own_shape)
    if prediction.shape == geometry.own_shape:
        return prediction
    if prediction.shape == geometry.shape:
        return resample.resize_labels(prediction, geometry.own_shape)
    raise ValueError(
        f"a prediction of shape {prediction.shape} lies neither on the prepared grid {geometry.shape} "
        f"nor on the input's own grid {geometry.own_shape}"
    )
