"""Locates the parameters of recorded runs, and checks them against the config and the checkpoints themselves.

What the record says decides which network is read and how images are prepared for it, so that a record that is wrong
would give another network's predictions without a word.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from jaxseg import checkpoint, workdirs
from jaxseg.settings import StudySettings
from jaxseg.study import record, typed_json
from jaxseg.study.plan.runs import target_runs
from jaxseg.study.record import RecordedRun, StudyRecord
from jaxseg.types import RunKey, UserError


class Place(NamedTuple):
    """The place of one run's parameters on disk."""

    directory: Path
    """The folder `checkpoints` of a job."""
    step: int
    position: int
    """The position of the run on the run axis."""


def compare(found: StudyRecord, study: StudySettings, workdir: Path) -> None:
    """Compares the arms and runs of a record with those of the study's config.

    Raises:
        UserError: If they differ, or a run is listed twice.
    """
    path = workdir / record.NAME
    arms = {arm.name for arm in study.arms}
    if set(found.arms) != arms:
        raise UserError(
            f"{path} has the arms {', '.join(map(repr, found.arms))}, and config.json beside it "
            f"{', '.join(sorted(map(repr, arms)))}: they are not of one study; {record.MEND}"
        )
    networks = [arm for arm in study.arms if arm.kind == "network"]
    expected = Counter(run.key for arm in networks for run in target_runs(study, arm, None))
    held = Counter(run.key for run in found.runs_of("train"))
    for key in sorted((expected - held) | (held - expected)):
        raise UserError(
            f"{path} has the run {named(key)} {held[key]} time(s), and by config.json beside it there is "
            f"{'one' if key in expected else 'none'}: they are not of one study; {record.MEND}"
        )


def place_of(workdir: Path, run: RecordedRun) -> Place:
    """Finds the parameters of a run, and checks that the checkpoints there claim to hold it.

    Raises:
        UserError: If the record names a place outside the workdir, or one that holds another run.
    """
    path, name = workdir / record.NAME, named(run.key)
    try:
        directory = workdirs.inside(workdir, *run.directory.split("/")) / "checkpoints"
    except UserError as error:
        raise UserError(f"{path}: the directory of the run {name} is {run.directory!r}: {error}") from None
    steps = checkpoint.saved_steps(directory)
    if steps and steps[-1] > run.steps:
        raise UserError(
            f"{path}: the run {name} has {run.steps} steps, and its checkpoints in {directory} go to {steps[-1]}; "
            f"{record.MEND}"
        )
    if steps:
        _check_held(directory, steps[-1], run, path)
    return Place(directory, run.steps, run.index)


def named(key: RunKey) -> str:
    """Returns a run's name for messages, as in logs."""
    return f"{key.arm}/{key.variant()}/seed_{key.seed}"


class _Held(NamedTuple):
    """What a checkpoint says of the runs that it holds."""

    runs: tuple[RunKey, ...]


def held_runs(directory: Path, step: int) -> tuple[RunKey, ...]:
    """Returns the runs that a checkpoint claims to hold, in the order of its run axis.

    Raises:
        UserError: If the claim is damaged, or not a list of runs.
    """
    try:
        held: _Held = typed_json.from_tree(_Held, checkpoint.read_meta(directory, step))
    except typed_json.MismatchError as error:
        raise UserError(f"checkpoint {directory / str(step)} does not say which runs it holds: {error}") from None
    return held.runs


def _check_held(directory: Path, step: int, run: RecordedRun, said_by: Path) -> None:
    """Compare a run of the record `said_by` with what a checkpoint of a job says of its position."""
    runs, index = held_runs(directory, step), run.index
    there = runs[index] if 0 <= index < len(runs) else None
    if there != run.key:
        what = "nothing" if there is None else f"the run {named(there)}"
        raise UserError(
            f"{said_by}: the run {named(run.key)} is said to lie at index {index} of {directory.parent}, and its "
            f"checkpoints hold {what} there; {record.MEND}"
        )
