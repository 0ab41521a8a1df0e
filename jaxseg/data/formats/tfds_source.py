"""TFDS datasets as tasks: `tfds:NAME_OR_FOLDER?labels=a,b[&key=value...]`.

| key | default | meaning |
| --- | --- | --- |
| `labels` | needed | names of the label values 1, 2, ..., separated by commas |
| `image` | `image` | feature with the image, `[*spatial]` or `[*spatial, channels]` |
| `label` | `label` | feature with the label map, `[*spatial]` or `[*spatial, 1]` |
| `split` | `train` | split whose examples are the cases |
| `name`, `group` | | text features with the case's name and its patient; without, the position is the name |
| `modality` | `unknown` | one word a channel, separated by commas |
| `spacing` | 1 an axis | voxel size in mm, such as `1x1x3` |

The dataset must already lie on disk in ArrayRecord files (`file_format="array_record"`); TensorFlow is not needed.
"""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxseg import paths
from jaxseg.data import digests, names
from jaxseg.data.cases import CaseFiles, CaseList, RawCase, Refused, Source
from jaxseg.data.formats.patients import patient
from jaxseg.data.volumes.volume import BadCaseError
from jaxseg.types import UserError

REMEMBERED = "tfds_examples.json"
"""Name of the file in a store folder with the names and checksums of examples, so that no start decodes them again."""
KEYS = {"labels": "", "image": "image", "label": "label", "split": "train", "name": "", "group": "",
        "modality": "unknown", "spacing": ""}  # fmt: skip


def open_tfds(text: str, *, ndim: int, store_dir: Path) -> Source:
    """Open a TFDS dataset as a source.

    Args:
        text: The part of the `data` string after `tfds:`.
        ndim: 2 or 3.
        store_dir: Folder of the checksums of files.

    Raises:
        UserError: A key is unknown, there is no such dataset on disk, or features are no image and label.
    """
    where = f"data 'tfds:{text}'"
    dataset, query = _split(text)
    keys = _keys(query, where)
    labels = tuple(names.check(name, "the label", where) for name in keys["labels"].split(",") if name)
    if not labels:
        raise UserError(f"{where}: labels=NAME,NAME,... must name the label values 1, 2, ...")
    builder = _builder(dataset, where)
    _check(builder, keys, where)
    examples = builder.as_data_source(split=keys["split"])
    spacing = _spacing(keys["spacing"], ndim, where)

    def identity(progress: digests.Progress | None) -> str:
        files = sorted(path for path in Path(builder.data_path).iterdir() if path.is_file())
        found = digests.of_files(files, store_dir=store_dir, progress=progress)
        return digests.of_values(keys, [[path.name, found[str(path)].sha256] for path in files])

    remembered = _Remembered(store_dir, functools.partial(identity, None))
    index_of, cases, refused = _cases(_texts(examples, keys, remembered), where, grouped=bool(keys["group"]))

    def read(files: CaseFiles) -> RawCase:
        example = examples[index_of[files.name]]
        return _raw_case(example[keys["image"]], example[keys["label"]], spacing)

    listing = CaseList(
        name=names.check(builder.info.name, "the name of the dataset", where),
        labels=tuple((name, value) for value, name in enumerate(labels, start=1)),
        ignore=None,
        modality=tuple(names.check(name, "the modality", where) for name in keys["modality"].split(",")),
        cases=cases,
        refused=refused,
        warnings=(),
        splits=None,
    )

    def read_digests(name: str) -> list[str]:
        example = examples[index_of[name]]
        return [digests.of_array(np.asarray(example[keys[part]])) for part in ("image", "label")]

    declared = tuple(builder.info.features[keys["label"]].shape[:ndim])
    grid = () if None in declared else declared, spacing
    return Source(listing, read, lambda files: grid, identity, _digests(len(cases), read_digests, remembered))


def _keys(query: str, where: str) -> dict[str, str]:
    keys = dict(KEYS)
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key not in keys:
            raise UserError(f"{where}: unknown key {key!r}; allowed are {', '.join(KEYS)}.")
        keys[key] = value
    return keys


class _Remembered:
    """What was read from the examples of a dataset, kept in the store folder for as long as its files are the same."""

    def __init__(self, store_dir: Path, identity: Callable[[], str]):
        """Ask nothing of the files yet.

        Args:
            store_dir: Folder of the stores of all tasks.
            identity: Returns the checksum of the dataset's files and of how they are read.
        """
        self._store_dir, self._identity = store_dir, identity
        self._begun = ""

    def read(self, what: str) -> Any:
        """Return what `write` kept of the files as they are; None if it kept nothing."""
        self._begun = self._identity()
        return digests.remembered_values(self._store_dir, REMEMBERED).get(f"{what} {self._begun}")

    def write(self, what: str, value: Any) -> None:
        """Keep a value that was read since `read`, unless the files have changed meanwhile."""
        if self._identity() == self._begun:
            digests.remember_values(self._store_dir, REMEMBERED, {f"{what} {self._begun}": value})


