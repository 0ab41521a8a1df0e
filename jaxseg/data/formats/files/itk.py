"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files, through SimpleITK.

ITK's axes point to left, posterior and superior, nibabel's to right, anterior and superior: the first two rows of an
affine change their sign. An image of two axes has no such directions; it is a picture, whose columns and rows are the
x and y axes as they are stored.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxseg.data.volumes import headers
from jaxseg.data.volumes.grid import GridImage, make_image
from jaxseg.data.volumes.volume import BadCaseError

NRRD_ENDINGS = (".seg.nrrd", ".nrrd", ".nhdr")
META_ENDINGS = (".mha", ".mhd")
_KEY = "jaxseg"
"""Field of a header that names the writer of a file."""
_LONGEST_HEADER = 1 << 20
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_IN_FILE = "LOCAL"


# ------------------------------------------------------------------------------------------------------------ headers


def _fields(path: str) -> tuple[dict[str, str], int]:
    """Fields of a text header by lower-case name without spaces, and the offset of the byte after the header.

    Raises:
        BadCaseError: The file has no such header.
    """
    with open(path, "rb") as stream:
        text = stream.read(_LONGEST_HEADER)
    nrrd = _is_nrrd(path)
    if nrrd and not text.startswith(b"NRRD"):
        raise BadCaseError(f"{path} is not a readable NRRD file: it does not begin with NRRD")
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        line, at = text[at:end].decode("latin-1").strip(), end + 1
        if nrrd and not line:
            return found, at
        match = re.match(r"([^:=]+?)\s*(?::=|:|=)\s*(.*)$", line)
        if match and not line.startswith("#"):
            found.setdefault(re.sub(r"\s", "", match[1]).lower(), match[2])
        if "elementdatafile" in found or found.get("datafile", "").startswith("LIST"):
            return found | {"list": text[at:].decode("latin-1")}, at
    if not nrrd:
        raise BadCaseError(f"{path} is not a readable MetaImage file: its header names no ElementDataFile")
    return found, at


def _is_nrrd(path: str) -> bool:
    return path.lower().endswith(NRRD_ENDINGS)


def _data_files(path: str, fields: Mapping[str, str]) -> list[Path]:
    """Files that hold the voxels; the file itself where they follow the header.

    Raises:
        BadCaseError: They are given by a pattern.
    """
    named = fields.get("datafile", _IN_FILE) if _is_nrrd(path) else fields["elementdatafile"]
    if named == _IN_FILE or named == "":
        return [Path(path)]
    if named.split()[0] == "LIST":
        lines = [line.strip() for line in fields.get("list", "").splitlines() if line.strip()]
    elif "%" in named:
        raise BadCaseError(f"{path} names its data files by a pattern, {named}; save the image as one file")
    else:
        lines = [named]
    return [Path(path).parent / line for line in lines]


def parts(path: str) -> tuple[str, ...]:
    """Return the files beside a header file that hold its voxels; none for other and unreadable files."""
    try:
        return tuple(str(part) for part in _data_files(path, _fields(path)[0]) if str(part) != path)
    except (BadCaseError, OSError):  # told when the image is opened
        return ()


# ------------------------------------------------------------------------------------------------------------ reading


def open_file(path: str) -> GridImage:
    """Open an NRRD or MetaImage file; voxels are not read yet.

    Raises:
        BadCaseError: It cannot be read as such a file, a file that it names is missing, or it has over four axes.
    """
    fields, offset = _fields(path)
    for part in _data_files(path, fields):
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
    _check_length(path, fields, offset, int(np.prod([*size, channels], dtype=object)) * dtype.itemsize)
    return make_image(
        path,
        shape,
        dtype,
        lambda: _voxels(path, shape, channels),
        affine_mm=_affine(reader, axes, path),
        ending=".nrrd" if _is_nrrd(path) else ".mha",
        spatial_axes=spatial,
        mark=reader.GetMetaData(_KEY) if _KEY in keys else "",
    )


def _reader(path: str) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    # Named, because ITK otherwise asks its readers in turn, and that of MetaImage knows no ending in capitals.
    reader.SetImageIO("NrrdImageIO" if _is_nrrd(path) else "MetaImageIO")
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
    """Affine to RAS in mm of the first three axes; a third axis that does not exist has length 1."""
    directions = np.array(reader.GetDirection(), dtype=float).reshape(axes, axes)
    spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
    n = min(axes, 3)
    if axes == 4 and (np.any(directions[3, :3]) or np.any(directions[:3, 3])):
        raise BadCaseError(f"{path} has channels along an axis that is tilted against the others")
    affine = np.eye(4)
    affine[:n, :n] = directions[:n, :n] * spacing[:n]
    affine[:n, 3] = origin[:n]
    return affine if axes == 2 else _LPS_TO_RAS @ affine


def _voxels(path: str, shape: tuple[int, ...], channels: int) -> np.ndarray:
    """Voxels as x, y, z, channels."""
    import SimpleITK

    _check_stream(path)
    stored = SimpleITK.GetArrayFromImage(_execute(path, _reader(path).Execute))
    if channels == 1:
        return stored.transpose()
    return np.moveaxis(stored, -1, 0).transpose().reshape(shape)


def _is_packed(path: str, fields: Mapping[str, str]) -> bool:
    if _is_nrrd(path):
        return fields.get("encoding", "raw").lower() in ("gzip", "gz")
    return fields.get("compresseddata", "false").lower() == "true"


def _check_length(path: str, fields: Mapping[str, str], offset: int, claimed: int) -> None:
    """Refuse a file that is too small for what its header claims; compressed voxels are checked as they are read."""
    files = _data_files(path, fields)
    raw = fields.get("encoding", "raw").lower() == "raw" and fields.get("binarydata", "true").lower() == "true"
    if not raw or _is_packed(path, fields):
        return
    held = sum(os.stat(part).st_size - (offset if str(part) == path else 0) for part in files)
    if held < claimed:
        raise BadCaseError(
            f"{path} is truncated or its header is wrong: it claims {claimed:,} bytes of voxels and {held:,} are there"
        )


def _check_stream(path: str) -> None:
    """Read a compressed stream to its end, where its checksum is: ITK returns what it got of a damaged one.

    Raises:
        BadCaseError: The stream is damaged or ends too early.
    """
    fields, offset = _fields(path)
    if not _is_packed(path, fields):
        return
    for part in _data_files(path, fields):
        stream = zlib.decompressobj(wbits=47)  # either header, gzip's or zlib's
        with open(part, "rb") as file:
            file.seek(offset if str(part) == path else 0)
            try:
                while not stream.eof and (block := file.read(1 << 20)):
                    while block and not stream.eof:
                        stream.decompress(block, 1 << 24)
                        block = stream.unconsumed_tail
            except zlib.error as error:
                raise BadCaseError(f"{part} is damaged: {error}") from None
        if not stream.eof:
            raise BadCaseError(f"{part} is truncated: its compressed voxels end too early")


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
