"""Where a task's cases are: Medical Segmentation Decathlon and nnU-Net (v1, v2) folders, recognised by what they hold.

Every layout has `dataset.json`, `imagesTr/` and `labelsTr/`. A case's image is `imagesTr/NAME.nii.gz` (one file, 4-D
with several channels) or `imagesTr/NAME_0000.nii.gz`, `NAME_0001.nii.gz`, ... (one file a channel); `.nii` is read as
well. Beyond what those projects write, `groups` in dataset.json (case -> patient) keeps one patient's cases together.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.volume import EXTENSIONS, strip_extension
from jaxseg.types import CaseFiles, UserError

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")

Refused = tuple[tuple[str, str], ...]
"""(case, reason) pairs."""


@dataclasses.dataclass(frozen=True)
class CaseList:
    """A task's cases before any voxel was read."""

    name: str
    labels: tuple[tuple[str, int], ...]
    """Every name of dataset.json with its value in the files, background left out."""
    ignore: int | None
    """Value of voxels without a known label (nnU-Net's `ignore`), counted neither in training nor in evaluation."""
    modality: tuple[str, ...]
    """One entry a channel."""
    cases: tuple[CaseFiles, ...]
    """In name order."""
    refused: Refused
    warnings: tuple[str, ...]
    splits: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] | None
    """(train, val) case names of each fold in splits_final.json."""
    sources: tuple[Path, ...] = ()
    """Files beside images and labels that the preparation depends on."""


def read_folder(folder: Path) -> CaseList:
    """List the training cases of a Decathlon or nnU-Net folder.

    Raises:
        UserError: no such folder, no or unusable dataset.json, or no case at all.
    """
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, _names(folder.parent), n=1)
        hint = f" Is it {folder.parent / near[0]}?" if near else ""
        where = "" if folder.is_absolute() else f" below {Path.cwd()}"
        raise UserError(
            f"The data folder {folder} does not exist{where}.{hint} `data` takes a folder, synthetic:NAME, ..."
        )
    description = _read_json(folder / "dataset.json", folder)
    labels, ignore = _labels(description, folder)
    modality = _modality(description, folder)
    groups = description.get("groups", {})
    if not isinstance(groups, Mapping):
        raise UserError(f"{folder / 'dataset.json'}: `groups` must map cases to patients, got {type(groups).__name__}")
    listed = description.get("training")
    if isinstance(listed, Sequence) and listed and all(isinstance(item, Mapping) for item in listed):
        cases, refused = _from_list(folder, listed, groups)
    else:
        cases, refused = _from_folders(folder, groups)
    if not cases and not refused:
        raise UserError(
            f"{folder} has no training cases: its dataset.json lists none and labelsTr/ holds no .nii or .nii.gz file."
        )
    warnings = _group_warnings(cases, groups)
    splits_path = folder / "splits_final.json"
    return CaseList(
        name=str(description.get("name") or folder.name),
        labels=labels,
        ignore=ignore,
        modality=modality,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(sorted(refused)),
        warnings=warnings,
        splits=_splits(splits_path) if splits_path.exists() else None,
        sources=tuple(path for path in (folder / "dataset.json", splits_path) if path.exists()),
    )


def list_images(path: Path, channels: int) -> tuple[CaseFiles, ...]:
    """The images of a folder (or one file) to predict, in name order; no labels are looked for.

    Raises:
        UserError: nothing there, or a case without all its channels.
    """
    if path.is_file():
        return (CaseFiles(strip_extension(path.name), strip_extension(path.name), (str(path),), None),)
    if not path.is_dir():
        raise UserError(f"The input {path} does not exist; a folder of .nii.gz or .nii images or one image is needed.")
    found = _files(path)
    names = dict.fromkeys(found)
    if channels > 1 or all(_CHANNEL.match(name) and name.endswith("_0000") for name in names):
        stems = sorted({match["case"] for name in names if (match := _CHANNEL.match(name))})
        if stems:
            return tuple(_channel_case(stem, found, channels, path) for stem in stems)
    if not names:
        raise UserError(f"The folder {path} holds no .nii.gz or .nii image.")
    return tuple(CaseFiles(name, name, (str(found[name][0]),), None) for name in names)


