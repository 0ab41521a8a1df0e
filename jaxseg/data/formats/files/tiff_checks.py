"""Checks of opened TIFF files: that all of their pages and pixels are there, and that pixels are stored as they look.

tifffile reads what is left of a cut stack as a shorter one, and puts zeros where pixels are missing.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any

from jaxseg.data.volumes.volume import BadCaseError

_STORED = (1, 5, 8, 32773, 32946)
"""Compressions whose decoders give the stored numbers; those of photographs, such as JPEG, turn them into RGB."""
_OTHER_COLOURS = ("SEPARATED", "YCBCR", "CIELAB", "ICCLAB", "ITULAB")
"""Kinds of pixels whose numbers are neither levels of grey nor of red, green and blue."""
_MEND = "copy it once more from its source"


def chain(path: str, file: Any, pages: Sequence[Any]) -> None:
    """Check that the pages that were found are all that the file links to, and that it holds the pixels of each.

    Args:
        path: Path of the file, for messages.
        file: Opened `tifffile.TiffFile`.
        pages: All its pages.

    Raises:
        BadCaseError: Pages or pixels are missing.
    """
    handle = file.filehandle
    handle.seek(file.pages.next_page_offset)
    ends = handle.read(file.tiff.offsetsize) == bytes(file.tiff.offsetsize)
    if not pages or not ends or not all(page.shape for page in pages):
        raise BadCaseError(f"{path} is truncated or damaged: it has more pages than the {len(pages)} found; {_MEND}")
    for number, page in enumerate(pages, start=1):
        if page.is_contiguous:
            missing = page.dataoffsets[0] + page.nbytes > handle.size
        else:
            pieces = zip(page.dataoffsets, page.databytecounts, strict=True)
            missing = any(size == 0 or offset + size > handle.size for offset, size in pieces)
        if missing:
            raise BadCaseError(
                f"{path} is truncated or damaged: it lacks pixels of page {number} of {len(pages)}; {_MEND}"
            )


def count(path: str, file: Any, series: Any, page: Any) -> None:
    """Check that a series has as many planes as the description that tifffile, ImageJ or OME wrote says.

    Args:
        path: Path of the file, for messages.
        file: Opened `tifffile.TiffFile`.
        series: Its only series.
        page: Its first page.

    Raises:
        BadCaseError: There are fewer or more, or some of them lie in other files.
    """
    absent = sum(one is None for one in series)
    if absent:
        raise BadCaseError(f"{path} is truncated or damaged: it lacks {absent} of its {len(series)} pages; {_MEND}")
    if any(one.parent is not file for one in series):
        raise BadCaseError(f"{path} is one of several files that hold an image; save the image as one file")
    planes = math.prod(series.shape) // page.size
    said, fits = planes, True
    if page.shaped_description:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = math.prod(json.loads(page.shaped_description)["shape"]) // page.size
            fits = said == planes
    elif "images" in (file.imagej_metadata or {}):
        # ImageJ writes a large stack as one page, and some programs count the colours of a picture as images.
        said = int(file.imagej_metadata["images"])
        fits = planes in (said, said // page.samplesperpixel) and len(file.pages) in (1, planes)
    if not fits:
        raise BadCaseError(
            f"{path} is truncated, or its description is that of another file: it speaks of {said} page(s), and "
            f"{max(planes, len(file.pages))} are there; {_MEND}, or save it again without the description"
        )


def pixels(path: str, pages: Sequence[Any]) -> None:
    """Check that rows run from the top, columns from the left, and that larger numbers are brighter.

    Decoders differ in what they do about the tag `Orientation`: Pillow turns the picture and tifffile does not.

    Raises:
        BadCaseError: They do not, or pixels are of a kind whose numbers are no intensities.
    """
    kinds = [getattr(page.photometric, "name", str(page.photometric)) for page in pages]
    for number, (page, kind) in enumerate(zip(pages, kinds, strict=True), start=1):
        tag = page.tags.get("Orientation")
        if tag is not None and tag.value != 1:
            raise BadCaseError(
                f"{path} is stored turned or mirrored: its page {number} has the orientation {int(tag.value)}, and 1 "
                "(or no such tag) is needed; save image and label map upright, for instance by ImageMagick's "
                "-auto-orient or PIL.ImageOps.exif_transpose"
            )
        if kind == "MINISWHITE":
            raise BadCaseError(
                f"{path} stores white as 0, so that its numbers are upside down; save it with black as 0"
            )
        if kind in _OTHER_COLOURS and page.compression in _STORED:
            raise BadCaseError(
                f"{path} holds colours of the kind {kind}, whose numbers are no intensities; save it as grey levels or "
                "as RGB"
            )
        if kind != kinds[0]:
            raise BadCaseError(
                f"{path} holds pages of the kinds {kinds[0]} and {kind}; save all as grey levels, or all as RGB"
            )
