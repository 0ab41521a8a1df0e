"""Reads and writes study.json: what a study planned, with which code, on which data, and how it went.

One dataclass holds it, which is written and read here. A workdir may have been edited, damaged, mixed from two studies,
or come from a stranger, so reading checks the type of every field and names the place that is wrong.
"""

from __future__ import annotations

import dataclasses
import types
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxseg import workdirs
from jaxseg.data.splits import Split
from jaxseg.manifest import DamagedError
from jaxseg.regions import Regions, count_outputs
from jaxseg.study import files
from jaxseg.study.clock import CompiledProgram
from jaxseg.study.typed_json import MismatchError, from_tree, to_tree
from jaxseg.types import RunKey, UserError

NAME = "study.json"
FORMAT = 4
"""Format of workdirs. Version 0.1 wrote no number and kept no record of its data; configs up to 3 had other fields."""
MEND = (
    "the command that began the study writes it anew, without training again; of a copied study, take the file from "
    "where it was copied"
)


class Counts(NamedTuple):
    """Numbers of cases in each part of a task, in the first fold."""

    train: int
    val: int
    test: int


class Subset(NamedTuple):
    """Training cases of a draw that is smaller than the training set."""

    train_cases: int
    fold: int
    subset_id: int
    cases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Device:
    """The accelerators of a process."""

    platform: str
    kind: str
    count: int


class Checkpoint(NamedTuple):
    """A network of someone else's, as far as it is known."""

    file: str
    """The name of its file, or the folder of checkpoints."""
    sha256: str = ""
    origin: str = ""
    """Where it comes from, as the user put it."""
    licence: str = ""
    trained_on: str = ""
    """The images that it was trained on, as the user put it; empty if unknown."""


class Pretraining(NamedTuple):
    """The source networks of an arm."""

    steps: int | None
    """Training steps; None if the networks were trained elsewhere."""
    share: str
    from_workdir: str
    checkpoint: Checkpoint | None = None
    """The network if only the user can tell how it was trained: an import, or checkpoints without their study."""
    objective: str = "labels"
    """What this study's own source networks learn."""


class Exclusion(NamedTuple):
    """A case, or a run that diverged, which the results leave out."""

    case: str
    reason: str


class RecordedSet(NamedTuple):
    """An external test set."""

    name: str
    """Its name in tables."""
    data: str
    """The name of its data set."""
    cases: tuple[str, ...]
    """The cases that are tested."""


class Training(NamedTuple):
    """The settings of the study's own training."""

    steps: int


class MadeWith(NamedTuple):
    """The device, versions and commit of a process."""

    versions: Mapping[str, str | None]
    device: Device
    git_commit: str | None


