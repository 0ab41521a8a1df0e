"""Scores all runs on the test cases, on each case's own grid: one part table per job, so that a crash costs one."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxseg import checkpoint, data, hosts, inference, logs, machine, metrics, seeds, workdirs
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays, CaseRecord
from jaxseg.data.volumes.resample import labels_from_probabilities, resize_image, resize_linear
from jaxseg.settings import StudySettings
from jaxseg.study import files
from jaxseg.study.plan.binding import Draw
from jaxseg.study.plan.jobs import Job, of_host, own_rows, seed_plan
from jaxseg.study.plan.runs import Run
from jaxseg.study.plan.tasks import Tasks, spread
from jaxseg.study.predict import CaseMaps, case_maps, classes_of, make_predict_slabs, scoring_options
from jaxseg.study.score import prior, slices
from jaxseg.types import Progress

PART = "cases.csv"
EXAMPLES = "examples.npz"
PRIOR_PART = "train/priors.csv"
"""The file, relative to the workdir, with the rows of all arms without a network."""


Save = Callable[[Run, np.ndarray], None]
"""A function that writes the label map of a run."""


def example_cases(study: StudySettings, tasks: Tasks) -> tuple[str, ...]:
    """Returns the test cases shown as pictures, evenly spread in name order over those of the first fold."""
    return spread(tasks.splits[study.target][0].test, study.report.examples)


def evaluate_job(study: StudySettings, workdir: Path, tasks: Tasks, job: Job, progress: Progress) -> None:
    """Predicts and scores the test cases of a job's runs, this host's of them, and writes their part table.

    Only cases that one of these runs is tested on are read. Runs that diverged have no scores; they are listed as
    excluded instead. With `evaluate.budget_tests` the networks of shorter budgets are scored as well, each in a table
    of its own.
    """
    directory = workdir / job.directory
    rows_here = own_rows(study, job, hosts.index())
    part = directory / _part_name(PART, rows_here, job)
    pictures = directory / _part_name(EXAMPLES, rows_here, job)
    # With one host the part is the whole, which was asked about already.
    if not rows_here or _is_scored(directory) or (part != directory / PART and files.are_sound([part, pictures])):
        return
    whole = _Scoring(study, workdir, tasks, job, rows_here)
    saving = _make_save(study, workdir, tasks.of(job)) if study.evaluate.save_predictions else None
    examples: dict[str, np.ndarray] = {}
    for step in budget_steps(study, job):
        table = whole.rows(step, progress=progress)
        files.write_table(directory / _part_name(budget_part(step), rows_here, job), pd.DataFrame(table))
    table = whole.rows(job.program.train.steps, progress=progress, examples=examples, saving=saving)
    files.write_arrays(pictures, examples)
    files.write_table(part, pd.DataFrame(table))


def budget_steps(study: StudySettings, job: Job) -> tuple[int, ...]:
    """Returns the shorter budgets whose networks are scored on test cases."""
    return job.program.train.scored_at[:-1] if study.evaluate.budget_tests else ()


def budget_part(step: int) -> str:
    """Returns the path of a job's table of scores after a number of steps."""
    return f"cases_{step}.csv"


@dataclasses.dataclass(frozen=True)
class _Scoring:
    """A host's runs of a job, to be scored after one number of steps or another."""

    study: StudySettings
    workdir: Path
    tasks: Tasks
    whole: Job
    rows_here: tuple[int, ...]

    def rows(
        self,
        step: int,
        *,
        progress: Progress,
        examples: dict[str, np.ndarray] | None = None,
        saving: Callable[[CaseRecord], Save] | None = None,
    ) -> list[dict[str, Any]]:
        """Scores all runs that did not diverge; fills `examples` and saves label maps if these are given."""
        study, tasks, rows_here = self.study, self.tasks, self.rows_here
        prepared, splits = tasks.of(self.whole), tasks.splits[study.target]
        every_death = logs.read_log(self.workdir / self.whole.directory, len(self.whole.runs)).diverged_at
        dead = [every_death[row] for row in rows_here]
        job = of_host(self.whole, rows_here)
        tested = [
            () if died is not None else splits[run.key.fold].test for run, died in zip(job.runs, dead, strict=True)
        ]
        names = sorted({name for of_run in tested for name in of_run})
        shown = example_cases(study, tasks)
        found: list[dict[str, Any]] = []
        with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
            waiting: list[concurrent.futures.Future[list[dict[str, Any]]]] = []
            predicted = _predict(study, self.workdir, prepared, job, rows_here, step, names, tested, pool)
            for done, (case, runs, maps) in enumerate(predicted, start=1):
                # The next case is predicted while this one is scored; no more than one case waits.
                found += [row for scored in waiting for row in scored.result()]
                save = None if saving is None else saving(case.record)
                waiting = [
                    pool.submit(_score, study, prepared, case, run, labels, errors, save)
                    for run, labels, errors in zip(runs, maps.labels, maps.calibration_errors, strict=True)
                ]
                if examples is not None and case.record.name in shown:
                    _keep_example(examples, shown.index(case.record.name), case, runs, maps.labels)
                progress("scoring", done, len(names), case.record.name)
            found += [row for scored in waiting for row in scored.result()]
        return found


