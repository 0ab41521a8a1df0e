"""Predicts whole cases with all runs of a job, and scores the predictions."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Integer

from jaxseg import data, inference, metrics, seeds, validation
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays
from jaxseg.models import Network
from jaxseg.regions import Regions, decide
from jaxseg.settings import EvaluateSettings, TaskSettings
from jaxseg.study.plan.jobs import Job, Program
from jaxseg.types import Frozen, Params

PredictSlabs = Callable[[Params, Frozen, Iterable[Float[np.ndarray, "*spatial channels"]]], Iterator[inference.Slab]]


@functools.lru_cache(maxsize=4)  # validation and evaluation of all arms with one network: traced and compiled once
def window_predict(network: Network, plan: seeds.SeedPlan) -> Callable[..., Any]:
    """Maps `inference.make_window_predict` of a network over runs; compiled on first use."""
    # Runs one after another are for processors; there windows one after another are faster too (docs/performance.md).
    made = inference.make_window_predict(network, one_by_one=plan.strategy == "loop")
    return seeds.map_seeds(made, plan=plan, shared=(1, 2))


def make_predict_slabs(
    program: Program,
    *,
    plan: seeds.SeedPlan,
    num_runs: int,
    overlap: float,
    window_batch: int,
    flips: tuple[int, ...] = (),
) -> PredictSlabs:
    """Makes the prediction of cases by all runs at once; compiled on first use, once for all cases.

    Args:
        program: Network and patch.
        plan: Devices and strategy.
        num_runs: Number of runs, without those that pad the axis.
        overlap: Overlap of neighbouring windows.
        window_batch: Number of windows in one call.
        flips: Axes mirrored at test time.

    Returns:
        `predict(params, frozen, images)`: params stacked and placed by `seeds.put`, images read one by one; see
        `inference.predict_slabs`.
    """
    mapped = window_predict(program.network, plan)

    def predict(
        params: Params, frozen: Frozen, images: Iterable[Float[np.ndarray, "*spatial channels"]]
    ) -> Iterator[inference.Slab]:
        def batch(windows: np.ndarray) -> np.ndarray:
            return seeds.fetch(mapped(params, frozen, seeds.replicate(windows, plan)), num_runs)

        return inference.predict_slabs(
            inference.by_slices(batch, program.task.slice_axis),
            images,
            patch=program.task.window,
            overlap=overlap,
            window_batch=window_batch,
            flips=program.task.window_axes(flips),
        )

    return predict


def dsc_from_counts(counts: Integer[np.ndarray, "*any label 3"]) -> Float[np.ndarray, "*any label"]:
    """Computes DSC of each label from its voxels in both maps, the reference and the prediction; NaN if it has none."""
    both, truth, predicted = np.moveaxis(counts, -1, 0)
    return np.where(truth > 0, 2.0 * both / np.where(truth > 0, truth + predicted, 1), np.nan)


ON_DEVICE_SHARE = 0.1
"""Share of a device's memory that validation may use to stitch and count there."""


@functools.lru_cache(maxsize=4)  # of one network, whatever trains it
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


def make_counter(
    job: Job,
    cases: Sequence[CaseArrays],
    of_run: Bool[np.ndarray, "run case"],
    settings: EvaluateSettings,
    plan: seeds.SeedPlan,
    *,
    device_bytes: int,
) -> Callable[[Params, Frozen], Integer[np.ndarray, "run case label 3"]]:
    """Makes the voxel counts of cases on the training grid by every run of a job; see `validation.count_overlaps`.

    Args:
        job: The runs.
        cases: Images and labels.
        of_run: The cases that are asked for of each run, at least one of each; counts of others mean nothing.
        settings: Windows.
        plan: Devices and strategy.
        device_bytes: Memory of one device, which decides where windows are stitched.
    """
    program, shapes = job.program, [case.label.shape for case in cases]
    structures = program.classes - (program.regions is None)
    if counts_on_device(program, num_runs=len(job.runs), shapes=shapes, plan=plan, device_bytes=device_bytes):
        canvases = validation.lay_out(
            [case.image for case in cases],
            [case.label for case in cases],
            patch=program.task.window,
            overlap=settings.val_overlap,
            classes=program.map_classes,
        )
        placed = seeds.replicate(canvases, plan)
        task = program.task
        mapped = mapped_counts(program.network, task.window, task.slice_axis, settings, plan, program.regions)
        own, asked = np.arange(len(cases), dtype=np.int32), seeds.replicate(np.arange(len(cases), dtype=np.int32), plan)
        if plan.strategy == "loop":
            # Those that have fewer cases than others count one of theirs again.
            own = np.stack([np.resize(np.flatnonzero(row), of_run.sum(1).max()) for row in of_run]).astype(np.int32)
            asked = seeds.put(own, plan)

        def count_there(params: Params, frozen: Frozen) -> Integer[np.ndarray, "run case label 3"]:
            found = seeds.fetch(mapped(params, frozen, placed, asked), len(job.runs))
            counts = np.zeros((len(job.runs), len(cases), *found.shape[2:]), np.int64)
            counts[np.arange(len(job.runs))[:, None], own] = found
            return counts

        return count_there

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


