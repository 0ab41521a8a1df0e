"""Scores of all runs on the test cases, on each case's own grid: one part table a job, so that a crash costs one."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxseg import checkpoint, data, loop, metrics, seeds
from jaxseg.data import PreparedTask
from jaxseg.data.resample import resize_image
from jaxseg.study import files
from jaxseg.study.plan import Job, Run
from jaxseg.study.predict import make_predict_cases
from jaxseg.study.tasks import Tasks
from jaxseg.types import CaseArrays, Progress, StudySettings

PART = "cases.csv"
EXAMPLES = "examples.npz"


def example_cases(study: StudySettings, tasks: Tasks) -> tuple[str, ...]:
    """Test cases shown as pictures: evenly spread in name order over the first fold's."""
    names = tasks.splits[study.target][0].test
    count = min(study.report.examples, len(names))
    return tuple(names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count))


def example_slice(reference: np.ndarray) -> tuple[Any, ...]:
    """The slice across the last axis with most foreground; all of a 2-D case."""
    if reference.ndim == 2:
        return (slice(None), slice(None))
    return (slice(None), slice(None), int(np.argmax((reference > 0).sum((0, 1)))))


def evaluate_job(study: StudySettings, workdir: Path, tasks: Tasks, job: Job, progress: Progress) -> None:
    """Predicts and scores the test cases of every run of a job, and writes the job's part table.

    Runs that diverged have no scores: they are listed as excluded instead.
    """
    directory = workdir / job.directory
    if (directory / PART).exists():
        return
    prepared, splits = tasks.prepared[study.target], tasks.splits[study.target]
    names = tuple(sorted({name for run in job.runs for name in splits[run.key.fold].test}))
    dead = loop.diverged_at(loop.read_metrics(directory), len(job.runs))
    plan = seeds.make_plan(len(job.runs), strategy=study.runtime.seed_map, devices=study.runtime.devices)
    params = checkpoint.read_params(directory / "checkpoints", job.program.train.steps, range(len(job.runs)))
    predict = make_predict_cases(
        job.program,
        plan=plan,
        num_runs=len(job.runs),
        overlap=study.evaluate.overlap,
        window_batch=study.evaluate.window_batch,
    )
    waiting: list[CaseArrays] = []

    def images() -> Iterator[np.ndarray]:
        for name in names:
            waiting.append(data.load_case(prepared, name))
            yield waiting[-1].image

    rows: list[dict[str, Any]] = []
    examples: dict[str, np.ndarray] = {}
    shown = example_cases(study, tasks)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, probabilities in enumerate(predict(seeds.put(params, plan), {}, images()), start=1):
            case = waiting.pop(0)
            name = case.record.name
            scored = [
                (index, run)
                for index, run in enumerate(job.runs)
                if dead[index] is None and name in splits[run.key.fold].test
            ]
            maps = [data.to_own_grid(probabilities[index], case.record) for index, _ in scored]
            for (_, run), row in zip(
                scored, pool.map(lambda labels, case=case: _score(study, prepared, case, labels), maps), strict=True
            ):
                rows += [_identity(run, case) | line for line in row]
            if name in shown:
                _keep_example(examples, shown.index(name), case, [run for _, run in scored], maps)
            progress("scoring", done, len(names), name)
    with open(directory / f"{EXAMPLES}.partial", "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **examples)
    os.replace(directory / f"{EXAMPLES}.partial", directory / EXAMPLES)
    files.write_table(directory / PART, pd.DataFrame(rows))


def _identity(run: Run, case: CaseArrays) -> dict[str, Any]:
    return {
        "arm": run.key.arm,
        "seed": run.key.seed,
        "train_cases": run.key.train_cases,
        "fold": run.key.fold,
        "case": case.record.name,
        "group": case.record.group,
    }


def _score(
    study: StudySettings, prepared: PreparedTask, case: CaseArrays, labels: np.ndarray
) -> Sequence[dict[str, Any]]:
    return metrics.case_metrics(
        labels,
        case.reference,
        labels=prepared.labels,
        spacing_mm=case.record.own_spacing_mm,
        unit=study.target.unit,
        hd_definition=study.evaluate.hd_definition,
        surface_empty=study.evaluate.surface_empty,
        tolerance_mm=study.evaluate.tolerance_mm or None,
        ignore_index=prepared.ignore_index,
    )


def _keep_example(
    examples: dict[str, np.ndarray], index: int, case: CaseArrays, runs: Sequence[Run], maps: Sequence[np.ndarray]
) -> None:
    """Keeps one slice of the image, the reference, and the prediction of each arm's first run."""
    where = example_slice(case.reference)

    def picture(array: np.ndarray) -> np.ndarray:
        # Rows of a picture run down along y. Canonical volumes have y to the front, which belongs on top; a 2-D image's
        # axes are its columns and rows already.
        return array.T if case.reference.ndim == 2 else array.T[::-1]

    image = resize_image(case.image, case.record.own_shape, case.record.spacing_mm)[..., 0][where]
    low, high = np.percentile(image, (0.5, 99.5))
    examples[f"image_{index}"] = picture(np.clip(255 * (image - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8))
    examples[f"reference_{index}"] = picture(case.reference[where].astype(np.uint8))
    for run, labels in zip(runs, maps, strict=True):
        examples.setdefault(f"prediction_{index}_{run.key.arm}", picture(labels[where].astype(np.uint8)))
        examples.setdefault(f"slice_{index}", np.array(where[-1] if case.reference.ndim == 3 else 0))
