"""TIFF pictures and stacks, through tifffile: columns are the x axis, rows the y axis, and slices the z axis.

The voxel size is that of the JSON file that nnU-Net's Tiff3DIO expects beside the file, of ImageJ's or OME's
description, or of the resolution tags of a picture. Resolutions that programs write when they know none (72 or 96 dots
an inch, one dot a unit) say nothing.

tifffile goes on with what is left of a damaged file and says so in its log alone. Here, such a record is an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.TiffImagePlugin
from jaxtyping import Float

from jaxseg.data.formats.files import palette, png, tiff_checks
from jaxseg.data.volumes import headers
from jaxseg.data.volumes.grid import GridImage, make_image
from jaxseg.data.volumes.volume import BadCaseError

ENDINGS = (".tif", ".tiff")
_RESOLUTION_UNIT_MM = {2: 25.4, 3: 10.0}
_NO_RESOLUTION = (1.0, 2.54, 72.0, 96.0)
"""Dots an inch that are no measurement; the first two are one dot an inch and one a centimetre."""
_BY_PILLOW = (5, 32773)
"""Compressions (LZW, PackBits) that tifffile does not read by itself."""
_PREMULTIPLIED = 1
"""Kind of an extra sample: opacity by which the colours were multiplied, which Pillow undoes."""
_DEPTH, _CHANNELS = "ZQI", "CS"
"""tifffile's letters for the slices of a stack and for channels."""


def open_file(path: str) -> GridImage:
    """Open a TIFF file; voxels are not read yet.

    Raises:
        BadCaseError: It is no TIFF file, is truncated, holds several images or a time axis, is stored turned, holds
            numbers that are no intensities, or is compressed in a way that cannot be read.
    """
    import tifffile

    with _opened(path) as file:
        pages = [file.pages.get(index) for index in range(len(file.pages))]
        tiff_checks.chain(path, file, pages)
        if len(file.series) != 1:
            raise BadCaseError(f"{path} holds {len(file.series)} images of different kinds; one is needed")
        series, page = file.series[0], pages[0]
        tiff_checks.count(path, file, series, page)
        tiff_checks.pixels(path, pages)
        order = _order(series.axes, series.shape, path)
        alpha = page.photometric == tifffile.PHOTOMETRIC.RGB and page.samplesperpixel == 4
        sizes = dict(zip(series.axes, series.shape, strict=True))
        shape = [sizes[letter] for letter in order]
        if len(order) > 2 and order[-1] in _CHANNELS:
            shape[-1] -= 1 if alpha else 0
            shape = shape if len(shape) == 4 else [*shape[:2], 1, shape[2]]
        stack = len(shape) > 2 and shape[2] > 1
        affine = _affine(path, file, page, stack)
        tag = page.tags.get("Software")
        mark = str(tag.value) if tag is not None else ""
        kind = series.dtype
        indexed = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        maps = [one.colormap for one in pages] if indexed else []
        by_imagej = file.is_imagej
    image = make_image(
        path,
        shape,
        np.dtype(kind),
        lambda: _voxels(path, order, alpha).reshape(shape),
        affine_mm=affine,
        ending=ENDINGS[0],
        spatial_axes=3 if stack else 2,
        oriented=not stack,
        mark=mark,
    )
    return palette.note(image, lambda: _palette(path, maps, by_imagej=by_imagej)) if indexed else image


class _Complaints(logging.Handler):
    """Collects the errors that tifffile logs in this thread; other threads read other files."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.texts.append(record.getMessage())


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file, and turn what tifffile and its decoders raise or log into a BadCaseError: errors of many classes."""
    import tifffile

    log, complaints, begun = logging.getLogger("tifffile"), _Complaints(), False
    log.addHandler(complaints)
    try:
        with tifffile.TiffFile(path) as file:
            begun = True
            yield file
    except BadCaseError:
        if not complaints.texts:
            raise
    except tifffile.TiffFileError as error:
        what = "is truncated or damaged" if begun else "is not a readable TIFF file"
        raise BadCaseError(f"{path} {what}: {error}") from None
    except Exception as error:
        if "imagecodecs" in str(error):
            raise BadCaseError(
                f"{path} is compressed in a way that needs another package: {error.args[0]} (pip install imagecodecs; "
                "or save it without compression, or with deflate)"
            ) from None
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise BadCaseError(f"{path} is truncated or damaged: {type(error).__name__}: {error}") from None
    finally:
        log.removeHandler(complaints)
    if complaints.texts:
        raise BadCaseError(f"{path} is truncated or damaged: {complaints.texts[0]}; copy it once more from its source")


