"""Readers of `dataset.json` and `splits_final.json`: labels, channels, groups, listed cases, and folds.

Every field that matters is checked for its type here. An error becomes one sentence that names the file and the field,
since these files are written by hand and by many tools.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.data import names
from jaxseg.data.cases import CaseFiles, Folds
from jaxseg.data.formats.files import table
from jaxseg.data.formats.patients import patient
from jaxseg.types import UserError

BACKGROUND = ("background", "bg", "backgr", "unlabelled", "unlabeled", "none", "clear label", "0")
"""Names that data sets give to value 0, in lower case."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A case as listed in dataset.json."""

    images: tuple[str, ...]
    """One path, or one per channel; empty if the entry has none."""
    label: Any
    """Path of the label map; None if the entry has none."""
    name: str | None = None
    """Name of the case, if the list gives names (nnU-Net's `dataset`)."""
    bare: bool = False
    """Whether the entry is only a path, so that the label has the same name."""
    fold: int | None = None
    validation: bool = False
    """Whether the case is listed under `validation`."""

    @property
    def text(self) -> str:
        """How messages name the entry before its case is known."""
        return self.name or (self.images[0] if self.images else f"an entry without an image (label {self.label})")


# -------------------------------------------------------------------------------------------------------------- JSON


class _DuplicateKeyError(ValueError):
    pass


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file. Of two values for one key Python keeps the last, and nobody knows which was meant."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise _DuplicateKeyError(f"it gives {names.shown(key)!r} twice, with different values")
        found[key] = value
    return found


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is unreadable, not UTF-8, not JSON, nested too deeply, or gives two values for one key.
        FileNotFoundError: The file does not exist.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (at byte {error.start}); save it as UTF-8.") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read as JSON: its lists or objects are nested too deeply.") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def whole(value: Any) -> int | None:
    """Return a whole number written as 1, 1.0, "1" or [1]; None for anything else."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", value) else None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _type(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


# ------------------------------------------------------------------------------------------------- labels, channels


def labels(description: Mapping[str, Any], where: Path) -> tuple[tuple[tuple[str, int], ...], int | None]:
    """Return labels from `{"1": "name"}` (Decathlon, nnU-Net v1) or `{"name": 1}` (nnU-Net v2), without the background.

    Returns:
        Pairs (name, value) in order of values, and the value of nnU-Net's `ignore`.

    Raises:
        UserError: `labels` has any other form.
    """
    raw = description.get("labels")
    if not isinstance(raw, Mapping) or not raw:
        raise UserError(f"{where}: `labels` must map values to names, such as {{'0': 'background', '1': 'liver'}}")
    pairs = _pairs(raw, where)
    ignored = [value for name, value in pairs if name.lower() == "ignore"]
    if len(ignored) > 1 or 0 in ignored:
        raise UserError(f"{where}: the label `ignore` must have one value above 0, got {ignored}")
    misplaced = [value for name, value in pairs if name.lower() == "background" and value != 0]
    if misplaced:
        raise UserError(
            f"{where}: the label 'background' has the value {misplaced[0]}; 0 is background whatever it is called. "
            "Number the labels so that background is 0, here and in the files."
        )
    named = [(name, value) for name, value in pairs if name.lower() != "ignore" and value != 0]
    for index, what in ((0, "name"), (1, "value")):
        seen = [pair[index] for pair in [*named, *(("ignore", value) for value in ignored)]]
        twice = sorted({names.shown(str(item)) for item in seen if seen.count(item) > 1})
        if twice:
            raise UserError(f"{where}: the label {what} {', '.join(twice)} is used more than once")
    if not named:
        raise UserError(f"{where}: `labels` names nothing but background")
    outside = [(name, value) for name, value in pairs if not 0 <= value <= 65535]
    if outside:
        raise UserError(f"{where}: label values must lie between 0 and 65535, got {outside[:5]}")
    return tuple((names.check(name, "the label", where), value) for name, value in named), next(iter(ignored), None)


def _pairs(raw: Mapping[str, Any], where: Path) -> list[tuple[str, int]]:
    """(name, value) of every entry of `labels`, in order of values."""
    texts = all(isinstance(entry, str) for entry in raw.values())
    numbers = all(whole(key) is not None and whole(entry) is not None for key, entry in raw.items())
    if texts and numbers and any(whole(key) != whole(entry) for key, entry in raw.items()):
        raise UserError(
            f"{where}: `labels` maps numbers to numbers, {dict(raw)}, and either side could be the value. Write values "
            "without quotes, such as {'liver': 1}."
        )
    pairs = []
    for key, entry in raw.items():
        name, value = (entry, whole(key)) if isinstance(entry, str) and whole(key) is not None else (key, whole(entry))
        if value is None:
            raise UserError(f"{where}: the label '{names.shown(key)}' has the value {entry!r}, not a whole number")
        pairs.append((name, value))
    return sorted(pairs, key=lambda pair: pair[1])


def label_warnings(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Warn if value 0 has a name that does not mean background, since that label is not segmented."""
    raw = description["labels"]
    zero = [name for name, value in _pairs(raw, Path()) if value == 0 and name.strip().lower() not in BACKGROUND]
    return tuple(f"the label value 0, '{names.shown(name)}', is background and is not segmented" for name in zero)


