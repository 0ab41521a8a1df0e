"""Keeps source networks apart from what their target is tested on and, where the data is the same, trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from jaxseg import data
from jaxseg.data import PreparedTask, Split
from jaxseg.data.cases import CaseRecord
from jaxseg.data.formats.pooled import SEPARATOR
from jaxseg.reserved import SOURCE
from jaxseg.settings import ArmSettings, StudySettings, TaskSettings
from jaxseg.study.plan.runs import Run, target_runs, trial_runs
from jaxseg.types import UserError


def arms_of(study: StudySettings, source: TaskSettings) -> list[ArmSettings]:
    """The arms that start from networks of a source task."""
    return [arm for arm in study.arms if arm.kind == "network" and arm.init != "random" and arm.source == source]


def apart_from_target(
    target: PreparedTask, splits: tuple[Split, ...], source: PreparedTask, *, same_data: bool
) -> tuple[PreparedTask, frozenset[str]]:
    """A source task, and which of its groups no source network may see, because the target is tested on them.

    Patients are the same where group names are (see `same_patients`), and where images hold the same voxels.

    Raises:
        UserError: None of the source's patients is left.
    """
    tested = frozenset[str]().union(*(data.held_out_groups(target, split) for split in splits))
    by_voxels = {record.voxels_sha256: record for record in target.cases}
    copies = [(record, by_voxels[record.voxels_sha256]) for record in source.cases if record.voxels_sha256 in by_voxels]
    held = frozenset(record.group for record, original in copies if original.group in tested)
    if same_data or same_patients(target, source):
        held |= _groups_with(source, patients_in(target, tested))
    elif copies:
        record, original = copies[0]
        text = (
            f"{len(copies)} of its images are images of the target {target.name}, such as {record.name}, which is "
            f"{original.name} there; those that the target validates or tests on are held out"
        )
        source = with_warning(source, text)
    else:
        source = with_name_warning(
            source, target, f"the target {target.name}", "pretrained on cases they are tested on"
        )
    if held and all(record.group in held for record in source.cases):
        raise UserError(
            f"{source.name} has the same patients as the target {target.name}, and every one of them is held out in "
            f"some of its {len(splits)} fold(s), so that no network could be pretrained without having seen them. "
            "Set target.folds to 1, ask for fewer val_cases and test_cases, or take another source"
        )
    return source, held


def one_network_each(arms: Sequence[ArmSettings]) -> bool:
    """Returns whether every network of a source is there for some seeds alone, instead of for all of them."""
    return all(arm.pretrain.share == "per_seed" for arm in arms)


Apart = dict[tuple[int, int], frozenset[str]]
"""Groups that a source network must not see, by its fold and seed."""


def apart_by_network(
    study: StudySettings,
    arms: Sequence[ArmSettings],
    target: PreparedTask,
    source: PreparedTask,
    splits: tuple[Split, ...],
) -> Apart:
    """Groups of a source, whose data is the target's, that runs train on which start from each of its networks.

    Each seed has a network of its own: it may learn from the cases of other seeds, on which its runs are not trained.
    """
    names: dict[tuple[int, int], set[str]] = {}
    for arm in arms:
        for run in (*target_runs(study, arm, SOURCE), *trial_runs(study, arm, SOURCE)):
            if run.source is not None:
                seen = names.setdefault((run.source.fold, run.source.seed), set())
                seen |= {*_cases_of(run, target, splits)}
    return {network: _groups_of(target, source, seen) for network, seen in names.items()}


def apart_from_all(
    study: StudySettings,
    arms: Sequence[ArmSettings],
    target: PreparedTask,
    source: PreparedTask,
    splits: tuple[Split, ...],
) -> frozenset[str]:
    """Groups of a source, whose data is the target's, that any run of these arms trains on: they share a network.

    Seeds count up to the last declared look, so that those which are added later find cases that the network has not
    seen.
    """
    later = study if study.seed_ids else dataclasses.replace(study, num_seeds=max(study.num_seeds, *study.looks, 0))
    names: set[str] = set()
    for arm in arms:
        for run in (*target_runs(later, arm, None), *trial_runs(later, arm, None)):
            names |= {*_cases_of(run, target, splits)}
    return _groups_of(target, source, names)


def check_some_left(
    arms: Sequence[ArmSettings], target: PreparedTask, groups: frozenset[str], taken: frozenset[str] = frozenset()
) -> None:
    """Checks that a network of a source, whose data is the target's, has groups to learn from.

    Args:
        arms: The arms that start from it.
        target: The target.
        groups: Groups of the source that it could learn from.
        taken: Groups that it may not see, as its own runs train on them.

    Raises:
        UserError: There are none.
    """
    if not groups - taken:
        count = len(groups & taken)
        raise UserError(
            f"source.data = 'target' ({', '.join(arm.name for arm in arms)}): runs that start from one network train "
            f"on all groups of {target.name} that neither the target nor the source holds out for validation and tests"
            f"{f' ({count})' if count else ''}, so none is left to pretrain it on. Set target.train_cases, or "
            f"train_cases of these arms, below the number of training cases (0 stands for all), ask for fewer "
            f"source.val_cases and source.test_cases, or use one fold"
        )


def check_each_learns(
    arms: Sequence[ArmSettings], target: PreparedTask, source: PreparedTask, splits: Sequence[Split], apart: Apart
) -> None:
    """Checks that every network of a source, whose data is the target's, trains on some case.

    Args:
        arms: The arms that start from these networks.
        target: The target.
        source: The source.
        splits: The source's split of each fold.
        apart: Groups that single networks may not see.

    Raises:
        UserError: A network's own runs train on all that the source's split leaves for training.
    """
    for (fold, _), taken in apart.items():
        check_some_left(arms, target, frozenset(source.record(name).group for name in splits[fold].train), taken)


def _cases_of(run: Run, target: PreparedTask, splits: tuple[Split, ...]) -> tuple[str, ...]:
    """The cases of the target that a run trains on."""
    return data.nested_subset(target, splits[run.key.fold].train, run.key.train_cases, seed=run.subset_id)


def _groups_of(target: PreparedTask, source: PreparedTask, names: Collection[str]) -> frozenset[str]:
    """The groups of a source, whose data is the target's, that hold patients of these cases of the target.

    A source that is used without labels may have images that the target lacks, and groups joined by these.
    """
    groups = {target.record(name).group for name in names}
    voxels = {record.voxels_sha256 for record in target.cases if record.group in groups}
    copies = {record.group for record in source.cases if record.voxels_sha256 in voxels}
    return _groups_with(source, patients_in(target, groups)) | copies


def _groups_with(task: PreparedTask, patients: Collection[str]) -> frozenset[str]:
    """The groups that hold one of these patients."""
    return frozenset(record.group for record in task.cases if record.patient in patients)


def check_still_apart(
    study: StudySettings,
    arms: Sequence[ArmSettings],
    source: PreparedTask,
    learned: Iterable[tuple[frozenset[str], Collection[str]]],
) -> None:
    """Refuses seeds that train on what networks with the target's data have seen that are trained already.

    Args:
        study: The study, with all its seeds.
        arms: The arms that start from these networks.
        source: The source.
        learned: Of each network, the groups that its runs train on, and the cases that it has seen.

    Raises:
        UserError: A new seed draws such cases; the message names the arms.
    """
    for groups, names in learned:
        known = sorted(name for name in names if source.record(name).group in groups)
        if known:
            raise UserError(
                f"config.num_seeds = {study.num_seeds}: seeds that were not there when this study began would train on "
                f"{len(known)} case(s), such as {known[0]}, that source networks of {', '.join(a.name for a in arms)} "
                f"were trained on, so that their scores would be too good. Nothing was changed here. Go on with the "
                f"seeds that there are; a study that is to grow declares it before it trains, with looks = (8, 16), or "
                f"leaves subset out of vary"
            )


def same_patients(task: PreparedTask, other: PreparedTask) -> bool:
    """Returns whether group names of two tasks speak of the same patients.

    They do if both publish groups and share some. A case name that happens to occur in both is no evidence.
    """

    def published(task: PreparedTask) -> frozenset[str]:
        return frozenset(record.patient for record in task.cases if record.published)

    return bool(published(task) & published(other))


def with_one_group_for_copies(task: PreparedTask) -> PreparedTask:
    """Returns a task with cases of equal voxels in one group: copies are one patient, whatever their names."""
    joined: dict[str, str] = {}

    def root(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    first: dict[str, CaseRecord] = {}
    copies: list[tuple[str, str]] = []
    for record in task.cases:
        other = first.setdefault(record.voxels_sha256, record)
        if other is record:
            continue
        copies.append((record.name, other.name))
        if root(record.group) != root(other.group):
            joined[root(record.group)] = root(other.group)
    if not copies:
        return task
    cases = tuple(dataclasses.replace(record, group=root(record.group)) for record in task.cases)
    text = (
        f"{len(copies)} of its {len(cases)} cases hold the same image as another case, such as {copies[0][0]} as "
        f"{copies[0][1]}: copies count as one patient"
    )
    return with_warning(dataclasses.replace(task, cases=cases), text)


def patients_in(task: PreparedTask, groups: Collection[str]) -> set[str]:
    """Returns every patient of these groups: copies join several, and another set may hold other images of each."""
    return {record.patient for record in task.cases if record.group in groups}


def with_name_warning(task: PreparedTask, other: PreparedTask, what: str, harm: str) -> PreparedTask:
    """Returns a task with a warning where it has case names of another, which alone prove nothing.

    Args:
        task: The task.
        other: The other task.
        what: What the warning calls the other task.
        harm: What networks are if the patients are the same.
    """
    shared = sorted(_names_of(other) & _names_of(task))
    if not shared:
        return task
    text = (
        f"it shares {len(shared)} case name(s) with {what}, such as {shared[0]}, and no groups are published: if they "
        f"are the same patients, networks are {harm}; name the patients in `groups` of both dataset.json files"
    )
    return with_warning(task, text)


def _names_of(task: PreparedTask) -> set[str]:
    """The names of a task's patients, without those of the parts of a pooled source in front."""
    prefixes = [f"{part.name}{SEPARATOR}" for part in task.parts] or [""]
    return {record.patient.removeprefix(prefixes[record.part]) for record in task.cases}


def with_warning(task: PreparedTask, text: str) -> PreparedTask:
    """The task with one more warning about the whole of it, before the others."""
    report = dataclasses.replace(task.report, warnings=(("", text), *task.report.warnings))
    return dataclasses.replace(task, report=report)
