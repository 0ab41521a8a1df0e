"""Share of a training step that goes into sampling and augmentation, on a real image set.

python -m benchmarks.input_cost --data ../shared/data/hippocampus_mr --ndim 3 --patch 32 --batch 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from configs import default
from jaxseg import data, loop, seeds, settings
from jaxseg.streams import step_key
from jaxseg.study.plan.planned import prepare
from jaxseg.study.train import fit
from jaxseg.types import Cohort, RunInputs, TrainState

SEEDS = 4
CHANGES = ("affine", "gamma", "contrast", "brightness", "blur", "low_resolution", "noise")


def make_fit(options: argparse.Namespace, probability: float, workdir: Path) -> tuple[loop.Fit, Any]:
    """The training job of a study from scratch, and its task."""
    made = default.get_config()
    made.num_seeds, made.model.ndim, made.arms = SEEDS, options.ndim, default.pick_arms("scratch")
    made.train.batch = options.batch
    made.runtime.store_dir = str(workdir / "stores")
    for task in (made.source, made.target):
        task.data, task.patch, task.augment.flip = options.data, (options.patch,) * options.ndim, (0,)
        for name in CHANGES:
            task.augment[name] = probability
    study = settings.parse(made)
    ready = prepare(study, workdir, lambda what, done, total, note="", runs=(): None)
    (job,) = ready.plan.jobs
    return fit.make_fit(study, workdir, ready.plan, ready.tasks, job, device_bytes=2**40), study.target


def sampling_alone(task: Any, batch: int, plan: seeds.SeedPlan) -> Callable[..., jax.Array]:
    """The input of successive steps, without a network; every voxel counts in the result, so that none is left out."""
    sample = data.make_sample(task, batch=batch)

    def inputs(state: TrainState, run: RunInputs, cohort: Cohort, start: jax.Array, stop: jax.Array) -> jax.Array:
        def body(step: Any, total: jax.Array) -> jax.Array:
            made = sample(step_key(state.key, step, "sample"), cohort, run)
            return total + made.image.sum() + made.label.sum()

        return lax.fori_loop(start, stop, body, jnp.zeros(()))

    return seeds.map_seeds(inputs, plan=plan, shared=(2, 3, 4))


def seconds_per_step(run: Callable[[int, int], Any], steps: int) -> float:
    """Median over five calls, of one step of one seed; the first call compiles and does not count."""
    jax.block_until_ready(run(0, 1))
    times = []
    for turn in range(5):
        began = time.perf_counter()
        jax.block_until_ready(run(turn * steps, (turn + 1) * steps))
        times.append(time.perf_counter() - began)
    return statistics.median(times) / steps / SEEDS


def measure(options: argparse.Namespace, probability: float, workdir: Path) -> tuple[float, float]:
    """Seconds of one seed's input of a step, and of the whole step."""
    fit, task = make_fit(options, probability, workdir)
    _, runs = next(fit.feed(0))
    state = seeds.put(fit.init(), fit.plan)
    inputs = sampling_alone(task, options.batch, fit.plan)

    def sample(first: int, last: int) -> Any:
        return inputs(state, runs, fit.cohort, np.int32(first), np.int32(last))

    cost = seconds_per_step(sample, 4 * options.steps)

    def train(first: int, last: int) -> Any:
        nonlocal state
        state, metrics = fit.chunk(state, runs, fit.cohort, {}, np.int32(first), np.int32(last))
        return metrics

    return cost, seconds_per_step(train, options.steps)


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--ndim", type=int, default=3)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--probabilities", type=float, nargs="+", default=[0.0, 0.2, 1.0], help="of each augmentation")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    print(f"{options.data}, patch {options.patch}^{options.ndim}, batch {options.batch}, {SEEDS} seeds")
    print("| probability of each augmentation | input, ms | step, ms | share |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for probability in options.probabilities:
            cost, step = measure(options, probability, Path(folder))
            print(f"| {probability:g} | {1e3 * cost:.2f} | {1e3 * step:.1f} | {cost / step:.1%} |", flush=True)


if __name__ == "__main__":
    main()
