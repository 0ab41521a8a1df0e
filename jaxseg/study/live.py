"""Reads how far a study that still trains has come: what its jobs measured so far, and how much of that is saved.

Nothing here comes from test cases, and nothing is judged: a study is evaluated once, at its end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from jaxseg import checkpoint, logs, workdirs
from jaxseg.study.claims.drawn import drawn_curves
from jaxseg.study.claims.rules import CONFIDENCE
from jaxseg.study.record import RecordedRun, StudyRecord

JOB_COLUMNS = ("directory", "kind", "n_runs", "step", "steps", "saved", "n_diverged")
NETWORK_COLUMNS = (
    *("kind", "arm", "train_cases", "fold", "seed", "lr", "step", "steps", "loss", "val_step", "value", "diverged_at"),
)
_KEYS = ("arm", "train_cases", "fold", "seed")


class LiveJob(NamedTuple):
    """A job as the record plans it, with what it has measured."""

    directory: str
    runs: tuple[RecordedRun, ...]
    kinds: tuple[str, ...]
    """The kind of each run's curves, see `curve_tables`; `select` for trials of learning rates, which have none."""
    log: logs.TrainingLog
    saved: int | None
    """The last saved step; None if nothing is saved yet."""


def read_jobs(workdir: Path, study: StudyRecord) -> tuple[LiveJob, ...]:
    """Reads what the jobs of a study have measured so far, in the order of training, from their metrics.jsonl.

    Args:
        workdir: The folder of the study.
        study: Its record, as planned; how its runs went is not taken from it.
    """
    kinds = _kinds(study)
    return tuple(_read_job(workdir, name, runs, kinds) for name, runs in _planned_jobs(study).items())


def progress_tables(jobs: Sequence[LiveJob]) -> dict[str, pd.DataFrame]:
    """Tabulates how far jobs and networks are.

    Returns:
        `jobs`, a row for each job, with `JOB_COLUMNS`; `networks`, a row for each run, with `NETWORK_COLUMNS`, where
        `value` is the last validation score.
    """
    networks = [row for job in jobs for row in _network_rows(job)]
    return {
        "jobs": pd.DataFrame([_job_row(job) for job in jobs], columns=list(JOB_COLUMNS)),
        "networks": pd.DataFrame(networks, columns=list(NETWORK_COLUMNS)),
    }


def curve_tables(jobs: Sequence[LiveJob]) -> dict[str, pd.DataFrame]:
    """Tabulates the curves of networks so far.

    Returns:
        `curve_runs` and `curve_means` as on the page of a finished study, without intervals, with a column `kind`:
        `train`, `pretrain`, or `restore` for source networks that learn without labels, whose validation score is the
        restored share.
    """
    curves = [_curves(jobs, kind) for kind in ("train", "pretrain", "restore")]
    return {
        "curve_runs": pd.concat([runs for runs, _ in curves], ignore_index=True),
        "curve_means": pd.concat([means for _, means in curves], ignore_index=True),
    }


def run_steps_left(jobs: pd.DataFrame) -> int:
    """Returns how many training steps are left, those of each run counted by itself."""
    return int((jobs["n_runs"] * (jobs["steps"] - jobs["step"])).sum())


def current_job(jobs: pd.DataFrame) -> Any | None:
    """Returns the row of the first job that is not at its last step; None if all are."""
    return next(iter(jobs[jobs["step"] < jobs["steps"]].itertuples(index=False)), None)


def _planned_jobs(study: StudyRecord) -> dict[str, tuple[RecordedRun, ...]]:
    """The runs of each job. A job that ran out of memory was cut, which the record tells by its chunks first."""
    jobs: dict[str, tuple[RecordedRun, ...]] = {}
    for folder, members in itertools.groupby(study.runs, lambda run: run.directory.rpartition("/")[0]):
        runs = tuple(members)
        sizes = study.chunks.get(folder.rpartition("/")[2], ())
        if sum(sizes) != len(runs):
            jobs |= {name: tuple(own) for name, own in itertools.groupby(runs, lambda run: run.directory)}
            continue
        ends = list(itertools.accumulate(sizes))
        for chunk, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            jobs[f"{folder}/chunk_{chunk}"] = runs[end - size : end]
    return jobs


def _read_job(workdir: Path, name: str, runs: tuple[RecordedRun, ...], kinds: Mapping[str, str]) -> LiveJob:
    directory = workdirs.inside(workdir, *name.split("/"))
    saved = checkpoint.saved_steps(directory / "checkpoints")
    rows = logs.read_lines(directory, len(runs))
    own = tuple(kinds.get(run.arm, run.kind) if run.kind == "pretrain" else run.kind for run in runs)
    return LiveJob(name, runs, own, logs.make_log(rows, len(runs)), saved[-1] if saved else None)


def _kinds(study: StudyRecord) -> Mapping[str, str]:
    """`restore` for the names of source networks that learn without labels."""
    starts = {run.source.arm: run.arm for run in study.runs_of("train") if run.source is not None}
    made = {source: study.arms[arm].pretrain for source, arm in starts.items()}
    return {source: "restore" for source, how in made.items() if how is not None and how.objective != "labels"}


def _job_row(job: LiveJob) -> dict[str, Any]:
    return {
        "directory": job.directory,
        "kind": job.runs[0].kind,
        "n_runs": len(job.runs),
        "step": _last(job.log),
        "steps": job.runs[0].steps,
        "saved": job.saved,
        "n_diverged": sum(step is not None for step in job.log.diverged_at),
    }


def _last(log: logs.TrainingLog) -> int:
    return int(log.step[-1]) if len(log.step) else 0


def _network_rows(job: LiveJob) -> Iterator[dict[str, Any]]:
    """The last measurements of each run of a job; missing where there are none yet."""
    log, died = job.log, job.log.diverged_at
    validated = log.step[log.validated]
    for index, run in enumerate(job.runs):
        values = log.val_dsc[index, log.validated]
        yield {
            **{name: getattr(run, name) for name in _KEYS},
            "kind": job.kinds[index],
            "lr": run.lr,
            "step": _last(log),
            "steps": run.steps,
            "loss": float(log.loss[index, -1]) if _last(log) else math.nan,
            "val_step": int(validated[-1]) if len(validated) else None,
            "value": float(values[-1]) if len(values) else math.nan,
            "diverged_at": died[index],
        }


def _curves(jobs: Sequence[LiveJob], kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves of the runs of a kind."""
    parts, lost = [pd.DataFrame(columns=[*_KEYS, "step", "loss", "val_dsc"])], set()
    for job in jobs:
        for index, (run, died) in enumerate(zip(job.runs, job.log.diverged_at, strict=True)):
            if job.kinds[index] != kind or not len(job.log.step):
                continue
            measured = {"step": job.log.step, "loss": job.log.loss[index], "val_dsc": job.log.val_dsc[index]}
            parts.append(pd.DataFrame(measured).assign(**{name: getattr(run, name) for name in _KEYS}))
            if died is not None:
                lost.add(run.key)
    filled = [part for part in parts if len(part)] or parts
    runs, means = drawn_curves(pd.concat(filled, ignore_index=True), lost, confidence=CONFIDENCE)
    # An interval would invite to compare arms of which some seeds, or some steps, are still to come.
    return runs.assign(kind=kind), means.assign(kind=kind, ci_low=math.nan, ci_high=math.nan)
