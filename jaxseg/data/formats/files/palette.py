"""Palette pictures, whose pixels are indices of colours: a label map is its indices, an image is its colours.

A reader opens such a picture with its indices as voxels and notes where its palette comes from, since only the caller
knows which of the two the file is. The palette of a label map may be missing or odd, as it is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxseg.data.volumes.grid import GridImage, UnsizedImage, make_image
from jaxseg.data.volumes.volume import BadCaseError

Palette = UInt8[np.ndarray, "entries 4"]
"""Red, green, blue and opacity of each index."""
_PALETTE = "palette"
"""Key of the palette in what nibabel keeps beside an image."""


def note(image: GridImage, palette: Callable[[], Palette]) -> GridImage:
    """Note what gives the palette of an image whose voxels are its indices, and return the image."""
    image.extra[_PALETTE] = palette
    return image


def in_colours(image: Any, path: str) -> Any:
    """Return a palette picture with its colours as voxels, and any other image as it is.

    The picture has one channel if all the colours that occur in it are grey, else three. Only its pixels tell which
    colours occur, so that they are read here.

    Args:
        image: Opened image.
        path: Its path, for messages.

    Raises:
        BadCaseError: The file is damaged, has no palette or several, has pixels beyond the end of it, is transparent in
            parts, or holds other numbers beside the indices.
    """
    if not isinstance(image, GridImage) or _PALETTE not in image.extra:
        return image
    if len(image.shape) > 3:
        raise BadCaseError(
            f"{path} holds {image.shape[3]} numbers for each pixel, of which one is the index of a colour; one number "
            "is needed: save it as grey levels or as RGB, without transparency"
        )
    palette: Palette = image.extra[_PALETTE]()
    indices = np.asanyarray(image.dataobj)
    used = np.unique(indices)
    if used[-1] >= len(palette):
        raise BadCaseError(
            f"{path} is damaged: a pixel has the colour {used[-1]}, and the palette holds {len(palette)} colours from 0"
        )
    red, green, blue, opacity = palette[used].T
    if opacity.min() != opacity.max():
        raise BadCaseError(f"{path} is transparent in parts, and what lies behind them is unknown; flatten it")
    if (red == green).all() and (red == blue).all():
        shape, colours = image.shape, palette[:, 0]
    else:
        shape, colours = (*image.shape, *(1, 3)[len(image.shape) - 2 :]), palette[:, :3]
    return make_image(
        path,
        shape,
        colours.dtype,
        lambda: colours[indices].reshape(shape),
        affine_mm=None if isinstance(image, UnsizedImage) else image.affine,
        ending=image.ending,
        spatial_axes=image.spatial_axes,
        oriented=bool(image.header["sform_code"]),
        mark=image.header["descrip"].item().decode("ascii"),
    )
