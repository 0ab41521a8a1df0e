"""Preparation of a task: every case is read, checked, put on the training grid, normalised and stored once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from jaxseg import machine, streams
from jaxseg.data import digests
from jaxseg.data.cases import CaseFiles, CaseList, CaseRecord, RawCase, Refused, Source
from jaxseg.data.formats import sources
from jaxseg.data.formats.layouts import WITHOUT_LABELS
from jaxseg.data.prepared import parallel, store
from jaxseg.data.prepared.listing import listing_of
from jaxseg.data.prepared.recipe import Recipe, fingerprint, make_recipe, recipe_like
from jaxseg.data.prepared.task import PreparedTask, read_prepared
from jaxseg.data.volumes import normalize, resample, volume
from jaxseg.data.volumes.training_grid import on_grid
from jaxseg.manifest import DamagedError
from jaxseg.regions import mask
from jaxseg.settings import TaskSettings
from jaxseg.types import UserError

Progress = Callable[[str, int, int], None]
"""Called with the current activity, the number of finished cases and the number of all cases."""

_MAX_VOXELS = 2**31 - 1
_MOST_WORKERS = 16
_MEMORY_SHARE = 0.4
"""Share of the free memory for cases in preparation. The rest is for written data and other processes."""
_NAMED = 20
"""Refused cases that a message names."""
_WORKING = 28, 8
_DONE = 2, 4
"""Bytes per voxel, and per voxel and channel, that a case takes while it is prepared and afterwards."""


# ----------------------------------------------------------------------------------------------------------- prepare


def prepare_task(
    task: TaskSettings,
    *,
    ndim: int,
    store_dir: Path,
    progress: Progress | None = None,
    known: str = "",
    like: PreparedTask | None = None,
) -> PreparedTask:
    """Prepare a task, or find it already prepared under `store_dir/<name>-<fingerprint>`.

    Every case is checked, even after another has failed; all unusable cases are reported together.

    Args:
        task: Settings; `data`, `labels`, `spacing_mm`, the interpolations, `clip` and `normalization` determine the
            store.
        ndim: Number of axes of the network, 2 or 3. In 2-D, one-slice volumes lose their slice axis unless
            `task.as_slices`.
        store_dir: Folder of the stores of all tasks; created if missing.
        progress: Called for every case while the store is built.
        known: Name of the store from an earlier preparation of the task, which is used as it is if the data is a folder
            that this machine does not have.
        like: A prepared task whose networks are to segment these cases, which take its labels by their names, its grid
            and its normalisation in place of the settings'.

    Raises:
        UserError: There is no data, settings are unusable, or cases cannot be used (all are named).
    """
    if known and sources.is_elsewhere(task.data) and store.exists(store_dir / known):
        return open_prepared(task, store_dir=store_dir, name=known)
    report = progress or _untold
    ndim = 3 if task.as_slices else ndim
    with volume.quiet_nibabel():
        source = sources.open_source(task.data, ndim=ndim, cache=Path(store_dir), labelled=task.labelled)
        recipe = make_recipe(task, source, ndim) if like is None else recipe_like(task, source, like)
        directory = _directory(Path(store_dir), source.listing.name, fingerprint(recipe, source.identity(report)))
        if not store.exists(directory) or _why_anew(directory, source, recipe, task):
            waiting = f"waiting for another process that prepares {source.listing.name}"
            with store.one_writer(directory, lambda: report(waiting, 0, 1)):
                if store.exists(directory) and (why := _why_anew(directory, source, recipe, task)):
                    warnings.warn(f"{why}; {directory.name} is prepared anew", stacklevel=2)
                    store.remove(directory)
                if not store.exists(directory):
                    _build(directory, source, recipe, report)
    prepared = read_prepared(directory, task, warnings=source.listing.warnings)
    if prepared.report.refused and task.bad_cases == "error":
        raise UserError(_refusal(_reasons_now(prepared.report.refused, source, recipe), source.listing, task.data))
    return _with_slice_warnings(prepared, task)


def _reasons_now(refused: Refused, source: Source, recipe: Recipe) -> Refused:
    """Why cases cannot be used, as their files are now: a store may be of an earlier folder, or of other packages."""
    files, reasons = {case.name: case for case in source.listing.cases}, dict(refused)
    for name in files.keys() & reasons.keys():
        try:
            _prepare_case(source, files[name], recipe)
        except volume.BadCaseError as error:
            reasons[name] = str(error)
    return tuple(sorted(reasons.items()))


def _why_anew(directory: Path, source: Source, recipe: Recipe, task: TaskSettings) -> str:
    """Why a store has to be prepared anew: it is damaged, or a case can be read that could not; empty if for neither.

    Cases that were left out are read again only where they stop the study. Where they may be skipped, what a store
    holds does not change under those who use it.
    """
    if found := store.damage(directory):
        return f"{found[0]} is damaged: {found[1]}"
    if task.bad_cases == "error":
        refused = dict(read_prepared(directory, task).report.refused)
        for files in source.listing.cases:
            if files.name in refused:
                with contextlib.suppress(volume.BadCaseError):
                    _prepare_case(source, files, recipe)
                    return f"{files.name} can be read, which it could not ({refused[files.name]})"
    return ""


def open_prepared(task: TaskSettings, *, store_dir: Path, name: str) -> PreparedTask:
    """Open a task as it was prepared earlier, whatever its data is now: neither its folder nor its files are read.

    Args:
        task: Settings, of which `unit` and `as_slices` are used.
        store_dir: Folder of the stores of all tasks.
        name: Name of the store's folder, `prepared.directory.name`.

    Raises:
        UserError: There is no such store, or it is damaged.
    """
    directory = Path(store_dir) / name
    if name != directory.name or not store.exists(directory):
        raise UserError(
            f"{store_dir} holds no prepared store {name!r}. Put it back, or set runtime.store_dir to the folder that "
            "holds it."
        )
    if found := store.damage(directory):
        mend = f"put {directory} back as it was, or remove it and start again where the data is"
        raise DamagedError(*found, mend)
    return _with_slice_warnings(read_prepared(directory, task), task)


def _directory(store_dir: Path, name: str, mark: str) -> Path:
    """The folder of a store: one that was made of the same inputs under any name, or a new one."""
    here = store_dir / f"{_slug(name)}-{mark}"
    others = sorted(path for path in store_dir.glob(f"*-{mark}") if store.exists(path))
    return here if store.exists(here) or not others else others[0]


def _untold(what: str, done: int, total: int) -> None:
    """Progress that nobody follows."""


def _with_slice_warnings(prepared: PreparedTask, task: TaskSettings) -> PreparedTask:
    warnings = prepared.report.warnings + _slice_warnings(prepared.cases, task)
    return dataclasses.replace(prepared, report=dataclasses.replace(prepared.report, warnings=warnings))


def _slice_warnings(cases: Sequence[CaseRecord], task: TaskSettings) -> tuple[tuple[str, str], ...]:
    """Cases that are cut into slices although another axis has the thickest voxels, and slices taken for volumes."""
    axis = task.slice_axis
    if axis is None:
        flat = any(all(size == 1 for size in sizes) for sizes in zip(*(case.own_shape for case in cases), strict=True))
        told = "every case is a single slice: with model.ndim = 2 they are images of two axes"
        return (("", told),) if flat else ()
    return tuple(
        (
            case.name,
            f"as_slices {task.as_slices!r}, but its voxels are longer across another axis: {case.spacing_mm} mm",
        )
        for case in cases
        if case.spacing_mm[axis] < 0.99 * max(case.spacing_mm)
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._")[:60] or "task"


def _refusal(refused: Refused, listing: CaseList, data: str) -> str:
    lines = "\n".join(f"  {name}: {reason}" for name, reason in refused[:_NAMED])
    if more := len(refused[_NAMED:]):
        lines += f"\n  ... and {more} more; with bad_cases='skip' results/prepared_*.csv of a study lists them all"
    good = len({case.name for case in listing.cases} - dict(refused).keys())
    return (
        f"{len(refused)} case(s) of {data} cannot be used:\n{lines}\n"
        f"Mend or remove them, or leave them out with bad_cases='skip' ({good} others are fine)."
        + (f" {WITHOUT_LABELS}" if any("label" in reason and "exist" in reason for _, reason in refused) else "")
    )


# ------------------------------------------------------------------------------------------------------------- build


def _build(directory: Path, source: Source, recipe: Recipe, report: Progress) -> None:
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
            raise UserError(_refusal(tuple(sorted(refused)), listing, listing.name))

    label_kind = np.uint8 if len(recipe.labels) < 254 else np.uint16
    features: dict[str, tuple[int, type]] = {"image": (recipe.ndim + 1, np.float32), "label": (recipe.ndim, label_kind)}
    if recipe.spacing_mm is not None:
        features["reference"] = (recipe.ndim, label_kind)

    def metadata() -> Mapping[str, Any]:
        return {
            **{"name": listing.name, "warnings": listing.warnings},
            **{"cases": records, "refused": sorted(refused), "recipe": dataclasses.asdict(recipe)},
            "listing": listing_of(source).to_json(),
        }

    store.write(directory, prepared_cases, features, metadata)


def _in_parallel(
    source: Source, recipe: Recipe
) -> Iterator[tuple[CaseFiles, str | tuple[CaseRecord, Mapping[str, np.ndarray]]]]:
    """Prepare cases in threads and yield them in order, each with what came of it or with why it cannot be used."""
    largest = 0
    budget = int(_MEMORY_SHARE * machine.free_bytes())

    def cost_of(files: CaseFiles) -> parallel.Cost:
        shape, spacing = source.grid_of(files) or ((), ())
        if not shape:  # as large as those before, and the first one alone
            return _cost(largest, recipe) if largest else parallel.Cost(budget, 0)
        voxels = math.prod(shape)
        if recipe.spacing_mm is not None:
            voxels = max(voxels, math.prod(resample.new_grid(shape, spacing, recipe.spacing_mm)[0]))
        return _cost(voxels, recipe)

    made = parallel.in_order(
        lambda files: _prepare_case(source, files, recipe),
        source.listing.cases,
        cost_of=cost_of,
        workers=min(_MOST_WORKERS, machine.cores()),
        budget=budget,
    )
    for files, future in made:
        try:
            record, arrays = future.result()
            largest = max(largest, math.prod(record.own_shape), math.prod(record.shape))
            yield files, (record, arrays)
        except volume.BadCaseError as error:
            yield files, str(error)
        except MemoryError as error:
            raise UserError(
                f"{files.name} of {source.listing.name} does not fit into memory ({error}). Prepare on a machine with "
                "more memory, choose a coarser spacing_mm, or remove the case."
            ) from None


def _cost(voxels: int, recipe: Recipe) -> parallel.Cost:
    """Memory that a case takes, as it was measured for the normalisations and interpolations that take most."""
    channels = len(recipe.modality)
    return parallel.Cost(voxels * (_WORKING[0] + _WORKING[1] * channels), voxels * (_DONE[0] + _DONE[1] * channels))


def _prepare_case(source: Source, files: CaseFiles, recipe: Recipe) -> tuple[CaseRecord, Mapping[str, np.ndarray]]:
    """Check and prepare one case.

    Raises:
        BadCaseError: It cannot be used.
    """
    raw = _read(source, files, len(recipe.modality))
    image_sha256, label_sha256 = source.digests_of(files)
    # A single slice has one checksum, whether it is taken as an image or as a volume that is cut into slices.
    spatial = tuple(axis for axis, size in enumerate(raw.image.shape[:-1]) if size == 1)
    voxels_sha256 = digests.of_array(raw.image.squeeze(spatial).astype("<f4", copy=False))
    reference = _class_indices(raw.label, recipe)
    shape, spacing = _training_grid(raw, recipe)
    label = resample.resize_labels(reference, shape)
    names = recipe.normalization_of(files.part)
    image, inside = on_grid(raw.image, raw.spacing_mm, shape, clip=recipe.clip, names=names)
    own_spacing, warnings = raw.spacing_mm, raw.warnings
    del raw  # normalising needs several times the memory of an image
    if recipe.noise:
        image = normalize.add_noise(image, recipe.noise, streams.host_rng(files.name))
    image, contrast = normalize.normalize_case(image, names, inside)
    counts = np.sum([np.bincount(plane.ravel(), minlength=len(recipe.labels) + 2) for plane in reference], axis=0)
    held = tuple(int(sum(counts[value] for value in classes)) for _, classes in recipe.structures)
    warnings += contrast
    if recipe.labels and not counts[1 : len(recipe.labels) + 1].any():
        warnings += ("it holds none of the labels",)
    lost = [
        name
        for (name, classes), voxels in zip(recipe.structures, held, strict=True)
        if voxels and not mask(label, classes).any()
    ]
    if lost:
        warnings += (f"the training grid is too coarse for {', '.join(lost)}: no voxel of it is left",)
    record = CaseRecord(
        name=files.name,
        group=files.group,
        shape=label.shape,
        spacing_mm=spacing,
        own_shape=reference.shape,
        own_spacing_mm=own_spacing,
        voxels_per_label=(int(counts[0]), *held),
        voxels_per_value=tuple(int(count) for count in counts[: len(recipe.labels) + 1]) if recipe.regions else (),
        warnings=warnings,
        image_sha256=image_sha256,
        label_sha256=label_sha256,
        voxels_sha256=voxels_sha256,
        part=files.part,
        patient=files.patient,
        published=files.published,
    )
    arrays = {"image": np.ascontiguousarray(image, dtype=np.float32), "label": np.ascontiguousarray(label)}
    if recipe.spacing_mm is not None:
        arrays["reference"] = np.ascontiguousarray(reference)
    return record, arrays


def _read(source: Source, files: CaseFiles, channels: int) -> RawCase:
    try:
        raw = source.read(files)
    except volume.BadCaseError as error:
        if isinstance(error.__context__, MemoryError):  # says something about this machine and nothing about the case
            raise MemoryError(str(error)) from error
        raise
    volume.check_channels(raw.image, channels)
    return raw


def _class_indices(label: Num[np.ndarray, " *spatial"], recipe: Recipe) -> Num[np.ndarray, " *spatial"]:
    """File values to class indices: known labels that are not segmented become background, `ignore` the last index."""
    classes = {value: index for index, (_, value) in enumerate(recipe.labels, start=1)}
    if recipe.ignore is not None:
        classes[recipe.ignore] = len(recipe.labels) + 1
    kind = np.uint8 if len(recipe.labels) < 254 else np.uint16
    return volume.replace_values(label, {value: classes.get(value, 0) for value in recipe.known}, kind)


def _training_grid(raw: RawCase, recipe: Recipe) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing of a case on the training grid."""
    if recipe.spacing_mm is None:
        return raw.image.shape[:-1], raw.spacing_mm
    shape, spacing = resample.new_grid(raw.image.shape[:-1], raw.spacing_mm, recipe.spacing_mm)
    if int(np.prod(shape, dtype=object)) > _MAX_VOXELS:
        raise volume.BadCaseError(f"at spacing {recipe.spacing_mm} mm it would have {shape} voxels")
    return shape, spacing
