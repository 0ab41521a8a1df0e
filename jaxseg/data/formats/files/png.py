"""PNG pictures, through Pillow: grey levels, colours as three channels, and indices with their palette.

Columns are the x axis and rows the y axis. A picture gives no voxel size; what its `pHYs` chunk says is meant for
printers.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin

from jaxseg.data.formats.files import palette
from jaxseg.data.volumes.grid import GridImage, make_image
from jaxseg.data.volumes.volume import BadCaseError

ENDINGS = (".png",)
_KEY = "Software"
_HEADER = 26
"""Bytes up to the colour type: signature, chunk name and length, width, height, bit depth, colour type."""
_GREY, _RGB, _INDEXED, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_DEFLATE_LIMIT = 1100
"""Largest ratio by which deflate shrinks data."""
BITS_STRETCHED = {2: 85, 4: 17}
"""Factors by which Pillow stretches grey levels of few bits to 0 ... 255."""


def open_file(path: str) -> GridImage:
    """Open a PNG file; pixels are not read yet.

    Raises:
        BadCaseError: It is no PNG file, an animation, or holds colours of 16 bits.
    """
    with open(path, "rb") as stream:
        head = stream.read(_HEADER)
    if len(head) < _HEADER or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BadCaseError(f"{path} is not a readable PNG file: it does not begin as one")
    bits, colour = head[24], head[25]
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    size = os.stat(path).st_size
    if width * height * bits // 8 > size * _DEFLATE_LIMIT:
        raise BadCaseError(f"{path} is truncated: its header says {width} x {height} pixels and it has {size:,} bytes")
    if bits == 16 and colour != _GREY:
        raise BadCaseError(
            f"{path} holds colours or transparency of 16 bits, which Pillow reads as 8; save it as TIFF, or with 8 bits"
        )
    with _opened(path) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise BadCaseError(f"{path} is an animation of {picture.n_frames} pictures; one is needed")
        mark = str(picture.info.get(_KEY, ""))
        colours = picture.palette.getdata()[1] if picture.palette else None
        opacity = picture.info.get("transparency", b"")
    shape = (width, height, 1, 3) if colour in (_RGB, _RGB_ALPHA) else (width, height)
    image = make_image(
        path,
        shape,
        np.dtype(np.uint16 if bits == 16 else np.uint8),
        lambda: _pixels(path, bits, colour),
        affine_mm=None,
        ending=ENDINGS[0],
        spatial_axes=2,
        mark=mark,
    )
    return palette.note(image, lambda: _palette(path, colours, opacity)) if colour == _INDEXED else image


def _opened(path: str) -> Any:
    try:
        return PIL.PngImagePlugin.PngImageFile(path)
    except (SyntaxError, ValueError, struct.error) as error:
        raise BadCaseError(f"{path} is not a readable PNG file: {error}") from None


def _palette(path: str, colours: bytes | None, opacity: bytes | int) -> palette.Palette:
    """The palette of an indexed picture.

    Args:
        path: Path of the file, for messages.
        colours: Red, green and blue of each index; None if the file has none.
        opacity: Opacities of the first indices, or the one index that is transparent; the others are opaque.
    """
    if not colours or len(colours) % 3:
        raise BadCaseError(f"{path} is damaged: it holds indices of colours without a palette (PLTE)")
    table = np.full((len(colours) // 3, 4), 255, np.uint8)
    table[:, :3] = np.frombuffer(colours, np.uint8).reshape(-1, 3)
    if isinstance(opacity, int):
        table[opacity : opacity + 1, 3] = 0
    else:
        given = np.frombuffer(opacity, np.uint8)[: len(table)]
        table[: len(given), 3] = given
    return table


def _pixels(path: str, bits: int, colour: int) -> np.ndarray:
    """Pixels as x, y or x, y, 1, channels."""
    try:
        with _opened(path) as picture:
            picture.verify()  # the checksums, which reading does not look at
        with _opened(path) as picture:
            picture.load()
            stored = np.asarray(picture)
    except (SyntaxError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadCaseError(f"{path} is truncated or damaged: {error}") from None
    if colour in (_GREY_ALPHA, _RGB_ALPHA):
        alpha = stored[..., -1]
        if alpha.min() != alpha.max():
            raise BadCaseError(f"{path} is transparent in parts, and what lies behind them is unknown; flatten it")
        stored = stored[..., 0] if colour == _GREY_ALPHA else stored[..., :3]
    if colour == _GREY and bits in BITS_STRETCHED:
        stored = stored // BITS_STRETCHED[bits]
    return stored.T if stored.ndim == 2 else stored.transpose(1, 0, 2)[:, :, None]


def save(image: Any, path: str) -> None:
    """Write a label map as grey levels of 8 or 16 bits.

    Raises:
        ValueError: The map has several slices or numbers that are not whole.
    """
    voxels = np.asanyarray(image.dataobj)
    voxels = voxels[..., 0] if voxels.ndim == 3 and voxels.shape[2] == 1 else voxels
    if voxels.ndim != 2 or voxels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"PNG holds one slice of whole numbers, got {voxels.dtype} of shape {voxels.shape}")
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text(_KEY, image.header["descrip"].item().decode("ascii"))
    PIL.Image.fromarray(np.ascontiguousarray(voxels.T)).save(path, format="PNG", pnginfo=text)
