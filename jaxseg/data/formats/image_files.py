"""Image files in folders: the files of one case, unreadable files, and the images of a folder to predict."""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxseg.data import names
from jaxseg.data.cases import CaseFiles
from jaxseg.data.formats.files import table
from jaxseg.data.formats.files.reading import open_image
from jaxseg.data.formats.files.table import ENDINGS, strip_extension
from jaxseg.data.volumes.volume import BadCaseError, channels_in
from jaxseg.types import UserError

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$", re.ASCII)
"""Pattern of nnU-Net's names of channel files, without their ending."""

_OTHER_FORMATS = (
    *(".mgz", ".mgh", ".dcm", ".dicom", ".ima", ".mnc", ".gipl", ".gipl.gz", ".par", ".rec", ".hdr", ".hdr.gz"),
    *(".nii.bz2", ".nii.xz", ".nii.zst", ".nrrd.gz", ".zarr", ".jpg", ".jpeg", ".bmp", ".npy", ".npz", ".h5", ".hdf5"),
)
"""Endings of image formats that are not read; cases stored in them are named in a warning."""

Found = Mapping[str, Sequence[Path]]
"""Image files by name without ending, in composed Unicode."""


def entries(folder: Path) -> list[Path]:
    """Return the contents of a folder in name order, without hidden files and the `._*` files of macOS.

    Raises:
        UserError: The folder cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be listed: {error.strerror}") from None


def image_files(folder: Path, ending: str | None = None) -> dict[str, list[Path]]:
    """Return the image files of a folder by name without ending, in name order.

    Of files with one name in several formats, such as an image and a picture to look at, those in the format of most
    files of the folder are taken.

    Args:
        folder: Folder of images or label maps.
        ending: Ending that is taken instead; None if dataset.json gives none.
    """
    found: dict[str, list[Path]] = {}
    for path in entries(folder):
        if path.name.lower().endswith(ENDINGS):
            found.setdefault(names.normal(strip_extension(path.name)), []).append(path)
    kinds = collections.Counter(_kind(path) for paths in found.values() for path in paths)
    for name, paths in found.items():
        most = max(kinds[_kind(path)] for path in paths)
        given = [path for path in paths if ending is not None and path.name.lower().endswith(ending)]
        found[name] = given or [path for path in paths if kinds[_kind(path)] == most]
    return found


def _kind(path: Path) -> str:
    row = table.of_name(path.name)
    return "" if row is None else row.name


def holds(folder: Path, most: int = 8) -> str:
    """Describe the contents of a folder in words."""
    found = [names.shown(path.name) + ("/" if path.is_dir() else "") for path in entries(folder)]
    if not found:
        return "it is empty"
    more = f" and {len(found) - most} more" if len(found) > most else ""
    hint = f" ({table.DICOM_HINT})" if _has_dicom(folder) else ""
    return f"it holds {', '.join(found[:most])}{more}{hint}"


def _has_dicom(folder: Path) -> bool:
    """Whether a folder holds DICOM files, or folders that begin with one: a series a case."""
    for path in entries(folder):
        with contextlib.suppress(UserError):
            if table.is_dicom(path) or (path.is_dir() and any(map(table.is_dicom, entries(path)[:1]))):
                return True
    return False


# ----------------------------------------------------------------------------------------------------------- channels


def channel_of(name: str, case: str) -> int | None:
    """Return the number of a channel file of a case; None for other files."""
    match = CHANNEL.match(name)
    return int(match["channel"]) if match and match["case"] == case else None


def channel_files(case: str, found: Found, wanted: Sequence[int], who: str) -> tuple[Path, ...]:
    """Return the channel files of a case in order of their numbers; empty if it has none.

    A picture may hold all channels in its file `_0000`, as those of nnU-Net's NaturalImage2DIO do.

    Args:
        case: Name of the case.
        found: Image files of the folder.
        wanted: The numbers that must exist, no more and no fewer.
        who: Origin of the wanted numbers for messages: `dataset.json names`, `the network takes`.

    Raises:
        BadCaseError: There are other numbers, or two files with one number.
    """
    numbers = {number: name for name in found if (number := channel_of(name, case)) is not None}
    if not numbers:
        return ()
    if list(numbers) == [0] and len(wanted) > 1 and _has_colours(found[numbers[0]][0], len(wanted)):
        return (the_one(found[numbers[0]], "one image"),)
    asked = f"{who} {len(wanted)} channel(s), {', '.join(f'{number:04d}' for number in wanted)}"
    missing = [f"{case}_{number:04d}" for number in wanted if number not in numbers]
    if missing:
        there = ", ".join(f"{case}_{number:04d}" for number in sorted(numbers))
        raise BadCaseError(f"{', '.join(missing)} {_is(missing)} missing: {asked}; there is {there}")
    extra = [f"{case}_{number:04d}" for number in sorted(set(numbers) - set(wanted))]
    if extra:
        raise BadCaseError(f"{', '.join(extra)} {_is(extra)} too many: {asked}")
    return tuple(the_one(found[numbers[number]], "one image") for number in wanted)


def _has_colours(path: Path, channels: int) -> bool:
    """Whether a picture holds this many channels, by its header."""
    row = table.of_name(path.name)
    return row is not None and row.colours and _channels_of(path) == channels


def _channels_of(path: Path) -> int:
    """Number of channels in a file by its header; 0 where it cannot be read, which is told later."""
    try:
        return channels_in(open_image(str(path)).shape)
    except (BadCaseError, OSError):
        return 0


def _is(found: Sequence[str]) -> str:
    return "is" if len(found) == 1 else "are"


def the_one(paths: Sequence[Path], what: str) -> Path:
    """Return the only file of a name.

    Raises:
        BadCaseError: There are several, such as NAME.nii beside NAME.nii.gz.
    """
    if len(paths) > 1:
        raise BadCaseError(f"two files claim {what}: {', '.join(names.shown(path.name) for path in paths)}")
    return paths[0]


# ------------------------------------------------------------------------------------------------------- passed over


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its ending, whether or not its format is read."""
    return path.name.lower().endswith((*ENDINGS, *_OTHER_FORMATS)) or table.is_dicom(path)


