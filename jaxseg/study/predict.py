"""Whole-case prediction for all runs of a job, and the scores made of it."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float, Int, Integer, Num

from jaxseg import data, inference, metrics, seeds
from jaxseg.data import PreparedTask
from jaxseg.models import make_model
from jaxseg.study.plan import Job, Program
from jaxseg.types import CaseArrays, EvaluateSettings, Frozen, ModelSettings, Params, TaskSettings

PredictSlabs = Callable[[Params, Frozen, Iterable[Float[np.ndarray, "*spatial channels"]]], Iterator[inference.Slab]]


@functools.lru_cache(maxsize=4)  # validation and evaluation of all arms with one network: traced and compiled once
def window_predict(model: ModelSettings, classes: int, plan: seeds.SeedPlan) -> Callable[..., Any]:
    """`inference.make_window_predict` of a network, mapped over runs; compiled on first use."""
    network = make_model(model, classes=classes)
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
    weights: str,
    flips: tuple[int, ...] = (),
) -> PredictSlabs:
    """Prediction of cases by all runs at once; compiled on first use, once for all cases.

    Args:
        program: Network and patch.
        plan: Devices and strategy.
        num_runs: Runs without those that pad the axis.
        overlap: Of neighbouring windows.
        window_batch: Windows in one call.
        weights: Of a window's voxels.
        flips: Axes mirrored at test time.

    Returns:
        `predict(params, frozen, images)`: params stacked and placed by `seeds.put`, images read one by one; see
        `inference.predict_slabs`.
    """
    mapped = window_predict(program.model, program.classes, plan)

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
            weights=weights,
            flips=program.task.window_axes(flips),
        )

    return predict


def confusion(
    prediction: Int[np.ndarray, "run *spatial"], label: Num[np.ndarray, " *spatial"], classes: int
) -> Int[np.ndarray, "run truth predicted"]:
    """Voxel counts of every pair of true and predicted class, for each run; voxels of unknown label left out."""
    known = label.ravel() < classes  # the index after the last class marks voxels to ignore
    pairs = label.ravel()[known].astype(np.int64) * classes + prediction.reshape(len(prediction), -1)[:, known]
    counts = [np.bincount(row, minlength=classes**2).reshape(classes, classes) for row in pairs]
    return np.stack(counts)


def dsc_from_confusion(counts: Int[np.ndarray, "*any truth predicted"]) -> Float[np.ndarray, "*any labels"]:
    """DSC of each foreground label; NaN where the reference lacks it."""
    both = np.diagonal(counts, axis1=-2, axis2=-1)[..., 1:]
    truth, predicted = counts.sum(-1)[..., 1:], counts.sum(-2)[..., 1:]
    total = np.where(truth > 0, truth + predicted, 1)
    return np.where(truth > 0, 2.0 * both / total, np.nan)


def make_validate(
    job: Job, prepared: PreparedTask, folds: Sequence[Sequence[str]], settings: EvaluateSettings, plan: seeds.SeedPlan
) -> Callable[[Params, Frozen], Float[np.ndarray, " run"]]:
    """Mean DSC of each run over its fold's validation cases, on the training grid, labels averaged within a case.

    Args:
        job: The runs.
        prepared: Their task.
        folds: Validation cases of each fold.
        settings: Windows.
        plan: Devices and strategy.
    """
    names = tuple(sorted({name for run in job.runs for name in folds[run.key.fold]}))
    cases = [data.load_case(prepared, name) for name in names]
    predict = make_predict_slabs(
        job.program,
        plan=plan,
        num_runs=len(job.runs),
        overlap=settings.val_overlap,
        window_batch=settings.window_batch,
        weights=settings.weights,
    )
    of_run = np.array([[name in folds[run.key.fold] for name in names] for run in job.runs])

    def validate(params: Params, frozen: Frozen) -> Float[np.ndarray, " run"]:
        scores = []
        slabs = predict(params, frozen, [case.image for case in cases])
        for index, of_case in itertools.groupby(slabs, key=lambda slab: slab.case):
            label, counts = cases[index].label, np.zeros((), np.int64)
            for slab in of_case:
                predicted = slab.probabilities.argmax(-1)
                truth = label[slab.start : slab.start + predicted.shape[1]]
                counts = counts + confusion(predicted, truth, job.program.classes)
            labels = dsc_from_confusion(counts)
            present = ~np.isnan(labels)
            scores.append(np.where(present, labels, 0).sum(-1) / np.maximum(present.sum(-1), 1))
            scores[-1][~present.any(-1)] = np.nan
        table = np.where(of_run, np.stack(scores, axis=1), np.nan)
        valid = ~np.isnan(table)
        return np.where(valid, table, 0).sum(1) / np.where(valid.any(1), valid.sum(1), np.nan)

    return validate


# ------------------------------------------------------------------------------------------ on the case's own grid


class Segmentation(NamedTuple):
    """What several runs make of one image, on its own grid (canonical axes)."""

    labels: Integer[np.ndarray, "run *own"]
    """Class indices of each run."""
    ensemble: Integer[np.ndarray, " *own"]
    """Class indices from the mean of the runs' probabilities."""
    entropy: Float[np.ndarray, " *own"]
    """Of the mean of the runs' probabilities, in nats: 0 where all runs are sure of one class, at most ln(classes)."""


