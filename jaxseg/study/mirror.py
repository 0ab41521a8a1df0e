"""What an experiment tracker shows of a study: a run for each network, one for each arm, and one for the whole study.

This is read from the workdir, of a study that trains as of a finished one, and knows no tracker. Tables that are there
are taken from them; before the evaluation, curves come from the last checkpoint of each job.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jaxseg import checkpoint, logs, workdirs
from jaxseg.reserved import POOLED
from jaxseg.settings import ArmSettings
from jaxseg.study import api, files, recorded_runs
from jaxseg.study.plan.binding import Binding, read_binding
from jaxseg.study.record import RecordedRun, StudyRecord
from jaxseg.types import RunKey, UserError

State = Literal["running", "finished", "failed"]
STUDY = "study"
"""Key of the run that stands for the whole study; no arm's key, since those begin with `arm:`."""
_LATER = ("name", "num_seeds", "seed_ids", "looks", "runtime", "report", "arms")
"""Settings of a study that may change while it stays the same study, or that its arms carry themselves."""


class Point(NamedTuple):
    """One value of a measurement."""

    name: str
    step: int
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirroredRun:
    """One run of a tracker."""

    key: str
    """Identifies the run within the study, always the same."""
    parent: str | None
    """Key of the run that it stands below."""
    title: str
    state: State
    params: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    points: tuple[Point, ...] = ()
    files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirror:
    """A study as a tracker shows it."""

    study: str
    """The study's unique id."""
    name: str
    runs: tuple[MirroredRun, ...]
    """Every run after the one that it stands below."""
    missing: tuple[str, ...]
    """What is not there yet, in words."""


def mirror(workdir: Path, *, page: bool = True, busy: bool = False) -> Mirror:
    """Reads what a tracker shows of a study.

    No lock is taken, since the process that trains holds it to the end. Every file is whole whenever it is read, but
    while another process works there, files may be of different moments: then nothing is called finished as a whole.

    Args:
        workdir: Folder of the study, which another process may be writing.
        page: Whether the page, which holds pictures of cases, is among the files.
        busy: Whether a process works on the study elsewhere, as on the bucket of which the folder is a copy.

    Raises:
        UserError: If there is no study, or none that has begun to train.
    """
    busy = busy or files.is_locked(workdir)
    study = api.load(workdir)
    binding = read_binding(study.workdir)
    if binding is None:
        raise UserError(
            f"the study in {study.workdir} has not begun to train, so that there is nothing to show of it yet"
        )
    results = study.workdir / "results"
    scores, summary = _table(results, "seed_scores"), _table(results, "summary")
    curves = _Curves(study.workdir, study.record)
    names = _metric_names([*scores.get("label", ()), *summary.get("label", ())])
    common = _common_tags(study.record, binding)
    networks = []
    for run in study.record.runs_of("train"):
        arm = next(arm for arm in study.settings.arms if arm.name == run.arm)
        networks.append(_network(run, arm, study, common, curves, _scores_of(run, scores, names)))
    known = [path for path in _files(study.workdir, page) if files.was_written(path)]
    busy = busy or files.is_locked(study.workdir)  # one that began meanwhile too
    done = not busy and all(run.state != "running" for run in networks)
    arms = [
        MirroredRun(
            key=f"arm:{arm.name}",
            parent=STUDY,
            title=arm.name,
            state="finished" if done and len(summary) else "running",
            params=flattened(arm),
            tags=common | {"arm": arm.name},
            points=_summary_of(arm.name, summary, names),
        )
        for arm in study.settings.arms
    ]
    whole = MirroredRun(
        key=STUDY,
        parent=None,
        title=study.record.name,
        state="finished" if done and study.workdir / "results" / "claims.csv" in known else "running",
        params=_study_params(study),
        tags=common | {"seeds": str(len(study.seeds))},
        files=tuple(known),
    )
    missing = (*_missing_runs(networks, curves), *_missing_files(study.workdir, known, page))
    if busy:
        missing = (*missing, "the end of the study: a process works on it, and what it wrote so far is shown")
    return Mirror(study=binding.study, name=study.record.name, runs=(whole, *arms, *networks), missing=missing)


