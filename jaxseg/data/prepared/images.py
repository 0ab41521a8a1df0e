"""Preparation of new images as the store would hold them, and predictions on a case's own grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float

from jaxseg import threads
from jaxseg.data.cases import CaseRecord
from jaxseg.data.formats.files import reading
from jaxseg.data.volumes import normalize, resample, volume
from jaxseg.data.volumes.training_grid import on_grid
from jaxseg.settings import TaskSettings
from jaxseg.types import UserError


class ImageWarning(UserWarning):
    """An image is doubtful but can still be predicted."""


def read_image(
    image: str | Path | Sequence[str | Path] | Any,
    *,
    task: TaskSettings,
    ndim: int,
    spacing_mm: tuple[float, ...] | None = None,
    normalization: Sequence[str] | None = None,
    windows: Sequence[normalize.Window] = (),
    channels: int | None = None,
) -> tuple[np.ndarray, volume.Geometry]:
    """Prepare an image that has no label, exactly as the store prepares its cases.

    Args:
        image: Path of the image, one path per channel, or a nibabel image.
        task: Settings, of which spacing, interpolation, clipping and normalisation are used.
        ndim: Number of axes of the network, 2 or 3.
        spacing_mm: Voxel sizes of the training grid (`PreparedTask.spacing_mm`); needed if the task says `median`.
        normalization: One entry per channel (`PreparedTask.normalization`); needed if the task says `auto`.
        windows: Intensity statistics (`PreparedTask.windows`); needed for `dataset`.
        channels: Number of channels of the network; None for any.

    Returns:
        The image `[*spatial, channels]` (float32) and its geometry for `write_prediction`, whose `warnings` hold the
        doubts about the image.

    Raises:
        UserError: The image is unreadable, or its dimension or its channels differ from those of the network.
    """
    with volume.quiet_nibabel():
        try:
            voxels, geometry, doubts = _read_any(image, 3 if task.as_slices else ndim)
        except volume.BadCaseError as error:
            raise UserError(str(error)) from None
    if channels is not None and voxels.shape[-1] != channels:
        raise UserError(f"{_name_of(image)}: {other_channels(voxels.shape[-1], channels)}")
    shape = geometry.own_shape
    wanted = spacing_mm if spacing_mm is not None else task.spacing_mm
    if isinstance(wanted, tuple):
        shape, _ = resample.new_grid(geometry.own_shape, geometry.own_spacing_mm, wanted)
        geometry = dataclasses.replace(geometry, shape=shape)
    elif wanted == "median":
        raise ValueError("spacing `median` is known after preparation: pass PreparedTask.spacing_mm")
    names = tuple(normalization or (task.normalization,) * voxels.shape[-1])
    if "auto" in names or ("dataset" in names and not windows):
        raise ValueError(f"normalization {names} is known after preparation: pass those of the PreparedTask")
    voxels, inside = on_grid(voxels, geometry.own_spacing_mm, shape, clip=task.clip, names=names)
    voxels, constant = normalize.normalize_case(voxels, names, inside)
    geometry = dataclasses.replace(geometry, warnings=doubts + constant)
    return normalize.apply_windows(voxels, names, windows) if windows else voxels, geometry


def other_channels(found: int, wanted: int) -> str:
    """Return the message about an image whose number of channels differs from the network's."""
    return (
        f"it has {found} channel(s), and the network was trained on {wanted}; give an image with the same channels in "
        f"the same order"
    )


def image_problem(images: Sequence[str], *, task: TaskSettings, ndim: int, channels: int) -> str | None:
    """Return why an image cannot be predicted, as far as the headers of its files tell; None if it can.

    Args:
        images: One path, or one per channel.
        task: Task of the network.
        ndim: Number of axes of the network.
        channels: Number of channels of the network.
    """
    with volume.quiet_nibabel():
        try:
            opened = [reading.open_image(path) for path in images]
            found = len(images) if len(images) > 1 else volume.channels_in(opened[0].shape)
            if found != channels:
                return other_channels(found, channels)
            volume.geometry_of(opened[0], 3 if task.as_slices else ndim, images[0])
        except volume.BadCaseError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or images[0]} cannot be read: {error.strerror}"
    return None


def _name_of(image: Any) -> str:
    if isinstance(image, str | Path):
        return str(image)
    return str(image[0]) if isinstance(image, Sequence) and image else "the image"


def _read_any(image: Any, ndim: int) -> tuple[np.ndarray, volume.Geometry, tuple[str, ...]]:
    if isinstance(image, (str, Path)):
        return reading.read_channels((str(image),), ndim)
    if isinstance(image, Sequence):
        if not image:
            raise volume.BadCaseError("no file was given; one path is needed, or one a channel")
        return reading.read_channels([str(path) for path in image], ndim)
    if not isinstance(image, nib.Nifti1Pair):
        raise volume.BadCaseError(
            f"the image is a {type(image).__name__}; a path, one path a channel, or a NIfTI image is needed "
            f"(nib.Nifti1Image.from_image makes one of other images that nibabel reads)"
        )
    return volume.channels_of(image, ndim, "the image")


def to_own_grid(
    parts: Iterable[Float[np.ndarray, "run planes *rest classes"]],
    record: CaseRecord | volume.Geometry,
    *,
    pool: threads.Pool = None,
) -> Iterator[Float[np.ndarray, "run own_planes *own_rest classes"]]:
    """Resample probabilities from the training grid to a case's own grid (canonical axes), slab after slab.

    The resampling is linear; if the grids are the same, slabs are passed on as they are. Threads of a pool share the
    runs.
    """
    return resample.resize_planes(parts, record.shape, record.own_shape, pool=pool)
