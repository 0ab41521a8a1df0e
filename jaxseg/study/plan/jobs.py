"""Turns settings into jobs: arms become runs, and runs that one compiled program can train become jobs.

A job is a directory, a program and a slice of the run axis. Runs share a program if they differ in arrays only: start,
training cases, fold, seed, learning rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxseg import hosts, seeds, trees
from jaxseg.models import check_batch, check_model, check_patch
from jaxseg.reserved import SOURCE
from jaxseg.settings import ArmSettings, OptimSettings, StudySettings, TaskSettings
from jaxseg.study.plan import cutting
from jaxseg.study.plan.program import (
    NO_NETWORK,
    NetworkSize,
    Program,
    TaskSize,
    abstract_params,
    kernels_of_images,
    measure,
    param_labels,
    runs_that_fit,
    training_part,
)
from jaxseg.study.plan.runs import Run, check_runs_differ, drawn_cases, source_run, target_runs, trial_runs
from jaxseg.transfer import LoadTable, check_load, for_head_of, make_load_table, transfer_rules, warn_of_frozen
from jaxseg.types import RunKey, UserError

KINDS = ("pretrain", "select", "train")
"""The kinds of jobs, in the order in which they run."""

_MORE_RUNS_THAN_DEVICES = 10**9


@dataclasses.dataclass(frozen=True)
class Job:
    """A slice of the run axis of one program, in a directory of its own."""

    kind: str
    """One of `pretrain` (source networks), `select` (trials of learning rates) or `train`."""
    group: str
    chunk: int
    program: Program
    runs: tuple[Run, ...]

    @property
    def directory(self) -> str:
        """The directory of the job, relative to the workdir."""
        return f"train/{self.group}/chunk_{self.chunk}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All jobs in the order in which they run, and the size of each arm's network."""

    jobs: tuple[Job, ...]
    networks: dict[str, NetworkSize]
    priors: tuple[Run, ...] = ()
    """The runs of arms that have no network."""

    def of_kind(self, kind: str) -> tuple[Job, ...]:
        """Returns the jobs of one kind."""
        return tuple(job for job in self.jobs if job.kind == kind)


_Groups = dict[tuple[str, Program], dict[int, dict[Run, None]]]
"""Runs of each kind and program in their order, by the wave in which they joined the study."""


class _PlannedArm(NamedTuple):
    arm: ArmSettings
    program: Program
    source: Program | None
    """Program of the source network, if the study trains it."""
    runs: Sequence[Run]
    trials: Sequence[Run]
    drawn: bool
    """Whether some of the weights that its runs start with are drawn."""


def check_networks(study: StudySettings) -> None:
    """Checks that the networks exist and divide the patches, which is known before data is read.

    Raises:
        UserError: If an arm's network is wrong; the message names the arm.
    """
    for arm in study.arms:
        for role, task in (("target", study.target), ("source", arm.source)):
            if role == "source" and arm.init == "random":
                continue
            try:
                check_model(arm.model)
                check_patch(arm.model, task.patch)
                if role == "source" or arm.freeze == "none":  # frozen norms keep the statistics that they have
                    check_batch(arm.model, task.patch, (study if role == "source" else arm).train.batch)
            except UserError as error:
                raise UserError(f"arm {arm.name!r}, {role}: {error}") from error


def _program(study: StudySettings, arm: ArmSettings, kind: str, size: tuple[int, int] | TaskSize) -> Program:
    channels, classes, regions = TaskSize(*size)
    objective = arm.pretrain.objective if kind == "pretrain" else "labels"
    if kind == "pretrain":
        eval_every = arm.pretrain.eval_every or study.train.eval_every
        train = dataclasses.replace(study.train, steps=arm.pretrain.steps, eval_every=eval_every)
        settings = (arm.source, arm.model, study.optim, study.loss, train, "none")
    else:
        settings = (study.target, arm.model, arm.optim, arm.loss, arm.train, arm.freeze)
    task, model, optimizer, loss, train, freeze = settings
    # Rates are arrays over runs: arms that differ in them share a program.
    optimizer = dataclasses.replace(
        optimizer, lr=OptimSettings.lr, lr_factor=1.0, lr_grid=(), lr_seeds=(), lr_sizes="every"
    )
    if objective != "labels":
        classes, regions = channels, None
    compute = arm.train.compute
    return Program(task, model, compute, optimizer, loss, train, freeze, channels, classes, objective, regions=regions)


