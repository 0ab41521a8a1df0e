"""External test sets: cases from elsewhere, prepared as the target's are, that no network of the study knows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxseg import data, paths
from jaxseg.data import PreparedTask, names
from jaxseg.data.cases import Refused
from jaxseg.data.formats import layouts
from jaxseg.data.formats.case_search import NOT_USED
from jaxseg.data.formats.sources import SCHEMES
from jaxseg.reserved import INTERNAL
from jaxseg.settings import StudySettings, TaskSettings
from jaxseg.study.plan.apart import (
    patients_in,
    same_patients,
    with_name_warning,
    with_one_group_for_copies,
    with_warning,
)
from jaxseg.study.plan.seen import past_of
from jaxseg.study.plan.tasks import ExternalSet, Tasks
from jaxseg.types import Progress, UserError

FIELD = "config.target.test_data"
OWN = layouts.TEST_IMAGES
"""The entry of the settings, and the name, of the test set that lies in the target's own folder."""
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)


class Entry(NamedTuple):
    """An entry of the settings: the name of a set, and where its data is."""

    name: str
    data: str


def entries_of(task: TaskSettings, known: Mapping[str, str]) -> list[Entry]:
    """Returns the external test sets that a target has.

    Args:
        task: The target.
        known: Names of stores by set, from an earlier process, for a machine that has the stores alone.

    Raises:
        UserError: Two sets have one name, or a folder's name cannot be one.
    """
    found: dict[str, str] = {}
    for text in task.test_data:
        entry = _entry(text, task, known)
        if entry is None:
            continue
        if (reason := names.problem(entry.name)) is not None:
            raise UserError(f"{FIELD}: {text!r} is called by its folder's name, which {reason}; give NAME={text}")
        if entry.name == INTERNAL or entry.name in found:
            why = "stands for the target's own test cases" if entry.name == INTERNAL else "is the name of two sets"
            raise UserError(f"{FIELD}: {entry.name!r} {why}; give one of another name, as NAME={entry.data}")
        found[entry.name] = entry.data
    return [Entry(*item) for item in found.items()]


def _entry(text: str, task: TaskSettings, known: Mapping[str, str]) -> Entry | None:
    """The set that a text of the settings stands for; None for `imagesTs` of a target without such cases."""
    if text == OWN:
        scheme, separator, _ = task.data.partition(":")
        if separator and scheme in SCHEMES:
            return None
        folder = paths.expand(task.data)
        there = layouts.has_test_labels(folder) if folder.exists() else OWN in known
        return Entry(OWN, str(folder / OWN)) if there else None
    match = _NAMED.fullmatch(text)
    if match and not paths.expand(text).exists():  # a folder may have such a name
        return Entry(*match.groups())
    scheme, separator, rest = text.partition(":")
    own = rest.partition("?")[0] if separator and scheme in SCHEMES else paths.expand(text).resolve().name
    return Entry(names.normal(own), text)


def with_external_sets(
    study: StudySettings, tasks: Tasks, *, store_dir: Path, progress: Progress, known: Mapping[str, str]
) -> Tasks:
    """Prepares the external test sets of a study.

    Args:
        study: The study's settings.
        tasks: The prepared tasks of its networks.
        store_dir: The folder of all stores.
        progress: Told about every case.
        known: See `entries_of`.

    Raises:
        UserError: A set cannot be used, by its name.
    """
    entries = entries_of(study.target, known)
    made = [_external_set(study, tasks, entry, store_dir, progress, known) for entry in entries]
    own = _entry(OWN, study.target, known)
    places = [paths.expand(entry.data).resolve() for entry in entries]
    if own is None or paths.expand(own.data).resolve() not in places:
        return dataclasses.replace(tasks, external=tuple(made))
    # The label maps that the target's folder has beside those of its training cases are used after all.
    target = tasks.prepared[study.target]
    used = f"in {layouts.TEST_LABELS}/ {NOT_USED}"
    told = tuple(warning for warning in target.report.warnings if used not in warning[1])
    target = dataclasses.replace(target, report=dataclasses.replace(target.report, warnings=told))
    return dataclasses.replace(tasks, prepared=tasks.prepared | {study.target: target}, external=tuple(made))


