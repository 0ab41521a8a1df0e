"""From settings to jobs: arms become runs, runs that one compiled program can train become jobs.

A job is a directory, a program and a slice of the run axis. Runs share a program if they differ in arrays only: start,
training cases, fold, seed, learning rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import optim, trees
from jaxseg.models import check_model, check_patch, make_model
from jaxseg.streams import stream_id
from jaxseg.transfer import transfer_rules
from jaxseg.types import (
    ArmSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    RunKey,
    StudySettings,
    TaskSettings,
    TrainSettings,
    UserError,
)

SOURCE = "source"
"""The arm name of source networks in run keys and tables."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its key, the ids that feed its random streams, and where its weights come from."""

    key: RunKey
    init_id: int
    order_id: int
    subset_id: int
    init: str
    rate: float
    source: RunKey | None
    """The source network it starts from."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: everything that runs of one job have in common."""

    task: TaskSettings
    model: ModelSettings
    optim: OptimSettings
    """With the rate left out (0): rates are arrays over runs."""
    loss: LossSettings
    train: TrainSettings
    freeze: str
    channels: int
    classes: int
    fold: int | None = None
    """Whose training cases gave the intensity statistics; None where a case looks the same in every fold."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A slice of the run axis of one program, in a directory of its own."""

    kind: str
    """`pretrain` or `train`."""
    group: str
    chunk: int
    program: Program
    runs: tuple[Run, ...]

    @property
    def directory(self) -> str:
        """Relative to the workdir."""
        return f"train/{self.group}/chunk_{self.chunk}"


@dataclasses.dataclass(frozen=True)
class Network:
    """Sizes of an arm's network."""

    parameters: int
    """Without running statistics of batch norms."""
    trainable: int
    state_bytes: int
    """Parameters and optimizer state of one run."""
    activation_bytes: int
    """Estimate of what one training step of one run holds for its backward pass."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All jobs in the order they are done, and the size of each arm's network."""

    jobs: tuple[Job, ...]
    networks: dict[str, Network]

    def of_kind(self, kind: str) -> tuple[Job, ...]:
        """Jobs of one kind."""
        return tuple(job for job in self.jobs if job.kind == kind)


def image_shape(program: Program) -> tuple[int, ...]:
    """Shape of one training batch of images."""
    return (program.train.batch, *program.task.patch, program.channels)


def abstract_params(program: Program) -> Any:
    """Shapes of the program's network, without computing anything."""
    model = make_model(program.model, classes=program.classes)
    image = jax.ShapeDtypeStruct(image_shape(program), jnp.float32)
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), image)["params"]


def param_labels(program: Program) -> Any:
    """The tree of `train` / `statistics` / `frozen` labels."""
    return optim.freeze_labels(abstract_params(program), program.freeze)


def measure(program: Program) -> Network:
    """Counts parameters and estimates memory of one run."""
    params = abstract_params(program)
    labels = param_labels(program)
    trained, _ = trees.partition(params, labels, "train")
    tx = optim.make_optimizer(program.optim, labels, program.train.steps)
    state = jax.tree.leaves((params, jax.eval_shape(tx.init, params)))
    model = make_model(program.model, classes=program.classes)
    image = jax.ShapeDtypeStruct(image_shape(program), jnp.float32)

    def outputs(params: Any, image: Any) -> Any:
        return model.apply({"params": params}, image, capture_intermediates=True, mutable=["intermediates"])[1]

    values = jax.tree.leaves(jax.eval_shape(outputs, params, image))
    return Network(
        parameters=trees.count(params) - trees.count(trees.partition(params, labels, "statistics")[0]),
        trainable=trees.count(trained),
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in state),
        activation_bytes=2 * sum(leaf.size * leaf.dtype.itemsize for leaf in values),
    )


def check_networks(study: StudySettings) -> None:
    """Checks that there are such networks and that they divide the patches: what is known before data is read.

    Raises:
        UserError: The arm, and what is wrong.
    """
    for arm in study.arms:
        for role, task in (("target", study.target), ("source", arm.source)):
            if role == "source" and arm.init == "random":
                continue
            try:
                check_model(arm.model)
                check_patch(arm.model, task.patch)
            except UserError as error:
                raise UserError(f"arm {arm.name!r}, {role}: {error}") from error


def _program(study: StudySettings, arm: ArmSettings, kind: str, channels: int, classes: int) -> Program:
    if kind == "pretrain":
        steps = dataclasses.replace(study.train, steps=arm.pretrain.steps)
        settings = (arm.source, arm.model, study.optim, study.loss, steps, "none")
    else:
        settings = (study.target, arm.model, arm.optim, arm.loss, arm.train, arm.freeze)
    task, model, optimizer, loss, train, freeze = settings
    return Program(task, model, dataclasses.replace(optimizer, lr=0.0), loss, train, freeze, channels, classes)