def stem(path: Path) -> str:
    """Return a name without the ending of any image format."""
    for ending in sorted((*ENDINGS, *_OTHER_FORMATS), key=len, reverse=True):
        if path.name.lower().endswith(ending):
            return names.normal(path.name[: -len(ending)])
    return names.normal(path.name)


def passed_over(folder: Path, used: Iterable[Path] = ()) -> dict[Path, list[Path]]:
    """Return the unread files and folders in a folder of images; for a folder, with the files in it.

    Args:
        folder: Folder of images or label maps.
        used: Files that are read.
    """
    read = {Path(part).name for part in table.with_parts([str(path) for path in used])}
    out: dict[Path, list[Path]] = {}
    for path in entries(folder):
        inside = _below(path) if path.is_dir() else []
        if path.name not in read and (inside or not path.is_dir()):
            out[path] = inside
    return out


def _below(folder: Path) -> list[Path]:
    out = [path for path in entries(folder) if not path.is_dir()]
    for path in entries(folder):
        if path.is_dir() and not path.is_symlink():
            out += _below(path)
    return out


def reason_of(path: Path, inside: Sequence[Path]) -> str:
    """Return why a file or folder is passed over."""
    where = f"{path.parent.name}/{names.shown(path.name)}"
    if inside:
        first = inside[0].relative_to(path.parent.parent)
        mend = table.DICOM_HINT if table.is_dicom(inside[0]) else "images lie beside it"
        return f"{where}/ is a folder ({len(inside)} file(s), such as {names.shown(str(first))}); {mend}"
    if path.name.lower().endswith((".hdr", ".hdr.gz")):
        return f"{where} is a header without its .img file"
    if _kind(path):
        return f"{where} is not read, because most files of the folder have another format"
    return f"{where} {table.unread_reason(path)}"


def unread(folder: Path, *, folders: bool = True) -> tuple[str, ...]:
    """Describe images beside those to predict, or label maps beside those to score, that are not read.

    Args:
        folder: Folder of images or label maps; for a file, there is nothing to describe.
        folders: Whether folders in it are named too.
    """
    used = [path for paths in image_files(folder).values() for path in paths]
    over = passed_over(folder, used).items()
    return tuple(reason_of(path, inside) for path, inside in over if (folders and inside) or is_image(path))


# ----------------------------------------------------------------------------------------------------- without labels


def list_images(path: Path, channels: int) -> tuple[CaseFiles, ...]:
    """List the images of a folder (or one file) to predict, in name order; labels are not needed.

    Raises:
        UserError: Nothing is there, a case lacks channels or has too many, two files have one name, or a name cannot
            name a prediction.
    """
    found = find_images(path, channels)
    for name, reason in found.refused:
        raise UserError(f"{path}: the case {names.shown(name)} cannot be used: {reason}.")
    return found.cases


class FoundImages(NamedTuple):
    """Images of a folder to predict."""

    cases: tuple[CaseFiles, ...]
    """Cases in name order; all names differ."""
    refused: tuple[tuple[str, str], ...]
    """Names that cannot be used, each with the reason."""


