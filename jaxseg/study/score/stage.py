"""Scores all runs on the test cases, one part table a job and set of cases, so that a crash costs one."""

from __future__ import annotations

import collections
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxseg import checkpoint, data, hosts, manifest
from jaxseg.data.volumes.resample import labels_from_probabilities, resize_linear
from jaxseg.settings import StudySettings
from jaxseg.study import files
from jaxseg.study.plan.binding import Draw
from jaxseg.study.plan.jobs import Job, own_rows
from jaxseg.study.plan.runs import Run
from jaxseg.study.plan.tasks import Tasks
from jaxseg.study.predict import classes_of, cleaned_up
from jaxseg.study.score import examples, prior
from jaxseg.study.score.scoring import CaseSet, Row, Scoring, case_sets, make_save, score_run
from jaxseg.types import Progress, RunKey

CASES, ENSEMBLE = "cases", "ensemble"
"""What the part tables of a job and a set of cases hold: the scores of its runs, and those of its ensembles."""
PART = f"{CASES}.csv"
EXAMPLES = "examples.npz"
NETWORKS = "scored.json"
"""Checksums of the networks that the part tables are of, by table and step."""
PRIORS = "priors"
"""The part tables of all arms without a network."""


def evaluate_job(study: StudySettings, workdir: Path, tasks: Tasks, job: Job, progress: Progress) -> None:
    """Predicts and scores the test cases of a job's runs, this host's of them, and writes their part tables.

    Only cases that one of these runs is tested on are read. Runs that diverged have no scores; they are listed as
    excluded instead. With `evaluate.budget_tests` the networks of shorter budgets are scored as well, each in a table
    of its own.
    """
    rows_here = own_rows(study, job, hosts.index())
    for cases in case_sets(study, tasks) if rows_here else ():
        # With one host the part is the whole, which was asked about already.
        parts = [
            workdir / job.directory / _part_name(name, rows_here, job) for name in _needed(study, workdir, job, cases)
        ]
        whole = len(rows_here) == len(job.runs)
        if not _is_scored(study, workdir, tasks, job, cases) and (whole or not files.are_sound(parts)):
            _evaluate(study, workdir, tasks, Scoring(study, workdir, cases, job, rows_here), progress)


def _evaluate(study: StudySettings, workdir: Path, tasks: Tasks, scoring: Scoring, progress: Progress) -> None:
    """Scores a host's runs of a job on one set of cases; the table that says so is written last."""
    job, cases = scoring.whole, scoring.cases

    def write(name: str, rows: Sequence[Row]) -> None:
        path = workdir / job.directory / _part_name(name, scoring.rows_here, job)
        files.write_table(path, pd.DataFrame(rows))

    if cases.is_internal:
        _warn_of_lost_steps(study, workdir, job)
        for step in budget_steps(study, workdir, job):
            if step in _saved_steps(workdir, job):
                write(budget_part(step), scoring.rows(step, progress=progress).of_runs)
    pictures: dict[str, np.ndarray] = {}
    found = scoring.rows(
        job.program.train.steps,
        progress=progress,
        shown=examples.example_cases(study, tasks) if cases.is_internal else (),
        pictures=pictures,
        saving=make_save(study, workdir, cases, job) if study.evaluate.save_predictions else None,
        ensembles=study.evaluate.ensemble,
    )
    if cases.is_internal:
        files.write_arrays(workdir / job.directory / _part_name(EXAMPLES, scoring.rows_here, job), pictures)
    if study.evaluate.ensemble:
        write(cases.part(ENSEMBLE), found.of_ensembles)
    write(cases.part(CASES), found.of_runs)
    if len(scoring.rows_here) == len(job.runs):
        _note_networks(workdir, job, cases)


def budget_steps(study: StudySettings, workdir: Path, job: Job) -> tuple[int, ...]:
    """Returns the shorter budgets that have scores on test cases, or networks that are saved to be scored."""
    saved, directory = _saved_steps(workdir, job), workdir / job.directory
    return tuple(
        step
        for step in _wanted_steps(study, job)
        if step in saved or manifest.damage(directory / budget_part(step)) is None
    )


def _wanted_steps(study: StudySettings, job: Job) -> tuple[int, ...]:
    return job.program.train.scored_at[:-1] if study.evaluate.budget_tests else ()


def _saved_steps(workdir: Path, job: Job) -> tuple[int, ...]:
    return checkpoint.saved_steps(workdir / job.directory / "checkpoints")


def _warn_of_lost_steps(study: StudySettings, workdir: Path, job: Job) -> None:
    """Warns of shorter budgets whose networks are gone, such as those of a damaged checkpoint that was removed."""
    lost = [str(step) for step in _wanted_steps(study, job) if step not in _saved_steps(workdir, job)]
    if lost:
        told = f"{workdir / job.directory}: the networks of step {', '.join(lost)} are gone, and are not scored"
        warnings.warn(told, stacklevel=2)


def budget_part(step: int) -> str:
    """Returns the path of a job's table of scores after a number of steps."""
    return f"cases_{step}.csv"


def _needed(study: StudySettings, workdir: Path, job: Job, cases: CaseSet) -> tuple[str, ...]:
    """The files without which a job is not scored on a set of cases."""
    if not cases.is_internal:
        return (cases.part(CASES),)
    return (PART, EXAMPLES, *map(budget_part, budget_steps(study, workdir, job)))


