"""Validates a job's runs while they train: the DSC of whole cases on the training grid, from counts of voxels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from jaxseg import data, seeds, validation
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays
from jaxseg.models import Network
from jaxseg.regions import Regions, decide
from jaxseg.settings import EvaluateSettings
from jaxseg.study.plan.jobs import Job, Program
from jaxseg.study.predict import make_predict_slabs
from jaxseg.types import Frozen, Params


def dsc_from_counts(counts: Integer[np.ndarray, "*any label 3"]) -> Float[np.ndarray, "*any label"]:
    """Computes DSC of each label from its voxels in both maps, the reference and the prediction; NaN if it has none."""
    both, truth, predicted = np.moveaxis(counts, -1, 0)
    return np.where(truth > 0, 2.0 * both / np.where(truth > 0, truth + predicted, 1), np.nan)


ON_DEVICE_SHARE = 0.1
"""Share of a device's memory that validation may use to stitch and count there."""


@functools.lru_cache(maxsize=8)  # of one network, whatever trains it
def mapped_counts(
    network: Network,
    window: tuple[int, ...],
    slice_axis: int | None,
    settings: EvaluateSettings,
    plan: seeds.SeedPlan,
    regions: Regions | None = None,
) -> Callable[..., Any]:
    """Maps `validation.make_case_counts` of a network over runs; compiled on first use."""
    made = validation.make_case_counts(
        network,
        patch=window,
        # Runs one after another are for processors; there windows one after another are faster too.
        window_batch=1 if plan.strategy == "loop" else settings.window_batch,
        classes=network.classes if regions is None else regions.classes + 1,
        slice_axis=slice_axis,
        regions=regions,
    )
    # Side by side, runs would each have a copy of their own cases: there, all of them count all cases.
    return seeds.map_seeds(made, plan=plan, shared=(1, 2) if plan.strategy == "loop" else (1, 2, 3))


def counts_on_device(
    program: Program, *, num_runs: int, shapes: Sequence[Sequence[int]], plan: seeds.SeedPlan, device_bytes: int
) -> bool:
    """Returns whether cases are stitched and counted on the device, as they are if there is memory for it."""
    task = program.task
    sums = validation.sums_held(program.map_classes, program.regions)
    common, own = validation.canvas_bytes(shapes, task.window, channels=program.channels, classes=sums)
    at_once = 1 if plan.strategy == "loop" else plan.padded(num_runs) // len(plan.devices)
    return common + at_once * own <= ON_DEVICE_SHARE * device_bytes


Counter = Callable[[Params, Frozen], Integer[np.ndarray, "run case label 3"]]
"""Counts the voxels of cases by every run; see `validation.count_overlaps`."""


def make_counter(
    job: Job,
    cases: Sequence[CaseArrays],
    of_run: Bool[np.ndarray, "run case"],
    settings: EvaluateSettings,
    plan: seeds.SeedPlan,
    *,
    device_bytes: int,
) -> Counter:
    """Makes the voxel counts of cases on the training grid by every run of a job.

    Args:
        job: The runs.
        cases: Images and labels.
        of_run: The cases that are asked for of each run, at least one of each; counts of others mean nothing.
        settings: Windows.
        plan: Devices and strategy.
        device_bytes: Memory of one device, which decides where windows are stitched.
    """
    shapes = [case.label.shape for case in cases]
    if counts_on_device(job.program, num_runs=len(job.runs), shapes=shapes, plan=plan, device_bytes=device_bytes):
        return _counter_on_devices(job.program, cases, of_run, settings, plan)
    return _counter_on_host(job, cases, settings, plan)


def _counter_on_devices(
    program: Program,
    cases: Sequence[CaseArrays],
    of_run: Bool[np.ndarray, "run case"],
    settings: EvaluateSettings,
    plan: seeds.SeedPlan,
) -> Counter:
    """Windows are stitched and counted where the networks are; runs one after another count their own cases alone."""
    task, everything = program.task, np.arange(len(cases), dtype=np.int32)
    canvases = validation.lay_out(
        [case.image for case in cases],
        [case.label for case in cases],
        patch=task.window,
        overlap=settings.val_overlap,
        classes=program.map_classes,
    )
    placed = seeds.replicate(canvases, plan)
    mapped = mapped_counts(program.network, task.window, task.slice_axis, settings, plan, program.regions)
    if plan.strategy == "loop":
        # Those that have fewer cases than others count one of theirs again.
        own = np.stack([np.resize(everything[row], of_run.sum(1).max()) for row in of_run])
        asked = seeds.put(own, plan)
    else:
        own, asked = everything, seeds.replicate(everything, plan)

    def count(params: Params, frozen: Frozen) -> Integer[np.ndarray, "run case label 3"]:
        found = seeds.fetch(mapped(params, frozen, placed, asked), len(of_run))
        counts = np.zeros((*of_run.shape, *found.shape[2:]), np.int64)
        counts[np.arange(len(of_run))[:, None], own] = found
        return counts

    return count


def _counter_on_host(
    job: Job, cases: Sequence[CaseArrays], settings: EvaluateSettings, plan: seeds.SeedPlan
) -> Counter:
    """Probabilities of all runs come to the host, a few windows at a time, and are stitched and counted there."""
    program = job.program
    structures = program.classes - (program.regions is None)
    predict = make_predict_slabs(
        program,
        plan=plan,
        num_runs=len(job.runs),
        overlap=settings.val_overlap,
        window_batch=settings.window_batch,
    )

    def count(params: Params, frozen: Frozen) -> Integer[np.ndarray, "run case label 3"]:
        counts = np.zeros((len(job.runs), len(cases), structures, 3), np.int64)
        for slab in predict(params, frozen, [case.image for case in cases]):
            predicted = decide(slab.probabilities, program.regions)
            truth = cases[slab.case].label[slab.start : slab.start + predicted.shape[1]]
            flat = predicted.reshape(len(predicted), -1)
            found = validation.count_overlaps(flat, truth.ravel(), program.map_classes, program.regions)
            for label, parts in enumerate(found):
                for kind, part in enumerate(parts):
                    counts[:, slab.case, label, kind] += part
        return counts

    return count


def make_validate(
    job: Job,
    prepared: PreparedTask,
    folds: Sequence[Sequence[str]],
    settings: EvaluateSettings,
    plan: seeds.SeedPlan,
    *,
    device_bytes: int,
) -> Callable[[Params, Frozen], Float[np.ndarray, " run"]]:
    """Makes the mean DSC of each run over its fold's validation cases on the training grid, labels averaged by case.

    Args:
        job: The runs.
        prepared: The task of the runs.
        folds: Validation cases of each fold.
        settings: Windows.
        plan: Devices and strategy.
        device_bytes: Memory of one device.
    """
    names = tuple(sorted({name for run in job.runs for name in folds[run.key.fold]}))
    cases = [data.load_case(prepared, name) for name in names]
    of_run = np.array([[name in folds[run.key.fold] for name in names] for run in job.runs])
    count = make_counter(job, cases, of_run, settings, plan, device_bytes=device_bytes)

    def mean(values: np.ndarray) -> np.ndarray:
        """Over the last axis, of those that are known; NaN where none is."""
        valid = ~np.isnan(values)
        return np.where(valid, values, 0).sum(-1) / np.where(valid.any(-1), valid.sum(-1), np.nan)

    def validate(params: Params, frozen: Frozen) -> Float[np.ndarray, " run"]:
        of_cases = mean(dsc_from_counts(count(params, frozen)))
        return mean(np.where(of_run, of_cases, np.nan))

    return validate
