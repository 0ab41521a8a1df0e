"""The table of file formats: endings, readers, writers and what each needs.

Everything that lists, reads or writes images goes through `FORMATS`; another format is another row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.formats.files import itk, itk_headers, nifti, png, tiff
from jaxseg.data.volumes.volume import BadCaseError


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of the table."""

    name: str
    endings: tuple[str, ...]
    """Endings of its files in lower case; files may have them in capitals too."""
    read_header: Callable[[str], Any]
    """Reads a file's header and gives an image as nibabel does (`GridImage`), whose voxels are read on demand."""
    save: Callable[[Any, str], None]
    """Writes an image of one channel to a path."""
    writes: tuple[str, ...]
    """Endings that are written, of one file with header and voxels; the first is that of predictions."""
    readers: tuple[str, ...]
    """nnU-Net's names of readers for this format (`overwrite_image_reader_writer`)."""
    begins: tuple[bytes, ...] = ()
    """Bytes with which its files begin, by which a wrong ending is explained."""
    package: str = ""
    """Package that it needs beside those that are always installed."""
    parts: Callable[[str], tuple[str, ...]] = lambda path: ()
    """Lists the files beside a file that belong to it."""
    colours: bool = False
    """Whether one file may be a picture in colour, whose channels nnU-Net does not put into files of their own."""
    fractions: bool = True
    """Whether it holds numbers that are not whole."""


_ITK_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient")
NIFTI = Format(
    name="NIfTI",
    endings=nifti.ENDINGS,
    read_header=nifti.open_file,
    save=nifti.save,
    writes=nifti.WRITTEN,
    readers=(*_ITK_READERS, "NibabelIO", "NibabelIOWithReorient"),
    parts=nifti.parts,
)
FORMATS = (
    NIFTI,
    Format(
        name="NRRD",
        endings=itk_headers.NRRD_ENDINGS,
        read_header=itk.open_file,
        save=itk.save,
        writes=(".nrrd",),
        readers=_ITK_READERS,
        begins=(b"NRRD",),
        package="SimpleITK",
        parts=itk_headers.parts,
    ),
    Format(
        name="MetaImage",
        endings=itk_headers.META_ENDINGS,
        read_header=itk.open_file,
        save=itk.save,
        writes=(".mha",),
        readers=_ITK_READERS,
        begins=(b"ObjectType", b"NDims"),
        package="SimpleITK",
        parts=itk_headers.parts,
    ),
    Format(
        name="TIFF",
        endings=tiff.ENDINGS,
        read_header=tiff.open_file,
        save=tiff.save,
        writes=tiff.ENDINGS,
        readers=("Tiff3DIO", "NaturalImage2DIO"),
        begins=(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        package="tifffile",
        parts=tiff.parts,
        colours=True,
    ),
    Format(
        name="PNG",
        endings=png.ENDINGS,
        read_header=png.open_file,
        save=png.save,
        writes=png.ENDINGS,
        readers=("NaturalImage2DIO",),
        begins=(b"\x89PNG",),
        colours=True,
        fractions=False,
    ),
)

ENDINGS = tuple(ending for row in FORMATS for ending in row.endings)
"""Endings of all files that are read."""
READERS = tuple(dict.fromkeys(name for row in FORMATS for name in row.readers))
"""nnU-Net's readers whose formats are read."""

_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
DICOM_HINT = "DICOM is not read: convert each series to one NIfTI file with dcm2niix or dicom2nifti"
_DICOM_AT = 128
"""Offset of the letters DICM in a DICOM file, which often has no ending."""


def of_name(name: str) -> Format | None:
    """Return the format of a file by its ending; None if it is not read."""
    return next((row for row in FORMATS if name.lower().endswith(row.endings)), None)


def strip_extension(name: str) -> str:
    """Remove the ending of an image file from a name, whatever its case; other names are unchanged.

    >>> strip_extension("case_01.nii.gz"), strip_extension("case_01.PNG")
    ('case_01', 'case_01')
    """
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def prediction_ending(path: str, *, fractions: bool = False) -> str:
    """Return the ending of a label map (or, with `fractions`, of a map of any numbers) that is written for an input.

    >>> prediction_ending("a.nii"), prediction_ending("a.MHD"), prediction_ending("a.png", fractions=True)
    ('.nii.gz', '.mha', '.nii.gz')
    """
    row = of_name(path)
    return (NIFTI if row is None or (fractions and not row.fractions) else row).writes[0]


def with_parts(paths: Sequence[str]) -> list[str]:
    """Return the paths of images, each followed by the files that belong to it: all files that are read."""
    found: list[str] = []
    for path in paths:
        row = of_name(path)
        found += [path, *(row.parts(path) if row else ())]
    return found


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM: by its ending, or without one by the letters DICM after its preamble."""
    if path.name.lower().endswith(_DICOM_ENDINGS):
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # names are often UIDs, which end in a number
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(_DICOM_AT + 4)[_DICOM_AT:] == b"DICM"
    except OSError:
        return False


def unread_reason(path: Path) -> str:
    """Return why a file is not read, as the end of a sentence that begins with its name."""
    if is_dicom(path):
        return f"is a DICOM file; {DICOM_HINT}"
    return f"is in no format that is read ({', '.join(ENDINGS)}); convert it"


def open_with(row: Format, path: str) -> Any:
    """Open a file as a format.

    Raises:
        BadCaseError: A package is missing, or the file has another format; for errors of readers, see `open_image`.
    """
    try:
        return row.read_header(path)
    except ModuleNotFoundError as error:
        if error.name != row.package:
            raise
        raise BadCaseError(missing_package(row, path)) from None
    except Exception:
        with open(path, "rb") as stream:
            begins = stream.read(16)
        other = next((one for one in FORMATS if one is not row and begins.startswith(one.begins)), None)
        if other is None:
            raise
        raise BadCaseError(
            f"{path} is not a readable {row.name} file: it holds {other.name}; give it the ending {other.endings[0]}"
        ) from None


def missing_package(row: Format, path: str) -> str:
    """Return the message about a package that a format needs."""
    return (
        f"{path} needs {row.package} to be read or written as {row.name}, which is not installed: "
        "pip install 'jaxseg[formats]'"
    )
