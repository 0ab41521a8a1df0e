"""Preparation of a task: every case is read, checked, put on the training grid, normalised and stored once."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from jaxseg.data import normalize, resample, sources, store, volume
from jaxseg.data.layouts import CaseList, Refused
from jaxseg.types import CaseArrays, CaseFiles, CaseRecord, TaskSettings, UserError

FORMAT = 1
"""Raised whenever prepared arrays change their meaning, so that older stores are built anew."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many cases are done and how many there are."""

_MAX_VOXELS = 2**31 - 1


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
    channels: int
    ndim: int
    unit: str
    modality: tuple[str, ...]
    """One entry a channel."""
    normalization: tuple[str, ...]
    """One entry a channel, `auto` resolved."""
    spacing_mm: tuple[float, ...] | None
    """Of the training grid; None when every case keeps its own."""
    report: PrepareReport
    splits: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] | None
    """(train, val) names of each fold of splits_final.json."""
    ignore_index: int | None
    """Class index of voxels without a known label (nnU-Net's `ignore`), one above the last label's; None: no such."""
    windows: tuple[normalize.Window, ...] = ()
    """Statistics of the training cases, from `fit_intensity`; empty until then."""

    def record(self, name: str) -> CaseRecord:
        """The record of a case.

        Raises:
            KeyError: no case of this name.
        """
        return self.cases[self._position(name)]

    def _position(self, name: str) -> int:
        return _positions(self.cases)[name]


@functools.lru_cache(maxsize=64)
def _positions(cases: tuple[CaseRecord, ...]) -> Mapping[str, int]:
    return {record.name: position for position, record in enumerate(cases)}


# ----------------------------------------------------------------------------------------------------------- prepare


def prepare_task(task: TaskSettings, *, ndim: int, store_dir: Path, progress: Progress | None = None) -> PreparedTask:
    """Prepare a task, or find it prepared under `store_dir/<name>-<fingerprint>`.

    Every case is checked, whatever the others are like; the bad ones are reported together.

    Args:
        task: `data`, `labels`, `spacing_mm`, `unit` and `normalization` decide what is stored.
        ndim: 2 (one-slice volumes lose their slice axis) or 3.
        store_dir: stores of all tasks; created.
        progress: told about every case while the store is built.

    Raises:
        UserError: no data, unusable settings, or cases that cannot be used (all named).
    """
    with volume.quiet_nibabel():
        source = sources.open_source(task.data, ndim=ndim, cache=Path(store_dir))
        recipe = _recipe(task, source, ndim)
        directory = Path(store_dir) / f"{_slug(source.listing.name)}-{_fingerprint(recipe, source)}"
        if not store.exists(directory):
            _build(directory, source, recipe, progress)
    prepared = _read_prepared(directory, task, source.listing)
    if prepared.report.refused and task.bad_cases == "error":
        raise UserError(_refusal(prepared.report.refused, len(source.listing.cases), task.data))
    return prepared


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """Everything that decides what a store holds, apart from the voxels given."""

    ndim: int
    labels: tuple[tuple[str, int], ...]
    """Segmented labels with their values in the files, in class order."""
    known: tuple[int, ...]
    """Every value that may occur."""
    ignore: int | None
    modality: tuple[str, ...]
    normalization: tuple[str, ...]
    spacing_mm: tuple[float, ...] | None


def _recipe(task: TaskSettings, source: sources.Source, ndim: int) -> _Recipe:
    listing = source.listing
    if task.normalization not in normalize.NAMES:
        raise UserError(f"normalization is {task.normalization!r}; allowed are {', '.join(normalize.NAMES)}.")
    if task.unit not in ("mm", "voxel"):
        raise UserError(f"unit is {task.unit!r}; allowed are mm, and voxel where the true spacing is unknown.")
    return _Recipe(
        ndim=ndim,
        labels=_chosen_labels(task, listing),
        known=(0, *(value for _, value in listing.labels), *([] if listing.ignore is None else [listing.ignore])),
        ignore=listing.ignore,
        modality=listing.modality,
        normalization=normalize.per_channel(task.normalization, listing.modality),
        spacing_mm=_wanted_spacing(task.spacing_mm, source, ndim),
    )


