"""New images as the store would hold them, and predictions back on a case's own grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxseg.data import normalize, resample, volume
from jaxseg.types import CaseRecord, TaskSettings, UserError


def read_image(
    image: str | Path | Sequence[str | Path] | Any,
    *,
    task: TaskSettings,
    ndim: int,
    spacing_mm: tuple[float, ...] | None = None,
    normalization: Sequence[str] | None = None,
    windows: Sequence[normalize.Window] = (),
) -> tuple[np.ndarray, volume.Geometry]:
    """Prepare an image that has no label, exactly as the store prepares its cases.

    Args:
        image: a path, one path a channel, or a nibabel image.
        task: its spacing, interpolation, clipping and normalisation are used.
        ndim: of the network, 2 or 3.
        spacing_mm: of the training grid (`PreparedTask.spacing_mm`); needed when the task says `median`.
        normalization: one entry a channel (`PreparedTask.normalization`); needed when the task says `auto`.
        windows: `PreparedTask.windows`; needed for `dataset`.

    Returns:
        The image `[*spatial, channels]` (float32) and its geometry, for `write_prediction`.

    Raises:
        UserError: unreadable, or of another dimension.
    """
    with volume.quiet_nibabel():
        try:
            voxels, geometry, _ = _read_any(image, 3 if task.as_slices else ndim)
        except volume.BadCaseError as error:
            raise UserError(str(error)) from None
    voxels = normalize.clip(voxels, task.clip)
    wanted = spacing_mm if spacing_mm is not None else task.spacing_mm
    if isinstance(wanted, tuple):
        shape, _ = resample.new_grid(geometry.own_shape, geometry.own_spacing_mm, wanted)
        voxels = resample.resize_image(voxels, shape, geometry.own_spacing_mm, task.image_interpolation)
        geometry = dataclasses.replace(geometry, shape=shape)
    elif wanted == "median":
        raise ValueError("spacing `median` is known after preparation: pass PreparedTask.spacing_mm")
    names = tuple(normalization or (task.normalization,) * voxels.shape[-1])
    if "auto" in names or ("dataset" in names and not windows):
        raise ValueError(f"normalization {names} is known after preparation: pass those of the PreparedTask")
    voxels, _ = normalize.normalize_case(voxels, names)
    return normalize.apply_windows(voxels, names, windows) if windows else voxels, geometry


def _read_any(image: Any, ndim: int) -> tuple[np.ndarray, volume.Geometry, tuple[str, ...]]:
    if isinstance(image, (str, Path)):
        return volume.read_channels((str(image),), ndim)
    if isinstance(image, Sequence):
        return volume.read_channels([str(path) for path in image], ndim)
    return volume.channels_of(image, ndim, "the image")


def to_own_grid(
    parts: Iterable[Float[np.ndarray, "run planes *rest classes"]], record: CaseRecord | volume.Geometry
) -> Iterator[Float[np.ndarray, "run own_planes *own_rest classes"]]:
    """Probabilities on a case's own grid (canonical axes) from those on its training grid, slab after slab.

    They are resampled linearly; where the grids are the same slabs pass as they are.
    """
    return resample.resize_planes(parts, record.shape, record.own_shape)