def _external_set(
    study: StudySettings, tasks: Tasks, entry: Entry, store_dir: Path, progress: Progress, known: Mapping[str, str]
) -> ExternalSet:
    target = tasks.prepared[study.target]
    task = dataclasses.replace(study.target, data=entry.data, test_data=())
    try:
        prepared = data.prepare_task(
            task,
            ndim=study.model.ndim,
            store_dir=store_dir,
            progress=progress,
            known=known.get(entry.name, ""),
            like=target,
        )
    except UserError as error:
        if type(error) is not UserError:  # a damaged file, which says where it is
            raise
        raise UserError(f"{FIELD}, external test set {entry.name!r}: {error}") from None
    prepared = _with_differences(with_one_group_for_copies(prepared), target)
    left_out = tuple(sorted(_known_cases(study, tasks, prepared)))
    cases = tuple(record.name for record in prepared.cases if record.name not in dict(left_out))
    if not cases:
        case, reason = left_out[0]
        raise UserError(
            f"{FIELD}, external test set {entry.name!r}: networks of the study know all of its {len(prepared.cases)} "
            f"cases, such as {case}: {reason}. Give a set that none of them was trained on"
        )
    if left_out:
        shown = names.several([case for case, _ in left_out])
        prepared = with_warning(prepared, f"{len(left_out)} case(s) that networks know are left out: {shown}")
    fitted = tuple(dataclasses.replace(prepared, windows=fold.windows) for fold in tasks.fitted[study.target])
    return ExternalSet(entry.name, task, fitted, cases, left_out)


def _with_differences(prepared: PreparedTask, target: PreparedTask) -> PreparedTask:
    """The set with warnings about what it calls otherwise than the target does, or has beside it."""
    if prepared.modality != target.modality:
        prepared = with_warning(
            prepared,
            f"its channels are called {', '.join(prepared.modality)} and the target's {', '.join(target.modality)}: "
            f"they are taken in their order",
        )
    theirs = {name for name, _ in target.listing.labels}
    more = [name for name, _ in prepared.listing.labels if name not in theirs]
    if more:
        text = f"its labels {', '.join(more)} are none of the target's: they count as background, as in its networks"
        prepared = with_warning(prepared, text)
    if same_patients(prepared, target):
        return prepared
    return with_name_warning(prepared, target, f"the target {target.name}", "tested on cases they were trained on")


def _known_cases(study: StudySettings, tasks: Tasks, prepared: PreparedTask) -> Iterator[tuple[str, str]]:
    """Cases of a set that the study's networks know: copies of images, and patients of whom others were seen.

    A copy of any image of the target is left out, a test image's too: it is no external case.
    """
    seen = {
        record.voxels_sha256: (record.name, "the target") for record in reversed(tasks.prepared[study.target].cases)
    }
    patients: dict[str, str] = {}
    for task, known in tasks.prepared.items():
        what = "the target" if task == study.target else f"the source {known.name}"
        learned = {name for split in tasks.splits[task] for name in (*split.train, *split.val)}
        records = [record for record in known.cases if record.name in learned]
        seen |= {record.voxels_sha256: (record.name, what) for record in records if record.voxels_sha256 not in seen}
        if same_patients(prepared, known):
            theirs = patients_in(known, {record.group for record in records})
            learns = f"{what} trains or is validated"
            patients |= {patient: learns for patient in theirs if patient not in patients}
    for arm in study.arms:
        if arm.init != "random" and (given := arm.pretrain.from_workdir):
            past, what = past_of(given, arm.pretrain.from_arm), f"the networks that arm {arm.name} starts from"
            seen |= {voxels: (name, what) for voxels, (name, _) in past.images.items() if voxels not in seen}
            learned_from = f"{what} were trained or validated"
            patients |= {patient: learned_from for patient in past.patients_in(prepared) if patient not in patients}
    # Of a patient that networks know all images are left out, of whichever they know the patient by.
    groups = {record.group: patients[record.patient] for record in prepared.cases if record.patient in patients}
    for record in prepared.cases:
        if record.voxels_sha256 in seen:
            name, what = seen[record.voxels_sha256]
            yield record.name, f"it holds the same image as {name} of {what}"
        elif record.group in groups:
            yield record.name, f"{groups[record.group]} on images of its patient {record.group}"


def known_stores(stores: Mapping[str, str]) -> dict[str, str]:
    """Returns the stores of external sets, by the name of the set, among those that a record names."""
    return {role.removeprefix(_ROLE): store for role, store in stores.items() if role.startswith(_ROLE)}


_ROLE = "external:"


def role_of(external: ExternalSet) -> str:
    """Returns what a record calls an external set among the tasks of the study."""
    return f"{_ROLE}{external.name}"


def left_out_of(tasks: Tasks) -> Refused:
    """Returns the cases that external sets lose, each behind the name of its set, with the reason."""
    return tuple(
        (f"{external.name}: {case}", reason)
        for external in tasks.external
        for case, reason in (*external.prepared.report.refused, *external.left_out)
    )