def _is_scored(directory: Path) -> bool:
    """Whether the files of all runs of a job are there as they were written."""
    return files.are_sound(directory / name for name in (PART, EXAMPLES))


def _part_name(name: str, rows: Sequence[int], job: Job) -> str:
    """A job's file, or that of some of its runs where several hosts share them.

    Each host's files have a folder of their own, since only one process at a time may write a folder's manifest.
    """
    return name if len(rows) == len(job.runs) or not rows else f"part_{rows[0]}-{rows[-1]}/{name}"


def merge_parts(study: StudySettings, workdir: Path, job: Job) -> None:
    """Merges what several hosts wrote about a job's runs into the job's own files; does nothing with one host."""
    directory = workdir / job.directory
    if _is_scored(directory):
        return
    shares = [rows for host in range(hosts.count()) if (rows := own_rows(study, job, host))]
    examples: dict[str, np.ndarray] = {}
    for rows in shares:
        keep_shown(examples, files.read_arrays(directory / _part_name(EXAMPLES, rows, job)))
    files.write_arrays(directory / EXAMPLES, examples)
    for name in (*map(budget_part, budget_steps(study, job)), PART):
        tables = [files.read_table(directory / _part_name(name, rows, job)) for rows in shares]
        files.write_table(directory / name, pd.concat(tables, ignore_index=True))
    # Also those of earlier processes, when there was another number of hosts.
    for part in directory.glob("part_[0-9]*-[0-9]*"):
        shutil.rmtree(part)


def _predict(
    study: StudySettings,
    workdir: Path,
    prepared: PreparedTask,
    job: Job,
    rows: Sequence[int],
    step: int,
    names: Sequence[str],
    tested: Sequence[Collection[str]],
    pool: concurrent.futures.Executor,
) -> Iterator[tuple[CaseArrays, list[Run], CaseMaps]]:
    """Cases by name, each with the runs that are tested on it and what they make of it."""
    settings = study.evaluate
    plan = seed_plan(study, len(job.runs))
    directory = workdir / job.directory / "checkpoints"
    params = checkpoint.read_own_params(directory, step, rows)
    frozen = seeds.replicate(checkpoint.read_shared(directory, step), plan)
    predict = make_predict_slabs(
        job.program,
        plan=plan,
        num_runs=len(job.runs),
        overlap=settings.overlap,
        window_batch=settings.window_batch,
        flips=settings.flips,
    )
    cut: collections.deque[CaseArrays] = collections.deque()

    def images() -> Iterator[np.ndarray]:
        for name in names:
            cut.append(data.load_case(prepared, name))
            yield cut[-1].image

    slabs = predict(seeds.put(params, plan), frozen, images())
    for _, of_case in itertools.groupby(slabs, key=lambda slab: slab.case):
        case = cut.popleft()
        runs = [index for index, of_run in enumerate(tested) if case.record.name in of_run]
        maps = case_maps((slab.probabilities[runs] for slab in of_case), case, prepared, settings, pool)
        yield case, [job.runs[index] for index in runs], maps


def _make_save(study: StudySettings, workdir: Path, prepared: PreparedTask) -> Callable[[CaseRecord], Save]:
    """For each case, what writes a run's label map: the reference's label values, on the grid of the case's image."""
    geometry_of = data.case_geometries(study.target.data, ndim=prepared.ndim, cache=prepared.directory.parent)

    def of_case(record: CaseRecord) -> Save:
        geometry = geometry_of(record)

        def save(run: Run, predicted: np.ndarray) -> None:
            key, name = run.key, f"{record.name}{geometry.ending}"
            path = workdirs.inside(workdir, "predictions", key.arm, key.variant(), f"seed_{key.seed}", name)
            data.write_prediction(predicted, geometry, path, label_values=prepared.label_values, replace=True)

        return save

    return of_case


