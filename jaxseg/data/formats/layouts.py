"""Folders in the layouts of the Medical Segmentation Decathlon and nnU-Net (v1, v2), recognised by their contents.

Every layout has `dataset.json`, `imagesTr/` and `labelsTr/`. A case's image is `imagesTr/NAME.nii.gz` (one file, 4-D
with several channels) or `imagesTr/NAME_0000.nii.gz`, `NAME_0001.nii.gz`, ... (one file per channel); every format of
`files/table.py` is read as well. In addition to the fields of those projects, `groups` in dataset.json (case ->
patient) keeps the cases of one patient together.

`FOLDER/imagesTs` names the labelled test cases of such a folder, those of `imagesTs/` with a label map in `labelsTs/`.
Where no labels are needed, it and `FOLDER/imagesTr` name all of their images, by the dataset.json beside them.

Everything that a folder says about its cases is either used or named in a warning: a file or a list that is silently
ignored would change the study.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxseg.data import names
from jaxseg.data.cases import CaseFiles, CaseList, Folds
from jaxseg.data.formats import description as descriptions
from jaxseg.data.formats import image_files, structures, unlabelled
from jaxseg.data.formats.case_search import CaseSearch
from jaxseg.data.formats.patients import group_warnings
from jaxseg.types import UserError

WITHOUT_LABELS = (
    "A source task needs no labels where its arms set pretrain.objective to 'restore' or 'masked', which learn from "
    "images alone."
)
"""What to do with a folder that has no labels."""


def read_unlabelled(folder: Path) -> CaseList:
    """List the images of a Decathlon or nnU-Net folder, or of a folder of images alone, for use without labels.

    Raises:
        UserError: The folder does not exist, holds no image, or its dataset.json is unusable.
    """
    _check_folder(folder)
    part = part_of_set(folder)
    where = (folder if part is None else part.parent) / "dataset.json"
    listing = unlabelled.read_images(folder, _read_description(where) if where.exists() else None, where)
    return listing if part is None else dataclasses.replace(listing, name=f"{listing.name} {part.name}")


TRAINING_IMAGES, TEST_IMAGES, TEST_LABELS = "imagesTr", "imagesTs", "labelsTs"
"""Folders of nnU-Net's layout: images of the training cases, and those of the test cases with their labels."""


def has_test_labels(folder: Path) -> bool:
    """Return whether a folder has test cases with label maps, which `read_folder` reads as `FOLDER/imagesTs`."""
    return (folder / TEST_IMAGES).is_dir() and bool(image_files.image_files(folder / TEST_LABELS))


def _is_test_part(folder: Path) -> bool:
    return folder.name == TEST_IMAGES and part_of_set(folder) == folder


def part_of_set(folder: Path) -> Path | None:
    """Return a folder of images that the dataset.json beside it describes, as a path below the folder of the set.

    Links and paths such as `.` are followed: whatever the folder is called, its patients are those of the set.
    """
    for part in (folder, Path(os.path.abspath(folder)), folder.resolve()):
        described = [(place / "dataset.json").exists() for place in (part, part.parent)]
        if part.name in (TRAINING_IMAGES, TEST_IMAGES) and described == [False, True]:
            return part
    return None


def _read_test_part(folder: Path) -> CaseList:
    """List the cases of imagesTs/ that have a label map in labelsTs/, by the dataset.json beside these."""
    root = folder.parent
    where = root / "dataset.json"
    description = _read_description(where)
    labels, ignore, regions = structures.described(description, where)
    modality, numbers = descriptions.channels(description, where)
    groups = descriptions.groups(description, where)
    search = CaseSearch(root, numbers, groups, descriptions.file_ending(description, where), part="Ts")
    search.from_folders()
    search.name_unlabelled()
    search.finish()
    if not search.cases and not search.refused:
        raise UserError(f"{folder} has no test cases: {root / TEST_LABELS} holds no label map that is read")
    return CaseList(
        name=f"{descriptions.task_name(description, root, where)} {TEST_IMAGES}",
        labels=labels,
        ignore=ignore,
        modality=modality,
        cases=tuple(sorted(search.cases.values(), key=lambda case: case.name)),
        refused=tuple(sorted((names.shown(name), reason) for name, reason in search.refused.items())),
        warnings=(*structures.label_warnings(description, regions), *search.warnings),
        splits=None,
        sources=(where,),
        regions=regions,
    )


