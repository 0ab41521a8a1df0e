"""The prepared tasks of a study, their splits, and which cases each run trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxseg import data, trees
from jaxseg.data import PreparedTask, Split
from jaxseg.study.plan import Job
from jaxseg.study.runs import Run, target_runs, trial_runs
from jaxseg.types import Progress, RunInputs, StudySettings, TaskSettings, UserError


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Prepared data of the target and of every source task."""

    prepared: dict[TaskSettings, PreparedTask]
    """The target first; without intensity statistics of training cases, which differ between folds."""
    splits: dict[TaskSettings, tuple[Split, ...]]
    """One per fold; a source has one."""
    fitted: dict[TaskSettings, tuple[PreparedTask, ...]]
    """One per fold, with the statistics of its training cases."""

    def role(self, task: TaskSettings) -> str:
        """`target`, `source`, `source_2`, ...: what a task is called in the workdir."""
        return role_of(list(self.prepared).index(task))

    def fold_statistics(self, task: TaskSettings) -> bool:
        """Whether the voxels of a case depend on the fold."""
        return len(self.splits[task]) > 1 and "dataset" in self.prepared[task].normalization

    def of(self, job: Job) -> PreparedTask:
        """The task of a job, as its runs see it."""
        return self.fitted[job.program.task][job.program.fold or 0]


ROLES = ("target", "source")


def role_of(place: int) -> str:
    """What the task at a place in the order of `Tasks.prepared` is called in the workdir."""
    return ROLES[place] if place < len(ROLES) else f"source_{place}"


def prepare_tasks(
    study: StudySettings, store_dir: Path, progress: Progress, stores: Mapping[str, str] | None = None
) -> Tasks:
    """Prepares what is not yet prepared, and splits it.

    Args:
        study: Its tasks.
        store_dir: Of all stores.
        progress: Told about every case.
        stores: Names of the stores that an earlier process used, by role: on a machine without the data they do.

    Raises:
        UserError: Data that cannot be used, each problem by name.
    """
    wanted = {study.target: study.target.folds}
    for arm in study.arms:
        if arm.kind == "network" and arm.init != "random" and not arm.pretrain.from_workdir:
            wanted.setdefault(arm.source, 1)
    prepared: dict[TaskSettings, PreparedTask] = {}
    splits: dict[TaskSettings, tuple[Split, ...]] = {}
    for place, (task, folds) in enumerate(wanted.items()):
        known = (stores or {}).get(role_of(place), "")
        recipe = dataclasses.replace(task, data=study.target.data) if task.data == "target" else task
        ready = data.prepare_task(recipe, ndim=study.model.ndim, store_dir=store_dir, progress=progress, known=known)
        held = frozenset[str]()
        same_data = recipe.data == study.target.data
        if task != study.target and _same_patients(prepared[study.target], ready, same_data):
            held = _held_out(prepared[study.target], splits[study.target], ready)
        elif task != study.target:
            ready = _with_name_warning(prepared[study.target], ready)
        if task.data == "target":
            held |= _trained_on(study, prepared[study.target], splits[study.target])
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
        prepared[task] = ready
    fitted = {
        task: tuple(data.fit_intensity(prepared[task], split.train) for split in parts)
        for task, parts in splits.items()
    }
    return Tasks(prepared, splits, fitted)


def _trained_on(study: StudySettings, target: PreparedTask, splits: tuple[Split, ...]) -> frozenset[str]:
    """Groups that some run of the study trains on.

    Raises:
        UserError: These are all there are: nothing is left for a source network.
    """
    names: set[str] = set()
    for arm in study.arms:
        for run in (*target_runs(study, arm, None), *trial_runs(study, arm, None)):
            split = splits[run.key.fold]
            names |= {*data.nested_subset(target, split.train, run.key.train_cases, seed=run.subset_id)}
    groups = frozenset(target.record(name).group for name in names)
    held = frozenset().union(*(data.held_out_groups(target, split) for split in splits))
    if not {record.group for record in target.cases} - groups - held:
        raise UserError(
            f"source.data = 'target': the runs train on all {len(groups)} groups of {target.name} that are not held "
            f"out for validation and tests, so none is left to pretrain on. Give target.train_cases sizes (0 stands "
            f"for all), use one fold, and leave subset out of vary where the task is small"
        )
    return groups


def _same_patients(target: PreparedTask, source: PreparedTask, same_data: bool) -> bool:
    """Whether group names of the two tasks speak of the same patients.

    They do if the data is the same, or if both publish groups (names that are not just the cases') and share some.
    A case name that happens to occur in both is no evidence.
    """

    def published(task: PreparedTask) -> frozenset[str]:
        return frozenset(record.group for record in task.cases if record.group != record.name)

    return same_data or bool(published(target) & published(source))


def _with_name_warning(target: PreparedTask, source: PreparedTask) -> PreparedTask:
    """The source with a warning where it has case names of the target, which alone prove nothing."""
    shared = sorted({record.group for record in target.cases} & {record.group for record in source.cases})
    if not shared:
        return source
    text = (
        f"it shares {len(shared)} case name(s) with the target {target.name}, such as {shared[0]}, and no groups are "
        "published: if they are the same patients, networks are pretrained on cases they are tested on; name the "
        "patients in `groups` of both dataset.json files"
    )
    report = dataclasses.replace(source.report, warnings=(("", text), *source.report.warnings))
    return dataclasses.replace(source, report=report)


def _held_out(target: PreparedTask, splits: tuple[Split, ...], source: PreparedTask) -> frozenset[str]:
    """Patients that some fold of the target validates or tests on: no source network may see them.

    Raises:
        UserError: None of the source's patients is left.
    """
    held = frozenset[str]().union(*(data.held_out_groups(target, split) for split in splits))
    if all(record.group in held for record in source.cases):
        raise UserError(
            f"{source.name} has the same patients as the target {target.name}, and every one of them is held out in "
            f"some of its {len(splits)} fold(s), so that no network could be pretrained without having seen them. "
            "Set target.folds to 1, ask for fewer val_cases and test_cases, or take another source"
        )
    return held


def spread(names: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` names, evenly spread.

    >>> spread("abcdef", 3)
    ('b', 'd', 'f')
    """
    count = min(count, len(names))
    return tuple(names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count))


def training_cases(tasks: Tasks, job: Job, run: Run) -> tuple[str, ...]:
    """Names of the cases a run trains on."""
    task = job.program.task
    split = tasks.splits[task][run.key.fold]
    return data.nested_subset(tasks.prepared[task], split.train, run.key.train_cases, seed=run.subset_id)


def cohort_names(tasks: Tasks, task: TaskSettings) -> tuple[str, ...]:
    """Cases of a task that any run may train on, in stable order."""
    return tuple(sorted({name for split in tasks.splits[task] for name in split.train}))


def run_inputs(tasks: Tasks, job: Job) -> RunInputs:
    """What distinguishes the runs of a job inside its program, runs first."""
    position = {name: index for index, name in enumerate(cohort_names(tasks, job.program.task))}
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
