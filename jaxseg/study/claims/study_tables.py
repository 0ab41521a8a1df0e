"""Reads what claims need of a study: its record in study.json and its tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from jaxseg.study import files, record
from jaxseg.study.claims.controls import CONTROLS
from jaxseg.study.claims.rules import of_checkpoint
from jaxseg.study.record import RecordedArm, RecordedRun, StudyRecord
from jaxseg.study.score.units import is_crossed
from jaxseg.types import UserError

TABLES = ("cases", "curves", "filters", "filter_controls", "rewind", "similarity", "pairs", "coherence", "probes")
"""Names of the tables in results/ that claims are judged from."""


GIVEN = "given"
"""Name of an arm that starts from a checkpoint of someone else's, in a study that may have `transfer` too."""


class ArmRecord(NamedTuple):
    """The training of an arm."""

    kind: str
    schedule: str
    steps: int
    """Training steps; 0 for an arm without a network."""
    pretrain_steps: int | None
    """Steps of its source networks; 0 for a random start, None if they were trained elsewhere."""
    one_source: bool
    """Whether several seeds start from the same source network."""
    diverged: int
    runs: int
    rates: Mapping[int, tuple[float, ...]] = MappingProxyType({})
    """Learning rates of its runs at each training set size, ascending: several where folds have chosen their own."""
    own_rate: bool = False
    """Whether they were chosen for the arm by itself, on trials of its own."""
    sources: Mapping[int, int] = MappingProxyType({})
    """The seed of the source network that each seed starts from; empty for a random start."""
    init: str = "random"
    """The setting `init` of the arm."""
    seen: str = ""
    """What its source network may have seen, in words, if jaxseg cannot know; see `rules.of_checkpoint`."""
    freeze: str = "none"
    """The setting `freeze` of the arm."""
    source: str = ""
    """The data set of its source networks; empty for a random start, or if it is unknown."""
    start: str = ""
    """What identifies its source networks within the study; empty for a random start."""
    pretrain_seconds: float = math.nan
    """Seconds that the training of one of its source networks took; NaN if they were trained elsewhere."""
    one_draw: bool = False
    """Whether, at sizes below the full one, every seed has the same training cases."""
    crossed: bool = False
    """Whether its random streams are crossed, see `score.units`."""
    like: str = ""
    """A digest shared by arms that differ only in their learning rate."""
    training: str = ""
    """A digest shared by arms that differ only in their learning rate and their seeds."""


class Record(NamedTuple):
    """The task, training set sizes and arms of a study."""

    target: str
    source: str
    full_size: int
    """Number of training cases of the target."""
    arms: dict[str, ArmRecord]
    rule_version: int
    noise: float = 0.0
    """Noise added to the target's images, in their own standard deviations."""
    looks: tuple[int, ...] = ()
    """Numbers of seeds at which the study was to be judged, declared before it trained."""
    grown_from: tuple[int, ...] = ()
    """Numbers of seeds that the study had each time before more were added, in order."""
    exploratory: str = ""
    """Why its findings were not fixed in advance; empty if they were."""

    @property
    def given(self) -> tuple[str, ...]:
        """Arms that stand for `transfer` but start from a checkpoint of someone else's: `given` and `given_...`."""
        return tuple(name for name in self.arms if name == GIVEN or name.startswith(f"{GIVEN}_"))

    def number_of_cases(self, train_cases: int) -> int:
        """Returns the number of cases of a training set size, in which 0 means all."""
        return min(train_cases, self.full_size) if train_cases else self.full_size


class StudyTables(NamedTuple):
    """The record and tables of a study, as claims see them."""

    record: Record
    tables: Mapping[str, pd.DataFrame]
    """The existing tables among `TABLES`, by name."""


def _one_draw(runs: Sequence[RecordedRun]) -> bool:
    """Whether at a size below all the seeds of an arm share one draw of training cases, by the arm's runs."""
    draws: dict[int, set[int]] = {}
    seeds: dict[int, set[int]] = {}
    for run in runs:
        if run.train_cases:
            draws.setdefault(run.train_cases, set()).add(run.subset_id)
            seeds.setdefault(run.train_cases, set()).add(run.seed)
    return any(len(draws[size]) < 2 <= len(seeds[size]) for size in draws)