def _order(axes: str, shape: tuple[int, ...], path: str) -> str:
    """Letters of the axes in the order x, y, slices, channels; other axes may have one entry each.

    Raises:
        BadCaseError: There are others, such as time, or two axes of one kind.
    """
    long = [letter for letter, size in zip(axes, shape, strict=True) if size > 1 or letter in "XY"]
    depth = [letter for letter in long if letter in _DEPTH]
    channels = [letter for letter in long if letter in _CHANNELS]
    other = [letter for letter in long if letter not in ("X", "Y", *depth, *channels)]
    if other or len(depth) > 1 or len(channels) > 1 or not {"X", "Y"} <= set(long):
        named = " x ".join(f"{letter} {size}" for letter, size in zip(axes, shape, strict=True))
        raise BadCaseError(
            f"{path} has the axes {named}; one image of x, y, slices (Z) and channels (C or S) is needed"
        )
    return "".join(("X", "Y", *depth, *channels))


def _voxels(path: str, order: str, alpha: bool) -> np.ndarray:
    """Voxels with their axes in the given order."""
    with _opened(path) as file:
        series = file.series[0]
        packed = file.pages.first.compression in _BY_PILLOW
        stored = _by_pillow(path, series) if packed else series.asarray()
        kept = [letter for letter in series.axes if letter in order]
        stored = stored.reshape([series.shape[series.axes.index(letter)] for letter in kept])
    stored = stored.transpose([kept.index(letter) for letter in order])
    if alpha:
        opacity = stored[..., -1]
        if opacity.min() != opacity.max():
            raise BadCaseError(f"{path} is transparent in parts, and what lies behind them is unknown; flatten it")
        stored = stored[..., :-1]
    return stored


def _by_pillow(path: str, series: Any) -> np.ndarray:
    """Voxels of a series whose compression tifffile leaves to another package and Pillow reads, page after page.

    Raises:
        BadCaseError: Pillow reads pages of another shape or type, as it does of colours with more than 8 bits.
    """
    frames, first = [], series.keyframe
    with PIL.TiffImagePlugin.TiffImageFile(path) as picture:
        for page in series:
            picture.seek(page.index)
            frame = np.asarray(picture)
            if frame.ndim == 3 and first.planarconfig == 2:  # one plane for each colour, which Pillow puts last
                frame = np.moveaxis(frame, -1, 0)
            if picture.mode == "L" and first.bitspersample in png.BITS_STRETCHED:
                frame = frame // png.BITS_STRETCHED[first.bitspersample]
            same = (frame.dtype.kind, frame.dtype.itemsize) == (series.dtype.kind, series.dtype.itemsize)
            if not same or frame.shape != first.shape or _PREMULTIPLIED in first.extrasamples:
                raise BadCaseError(
                    f"{path} holds {series.dtype} voxels with a compression that is not read for them; save it without "
                    "compression, or with deflate"
                )
            frames.append(frame.astype(series.dtype))
    return np.stack(frames).reshape(series.shape)


def _palette(path: str, maps: Sequence[np.ndarray | None], *, by_imagej: bool) -> palette.Palette:
    """The palette of the pages of an indexed picture, from the `ColorMap` of each: 8 bits, opaque.

    Args:
        path: Path of the file, for messages.
        maps: The `ColorMap` of each page.
        by_imagej: Whether ImageJ wrote the file, which stores the colours that intensities are shown in alike.

    Raises:
        BadCaseError: A page has none, they have different ones, or nobody can tell indices from intensities.
    """
    first = maps[0]
    if first is None or any(one is None for one in maps):
        raise BadCaseError(f"{path} is damaged: it holds indices of colours without a palette (ColorMap)")
    if any(not np.array_equal(one, first) for one in maps if one is not None):
        raise BadCaseError(
            f"{path} has a palette for each page, so that an index has a meaning on one page alone; save it as grey "
            "levels or as RGB"
        )
    table = np.full((first.shape[1], 4), 255, np.uint8)
    table[:, :3] = first.T >> (8 if first.max() > 255 else 0)  # levels of 16 bits, though some programs write 8
    if by_imagej and (table[:, :1] != table[:, 1:3]).any():
        raise BadCaseError(
            f"{path} was saved by ImageJ with a lookup table of colours: its numbers may be intensities that are shown "
            "in colours, or indices of colours. Choose Image > Lookup Tables > Grays for the first or Image > Type > "
            "RGB Color for the second, and save it again"
        )
    return table


# ------------------------------------------------------------------------------------------------------------ spacing


def _affine(path: str, file: Any, page: Any, stack: bool) -> Float[np.ndarray, "4 4"] | None:
    sizes = _beside_mm(path) or _described_mm(file, page, stack) or (None if stack else _tagged_mm(page))
    return None if sizes is None else np.diag([*sizes, 1.0])


