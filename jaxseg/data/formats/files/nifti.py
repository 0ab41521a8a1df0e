"""NIfTI files (.nii, .nii.gz, .img with .hdr), through nibabel."""

from __future__ import annotations

import os
from typing import Any

import nibabel as nib
import numpy as np

from jaxseg.data.volumes.grid import GridImage
from jaxseg.data.volumes.volume import BadCaseError, check_header

ENDINGS = (".nii.gz", ".nii", ".img.gz", ".img")
"""Endings of files that hold voxels, in any case; an `.img` file has its header in a `.hdr` file beside it."""
WRITTEN = ENDINGS[:2]
_PAIRS = ENDINGS[2:]
_LONGEST_AXIS = 2**15 - 1
"""Length of an axis that the header of NIfTI-1 has room for."""
_GZIP_LIMIT = 1100
"""Largest ratio by which deflate shrinks data: a header that claims more belongs to a broken file."""


def header_file(path: str) -> str | None:
    """Return the `.hdr` file of an `.img` file, in either case; None for other files and if there is none."""
    ending = next((ending for ending in _PAIRS if path.lower().endswith(ending)), None)
    if ending is None:
        return None
    stem, zipped = path[: -len(ending)], path[-3:] if ending.endswith(".gz") else ""
    return next((stem + part + zipped for part in (".hdr", ".HDR") if os.path.exists(stem + part + zipped)), None)


def parts(path: str) -> tuple[str, ...]:
    """Return the files beside a file that belong to it."""
    found = header_file(path)
    return () if found is None else (found,)


def open_file(path: str) -> Any:
    """Open a NIfTI file; voxels are not read yet.

    Raises:
        BadCaseError: It is no NIfTI file, it is too small for its header, or voxel sizes are not positive.
    """
    size = os.stat(path).st_size
    image = _load(path)
    if not isinstance(image, nib.Nifti1Pair):
        raise BadCaseError(f"{path} is {type(image).__name__}, not NIfTI")
    check_header(image.header, image.shape, path)
    # nibabel repairs some fields while loading; the check is of the file's own content.
    with nib.openers.ImageOpener(header_file(path) or path) as stream:
        stored = type(image.header).from_fileobj(stream, check=False)
    zooms = np.asarray(stored["pixdim"][1:4], dtype=float)[[n > 1 for n in (*image.shape, 1, 1)[:3]]]
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise BadCaseError(f"{path} has voxel sizes {zooms.tolist()} mm; they must be positive")
    claimed = int(np.prod([int(n) for n in image.shape], dtype=object)) * image.get_data_dtype().itemsize
    if claimed > (size * _GZIP_LIMIT if path.lower().endswith(".gz") else size):
        raise BadCaseError(
            f"{path} is truncated or its header is wrong: it claims {claimed:,} bytes of voxels "
            f"(shape {tuple(image.shape)}) and the file has {size:,}"
        )
    return image


def _load(path: str) -> Any:
    """Open a file as nibabel does, also where the capitals of its ending keep nibabel from finding it or its header."""
    holders = {"image": nib.FileHolder(path)}
    if path.lower().endswith(_PAIRS):
        header = header_file(path)
        if header is None:
            raise BadCaseError(f"{path} has no .hdr file beside it, which holds its header")
        return nib.Nifti1Pair.from_file_map(holders | {"header": nib.FileHolder(header)})
    ending = next(path[-len(ending) :] for ending in ENDINGS if path.lower().endswith(ending))
    if all(part.lower() == part or part.upper() == part for part in ending.split(".")):
        return nib.load(path)
    return nib.Nifti1Image.from_file_map(holders)


def save(image: Any, path: str) -> None:
    """Write an image whose header is complete; those of other formats become NIfTI-1, which more programs read."""
    if isinstance(image, GridImage) and max(image.shape) <= _LONGEST_AXIS:
        plain = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
        plain.header.set_xyzt_units(image.header.get_xyzt_units()[0])
        plain.header["descrip"] = image.header["descrip"]
        image = plain
    nib.save(image, path)