def find_images(path: Path, channels: int, known: Collection[str] | None = None) -> FoundImages:
    """Like `list_images`, but go on after a case that cannot be used.

    Args:
        path: Folder of images, or one image.
        channels: Number of channels of a case.
        known: Names of cases of the data set that the folder is part of; None for images to predict.

    Raises:
        UserError: Nothing is there, or the only image has a name that cannot name a prediction.
    """
    if path.is_file():
        return FoundImages((_case(strip_extension(path.name), (path,)),), ())
    if not path.is_dir():
        raise UserError(f"The input {path} does not exist; a folder of images or one image is needed.")
    found = _images_in(path)
    cases = _channel_cases(found, channels, known)
    numbered = {name for name in found if (match := CHANNEL.match(name)) and match["case"] in cases}
    single = {name: paths for name, paths in found.items() if name not in numbered}
    files: dict[str, tuple[Path, ...]] = {}
    refused: dict[str, str] = {}
    for name in sorted({*single, *cases}):
        try:
            if name in single and name in cases:
                both = ", ".join(names.shown(path.name) for path in single[name])
                raise BadCaseError(f"{both} and its channel files {name}_0000, ... claim one prediction")
            if name in single:
                files[name] = (the_one(single[name], "one image"),)
            else:
                files[name] = channel_files(name, found, range(channels), "the network takes")
        except BadCaseError as error:
            hint = "; if it is the name of a case, give the file itself as the input"
            hint = hint if channels == 1 and known is None else ""
            refused[name] = f"{error}{hint if name in cases else ''}"
            continue
        if problem := names.problem(name, file=True):
            refused[name] = f"its name cannot be used, because it {problem}"
            del files[name]
    return FoundImages(tuple(_case(name, files[name]) for name in files), tuple(refused.items()))


def list_label_maps(path: Path) -> tuple[CaseFiles, ...]:
    """List the label maps of a folder in name order; names are taken as they are, since labels have no channels.

    Raises:
        UserError: There are none, or two files have one name.
    """
    return tuple(_case(name, (_only(path, paths),)) for name, paths in sorted(_images_in(path).items()))


def _images_in(folder: Path) -> dict[str, list[Path]]:
    found = image_files(folder)
    if not found:
        raise UserError(f"The folder {folder} holds no image that is read ({', '.join(ENDINGS)}); {holds(folder)}.")
    return found


def _channel_cases(found: Found, channels: int, known: Collection[str] | None) -> list[str]:
    """The cases that are given as channel files.

    With one channel, `x_0001` may be a case of that name or the second channel of x. Numbers that all cases share speak
    for channels (`x_0000`, `y_0000`), numbers that differ between cases speak for names (`nerve_0001`, `nerve_0002`).
    In a data set each file speaks for itself, whatever lies beside it: `x_0000` is the channel of x unless it is
    `known` as a case, and what `known` calls x_0001 is a case. With several channels, a file that holds several itself
    is a case (`BRATS_0001`).
    """
    numbers: dict[str, set[int]] = {}
    for name in sorted(found):
        if match := CHANNEL.match(name):
            numbers.setdefault(match["case"], set()).add(int(match["channel"]))
    if channels > 1:
        return [case for case in sorted(numbers) if not _has_channels(case, min(numbers[case]), found)]
    kinds = {tuple(sorted(group)) for group in numbers.values()}
    shared = len(kinds) == 1 and sum(map(len, numbers.values())) == len(found)
    (kind,) = kinds if shared else ((),)
    shared = len(kind) == 1 or (0 in kind and len(numbers) > 1)
    if known is None:
        return sorted(numbers) if shared else []
    shared &= 0 in kind
    named = {case for case, own in numbers.items() if any(f"{case}_{number:04d}" in known for number in own)}
    return [case for case, own in numbers.items() if case not in named and (shared or own == {0} or case in known)]


def _has_channels(case: str, number: int, found: Found) -> bool:
    """Whether a numbered file holds several channels itself and is no picture whose number speaks of channels."""
    path = found[f"{case}_{number:04d}"][0]
    row = table.of_name(path.name)
    return not (number == 0 and row is not None and row.colours) and _channels_of(path) > 1


def _only(folder: Path, paths: Sequence[Path]) -> Path:
    try:
        return the_one(paths, "one image")
    except BadCaseError as error:
        raise UserError(f"{folder}: {error}. Remove one of them.") from None


def _case(name: str, paths: Sequence[Path]) -> CaseFiles:
    name = names.check(name, "the file name", paths[0].parent, file=True)
    return CaseFiles(name, name, tuple(map(str, paths)), None, patient=name, published=False)
