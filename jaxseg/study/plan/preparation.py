"""Writes what the prepare stage shows to people: a table, a contact sheet and a few lines about every task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from jaxseg import data
from jaxseg.data import PreparedTask, Split
from jaxseg.study import files
from jaxseg.study.plan.tasks import ExternalSet, Tasks
from jaxseg.types import Progress

_SHOWN = 5


def write_preparation(tasks: Tasks, workdir: Path, progress: Progress) -> tuple[str, ...]:
    """Writes `results/prepared_<role>.csv` of tasks, and `figures/contact_<role>.png` where it shows another store.

    Args:
        tasks: All tasks of the study, whose roles are `target`, `source`, `source_2`, ...
        workdir: Folder of the study.
        progress: Told about every task.

    Returns:
        Lines about the tasks that were written, for a terminal.
    """
    lines: list[str] = []
    for done, (task, prepared) in enumerate(tasks.prepared.items(), start=1):
        role = tasks.role(task)
        table = workdir / "results" / f"prepared_{role}.csv"
        picture = workdir / "figures" / f"contact_{role}.png"
        files.write_table(table, case_table(prepared, tasks.splits[task]))
        if not data.is_shown_by(picture, prepared):
            data.write_contact_sheet(prepared, picture)
            lines += [*summary(role, prepared, tasks.splits[task]), f"  every case: {table}", f"  look at: {picture}"]
        progress("drawing contact sheets", done, len(tasks.prepared))
    for external in tasks.external:
        table = workdir / "results" / f"prepared_external_{external.name}.csv"
        picture = workdir / "figures" / f"contact_external_{external.name}.png"
        files.write_table(table, external_table(external))
        if not data.is_shown_by(picture, external.prepared):
            data.write_contact_sheet(external.prepared, picture)
            lines += [*external_summary(external), f"  every case: {table}", f"  look at: {picture}"]
    return tuple(lines)


def case_table(prepared: PreparedTask, splits: Sequence[Split]) -> pd.DataFrame:
    """Tabulates the cases: what was found (`data.case_table`), and the part (train, val or test) in each `fold_<k>`.

    A case without a part was refused, or is held out of a source task because the target is tested on its patient.
    """
    table = pd.DataFrame(data.case_table(prepared))
    for fold, split in enumerate(splits):
        part_of = {name: part for part in ("train", "val", "test") for name in getattr(split, part)}
        table[f"fold_{fold}"] = [part_of.get(name, "") for name in table["case"]]
    return table


def external_table(external: ExternalSet) -> pd.DataFrame:
    """Tabulates the cases of an external set as `case_table` does; one that networks know has the reason as status."""
    table = pd.DataFrame(data.case_table(external.prepared))
    known = dict(external.left_out)
    table["status"] = [
        f"left out: {known[case]}" if case in known else status
        for case, status in zip(table["case"], table["status"], strict=True)
    ]
    return table


def external_summary(external: ExternalSet) -> list[str]:
    """Describes an external set in one line, then names the first few of what is refused, left out and doubtful."""
    prepared, report = external.prepared, external.prepared.report
    lines = [
        f"external test set {external.name}: {prepared.name}, {len(external.cases)} case(s) to test on; "
        f"{len(report.refused)} refused, {len(external.left_out)} left out, {len(report.warnings)} warning(s)"
    ]
    told = [f"  left out: {case}: {reason}" for case, reason in external.left_out]
    return lines + _first(told + _told(prepared))


def _told(prepared: PreparedTask) -> list[str]:
    """What the preparation of a task refused or doubts, a line each."""
    told = [f"  refused: {case}: {reason}" for case, reason in prepared.report.refused]
    return told + [
        f"  warning: {case}: {text}" if case else f"  warning: {text}" for case, text in prepared.report.warnings
    ]


def _first(told: list[str]) -> list[str]:
    more = [f"  ... and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
    return told[:_SHOWN] + more


def summary(role: str, prepared: PreparedTask, splits: Sequence[Split]) -> list[str]:
    """Describes a task in one line, then names the first few refused and doubtful cases."""
    split, report = splits[0], prepared.report
    parts = f"{len(split.train)} train, {len(split.val)} validation, {len(split.test)} test"
    folds = f" in the first of {len(splits)} folds" if len(splits) > 1 else ""
    left = len(prepared.cases) - len(split.train) - len(split.val) - len(split.test)
    why = "in no list of its own folds" if prepared.splits is not None else "held out for the target"
    held = f", {left} {why}" if left else ""
    kind = "labels" if prepared.regions is None else "overlapping regions"
    labels = f"{kind} {', '.join(prepared.labels)}" if prepared.labels else "labels not used"
    lines = [
        f"{role}: {prepared.name}, {len(prepared.cases)} cases ({parts}{folds}{held}), {prepared.channels} channel(s), "
        f"{labels}; {len(report.refused)} refused, {len(report.warnings)} warning(s)"
    ]
    lines += [
        f"  part {name}: {cases} cases, labels {', '.join(labels) or 'not used'}"
        for name, cases, labels in prepared.part_table()
    ]
    return lines + _first(_told(prepared))
