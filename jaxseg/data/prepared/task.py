"""A prepared task: the contents of its store, and its cases in memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.cases import CaseArrays, CaseRecord, Folds, NamedRegion, Part, Refused, of_part
from jaxseg.data.prepared import doubts, listing, store
from jaxseg.data.volumes import normalize
from jaxseg.regions import Regions, count_outputs
from jaxseg.settings import TaskSettings
from jaxseg.types import UserError

_UNUSED: normalize.Window = (0.0, 0.0, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """Findings of the preparation."""

    warnings: tuple[tuple[str, str], ...]
    """Pairs (case, doubt); the case is empty if the doubt is about the whole task."""
    refused: Refused
    """Pairs (case, reason) of the cases that were left out."""


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task whose cases are in a finished store."""

    name: str
    directory: Path
    cases: tuple[CaseRecord, ...]
    """Records of the cases in name order."""
    labels: tuple[str, ...]
    """Names of what is segmented, without the background: labels, of which `labels[i]` has the class index i + 1, or
    regions."""
    label_values: tuple[int, ...]
    """Value in the files of each class of the label maps."""
    channels: int
    ndim: int
    """Number of axes of a case; 3 if volumes are taken slice by slice."""
    unit: str
    modality: tuple[str, ...]
    """Modality of each channel."""
    normalization: tuple[str, ...]
    """Normalisation of each channel, with `auto` resolved; of a pooled task, those of each part, one part after
    another."""
    spacing_mm: tuple[float, ...] | None
    """Voxel sizes of the training grid; None if every case keeps its own."""
    report: PrepareReport
    splits: Folds | None
    """Pairs (train, val) of case names for each fold of splits_final.json."""
    ignore_index: int | None
    """Class index of voxels without a known label (nnU-Net's `ignore`): one above the last label's; None if unused."""
    windows: tuple[normalize.Window, ...] = ()
    """Intensity statistics of the training cases, from `fit_intensity`, in the order of `normalization`; empty until
    then."""
    listing: listing.Listing = listing.EMPTY
    """The data at the time when the store was made, including the cases that could not be used."""
    regions: Regions | None = None
    """What regions are made of; None if labels are segmented."""
    class_names: tuple[str, ...] = ()
    """What pictures call each class of the label maps."""
    parts: tuple[Part, ...] = ()
    """The parts of a pooled task; empty where its cases are from one source."""

    @property
    def classes(self) -> int:
        """Number of classes of the label maps, background included; the next index marks voxels without a label."""
        return len(self.label_values) + 1

    @property
    def outputs(self) -> int:
        """Number of outputs of a network: the classes, background included, or the regions."""
        return count_outputs(len(self.labels), self.regions)

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The classes of the label map that each of `labels` is made of."""
        return tuple((index,) for index in range(1, self.classes)) if self.regions is None else self.regions.members

    def record(self, name: str) -> CaseRecord:
        """Return the record of a case.

        Raises:
            KeyError: There is no case of this name.
        """
        return self.cases[self.positions[name]]

    def annotated(self, record: CaseRecord) -> tuple[bool, ...]:
        """Return for each class, background first, whether the part that a case is from annotates it."""
        if not self.parts:
            return (True,) * (len(self.labels) + 1)
        own = dict(self.parts[record.part].labels)
        return (True, *(name in own for name in self.labels))

    def part_table(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """Return name, number of cases and annotated labels of each part of a pooled task."""
        return [
            (
                part.name,
                sum(record.part == place for record in self.cases),
                tuple(name for name in self.labels if name in dict(part.labels)),
            )
            for place, part in enumerate(self.parts)
        ]

    @property
    def is_partial(self) -> bool:
        """Whether some case lacks the annotation of a label that the task has."""
        return not all(all(self.annotated(record)) for record in self.cases)

    @functools.cached_property
    def positions(self) -> Mapping[str, int]:
        """The place of each case in the store, by name."""
        return {record.name: position for position, record in enumerate(self.cases)}


def read_prepared(directory: Path, task: TaskSettings, *, warnings: Sequence[str] | None = None) -> PreparedTask:
    """Read a task from its finished store.

    Args:
        directory: Directory of the store.
        task: Settings, of which the unit is used.
        warnings: Current warnings of the data folder; None for those at the time when the store was made.

    Raises:
        UserError: The store, which may be a stranger's, has names that cannot be used.
    """
    notes = store.read_metadata(directory)
    recipe = notes["recipe"]
    values = tuple(value for _, value in recipe["labels"])
    named = listing.regions_from_json(recipe.get("regions", ()))  # stores made before there were regions have none
    labels = tuple(region.name for region in named) or tuple(name for name, _ in recipe["labels"])
    regions = region_classes(named, values)
    found = [_record(entry) for entry in notes["cases"]]
    doubts.check_names(directory, [(record.name, record.group) for record in found], (notes["name"], *labels))
    records, doubtful = doubts.of_task(found, labels, task.unit)
    said = notes["warnings"] if warnings is None else warnings
    return PreparedTask(
        name=notes["name"],
        directory=directory,
        cases=records,
        labels=labels,
        label_values=values,
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
        regions=regions,
        class_names=_class_names(recipe["labels"], named),
        parts=listing.parts_from_json(recipe.get("parts", ())),
    )


def region_classes(regions: Sequence[NamedRegion], values: Sequence[int]) -> Regions | None:
    """Return regions by class instead of value; None of no regions.

    Args:
        regions: The regions, by their values in files.
        values: The value of each class from 1 on.
    """
    index = {value: place for place, value in enumerate(values, start=1)}
    if not regions:
        return None
    members = tuple(tuple(index[value] for value in region.values) for region in regions)
    return Regions(members, tuple(index[region.written] for region in regions))


def _class_names(labels: Sequence[tuple[str, int]], regions: Sequence[NamedRegion]) -> tuple[str, ...]:
    """Names of the classes, with the regions around each: the whole of a region has several colours in a picture."""
    if not regions:
        return tuple(name for name, _ in labels)
    around = [", ".join(region.name for region in regions if value in region.values) for _, value in labels]
    return tuple(f"{name} ({within})" for (name, _), within in zip(labels, around, strict=True))


def _record(entry: Mapping[str, Any]) -> CaseRecord:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    # A finished study's store may be older than these two fields.
    known = {"patient": entry["group"], "published": entry["group"] != entry["name"]}
    return CaseRecord(**known | values)


def load_case(prepared: PreparedTask, name: str) -> CaseArrays:
    """Load one case from the store into memory.

    Raises:
        KeyError: There is no case of this name.
        ValueError: The normalisation needs statistics of the training cases; see `fit_intensity`.
    """
    return load_cases(prepared, (name,))[0]


def load_cases(prepared: PreparedTask, names: Sequence[str]) -> list[CaseArrays]:
    """Load several cases from the store, in this order; see `load_case`."""
    if "dataset" in prepared.normalization and not prepared.windows:
        raise ValueError("normalization `dataset` needs statistics of the training cases: call fit_intensity first")
    positions = prepared.positions
    read = store.read_cases(prepared.directory, [positions[name] for name in names])
    return [_case(prepared, prepared.cases[positions[name]], arrays) for name, arrays in zip(names, read, strict=True)]


def _case(prepared: PreparedTask, record: CaseRecord, arrays: Mapping[str, np.ndarray]) -> CaseArrays:
    image = arrays["image"]
    if prepared.windows:
        names = of_part(prepared.normalization, record.part, prepared.channels)
        windows = of_part(prepared.windows, record.part, prepared.channels)
        image = normalize.apply_windows(image, names, windows)
    return CaseArrays(record, image, arrays["label"], arrays.get("reference", arrays["label"]))


def fit_intensity(prepared: PreparedTask, train: Sequence[str]) -> PreparedTask:
    """Return the task with the intensity statistics of these training cases, if its normalisation uses any.

    They are those of the foreground, without voxels to ignore, or, of a task without labels, of all voxels; of a pooled
    task, each part has its own. Neither images nor labels of other cases are read.
    """
    if "dataset" not in prepared.normalization:
        return prepared
    windows: list[normalize.Window] = []
    for part in range(max(1, len(prepared.parts))):
        names = of_part(prepared.normalization, part, prepared.channels)
        own = [name for name in sorted(train) if prepared.record(name).part == part]
        # A part without such a channel has windows that nothing uses, so that places in the tuple stay what they are.
        found = _part_windows(prepared, own) if "dataset" in names else (_UNUSED,) * prepared.channels
        windows += found
    return dataclasses.replace(prepared, windows=tuple(windows))


def _part_windows(prepared: PreparedTask, train: Sequence[str]) -> tuple[normalize.Window, ...]:
    """The intensity statistics of cases from one part."""
    positions = prepared.positions
    samples = []
    for name in train:
        (arrays,) = store.read_cases(prepared.directory, [positions[name]])
        # Voxels to ignore have the class after the last label's: what they show may well be background.
        label = arrays["label"]
        inside = (label > 0) & (label < prepared.classes) if prepared.labels else np.ones(label.shape, bool)
        samples.append(normalize.sample_foreground(arrays["image"], inside))
    if not sum(len(sample) for sample in samples):
        of = f" of {prepared.parts[prepared.record(train[0]).part].name}" if prepared.parts and train else ""
        raise UserError(f"normalization `dataset`: none of the training cases{of} holds a voxel of any label.")
    return normalize.fit_windows(samples)
