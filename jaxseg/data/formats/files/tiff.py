"""TIFF pictures and stacks, through tifffile: columns are the x axis, rows the y axis, and slices the z axis.

The voxel size is that of the JSON file that nnU-Net's Tiff3DIO expects beside the file, of ImageJ's or OME's
description, or of the resolution tags of a picture. Resolutions that
programs write when they know none (72 or 96 dots an inch, one dot a unit) say nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.TiffImagePlugin
from jaxtyping import Float

from jaxseg.data.volumes import headers
from jaxseg.data.volumes.grid import GridImage, make_image
from jaxseg.data.volumes.volume import BadCaseError

ENDINGS = (".tif", ".tiff")
_UNIT_MM = {
    **{"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "nm": 1e-6, "nanometer": 1e-6},
    **{"um": 1e-3, "µm": 1e-3, "μm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3},
}
_RESOLUTION_UNIT_MM = {2: 25.4, 3: 10.0}
_NO_RESOLUTION = (1.0, 2.54, 72.0, 96.0)
"""Dots an inch that are no measurement; the first two are one dot an inch and one a centimetre."""
_BY_PILLOW = (5, 32773)
"""Compressions (LZW, PackBits) that tifffile does not read by itself."""
_DEPTH, _CHANNELS = "ZQI", "CS"
"""tifffile's letters for the slices of a stack and for channels."""


def open_file(path: str) -> GridImage:
    """Open a TIFF file; voxels are not read yet.

    Raises:
        BadCaseError: It is no TIFF file, holds several images or a time axis, stores white as 0, or is compressed in a
            way that cannot be read.
    """
    import tifffile

    with _opened(path) as file:
        if len(file.series) != 1:
            raise BadCaseError(f"{path} holds {len(file.series)} images of different kinds; one is needed")
        series, page = file.series[0], file.pages.first
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            raise BadCaseError(
                f"{path} stores white as 0, so that its numbers are upside down; save it with black as 0"
            )
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
    return make_image(
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


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file, and turn what tifffile and its decoders raise into a BadCaseError: errors of many classes."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except BadCaseError:
        raise
    except tifffile.TiffFileError as error:
        raise BadCaseError(f"{path} is not a readable TIFF file: {error}") from None
    except Exception as error:
        if "imagecodecs" in str(error):
            raise BadCaseError(
                f"{path} is compressed in a way that needs another package: {error.args[0]} (pip install imagecodecs; "
                "or save it without compression, or with deflate)"
            ) from None
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise BadCaseError(f"{path} is truncated or damaged: {type(error).__name__}: {error}") from None


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
        BadCaseError: Pillow reads numbers of another type, as it does of colours with more than 8 bits.
    """
    frames = []
    with PIL.TiffImagePlugin.TiffImageFile(path) as picture:
        for index in range(picture.n_frames):
            picture.seek(index)
            frames.append(np.asarray(picture))
    stored = np.stack(frames)
    same = (stored.dtype.kind, stored.dtype.itemsize) == (series.dtype.kind, series.dtype.itemsize)
    if not same or stored.size != np.prod(series.shape):
        raise BadCaseError(
            f"{path} holds {series.dtype} voxels with a compression that is not read for them; save it without "
            "compression, or with deflate"
        )
    return stored.astype(series.dtype).reshape(series.shape)


# ------------------------------------------------------------------------------------------------------------ spacing


def _affine(path: str, file: Any, page: Any, stack: bool) -> Float[np.ndarray, "4 4"] | None:
    sizes = _beside_mm(path) or _described_mm(file, page, stack) or (None if stack else _tagged_mm(page))
    return None if sizes is None else np.diag([*sizes, 1.0])


def parts(path: str) -> tuple[str, ...]:
    """Return the JSON file beside a TIFF file that gives its voxel size, if there is one."""
    stem = path[: -len(next(ending for ending in ENDINGS if path.lower().endswith(ending)))]
    case = re.sub(r"_\d{4}$", "", stem, flags=re.ASCII)  # the channels of a case share one file
    for name in dict.fromkeys((stem, case)):
        with contextlib.suppress(OSError, ValueError), open(f"{name}.json", encoding="utf-8") as stream:
            content = json.load(stream)
            if isinstance(content, dict) and "spacing" in content:
                return (f"{name}.json",)
    return ()


def _beside_mm(path: str) -> tuple[float, ...] | None:
    """Voxel size of the file beside a TIFF file, which lists that of slices first; None if there is none.

    Raises:
        BadCaseError: It does not give three numbers.
    """
    for part in parts(path):
        with open(part, encoding="utf-8") as stream:
            given = json.load(stream)["spacing"]
        if not isinstance(given, list) or len(given) != 3 or not all(isinstance(size, int | float) for size in given):
            raise BadCaseError(f"{part} gives the spacing {given!r}; three numbers, for z, y and x, are needed")
        return tuple(float(size) for size in reversed(given))
    return None


def _described_mm(file: Any, page: Any, stack: bool) -> tuple[float, ...] | None:
    """Voxel size that ImageJ or OME gives; None if neither does."""
    described = file.imagej_metadata or {}
    unit = _UNIT_MM.get(str(described.get("unit", "")).lower())
    per_unit = [_ratio(page, name) for name in ("XResolution", "YResolution")]
    if unit is not None and all(per_unit):
        return (*(unit / n for n in per_unit), unit * abs(float(described.get("spacing", 1.0)) or 1.0))
    if not file.is_ome:
        return None
    try:
        pixels = next(node for node in ElementTree.fromstring(file.ome_metadata).iter() if node.tag.endswith("Pixels"))
        given = [
            float(pixels.attrib[f"PhysicalSize{axis}"]) * _UNIT_MM[pixels.get(f"PhysicalSize{axis}Unit", "µm").lower()]
            for axis in ("XYZ" if stack else "XY")
        ]
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
