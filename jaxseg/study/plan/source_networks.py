"""Locates source networks: in the study's own workdir, in another study's, an import, or any folder of checkpoints."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxseg import checkpoint, logs, paths
from jaxseg.data import PreparedTask
from jaxseg.reserved import SOURCE, is_source
from jaxseg.settings import ArmSettings, PretrainSettings, StudySettings, TaskSettings
from jaxseg.study import record, recorded_runs, source_folder
from jaxseg.study.plan.jobs import Plan, find
from jaxseg.study.plan.runs import Run, target_runs, trial_runs
from jaxseg.study.plan.seen import past_of
from jaxseg.study.record import Pretraining, RecordedRun, RecordedTask, StudyRecord
from jaxseg.study.recorded_runs import Place
from jaxseg.transfer import for_head_of
from jaxseg.types import Params, RunKey, UserError

Locate = Callable[[RunKey], Place]
Entries = list[tuple[RunKey, Callable[[], Place]]]
"""Runs, each with a way to find its parameters."""


def locate_own(workdir: Path, plan: Plan) -> Locate:
    """Locates the source networks that this study pretrained."""

    def own(key: RunKey) -> Place:
        job, index = find(plan, key)
        return Place(workdir / job.directory / "checkpoints", job.program.train.steps, index)

    return own


def locate_given(arm: ArmSettings) -> Locate:
    """Locates the source networks of `pretrain.from_workdir`, by seed.

    Raises:
        UserError: If there are none, their training is not finished, or several networks have the same seed.
    """
    settings = arm.pretrain
    path, what = (
        paths.expand(settings.from_workdir),
        f"pretrain.from_workdir = {settings.from_workdir!r} (arm {arm.name!r})",
    )
    if source_folder.is_import(path):
        return _locate_import(path, settings, what)
    if found := record.read(path):
        runs = [run for run in found.runs if run.kind != "select"]
        entries: Entries = [(run.key, functools.partial(_sound_place, path, run, what)) for run in runs]
    else:
        entries = _checkpoint_runs(path, what)
    wanted = settings.from_arm or SOURCE
    if not settings.from_arm and found is not None:
        _check_one_source(found, what)
    named = {f"{key.arm}/{key.variant()}" for key, _ in entries}
    chosen = [(key, place) for key, place in entries if wanted in (key.arm, f"{key.arm}/{key.variant()}")]
    if not chosen:
        raise UserError(
            f"{what}: it has no networks {wanted!r}; set pretrain.from_arm to one of {', '.join(sorted(named))}"
        )
    by_seed: dict[int, Callable[[], Place]] = {}
    for key, place in chosen:
        if key.seed in by_seed:
            raise UserError(
                f"{what}: several networks {wanted!r} have seed {key.seed}; set pretrain.from_arm to one of "
                f"{', '.join(sorted(named))}"
            )
        by_seed[key.seed] = place

    def theirs(key: RunKey) -> Place:
        if key.seed not in by_seed:
            # A trial of a rate starts from the network of its own seed, too, which no run of the study has.
            of_trial = key.seed in {seed // settings.runs_per_source for seed in arm.optim.lr_seeds}
            mend = (
                "set optim.lr_seeds, whose trial starts from it, to some of these that seed_ids leaves out"
                if of_trial and arm.tries_rates
                else "set seed_ids to some of these"
            )
            raise UserError(
                f"{what} has no source network of seed {key.seed}; it has {sorted(by_seed)}; {mend}, or pretrain.share "
                f"to 'one' and base_seed to one of them"
            )
        place = by_seed[key.seed]()
        if place.step not in checkpoint.saved_steps(place.directory):
            raise UserError(f"{what}: its training is not finished ({place.directory}); finish it first")
        return place

    return theirs


def _sound_place(workdir: Path, run: RecordedRun, what: str) -> Place:
    if run.diverged_at is not None:
        raise UserError(
            f"{what}: its network of seed {run.seed} diverged at step {run.diverged_at}, and is no start; set seed_ids "
            f"(or base_seed, with pretrain.share = 'one') to others"
        )
    return recorded_runs.place_of(workdir, run)


def _check_one_source(found: StudyRecord, what: str) -> None:
    """Refuses to choose among the sources of a study.

    Raises:
        UserError: It trained several, with the arms that each is for.
    """
    users: dict[str, dict[str, None]] = {run.arm: {} for run in found.runs if run.kind == "pretrain"}
    for run in found.runs:
        if run.source is not None and run.source.arm in users:
            users[run.source.arm][run.arm] = None
    if len(users) > 1:
        named = "; ".join(f"{name} (of {', '.join(arms)})" for name, arms in users.items())
        raise UserError(f"{what}: it has networks of several sources: {named}; set pretrain.from_arm to one of these")


def _locate_import(folder: Path, settings: PretrainSettings, what: str) -> Locate:
    """Locates the network of an import, which is the same whatever the seed.

    Raises:
        UserError: The settings ask for a network a seed, or for one of several arms.
    """
    if settings.share != "one":
        raise UserError(
            f"{what} is an import, and so one network, from which all seeds start: set pretrain.share = 'one' too"
        )
    if settings.from_arm not in ("", SOURCE):
        raise UserError(
            f"{what} is an import, which has no arms; leave pretrain.from_arm = {settings.from_arm!r} empty"
        )
    source_folder.read(folder)  # refuses what is damaged
    directory, step = source_folder.place(folder)
    return lambda key: Place(directory, step, 0)


def given_task(arm: ArmSettings) -> RecordedTask | None:
    """Returns the record of the task that an arm's networks of `pretrain.from_workdir` learned; None if unknown.

    It is read from the study.json in the folder or one above it.
    """
    found, wanted = _given_record(arm), arm.pretrain.from_arm or SOURCE
    if found is None:
        return None
    if not is_source(wanted):
        return found.target
    # Of several sources the record holds one.
    return found.source if found.source is not None and found.source.name == given_source(arm) else None


def given_source(arm: ArmSettings) -> str:
    """Returns the data set that an arm's networks of `pretrain.from_workdir` were trained on; empty if unknown."""
    found, wanted = _given_record(arm), arm.pretrain.from_arm or SOURCE
    if found is None:
        return ""
    if not is_source(wanted):
        return found.target.name
    # A study with several sources: the networks of this name are those that some of its arms started from.
    users = {run.arm for run in found.runs if run.source is not None and run.source.arm == wanted}
    named = [found.arms[name].source for name in found.arms if name in users and found.arms[name].source]
    return named[0] if named else "" if found.source is None else found.source.name


