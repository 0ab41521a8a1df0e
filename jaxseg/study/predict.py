"""Whole-case prediction for all runs of a job, and the scores made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Num

from jaxseg import data, inference, seeds
from jaxseg.data import PreparedTask
from jaxseg.models import make_model
from jaxseg.study.plan import Job, Program
from jaxseg.types import EvaluateSettings, Frozen, Params

PredictCases = Callable[
    [Params, Frozen, Iterable[Float[np.ndarray, "*spatial channels"]]],
    Iterator[Float[np.ndarray, "run *spatial classes"]],
]


def make_predict_cases(
    program: Program, *, plan: seeds.SeedPlan, num_runs: int, overlap: float, window_batch: int
) -> PredictCases:
    """Prediction of cases by all runs at once; compiled on first use, once for all cases.

    Args:
        program: Network and patch.
        plan: Devices and strategy.
        num_runs: Runs without those that pad the axis.
        overlap: Of neighbouring windows.
        window_batch: Windows in one call.

    Returns:
        `predict(params, frozen, images)`: params stacked and placed by `seeds.put`, images read one by one.
    """
    model = make_model(program.model, classes=program.classes)
    mapped = seeds.map_seeds(inference.make_window_predict(model), plan=plan, shared=(1, 2))

    def predict(
        params: Params, frozen: Frozen, images: Iterable[Float[np.ndarray, "*spatial channels"]]
    ) -> Iterator[Float[np.ndarray, "run *spatial classes"]]:
        def batch(windows: np.ndarray) -> np.ndarray:
            return seeds.fetch(mapped(params, frozen, seeds.replicate(windows, plan)), num_runs)

        return inference.predict_cases(
            batch, images, patch=program.task.patch, overlap=overlap, window_batch=window_batch
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
) -> Callable[[Params], Float[np.ndarray, " run"]]:
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
    predict = make_predict_cases(
        job.program,
        plan=plan,
        num_runs=len(job.runs),
        overlap=settings.val_overlap,
        window_batch=settings.window_batch,
    )
    of_run = np.array([[name in folds[run.key.fold] for name in names] for run in job.runs])

    def validate(params: Params) -> Float[np.ndarray, " run"]:
        scores = []
        for case, probabilities in zip(cases, predict(params, {}, [case.image for case in cases]), strict=True):
            counts = confusion(probabilities.argmax(-1), case.label, job.program.classes)
            labels = dsc_from_confusion(counts)
            present = ~np.isnan(labels)
            scores.append(np.where(present, labels, 0).sum(-1) / np.maximum(present.sum(-1), 1))
            scores[-1][~present.any(-1)] = np.nan
        table = np.where(of_run, np.stack(scores, axis=1), np.nan)
        valid = ~np.isnan(table)
        return np.where(valid, table, 0).sum(1) / np.where(valid.any(1), valid.sum(1), np.nan)

    return validate


def place_params(params: Any, plan: seeds.SeedPlan) -> Any:
    """Stacked parameters read from a checkpoint, on the devices of the plan."""
    return seeds.put(jax.tree.map(np.asarray, params), plan)
