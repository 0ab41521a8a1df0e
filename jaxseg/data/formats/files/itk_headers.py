"""The text headers of NRRD and MetaImage files: what they say that ITK leaves out or takes for granted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from jaxseg.data.volumes import headers
from jaxseg.data.volumes.volume import BadCaseError

NRRD_ENDINGS = (".seg.nrrd", ".nrrd", ".nhdr")
META_ENDINGS = (".mha", ".mhd")
_LONGEST_HEADER = 1 << 20
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
_QUOTED, _NO_UNIT = r'"((?:[^"\\]|\\.)*)"', {"", "?", "???"}
"""NRRD's text in quotes; units that are none."""


class Header(NamedTuple):
    """Text before the voxels of a file, or in a file of its own."""

    path: str
    fields: dict[str, str]
    """Contents by name; NRRD's names are in lower case without spaces, which do not count there."""
    end: int
    """Offset of the byte after the header."""

    @property
    def nrrd(self) -> bool:
        """Whether the file is NRRD and not MetaImage."""
        return is_nrrd(self.path)

    def says(self, name: str, *, otherwise: bool = False) -> bool:
        """Return a truth value of MetaImage, whose first letter counts."""
        return self.fields[name][:1] in ("T", "t", "1") if name in self.fields else otherwise


def read_header(path: str) -> Header:
    """Read the text header of a file.

    Raises:
        BadCaseError: The file has no such header.
    """
    with open(path, "rb") as stream:
        text = stream.read(_LONGEST_HEADER)
    nrrd = is_nrrd(path)
    if nrrd and not text.startswith(b"NRRD"):
        raise BadCaseError(f"{path} is not a readable NRRD file: it does not begin with NRRD")
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        line, at = text[at:end].decode("latin-1").strip(), end + 1
        if nrrd and not line:
            return Header(path, found, at)
        match = re.match(r"([^:=]+?)\s*(:=|:|=)\s*(.*)$", line)
        if match and not line.startswith("#") and (match[2] == ":" or not nrrd):  # NRRD's `key:=value` is no field
            found[re.sub(r"\s", "", match[1]).lower() if nrrd else match[1]] = match[3]  # ITK keeps the last, too
        if "ElementDataFile" in found or found.get("datafile", "").startswith("LIST"):
            return Header(path, found | {"list": text[at:].decode("latin-1")}, at)
    if not nrrd:
        raise BadCaseError(f"{path} is not a readable MetaImage file: its header names no ElementDataFile")
    return Header(path, found, at)


def is_nrrd(path: str) -> bool:
    """Return whether a path ends as those of NRRD files do."""
    return path.lower().endswith(NRRD_ENDINGS)


def data_files(header: Header) -> list[Path]:
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
        return tuple(str(part) for part in data_files(read_header(path)) if part != Path(path))
    except (BadCaseError, OSError):  # told when the image is opened
        return ()


def has_voxel_size(header: Header) -> bool:
    """Return whether a header gives the distances between voxels; ITK reads others as 1 mm.

    Raises:
        BadCaseError: It gives them along some of the axes alone.
    """
    fields = header.fields
    if not header.nrrd:
        return any(name in fields for name in _SIZES)
    given = re.findall(r"\([^)]*\)|\S+", fields.get("spacedirections") or fields.get("spacings", ""))
    lengths, spatial = fields["sizes"].split(), _spatial_axes(fields)
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


def _spatial_axes(fields: dict[str, str]) -> list[int]:
    """Axes of an NRRD file along which voxels lie."""
    kinds = fields["kinds"].lower().split() if "kinds" in fields else ["domain"] * len(fields["sizes"].split())
    return [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS][:3]


def has_directions(header: Header) -> bool:
    """Return whether a header says which way the axes point in the patient; ITK takes others for those of LPS."""
    if not header.nrrd:
        return any(name in header.fields for name in _MATRICES)
    space = re.sub("[^a-z]", "", header.fields.get("space", "").lower())
    return space in _PATIENT_SPACES and "spacedirections" in header.fields and has_voxel_size(header)


def unit_mm(header: Header) -> float:
    """Return the length in mm of the unit that a header gives lengths in; ITK takes any for mm.

    Raises:
        BadCaseError: It is no unit of length that is known, or axes along which voxels lie have different ones.
    """
    fields = header.fields
    if not header.nrrd:
        given = [fields.get("DistanceUnits", "")]
    elif "spaceunits" in fields:
        given = re.findall(_QUOTED, fields["spaceunits"])[:3]
    else:
        of_axes = dict(enumerate(re.findall(_QUOTED, fields.get("units", ""))))
        given = [of_axes.get(axis, "") for axis in _spatial_axes(fields)]
    units = sorted({unit.strip().lower() for unit in given} - _NO_UNIT)
    if not units:
        return 1.0
    if len(units) > 1 or units[0] not in headers.LENGTHS_MM:
        raise BadCaseError(
            f"{header.path} gives lengths in {', '.join(units)}; one unit is needed, of "
            f"{', '.join(headers.LENGTHS_MM)}. Mend its units, or leave them out if its lengths are in mm"
        )
    return headers.LENGTHS_MM[units[0]]