def _chosen_labels(task: TaskSettings, listing: CaseList) -> tuple[tuple[str, int], ...]:
    if not task.labels:
        return listing.labels
    values = dict(listing.labels)
    for name in task.labels:
        if name not in values:
            near = difflib.get_close_matches(name, values, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"labels: {task.data} has no label {name!r}; it has {', '.join(map(repr, values))}.{hint}")
    if len(set(task.labels)) != len(task.labels):
        raise UserError(f"labels: {task.labels} names a label twice.")
    return tuple((name, values[name]) for name in task.labels)


def _wanted_spacing(wanted: str | tuple[float, ...], source: sources.Source, ndim: int) -> tuple[float, ...] | None:
    if wanted == "native":
        return None
    if wanted == "median":
        found = [spacing for case in source.listing.cases if (spacing := source.spacing_of(case)) is not None]
        if not found:
            return None
        return tuple(float(value) for value in np.round(np.median(np.array(found), axis=0), 6))
    if isinstance(wanted, str) or len(wanted) != ndim or min(wanted) <= 0:
        raise UserError(f"spacing_mm is {wanted!r}; allowed are native, median, or {ndim} positive numbers.")
    return tuple(float(value) for value in wanted)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._")[:60] or "task"


def _fingerprint(recipe: _Recipe, source: sources.Source) -> str:
    content = json.dumps([FORMAT, source.identity, dataclasses.asdict(recipe)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _refusal(refused: Refused, total: int, data: str) -> str:
    lines = "\n".join(f"  {name}: {reason}" for name, reason in refused)
    good = total - len([name for name, _ in refused])
    return (
        f"{len(refused)} case(s) of {data} cannot be used:\n{lines}\n"
        f"Mend or remove them, or leave them out with bad_cases='skip' ({max(good, 0)} others are fine)."
    )


# ------------------------------------------------------------------------------------------------------------- build


def _build(directory: Path, source: sources.Source, recipe: _Recipe, progress: Progress | None) -> None:
    listing = source.listing
    records: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = list(listing.refused)
    report = progress or (lambda text, done, total: None)

    def prepared_cases() -> Iterator[Mapping[str, np.ndarray]]:
        total = len(listing.cases)
        for done, (files, outcome) in enumerate(_in_parallel(source, recipe), start=1):
            report(f"preparing {listing.name}", done, total)
            if isinstance(outcome, str):
                refused.append((files.name, outcome))
            else:
                record, arrays = outcome
                records.append(dataclasses.asdict(record))
                yield arrays
        if not records:
            raise UserError(_refusal(tuple(sorted(refused)), total, listing.name))

    label_kind = np.uint8 if len(recipe.labels) < 254 else np.uint16
    features: dict[str, tuple[int, type]] = {"image": (recipe.ndim + 1, np.float32), "label": (recipe.ndim, label_kind)}
    if recipe.spacing_mm is not None:
        features["reference"] = (recipe.ndim, label_kind)

    def metadata() -> Mapping[str, Any]:
        return {"cases": records, "refused": sorted(refused), "recipe": dataclasses.asdict(recipe)}

    store.write(directory, prepared_cases, features, metadata)


def _in_parallel(
    source: sources.Source, recipe: _Recipe
) -> Iterator[tuple[CaseFiles, str | tuple[CaseRecord, Mapping[str, np.ndarray]]]]:
    """Prepare cases in threads and yield them in order; only a few are held in memory at a time.

    Threads suffice: decompressing, NumPy and SciPy release the interpreter lock.
    """
    workers = max(1, min(16, os.cpu_count() or 1))
    waiting: list[tuple[CaseFiles, concurrent.futures.Future[Any]]] = []
    todo = iter(source.listing.cases)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(waiting) < 2 * workers and (files := next(todo, None)) is not None:
                    waiting.append((files, pool.submit(_prepare_case, source, files, recipe)))
                if not waiting:
                    return
                files, future = waiting.pop(0)
                try:
                    yield files, future.result()
                except volume.BadCaseError as error:
                    yield files, str(error)
        finally:
            for _, future in waiting:
                future.cancel()


def _prepare_case(
    source: sources.Source, files: CaseFiles, recipe: _Recipe
) -> tuple[CaseRecord, Mapping[str, np.ndarray]]:
    """Check and prepare one case.

    Raises:
        BadCaseError: it cannot be used.
    """
    raw = source.read(files)
    if raw.image.shape[-1] != len(recipe.modality):
        raise volume.BadCaseError(
            f"its image has {raw.image.shape[-1]} channel(s) and dataset.json names {len(recipe.modality)}"
        )
    reference = _class_indices(raw.label, recipe)
    image, label, spacing = _on_training_grid(raw, reference, recipe)
    image, contrast = normalize.normalize_case(image, recipe.normalization)
    counts = np.bincount(reference.ravel(), minlength=len(recipe.labels) + 1)
    warnings = raw.warnings + contrast
    if not counts[1 : len(recipe.labels) + 1].any():
        warnings += ("it holds none of the labels",)
    lost = [name for index, (name, _) in enumerate(recipe.labels, 1) if counts[index] and not (label == index).any()]
    if lost:
        warnings += (f"the training grid is too coarse for {', '.join(lost)}: no voxel of it is left",)
    record = CaseRecord(
        name=files.name,
        group=files.group,
        shape=label.shape,
        spacing_mm=spacing,
        own_shape=reference.shape,
        own_spacing_mm=raw.spacing_mm,
        voxels_per_label=tuple(int(count) for count in counts[: len(recipe.labels) + 1]),
        warnings=warnings,
    )
    arrays = {"image": np.ascontiguousarray(image, dtype=np.float32), "label": np.ascontiguousarray(label)}
    if recipe.spacing_mm is not None:
        arrays["reference"] = np.ascontiguousarray(reference)
    return record, arrays


def _class_indices(label: Num[np.ndarray, " *spatial"], recipe: _Recipe) -> Num[np.ndarray, " *spatial"]:
    """File values to class indices: known labels that are not segmented become background, `ignore` the last index."""
    found = np.unique(label)
    unknown = sorted(set(found.tolist()) - set(recipe.known))
    if unknown:
        raise volume.BadCaseError(
            f"its label holds the value(s) {', '.join(map(str, unknown[:10]))}, which dataset.json does not name "
            f"(it names {', '.join(map(str, recipe.known))})"
        )
    table = np.zeros(max(recipe.known) + 1, dtype=np.uint8 if len(recipe.labels) < 254 else np.uint16)
    for index, (_, value) in enumerate(recipe.labels, start=1):
        table[value] = index
    if recipe.ignore is not None:
        table[recipe.ignore] = len(recipe.labels) + 1
    return table[label]


def _on_training_grid(
    raw: sources.RawCase, reference: np.ndarray, recipe: _Recipe
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    if recipe.spacing_mm is None:
        return raw.image, reference, raw.spacing_mm
    shape, spacing = resample.new_grid(reference.shape, raw.spacing_mm, recipe.spacing_mm)
    if int(np.prod(shape, dtype=object)) > _MAX_VOXELS:
        raise volume.BadCaseError(f"at spacing {recipe.spacing_mm} mm it would have {shape} voxels")
    return resample.resize_image(raw.image, shape, raw.spacing_mm), resample.resize_labels(reference, shape), spacing


# -------------------------------------------------------------------------------------------------------------- read


def _read_prepared(directory: Path, task: TaskSettings, listing: CaseList) -> PreparedTask:
    notes = store.read_metadata(directory)
    recipe = notes["recipe"]
    records = tuple(_record(entry) for entry in notes["cases"])
    warnings = tuple((record.name, text) for record in records for text in record.warnings)
    return PreparedTask(
        name=listing.name,
        directory=directory,
        cases=records,
        labels=tuple(name for name, _ in recipe["labels"]),
        channels=len(recipe["modality"]),
        ndim=recipe["ndim"],
        unit=task.unit,
        modality=tuple(recipe["modality"]),
        normalization=tuple(recipe["normalization"]),
        spacing_mm=None if recipe["spacing_mm"] is None else tuple(recipe["spacing_mm"]),
        report=PrepareReport(
            warnings=tuple(("", text) for text in listing.warnings) + warnings,
            refused=tuple((name, reason) for name, reason in notes["refused"]),
        ),
        splits=listing.splits,
        ignore_index=None if recipe["ignore"] is None else len(recipe["labels"]) + 1,
    )


def _record(entry: Mapping[str, Any]) -> CaseRecord:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return CaseRecord(**values)


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