def _is_scored(study: StudySettings, workdir: Path, tasks: Tasks, job: Job, cases: CaseSet) -> bool:
    """Whether the files of all runs of a job are there as they were written, of the networks that are there now."""
    directory = workdir / job.directory
    if not files.are_sound(directory / name for name in _needed(study, workdir, job, cases)):
        return False
    if cases.is_internal:
        pictures = files.read_arrays(directory / EXAMPLES)
        if pictures and not examples.are_of(pictures, examples.example_cases(study, tasks)):
            return False
    scored = _scored_networks(directory).get(cases.part(CASES), {})
    if all(scored.get(step, mark) == mark for step, mark in _networks(workdir, job).items()):
        return True
    warnings.warn(
        f"{directory}: its networks were trained anew since they were scored; they are scored anew", stacklevel=2
    )
    return False


def _networks(workdir: Path, job: Job) -> dict[str, str]:
    """Checksums of the networks of a job that are scored, by step."""
    return checkpoint.networks_of(workdir / job.directory / "checkpoints", job.program.train.scored_at)


def _scored_networks(directory: Path) -> dict[str, dict[str, str]]:
    """Checksums of the networks that tables of scores are of; an earlier version did not note them."""
    path = directory / NETWORKS
    return files.read_json(path) if files.are_sound([path]) else {}


def _note_networks(workdir: Path, job: Job, cases: CaseSet) -> None:
    """Notes of which networks a job's table of scores is."""
    directory = workdir / job.directory
    noted = _scored_networks(directory) | {cases.part(CASES): _networks(workdir, job)}
    files.write_json(directory / NETWORKS, noted)


def _part_name(name: str, rows: Sequence[int], job: Job) -> str:
    """A job's file, or that of some of its runs where several hosts share them.

    Each host's files have a folder of their own, since only one process at a time may write a folder's manifest.
    """
    return name if len(rows) == len(job.runs) or not rows else f"part_{rows[0]}-{rows[-1]}/{name}"


def merge_parts(study: StudySettings, workdir: Path, tasks: Tasks, job: Job) -> None:
    """Merges what several hosts wrote about a job's runs into the job's own files; does nothing with one host."""
    directory = workdir / job.directory
    shares = [rows for host in range(hosts.count()) if (rows := own_rows(study, job, host))]
    for cases in case_sets(study, tasks):
        if _is_scored(study, workdir, tasks, job, cases):
            continue
        names = [cases.part(ENSEMBLE)] if study.evaluate.ensemble else []
        if cases.is_internal:
            pictures: dict[str, np.ndarray] = {}
            for rows in shares:
                examples.keep_shown(pictures, files.read_arrays(directory / _part_name(EXAMPLES, rows, job)))
            files.write_arrays(directory / EXAMPLES, pictures)
            names += map(budget_part, budget_steps(study, workdir, job))
        for name in (*names, cases.part(CASES)):
            tables = [files.read_table(directory / _part_name(name, rows, job)) for rows in shares]
            files.write_table(directory / name, pd.concat(tables, ignore_index=True))
        _note_networks(workdir, job, cases)
    # Also those of earlier processes, when there was another number of hosts.
    for part in directory.glob("part_[0-9]*-[0-9]*"):
        shutil.rmtree(part)


def priors_part(cases: CaseSet) -> str:
    """Returns the file, relative to the workdir, with the rows of all arms without a network on a set of cases."""
    return f"train/{cases.part(PRIORS)}"


def evaluate_priors(study: StudySettings, workdir: Path, tasks: Tasks, runs: Sequence[Run], progress: Progress) -> None:
    """Scores the mean label map of each run's training cases, and writes one part table of all of them for each set.

    Runs that are in the table already are left as they are: a study may have been given more seeds since.
    """
    target = tasks.prepared[study.target]
    fitted: dict[tuple[str, ...], np.ndarray] = {}
    for cases in case_sets(study, tasks):
        path = workdir / priors_part(cases)
        before = files.read_table(path) if files.are_sound([path]) else pd.DataFrame(columns=list(RunKey._fields))
        scored = set(before[list(RunKey._fields)].itertuples(index=False, name=None))
        missing = [run for run in runs if run.key not in scored]
        if not missing:
            continue
        rows: list[Row] = []
        for done, run in enumerate(missing, start=1):
            names = tasks.subset(study.target, Draw(run.key.train_cases, run.key.fold, run.subset_id))
            if names not in fitted:
                own = tasks.fitted[study.target][run.key.fold]
                maps = [data.load_case(own, name).label for name in names]
                fitted[names] = prior.fit_prior(maps, target.members, overlapping=target.regions is not None)
            rows += _score_prior(study, cases, run, fitted[names])
            progress("scoring", done, len(missing), run.name())
        added = pd.DataFrame(rows)
        files.write_table(path, pd.concat([before, added], ignore_index=True) if scored else added)


def _score_prior(study: StudySettings, cases: CaseSet, run: Run, fitted: np.ndarray) -> list[Row]:
    prepared = cases.fitted[run.key.fold]
    clean = classes_of(study.evaluate.largest_component, prepared.labels)
    no_calibration: Mapping[str, float] = collections.defaultdict(lambda: float("nan"))  # its scores are no chances
    rows: list[Row] = []
    for case in (data.load_case(prepared, name) for name in cases.by_fold[run.key.fold]):
        scores = resize_linear(fitted, case.record.shape)
        found = labels_from_probabilities(scores, case.record.own_shape, prepared.regions)
        labels = cleaned_up(found, clean, prepared.regions)
        rows += score_run(study, prepared, case, run, labels, no_calibration, None)
    return rows
