"""Read NIfTI volumes as arrays on canonical axes, and check single cases.

Arrays are in x, y, z order with axes closest to right, anterior, superior (RAS+); spacing is in mm. Two-dimensional
tasks read one-slice volumes and drop the axis across the slice. Oblique scans stay oblique: axes are permuted and
flipped, never rotated, so that reading and writing lose nothing. Spatial information in headers: `headers.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num, Shaped

from jaxseg import oserrors
from jaxseg.data.volumes import headers
from jaxseg.data.volumes.headers import BadCaseError as BadCaseError

EXTENSIONS = (".nii.gz", ".nii", ".img.gz", ".img")
"""Endings of files that hold voxels, in any case; an `.img` file has its header in a `.hdr` file beside it."""
_GZIP_LIMIT = 1100
"""Largest ratio by which deflate shrinks data: a header that claims more belongs to a broken file."""
_SAME_GRID = 1e-4
_CLOSE_GRID = 0.1
"""Distances between the corners of image and label, in voxels: equal below the first, refused above the second."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The grid of an input, kept to put a label map back on it."""

    header: Any
    """NIfTI header of the input (the first channel's file)."""
    image_class: type
    affine: Float[np.ndarray, "4 4"]
    """Affine of the file, in the header's own unit of length."""
    file_shape: tuple[int, ...]
    """Spatial shape as stored, before the axes became canonical."""
    slice_axis: int | None
    """Canonical axis that a 2-D task dropped; None in 3-D."""
    own_shape: tuple[int, ...]
    """Shape of the input on canonical axes; 2 entries in a 2-D task."""
    own_spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    """Shape of the prepared image, which differs from `own_shape` if the task has a spacing of its own."""
    warnings: tuple[str, ...] = ()
    """Doubts about an image that `read_image` has read."""

    def canonical_affine(self) -> Float[np.ndarray, "4 4"]:
        """Return the affine in mm on canonical axes, of which there are three also in a 2-D task."""
        own = headers.in_mm(self.affine, headers.unit_mm(self.header))
        return headers.canonical_affine(own, headers.closest_axes(self.affine), (*self.file_shape, 1)[:3])

    def volume_shape(self) -> tuple[int, ...]:
        """Return the shape on canonical axes, of which there are three also in a 2-D task."""
        shape = list(self.own_shape)
        if self.slice_axis is not None:
            shape.insert(self.slice_axis, 1)
        return tuple(shape)


def strip_extension(name: str) -> str:
    """Remove the ending of a NIfTI file from a name, whatever its case; other names are unchanged.

    >>> strip_extension("case_01.nii.gz")
    'case_01'
    """
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def header_file(path: str) -> str | None:
    """Return the `.hdr` file of an `.img` file, in either case; None for other files and if there is none."""
    if not path.lower().endswith(EXTENSIONS[2:]):
        return None
    stem, zipped = strip_extension(path), path[-3:] if path.lower().endswith(".gz") else ""
    return next((stem + ending + zipped for ending in (".hdr", ".HDR") if os.path.exists(stem + ending + zipped)), None)


def with_headers(paths: Sequence[str]) -> list[str]:
    """Return the paths of images, each followed by its `.hdr` file if it has one: all files that are read."""
    return [part for path in paths for part in (path, header_file(path)) if part is not None]


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
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadCaseError(f"{path} is truncated or damaged: {error}") from None
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise BadCaseError(f"{path} is not a readable NIfTI file: {error}") from None
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(oserrors.of_machine(error), OSError):
            raise  # a permission or a disk: the file itself may be sound
        raise BadCaseError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


