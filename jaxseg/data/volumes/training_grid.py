"""The way of an image from its file to the training grid, the same for prepared cases and for new images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxseg.data.volumes import normalize, resample


def on_grid(
    image: Float[np.ndarray, "*spatial channels"],
    spacing_mm: Sequence[float],
    shape: Sequence[int],
    *,
    clip: Sequence[float],
    names: Sequence[str],
) -> tuple[Float[np.ndarray, "*new channels"], tuple[normalize.Measured, ...]]:
    """Clip an image and put it on a grid, with what its normalisation has to know of the file.

    Args:
        image: The image as it was read.
        spacing_mm: Spacing of its own grid.
        shape: Shape of the new grid, over the same extent.
        clip: Range of intensities; see `normalize.clip`.
        names: Normalisation of each channel.

    Returns:
        The image, and `normalize.measured` on the new grid.
    """
    # What is background is read off the file: once an image is clipped or resampled, nothing says so any more.
    masks = normalize.measured(image, names)
    inside = tuple(None if mask is None else resample.resize_mask(mask, shape) for mask in masks)
    return resample.resize_image(normalize.clip(image, clip), shape, spacing_mm), inside
