"""Reads the trained networks of one arm in one variant from its jobs: parameters at the start and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Float

from jaxseg import averaging, checkpoint, logs, optim, trees
from jaxseg.settings import StudySettings, TrainSettings
from jaxseg.study.plan.jobs import Job, wave_of
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.program import Program, param_labels
from jaxseg.study.train.learning_rates import chosen_rates, with_rates
from jaxseg.types import Params, RunKey


@dataclasses.dataclass(frozen=True)
class Networks:
    """All runs of an arm, train size and fold that did not diverge, in ascending order of seeds."""

    arm: str
    program: Program
    seeds: tuple[int, ...]
    start: Params
    """The initial parameters, with runs on the first axis, on the host."""
    end: Params
    pretrained: bool
    """Whether each run starts from a whole source network, including its encoder and decoder."""
    sources: tuple[RunKey | None, ...]
    """The source network of each run; None if it has none."""
    init_ids: tuple[int, ...]
    """The id that each run's random weights are drawn from; a source network draws them from its seed."""
    order_ids: tuple[int, ...]
    """The id that each run's batches are drawn from."""
    rates: Float[np.ndarray, "runs steps"]
    """The learning rate of every step up to the end."""
    earlier: Mapping[int, Params] = dataclasses.field(default_factory=dict)
    """Parameters by step, at steps between start and end that are analysed as well."""
    waves: tuple[int, ...] = ()
    """The look or extension with which each run came to the study; empty if all came together."""

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def step(self) -> int:
        """The number of steps between start and end."""
        return self.rates.shape[1]

    @property
    def source_seeds(self) -> tuple[int | None, ...]:
        """The seed of each run's source network; None if it has none."""
        return tuple(None if source is None else source.seed for source in self.sources)

    def seen_earlier(self) -> list[Networks]:
        """Returns the same runs with each earlier step in the place of the end."""
        return [
            dataclasses.replace(self, end=params, rates=self.rates[:, :step], earlier={})
            for step, params in sorted(self.earlier.items())
        ]

    def layers(self) -> dict[str, tuple[np.ndarray, np.ndarray, bool]]:
        """Returns by layer, in forward order, the kernels at the start and at the end, and whether they are trained."""
        end, labels = trees.flatten(self.end), trees.flatten(param_labels(self.program))
        start = trees.flatten(self.start)
        paths = {layer: f"{layer}/kernel" for layer in kernel_layers(start)}
        return {layer: (start[path], end[path], labels[path] == "train") for layer, path in paths.items()}

    def relative_rates(self, layer: str) -> Float[np.ndarray, " steps"]:
        """Returns the rate of a layer's kernel at every step up to the end, as a share of the run's.

        Where the end is a mean of late weights, a late step moved only some of them.
        """
        program, train = self.program, self.program.train
        shares = optim.relative_rates(program.optim, param_labels(program), f"{layer}/kernel", train.steps)
        windows = averaging.make_windows(train.scored_at, train.average) if train.average else ()
        return shares[: self.step] * averaging.shares_after(self.step, windows)


def forward_order(layer: str) -> tuple[object, ...]:
    """Sorts layers in forward order: the encoder downwards, the decoder upwards, the head."""
    part, _, rest = layer.partition("/")
    level, _, name = rest.partition("/")
    number = int(level.removeprefix("level_")) if level.startswith("level_") else 0
    return ("encoder", "decoder", "head").index(part), -number if part == "decoder" else number, name


def forward_program(study: StudySettings, program: Program) -> Program:
    """Reduces a program to its network and task, so that arms that differ only in training share it."""
    return dataclasses.replace(program, optim=study.optim, train=study.train, freeze="none", shared=None, fold=None)


