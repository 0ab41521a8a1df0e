"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files, through SimpleITK.

ITK's axes point to left, posterior and superior, nibabel's to right, anterior and superior: the first two rows of an
affine change their sign. An image of two axes has no such directions; it is a picture, whose columns and rows are the
x and y axes as they are stored.

A compressed stream is always read to its end and its voxels are counted, because ITK leaves out what is missing: the
memory that it has reserved for a MetaImage file would then be voxels.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxseg.data.formats.files import itk_headers, streams
from jaxseg.data.formats.files.itk_headers import Header
from jaxseg.data.volumes import headers
from jaxseg.data.volumes.grid import GridImage, make_image
from jaxseg.data.volumes.volume import BadCaseError

_KEY = "jaxseg"
"""Field of a header that names the writer of a file."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


# ------------------------------------------------------------------------------------------------------------ reading


def open_file(path: str) -> GridImage:
    """Open an NRRD or MetaImage file; voxels are not read yet.

    Raises:
        BadCaseError: It cannot be read as such a file, a file that it names is missing, it has over four axes, or its
            unit of length is unknown.
    """
    header = itk_headers.read_header(path)
    for part in itk_headers.data_files(header):
        if not part.exists():
            raise BadCaseError(f"{path} names {part.name}, which holds its voxels, and {part} does not exist")
    reader = _reader(path)
    _execute(path, reader.ReadImageInformation)
    size, channels = reader.GetSize(), reader.GetNumberOfComponents()
    axes = len(size)
    if axes > 4 or (axes == 4 and channels > 1) or axes < 2:
        raise BadCaseError(
            f"{path} has {axes} axes{f' of {channels} components' if channels > 1 else ''}; three at most, and channels"
        )
    import SimpleITK

    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind or "label" in kind:
        raise BadCaseError(f"{path} holds {kind} voxels; one real number a voxel and channel is needed")
    dtype = np.dtype(getattr(np, _numpy_name(kind)))
    spatial = min(axes, 3)
    shape = (*size[:spatial], *((1,) * (3 - spatial)), channels) if channels > 1 else tuple(size)
    keys = reader.GetMetaDataKeys()
    _check_length(header, math.prod((*size, channels)) * dtype.itemsize)
    return make_image(
        path,
        shape,
        dtype,
        lambda: _voxels(header, (*size[::-1], channels), dtype).reshape(shape),
        affine_mm=headers.in_mm(_affine(reader, axes, path), itk_headers.unit_mm(header)),
        ending=".nrrd" if header.nrrd else ".mha",
        spatial_axes=spatial,
        sized=itk_headers.has_voxel_size(header),
        oriented=axes == 2 or itk_headers.has_directions(header),
        mark=reader.GetMetaData(_KEY) if _KEY in keys else "",
    )


def _reader(path: str) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    # Named, because ITK otherwise asks its readers in turn, and that of MetaImage knows no ending in capitals.
    reader.SetImageIO("NrrdImageIO" if itk_headers.is_nrrd(path) else "MetaImageIO")
    reader.SetFileName(path)
    return reader


def _execute(path: str, call: Any) -> Any:
    """Call ITK, whose errors are all of one class; the last line of their text says what is wrong."""
    try:
        return call()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BadCaseError(f"{path} is truncated, damaged or of a kind that ITK does not read: {lines[-1]}") from None


def _numpy_name(kind: str) -> str:
    """NumPy's name of a type that ITK writes as `vector of 16-bit unsigned integer`.

    >>> _numpy_name("vector of 16-bit unsigned integer"), _numpy_name("32-bit float")
    ('uint16', 'float32')
    """
    bits = re.search(r"(\d+)-bit", kind)
    family = "float" if "float" in kind else "uint" if "unsigned" in kind else "int"
    return f"{family}{bits[1] if bits else 8}"


def _affine(reader: Any, axes: int, path: str) -> Float[np.ndarray, "4 4"]:
    """Affine to RAS of the first three axes, in the file's unit; a third axis that does not exist has length 1."""
    directions = np.array(reader.GetDirection(), dtype=float).reshape(axes, axes)
    spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
    n = min(axes, 3)
    if axes == 4 and (np.any(directions[3, :3]) or np.any(directions[:3, 3])):
        raise BadCaseError(f"{path} has channels along an axis that is tilted against the others")
    affine = np.eye(4)
    affine[:n, :n] = directions[:n, :n] * spacing[:n]
    affine[:n, 3] = origin[:n]
    return affine if axes == 2 else _LPS_TO_RAS @ affine


# ------------------------------------------------------------------------------------------------------------- voxels


