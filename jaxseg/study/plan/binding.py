"""Binds a study, from its first training step on, to its data as it was then, case by case.

`data.json` is written before the first step and never changes afterwards, but for subsets of training cases that new
seeds draw. Every later stage takes the split, the subsets, the intensity windows and the stores from it. Data that has
changed is refused: the networks know nothing of the change, and a new split would test them on cases that they were
trained on. Each checkpoint names the study and the data that it belongs to, so that the record can be made anew where
it was lost, and a job's folder from another study is not taken for this one's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxseg import checkpoint, workdirs
from jaxseg.data import Listing, Split, list_cases
from jaxseg.data.cases import Part
from jaxseg.data.formats.sources import is_elsewhere
from jaxseg.data.prepared import listing
from jaxseg.data.volumes import normalize
from jaxseg.manifest import DamagedError
from jaxseg.settings import TaskSettings
from jaxseg.study import files
from jaxseg.study.plan.jobs import Job
from jaxseg.types import UserError

RECORD = "data.json"
_SHOWN = 5


class Draw(NamedTuple):
    """Key of a subset of training cases: everything that decides it."""

    train_cases: int
    fold: int
    subset_id: int


@dataclasses.dataclass(frozen=True)
class BoundTask:
    """One task of a study as it was at the first training step."""

    data: str
    """The data set, as the config names it."""
    store: str
    """The name of the prepared store."""
    listing: Listing
    """The task's cases with checksums of their files, its labels and channels."""
    voxels: dict[str, str]
    """The `CaseRecord.voxels_sha256` of each case that is used."""
    splits: tuple[Split, ...]
    """The split of each fold."""
    windows: tuple[tuple[normalize.Window, ...], ...]
    """The intensity statistics of each fold's training cases."""
    subsets: dict[Draw, tuple[str, ...]]
    """The training cases of each draw that is smaller than the training set."""

    def changes(self, now: Listing) -> list[str]:
        """Lists what has changed in the data, one line each."""
        before, after = ({case.name: case for case in listing.cases} for listing in (self.listing, now))
        lines = [
            _named("added", sorted(after.keys() - before.keys())),
            _named("removed", sorted(before.keys() - after.keys())),
        ]
        for what, field in (
            ("whose image changed", "image_sha256"),
            ("whose label map changed", "label_sha256"),
            ("regrouped", "group"),
        ):
            both = (name for name in before if name in after)
            changed = [name for name in both if getattr(before[name], field) != getattr(after[name], field)]
            lines.append(_named(what, changed))
        for what, field in (
            ("labels", "labels"),
            ("regions", "regions"),
            ("value to ignore", "ignore"),
            ("channels", "modality"),
        ):
            was, found = getattr(self.listing, field), getattr(now, field)
            if was != found:
                lines.append(f"{what}: {was} before, {found} now")
        lines += _part_changes(self.listing.parts, now.parts)
        if self.listing.splits != now.splits:
            lines.append("the folds of splits_final.json changed")
        if self.listing.refused != now.refused:
            names = sorted({name for name, _ in {*self.listing.refused} ^ {*now.refused}})
            lines.append(_named("that cannot be used for another reason than before, or no longer", names))
        return [line for line in lines if line]


def _part_changes(before: Sequence[Part], now: Sequence[Part]) -> list[str]:
    """What changed in the descriptions of the parts of a pooled source."""
    was, found = ({part.name: part for part in parts} for parts in (before, now))
    if [*was] != [*found]:
        return [f"parts: {', '.join(was) or 'none'} before, {', '.join(found) or 'none'} now"]
    fields = (("labels", "labels"), ("value to ignore", "ignore"), ("channels", "modality"))
    return [
        f"{what} of the part {name}: {getattr(was[name], field)} before, {getattr(found[name], field)} now"
        for name in was
        for what, field in fields
        if getattr(was[name], field) != getattr(found[name], field)
    ]


def _named(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} case(s) {what}: {', '.join(names[:_SHOWN])}{more}"


def check_unchanged(role: str, was: BoundTask, task: TaskSettings, *, ndim: int, store_dir: Path) -> None:
    """Compares data with what it was when training began, where this machine has it.

    Args:
        role: What messages call the task.
        was: The task when training began.
        task: Its settings, with its data resolved.
        ndim: Number of axes of the network.
        store_dir: The folder of all stores.

    Raises:
        UserError: What changed, case by case.
    """
    if is_elsewhere(task.data):
        return
    changes = was.changes(list_cases(task, ndim=ndim, store_dir=store_dir))
    if changes:
        lines = "\n  ".join(changes)
        raise UserError(
            f"the data of {role} ({task.data}) is no longer what this study was trained on:\n  {lines}\n"
            f"Nothing was changed here. Put the data back as it was to go on with this study, or give a new --workdir "
            f"to study it as it is now. To predict new cases with the networks that there are, or to score label maps "
            f"against others, use launch.predict, which takes any folder (--input, --references)"
        )


