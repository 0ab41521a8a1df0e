"""Read images and label maps of any format of the table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from jaxseg.data.formats.files import palette, table
from jaxseg.data.volumes import headers, volume
from jaxseg.data.volumes.grid import GridImage, make_image
from jaxseg.data.volumes.volume import BadCaseError, Geometry


def open_image(path: str, *, indices: bool = False) -> Any:
    """Open a file and check its header; voxels are not read yet, except those of palette pictures.

    Args:
        path: Path of the file.
        indices: Whether the voxels of a palette picture are its indices, as those of label maps are, and not its
            colours.

    Returns:
        An image as nibabel gives it, with `header`, `affine`, `shape` and `dataobj`, whatever the format.

    Raises:
        BadCaseError: The file is of no format that is read, damaged, too small for its header, or voxel sizes are not
            positive; or a package that it needs is missing.
    """
    with volume.reading(path), np.errstate(invalid="ignore", over="ignore"):  # sizes that are no numbers are refused
        size = os.stat(path).st_size
        if os.path.isdir(path):
            raise BadCaseError(f"{path} is a folder, not a readable image file")
        if size == 0:
            raise BadCaseError(f"{path} is empty")
        with open(path, "rb"):
            pass  # some readers say of a file without permission that its type is unknown
        row = table.of_name(path)
        if row is None:
            raise BadCaseError(f"{path} {table.unread_reason(Path(path))}")
        image = table.open_with(row, path)
        volume.check_header(image.header, image.shape, path)
        return image if indices else palette.in_colours(image, path)


def read_channels(
    paths: Sequence[str], ndim: int
) -> tuple[Float[np.ndarray, "*spatial channels"], Geometry, tuple[str, ...]]:
    """Read the image of one case: one path per channel, or one file with all channels; see `volume.channels_of`.

    Raises:
        BadCaseError: A file is unreadable, or channels are on different grids.
    """
    first, *others = paths
    opened = open_image(first)
    return volume.channels_of(opened, ndim, first, [(path, open_image(path)) for path in others])


def read_label(
    path: str, like: Float[np.ndarray, "4 4"] | None = None, image: str | None = None
) -> tuple[Num[np.ndarray, "x y z"], np.ndarray, tuple[str, ...]]:
    """Read a label map as int32 on canonical axes, with its affine in mm and warnings.

    A file that gives no voxel size has no grid of its own. It then lies on `image` voxel by voxel, as both are stored,
    or on the axes of `like`.

    Args:
        path: Path of the file.
        like: Canonical affine of the image (or reference) of the label map, which then takes its axes; see
            `closest_axes`.
        image: Path of the label map's image.

    Raises:
        BadCaseError: The file is unreadable, has several channels, or values that are not whole numbers.
    """
    opened = _one_channel(open_image(path, indices=True), path)
    if isinstance(opened.header, headers.UnsizedHeader):
        affine = None
        if image is not None:
            affine = _affine_mm(image)
        elif like is not None:
            affine = _laid_on(opened, like)
        opened = opened if affine is None else _copy(opened, path, opened.dataobj, affine)
    return volume.label_of(opened, path, like)


def _affine_mm(path: str) -> Float[np.ndarray, "4 4"]:
    image = open_image(path)
    affine, header, _ = headers.spatial_affine(image.header, path, image.affine)
    return headers.in_mm(affine, headers.unit_mm(header))


def _laid_on(image: GridImage, like: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Affine of an image whose voxels, on the axes that its format assumes, lie on a canonical grid."""
    orientation = headers.closest_axes(image.affine)
    moved = headers.canonical_affine(np.eye(4), orientation, (*image.shape, 1)[:3])
    return like @ np.linalg.inv(moved)


def _one_channel(image: Any, path: str) -> Any:
    """A picture whose colours are all grey as one channel.

    Raises:
        BadCaseError: It has other colours.
    """
    if not isinstance(image, GridImage) or image.spatial_axes != 2 or len(image.shape) < 4:
        return image
    with volume.reading(path):
        voxels = np.asanyarray(image.dataobj)
    if (voxels != voxels[..., :1]).any():
        raise BadCaseError(
            f"{path} is a colour picture; a label map has one number for each pixel: save it as grey levels or indexed "
            "colours, with the values that dataset.json gives"
        )
    return _copy(image, path, voxels[..., 0, 0], None)


def _copy(image: GridImage, path: str, voxels: Any, affine: Float[np.ndarray, "4 4"] | None) -> GridImage:
    return make_image(
        path,
        voxels.shape,
        voxels.dtype,
        lambda: np.asanyarray(voxels),
        affine_mm=affine,
        ending=image.ending,
        spatial_axes=image.spatial_axes,
    )