def _given_record(arm: ArmSettings) -> StudyRecord | None:
    if not arm.pretrain.from_workdir or arm.init == "random":
        return None
    path = paths.expand(arm.pretrain.from_workdir)
    if source_folder.is_import(path):  # of which a study in a folder above it knows nothing
        return None
    return record.read(path) or _record_above(path)


def pretraining_of(arm: ArmSettings) -> Pretraining | None:
    """Returns what study.json says about an arm's source networks; None if it starts from none.

    The steps are those of this study's own source networks; None if they were trained elsewhere.
    """
    if arm.kind == "prior" or arm.init == "random":
        return None
    settings = arm.pretrain
    if not settings.from_workdir:
        return Pretraining(settings.steps, settings.share, "", objective=settings.objective)
    past = past_of(settings.from_workdir, settings.from_arm)
    return Pretraining(None, settings.share, settings.from_workdir, past.checkpoint)


def _record_above(path: Path) -> StudyRecord | None:
    """The record of the study in whose workdir a folder lies; None where there is none."""
    for folder in path.parents:
        with contextlib.suppress(UserError):  # any project may have a file of that name
            if found := record.read(folder):
                return found
    return None


def _checkpoint_runs(path: Path, what: str) -> Entries:
    """Runs of a folder of checkpoints (its last step), or of one checkpoint in it."""
    directory, steps = (path.parent, (int(path.name),)) if path.name.isdigit() else (path, checkpoint.saved_steps(path))
    if not steps or steps[-1] not in checkpoint.saved_steps(directory):
        raise UserError(
            f"{what}: neither a study (no study.json there) nor checkpoints; name the workdir of a study, a job's "
            f"folder 'checkpoints', or one step in it"
        )
    return [
        (key, functools.partial(Place, directory, steps[-1], index))
        for index, key in enumerate(recorded_runs.held_runs(directory, steps[-1]))
    ]


def locate(workdir: Path, plan: Plan, arm: ArmSettings) -> Locate:
    """Locates an arm's source networks."""
    return locate_given(arm) if arm.pretrain.from_workdir else locate_own(workdir, plan)


def read_source(where: Locate, run: Run) -> Params:
    """Reads the parameters of a run's source network."""
    if run.source is None:
        raise ValueError(f"run {run.key} has no source network")
    return checkpoint.read_seed(*where(run.source))


def has_diverged(workdir: Path, plan: Plan, arm: ArmSettings, run: Run) -> bool:
    """Returns whether a run starts from a network of this study that diverged: its last sound weights are no start."""
    if run.source is None or arm.pretrain.from_workdir:
        return False
    job, index = find(plan, run.source)
    return logs.read_log(workdir / job.directory, len(job.runs)).diverged_at[index] is not None


def read_start(workdir: Path, plan: Plan, arm: ArmSettings, run: Run, *, overlaps: bool) -> Params:
    """Reads the parameters of a run's source network, without a head of another kind; see `transfer.for_head_of`.

    Args:
        workdir: Folder of the study.
        plan: Its plan.
        arm: The run's arm.
        run: The run.
        overlaps: Whether the outputs of the run's network are regions that overlap.
    """
    params = read_source(locate(workdir, plan, arm), run)
    if arm.pretrain.from_workdir or run.source is None:
        theirs = given_overlaps(arm)
    else:
        theirs = find(plan, run.source)[0].program.regions is not None
    return for_head_of(params, theirs, overlaps)


