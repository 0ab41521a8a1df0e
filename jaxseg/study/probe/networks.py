"""The trained networks of one arm in one variant, read from its jobs: parameters at the start and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from jaxseg import checkpoint, logs, trees
from jaxseg.settings import StudySettings
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.program import Program, param_labels
from jaxseg.study.plan.runs import Run
from jaxseg.types import Params, RunKey


@dataclasses.dataclass(frozen=True)
class Networks:
    """All runs of an arm, train size and fold that did not diverge, seeds ascending."""

    arm: str
    program: Program
    seeds: tuple[int, ...]
    start: Params
    """Runs first, on the host."""
    end: Params
    pretrained: bool
    """Whether each run starts from a whole source network: encoder and decoder are that network's at the start."""
    sources: tuple[RunKey | None, ...]
    """The source network of each run."""
    init_ids: tuple[int, ...]
    """What each run's random weights are drawn from; a source network draws them from its seed."""

    def __len__(self) -> int:
        return len(self.seeds)

    def layers(self) -> dict[str, tuple[np.ndarray, np.ndarray, bool]]:
        """Kernels at the start and at the end, runs first, and whether they are trained; by layer, in forward order."""
        end, labels = trees.flatten(self.end), trees.flatten(param_labels(self.program))
        start = trees.flatten(self.start)
        paths = {layer: f"{layer}/kernel" for layer in kernel_layers(start)}
        return {layer: (start[path], end[path], labels[path] == "train") for layer, path in paths.items()}


def forward_order(layer: str) -> tuple[object, ...]:
    """Sorts layers by what comes first in a network: the encoder downwards, the decoder upwards, the head."""
    part, _, rest = layer.partition("/")
    level, _, name = rest.partition("/")
    number = int(level.removeprefix("level_")) if level.startswith("level_") else 0
    return ("encoder", "decoder", "head").index(part), -number if part == "decoder" else number, name


def forward_program(study: StudySettings, program: Program) -> Program:
    """The program as far as its network and task go: the same for arms that are only trained in other ways."""
    return dataclasses.replace(program, optim=study.optim, train=study.train, freeze="none", shared=None, fold=None)


def kernel_layers(paths: Iterable[str]) -> list[str]:
    """Names of the layers that have kernels among these parameters, in forward order."""
    return sorted((path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")), key=forward_order)


def variants(planned: PlannedStudy) -> list[tuple[int, int]]:
    """Every train size and fold of the study."""
    return sorted({(run.key.train_cases, run.key.fold) for job in planned.plan.of_kind("train") for run in job.runs})


def read_networks(planned: PlannedStudy, train_cases: int, fold: int) -> Iterator[Networks]:
    """The arms of one variant one after another, those with a run that did not diverge."""
    jobs = planned.plan.of_kind("train")
    for arm in planned.study.arms:
        found: list[tuple[Job, int]] = []
        for job in jobs:
            wanted = [
                index
                for index, run in enumerate(job.runs)
                if (run.key.arm, run.key.train_cases, run.key.fold) == (arm.name, train_cases, fold)
            ]
            if wanted:
                died = logs.read_log(planned.workdir / job.directory, len(job.runs)).diverged_at
                found += [(job, index) for index in wanted if died[index] is None]
        if found:
            yield _read(planned, arm.name, arm.init == "pretrained", found)


def _read(planned: PlannedStudy, arm: str, pretrained: bool, found: list[tuple[Job, int]]) -> Networks:
    parts: dict[str, list[Params]] = {"start": [], "end": []}
    runs: list[Run] = []
    for job in dict.fromkeys(job for job, _ in found):
        rows = [index for of_job, index in found if of_job is job]
        directory = planned.workdir / job.directory / "checkpoints"
        for which, step in (("start", 0), ("end", job.program.train.steps)):
            parts[which].append(checkpoint.read_params(directory, step, rows))
        runs += [job.runs[index] for index in rows]
    order = np.argsort([run.key.seed for run in runs])
    start, end = (
        jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts[which]) for which in ("start", "end")
    )
    runs = [runs[index] for index in order]
    return Networks(
        arm,
        found[0][0].program,
        tuple(run.key.seed for run in runs),
        start,
        end,
        pretrained,
        tuple(run.source for run in runs),
        tuple(run.init_id for run in runs),
    )