def _digests(
    count: int, read: Callable[[str], list[str]], remembered: _Remembered
) -> Callable[[CaseFiles], tuple[str, str]]:
    """The checksums of image and label of each of so many cases, which are kept once all have been read."""
    made: dict[str, list[str]] = {}

    def digests_of(files: CaseFiles) -> tuple[str, str]:
        if not made:
            made.update(remembered.read("digests") or {})
        if files.name not in made:
            made[files.name] = read(files.name)
            if len(made) == count:
                remembered.write("digests", dict(made))
        image, label = made[files.name]
        return image, label

    return digests_of


def _texts(examples: Any, keys: Mapping[str, str], remembered: _Remembered) -> list[tuple[str, str]]:
    """Name and patient of every example; the latter is empty where the dataset has none.

    To read a text, TFDS decodes the whole example, with its image and its label map.
    """
    if not keys["name"] and not keys["group"]:
        return [(f"case_{index:05d}", "") for index in range(len(examples))]
    found = remembered.read("names and patients")
    if found is None:
        found = [_texts_of(examples[index], keys, f"case_{index:05d}") for index in range(len(examples))]
        remembered.write("names and patients", found)
    return [(name, group) for name, group in found]


def _texts_of(example: Any, keys: Mapping[str, str], position: str) -> tuple[str, str]:
    def value(key: str, otherwise: str) -> Any:
        given = example[keys[key]] if keys[key] else otherwise
        # Bytes that are not UTF-8 become lone surrogates, which no name may hold.
        return given.decode(errors="surrogateescape") if isinstance(given, bytes) else given

    return names.normal(str(value("name", position))), names.normal(patient(value("group", "")))


def _cases(
    texts: Sequence[tuple[str, str]], where: str, *, grouped: bool
) -> tuple[dict[str, int], tuple[CaseFiles, ...], Refused]:
    """The position of every example by its name, and the cases in name order, without those whose name is refused.

    Raises:
        UserError: A name twice, or a group that cannot be used.
    """
    index_of: dict[str, int] = {}
    cases, refused = [], []
    for index, (name, own) in enumerate(texts):
        if name in index_of:
            raise UserError(f"{where}: several examples have the name '{names.shown(name)}'.")
        index_of[name] = index
        if reason := names.problem(name):
            refused.append((names.shown(name), f"its name {reason}"))
            continue
        group = names.check(own if grouped else name, f"the group of example {index},", where)
        cases.append(CaseFiles(name, group, (), None, patient=group, published=grouped))
    return index_of, tuple(sorted(cases, key=lambda case: case.name)), tuple(sorted(refused))


def _split(text: str) -> tuple[str, str]:
    """The dataset and the query behind its `?`; a folder's own name may hold one too."""
    marks = [index for index, character in enumerate(text) if character == "?"]
    for mark in reversed(marks[1:]):
        if (paths.expand(text[:mark]) / "dataset_info.json").exists():
            return text[:mark], text[mark + 1 :]
    dataset, _, query = text.partition("?")
    return dataset, query


def _builder(dataset: str, where: str) -> Any:
    folder = paths.expand(dataset)
    try:
        if (folder / "dataset_info.json").exists():
            return tfds.builder_from_directory(str(folder))
        return tfds.core.read_only_builder.builder_from_files(dataset)
    except Exception as error:  # TFDS raises its own and others' errors; all mean that it is not there
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{where}: no prepared TFDS dataset {dataset!r} ({reason[0]}). Give its folder (the one that holds "
            "dataset_info.json) or prepare it with file_format='array_record' first."
        ) from None


def _check(builder: Any, keys: dict[str, str], where: str) -> None:
    if builder.info.file_format is None or builder.info.file_format.value != "array_record":
        raise UserError(f"{where}: its files are {builder.info.file_format}; only array_record is read.")
    if keys["split"] not in builder.info.splits:
        raise UserError(f"{where}: no split {keys['split']!r}; it has {', '.join(builder.info.splits)}.")
    for key in ("image", "label", "name", "group"):
        if keys[key] and keys[key] not in builder.info.features:
            raise UserError(f"{where}: no feature {keys[key]!r}; it has {', '.join(builder.info.features)}.")


def _spacing(text: str, ndim: int, where: str) -> tuple[float, ...]:
    if not text:
        return (1.0,) * ndim
    try:
        spacing = tuple(float(part) for part in text.split("x"))
    except ValueError:
        spacing = ()
    if len(spacing) != ndim or min(spacing) <= 0:
        raise UserError(f"{where}: spacing is {text!r}; {ndim} positive numbers such as 1x1x3 are needed.")
    return spacing


def _raw_case(image: np.ndarray, label: np.ndarray, spacing: tuple[float, ...]) -> RawCase:
    ndim = len(spacing)
    if image.ndim == ndim:
        image = image[..., None]
    if label.ndim == ndim + 1 and label.shape[-1] == 1:
        label = label[..., 0]
    if image.ndim != ndim + 1 or label.shape != image.shape[:-1]:
        raise BadCaseError(f"its image has shape {image.shape} and its label {label.shape}; {ndim} axes are needed")
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise BadCaseError("its image holds values that are NaN or infinite")
    if (np.rint(label) != label).any() or label.min(initial=0) < 0:
        raise BadCaseError("its label holds values that are not whole numbers from 0")
    return RawCase(image, label.astype(np.int32), spacing, ())