def _shared_source(arm: ArmSettings, program: Program, source: Any, runs: Sequence[Run]) -> RunKey | None:
    """The one source network that all frozen leaves of all runs are loaded from; None where they may differ."""
    keys = {run.source for run in runs}
    if arm.pretrain.share != "one" or arm.freeze == "none" or len(keys) != 1:
        return None
    table = load_table(arm, program, source)
    status = {row.path: row.status for row in table if row.shape is not None}
    frozen = [path for path, label in trees.flatten(param_labels(program)).items() if label == "frozen"]
    loaded = all(status[path] in ("loaded", "adapted") for path in frozen)
    return keys.pop() if loaded else None


def _start_is_drawn(table: LoadTable | None) -> bool:
    """Whether a start draws weights: kernels that are not loaded, or any tensor of `mean_var`.

    Biases and norms that start anew are constants.
    """
    rows = [row for row in table or () if row.shape is not None and row.status not in ("loaded", "adapted")]
    return table is None or any(row.status == "mean_var" or row.path.endswith("kernel") for row in rows)


def load_table(arm: ArmSettings, program: Program, source: Any) -> Any:
    """Makes the table of what an arm's transfer does with each parameter, from the shapes of its source network."""
    adapt = kernels_of_images(program) if arm.pretrain.adapt_channels else ()
    return make_load_table(abstract_params(program), source, transfer_rules(arm.init), adapt=adapt)


def make_plan(
    study: StudySettings,
    *,
    target_size: tuple[int, int] | TaskSize,
    source_sizes: Mapping[TaskSettings, tuple[int, int] | TaskSize],
    fold_statistics: Collection[TaskSettings] = (),
    memory_bytes: int,
    devices: int,
    strategy: str,
    platform: str = "cpu",
    data_bytes: Mapping[TaskSettings, int] | None = None,
    given: Mapping[str, tuple[Any, Sequence[str]]] | None = None,
    chunk_sizes: Mapping[str, Sequence[int]] | None = None,
    waves: Sequence[int] = (),
    training_cases: Callable[[Run], Hashable] = drawn_cases,
    of_one_size: Callable[[TaskSettings], bool] = lambda task: True,
) -> Plan:
    """Plans the jobs of a study.

    Args:
        study: Settings of the study.
        target_size: Channels and classes (background included) of the target task; see `TaskSize`.
        source_sizes: The same of each source task that is pretrained on.
        fold_statistics: Tasks whose images depend on the fold; each fold of these has jobs of its own.
        memory_bytes: What the devices together can hold; bounds the runs of a job where their number is automatic.
        devices: Number of devices that runs are spread over.
        strategy: `loop` or `vmap`; under `loop` each device computes one run at a time.
        platform: Platform of the devices; TPUs pad small axes of arrays (see `layout`).
        data_bytes: Memory that the images of each task occupy while networks train on it.
        given: Of each arm with `pretrain.from_workdir`, the shapes of its source network, and what differs in it.
        chunk_sizes: Runs of each job of a group, as an earlier process, perhaps on another machine, has begun them.
        waves: The number of seeds when the study began and after each extension, whose runs have jobs of their own.
        training_cases: What two runs share exactly if they train on the same cases.
        of_one_size: Whether the images of a task are laid out as those of other tasks, which a common program needs.

    Raises:
        UserError: A network cannot take the patch, `init` or `freeze` match nothing, a transfer finds less than
            `pretrain.min_loaded`, or two runs that count as two are one.
    """
    groups: _Groups = {}
    networks, sources = dict[str, NetworkSize](), dict[Any, str]()
    priors = [run for arm in study.arms if arm.kind == "prior" for run in target_runs(study, arm, None)]
    made: list[_PlannedArm] = []
    for arm in study.arms:
        if arm.kind == "prior":
            networks[arm.name] = NO_NETWORK
        else:
            made.append(_plan_arm(study, arm, target_size, source_sizes, sources, networks, given or {}, platform))
            _group_runs(groups, study, made[-1], waves, fold_statistics)
    check_runs_differ([(one.arm, one.program, one.drawn, one.runs) for one in made], training_cases)

    def most_runs(program: Program) -> int:
        free, size = memory_bytes - (data_bytes or {}).get(program.task, 0), measure(program, platform)
        fit = runs_that_fit(size, memory_bytes=free, devices=devices, strategy=strategy)
        return study.runtime.seeds_per_chunk or fit

    # Side by side, runs are the faster the more of them there are; one after another, their number changes nothing.
    shares = of_one_size if strategy == "loop" and study.runtime.seeds_per_chunk is None else None
    jobs = _cut_jobs(groups, most_runs, chunk_sizes or {}, shares, devices)
    return Plan(tuple(jobs), networks, tuple(priors))


