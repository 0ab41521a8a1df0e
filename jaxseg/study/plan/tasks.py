"""Prepares and splits the tasks of a study, and chooses the cases that each run trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxseg import data, metrics
from jaxseg.data import PreparedTask, Split
from jaxseg.data.cases import Refused
from jaxseg.data.formats.sources import is_pooled
from jaxseg.reserved import MEAN
from jaxseg.settings import ArmSettings, StudySettings, TaskSettings
from jaxseg.settings.kinds import nearest
from jaxseg.study.plan.apart import (
    Apart,
    apart_by_network,
    apart_from_all,
    apart_from_target,
    arms_of,
    check_each_learns,
    check_some_left,
    check_still_apart,
    one_network_each,
    with_one_group_for_copies,
)
from jaxseg.study.plan.binding import BoundTask, Draw, check_unchanged
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.runs import Run, folds_rotate
from jaxseg.types import Progress, RunInputs, UserError


@dataclasses.dataclass(frozen=True)
class ExternalSet:
    """Cases from elsewhere on which the networks of the target are tested, and on nothing else of which they depend."""

    name: str
    """The name of the set in tables."""
    task: TaskSettings
    """The target's settings with the data of the set."""
    fitted: tuple[PreparedTask, ...]
    """The prepared set as the networks of each fold of the target see it."""
    cases: tuple[str, ...]
    """The cases that are tested, in name order."""
    left_out: Refused
    """Pairs (case, reason) of cases that networks of the study know, or may know."""

    @property
    def prepared(self) -> PreparedTask:
        """The prepared set."""
        return self.fitted[0]

    @property
    def mark(self) -> str:
        """The fingerprint of the set's images, labels and preparation, by which its scores are known."""
        return self.prepared.directory.name.rpartition("-")[2]


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The prepared data of the target and of every source task."""

    prepared: dict[TaskSettings, PreparedTask]
    """The prepared tasks, target first, without intensity statistics of training cases, which differ between folds."""
    splits: dict[TaskSettings, tuple[Split, ...]]
    """The split of each fold; a source has one or, if folds rotate over seeds, one for the seeds of each fold."""
    fitted: dict[TaskSettings, tuple[PreparedTask, ...]]
    """The prepared task of each fold, with the statistics of its training cases."""
    subsets: dict[TaskSettings, dict[Draw, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    """Subsets of training cases that were drawn earlier, which runs keep."""
    apart: dict[TaskSettings, Apart] = dataclasses.field(default_factory=dict)
    """Of sources with the target's data, the groups that single networks must not see."""
    external: tuple[ExternalSet, ...] = ()
    """The external test sets, in the order of the settings."""

    def role(self, task: TaskSettings) -> str:
        """Returns the name of a task in the workdir: `target`, `source`, `source_2`, ..."""
        return role_of(list(self.prepared).index(task))

    def fold_statistics(self, task: TaskSettings) -> bool:
        """Returns whether the voxels of a case depend on the fold, by whose training cases they are normalised."""
        by_fold = {fitted.windows for fitted in self.fitted[task]}
        return "dataset" in self.prepared[task].normalization and len(by_fold) > 1

    def subset(self, task: TaskSettings, draw: Draw) -> tuple[str, ...]:
        """Returns the training cases of a draw, as recorded or drawn now."""
        if (known := self.subsets.get(task, {}).get(draw)) is not None:
            return known
        prepared, train = self.prepared[task], self.splits[task][draw.fold].train
        # The streams of a source network all have its seed as their id.
        if held := self.apart.get(task, {}).get((draw.fold, draw.subset_id)):
            train = tuple(name for name in train if prepared.record(name).group not in held)
        return data.nested_subset(prepared, train, draw.train_cases, seed=draw.subset_id)

    def of(self, job: Job) -> PreparedTask:
        """Returns the task of a job as its runs see it."""
        return self.fitted[job.program.task][job.program.fold or 0]


ROLES = ("target", "source")