class RecordedPart(NamedTuple):
    """One part of a pooled source."""

    name: str
    cases: int
    """Cases that could be used."""
    labels: tuple[str, ...]
    """Those of the task's labels that the part annotates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedTask:
    """A task as its networks see it. Tables and pages need fewer of its fields than predictions do."""

    name: str
    labels: tuple[str, ...]
    label_values: tuple[int, ...] = ()
    """The value in files of each class of the label maps."""
    regions: Regions | None = None
    """What `labels` are made of where they are regions that overlap."""
    unit: str = ""
    noise: float = 0.0
    channels: int
    spacing_mm: tuple[float, ...] | None = None
    normalization: tuple[str, ...]
    """Normalisation of each channel; of a pooled source, those of each part, one part after another."""
    windows: tuple[tuple[tuple[float, float, float, float], ...], ...] = ()
    """The intensity windows by fold and channel, in the order of `normalization`."""
    cases: Counts
    splits: tuple[Split, ...] = ()
    """The split of each fold."""
    subsets: tuple[Subset, ...] = ()
    parts: tuple[RecordedPart, ...] = ()
    """The parts of a pooled source; empty where there is one source."""

    @property
    def outputs(self) -> int:
        """Number of outputs of a network: the classes, background included, or the regions."""
        return count_outputs(len(self.labels), self.regions)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What these outputs are called: the background and the labels, or the regions."""
        return self.labels if self.regions is not None else ("background", *self.labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedArm:
    """How the networks of an arm start, and which of their weights are trained."""

    kind: str
    init: str = "random"
    freeze: str = "none"
    schedule: str = "constant"
    parameters: int = 0
    trainable: int = 0
    pretrain: Pretraining | None = None
    source: str = ""
    """The data set of its source networks; empty if it has none, or if it is unknown."""
    fine_tuning: str = ""
    """How its training differs from that of every trained weight at one rate, in words; empty if it does not."""
    settings: str = ""
    """A digest of its network and training, but for its start and its learning rate; empty in records of an earlier
    version."""
    training: str = ""
    """The same without what its seeds are and what they vary."""
    lr_choice: str = ""
    """How its learning rates are chosen on trials, `joint` or `per_arm`; empty if they are set."""

    @property
    def uses_source(self) -> bool:
        """Whether the arm starts from a source network."""
        return self.init.startswith("pretrained") or self.init == "mean_var"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run and the place of its parameters."""

    arm: str
    train_cases: int
    fold: int
    seed: int
    kind: str
    """`train`, `pretrain` (a source network) or `select` (a trial of a learning rate)."""
    directory: str
    index: int
    """The run's position on the run axis of the job in `directory`."""
    diverged_at: int | None = None
    steps: int
    lr: float = float("nan")
    init_id: int = 0
    order_id: int = 0
    subset_id: int = 0
    source: RunKey | None = None
    """The source network that the run started from."""
    seconds: float | None = None
    """Seconds of its training: those of its job, without compiling and validation, over the number of its runs."""

    @property
    def key(self) -> RunKey:
        """The key that identifies the run."""
        return RunKey(self.arm, self.train_cases, self.fold, self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study's tasks, arms and runs, with the software and devices that made them and the time of each stage."""

    format: int = 1
    name: str
    rule_version: int = 1
    """The version of the claims' rules when the training began."""
    versions: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    device: Device | None = None
    git_commit: str | None = None
    trained_on: tuple[MadeWith, ...] = ()
    """Every software and device with which checkpoints of the arms were made."""
    source: RecordedTask | None
    target: RecordedTask
    arms: Mapping[str, RecordedArm]
    runs: tuple[RecordedRun, ...]
    train: Training | None = None
    chunks: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Number of runs in each job of a group."""
    stores: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The seconds that each stage took."""
    parts: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """The seconds of each stage that were compiling and validating; empty in records of an earlier version."""
    programs: tuple[CompiledProgram, ...] = ()
    """The programs that each stage compiled, and how long that took; empty in records of an earlier version."""
    exclusions: tuple[Exclusion, ...] = ()
    vary: tuple[str, ...] = ()
    """The streams that differ between seeds; with `fold`, each seed is tested on one fold."""
    waves: tuple[int, ...] = ()
    """The number of seeds at the start and after each extension; empty in records of an earlier version."""
    looks: tuple[int, ...] = ()
    """The numbers of seeds at which the study is judged, declared before it trained; empty for once, on the first
    seeds."""
    average: float = 0.0
    """The share of the steps, at the end, whose weights are averaged."""
    external: tuple[RecordedSet, ...] = ()
    """The external test sets."""
    exploratory: str | None = None
    """Why the verdicts do not test questions asked beforehand; None if they do."""

    @property
    def grown_from(self) -> tuple[int, ...]:
        """The number of seeds each time before more were added."""
        return self.waves[:-1]

    def runs_of(self, kind: str) -> list[RecordedRun]:
        """Returns the runs of a kind; see `RecordedRun.kind`."""
        return [run for run in self.runs if run.kind == kind]

    def sources(self, arm: str) -> dict[int, int]:
        """Returns the seed of the source network of each seed of an arm; none where it starts at random."""
        own = (run for run in self.runs_of("train") if run.arm == arm)
        return {run.seed: run.source.seed for run in own if run.source is not None}

    @property
    def seconds(self) -> float:
        """The total seconds of all stages."""
        return float(sum(self.timing.values()))

    @property
    def steps(self) -> dict[tuple[str, int], int]:
        """Returns the training steps by arm and training set size."""
        return {(run.arm, run.train_cases): run.steps for run in self.runs_of("train")}

    @property
    def diverged(self) -> list[RecordedRun]:
        """Returns the runs of any kind that diverged."""
        return [run for run in self.runs if run.diverged_at is not None]


class _Version01(NamedTuple):
    """What a record of version 0.1 has in another place: one entry on source networks for all arms."""

    pretrain: Pretraining | None = None


class _Maker(NamedTuple):
    """What every version wrote alike, from which a record of another version is told."""

    format: int = 1
    versions: Mapping[str, str | None] = types.MappingProxyType({})


# ---------------------------------------------------------------------------------------------------- read and write


def check_format(workdir: Path) -> None:
    """Refuses a workdir whose files have another meaning than this version's; one without a record is new.

    Raises:
        UserError: If another version made it, or its study.json is damaged.
    """
    path = workdir / NAME
    tree = files.read_json(path, MEND)
    made = _checked(_Maker, tree, path)
    if tree and made.format != FORMAT:
        raise UserError(
            f"workdir {workdir} was made by jaxseg {made.versions.get('jaxseg') or 'another version'}, which wrote "
            f"checkpoints and records in another form (format {made.format}, this version reads {FORMAT}). Go on with "
            f"it in that version, or train in a new --workdir; its tables and its page can be read as they are"
        )


def read(workdir: Path, *, any_format: bool = False) -> StudyRecord | None:
    """Reads the record of a workdir; None if there is none.

    Args:
        workdir: Folder of the study.
        any_format: Also read earlier versions, whose tables and record are readable though their networks are not. A
            missing field takes the default that `StudyRecord` and its parts state.

    Raises:
        UserError: If it is of another version, or the workdir holds links that lead out of it.
        DamagedError: If it is damaged or of another shape, or names stores that are not below the stores' folder.
    """
    path = workdir / NAME
    if not path.exists() and not path.is_symlink():
        return None
    workdirs.check_links(workdir)
    if not any_format:
        check_format(workdir)
    tree = files.read_json(path, MEND)
    found: StudyRecord = _checked(StudyRecord, tree, path)
    if found.format < 2:
        made = _checked(_Version01, tree, path).pretrain
        arms = {name: dataclasses.replace(arm, pretrain=made) for name, arm in found.arms.items() if arm.uses_source}
        found = dataclasses.replace(found, arms={**found.arms, **(arms if made else {})})
    if (problem := _contradiction(found, workdir)) is not None:
        raise _no_record(path, problem)
    return found


def write(workdir: Path, record: StudyRecord) -> None:
    """Writes the record of a workdir, whole or not at all."""
    files.write_json(workdir / NAME, to_tree(record))


def _no_record(path: Path, problem: str) -> DamagedError:
    return DamagedError(path, f"it is no record of a study: {problem}", MEND)


def _checked(kind: Any, tree: Any, path: Path) -> Any:
    try:
        return from_tree(kind, tree)
    except MismatchError as error:
        raise _no_record(path, str(error)) from None


def _contradiction(record: StudyRecord, workdir: Path) -> str | None:
    """What two places of a record say differently, or what cannot be; None where it is sound."""
    for role, task in (("target", record.target), ("source", record.source)):
        if task is None:
            continue
        values, labels = task.label_values, task.labels
        if (regions := task.regions) is not None:
            groups, counts = regions.members, {len(labels), len(regions.members), len(regions.written)}
            sound = all(groups) and all(0 < value <= len(values) for group in groups for value in group)
            own = all(value in group for group, value in zip(groups, regions.written, strict=False))
            if len(counts) > 1 or not sound or not own:
                return f"{role} has {len(labels)} labels, {len(values)} label_values, and regions that do not fit them"
        elif values and len(set(values)) != len(labels):
            return f"{role} has {len(labels)} labels and {len(set(values))} different label_values"
        if len(task.normalization) != task.channels * max(1, len(task.parts)):
            return f"{role} has {task.channels} channel(s) and {len(task.normalization)} entries of normalization"
    for name in record.stores.values():
        try:
            workdirs.inside(workdir / "stores", name)
        except UserError as error:
            return str(error)
    runs = Counter((run.kind, run.directory, run.index) for run in record.runs)
    twice = [place for place, count in runs.items() if count > 1]
    return f"two runs have index {twice[0][2]} of {twice[0][1]}" if twice else None