def _rates(runs: Sequence[RecordedRun]) -> dict[int, tuple[float, ...]]:
    """Learning rates by training set size."""
    found: dict[int, set[float]] = {}
    for run in runs:
        if not math.isnan(run.lr):
            found.setdefault(run.train_cases, set()).add(run.lr)
    return {size: tuple(sorted(rates)) for size, rates in found.items()}


def _likeness(arm: RecordedArm, runs: Sequence[RecordedRun], digest: str) -> str:
    """What of an arm must agree with another's for the two to differ only in what the digest of settings leaves out."""
    settings = (
        arm.kind,
        arm.init,
        arm.freeze,
        arm.schedule,
        arm.parameters,
        arm.trainable,
        arm.fine_tuning,
        digest,
    )
    return " ".join([*map(str, settings), *sorted({str(run.steps) for run in runs})])


def _source_name(study: StudyRecord) -> str:
    """The data set or file of the source that the study is about: of its first arm with one that is no control."""
    for name in sorted(study.arms, key=lambda name: name in CONTROLS):
        arm = study.arms[name]
        if arm.pretrain is not None and arm.pretrain.checkpoint is not None:
            return arm.pretrain.checkpoint.file
        if arm.source:
            return arm.source
    return study.source.name if study.source else ""


def _given(arm: RecordedArm) -> str:
    """Where the networks of an arm come from that this study did not train; empty for its own."""
    return arm.pretrain.from_workdir if arm.pretrain is not None else ""


def read_record(study: StudyRecord) -> Record:
    """Reads what claims need of study.json."""
    runs = study.runs_of("train")
    pretrained = {(run.arm, run.seed): run for run in study.runs_of("pretrain")}
    arms = {}
    for name, arm in study.arms.items():
        own = [run for run in runs if run.arm == name]
        sources = [(run.source.arm, run.source.seed) for run in own if run.source is not None]
        # Networks from elsewhere have the name that the study's own ones have.
        known = not _given(arm) and all(source in pretrained for source in sources)
        networks = [pretrained[source] for source in dict.fromkeys(sources)] if known else []
        seconds = [run.seconds for run in networks if run.seconds is not None]
        arms[name] = ArmRecord(
            kind=arm.kind,
            schedule=arm.schedule,
            steps=max((run.steps for run in own), default=0),
            pretrain_steps=max((run.steps for run in networks), default=0) if known else None,
            one_source=len(set(sources)) == 1 and len({run.seed for run in own}) > 1,
            diverged=sum(run.diverged_at is not None for run in own),
            runs=len(own),
            rates=_rates(own),
            own_rate=arm.lr_choice == "per_arm",
            sources=study.sources(name),
            init=arm.init,
            seen=of_checkpoint(given.trained_on) if arm.pretrain and (given := arm.pretrain.checkpoint) else "",
            freeze=arm.freeze,
            source=arm.source,
            start=" ".join(dict.fromkeys([*(name for name, _ in sources), _given(arm)])).strip(),
            pretrain_seconds=statistics.fmean(seconds) if seconds else math.nan,
            one_draw=_one_draw(own),
            crossed=is_crossed(study, name),
            like=_likeness(arm, own, arm.settings),
            training=_likeness(arm, own, arm.training),
        )
    return Record(
        target=study.target.name,
        source=_source_name(study),
        full_size=study.target.cases.train,
        arms=arms,
        rule_version=study.rule_version,
        noise=study.target.noise,
        looks=study.looks,
        grown_from=study.grown_from,
        exploratory=study.exploratory or "",
    )


def read_study(workdir: Path) -> StudyTables:
    """Reads the record and the tables, compressed or not, of a workdir.

    Raises:
        UserError: If the workdir holds no study.
    """
    found = record.read(workdir, any_format=True)
    if found is None:
        raise UserError(f"no study in {workdir}: it has no study.json; give the --workdir of a study")
    found_in = {name: files.find_table(workdir / "results", name) for name in TABLES}
    tables = {name: files.read_table(path) for name, path in found_in.items() if path is not None}
    return StudyTables(read_record(found), tables)