def role_of(place: int) -> str:
    """Returns the name in the workdir of the task at a position in `Tasks.prepared`."""
    return ROLES[place] if place < len(ROLES) else f"source_{place}"


def tasks_of(study: StudySettings) -> list[TaskSettings]:
    """Returns the tasks that networks of a study train on, in the order of their roles: first the target."""
    return [*dict.fromkeys((study.target, *(arm.source for arm in study.arms if _pretrains(arm))))]


def _pretrains(arm: ArmSettings) -> bool:
    """Whether an arm starts from networks that the study itself trains."""
    return arm.kind == "network" and arm.init != "random" and not arm.pretrain.from_workdir


def prepare_tasks(
    study: StudySettings, store_dir: Path, progress: Progress, bound: Mapping[str, BoundTask] | None = None
) -> Tasks:
    """Prepares the tasks that are not yet prepared, and splits them.

    Args:
        study: The study's settings.
        store_dir: The folder of all stores.
        progress: Told about every case.
        bound: The tasks as they were when training began, by role. Their splits, subsets and intensity windows are
            used again. A machine without the data needs only the stores.

    Raises:
        UserError: If data cannot be used, with each problem by name, or has changed.
    """
    if "target" not in (bound or {}):  # of a bound study, this machine may lack a folder with a `+` in its name
        check_target_data(study.target.data)
    _check_sources_are_not_the_target(study)
    wanted = tasks_of(study)
    prepared: dict[TaskSettings, PreparedTask] = {}
    splits: dict[TaskSettings, tuple[Split, ...]] = {}
    apart: dict[TaskSettings, Apart] = {}
    kept = {task: was for place, task in enumerate(wanted) if (was := (bound or {}).get(role_of(place))) is not None}
    for place, task in enumerate(wanted):
        recipe, was = recipe_of(study, task), kept.get(task)
        if was is not None:
            check_unchanged(role_of(place), was, recipe, ndim=study.model.ndim, store_dir=store_dir)
        known = "" if was is None else was.store
        ready = data.prepare_task(recipe, ndim=study.model.ndim, store_dir=store_dir, progress=progress, known=known)
        ready = with_one_group_for_copies(ready)
        if task.data == "target" and one_network_each(arms := arms_of(study, task)):
            apart[task] = apart_by_network(study, arms, prepared[study.target], ready, splits[study.target])
        if was is not None:
            prepared[task], splits[task] = ready, was.splits
            if task.data == "target":
                _check_still_apart(study, task, was, prepared, splits[study.target], apart.get(task))
            continue
        if task == study.target:
            splits[task] = _split(task, ready, study.target.folds, study.base_seed, frozenset())
        else:
            target = prepared[study.target]
            ready, splits[task] = _split_source(study, task, ready, target, splits[study.target], apart.get(task))
        prepared[task] = data.with_split_warnings(ready, splits[task])
    fitted = {
        task: tuple(dataclasses.replace(prepared[task], windows=windows) for windows in kept[task].windows)
        if task in kept
        else tuple(data.fit_intensity(prepared[task], split.train) for split in parts)
        for task, parts in splits.items()
    }
    return Tasks(prepared, splits, fitted, {task: was.subsets for task, was in kept.items()}, apart=apart)


def check_target_data(data: str) -> None:
    """Refuses a pooled target.

    Raises:
        UserError: If the data is several sets.
    """
    if is_pooled(data):
        raise UserError(
            f"config.target.data = {data!r} pools several sets, which only a source may be: a new image is of none of "
            "the parts, whose intensities are normalised each in its own way, and a network cannot be scored on labels "
            "that a part does not have. Put the cases that belong together into one folder, with one dataset.json"
        )