def kernel_layers(paths: Iterable[str]) -> list[str]:
    """Returns the names of the layers that have kernels among these parameters, in forward order."""
    return sorted((path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")), key=forward_order)


def variants(planned: PlannedStudy) -> list[tuple[int, int]]:
    """Returns the train sizes and folds whose networks are compared."""
    every = {(run.key.train_cases, run.key.fold) for job in planned.plan.of_kind("train") for run in job.runs}
    if planned.study.analysis.sizes == "every":
        return sorted(every)
    largest = max((size for size, _ in every), key=lambda size: (size == 0, size), default=0)  # 0 stands for all cases
    return sorted(variant for variant in every if variant[0] == largest)


def read_networks(planned: PlannedStudy, train_cases: int, fold: int) -> Iterator[Networks]:
    """Reads the arms of one variant one after another, skipping those whose runs all diverged."""
    chosen = chosen_rates(planned.workdir, planned.plan, planned.study.arms)
    jobs = [with_rates(job, chosen) for job in planned.plan.of_kind("train")]
    for arm in planned.study.arms:
        found: list[tuple[Job, list[int], logs.TrainingLog]] = []
        for job in jobs:
            log, keys = None, [(run.key.arm, run.key.train_cases, run.key.fold) for run in job.runs]
            wanted = [index for index, key in enumerate(keys) if key == (arm.name, train_cases, fold)]
            if wanted:
                log = logs.read_log(planned.workdir / job.directory, len(job.runs))
                wanted = [index for index in wanted if log.diverged_at[index] is None]
            if log is not None and wanted:
                found.append((job, wanted, log))
        if found:
            yield _read(planned, arm.name, arm.init == "pretrained", found)


def _read(
    planned: PlannedStudy, arm: str, pretrained: bool, found: list[tuple[Job, list[int], logs.TrainingLog]]
) -> Networks:
    program, numbers = found[0][0].program, numbers_of_seeds(planned)
    (settings,) = (own for own in planned.study.arms if own.name == arm)
    runs = [job.runs[index] for job, rows, _ in found for index in rows]
    order = np.argsort([run.key.seed for run in runs])
    directories = [(planned.workdir / job.directory / "checkpoints", rows) for job, rows, _ in found]

    def at(step: int) -> Params:
        parts = [checkpoint.read_params(directory, step, rows) for directory, rows in directories]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)

    saved = set.intersection(*(set(checkpoint.saved_steps(directory)) for directory, _ in directories))
    runs = [runs[index] for index in order]
    return Networks(
        arm,
        program,
        tuple(run.key.seed for run in runs),
        at(0),
        at(program.train.steps),
        pretrained,
        tuple(run.source for run in runs),
        tuple(run.init_id for run in runs),
        tuple(run.order_id for run in runs),
        np.concatenate([step_rates(job, log)[rows] for job, rows, log in found])[order],
        {step: at(step) for step in earlier_steps(planned.study, program.train) if step in saved},
        tuple(wave_of(planned.study, settings, run, numbers) for run in runs) if len(numbers) > 1 else (),
    )


def numbers_of_seeds(planned: PlannedStudy) -> tuple[int, ...]:
    """Returns the numbers of seeds that something is said at: declared looks, and those before each extension."""
    most = len(planned.study.seeds)
    return tuple(sorted({most, *(count for count in (*planned.study.looks, *planned.waves) if count < most)}))


def earlier_steps(study: StudySettings, settings: TrainSettings) -> tuple[int, ...]:
    """Returns the steps before the last at which runs are analysed too, if their checkpoints were kept.

    That is half of the steps, rounded to the end of a compiled call, since nothing in between is kept.
    """
    half = settings.steps // 2 // settings.log_every * settings.log_every
    return (half,) if study.analysis.half and half else ()


def step_rates(job: Job, log: logs.TrainingLog) -> Float[np.ndarray, "runs steps"]:
    """Computes the learning rate of every step of a job's runs from the peak, the schedule and the validations."""
    settings, steps = job.program.optim, job.program.train.steps
    shares = np.asarray(jax.jit(jax.vmap(optim.make_schedule(settings, steps)))(np.arange(steps)), np.float64)
    rates = np.outer([run.rate for run in job.runs], shares)
    if settings.schedule == "plateau":
        dsc = log.val_dsc.astype(np.float32)  # as training compares it
        last = np.zeros(len(rates), np.float32)
        # The start is validated for the curve alone: training does not observe it.
        for row in np.flatnonzero(log.validated & (log.step > 0)):
            fell = dsc[:, row] < settings.plateau_ratio * last
            rates[fell, log.step[row] :] *= settings.plateau_factor
            last = dsc[:, row]
    return rates