def given_overlaps(arm: ArmSettings) -> bool:
    """Returns whether the outputs of the networks that an arm is given are regions; False if nothing says so."""
    imported = source_folder.read(paths.expand(arm.pretrain.from_workdir))
    if imported is not None:
        return imported[0].outputs == "regions"
    task = given_task(arm)
    return task is not None and task.regions is not None


class Given(NamedTuple):
    """What is known, before anything trains, of the network that an arm is given."""

    shapes: Params
    """The shapes of its parameters."""
    differs: tuple[str, ...] = ()
    """The fields in which the arm's network differs from the one that was imported, a phrase each."""


def given_shapes(study: StudySettings, *, overlaps: bool = False) -> dict[str, Given]:
    """Returns the shapes of the source network of each arm that is given one, without a head of another kind.

    Args:
        study: Settings of the study.
        overlaps: Whether the outputs of the arms' networks are regions that overlap.

    Raises:
        UserError: If a network that some run would start from is missing.
    """
    given = {}
    arms = {arm.name: arm for arm in study.arms}
    for name, places in _given_places(study).items():
        place = next(iter(places.values()))
        imported = source_folder.read(paths.expand(arms[name].pretrain.from_workdir))
        differs = source_folder.differences(arms[name].model, imported[1]) if imported else ()
        shapes = checkpoint.param_shapes(place.directory, place.step)
        given[name] = Given(for_head_of(shapes, given_overlaps(arms[name]), overlaps), differs)
    return given


def warn_of_differences(study: StudySettings) -> None:
    """Warns of arms whose networks compute, or see images, otherwise than those whose weights they start from."""
    arms = {arm.name: arm for arm in study.arms}
    for name, given in given_shapes(study).items():
        if given.differs:
            warnings.warn(
                f"arm {name!r} has another network than the import that it starts from, which may make less of the "
                f"weights: {'; '.join(given.differs)}",
                stacklevel=3,
            )
        imported = source_folder.read(paths.expand(arms[name].pretrain.from_workdir))
        own, theirs = study.target.normalization, imported[0].normalization if imported else None
        if theirs is not None and own not in (theirs, "auto"):
            warnings.warn(
                f"arm {name!r}: target.normalization = {own!r}, and the import that it starts from was trained on "
                f"images normalised by {theirs!r}",
                stacklevel=3,
            )


def warn_of_orders(study: StudySettings, prepared: Mapping[TaskSettings, PreparedTask]) -> None:
    """Warns of arms whose source has the target's labels or channels in another order: weights are loaded by position.

    Sources with other names are no doubt: that a tumour starts as a nucleus is what is asked for.
    """
    target, found = prepared[study.target], dict[str, list[str]]()
    for arm in study.arms:
        if arm.kind != "network" or not arm.init.startswith("pretrained"):
            continue
        own = None if arm.pretrain.from_workdir else prepared.get(arm.source)
        theirs = given_task(arm) if own is None else own
        if own is not None and len(own.modality) == target.channels > 1 and own.modality != target.modality:
            channels = f"the channels of its source are {', '.join(own.modality)}, the target's"
            found.setdefault(f"{channels} {', '.join(target.modality)}: they are taken in their order", []).append(
                arm.name
            )
        asked = arm.pretrain.objective == "labels" and re.search(arm.init.partition(":")[2], "head/kernel")
        if theirs is not None and asked and _reordered(theirs, target):
            labels = (
                f"the outputs of its source are {', '.join(theirs.labels)}, the target's {', '.join(target.labels)}"
            )
            mend = "give both the same order, or leave the head out (init = 'pretrained:^(encoder|decoder)/')"
            found.setdefault(f"{labels}: the head is loaded in their order; {mend}", []).append(arm.name)
    for text, arms in found.items():
        warnings.warn(f"{'arm' if len(arms) == 1 else 'arms'} {', '.join(arms)}: {text}", stacklevel=3)


def _reordered(source: PreparedTask | RecordedTask, target: PreparedTask) -> bool:
    """Whether two heads of the same kind and size have a name in common at different places."""
    alike = len(source.labels) == len(target.labels) and (source.regions is None) == (target.regions is None)
    places = {name: place for place, name in enumerate(target.labels)}
    return alike and any(places.get(name, place) != place for place, name in enumerate(source.labels))


def given_digests(study: StudySettings) -> dict[str, dict[str, str]]:
    """Returns a checksum that identifies each given source network, by arm and seed.

    Raises:
        UserError: If a network that some run would start from is missing or damaged.
    """
    return {
        arm: {str(key.seed): checkpoint.params_digest(*place) for key, place in places.items()}
        for arm, places in _given_places(study).items()
    }


def _given_places(study: StudySettings) -> dict[str, dict[RunKey, Place]]:
    """Where the source networks lie of each arm that is given some."""
    found: dict[str, dict[RunKey, Place]] = {}
    for arm in study.arms:
        if arm.pretrain.from_workdir and arm.init != "random" and arm.kind == "network":
            where = locate_given(arm)
            runs = [*target_runs(study, arm, SOURCE), *trial_runs(study, arm, SOURCE)]
            found[arm.name] = {run.source: where(run.source) for run in runs if run.source is not None}
    return found