def _check_sources_are_not_the_target(study: StudySettings) -> None:
    """Refuses a source with the target's data and all of its settings, if its networks would learn what is tested.

    Such a source is the target itself and has its splits, and its networks train on the cases of one fold, which others
    test. That does no harm where there is one fold, or where each network serves seeds that are tested on its own fold.

    Raises:
        UserError: The arms that start from it.
    """
    arms = [arm for arm in study.arms if _pretrains(arm) and arm.source == study.target]
    if arms and study.target.folds > 1 and not (folds_rotate(study) and one_network_each(arms)):
        named = ", ".join(repr(arm.name) for arm in arms)
        raise UserError(
            f"the source of {named} has the data and all settings of the target, folds = {study.target.folds} "
            f"included: it would be split into the same folds, so that source networks would train on cases that other "
            f"folds test. Set source.data = 'target', as the arm self_transfer does, which leaves out what runs that "
            f"start from a network train on and are tested on; or take other data as source"
        )


def _split(
    task: TaskSettings, prepared: PreparedTask, folds: int, seed: int, held: frozenset[str]
) -> tuple[Split, ...]:
    """The folds of a task.

    Raises:
        UserError: It cannot be split so. What the preparation said of the whole task may be why, such as that cases are
            copies of others, and is said with it.
    """
    sizes = {"val_cases": task.val_cases, "test_cases": task.test_cases, "folds": folds}
    try:
        return tuple(
            data.split_cases(prepared, fold=fold, seed=seed, exclude_groups=held, **sizes) for fold in range(folds)
        )
    except UserError as error:
        known = [text for case, text in prepared.report.warnings if not case]
        raise UserError("\n  ".join([str(error), *known])) from None


def _split_source(
    study: StudySettings,
    task: TaskSettings,
    source: PreparedTask,
    target: PreparedTask,
    folds: tuple[Split, ...],
    apart: Apart | None,
) -> tuple[PreparedTask, tuple[Split, ...]]:
    """A source task with warnings about patients it shares with the target, and its split apart from those.

    Where folds rotate over seeds, a source network is for the seeds of one fold, and need only be apart from what that
    fold holds out: there is one split a fold. Where several seeds share a network it is apart from all folds. A source
    with the target's data is apart from what its runs train on too: each network from those of its own (`apart`),
    which its split leaves in, or one network from all of them.
    """
    same_data = recipe_of(study, task).data == study.target.data
    arms = arms_of(study, task)
    own = folds_rotate(study) and one_network_each(arms)
    told = source
    splits: list[Split] = []
    for numbers in [(fold,) for fold in range(len(folds))] if own else [tuple(range(len(folds)))]:
        told, held = apart_from_target(target, tuple(folds[fold] for fold in numbers), source, same_data=same_data)
        if task.data == "target":
            if apart is None:
                held |= apart_from_all(study, arms, target, source, folds)
            check_some_left(arms, target, frozenset(record.group for record in source.cases) - held)
        splits += _split(task, told, 1, study.base_seed, held)
    check_each_learns(arms, target, source, splits, apart or {})
    return told, tuple(splits if own or not folds_rotate(study) else splits * len(folds))


def _check_still_apart(
    study: StudySettings,
    task: TaskSettings,
    was: BoundTask,
    prepared: Mapping[TaskSettings, PreparedTask],
    folds: tuple[Split, ...],
    apart: Apart | None,
) -> None:
    """Refuses new seeds that train on what networks of a source with the target's data have seen, or leave it none."""
    arms, source = arms_of(study, task), prepared[task]
    if apart is None:
        groups = apart_from_all(study, arms, prepared[study.target], source, folds)
        learned = [(groups, (*split.train, *split.val)) for split in was.splits]
    else:
        learned = [
            (groups, names)
            for (fold, seed), groups in apart.items()
            if (names := was.subsets.get(Draw(0, fold, seed))) is not None
        ]
    check_still_apart(study, arms, source, learned)
    check_each_learns(arms, prepared[study.target], source, was.splits, apart or {})


def recipe_of(study: StudySettings, task: TaskSettings) -> TaskSettings:
    """Resolves the data of a task: a source whose data is `target` takes the target's."""
    return dataclasses.replace(task, data=study.target.data) if task.data == "target" else task


