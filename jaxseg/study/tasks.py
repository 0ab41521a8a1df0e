"""The prepared tasks of a study, their splits, and which cases each run trains on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from jaxseg import data, trees
from jaxseg.data import PreparedTask, Split
from jaxseg.study.plan import Job, Run
from jaxseg.types import Progress, RunInputs, StudySettings, TaskSettings, UserError


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Prepared data of the target and of every source task."""

    prepared: dict[TaskSettings, PreparedTask]
    splits: dict[TaskSettings, tuple[Split, ...]]
    """One per fold; a source has one."""


def prepare_tasks(study: StudySettings, store_dir: Path, progress: Progress) -> Tasks:
    """Prepares what is not yet prepared, and splits it.

    Raises:
        UserError: Data that cannot be used, each problem by name.
    """
    wanted = {study.target: study.target.folds}
    for arm in study.arms:
        if arm.init != "random" and not arm.pretrain.from_workdir:
            wanted.setdefault(arm.source, 1)
    prepared: dict[TaskSettings, PreparedTask] = {}
    splits: dict[TaskSettings, tuple[Split, ...]] = {}
    for task, folds in wanted.items():
        ready = data.prepare_task(task, ndim=study.model.ndim, store_dir=store_dir, progress=progress)
        held = frozenset[str]()
        if task != study.target and _same_patients(prepared[study.target], ready, task.data == study.target.data):
            held = frozenset().union(
                *(data.held_out_groups(prepared[study.target], split) for split in splits[study.target])
            )
        splits[task] = tuple(
            data.split_cases(
                ready,
                val_cases=task.val_cases,
                test_cases=task.test_cases,
                folds=folds,
                fold=fold,
                seed=study.base_seed,
                exclude_groups=held,
            )
            for fold in range(folds)
        )
        prepared[task] = _with_intensity(ready, task, splits[task])
    return Tasks(prepared, splits)


def _same_patients(target: PreparedTask, source: PreparedTask, same_data: bool) -> bool:
    """Whether group names of the two tasks speak of the same patients.

    They do if the data is the same, or if both publish groups (names that are not just the cases') and share some.
    A case name that happens to occur in both is no evidence.
    """

    def published(task: PreparedTask) -> frozenset[str]:
        return frozenset(record.group for record in task.cases if record.group != record.name)

    return same_data or bool(published(target) & published(source))


def _with_intensity(prepared: PreparedTask, task: TaskSettings, splits: tuple[Split, ...]) -> PreparedTask:
    """The task with intensity statistics of its training cases, where its normalisation uses any.

    Raises:
        UserError: Several folds: the statistics of one fold's training cases have seen another's test cases.
    """
    if len(splits) > 1 and "dataset" in prepared.normalization:
        raise UserError(
            f"{prepared.name}: normalization {task.normalization!r} uses statistics of the training cases, which "
            f"differ between the {len(splits)} folds; use folds = 1, or a normalization per case such as 'zscore'"
        )
    return data.fit_intensity(prepared, splits[0].train)


def training_cases(tasks: Tasks, job: Job, run: Run) -> tuple[str, ...]:
    """Names of the cases a run trains on."""
    task = job.program.task
    split = tasks.splits[task][run.key.fold]
    return data.nested_subset(tasks.prepared[task], split.train, run.key.train_cases, seed=run.subset_id)


def cohort_names(tasks: Tasks, job: Job) -> tuple[str, ...]:
    """Cases that any run of the job's task may train on, in stable order."""
    return tuple(sorted({name for split in tasks.splits[job.program.task] for name in split.train}))


def run_inputs(tasks: Tasks, job: Job) -> RunInputs:
    """What distinguishes the runs of a job inside its program, runs first."""
    position = {name: index for index, name in enumerate(cohort_names(tasks, job))}
    chosen = [[position[name] for name in training_cases(tasks, job, run)] for run in job.runs]
    # All runs of a task have rows of equal length, so that jobs of other sizes and folds share a compiled shape.
    width = len(position)
    rows = [
        RunInputs(
            cases=jnp.asarray(cases + [cases[-1]] * (width - len(cases)), jnp.int32),
            num_cases=jnp.asarray(len(cases), jnp.int32),
            rate=jnp.asarray(run.rate, jnp.float32),
        )
        for cases, run in zip(chosen, job.runs, strict=True)
    ]
    return trees.stack(rows)