def evaluate_priors(study: StudySettings, workdir: Path, tasks: Tasks, runs: Sequence[Run], progress: Progress) -> None:
    """Scores the mean label map of each run's training cases, and writes one part table for all of them."""
    path = workdir / PRIOR_PART
    if files.are_sound([path]):
        return
    prepared, splits = tasks.prepared[study.target], tasks.splits[study.target]
    classes = len(prepared.labels) + 1
    clean = classes_of(study.evaluate.largest_component, prepared.labels)
    fitted: dict[tuple[str, ...], np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    no_calibration: Mapping[str, float] = collections.defaultdict(lambda: float("nan"))  # its scores are no chances
    for done, run in enumerate(runs, start=1):
        split = splits[run.key.fold]
        names = tasks.subset(study.target, Draw(run.key.train_cases, run.key.fold, run.subset_id))
        if names not in fitted:
            fitted[names] = prior.fit_prior([data.load_case(prepared, name).label for name in names], classes)
        for case in (data.load_case(prepared, name) for name in split.test):
            scores = resize_linear(fitted[names], case.record.shape)
            labels = inference.largest_component(labels_from_probabilities(scores, case.record.own_shape), clean)
            rows += _score(study, prepared, case, run, labels, no_calibration, None)
        progress("scoring", done, len(runs), run.name())
    files.write_table(path, pd.DataFrame(rows))


def _score(
    study: StudySettings,
    prepared: PreparedTask,
    case: CaseArrays,
    run: Run,
    labels: np.ndarray,
    calibration_errors: Mapping[str, float],
    save: Save | None,
) -> list[dict[str, Any]]:
    """Rows of one run and case; the label map is saved where that is asked for."""
    if save is not None:
        save(run, labels)
    rows = metrics.case_metrics(
        labels,
        case.reference,
        labels=prepared.labels,
        spacing_mm=case.record.own_spacing_mm,
        ignore_index=prepared.ignore_index,
        **scoring_options(study.target, study.evaluate),
    )
    key, record = run.key, case.record
    identity = {
        **{"arm": key.arm, "seed": key.seed, "train_cases": key.train_cases, "fold": key.fold},
        **{"case": record.name, "group": record.group},
    }
    return [{**identity, **row, "calibration_error": calibration_errors[str(row["label"])], **run.ids} for row in rows]


def _keep_example(
    examples: dict[str, np.ndarray], index: int, case: CaseArrays, runs: Sequence[Run], maps: Iterable[np.ndarray]
) -> None:
    """Keeps one slice of the image, the reference, and for each arm the prediction of the run that is shown."""
    where = slices.example_slice(case.reference)
    image = resize_image(case.image, case.record.own_shape, case.record.spacing_mm)[..., 0]
    examples[f"image_{index}"] = slices.upright(slices.grey(image[where]), image.ndim)
    examples[f"reference_{index}"] = slices.upright(case.reference[where].astype(np.uint8), image.ndim)
    examples[f"slice_{index}"] = np.array(slices.place_of(where), np.int64)
    for run, labels in sorted(zip(runs, maps, strict=True), key=lambda pair: shown_first(*pair[0].key[1:])):
        prediction = slices.upright(labels[where].astype(np.uint8), image.ndim)
        examples.setdefault(f"prediction_{index}_{run.key.arm}", prediction)
        examples.setdefault(f"run_{index}_{run.key.arm}", np.array(run.key[1:], np.int64))


def shown_first(train_cases: int, fold: int, seed: int) -> tuple[bool, int, int, int]:
    """Sorts an arm's runs by which of them a picture shows: the largest training set, its first fold and seed."""
    return train_cases != 0, -train_cases, fold, seed


def keep_shown(kept: dict[str, np.ndarray], more: Mapping[str, np.ndarray]) -> None:
    """Adds examples of other runs to those that are kept; of each arm, the run that is shown first stays."""
    first = {
        name.removeprefix("run_")
        for name, run in more.items()
        if name.startswith("run_")
        and (name not in kept or shown_first(*map(int, run)) < shown_first(*map(int, kept[name])))
    }
    for name, array in more.items():
        if name not in kept or name.partition("_")[2] in first:
            kept[name] = array
