"""Records a planned study in study.json: its present plan, and how its runs went so far."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxseg import checkpoint, logs, optim
from jaxseg.manifest import DamagedError
from jaxseg.settings import ArmSettings, TaskSettings
from jaxseg.study import clock, record, typed_json
from jaxseg.study.clock import Spent
from jaxseg.study.plan import source_networks
from jaxseg.study.plan.external import left_out_of, role_of
from jaxseg.study.plan.jobs import Job, chunk_sizes
from jaxseg.study.plan.planned import PlannedStudy, subsets_of
from jaxseg.study.plan.tasks import Tasks
from jaxseg.study.record import (
    Counts,
    Exclusion,
    MadeWith,
    RecordedArm,
    RecordedPart,
    RecordedRun,
    RecordedSet,
    RecordedTask,
    StudyRecord,
    Subset,
    Training,
)
from jaxseg.study.recorded_runs import named
from jaxseg.study.train import learning_rates
from jaxseg.study.versions import made_with, ways


def write_study(planned: PlannedStudy, spent: Spent, rule_version: int) -> None:
    """Writes study.json: what was planned, with which code, on which data, and how it went so far.

    Args:
        planned: The planned study.
        spent: What a stage took in this process, which is added to what it took in earlier ones.
        rule_version: Version of this code's rules; a study that began to train under other rules keeps theirs.
    """
    try:
        before = record.read(planned.workdir)
    except DamagedError:  # `plan.planned.chunks_of` has said so
        before = None
    record.write(planned.workdir, planned_record(planned, rule_version, spent, before))


def planned_record(
    planned: PlannedStudy,
    rule_version: int,
    spent: Spent | None = None,
    before: StudyRecord | None = None,
) -> StudyRecord:
    """The record of a study as it stands: of one that never trained, what it will be if no run diverges.

    Args:
        planned: The study.
        rule_version: See `write_study`.
        spent: See `write_study`.
        before: What was recorded before.
    """
    study, plan, tasks, binding = planned.study, planned.plan, planned.tasks, planned.binding
    runs = tuple(_runs(planned))
    refused = [Exclusion(*case) for prepared in tasks.prepared.values() for case in prepared.report.refused]
    trained_on = tuple(typed_json.from_tree(MadeWith, made) for made in _trained_on(planned))
    return StudyRecord(
        format=record.FORMAT,
        name=study.name,
        rule_version=rule_version if binding is None else binding.rule_version,
        **typed_json.from_tree(MadeWith, made_with())._asdict(),
        trained_on=trained_on or (before.trained_on if before else ()),
        source=_source_task(planned),
        target=_task(planned, study.target),
        arms={
            arm.name: RecordedArm(
                kind=arm.kind,
                init=arm.init,
                freeze=arm.freeze,
                schedule=arm.optim.schedule,
                parameters=plan.networks[arm.name].parameters,
                trainable=plan.networks[arm.name].trainable,
                pretrain=source_networks.pretraining_of(arm),
                source=_source_of(planned, arm),
                fine_tuning="" if arm.kind == "prior" else optim.fine_tuning(arm.optim),
                settings=_settings(arm),
                training=_settings(arm, seeds=False),
                lr_choice=_lr_choice(arm),
            )
            for arm in study.arms
        },
        runs=runs,
        train=Training(study.train.steps),
        chunks={} if binding is None else chunk_sizes(plan),  # before it trains, another machine may cut otherwise
        stores=_stores(tasks),
        **_times(before, spent),
        exclusions=(*_lost(runs), *refused, *(Exclusion(*case) for case in left_out_of(tasks))),
        vary=study.vary,
        waves=planned.waves,
        looks=study.looks if binding is None else binding.looks,
        average=study.train.average,
        external=tuple(RecordedSet(one.name, one.prepared.name, one.cases) for one in tasks.external),
        exploratory=_why_exploratory(planned),
    )


def _lost(runs: Sequence[RecordedRun]) -> Iterator[Exclusion]:
    """The runs that diverged, by themselves or before they began."""
    dead = {run.key for run in runs if run.diverged_at is not None}
    for run in runs:
        if run.diverged_at is not None:
            own = f"diverged at step {run.diverged_at}"
            yield Exclusion(named(run.key), "its source network diverged" if run.source in dead else own)


def _times(before: StudyRecord | None, spent: Spent | None) -> dict[str, Any]:
    """The fields of a record that say what stages took, with what one of them has taken since."""
    timing = dict(before.timing) if before else {}
    parts = {stage: dict(of_stage) for stage, of_stage in before.parts.items()} if before else {}
    programs = before.programs if before else ()
    if spent is not None:
        timing[spent.stage] = round(timing.get(spent.stage, 0.0) + spent.seconds, 2)
        of_stage = parts.setdefault(spent.stage, {})
        for part, seconds in spent.parts.items():
            of_stage[part] = round(of_stage.get(part, 0.0) + seconds, 2)
        programs = clock.joined(programs, spent.programs)
    return {"timing": timing, "parts": parts, "programs": programs}


def _stores(tasks: Tasks) -> dict[str, str]:
    own = {tasks.role(task): prepared.directory.name for task, prepared in tasks.prepared.items()}
    return own | {role_of(external): external.prepared.directory.name for external in tasks.external}


def _source_task(planned: PlannedStudy) -> RecordedTask | None:
    """The first source: one that has nothing to do with the target if there is any, since others are controls."""
    own = [task for task in planned.tasks.prepared if task != planned.study.target]
    if apart := [task for task in own if task.data != "target"]:
        return _task(planned, apart[0])
    given = filter(None, map(source_networks.given_task, planned.study.arms))
    return next(given, None) or (_task(planned, own[0]) if own else None)


def _source_of(planned: PlannedStudy, arm: ArmSettings) -> str:
    """The data set that an arm's source networks were trained on."""
    if arm.kind == "prior" or arm.init == "random":
        return ""
    if arm.pretrain.from_workdir:
        return source_networks.given_source(arm)
    return planned.tasks.prepared[arm.source].name


