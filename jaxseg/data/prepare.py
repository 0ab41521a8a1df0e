"""Preparation of a task: every case is read, checked, put on the training grid, normalised and stored once."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import difflib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from jaxseg.data import normalize, resample, sources, store, volume
from jaxseg.data.layouts import CaseList, Refused
from jaxseg.data.prepared import PreparedTask, PrepareReport
from jaxseg.types import CaseFiles, CaseRecord, TaskSettings, UserError

FORMAT = 3
"""Raised whenever prepared arrays change their meaning, so that older stores are built anew."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many cases are done and how many there are."""

_MAX_VOXELS = 2**31 - 1


# ----------------------------------------------------------------------------------------------------------- prepare


def prepare_task(
    task: TaskSettings, *, ndim: int, store_dir: Path, progress: Progress | None = None, known: str = ""
) -> PreparedTask:
    """Prepare a task, or find it prepared under `store_dir/<name>-<fingerprint>`.

    Every case is checked, whatever the others are like; the bad ones are reported together.

    Args:
        task: `data`, `labels`, `spacing_mm`, the interpolations, `clip` and `normalization` decide what is stored.
        ndim: of the network, 2 or 3: in 2-D one-slice volumes lose their slice axis, unless `task.as_slices`.
        store_dir: stores of all tasks; created.
        progress: told about every case while the store is built.
        known: name of the store that the task was prepared as before, which is taken as it is where the data is a
            folder that this machine does not have.

    Raises:
        UserError: no data, unusable settings, or cases that cannot be used (all named).
    """
    if known and sources.is_elsewhere(task.data) and store.exists(store_dir / known):
        return _with_slice_warnings(_read_prepared(store_dir / known, task), task)
    report = progress or _untold
    ndim = 3 if task.as_slices else ndim
    with volume.quiet_nibabel():
        source = sources.open_source(task.data, ndim=ndim, cache=Path(store_dir))
        recipe = _recipe(task, source, ndim)
        directory = Path(store_dir) / f"{_slug(source.listing.name)}-{_fingerprint(recipe, source)}"
        if not store.exists(directory):
            waiting = f"waiting for another process that prepares {source.listing.name}"
            with store.one_writer(directory, lambda: report(waiting, 0, 1)):
                if not store.exists(directory):
                    _build(directory, source, recipe, report)
    prepared = _read_prepared(directory, task)
    if prepared.report.refused and task.bad_cases == "error":
        raise UserError(_refusal(prepared.report.refused, len(source.listing.cases), task.data))
    return _with_slice_warnings(prepared, task)


def _untold(what: str, done: int, total: int) -> None:
    """Progress that nobody follows."""


def _with_slice_warnings(prepared: PreparedTask, task: TaskSettings) -> PreparedTask:
    warnings = prepared.report.warnings + _slice_warnings(prepared.cases, task)
    return dataclasses.replace(prepared, report=dataclasses.replace(prepared.report, warnings=warnings))


def _slice_warnings(cases: Sequence[CaseRecord], task: TaskSettings) -> tuple[tuple[str, str], ...]:
    """Cases that are cut into slices although another axis has the thickest voxels."""
    axis = task.slice_axis
    if axis is None:
        return ()
    return tuple(
        (
            case.name,
            f"as_slices {task.as_slices!r}, but its voxels are longer across another axis: {case.spacing_mm} mm",
        )
        for case in cases
        if case.spacing_mm[axis] < 0.99 * max(case.spacing_mm)
    )


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
    image_interpolation: str
    label_interpolation: str
    clip: tuple[float, ...]
    noise: float


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
        image_interpolation=task.image_interpolation,
        label_interpolation=task.label_interpolation,
        clip=task.clip,
        noise=task.noise,
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
    if isinstance(wanted, str) or len(wanted) != ndim or min(wanted) < 0:
        raise UserError(
            f"spacing_mm is {wanted!r}; allowed are native, median, or {ndim} positive numbers (0: as the case has it)."
        )
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


def _build(directory: Path, source: sources.Source, recipe: _Recipe, report: Progress) -> None:
    listing = source.listing
    records: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = list(listing.refused)

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
        return {
            **{"name": listing.name, "splits": listing.splits, "warnings": listing.warnings},
            **{"cases": records, "refused": sorted(refused), "recipe": dataclasses.asdict(recipe)},
        }

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
                except MemoryError as error:
                    yield files, f"it does not fit into memory ({error})"
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
    if recipe.noise:
        image = normalize.add_noise(image, recipe.noise, np.random.default_rng(zlib.crc32(files.name.encode())))
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
    image = normalize.clip(raw.image, recipe.clip)
    if recipe.spacing_mm is None:
        return image, reference, raw.spacing_mm
    shape, spacing = resample.new_grid(reference.shape, raw.spacing_mm, recipe.spacing_mm)
    if int(np.prod(shape, dtype=object)) > _MAX_VOXELS:
        raise volume.BadCaseError(f"at spacing {recipe.spacing_mm} mm it would have {shape} voxels")
    image = resample.resize_image(image, shape, raw.spacing_mm, recipe.image_interpolation)
    return image, resample.resize_labels(reference, shape, recipe.label_interpolation), spacing


# -------------------------------------------------------------------------------------------------------------- read


def _read_prepared(directory: Path, task: TaskSettings) -> PreparedTask:
    notes = store.read_metadata(directory)
    recipe = notes["recipe"]
    records = tuple(_record(entry) for entry in notes["cases"])
    warnings = tuple((record.name, text) for record in records for text in record.warnings)
    return PreparedTask(
        name=notes["name"],
        directory=directory,
        cases=records,
        labels=tuple(name for name, _ in recipe["labels"]),
        label_values=tuple(value for _, value in recipe["labels"]),
        channels=len(recipe["modality"]),
        ndim=recipe["ndim"],
        unit=task.unit,
        modality=tuple(recipe["modality"]),
        normalization=tuple(recipe["normalization"]),
        spacing_mm=None if recipe["spacing_mm"] is None else tuple(recipe["spacing_mm"]),
        report=PrepareReport(
            warnings=tuple(("", text) for text in notes["warnings"]) + warnings,
            refused=tuple((name, reason) for name, reason in notes["refused"]),
        ),
        splits=None if notes["splits"] is None else tuple((tuple(train), tuple(val)) for train, val in notes["splits"]),
        ignore_index=None if recipe["ignore"] is None else len(recipe["labels"]) + 1,
    )


def _record(entry: Mapping[str, Any]) -> CaseRecord:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return CaseRecord(**values)
