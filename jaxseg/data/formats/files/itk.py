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
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxseg.data.formats.files import streams
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
_PATIENT_SPACES = {
    *("ras", "rightanteriorsuperior"),
    *("las", "leftanteriorsuperior"),
    *("lps", "leftposteriorsuperior"),
}
"""NRRD's spaces whose axes are directions in the patient, as far as ITK knows them."""
_SPATIAL_KINDS = {"domain", "space", "time", "none", "???"}
"""NRRD's kinds of axes along which voxels lie; the others are axes of channels."""
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_SIZES = ("ElementSpacing", "ElementSize")
"""MetaImage's fields of the directions of the axes and of the distances between voxels, as ITK reads them."""


# ------------------------------------------------------------------------------------------------------------ headers


class _Header(NamedTuple):
    """Text before the voxels of a file, or in a file of its own."""

    path: str
    fields: dict[str, str]
    """Contents by name; NRRD's names are in lower case without spaces, which do not count there."""
    end: int
    """Offset of the byte after the header."""

    @property
    def nrrd(self) -> bool:
        return _is_nrrd(self.path)

    def says(self, name: str, *, otherwise: bool = False) -> bool:
        """Return a truth value of MetaImage, whose first letter counts."""
        return self.fields[name][:1] in ("T", "t", "1") if name in self.fields else otherwise


def _read_header(path: str) -> _Header:
    """Read the text header of a file.

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
            return _Header(path, found, at)
        match = re.match(r"([^:=]+?)\s*(:=|:|=)\s*(.*)$", line)
        if match and not line.startswith("#") and (match[2] == ":" or not nrrd):  # NRRD's `key:=value` is no field
            found[re.sub(r"\s", "", match[1]).lower() if nrrd else match[1]] = match[3]  # ITK keeps the last, too
        if "ElementDataFile" in found or found.get("datafile", "").startswith("LIST"):
            return _Header(path, found | {"list": text[at:].decode("latin-1")}, at)
    if not nrrd:
        raise BadCaseError(f"{path} is not a readable MetaImage file: its header names no ElementDataFile")
    return _Header(path, found, at)


def _is_nrrd(path: str) -> bool:
    return path.lower().endswith(NRRD_ENDINGS)


def _data_files(header: _Header) -> list[Path]:
    """Files that hold the voxels; the file itself where they follow the header.

    Raises:
        BadCaseError: They are given by a pattern, or as a list of none.
    """
    path, fields = header.path, header.fields
    named = fields.get("datafile", _IN_FILE) if header.nrrd else fields["ElementDataFile"]
    if named.upper() == _IN_FILE or named == "":
        return [Path(path)]
    if named.split()[0] == "LIST":
        lines = [line.strip() for line in fields.get("list", "").splitlines() if line.strip()]
        if not lines:
            raise BadCaseError(f"{path} is truncated: it names its data files in a list, which is empty")
    elif "%" in named:
        raise BadCaseError(f"{path} names its data files by a pattern, {named}; save the image as one file")
    else:
        lines = [named]
    return [Path(path).parent / line for line in lines]


def parts(path: str) -> tuple[str, ...]:
    """Return the files beside a header file that hold its voxels; none for other and unreadable files."""
    try:
        return tuple(str(part) for part in _data_files(_read_header(path)) if part != Path(path))
    except (BadCaseError, OSError):  # told when the image is opened
        return ()


def _has_voxel_size(header: _Header) -> bool:
    """Whether a header gives the distances between voxels; ITK reads others as 1 mm.

    Raises:
        BadCaseError: It gives them along some of the axes alone.
    """
    fields = header.fields
    if not header.nrrd:
        return any(name in fields for name in _SIZES)
    given = re.findall(r"\([^)]*\)|\S+", fields.get("spacedirections") or fields.get("spacings", ""))
    lengths = fields["sizes"].split()
    kinds = fields["kinds"].lower().split() if "kinds" in fields else ["domain"] * len(lengths)
    spatial = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS][:3]
    unknown = [axis for axis in spatial if axis >= len(given) or re.search("nan|none", given[axis].lower())]
    if len(unknown) == len(spatial):
        return False
    missing = [str(axis) for axis in unknown if lengths[axis] != "1"]  # one voxel has no distance to another
    if missing:
        raise BadCaseError(
            f"{header.path} gives the distances between voxels along some axes and not along {', '.join(missing)} "
            "(counted from 0); give all of them in `spacings` or `space directions`, or none"
        )
    return True


def _has_directions(header: _Header) -> bool:
    """Whether a header says which way the axes point in the patient; ITK takes others for left, posterior, superior."""
    if not header.nrrd:
        return any(name in header.fields for name in _MATRICES)
    space = re.sub("[^a-z]", "", header.fields.get("space", "").lower())
    return space in _PATIENT_SPACES and "spacedirections" in header.fields and _has_voxel_size(header)


# ------------------------------------------------------------------------------------------------------------ reading


def open_file(path: str) -> GridImage:
    """Open an NRRD or MetaImage file; voxels are not read yet.

    Raises:
        BadCaseError: It cannot be read as such a file, a file that it names is missing, or it has over four axes.
    """
    header = _read_header(path)
    for part in _data_files(header):
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
        affine_mm=_affine(reader, axes, path),
        ending=".nrrd" if header.nrrd else ".mha",
        spatial_axes=spatial,
        sized=_has_voxel_size(header),
        oriented=axes == 2 or _has_directions(header),
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


# ------------------------------------------------------------------------------------------------------------- voxels


def _voxels(header: _Header, stored_shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
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


def _is_packed(header: _Header) -> bool:
    if header.nrrd:
        return header.fields.get("encoding", "raw").lower() in ("gzip", "gz")
    return header.says("CompressedData") and header.says("BinaryData", otherwise=True)


def _first_byte(header: _Header, part: Path) -> int:
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


def _check_length(header: _Header, claimed: int) -> None:
    """Refuse a file that is too small for what its header claims; compressed voxels are checked as they are read."""
    raw = header.fields.get("encoding", "raw").lower() == "raw" and header.says("BinaryData", otherwise=True)
    if not raw or _is_packed(header):
        return
    held = sum(os.stat(part).st_size - _first_byte(header, part) for part in _data_files(header))
    if held < claimed:
        raise BadCaseError(
            f"{header.path} is truncated or its header is wrong: it claims {claimed:,} bytes of voxels and {held:,} "
            "are there"
        )


def _unpacked(header: _Header, stored_shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Compressed voxels of a MetaImage file.

    They are not read by ITK: where CompressedDataSize is missing, it takes the header for voxels.
    """
    held = bytearray()
    _unpack(header, math.prod(stored_shape) * dtype.itemsize, held.extend)
    big = header.says("BinaryDataByteOrderMSB", otherwise=header.says("ElementByteOrderMSB"))
    return np.frombuffer(held, dtype.newbyteorder(">" if big else "<")).reshape(stored_shape)


def _unpack(header: _Header, claimed: int, take: Callable[[bytes], object]) -> None:
    """Read compressed voxels to their checksums, count them, and give them to a function block by block.

    Raises:
        BadCaseError: A stream is damaged or ends too early, or holds more or fewer bytes than the header claims.
    """
    path, fields, files = header.path, header.fields, _data_files(header)
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