def segment(
    probabilities: Iterable[Float[np.ndarray, "run planes *rest classes"]], *, clean: Sequence[int] = ()
) -> Segmentation:
    """Label maps of all runs and of their ensemble, with the voxel entropy over runs.

    Args:
        probabilities: slabs along the first axis that cover the image, on the grid wanted.
        clean: classes of which only the largest component is kept.
    """
    parts = []
    for slab in probabilities:
        kind = np.uint8 if slab.shape[-1] <= 256 else np.uint16
        mean = slab.mean(0)
        entropy = -scipy.special.xlogy(mean, mean).sum(-1)
        parts.append((slab.argmax(-1).astype(kind), mean.argmax(-1).astype(kind)[None], entropy[None]))
    labels, ensemble, entropy = (np.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True))
    cleaned = np.stack([inference.largest_component(one, clean) for one in labels])
    return Segmentation(cleaned, inference.largest_component(ensemble[0], clean), entropy[0])


CALIBRATION_MARGIN = 5
"""Voxels around the reference's foreground. Far from every label all is background with certainty, and how much of
that an image shows would decide a calibration error taken over all of it."""


class CaseMaps(NamedTuple):
    """What several runs make of one case, on its own grid."""

    labels: Integer[np.ndarray, "run *own"]
    calibration_errors: tuple[dict[str, float], ...]
    """Of each run, by label or region, in the box around the reference's foreground."""


def case_maps(
    probabilities: Iterable[Float[np.ndarray, "run planes *rest classes"]],
    case: CaseArrays,
    prepared: PreparedTask,
    settings: EvaluateSettings,
    pool: concurrent.futures.Executor,
) -> CaseMaps:
    """Label maps of a case, and how well the probabilities behind them are calibrated.

    Probabilities come in slabs and are gone when the next one comes: only label maps have the size of the case.

    Args:
        probabilities: slabs on the training grid, along the first axis, that cover the case.
        case: its grids and reference.
        prepared: its labels.
        settings: regions, and labels to clean up.
        pool: shares the runs among its threads.
    """
    members = metrics.members_of(prepared.labels, dict(settings.regions))
    classes = {name: [prepared.labels.index(label) + 1 for label in group] for name, group in members.items()}
    reference = case.reference
    known = reference <= len(prepared.labels)  # the index after the last label's marks voxels to ignore
    box = metrics.bounding_box(known & (reference > 0), margin=CALIBRATION_MARGIN)

    def reduce(part: np.ndarray, begin: int) -> tuple[np.ndarray, dict[str, metrics.CalibrationBins]]:
        planes = slice(max(box[0].start, begin), min(box[0].stop, begin + len(part)))
        if planes.start >= planes.stop:
            return part.argmax(-1), {}
        where = (planes, *box[1:])
        inside = known[where]
        shown, truth = (
            part[(slice(planes.start - begin, planes.stop - begin), *box[1:])][inside],
            reference[where][inside],
        )
        return part.argmax(-1), {
            name: metrics.count_bins(shown[:, values].sum(-1), np.isin(truth, values))
            for name, values in classes.items()
        }

    pieces: list[list[np.ndarray]] = []
    bins: list[dict[str, metrics.CalibrationBins]] = []
    begin = 0
    kind = np.uint8 if len(prepared.labels) < 256 else np.uint16
    for slab in data.to_own_grid(probabilities, case.record):
        pieces = pieces or [[] for _ in slab]
        bins = bins or [{} for _ in slab]
        for run, (labels, found) in enumerate(pool.map(reduce, slab, itertools.repeat(begin))):
            pieces[run].append(labels.astype(kind))
            bins[run] |= {name: b.merge(bins[run][name]) if name in bins[run] else b for name, b in found.items()}
        begin += slab.shape[1]
    clean = classes_of(settings.largest_component, prepared.labels)
    whole = [inference.largest_component(np.concatenate(parts), clean) for parts in pieces]
    errors = tuple(
        {name: metrics.expected_calibration_error(of_run[name]) if name in of_run else math.nan for name in members}
        for of_run in bins
    )
    return CaseMaps(np.stack(whole) if whole else np.zeros((0, *reference.shape), kind), errors)


def classes_of(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Indices of the labels named; `all` stands for every one."""
    return [index for index, label in enumerate(labels, start=1) if label in names or "all" in names]


def scoring_options(task: TaskSettings, settings: EvaluateSettings) -> dict[str, Any]:
    """How a study scores, as arguments of `metrics.case_metrics`."""
    return {
        "unit": task.unit,
        "hd_definition": settings.hd_definition,
        "surface_empty": settings.surface_empty,
        "tolerance_mm": settings.tolerance_mm or None,
        "regions": dict(settings.regions),
    }