# ------------------------------------------------------------------------------------------ on the case's own grid


class Segmentation(NamedTuple):
    """The predictions of several runs for one image, on its own grid (canonical axes).

    Predicted regions are written into label maps, see `regions.decide`.
    """

    labels: Integer[np.ndarray, "run *own"]
    """The class indices of each run."""
    ensemble: Integer[np.ndarray, " *own"]
    """The class indices from the mean of the runs' probabilities."""
    entropy: Float[np.ndarray, " *own"]
    """Entropy of the mean of the runs' probabilities, in nats: 0 if all runs are sure of a class, at most
    ln(classes). Of regions, the sum of each region's own, at most ln(2) times their number."""
    mean: Float[np.ndarray, "*own classes"] | None = None
    """The mean of the runs' probabilities, where it is asked for: it takes the memory of an image for each class."""


def segment(
    probabilities: Iterable[Float[np.ndarray, "run planes *rest classes"]],
    *,
    clean: Sequence[int] = (),
    keep_mean: bool = False,
    regions: Regions | None = None,
) -> Segmentation:
    """Computes label maps of all runs and of their ensemble, with the voxel entropy over runs.

    Args:
        probabilities: Slabs along the first axis that cover the image, on the wanted grid.
        clean: Classes, or numbers of regions from 1 on, of which only the largest component is kept.
        keep_mean: Whether `mean` is returned.
        regions: The regions that the probabilities are of; None if they are of classes.
    """
    parts = []
    means = []
    for slab in probabilities:
        classes = slab.shape[-1] if regions is None else regions.classes + 1
        kind = np.uint8 if classes <= 256 else np.uint16
        mean = slab.mean(0)
        entropy = -scipy.special.xlogy(mean, mean).sum(-1)
        if regions is not None:
            outside = np.maximum(1 - mean, 0)  # which rounding may take below 0
            entropy = entropy - scipy.special.xlogy(outside, outside).sum(-1)
        found, of_mean = decide(slab, regions), decide(mean, regions)
        parts.append((found.astype(kind), of_mean.astype(kind)[None], entropy[None]))
        means += [mean] if keep_mean else []
    labels, ensemble, entropy = (np.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True))
    cleaned = np.stack([cleaned_up(one, clean, regions) for one in labels])
    whole = np.concatenate(means) if keep_mean else None
    return Segmentation(cleaned, cleaned_up(ensemble[0], clean, regions), entropy[0], whole)


def cleaned_up(
    labels: Integer[np.ndarray, " *own"], clean: Sequence[int], regions: Regions | None
) -> Integer[np.ndarray, " *own"]:
    """Returns a label map with only the largest component of some classes or, from 1 on, of some regions."""
    if regions is None:
        return inference.largest_component(labels, clean)
    return inference.largest_of_regions(labels, [number - 1 for number in clean], regions)


CALIBRATION_MARGIN = 5
"""Margin in voxels around the reference's foreground. Far from every label all is surely background, and how much of
that an image shows would decide a calibration error taken over all of it."""


class CaseMaps(NamedTuple):
    """The predictions of several runs for one case, on its own grid."""

    labels: Integer[np.ndarray, "run *own"]
    calibration_errors: tuple[dict[str, float], ...]
    """The calibration errors of each run, by label or region, in the box around the reference's foreground."""