def _voxels(header: Header, stored_shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Voxels as x, y, z, channels, of which there may be one.

    Args:
        header: Header of the file.
        stored_shape: Axes from the slowest to the fastest, the last of which are the channels.
        dtype: Type of the voxels.
    """
    import SimpleITK

    if _is_packed(header) and not header.nrrd:
        stored = _unpacked(header, stored_shape, dtype)
    else:
        if _is_packed(header):
            _unpack(header, math.prod(stored_shape) * dtype.itemsize, lambda block: None)
        image = _execute(header.path, _reader(header.path).Execute)
        stored = SimpleITK.GetArrayFromImage(image).reshape(stored_shape)
    return np.moveaxis(stored, -1, 0).transpose()


def _is_packed(header: Header) -> bool:
    if header.nrrd:
        return header.fields.get("encoding", "raw").lower() in ("gzip", "gz")
    return header.says("CompressedData") and header.says("BinaryData", otherwise=True)


def _first_byte(header: Header, part: Path) -> int:
    """Byte of one of the data files at which its voxels begin, or the bytes before them that NRRD skips.

    Raises:
        BadCaseError: MetaImage's HeaderSize lies within the header, or counts from the end of a compressed file.
    """
    own = header.end if part == Path(header.path) else 0
    skipped = 0 if header.nrrd else int(header.fields.get("HeaderSize", "0"))
    if 0 < skipped < own or (skipped < 0 and _is_packed(header)):
        raise BadCaseError(
            f"{header.path} says HeaderSize = {skipped}, and its voxels begin at byte {own} or later; give the offset "
            "of the first voxel from the beginning of the file, or leave the line out"
        )
    lines = int(header.fields.get("lineskip", "0")) if header.nrrd else 0
    with open(part, "rb") as file:
        file.seek(max(skipped, own))
        for _ in range(lines):
            file.readline()
        return file.tell()


def _check_length(header: Header, claimed: int) -> None:
    """Refuse a file that is too small for what its header claims; compressed voxels are checked as they are read."""
    raw = header.fields.get("encoding", "raw").lower() == "raw" and header.says("BinaryData", otherwise=True)
    if not raw or _is_packed(header):
        return
    held = sum(os.stat(part).st_size - _first_byte(header, part) for part in itk_headers.data_files(header))
    if held < claimed:
        raise BadCaseError(
            f"{header.path} is truncated or its header is wrong: it claims {claimed:,} bytes of voxels and {held:,} "
            "are there"
        )


def _unpacked(header: Header, stored_shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Compressed voxels of a MetaImage file.

    They are not read by ITK: where CompressedDataSize is missing, it takes the header for voxels.
    """
    held = bytearray()
    _unpack(header, math.prod(stored_shape) * dtype.itemsize, held.extend)
    big = header.says("BinaryDataByteOrderMSB", otherwise=header.says("ElementByteOrderMSB"))
    return np.frombuffer(held, dtype.newbyteorder(">" if big else "<")).reshape(stored_shape)


def _unpack(header: Header, claimed: int, take: Callable[[bytes], object]) -> None:
    """Read compressed voxels to their checksums, count them, and give them to a function block by block.

    Raises:
        BadCaseError: A stream is damaged or ends too early, or holds more or fewer bytes than the header claims.
    """
    path, fields, files = header.path, header.fields, itk_headers.data_files(header)
    skip = int(fields.get("byteskip", "0")) if header.nrrd else 0
    wanted = claimed // len(files) + (skip if skip > 0 else -skip - 1 if skip < 0 else 0)
    for part in files:
        # NRRD's negative skip counts from the end of the voxels, so that any number of bytes may lie before them.
        length, held = streams.unpack(part, _first_byte(header, part), wanted if skip >= 0 else None, take)
        if held < wanted or (held > wanted and skip >= 0):
            raise BadCaseError(
                f"{path} is truncated or its header is wrong: it claims {wanted:,} bytes of voxels in {part.name} and "
                f"{'more' if held > wanted else f'{held:,}'} are there; mend its "
                f"{'sizes or type' if header.nrrd else 'DimSize or ElementType'}, or save the image again"
            )
        given = int(fields.get("CompressedDataSize", "0"))
        if given not in (0, length) and len(files) == 1:
            raise BadCaseError(
                f"{path} is damaged or its header is wrong: it says CompressedDataSize = {given} and its compressed "
                f"voxels have {length} bytes; save the image again, or leave the line out"
            )


# ------------------------------------------------------------------------------------------------------------ writing


def save(image: Any, path: str) -> None:
    """Write a label map or other map of one channel on its grid, compressed."""
    import SimpleITK

    voxels = np.asanyarray(image.dataobj)
    affine = headers.in_mm(image.affine, headers.unit_mm(image.header))
    if voxels.ndim > 2:
        affine = _LPS_TO_RAS @ affine
    n = voxels.ndim
    spacing = np.linalg.norm(affine[:n, :n], axis=0)
    made = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose()))
    made.SetSpacing(spacing.tolist())
    made.SetOrigin(affine[:n, 3].tolist())
    made.SetDirection((affine[:n, :n] / spacing).ravel().tolist())
    made.SetMetaData(_KEY, image.header["descrip"].item().decode("ascii"))
    SimpleITK.WriteImage(made, path, True)
