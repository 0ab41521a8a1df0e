"""Keeps source networks apart from what their target is tested on and, where the data is the same, trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxseg import data
from jaxseg.data import PreparedTask, Split
from jaxseg.data.cases import CaseRecord
from jaxseg.data.formats.pooled import SEPARATOR
from jaxseg.settings import ArmSettings, StudySettings, TaskSettings
from jaxseg.study.plan.runs import folds_rotate, target_runs, trial_runs
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
        held |= tested
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


def left_out(
    study: StudySettings,
    arms: Sequence[ArmSettings],
    target: PreparedTask,
    source: PreparedTask,
    splits: tuple[Split, ...],
    folds: Sequence[int],
) -> frozenset[str]:
    """Groups of the source, whose data is the target's, that some run of these arms and folds trains on.

    Seeds count up to the last declared look, so that those which are added later find cases that no source network has
    seen.

    Raises:
        UserError: These are all there are: nothing is left for a source network.
    """
    later = study if study.seed_ids else dataclasses.replace(study, num_seeds=max(study.num_seeds, *study.looks, 0))
    groups, trained = _trained_on(later, arms, target, source, splits, folds)
    held = frozenset().union(*(data.held_out_groups(target, split) for split in (splits[fold] for fold in folds)))
    if not {record.group for record in source.cases} - groups - held:
        raise UserError(
            f"source.data = 'target' ({', '.join(arm.name for arm in arms)}): runs that start from it train on all "
            f"{len({record.group for record in trained})} groups of {target.name} that are not held out for validation "
            f"and tests, so none is left to pretrain on. Set target.train_cases, or train_cases of these arms, below "
            f"the number of training cases (0 stands for all), use one fold, and leave subset out of vary where the "
            f"task is small"
        )
    return groups


def _trained_on(
    study: StudySettings,
    arms: Sequence[ArmSettings],
    target: PreparedTask,
    source: PreparedTask,
    splits: tuple[Split, ...],
    folds: Sequence[int],
) -> tuple[frozenset[str], list[CaseRecord]]:
    """Groups of the target and of a source with its data that runs of these arms and folds train on, and their cases.

    A source that is used without labels may have images that the target lacks, and groups joined by these.
    """
    names: set[str] = set()
    for arm in arms:
        for run in (*target_runs(study, arm, None), *trial_runs(study, arm, None)):
            if run.key.fold not in folds:
                continue
            split = splits[run.key.fold]
            names |= {*data.nested_subset(target, split.train, run.key.train_cases, seed=run.subset_id)}
    trained = [target.record(name) for name in names]
    voxels = {record.voxels_sha256 for record in trained}
    groups = frozenset(record.group for record in trained)
    groups |= {record.group for record in source.cases if record.name in names or record.voxels_sha256 in voxels}
    return groups, trained


def check_still_apart(
    study: StudySettings,
    task: TaskSettings,
    source: PreparedTask,
    own: tuple[Split, ...],
    target: PreparedTask,
    splits: tuple[Split, ...],
) -> None:
    """Refuses seeds that train on what source networks with the target's data have seen.

    The split of the source was made for the seeds that the study began with, and its networks are trained.

    Raises:
        UserError: A new seed draws such cases; the message names the arms.
    """
    arms = arms_of(study, task)
    rotating = folds_rotate(study) and all(arm.pretrain.share == "per_seed" for arm in arms)
    for place, split in enumerate(own if rotating else own[:1]):
        folds = (place,) if rotating else tuple(range(len(splits)))
        groups, _ = _trained_on(study, arms, target, source, splits, folds)
        known = sorted(name for name in (*split.train, *split.val) if source.record(name).group in groups)
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

    They do if both publish groups (names that are not just the cases') and share some. A case name that happens to
    occur in both is no evidence.
    """

    def published(task: PreparedTask) -> frozenset[str]:
        return frozenset(record.group for record in task.cases if record.group != record.name)

    return bool(published(task) & published(other))


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
    """The names of a task's groups, without those of the parts of a pooled source in front."""
    prefixes = [f"{part.name}{SEPARATOR}" for part in task.parts] or [""]
    return {record.group.removeprefix(prefixes[record.part]) for record in task.cases}


def with_warning(task: PreparedTask, text: str) -> PreparedTask:
    """The task with one more warning about the whole of it, before the others."""
    report = dataclasses.replace(task.report, warnings=(("", text), *task.report.warnings))
    return dataclasses.replace(task, report=report)