@contextlib.contextmanager
def quiet_nibabel() -> Iterator[None]:
    """Silence nibabel's own messages about headers; ours name the case. Not for use inside threads."""
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
        BadCaseError: It is no NIfTI file, the file is too small for its header, or voxel sizes are not positive.
    """
    with _reading(path):
        size = os.stat(path).st_size
        if os.path.isdir(path):
            raise BadCaseError(f"{path} is a folder, not a readable NIfTI file")
        if size == 0:
            raise BadCaseError(f"{path} is empty")
        with open(path, "rb"):
            pass  # nibabel says of a file without permission that its type is unknown
        image = _load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise BadCaseError(f"{path} is {type(image).__name__}; only NIfTI files are read")
        check_header(image.header, image.shape, path)
        # nibabel repairs some fields while loading; the check is of the file's own content.
        with nib.openers.ImageOpener(header_file(path) or path) as stream:
            stored = type(image.header).from_fileobj(stream, check=False)
        zooms = np.asarray(stored["pixdim"][1:4], dtype=float)[[n > 1 for n in (*image.shape, 1, 1)[:3]]]
        if not (np.isfinite(zooms).all() and (zooms > 0).all()):
            raise BadCaseError(f"{path} has voxel sizes {zooms.tolist()} mm; they must be positive")
        claimed = int(np.prod([int(n) for n in image.shape], dtype=object)) * image.get_data_dtype().itemsize
        if claimed > (size * _GZIP_LIMIT if path.lower().endswith(".gz") else size):
            raise BadCaseError(
                f"{path} is truncated or its header is wrong: it claims {claimed:,} bytes of voxels "
                f"(shape {tuple(image.shape)}) and the file has {size:,}"
            )
    return image


def _load(path: str) -> Any:
    """Open a file as nibabel does, also where the capitals of its ending keep nibabel from finding it or its header."""
    holders = {"image": nib.FileHolder(path)}
    if path.lower().endswith(EXTENSIONS[2:]):
        header = header_file(path)
        if header is None:
            raise BadCaseError(f"{path} has no .hdr file beside it, which holds its header")
        return nib.Nifti1Pair.from_file_map(holders | {"header": nib.FileHolder(header)})
    ending = path[len(strip_extension(path)) :].split(".")
    if all(part.lower() == part or part.upper() == part for part in ending):
        return nib.load(path)
    return nib.Nifti1Image.from_file_map(holders)


def check_header(header: Any, shape: Sequence[int], where: str) -> None:
    """Check the sizes in a NIfTI header.

    Raises:
        BadCaseError: An axis is empty, the affine is singular, or voxels are not plain numbers.
    """
    if len(shape) < 2 or any(n < 1 for n in shape):
        raise BadCaseError(f"{where} has shape {tuple(shape)}; at least two axes, none empty, are needed")
    headers.spatial_affine(header, where)
    kind = header.get_data_dtype()
    if kind.fields is not None or kind.kind not in "iuf":
        raise BadCaseError(f"{where} holds {kind} voxels; one real number a voxel and channel is needed")


def _canonical(
    image: Any, path: str, *, channels: bool, like: np.ndarray | None = None
) -> tuple[Shaped[np.ndarray, "x y z c"], np.ndarray]:
    """Voxels as stored, channels last, on canonical axes or those of the affine `like`, and their affine in mm."""
    shape = image.shape
    data = _voxels(image, path)
    if len(shape) == 2:
        data = data[:, :, None]
    if data.ndim == 5 and data.shape[3] == 1:  # NIfTI vector images keep their channels on the fifth axis
        data = data[:, :, :, 0]
    if data.ndim > 4 or (data.ndim == 4 and data.shape[3] != 1 and not channels):
        raise BadCaseError(f"{path} has shape {tuple(shape)}; three axes{' and channels' if channels else ''} at most")
    if data.ndim == 3:
        data = data[..., None]
    own, header, _ = headers.spatial_affine(image.header, path, image.affine)
    own = headers.in_mm(own, headers.unit_mm(header))
    orientation = headers.closest_axes(own, like)
    affine = headers.canonical_affine(own, orientation, data.shape[:3])
    return nib.orientations.apply_orientation(data, orientation), affine


def _voxels(image: Any, path: str) -> np.ndarray:
    """Voxels of an opened image. A gzip stream is read to its end, where its checksum is, which nibabel does not do."""
    with _reading(path):
        if image.file_map["image"].filename is None or not path.lower().endswith(".gz"):
            return np.asanyarray(image.dataobj)
        stored = image.dataobj
        form = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
        with gzip.open(path, "rb") as stream:
            voxels = np.asanyarray(nib.arrayproxy.ArrayProxy(stream, form))
            while stream.read(1 << 20):
                pass
        return voxels


def slice_axis_of(shape: Sequence[int], ndim: int, where: str) -> int | None:
    """Return the canonical axis that a 2-D task drops; None in 3-D.

    Raises:
        BadCaseError: The task is 2-D and the volume has several slices.
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


def channels_in(shape: Sequence[int]) -> int:
    """Return the number of channels of a file with this shape.

    >>> channels_in((9, 8, 7)), channels_in((9, 8, 7, 2)), channels_in((9, 8, 7, 1, 3))
    (1, 2, 3)
    """
    beyond = shape[3:]
    return int(np.prod(beyond)) if len(beyond) < 2 or beyond[0] == 1 else int(beyond[0])