def channels(description: Mapping[str, Any], where: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return each channel's name and the number of its files (`_0000`), from `channel_names` or `modality`.

    Raises:
        UserError: No channel is named, or a name is not text.
    """
    field = "channel_names" if description.get("channel_names") is not None else "modality"
    raw = description.get(field)
    numbers: list[int] = []
    if isinstance(raw, str):
        found: list[Any] = [raw]
    elif isinstance(raw, Mapping) and raw:
        keys = sorted(raw, key=lambda key: (len(key), key))
        known = [number for key in keys if (number := whole(key)) is not None and number >= 0]
        numbers = known if len(set(known)) == len(keys) else []
        found = [raw[key] for key in keys]
    elif isinstance(raw, Sequence) and raw:
        found = list(raw)
    else:
        raise UserError(f"{where}: `modality` (or `channel_names`) must name each channel, such as {{'0': 'MRI'}}")
    for name in found:
        if not isinstance(name, (str, int, float)) or isinstance(name, bool):
            raise UserError(f"{where}: `{field}` must name each channel in text, got {_type(name)}")
    checked = tuple(names.check(str(name), "the channel", where) for name in found)
    return checked, tuple(numbers) or tuple(range(len(found)))


def groups(description: Mapping[str, Any], where: Path) -> dict[str, str]:
    """Return the patient of each case.

    Raises:
        UserError: `groups` is not such a mapping. `null` is no patient, since all such cases would count as one person.
    """
    raw = description.get("groups", {})
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: `groups` must map cases to patients, got {_type(raw)}")
    for case, group in raw.items():
        number = isinstance(group, (int, float)) and not isinstance(group, bool) and math.isfinite(group)
        if not (isinstance(group, str) or number):
            raise UserError(f"{where}: `groups` must give a name for '{names.shown(case)}', got {_type(group)}")
    return {names.normal(case): names.check(patient(group), "the group", where) for case, group in raw.items()}


def grouped(case: CaseFiles, groups: Mapping[str, str]) -> CaseFiles:
    """Return a case with its patient by `groups`, where a case without an entry may be the name of others' patient."""
    group = groups.get(case.name, case.name)
    published = case.name in groups or group in groups.values()
    return dataclasses.replace(case, group=group, patient=group, published=published)


def task_name(description: Mapping[str, Any], folder: Path, where: Path) -> str:
    """Return the field `name`, or the name of the folder."""
    given = description.get("name")
    if given is not None and not isinstance(given, (str, int, float)):
        raise UserError(f"{where}: `name` must be text, got {_type(given)}")
    if given not in (None, ""):
        return names.check(str(given), "the task name", where)
    own = folder.name if folder.name not in ("", "..") else folder.resolve().name
    return names.check(own or "task", "the folder's name (used because dataset.json has no `name`)", where)


def file_ending(description: Mapping[str, Any], where: Path) -> str | None:
    """Return nnU-Net's `file_ending` in lower case, checked with `overwrite_image_reader_writer`; None if not given.

    Raises:
        UserError: One names a format that is not read, or they do not go together.
    """
    ending, reader = description.get("file_ending"), description.get("overwrite_image_reader_writer")
    if ending is not None and (not isinstance(ending, str) or ending.lower() not in table.ENDINGS):
        raise UserError(
            f"{where}: `file_ending` is {ending!r}, which is not read. Allowed are {', '.join(table.ENDINGS)}; convert "
            "the images."
        )
    if reader is not None and reader not in table.READERS:
        raise UserError(
            f"{where}: `overwrite_image_reader_writer` is {reader!r}, which is not known. Allowed are "
            f"{', '.join(table.READERS)}; leave it out to have files read by their ending."
        )
    if ending is None:
        return None
    row = table.of_name(ending)
    if reader is not None and row is not None and reader not in row.readers:
        raise UserError(
            f"{where}: `overwrite_image_reader_writer` is {reader!r}, which does not read the `file_ending` "
            f"{ending!r}; {row.name} files are read by {', '.join(row.readers)}."
        )
    return ending.lower()


# ------------------------------------------------------------------------------------------------- cases that count


def listed(description: Mapping[str, Any], where: Path) -> tuple[Entry, ...] | None:
    """Return the cases listed in dataset.json; None if it lists none, so that the folders determine the cases.

    `training` holds objects (Decathlon, MONAI) or paths, as does `validation`; `dataset` maps names to files (nnU-Net
    v2).

    Raises:
        UserError: A list has another form, or there are two lists.
    """
    own = description.get("dataset")
    mapped = isinstance(own, Mapping) and bool(own)
    if mapped and (description.get("training") or description.get("validation")):
        raise UserError(f"{where} lists cases under `dataset` and under `training`; keep one of the lists.")
    if mapped:
        return tuple(_mapped_entry(name, files, where) for name, files in own.items())  # type: ignore[union-attr]
    entries = _list_of(description, "training", where)
    held_out = _list_of(description, "validation", where)
    if held_out and not entries:
        raise UserError(f"{where} lists cases under `validation` and none under `training`.")
    if held_out and any(entry.fold is not None for entry in entries):
        raise UserError(
            f"{where} has a `validation` list and `fold` numbers, which both say what is held out; keep one."
        )
    return (*entries, *held_out) or None


def _list_of(description: Mapping[str, Any], field: str, where: Path) -> tuple[Entry, ...]:
    raw = description.get(field)
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise UserError(f"{where}: `{field}` must be a list of cases, got {_type(raw)}")
    return tuple(_entry(item, f"{where}: `{field}`, entry {index},", field) for index, item in enumerate(raw))


def _entry(item: Any, where: str, field: str) -> Entry:
    if isinstance(item, str):
        return Entry((item,), None, bare=True, validation=field == "validation")
    if not isinstance(item, Mapping):
        raise UserError(f"{where} must be an object with `image` and `label`, or a path; it is {_type(item)}")
    fold = item.get("fold")
    if fold is not None and (isinstance(fold, bool) or not isinstance(fold, int)):
        raise UserError(f"{where} has the fold {fold!r}; a whole number is needed")
    return Entry(_paths(item.get("image"), where), item.get("label"), fold=fold, validation=field == "validation")


def _mapped_entry(name: str, files: Any, where: Path) -> Entry:
    place = f"{where}: `dataset`, case '{names.shown(name)}',"
    if not isinstance(files, Mapping):
        raise UserError(f"{place} must be an object with `images` and `label`; it is {_type(files)}")
    return Entry(_paths(files.get("images"), place), files.get("label"), name=name)


def _paths(raw: Any, where: str) -> tuple[str, ...]:
    paths = (raw,) if isinstance(raw, str) else tuple(raw) if isinstance(raw, list) else ()
    if raw is not None and (not paths or not all(isinstance(path, str) and path for path in paths)):
        raise UserError(f"{where} must name its image as a path, or as a list of one path a channel")
    return paths


def count_warnings(description: Mapping[str, Any], found: int) -> tuple[str, ...]:
    """Warn if `numTraining` differs from the number of cases that were found."""
    raw = description.get("numTraining")
    if raw is None or whole(raw) == found:
        return ()
    return (f"dataset.json says numTraining {raw!r}, and {found} training case(s) are there",)


def unused_lists(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Warn of labelled cases in a list that training does not use."""
    out = []
    if description.get("training") == []:
        out.append("`training` of dataset.json is empty: the cases of labelsTr/ are used")
    for field in ("test", "testing"):
        raw = description.get(field)
        entries = raw if isinstance(raw, list) else []
        labelled = [item for item in entries if isinstance(item, Mapping) and item.get("label")]
        if labelled:
            out.append(f"`{field}` of dataset.json lists {len(labelled)} case(s) with labels, which are not used")
    return tuple(out)


# ------------------------------------------------------------------------------------------------------------- folds


def read_splits(path: Path) -> Folds:
    """Read the folds of nnU-Net's splits_final.json.

    Raises:
        UserError: The file has other contents.
    """
    raw = read_json(path)
    form = "must hold a list of folds, each {'train': [case, ...], 'val': [case, ...]}"
    if not isinstance(raw, list):
        raise UserError(f"{path} {form}; it holds {_type(raw)}")
    return tuple(
        (_cases(fold, "train", index, path, form), _cases(fold, "val", index, path, form))
        for index, fold in enumerate(raw)
    )


def _cases(fold: Any, part: str, index: int, path: Path, form: str) -> tuple[str, ...]:
    if not isinstance(fold, Mapping):
        raise UserError(f"{path} {form}; fold {index} is {_type(fold)}")
    cases = fold.get(part)
    if not isinstance(cases, list) or not all(isinstance(case, (str, int)) for case in cases):
        got = "missing" if part not in fold else "no list of names"
        raise UserError(f"{path} {form}; `{part}` of fold {index} is {got}")
    return tuple(names.normal(str(case)) for case in cases)


def listed_folds(entries: Sequence[tuple[str, Entry]]) -> tuple[Folds | None, tuple[str, ...]]:
    """Return the folds that dataset.json gives itself, with warnings about them.

    `validation` is held out as the only fold. Fold k holds out the cases whose `fold` is k; cases without a number are
    in the training set of every fold, as in MONAI.

    Args:
        entries: Pairs (case, entry).
    """
    if any(entry.validation for _, entry in entries):
        parts = [tuple(name for name, entry in entries if entry.validation is side) for side in (False, True)]
        return ((parts[0], parts[1]),), ()
    numbers = sorted({entry.fold for _, entry in entries if entry.fold is not None})
    if not numbers:
        return None, ()
    folds = tuple(
        (tuple(name for name, e in entries if e.fold != number), tuple(name for name, e in entries if e.fold == number))
        for number in numbers
    )
    if numbers == list(range(len(numbers))):
        return folds, ()
    return folds, (f"the folds {', '.join(map(str, numbers))} of dataset.json are folds 0 to {len(numbers) - 1} here",)