def read_folder(folder: Path) -> CaseList:
    """List the training cases of a Decathlon or nnU-Net folder, or of its `imagesTs` the labelled test cases.

    Raises:
        UserError: The folder does not exist, its dataset.json is missing or unusable, or it has no case at all.
    """
    _check_folder(folder)
    if _is_test_part(folder):
        return _read_test_part(folder)
    where, splits_path = folder / "dataset.json", folder / "splits_final.json"
    description = _read_description(where)
    ending = descriptions.file_ending(description, where)
    labels, ignore, regions = structures.described(description, where)
    modality, numbers = descriptions.channels(description, where)
    groups = descriptions.groups(description, where)
    listed = descriptions.listed(description, where)
    search = CaseSearch(folder, numbers, groups, ending)
    if listed is None:
        search.from_folders()
        search.refuse_unlabelled()
    else:
        search.from_list(listed)
    search.finish()
    if not search.cases and not search.refused:
        raise UserError(
            f"{folder} has no training cases: its dataset.json lists none and labelsTr/ holds no file that is read; "
            f"{image_files.holds(folder)}. Images are looked for in imagesTr/ and their labels in labelsTr/. "
            f"{WITHOUT_LABELS}"
        )
    folds, more = descriptions.listed_folds(list((search.listed or {}).items()))
    splits = _one_set_of_folds(splits_path, folds, where)
    cases = tuple(sorted(search.cases.values(), key=lambda case: case.name))
    warnings = (
        *structures.label_warnings(description, regions),
        *descriptions.count_warnings(description, len(cases) + len(search.refused)),
        *descriptions.unused_lists(description),
        *group_warnings(cases, groups, image_files.image_files(folder / TEST_LABELS)),
        *more,
        *_fold_warnings(cases, splits),
        *search.warnings,
    )
    return CaseList(
        name=descriptions.task_name(description, folder, where),
        labels=labels,
        ignore=ignore,
        modality=modality,
        cases=cases,
        refused=tuple(sorted((names.shown(name), reason) for name, reason in search.refused.items())),
        warnings=warnings,
        splits=splits,
        sources=tuple(path for path in (where, splits_path) if path.exists()),
        regions=regions,
    )


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        hint = f"; give the folder, {folder.parent}" if folder.name == "dataset.json" else ""
        raise UserError(f"`data` is {folder}, which is a file and not a folder{hint}.")
    near = difflib.get_close_matches(folder.name, _names(folder.parent), n=1)
    hint = f" Is it {folder.parent / near[0]}?" if near else ""
    where = "" if folder.is_absolute() else f" below {Path.cwd()}"
    raise UserError(f"The data folder {folder} does not exist{where}.{hint} `data` takes a folder, synthetic:NAME, ...")


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _read_description(path: Path) -> Mapping[str, Any]:
    try:
        description = descriptions.read_json(path)
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no dataset.json; {image_files.holds(path.parent)}. A folder in Decathlon or nnU-Net "
            "layout holds dataset.json, imagesTr/ and labelsTr/; dataset.json needs at least labels and modality (or "
            f"channel_names). {WITHOUT_LABELS}"
        ) from None
    if not isinstance(description, Mapping):
        raise UserError(f"{path} must hold a JSON object, got {type(description).__name__}")
    return description


# ------------------------------------------------------------------------------------------------ groups and folds


def _one_set_of_folds(path: Path, own: Folds | None, where: Path) -> Folds | None:
    """The folds of splits_final.json or those of dataset.json."""
    if not path.exists():
        return own
    listed = descriptions.read_splits(path)
    if own is not None and [tuple(map(set, fold)) for fold in own] != [tuple(map(set, fold)) for fold in listed]:
        raise UserError(
            f"{path} and {where} (`fold` or `validation`) hold out different cases. Remove what is not meant."
        )
    return listed


def _fold_warnings(cases: Iterable[CaseFiles], splits: Folds | None) -> tuple[str, ...]:
    """Cases that the listed folds leave out."""
    known = {case.name for case in cases}
    left = [(index, sorted(known - {*train, *val})) for index, (train, val) in enumerate(splits or ())]
    return tuple(
        f"fold {index} of the listed folds leaves out {names.several(out)}: not trained on there"
        for index, out in left
        if out
    )