def parts(path: str) -> tuple[str, ...]:
    """Return the JSON files beside a TIFF file that may give its voxel size: all that are there, by their names."""
    stem = path[: -len(next(ending for ending in ENDINGS if path.lower().endswith(ending)))]
    case = re.sub(r"_\d{4}$", "", stem, flags=re.ASCII)  # the channels of a case share one file
    named = [f"{name}.json" for name in dict.fromkeys((stem, case))]
    return tuple(name for name in named if os.path.lexists(name) and not os.path.isdir(name))


def _beside_mm(path: str) -> tuple[float, ...] | None:
    """Voxel size of the file beside a TIFF file, which lists that of slices first; None if no file gives one.

    Raises:
        BadCaseError: A file beside it is no JSON, or does not give three numbers.
        OSError: A file beside it cannot be read.
    """
    for part in parts(path):
        content = _json(part)
        if not isinstance(content, dict) or "spacing" not in content:
            continue
        given = content["spacing"]
        if not isinstance(given, list) or len(given) != 3 or not all(isinstance(size, int | float) for size in given):
            raise BadCaseError(f"{part} gives the spacing {given!r}; three numbers, for z, y and x, are needed")
        return tuple(float(size) for size in reversed(given))
    return None


def _json(part: str) -> Any:
    try:
        with open(part, encoding="utf-8-sig") as stream:  # some editors put a mark before the text
            return json.load(stream)
    except FileNotFoundError:
        raise BadCaseError(f"{part} is a link to a file that does not exist; it may give the voxel size") from None
    except (ValueError, RecursionError) as error:
        raise BadCaseError(
            f"{part} is no valid JSON: {error}; it may give the voxel size of the TIFF file beside it, so mend it, or "
            "move it elsewhere if it belongs to another program"
        ) from None


def _described_mm(file: Any, page: Any, stack: bool) -> tuple[float, ...] | None:
    """Voxel size that ImageJ or OME gives; None if neither does."""
    described = file.imagej_metadata or {}
    unit = headers.LENGTHS_MM.get(str(described.get("unit", "")).lower())
    per_unit = [_ratio(page, name) for name in ("XResolution", "YResolution")]
    if unit is not None and all(per_unit):
        return (*(unit / n for n in per_unit), unit * abs(float(described.get("spacing", 1.0)) or 1.0))
    if not file.is_ome:
        return None
    try:
        pixels = next(node for node in ElementTree.fromstring(file.ome_metadata).iter() if node.tag.endswith("Pixels"))
        axes = "XYZ" if stack else "XY"
        units = [headers.LENGTHS_MM[pixels.get(f"PhysicalSize{axis}Unit", "µm").lower()] for axis in axes]
        given = [float(pixels.attrib[f"PhysicalSize{axis}"]) * unit for axis, unit in zip(axes, units, strict=True)]
    except (ElementTree.ParseError, StopIteration, KeyError, ValueError):
        return None
    return (*given, 1.0)[:3]


def _tagged_mm(page: Any) -> tuple[float, ...] | None:
    """Pixel size of the resolution tags; None where they say nothing."""
    tag = page.tags.get("ResolutionUnit")
    unit = None if tag is None else _RESOLUTION_UNIT_MM.get(int(tag.value))
    per_unit = [_ratio(page, name) for name in ("XResolution", "YResolution")]
    if unit is None or not all(per_unit):
        return None
    if any(abs(n * 25.4 / unit / dots - 1) < 0.01 for n in per_unit for dots in _NO_RESOLUTION):
        return None
    return (*(unit / n for n in per_unit), 1.0)


def _ratio(page: Any, name: str) -> float:
    tag = page.tags.get(name)
    try:
        above, below = tag.value
        return above / below
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        return 0.0


# ------------------------------------------------------------------------------------------------------------ writing


def save(image: Any, path: str) -> None:
    """Write a map of one channel, with its voxel size as ImageJ writes it, compressed with deflate."""
    import tifffile

    voxels = np.asanyarray(image.dataobj)
    voxels = voxels[..., 0] if voxels.ndim == 3 and voxels.shape[2] == 1 else voxels
    stored = np.ascontiguousarray(voxels.transpose())
    common = {"software": image.header["descrip"].item().decode("ascii"), "compression": "zlib"}
    if isinstance(image.header, headers.UnsizedHeader):
        tifffile.imwrite(path, stored, photometric="minisblack", **common)
        return
    x, y, z = np.linalg.norm(headers.in_mm(image.affine, headers.unit_mm(image.header))[:3, :3], axis=0)
    described = {"unit": "mm", "spacing": z, "axes": "ZYX"[-stored.ndim :]}
    tifffile.imwrite(path, stored, imagej=True, resolution=(1 / x, 1 / y), metadata=described, **common)