def spread(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Returns at most `count` names, evenly spread.

    >>> spread("abcdef", 3)
    ('b', 'd', 'f')
    """
    count = min(count, len(names))
    return tuple(names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count))


def draw_of(run: Run) -> Draw:
    """Returns the key of the subset that a run trains on."""
    return Draw(run.key.train_cases, run.key.fold, run.subset_id)


def training_cases(tasks: Tasks, job: Job, run: Run) -> tuple[str, ...]:
    """Returns the names of the cases that a run trains on."""
    return tasks.subset(job.program.task, draw_of(run))


def cohort_names(tasks: Tasks, task: TaskSettings) -> tuple[str, ...]:
    """Returns the cases of a task that any run may train on, in a stable order."""
    return tuple(sorted({name for split in tasks.splits[task] for name in split.train}))


def run_inputs(tasks: Tasks, job: Job) -> RunInputs:
    """Returns the arrays that distinguish the runs of a job inside its program, with runs on the first axis."""
    position = {name: index for index, name in enumerate(cohort_names(tasks, job.program.task))}
    # All runs of a task have rows of equal length, so that jobs of other sizes and folds share a compiled shape.
    cases = np.empty((len(job.runs), len(position)), np.int32)
    counts = np.empty(len(job.runs), np.int32)
    for index, run in enumerate(job.runs):
        chosen = [position[name] for name in training_cases(tasks, job, run)]
        cases[index, : len(chosen)], cases[index, len(chosen) :] = chosen, chosen[-1]
        counts[index] = len(chosen)
    rates = np.array([run.rate for run in job.runs], np.float32)
    return RunInputs(*jax.device_put((cases, counts, rates)))


def check_labels(study: StudySettings, prepared: PreparedTask) -> None:
    """Checks the labels that the settings of the evaluation name against those of the target.

    Raises:
        UserError: If the task lacks a label.
    """
    settings = study.evaluate
    if prepared.regions is not None and settings.regions:
        raise UserError(
            f"config.evaluate.regions adds unions of labels to the scores, and {prepared.name} is segmented by "
            f"regions, each of which is scored: leave it empty"
        )
    for what, taken in (("label", prepared.labels), ("region", [name for name, _ in settings.regions])):
        if MEAN in taken:
            raise UserError(
                f"{prepared.name} has a {what} called {MEAN!r}, which is reserved: in tables it stands for the mean "
                f"over labels; give the {what} another name"
            )
    if settings.largest_component == ("all",) and "all" in prepared.labels:
        raise UserError(
            f"config.evaluate.largest_component = 'all' stands for all labels, and {prepared.name} has a label called "
            "'all'; list the labels, or give that one another name"
        )
    named = {
        "largest_component": settings.largest_component,
        "lesions": [name for name in settings.lesions if name not in dict(settings.regions)],
        "regions": [m for _, group in settings.regions for m in group],
    }
    for field, names in named.items():
        for name in names:
            if name not in prepared.labels and (field, name) != ("largest_component", "all"):
                raise UserError(
                    f"config.evaluate.{field} names the label {name!r}{nearest(name, prepared.labels)} "
                    f"{prepared.name} has {', '.join(map(repr, prepared.labels))}"
                )
    metrics.members_of(prepared.labels, dict(settings.regions))


def check_regions(prepared: PreparedTask) -> None:
    """Checks that every value of which a region is made occurs in some case.

    Raises:
        UserError: The region and the value.
    """
    if prepared.regions is None:
        return
    found = [sum(counts) for counts in zip(*(record.voxels_per_value for record in prepared.cases), strict=True)]
    for name, classes in zip(prepared.labels, prepared.members, strict=True):
        for index in classes:
            if not found[index]:
                raise UserError(
                    f"{prepared.name}: the region {name!r} is made of the label value "
                    f"{prepared.label_values[index - 1]} among others, which no case holds; take it out of the region, "
                    f"or look at the values in the label files"
                )