def with_ensembles(
    probabilities: Float[np.ndarray, "run planes *rest classes"], ensembles: Sequence[Sequence[int]]
) -> Float[np.ndarray, "network planes *rest classes"]:
    """Returns the probabilities of runs and, behind them, the mean of each group of runs as one more network.

    Args:
        probabilities: A slab of each run.
        ensembles: Groups of runs, by their positions.
    """
    if not ensembles:
        return probabilities
    means = [functools.reduce(np.add, (probabilities[run] for run in group)) / len(group) for group in ensembles]
    return np.concatenate([probabilities, np.stack(means)])


def case_maps(
    probabilities: Iterable[Float[np.ndarray, "run planes *rest classes"]],
    case: CaseArrays,
    prepared: PreparedTask,
    settings: EvaluateSettings,
    pool: concurrent.futures.Executor,
) -> CaseMaps:
    """Computes label maps of a case, and how well the probabilities behind them are calibrated.

    Probabilities arrive in slabs, each dropped before the next: only label maps have the size of the case.

    Args:
        probabilities: Slabs on the training grid, along the first axis, that cover the case.
        case: The case's grids and reference.
        prepared: The task, for its labels.
        settings: The regions, and the labels to clean up.
        pool: A pool that shares the runs among its threads.
    """
    regions = prepared.regions
    classes = metrics.classes_by_name(prepared.labels, dict(settings.regions), prepared.members)
    # The outputs that each name is the sum of: those of its classes, or the one of its region.
    outputs = classes if regions is None else {name: (index,) for index, name in enumerate(prepared.labels)}
    reference = case.reference
    known = reference < prepared.classes  # the index after the last class marks voxels to ignore
    box = metrics.bounding_box(known & (reference > 0), margin=CALIBRATION_MARGIN)

    def reduce(part: np.ndarray, begin: int) -> tuple[np.ndarray, dict[str, metrics.CalibrationBins]]:
        planes = slice(max(box[0].start, begin), min(box[0].stop, begin + len(part)))
        if planes.start >= planes.stop:
            return decide(part, regions), {}
        where = (planes, *box[1:])
        inside = known[where]
        shown, truth = (
            part[(slice(planes.start - begin, planes.stop - begin), *box[1:])][inside],
            reference[where][inside],
        )
        return decide(part, regions), {
            name: metrics.count_bins(shown[:, list(outputs[name])].sum(-1), np.isin(truth, values))
            for name, values in classes.items()
        }

    pieces: list[list[np.ndarray]] = []
    bins: list[dict[str, metrics.CalibrationBins]] = []
    begin = 0
    kind = np.uint8 if prepared.classes <= 256 else np.uint16
    for slab in data.to_own_grid(probabilities, case.record):
        pieces = pieces or [[] for _ in slab]
        bins = bins or [{} for _ in slab]
        for run, (labels, found) in enumerate(pool.map(reduce, slab, itertools.repeat(begin))):
            pieces[run].append(labels.astype(kind))
            bins[run] |= {name: b.merge(bins[run][name]) if name in bins[run] else b for name, b in found.items()}
        begin += slab.shape[1]
    clean = classes_of(settings.largest_component, prepared.labels)
    whole = [cleaned_up(np.concatenate(parts), clean, regions) for parts in pieces]
    errors = tuple(
        {name: metrics.expected_calibration_error(of_run[name]) if name in of_run else math.nan for name in classes}
        for of_run in bins
    )
    return CaseMaps(np.stack(whole) if whole else np.zeros((0, *reference.shape), kind), errors)


def classes_of(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Returns the indices of the named labels; `all` stands for every label."""
    return [index for index, label in enumerate(labels, start=1) if label in names or "all" in names]


def scoring_options(task: TaskSettings, settings: EvaluateSettings) -> dict[str, Any]:
    """Returns the scoring options of a study as arguments of `metrics.case_metrics`."""
    return {
        "unit": task.unit,
        "hd_definition": settings.hd_definition,
        "surface_empty": settings.surface_empty,
        "tolerance_mm": settings.tolerance_mm or None,
        "regions": dict(settings.regions),
        "lesions": metrics.LesionRule(settings.lesions, settings.lesion_overlap, settings.lesion_min_volume)
        if settings.lesions
        else None,
    }
