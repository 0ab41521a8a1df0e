"""Put opened images on canonical axes as arrays, and check single cases.

Arrays are in x, y, z order with axes closest to right, anterior, superior (RAS+); spacing is in mm. Two-dimensional
tasks read one-slice volumes and drop the axis across the slice. Oblique scans stay oblique: axes are permuted and
flipped, never rotated, so that reading and writing lose nothing. Spatial information in headers: `headers.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num, Shaped

from jaxseg import oserrors
from jaxseg.data.volumes import headers
from jaxseg.data.volumes.grid import GridImage
from jaxseg.data.volumes.headers import BadCaseError as BadCaseError

_SAME_GRID = 1e-4
_CLOSE_GRID = 0.1
"""Distances between the corners of image and label, in voxels: equal below the first, refused above the second."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The grid of an input, kept to put a label map back on it."""

    header: Any
    """NIfTI header of the input (the first channel's file), or what its file says in the terms of one."""
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
    ending: str = ".nii.gz"
    """Ending of the files to which label maps on this grid are written: the format is that of the input."""
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


# ---------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what reading a broken file can raise into a BadCaseError.

    Readers of single formats raise one themselves where their library has errors of its own.
    """
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
    with reading(path):
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


def channels_of(
    first: Any, ndim: int, where: str, others: Iterable[tuple[str, Any]] = ()
) -> tuple[Float[np.ndarray, "*spatial channels"], Geometry, tuple[str, ...]]:
    """Read the voxels of an opened image that has all channels on its fourth axis, or one image per channel.

    Args:
        first: Opened image of the first channel, or of all.
        ndim: 2 or 3.
        where: Name of the image in messages.
        others: Names and opened images of further channels.

    Returns:
        The voxels (float32, canonical axes), the grid that they came from, and warnings.

    Raises:
        BadCaseError: A file is unreadable, or channels are on different grids.
    """
    others = tuple(others)
    check_header(first.header, first.shape, where)
    warnings = headers.header_warnings(first.header)
    data, affine = _canonical(first, where, channels=not others)
    parts = [data]
    for path, other in others:
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
        image_class=_written_class(image, header),
        affine=affine,
        file_shape=tuple(image.shape[: image.spatial_axes if isinstance(image, GridImage) else 3]),
        ending=image.ending if isinstance(image, GridImage) else ".nii.gz",
        slice_axis=dropped,
        own_shape=tuple(shape[axis] for axis in kept),
        own_spacing_mm=tuple(spacing[axes[axis]] for axis in kept),
        shape=tuple(shape[axis] for axis in kept),
    )


def _written_class(image: Any, header: Any) -> type:
    if isinstance(image, GridImage):
        return type(image)
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def check_channels(image: Num[np.ndarray, "*spatial channels"], named: int) -> None:
    """Check that an image has as many channels as its data set names.

    Raises:
        BadCaseError: It has more or fewer.
    """
    if image.shape[-1] != named:
        raise BadCaseError(f"its image has {image.shape[-1]} channel(s) and dataset.json names {named}")


def _finite(voxels: Num[np.ndarray, "*spatial channels"], path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Put the smallest finite value of a channel where it has none."""
    bad = ~np.isfinite(voxels)
    if not bad.any():
        return voxels, ()
    voxels, notes = voxels.copy(), []
    for channel in np.flatnonzero(bad.any(axis=tuple(range(voxels.ndim - 1)))):
        lost, values = bad[..., channel], voxels[..., channel]
        count, of = int(lost.sum()), f" of channel {channel}" if voxels.shape[-1] > 1 else ""
        if count > lost.size // 2:
            raise BadCaseError(
                f"{path} has {count:,} of {lost.size:,} voxels{of} that are NaN or infinite (or overflow)"
            )
        lowest = values[~lost].min()
        notes.append(f"{count:,} voxels{of} are NaN or infinite; the smallest finite value, {lowest:g}, was put there")
        values[lost] = lowest
    return voxels, tuple(notes)


def label_of(
    image: Any, path: str, like: Float[np.ndarray, "4 4"] | None = None
) -> tuple[Num[np.ndarray, "x y z"], np.ndarray, tuple[str, ...]]:
    """Read an opened label map as int32 on canonical axes, with its affine in mm and warnings.

    Args:
        image: Opened file of the label map.
        path: Path of the file, for messages.
        like: Canonical affine of the image (or reference) of the label map, which then takes its axes; see
            `closest_axes`.

    Raises:
        BadCaseError: The file is unreadable, has several channels, or values that are not whole numbers.
    """
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


def replace_values(
    label: Num[np.ndarray, " *spatial"], table: Mapping[int, int], kind: type[np.uint8] | type[np.uint16]
) -> Num[np.ndarray, " *spatial"]:
    """Replace the values of a label map.

    Args:
        label: The label map.
        table: The new value of every value that may occur.
        kind: Dtype of the new values.

    Raises:
        BadCaseError: The label map holds another value.
    """
    # Work plane by plane: sorting a whole volume takes several times its memory.
    found = {value for plane in label for value in np.unique(plane).tolist()}
    unknown = sorted(found - table.keys())
    if unknown:
        raise BadCaseError(
            f"its label holds the value(s) {', '.join(map(str, unknown[:10]))}, which dataset.json does not name "
            f"(it names {', '.join(map(str, table))})"
        )
    lookup = np.zeros(max(table) + 1, dtype=kind)
    for old, new in table.items():
        lookup[old] = new
    return lookup[label]


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