def _source_name(sources: dict[Any, str], key: Any) -> str:
    """The name of source networks: one for each program that trains them, and for each place they are taken from."""
    return sources.setdefault(key, SOURCE if not sources else f"{SOURCE}_{len(sources) + 1}")


def _plan_arm(
    study: StudySettings,
    arm: ArmSettings,
    target_size: tuple[int, int] | TaskSize,
    source_sizes: Mapping[TaskSettings, tuple[int, int] | TaskSize],
    sources: dict[Any, str],
    networks: dict[str, NetworkSize],
    given: Mapping[str, tuple[Any, Sequence[str]]],
    platform: str,
) -> _PlannedArm:
    """Plans one arm, checks its transfer, and adds its networks to `networks` and a new source to `sources`."""
    transfer_rules(arm.init)
    program = _program(study, arm, "train", target_size)
    name, shapes, source, table = None, None, None, None
    differs: Sequence[str] = ()
    if arm.init != "random":
        if arm.pretrain.from_workdir:
            shapes, differs = given[arm.name]
            name = _source_name(sources, (arm.pretrain.from_workdir, arm.pretrain.from_arm))
        else:
            source = _program(study, arm, "pretrain", source_sizes[arm.source])
            name = _source_name(sources, source)
            networks.setdefault(name, measure(source, platform))
            shapes = for_head_of(abstract_params(source), source.regions is not None, program.regions is not None)
        least, table = arm.pretrain.min_loaded, load_table(arm, program, shapes)
        check_load(table, min_loaded=least, arm=arm.name, differs=differs)
        warn_of_frozen(table, param_labels(program), arm=arm.name)
    runs, trials = target_runs(study, arm, name), trial_runs(study, arm, name)
    program = dataclasses.replace(program, shared=_shared_source(arm, program, shapes, [*runs, *trials]))
    networks[arm.name] = measure(program, platform)
    return _PlannedArm(arm, program, source, runs, trials, _start_is_drawn(table))


def _group_runs(
    groups: _Groups,
    study: StudySettings,
    planned: _PlannedArm,
    waves: Sequence[int],
    fold_statistics: Collection[TaskSettings],
) -> None:
    """Adds the runs of an arm, and those of the source networks that it needs, to the groups they are trained in."""
    arm, program, source, runs, trials, _ = planned
    rate = study.optim.lr * study.optim.lr_factor
    # Trials of rates are made once, before anything else trains.
    joining = {
        "train": [(run, wave_of(study, arm, run, waves)) for run in runs],
        "select": [(run, 0) for run in trials],
    }
    for kind, of_kind in joining.items():
        for run, wave in of_kind:
            own = dataclasses.replace(program, fold=run.key.fold) if study.target in fold_statistics else program
            groups.setdefault((kind, own), {}).setdefault(wave, {})[run] = None
            if source is not None and run.source is not None:
                own = dataclasses.replace(source, fold=run.source.fold) if arm.source in fold_statistics else source
                _need_source(groups.setdefault(("pretrain", own), {}), source_run(run.source, rate), wave)


def _need_source(by_wave: dict[int, dict[Run, None]], source: Run, wave: int) -> None:
    """Adds a source network to its group, unless it is there already, in the first wave that needs it.

    A later arm may need it earlier: crossed ids do not grow with the seeds, and may name one that came later.
    """
    known = next((other for other, runs in by_wave.items() if source in runs), None)
    if known is not None and known <= wave:
        return
    if known is not None:
        del by_wave[known][source]
    by_wave.setdefault(wave, {})[source] = None