def read_channels(
    paths: Sequence[str], ndim: int
) -> tuple[Float[np.ndarray, "*spatial channels"], Geometry, tuple[str, ...]]:
    """Read the image of one case: one path per channel, or one file with all channels on its fourth axis.

    Returns:
        The voxels (float32, canonical axes), the grid that they came from, and warnings.

    Raises:
        BadCaseError: A file is unreadable, or channels are on different grids.
    """
    first = open_image(paths[0])
    return channels_of(first, ndim, paths[0], paths[1:])


def channels_of(
    first: Any, ndim: int, where: str, others: Sequence[str] = ()
) -> tuple[Float[np.ndarray, "*spatial channels"], Geometry, tuple[str, ...]]:
    """Do `read_channels` for an opened image and the paths of further channels."""
    check_header(first.header, first.shape, where)
    warnings = headers.header_warnings(first.header)
    data, affine = _canonical(first, where, channels=not others)
    parts = [data]
    for path in others:
        other = open_image(path)
        part, other_affine = _canonical(other, path, channels=False, like=affine)
        own_warnings = headers.without_unit_notes(headers.header_warnings(other.header))
        warnings += tuple(f"channel {path}: {text}" for text in own_warnings if text not in warnings)
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
    """Return the grid of an opened image; `shape` is its own shape until a resampling changes it."""
    file_shape = (*image.shape, 1)[:3]
    affine, header, _ = headers.spatial_affine(image.header, where, image.affine)
    axes = np.argsort(headers.closest_axes(affine)[:, 0])
    spacing = headers.spacing_mm(headers.in_mm(affine, headers.unit_mm(header)))
    shape = tuple(int(file_shape[axis]) for axis in axes)
    dropped = slice_axis_of(shape, ndim, where)
    kept = [axis for axis in range(3) if axis != dropped]
    return Geometry(
        header=header.copy(),
        # Predictions are written as one file, also if the input was a pair.
        image_class=nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image,
        affine=affine,
        file_shape=tuple(image.shape[:3]),
        slice_axis=dropped,
        own_shape=tuple(shape[axis] for axis in kept),
        own_spacing_mm=tuple(spacing[axes[axis]] for axis in kept),
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


def read_label(
    path: str, like: Float[np.ndarray, "4 4"] | None = None
) -> tuple[Num[np.ndarray, "x y z"], np.ndarray, tuple[str, ...]]:
    """Read a label map as int32 on canonical axes, with its affine in mm and warnings.

    Args:
        path: Path of the file.
        like: Canonical affine of the image (or reference) of the label map, which then takes its axes; see
            `closest_axes`.

    Raises:
        BadCaseError: The file is unreadable, has several channels, or values that are not whole numbers.
    """
    image = open_image(path)
    data, affine = _canonical(image, path, channels=False, like=like)
    data = data[..., 0]
    if data.dtype.kind == "f":
        if not np.isfinite(data).all():
            raise BadCaseError(f"{path} has NaN or infinite label values")
        rounded = np.rint(data)
        # Scaled integers come back as floats that are a rounding error away from whole numbers.
        odd = np.abs(data - rounded) > 1e-3
        if odd.any():
            raise BadCaseError(
                f"{path} has label values that are not whole numbers, such as {data[odd].flat[0]:g}{_scaling(image)}"
            )
        data = rounded
    if data.size and (data.min() < 0 or data.max() > 65535):
        raise BadCaseError(f"{path} has label values from {data.min():g} to {data.max():g}; 0 to 65535 are allowed")
    return data.astype(np.int32), affine, headers.without_unit_notes(headers.header_warnings(image.header))


def _scaling(image: Any) -> str:
    slope, inter = (getattr(image.dataobj, name, default) for name, default in (("slope", 1), ("inter", 0)))
    if (slope, inter) == (1, 0):
        return ""
    return f" (its header scales what is stored: scl_slope {slope:g}, scl_inter {inter:g}; save it as whole numbers)"


def compare_grids(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray, what: str
) -> tuple[str, ...]:
    """Compare two canonical grids by the positions of their corner voxels, measured in voxels.

    Returns:
        A warning if the corners differ by more than rounding and by less than a tenth of a voxel.

    Raises:
        BadCaseError: The shapes differ, or the corners are further apart.
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
