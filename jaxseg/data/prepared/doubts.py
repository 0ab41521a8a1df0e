"""Warnings about a whole task: labels that no case has, and properties of its files that are reported only once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxseg.data import names
from jaxseg.data.cases import CaseRecord
from jaxseg.data.volumes import headers

Doubt = tuple[str, str]
"""Pair (case, doubt); the case is empty if the doubt is about the whole task."""


def of_task(
    records: Sequence[CaseRecord], labels: Sequence[str], unit: str
) -> tuple[tuple[CaseRecord, ...], tuple[Doubt, ...]]:
    """Collect the warnings of a task, those that concern all of it first.

    Args:
        records: Records of all cases.
        labels: Label names without the background.
        unit: Unit of distances; if it is `voxel`, nothing depends on the files' unit of length.

    Returns:
        The records without notes on units of length, which are no doubts about a case, and the warnings. A warning that
        all cases share is given once.
    """
    absent = [name for index, name in enumerate(labels, 1) if not any(r.voxels_per_label[index] for r in records)]
    task = [
        f"no case holds the label {name!r}: it is neither learned nor scored. If files should have it, look at their "
        "values; otherwise leave it out of `labels`"
        for name in absent
    ]
    kept = tuple(dataclasses.replace(r, warnings=headers.without_unit_notes(r.warnings)) for r in records)
    first = kept[0].warnings if len(kept) > 1 else ()
    shared = [text for text in first if all(text in r.warnings for r in kept)]
    units = [
        text for text in headers.UNIT_NOTES.values() if unit != "voxel" and any(text in r.warnings for r in records)
    ]
    for text in [*shared, *units]:
        cases = [record.name for record in records if text in record.warnings]
        which = "all" if len(cases) == len(records) else f"{len(cases)} of {len(records)}"
        task.append(f"{which} cases ({names.several(cases, 3)}): {text}")
    single = [(record.name, text) for record in kept for text in record.warnings if text not in shared]
    return kept, (*(("", text) for text in task), *single)


def check_names(directory: Path, cases: Sequence[tuple[str, str]], others: Sequence[str]) -> None:
    """Check the names in a store, which may come from a stranger.

    Args:
        directory: Directory of the store.
        cases: Name and group of each case.
        others: Names of the task and its labels.

    Raises:
        UserError: A name cannot be used.
    """
    kinds = [("the case", case, True) for case, _ in cases] + [("the group", group, False) for _, group in cases]
    for what, name, file in [*kinds, *(("the name", name, False) for name in others)]:
        names.check(name, what, directory, file=file, mend="Remove the store, and it is prepared again.")
