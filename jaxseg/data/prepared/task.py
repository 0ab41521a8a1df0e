"""A prepared task: what its store holds, and its cases in memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.cases import CaseArrays, CaseRecord, Folds, Refused
from jaxseg.data.prepared import doubts, listing, store
from jaxseg.data.volumes import normalize
from jaxseg.settings import TaskSettings
from jaxseg.types import UserError


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """What the preparation found."""

    warnings: tuple[tuple[str, str], ...]
    """(case, what is doubtful); the case is empty where the whole task is meant."""
    refused: Refused
    """(case, reason) of the cases that were left out."""


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task whose cases lie in a finished store."""

    name: str
    directory: Path
    cases: tuple[CaseRecord, ...]
    """In name order."""
    labels: tuple[str, ...]
    """Names, background left out: the class index of `labels[i]` is i + 1."""
    label_values: tuple[int, ...]
    """What the files hold for each of them."""
    channels: int
    ndim: int
    """Of a case; 3 where volumes are taken slice by slice."""
    unit: str
    modality: tuple[str, ...]
    """One entry a channel."""
    normalization: tuple[str, ...]
    """One entry a channel, `auto` resolved."""
    spacing_mm: tuple[float, ...] | None
    """Of the training grid; None when every case keeps its own."""
    report: PrepareReport
    splits: Folds | None
    """(train, val) names of each fold of splits_final.json."""
    ignore_index: int | None
    """Class index of voxels without a known label (nnU-Net's `ignore`), one above the last label's; None: no such."""
    windows: tuple[normalize.Window, ...] = ()
    """Statistics of the training cases, from `fit_intensity`; empty until then."""
    listing: listing.Listing = listing.EMPTY
    """The data as it was when the store was made, also the cases that could not be used."""

    def record(self, name: str) -> CaseRecord:
        """The record of a case.

        Raises:
            KeyError: no case of this name.
        """
        return self.cases[self._position(name)]

    def _position(self, name: str) -> int:
        return _positions(self.cases)[name]


def read_prepared(directory: Path, task: TaskSettings, *, warnings: Sequence[str] | None = None) -> PreparedTask:
    """A task from its finished store.

    Args:
        directory: of the store.
        task: its unit is used.
        warnings: what the data folder warns of now; None for what it warned of when the store was made.

    Raises:
        UserError: the store, which may be a stranger's, has names that cannot be used.
    """
    notes = store.read_metadata(directory)
    recipe = notes["recipe"]
    labels = tuple(name for name, _ in recipe["labels"])
    found = [_record(entry) for entry in notes["cases"]]
    doubts.check_names(directory, [(record.name, record.group) for record in found], (notes["name"], *labels))
    records, doubtful = doubts.of_task(found, labels, task.unit)
    said = notes["warnings"] if warnings is None else warnings
    return PreparedTask(
        name=notes["name"],
        directory=directory,
        cases=records,
        labels=labels,
        label_values=tuple(value for _, value in recipe["labels"]),
        channels=len(recipe["modality"]),
        ndim=recipe["ndim"],
        unit=task.unit,
        modality=tuple(recipe["modality"]),
        normalization=tuple(recipe["normalization"]),
        spacing_mm=None if recipe["spacing_mm"] is None else tuple(recipe["spacing_mm"]),
        report=PrepareReport(
            warnings=tuple(("", text) for text in said) + doubtful,
            refused=tuple((name, reason) for name, reason in notes["refused"]),
        ),
        splits=listing.splits_from_json(notes["listing"]["splits"]),
        listing=listing.from_json(notes["listing"]),
        ignore_index=None if recipe["ignore"] is None else len(recipe["labels"]) + 1,
    )


def _record(entry: Mapping[str, Any]) -> CaseRecord:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return CaseRecord(**values)


@functools.lru_cache(maxsize=64)
def _positions(cases: tuple[CaseRecord, ...]) -> Mapping[str, int]:
    return {record.name: position for position, record in enumerate(cases)}


def load_case(prepared: PreparedTask, name: str) -> CaseArrays:
    """One case from the store, in memory.

    Raises:
        KeyError: no case of this name.
        ValueError: its normalisation needs statistics of the training cases, see `fit_intensity`.
    """
    return load_cases(prepared, (name,))[0]


def load_cases(prepared: PreparedTask, names: Sequence[str]) -> list[CaseArrays]:
    """Several cases from the store, in this order; see `load_case`."""
    if "dataset" in prepared.normalization and not prepared.windows:
        raise ValueError("normalization `dataset` needs statistics of the training cases: call fit_intensity first")
    positions = _positions(prepared.cases)
    read = store.read_cases(prepared.directory, [positions[name] for name in names])
    return [_case(prepared, prepared.cases[positions[name]], arrays) for name, arrays in zip(names, read, strict=True)]


def _case(prepared: PreparedTask, record: CaseRecord, arrays: Mapping[str, np.ndarray]) -> CaseArrays:
    image = arrays["image"]
    if prepared.windows:
        image = normalize.apply_windows(image, prepared.normalization, prepared.windows)
    return CaseArrays(record, image, arrays["label"], arrays.get("reference", arrays["label"]))


def fit_intensity(prepared: PreparedTask, train: Sequence[str]) -> PreparedTask:
    """The task with intensity statistics of these training cases, where its normalisation uses any.

    Neither images nor labels of other cases are looked at.
    """
    if "dataset" not in prepared.normalization:
        return prepared
    positions = _positions(prepared.cases)
    samples = []
    for name in sorted(train):
        (arrays,) = store.read_cases(prepared.directory, [positions[name]])
        samples.append(normalize.sample_foreground(arrays["image"], arrays["label"]))
    if not sum(len(sample) for sample in samples):
        raise UserError("normalization `dataset`: none of the training cases holds a voxel of any label.")
    return dataclasses.replace(prepared, windows=normalize.fit_windows(samples))