def _cut_jobs(
    groups: _Groups,
    most_runs: Callable[[Program], int],
    chunk_sizes: Mapping[str, Sequence[int]],
    shares: Callable[[TaskSettings], bool] | None,
    devices: int,
) -> list[Job]:
    """Cuts each group into jobs of the sizes that are known for it, or else of at most `most_runs` runs.

    Where `shares` says so of a task, arms are cut to the jobs of source networks that train alike: one program then
    serves both.
    """
    jobs: list[Job] = []
    of_sources: dict[Program, set[int]] = {}
    for kind in KINDS:
        chosen = [(program, by_wave) for (group_kind, program), by_wave in groups.items() if group_kind == kind]
        for index, (program, by_wave) in enumerate(chosen):
            group = kind if len(chosen) == 1 else f"{kind}_{index}"
            most = most_runs(program)
            alike: set[int] = set()
            if shares is not None and shares(program.task):
                alike = of_sources.setdefault(training_part(program), alike)
            known = list(chunk_sizes.get(group, ()))
            parts: list[Sequence[Run]] = []
            for wave in sorted(wave for wave, runs in by_wave.items() if runs):
                runs, size = tuple(by_wave[wave]), most
                if kind == "train":
                    arms = [(run.key.arm, run.key.train_cases) for run in runs]
                    fitting = {size for size in alike if size <= most}
                    size = cutting.shared_size(arms, fitting, devices=devices) or most
                parts += cutting.split(runs, cutting.taken(known, len(runs)) or cutting.even_sizes(len(runs), size))
            if kind == "pretrain":
                alike.update(map(len, parts))
            jobs += [Job(kind, group, chunk, program, tuple(part)) for chunk, part in enumerate(parts)]
    return jobs


def wave_of(study: StudySettings, arm: ArmSettings, run: Run, waves: Sequence[int]) -> int:
    """Returns the extension that added a run; 0 for the beginning. Crossed runs do not grow with the seeds."""
    if arm.cross or len(waves) < 2:
        return 0
    place = study.seeds.index(run.key.seed - arm.seed_offset)
    return sum(place >= count for count in waves[:-1])


def seed_plan(study: StudySettings, runs: int = _MORE_RUNS_THAN_DEVICES) -> seeds.SeedPlan:
    """Plans how `runs` runs are mapped over devices; by default over all devices that the study trains on."""
    return seeds.make_plan(runs, strategy=study.runtime.seed_map, devices=study.runtime.devices)


def host_share(study: StudySettings, job: Job, index: int) -> hosts.Share:
    """Returns a host's share of a job's runs."""
    local = seed_plan(study, len(job.runs))
    return hosts.share(len(job.runs), devices=len(local.devices), index=index, count=hosts.count())


def own_rows(study: StudySettings, job: Job, index: int) -> tuple[int, ...]:
    """Returns the positions of a host's runs in a job, without padding; empty for hosts beyond the number of runs."""
    share = host_share(study, job, index)
    return share.rows[: share.own]


def of_host(job: Job, rows: Sequence[int]) -> Job:
    """Returns a job reduced to some of its runs."""
    return dataclasses.replace(job, runs=tuple(job.runs[row] for row in rows))


def chunk_sizes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Returns the number of runs in each job of a group, with which another process or machine must continue."""
    sizes: dict[str, tuple[int, ...]] = {}
    for job in plan.jobs:
        sizes[job.group] = (*sizes.get(job.group, ()), len(job.runs))
    return sizes


def find(plan: Plan, key: RunKey) -> tuple[Job, int]:
    """Finds the job and position of a run.

    Raises:
        UserError: If there is no such run.
    """
    for job in (*plan.of_kind("pretrain"), *plan.of_kind("train")):
        for index, run in enumerate(job.runs):
            if run.key == key:
                return job, index
    known = ", ".join(sorted({f"{run.key.arm}/{run.key.variant()}" for job in plan.jobs for run in job.runs}))
    raise UserError(f"no run {key} in this study; it has {known}")