def _channel_case(stem: str, found: Mapping[str, Sequence[Path]], channels: int, path: Path) -> CaseFiles:
    wanted = [f"{stem}_{channel:04d}" for channel in range(channels)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{path}: the case {stem} needs {channels} channel files; {', '.join(missing)} is missing.")
    return CaseFiles(stem, stem, tuple(str(found[name][0]) for name in wanted), None)


# ------------------------------------------------------------------------------------------------------ dataset.json


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _read_json(path: Path, folder: Path) -> Mapping[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no dataset.json. A folder in Decathlon or nnU-Net layout holds dataset.json, imagesTr/ and "
            "labelsTr/; dataset.json needs at least labels and modality (or channel_names)."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(description, Mapping):
        raise UserError(f"{path} must hold a JSON object, got {type(description).__name__}")
    return description


def _labels(description: Mapping[str, Any], folder: Path) -> tuple[tuple[tuple[str, int], ...], int | None]:
    """Names and values from `{"1": "name"}` (Decathlon, nnU-Net v1) or `{"name": 1}` (nnU-Net v2)."""
    where = folder / "dataset.json"
    raw = description.get("labels")
    if not isinstance(raw, Mapping) or not raw:
        raise UserError(f"{where}: `labels` must map values to names, such as {{'0': 'background', '1': 'liver'}}")
    pairs = []
    for key, entry in raw.items():
        if isinstance(entry, str):
            name, value = entry, key
        elif isinstance(entry, int):
            name, value = key, entry
        else:
            raise UserError(
                f"{where}: the label {key!r} has the value {entry!r}. Regions made of several labels are not "
                "supported; give each label one whole number."
            )
        try:
            pairs.append((str(name), int(value)))
        except ValueError:
            raise UserError(f"{where}: the label {name!r} has the value {value!r}, not a whole number") from None
    ignore = None
    named = []
    for name, value in sorted(pairs, key=lambda pair: pair[1]):
        if name.lower() == "ignore":
            ignore = value
        elif value != 0:
            named.append((name, value))
    for index, what in ((0, "name"), (1, "value")):
        seen = [pair[index] for pair in named]
        twice = sorted({str(item) for item in seen if seen.count(item) > 1})
        if twice:
            raise UserError(f"{where}: the label {what} {', '.join(twice)} is used more than once")
    if not named:
        raise UserError(f"{where}: `labels` names nothing but background")
    if any(value < 0 or value > 65535 for _, value in named):
        raise UserError(f"{where}: label values must lie between 0 and 65535, got {named}")
    return tuple(named), ignore


def _modality(description: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    raw = description.get("channel_names", description.get("modality"))
    if isinstance(raw, str):
        return (raw,)
    if isinstance(raw, Mapping) and raw:
        return tuple(str(raw[key]) for key in sorted(raw, key=lambda key: (len(str(key)), str(key))))
    if isinstance(raw, Sequence) and raw:
        return tuple(str(name) for name in raw)
    raise UserError(
        f"{folder / 'dataset.json'}: `modality` (or `channel_names`) must name each channel, such as {{'0': 'MRI'}}"
    )


def _splits(path: Path) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    try:
        folds = json.loads(path.read_text(encoding="utf-8-sig"))
        return tuple((tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in folds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} must hold a list of folds, each {{'train': [case, ...], 'val': [case, ...]}}: {error!r}"
        ) from None


def _group_warnings(cases: Iterable[CaseFiles], groups: Mapping[str, Any]) -> tuple[str, ...]:
    names = {case.name for case in cases}
    alone = sorted(names - set(groups)) if groups else []
    unknown = sorted(set(groups) - names)
    out = []
    if alone:
        out.append(f"`groups` does not name {_shown(alone)}: each counts as a group of its own")
    if unknown:
        out.append(f"`groups` names cases that are not there: {_shown(unknown)}")
    return tuple(out)


def _shown(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ------------------------------------------------------------------------------------------------------------- files


def _files(folder: Path) -> dict[str, list[Path]]:
    """Image files of a folder by case name, in name order; hidden files and `._*` leftovers of macOS are skipped."""
    found: dict[str, list[Path]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and path.name.endswith(EXTENSIONS):
                found.setdefault(strip_extension(path.name), []).append(path)
    return found


def _group(name: str, groups: Mapping[str, Any]) -> str:
    return str(groups.get(name, name))


def _from_list(
    folder: Path, listed: Sequence[Mapping[str, Any]], groups: Mapping[str, Any]
) -> tuple[list[CaseFiles], list[tuple[str, str]]]:
    """The cases that dataset.json lists under `training`."""
    available = _files(folder / "imagesTr")
    cases: list[CaseFiles] = []
    refused: list[tuple[str, str]] = []
    seen: set[str] = set()
    used: set[str] = set()
    for item in listed:
        image, label = item.get("image"), item.get("label")
        if not isinstance(image, str):
            refused.append((str(item)[:80], "its entry in dataset.json has no `image`"))
            continue
        name = strip_extension(Path(image).name)
        if name in seen:
            refused.append((name, "dataset.json lists it more than once"))
            cases = [case for case in cases if case.name != name]
            continue
        seen.add(name)
        paths = _images_of(folder / image, name, available)
        used.update(path.name for path in paths)
        label_path = None if not isinstance(label, str) else _first_existing(folder / label)
        if not paths:
            refused.append((name, f"its image {image} does not exist"))
        elif label_path is None:
            what = "its entry in dataset.json has no label" if label is None else f"its label {label} does not exist"
            refused.append((name, what))
        else:
            cases.append(CaseFiles(name, _group(name, groups), tuple(map(str, paths)), str(label_path)))
    unlisted = [path for paths in available.values() for path in paths if path.name not in used]
    labels = _files(folder / "labelsTr")
    for path in unlisted:
        name = strip_extension(path.name)
        stem = match["case"] if (match := _CHANNEL.match(name)) else name
        if not {name, stem} & (seen | set(labels)):
            refused.append((name, f"{path.name} in imagesTr has no label and dataset.json does not list it"))
    return cases, refused


def _first_existing(path: Path) -> Path | None:
    """The path itself, or the same name with the other NIfTI ending."""
    stem = strip_extension(path.name)
    options = [path, *(path.with_name(stem + extension) for extension in EXTENSIONS)]
    return next((option for option in options if _exists(option)), None)


def _exists(path: Path) -> bool:
    # A loop of symbolic links is an entry that exists and cannot be read: let the reader report it.
    return path.is_symlink() or path.exists()


def _images_of(path: Path, name: str, available: Mapping[str, Sequence[Path]]) -> list[Path]:
    """The file itself, or its channel files (nnU-Net v1 lists NAME.nii.gz and stores NAME_0000.nii.gz)."""
    single = _first_existing(path)
    if single is not None:
        return [single]
    channels = sorted(key for key in available if (match := _CHANNEL.match(key)) and match["case"] == name)
    return [available[key][0] for key in channels]


def _from_folders(folder: Path, groups: Mapping[str, Any]) -> tuple[list[CaseFiles], list[tuple[str, str]]]:
    """The cases of labelsTr/ with their images (nnU-Net v2 lists none in dataset.json)."""
    images, labels = _files(folder / "imagesTr"), _files(folder / "labelsTr")
    cases: list[CaseFiles] = []
    refused: list[tuple[str, str]] = []
    used: set[str] = set()
    for name, label_paths in labels.items():
        keys = [name] if name in images else [key for key in images if (m := _CHANNEL.match(key)) and m["case"] == name]
        used.update(keys)
        clash = [path.name for key in keys for path in images[key]] if any(len(images[k]) > 1 for k in keys) else []
        if len(label_paths) > 1:
            refused.append((name, f"two files claim its label: {', '.join(path.name for path in label_paths)}"))
        elif clash:
            refused.append((name, f"two files claim one image: {', '.join(clash)}"))
        elif not keys:
            refused.append((name, f"its image imagesTr/{name}.nii.gz (or {name}_0000.nii.gz) does not exist"))
        else:
            paths = tuple(str(images[key][0]) for key in sorted(keys))
            cases.append(CaseFiles(name, _group(name, groups), paths, str(label_paths[0])))
    for key in sorted(set(images) - used):
        stem = match["case"] if (match := _CHANNEL.match(key)) else key
        refused.append((key, f"its label labelsTr/{stem}.nii.gz does not exist"))
    return cases, refused