def _settings(arm: ArmSettings, *, seeds: bool = True) -> str:
    """A digest of what decides an arm's networks and their training, but for where they start and the learning rate."""
    names = [field.name for field in dataclasses.fields(arm.optim)]
    # Fields on the rate, and on how it is chosen, begin with its name.
    optimizer = {name: getattr(arm.optim, name) for name in names if not name.startswith("lr")}
    drawn = (arm.vary, arm.cross, arm.cross_ids, arm.seed_offset) if seeds else ()
    decisive = *drawn, arm.model, optimizer, arm.loss, arm.train
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]


def _lr_choice(arm: ArmSettings) -> str:
    """How an arm's learning rates are chosen; empty if they are set, or there is nothing to train."""
    return arm.optim.lr_choice if arm.kind != "prior" and arm.optim.lr_grid else ""


def _why_exploratory(planned: PlannedStudy) -> str | None:
    """What was decided differently for each arm; that a study was extended, `waves` and `looks` say."""
    own = [arm.name for arm in planned.study.arms if _lr_choice(arm) == "per_arm"]
    return f"rates chosen for each arm by itself ({', '.join(own)})" if own else None


def _runs(planned: PlannedStudy) -> Iterator[RecordedRun]:
    chosen = _chosen_rates(planned)
    for job in planned.plan.jobs:
        log = _log_of(planned.workdir, job)
        died = log.diverged_at
        seconds = _seconds(log, len(job.runs))
        for index, run in enumerate(job.runs):
            taken = chosen.get((run.key.arm, *run.key[1:3]), run.rate) if job.kind == "train" else run.rate
            yield RecordedRun(
                arm=run.key.arm,
                train_cases=run.key.train_cases,
                fold=run.key.fold,
                seed=run.key.seed,
                kind=job.kind,
                directory=job.directory,
                index=index,
                diverged_at=died[index],
                steps=job.program.train.steps,
                lr=taken,
                init_id=run.init_id,
                order_id=run.order_id,
                subset_id=run.subset_id,
                source=run.source,
                seconds=seconds,
            )


def _task(planned: PlannedStudy, task: TaskSettings) -> RecordedTask:
    prepared, splits = planned.tasks.prepared[task], planned.tasks.splits[task]
    return RecordedTask(
        name=prepared.name,
        labels=tuple(prepared.labels),
        label_values=tuple(prepared.label_values),
        regions=prepared.regions,
        unit=task.unit,
        noise=task.noise,
        channels=prepared.channels,
        spacing_mm=prepared.spacing_mm,
        normalization=prepared.normalization,
        windows=tuple(fold.windows for fold in planned.tasks.fitted[task]),
        cases=Counts(len(splits[0].train), len(splits[0].val), len(splits[0].test)),
        splits=tuple(splits),
        subsets=tuple(Subset(*draw, cases) for draw, cases in subsets_of(planned, task).items()),
        parts=tuple(RecordedPart(*part) for part in prepared.part_table()),
    )


def _trained_on(planned: PlannedStudy) -> list[dict[str, Any]]:
    """With what the arms were trained, each way once: a workdir may move to another machine, and code may change."""
    found: list[dict[str, Any]] = []
    for job in planned.plan.of_kind("train"):
        folder = planned.workdir / job.directory / "checkpoints"
        steps = checkpoint.saved_steps(folder)
        with contextlib.suppress(OSError, ValueError):  # a damaged one, which training sets aside
            meta = checkpoint.read_meta(folder, steps[-1]) if steps else {}
            found += [made for made in ways(meta) if made not in found]
    return found


def _log_of(workdir: Path, job: Job) -> logs.TrainingLog:
    """What a job measured so far."""
    try:
        return logs.read_log(workdir / job.directory, len(job.runs))
    except DamagedError:  # which the stage that trains the job mends, before study.json is written again
        return logs.make_log([], len(job.runs))


def _seconds(log: logs.TrainingLog, runs: int) -> float | None:
    """The seconds of one run of a job; None if they are not known."""
    if math.isnan(log.median_step_seconds):
        return None
    return round(float(log.step[-1]) * log.median_step_seconds / runs, 3)


def _chosen_rates(planned: PlannedStudy) -> learning_rates.Rates:
    """The rates that were chosen so far."""
    try:
        return learning_rates.chosen_rates(planned.workdir, planned.plan, planned.study.arms)
    except DamagedError:  # as in `_log_of`
        return {}