def _target_runs(study: StudySettings, arm: ArmSettings, source_name: str | None) -> list[Run]:
    runs = []
    for size in study.target.train_cases:
        for fold in range(study.target.folds):
            for base in study.seeds:
                seed = base + arm.seed_offset
                ids = {
                    stream: stream_id(seed, stream, vary=study.vary, base_seed=study.base_seed)
                    for stream in ("init", "order", "subset")
                }
                source = None
                if source_name is not None:
                    source_seed = seed if arm.pretrain.share == "per_seed" else study.base_seed
                    source = RunKey(source_name, 0, 0, source_seed)
                key = RunKey(arm.name, size, fold, seed)
                runs.append(Run(key, ids["init"], ids["order"], ids["subset"], arm.init, arm.optim.lr, source))
    return runs


def _source_run(key: RunKey, rate: float) -> Run:
    # Source networks always vary in everything: `vary` is about the target's runs.
    return Run(key, key.seed, key.seed, key.seed, "random", rate, None)


def make_plan(
    study: StudySettings,
    *,
    target_size: tuple[int, int],
    source_sizes: dict[TaskSettings, tuple[int, int]],
    fold_statistics: bool = False,
    memory_bytes: int,
    devices: int,
    strategy: str,
) -> Plan:
    """Jobs of a study.

    Args:
        study: Settings.
        target_size: Channels and classes (background included) of the target task.
        source_sizes: The same for each source task that is pretrained on.
        fold_statistics: Whether the target's images depend on the fold; then each fold has jobs of its own.
        memory_bytes: What the devices together can hold; bounds the runs of a job when `runtime.seeds_per_chunk` is
            automatic.
        devices: Devices that runs are spread over.
        strategy: `loop` or `vmap`: under `loop` one run a device computes at a time.

    Raises:
        UserError: A network that makes nothing of the patch, an `init` or `freeze` that matches nothing.
    """
    groups: dict[tuple[str, Program], list[Run]] = {}
    networks: dict[str, Network] = {}
    sources: dict[Program, str] = {}
    for arm in study.arms:
        transfer_rules(arm.init)
        program = _program(study, arm, "train", *target_size)
        networks[arm.name] = measure(program)
        name = None
        if arm.init != "random":
            source = _program(study, arm, "pretrain", *source_sizes[arm.source])
            name = sources.setdefault(source, SOURCE if not sources else f"{SOURCE}_{len(sources) + 1}")
            networks.setdefault(name, measure(source))
        runs = _target_runs(study, arm, name)
        if name is not None and not arm.pretrain.from_workdir:
            wanted = groups.setdefault(("pretrain", source), [])
            known = {run.key for run in wanted}
            for key in dict.fromkeys(run.source for run in runs if run.source is not None):
                if key not in known:
                    wanted.append(_source_run(key, study.optim.lr))
        for run in runs:
            own = dataclasses.replace(program, fold=run.key.fold) if fold_statistics else program
            groups.setdefault(("train", own), []).append(run)

    jobs: list[Job] = []
    for kind in ("pretrain", "train"):
        chosen = [(program, runs) for (group_kind, program), runs in groups.items() if group_kind == kind]
        for index, (program, runs) in enumerate(chosen):
            group = kind if len(chosen) == 1 else f"{kind}_{index}"
            size = study.runtime.seeds_per_chunk or runs_that_fit(
                measure(program), memory_bytes=memory_bytes, devices=devices, strategy=strategy
            )
            for chunk, part in enumerate(split_evenly(runs, size)):
                jobs.append(Job(kind, group, chunk, program, tuple(part)))
    return Plan(tuple(jobs), networks)


def runs_that_fit(network: Network, *, memory_bytes: int, devices: int, strategy: str) -> int:
    """How many runs of a network train together within the memory, at least one a device.

    Under `vmap` every run's activations are alive at once, under `loop` those of one run a device.
    """
    budget = int(0.8 * memory_bytes)
    if strategy == "vmap":
        fit = budget // (network.state_bytes + network.activation_bytes)
    else:
        fit = (budget - devices * network.activation_bytes) // (2 * network.state_bytes)
    return max(int(fit), devices)


def split_evenly(runs: Sequence[Run], size: int) -> list[Sequence[Run]]:
    """Consecutive parts of at most `size` runs, as equal as possible, so that parts share a compiled shape."""
    count = -(-len(runs) // size)
    step = -(-len(runs) // count)
    return [runs[start : start + step] for start in range(0, len(runs), step)]


def find(plan: Plan, key: RunKey) -> tuple[Job, int]:
    """The job and position of a run.

    Raises:
        UserError: No such run.
    """
    for job in plan.jobs:
        for index, run in enumerate(job.runs):
            if run.key == key:
                return job, index
    known = ", ".join(sorted({f"{run.key.arm}/{run.key.variant()}" for job in plan.jobs for run in job.runs}))
    raise UserError(f"no run {key} in this study; it has {known}")
