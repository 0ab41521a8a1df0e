"""What networks from elsewhere have seen: images and patients of their study, and what those before them saw."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jaxseg import paths, settings
from jaxseg.data import PreparedTask
from jaxseg.data.formats.pooled import SEPARATOR
from jaxseg.reserved import SOURCE, is_source
from jaxseg.settings import ArmSettings, StudySettings
from jaxseg.study import files, record, source_folder
from jaxseg.study.plan.binding import BoundTask, read_binding, workdir_of
from jaxseg.study.plan.tasks import role_of, tasks_of
from jaxseg.study.record import Checkpoint
from jaxseg.types import UserError

_DEEPEST = 16
"""Studies that may have started from each other's networks in a row: a damaged record may lead in a circle."""


Seen = dict[str, tuple[str, str]]
"""The name of a case and its part (`train` or `val`), by what it is known by."""


class SeenSet(NamedTuple):
    """A data set on whose cases networks were trained."""

    published: frozenset[str]
    """Every name that the set publishes as that of a patient."""
    patients: Seen
    """A case of each patient that was seen, by the patient's name."""


class Past(NamedTuple):
    """What is known of the images that networks were trained on."""

    images: Seen
    """The cases by the checksum of their voxels."""
    checkpoint: Checkpoint | None = None
    """The network at the beginning, if nothing but its importer's words says what it has seen."""
    sets: tuple[SeenSet, ...] = ()
    """The sets that the images are from."""

    def patients_in(self, task: PreparedTask) -> Seen:
        """Returns the patients that were seen, by name, in sets whose names speak of the same people as a task's do.

        As in `apart.same_patients`, they do if both publish groups and share some.
        """
        published = {record.patient for record in task.cases if record.published}
        same = [known for known in self.sets if known.published & published]
        return {
            patient: found
            for part in ("val", "train")  # a patient on whom some set was trained was trained on
            for known in same
            for patient, found in known.patients.items()
            if found[1] == part
        }


def past_of(given: str, from_arm: str, depth: int = 0) -> Past:
    """Returns what networks of `pretrain.from_workdir` were trained on.

    Networks of an arm have seen its training cases, those of its source networks, and, where these came from elsewhere,
    what they in turn had seen.

    Args:
        given: A study's workdir, an import, or a folder of checkpoints.
        from_arm: The setting `pretrain.from_arm`.
        depth: Number of studies between these networks and the one that asks.
    """
    path = paths.expand(given)
    if found := source_folder.read(path):
        return Past({}, found[0].checkpoint)
    workdir = workdir_of(path.absolute())
    known = None if workdir is None else read_binding(workdir)
    if workdir is None or known is None:
        return Past({}, Checkpoint(given))
    name = from_arm.partition("/")[0] or SOURCE
    roles, before = {role for role in known.tasks if role != "target"}, Past({})
    if not is_source(name):
        roles, before = _of_arm(workdir, name, roles, depth)
    images = before.images | {
        task.voxels[case]: (case, part)
        for part in ("val", "train")  # a case that some fold trains on was trained on
        for role, task in known.tasks.items()
        if role in roles
        for split in task.splits
        for case in getattr(split, part)
    }
    trained = {voxels: found for voxels, found in before.images.items() if found[1] == "train"}
    own = tuple(_seen_of(task) for role, task in known.tasks.items() if role in roles)
    return Past(images | trained, before.checkpoint, (*own, *before.sets))


def _seen_of(task: BoundTask) -> SeenSet:
    """The patients of a set on which its study trained, in any fold.

    Of each case the record has the group alone, so that a group which is just the case's name is known for a patient's
    only where other cases share it.
    """
    cases = [case for case in task.listing.cases if case.name in task.voxels]
    grouped = [case for case in cases if case.group != case.name]
    # In a pooled source, a case without a group keeps its own name as a patient, if its part has groups for others.
    parts = {part.name for part in task.listing.parts} & {case.name.partition(SEPARATOR)[0] for case in grouped}
    patients = {case.name: case.group for case in cases}
    for case in cases:
        part, _, name = case.name.partition(SEPARATOR)
        if case.group == case.name and part in parts:
            patients[case.name] = name
    return SeenSet(
        frozenset(case.group for case in grouped),
        {
            patients[case]: (case, part)
            for part in ("val", "train")
            for split in task.splits
            for case in getattr(split, part)
        },
    )


def _of_arm(workdir: Path, name: str, sources: set[str], depth: int) -> tuple[set[str], Past]:
    """The roles of the tasks that networks of an arm have seen, and the past of those that they started from."""
    theirs = _settings_of(workdir)
    arm = None if theirs is None else next((arm for arm in theirs.arms if arm.name == name), None)
    if theirs is None or arm is None:  # its config is lost, or of another version: it may have seen all that there is
        return {"target", *sources}, _recorded(workdir, name)
    if arm.kind != "network" or arm.init == "random":
        return {"target"}, Past({})
    if not arm.pretrain.from_workdir:
        return {"target", role_of(tasks_of(theirs).index(arm.source))}, Past({})
    return {"target"}, _before(workdir, arm, depth)


def _before(workdir: Path, arm: ArmSettings, depth: int) -> Past:
    recorded = _recorded(workdir, arm.name)
    if recorded.checkpoint is not None or depth >= _DEEPEST:
        return recorded
    return past_of(arm.pretrain.from_workdir, arm.pretrain.from_arm, depth + 1)


def _recorded(workdir: Path, name: str) -> Past:
    """What study.json says of the checkpoint that an arm started from."""
    found = record.read(workdir)
    arm = None if found is None else found.arms.get(name)
    return Past({}, arm.pretrain.checkpoint if arm is not None and arm.pretrain is not None else None)


def _settings_of(workdir: Path) -> StudySettings | None:
    try:
        config = files.read_json(workdir / files.CONFIG)
        return settings.parse(settings.from_tree(config)) if config else None
    except UserError:
        return None
