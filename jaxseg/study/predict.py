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
from jaxtyping import Float, Integer

from jaxseg import data, inference, metrics, seeds, threads
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays
from jaxseg.models import Network
from jaxseg.regions import Regions, decide
from jaxseg.settings import EvaluateSettings, TaskSettings
from jaxseg.study.plan.jobs import Program
from jaxseg.types import Frozen, Params

PredictSlabs = Callable[[Params, Frozen, Iterable[Float[np.ndarray, "*spatial channels"]]], Iterator[inference.Slab]]


@functools.lru_cache(maxsize=8)  # validation and evaluation of all arms with one network: traced and compiled once
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
    pool: threads.Pool = None,
) -> PredictSlabs:
    """Makes the prediction of cases by all runs at once; compiled on first use, once for all cases.

    Args:
        program: Network and patch.
        plan: Devices and strategy.
        num_runs: Number of runs, without those that pad the axis.
        overlap: Overlap of neighbouring windows.
        window_batch: Number of windows in one call.
        flips: Axes mirrored at test time.
        pool: Threads that share the runs when windows are stitched.

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
            pool=pool,
        )

    return predict


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
    probabilities: Float[np.ndarray, "run planes *rest classes"],
    ensembles: Sequence[Sequence[int]],
    pool: threads.Pool = None,
) -> Float[np.ndarray, "network planes *rest classes"]:
    """Returns the probabilities of runs and, behind them, the mean of each group of runs as one more network.

    Args:
        probabilities: A slab of each run.
        ensembles: Groups of runs, by their positions.
        pool: Threads that share the networks.
    """
    if not ensembles:
        return probabilities
    runs, *rest = probabilities.shape
    made = np.empty((runs + len(ensembles), *rest), probabilities.dtype)

    def of_network(index: int) -> None:
        if index < runs:
            made[index] = probabilities[index]
        else:
            group = ensembles[index - runs]
            np.divide(functools.reduce(np.add, (probabilities[run] for run in group)), len(group), out=made[index])

    threads.share(pool, of_network, len(made))
    return made


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
    for slab in data.to_own_grid(probabilities, case.record, pool=pool):
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