@dataclasses.dataclass(frozen=True)
class Binding:
    """The data and settings that a study is bound to."""

    study: str
    """A unique id of the study, which all of its checkpoints name."""
    config: str
    """The digest of the config; see `settings.digest`."""
    rule_version: int
    tasks: dict[str, BoundTask]
    """The bound tasks by role: `target`, `source`, ..."""
    given: dict[str, dict[str, str]]
    """Checksums of source networks that were trained elsewhere, by arm and seed; see `sources.given_digests`."""
    waves: tuple[int, ...] = ()
    """The number of seeds when the study began to train and after each extension."""
    looks: tuple[int, ...] = ()
    """The numbers of seeds at which the study is judged, as declared before it trained."""

    @property
    def data(self) -> str:
        """The digest of the cases, splits and windows of all tasks."""
        fixed = {
            role: [
                task.listing.to_json(),
                task.voxels,
                [dataclasses.astuple(split) for split in task.splits],
                task.windows,
            ]
            for role, task in self.tasks.items()
        }
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    @property
    def mark(self) -> dict[str, Any]:
        """The ids of the study and its data, as checkpoints hold them."""
        return {"study": self.study, "data": self.data, "waves": self.waves, "looks": self.looks}


def new_study() -> str:
    """Returns a new, unique study id."""
    return uuid.uuid4().hex


# -------------------------------------------------------------------------------------------------------------- disk


def write_binding(workdir: Path, binding: Binding) -> None:
    """Writes data.json."""
    tasks = {
        role: dataclasses.asdict(task)
        | {
            "listing": task.listing.to_json(),
            "subsets": [draw._asdict() | {"cases": names} for draw, names in task.subsets.items()],
        }
        for role, task in binding.tasks.items()
    }
    files.write_json(workdir / RECORD, dataclasses.asdict(binding) | {"tasks": tasks})


def read_binding(workdir: Path) -> Binding | None:
    """Reads what a study is bound to; None before its first training step.

    Raises:
        DamagedError: If data.json is not as it was written.
    """
    found = files.read_json(workdir / RECORD)
    if not found:
        return None
    try:
        tasks = {role: _task(entry) for role, entry in found["tasks"].items()}
        return Binding(
            found["study"],
            found["config"],
            found["rule_version"],
            tasks,
            found["given"],
            *(tuple(found[name]) for name in ("waves", "looks")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(workdir / RECORD, f"it is no such record ({error})", files.RERUN) from None


def _task(entry: Mapping[str, Any]) -> BoundTask:
    return BoundTask(
        data=entry["data"],
        store=str(workdirs.inside(Path(), entry["store"])),
        listing=listing.from_json(entry["listing"]),
        voxels=dict(entry["voxels"]),
        splits=tuple(Split(*(tuple(part[name]) for name in ("train", "val", "test"))) for part in entry["splits"]),
        windows=tuple(tuple(tuple(window) for window in fold) for fold in entry["windows"]),
        subsets={
            Draw(drawn["train_cases"], drawn["fold"], drawn["subset_id"]): tuple(drawn["cases"])
            for drawn in entry["subsets"]
        },
    )


def workdir_of(folder: Path) -> Path | None:
    """Returns the workdir that a folder is or lies in, if what its networks have seen is recorded there."""
    workdir = next((place for place in (folder, *folder.parents) if (place / "study.json").exists()), None)
    return workdir if workdir is not None and (workdir / RECORD).exists() else None


class Trained(NamedTuple):
    """What the checkpoints of a workdir say about the study that they belong to."""

    marks: set[tuple[str, str]]
    """Every pair (study, data) that a checkpoint names."""
    chunks: dict[str, tuple[int, ...]]
    """The number of runs in each job of every group that has checkpoints."""
    waves: tuple[int, ...] = ()
    """The `Binding.waves` of the latest checkpoint."""
    looks: tuple[int, ...] = ()
    """The `Binding.looks`, which all checkpoints share."""


def read_trained(workdir: Path) -> Trained:
    """Reads what the checkpoints say; damaged ones are skipped."""
    marks: set[tuple[str, str]] = set()
    chunks: dict[str, tuple[int, ...]] = {}
    waves: tuple[int, ...] = ()
    looks: tuple[int, ...] = ()
    # The last job of a group was cut last, so that its word stands.
    for directory in sorted(workdir.glob("train/*/chunk_*"), key=lambda path: int(path.name.removeprefix("chunk_"))):
        for step in reversed(checkpoint.saved_steps(directory / "checkpoints")):
            with contextlib.suppress(DamagedError, KeyError):
                meta = checkpoint.read_meta(directory / "checkpoints", step)
                marks.add((meta["study"], meta["data"]))
                chunks[directory.parent.name] = tuple(meta["chunks"])
                waves, looks = max(waves, tuple(meta["waves"]), key=len), tuple(meta["looks"])
                break
    return Trained(marks, chunks, waves, looks)


def check_job(directory: Path, step: int, job: Job, binding: Binding) -> None:
    """Checks that a job's checkpoint belongs to the job that continues from it.

    Raises:
        UserError: If it belongs to another study or to other runs.
    """
    meta = checkpoint.read_meta(directory, step)
    if (meta.get("study"), meta.get("data")) != (binding.study, binding.data):
        found = "another study"
    elif meta.get("runs") != json.loads(json.dumps([run.key._asdict() | run.ids for run in job.runs])):
        found = "other runs"
    else:
        return
    raise UserError(
        f"checkpoint {directory / str(step)} belongs to {found} than this workdir says; it may have been copied here. "
        f"Remove the folder {directory.parent}, whose runs are then trained, or put back the one that belongs here"
    )