def flattened(settings: Any, prefix: str = "") -> dict[str, str]:
    """Returns the fields of settings as text, with dotted names.

    >>> import dataclasses
    >>> @dataclasses.dataclass
    ... class Optim:
    ...     lr: float = 1e-3
    >>> @dataclasses.dataclass
    ... class Arm:
    ...     init: str
    ...     optim: Optim
    >>> flattened(Arm("random", Optim()))
    {'init': 'random', 'optim.lr': '0.001'}
    """
    found: dict[str, str] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found |= flattened(value, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = str(value)
    return found


# ----------------------------------------------------------------------------------------------------------- one run


def _network(
    run: RecordedRun,
    arm: ArmSettings,
    study: api.FinishedStudy,
    common: Mapping[str, str],
    curves: _Curves,
    scores: tuple[Point, ...],
) -> MirroredRun:
    points, died = curves.of(run)
    state: State = "failed" if died is not None else "finished" if scores else "running"
    own = {name: str(getattr(run, name)) for name in ("train_cases", "fold", "seed", "steps")}
    own |= {name: str(getattr(run, name)) for name in ("init_id", "order_id", "subset_id")}
    if points:  # only a run that trains has its rate for good: it may be chosen by trials
        own["lr"] = str(run.lr)
    recorded = study.record.arms[run.arm]
    sizes = {"parameters": str(recorded.parameters), "trainable": str(recorded.trainable)}
    identity = {name: str(getattr(run, name)) for name in ("arm", "train_cases", "fold", "seed")}
    return MirroredRun(
        key=f"run:{recorded_runs.named(run.key)}",
        parent=f"arm:{run.arm}",
        title=recorded_runs.named(run.key),
        state=state,
        # What the run itself drew and used stands for the arm's list of sizes.
        params={**flattened(arm), **sizes, **own},
        tags={**common, **identity, **({} if died is None else {"diverged_at": str(died)})},
        points=(*points, *scores),
    )


class _Curves:
    """The curves of runs: those of the table, and of runs that it lacks those of their job's last checkpoint."""

    def __init__(self, workdir: Path, record: StudyRecord) -> None:
        self._workdir = workdir
        self._jobs: dict[str, dict[RunKey, _Curve]] = {}
        self.unreadable: list[str] = []
        """Jobs whose checkpoints cannot be read now."""
        self._tabulated: dict[RunKey, pd.DataFrame] = {}
        table = _table(workdir / "results", "curves")
        if len(table):
            key: Any
            for key, rows in table.groupby(["arm", "train_cases", "fold", "seed"]):
                self._tabulated[RunKey(*key)] = rows

    def of(self, run: RecordedRun) -> tuple[tuple[Point, ...], int | None]:
        """The curves of a run, and the step at which it diverged."""
        rows = self._tabulated.get(run.key)
        if rows is not None:
            return tuple(_points(rows["step"], loss=rows["loss"], val_dsc=rows["val_dsc"])), run.diverged_at
        if run.directory not in self._jobs:
            self._jobs[run.directory] = self._read(run.directory)
        found = self._jobs[run.directory].get(run.key)
        return ((), run.diverged_at) if found is None else (found.points, found.diverged_at)

    def _read(self, name: str) -> dict[RunKey, _Curve]:
        directory = workdirs.inside(self._workdir, *name.split("/"))
        folder = directory / "checkpoints"
        try:
            steps = checkpoint.saved_steps(folder)
            # Which runs a job has is asked of its checkpoint: one that ran out of memory is cut into others.
            held = recorded_runs.held_runs(folder, steps[-1]) if steps else ()
            log = logs.read_log(directory, len(held))
        except (UserError, OSError):  # damaged, or replaced by the next one while it was read
            self.unreadable.append(name)
            return {}
        died = log.diverged_at
        return {
            key: _Curve(tuple(_points(log.step, loss=log.loss[index], val_dsc=log.val_dsc[index])), died[index])
            for index, key in enumerate(held)
        }


class _Curve(NamedTuple):
    points: tuple[Point, ...]
    diverged_at: int | None


def _points(steps: Iterable[int], **columns: Iterable[float]) -> Iterator[Point]:
    """The values that are numbers: validations are rarer than losses, and a run that diverged has neither."""
    at = np.asarray(steps)
    for name, values in columns.items():
        numbers = zip(at.tolist(), np.asarray(values, np.float64).tolist(), strict=True)
        yield from (Point(name, int(step), value) for step, value in numbers if math.isfinite(value))


# ------------------------------------------------------------------------------------------------------------ tables


def _table(results: Path, name: str) -> pd.DataFrame:
    """A table of the results; empty if it is not there."""
    path = files.find_table(results, name)
    return pd.DataFrame() if path is None else files.read_table(path)


def _metric_names(labels: Iterable[str]) -> dict[str, str]:
    """Names for labels of letters, digits, spaces, `-` and `_`, which every tracker takes; each label has its own."""
    made: dict[str, str] = {}
    for label in sorted(set(labels)):
        plain = name = re.sub(r"[^A-Za-z0-9 _-]", "_", label)
        number = 1
        while name in made.values():
            number += 1
            name = f"{plain}_{number}"
        made[label] = name
    return made


def _scores_of(run: RecordedRun, scores: pd.DataFrame, names: Mapping[str, str]) -> tuple[Point, ...]:
    """The test scores of a run, at its last step."""
    if scores.empty:
        return ()
    same = (scores["arm"] == run.arm) & (scores["train_cases"] == run.train_cases) & (scores["seed"] == run.seed)
    rows = scores[same & (scores["fold"] == run.fold)]
    values = zip(rows["metric"], rows["label"], rows["value"], strict=True)
    return tuple(
        Point(f"test_{metric}/{names[label]}", run.steps, float(value))
        for metric, label, value in values
        if math.isfinite(value)
    )


def _summary_of(arm: str, summary: pd.DataFrame, names: Mapping[str, str]) -> tuple[Point, ...]:
    """The mean scores of an arm, of each of its sizes and folds."""
    if summary.empty:
        return ()
    rows = summary[(summary["arm"] == arm) & np.isfinite(summary["mean"])]
    variants = {(size, fold) for size, fold in zip(rows["train_cases"], rows["fold"], strict=True)}
    found = []
    for size, fold, label, metric, mean in rows[["train_cases", "fold", "label", "metric", "mean"]].itertuples(
        index=False
    ):
        variant = f"n{size}" if fold == POOLED else f"n{size}_fold{fold}"
        prefix = f"{variant}/" if len(variants) > 1 else ""
        found.append(Point(f"{prefix}test_{metric}/{names[label]}", 0, float(mean)))
    return tuple(found)


# ------------------------------------------------------------------------------------------------------ whole study


def _common_tags(record: StudyRecord, binding: Binding) -> dict[str, str]:
    """The tags of every run: which study and data they belong to, and what made them."""
    tags = {"study": binding.study, "data": binding.data, "rule_version": str(record.rule_version)}
    tags |= {f"version.{name}": version for name, version in record.versions.items() if version}
    if record.git_commit:
        tags["git_commit"] = record.git_commit
    if record.device:
        tags["device"] = f"{record.device.count} x {record.device.kind}"
    return tags


def _study_params(study: api.FinishedStudy) -> dict[str, str]:
    """The settings that all arms share."""
    params: dict[str, str] = {}
    for field in dataclasses.fields(study.settings):
        value = getattr(study.settings, field.name)
        if field.name in _LATER:
            continue
        if dataclasses.is_dataclass(value):
            params |= flattened(value, f"{field.name}.")
        else:
            params[field.name] = str(value)
    return params


def _files(workdir: Path, page: bool) -> list[Path]:
    tables = [workdir / "results" / f"{name}.csv" for name in ("claims", "summary", "comparisons")]
    return [*([workdir / "report.html"] if page else []), *tables, workdir / "config.json", workdir / "study.json"]


def _missing_files(workdir: Path, known: list[Path], page: bool) -> list[str]:
    lost = [str(path.relative_to(workdir)) for path in _files(workdir, page) if path not in known]
    return [f"{', '.join(lost)}: written at the end"] if lost else []


def _missing_runs(networks: list[MirroredRun], curves: _Curves) -> list[str]:
    total = len(networks)
    found = []
    if untrained := sum(not run.points and run.state != "failed" for run in networks):
        found.append(f"curves of {untrained} of {total} networks: no checkpoint of their job yet")
    if unscored := sum(run.state == "running" for run in networks):
        found.append(f"test scores of {unscored} of {total} networks: written by the stages evaluate and analyze")
    if curves.unreadable:
        found.append(f"curves of {', '.join(curves.unreadable)}: the last checkpoint cannot be read at the moment")
    return found
