"""Our side of the benchmark: the real train step of several seeds, in a process of its own.

    python -m benchmarks.jaxseg_step '{"network": "unet", "ndim": 3, "widths": [16, 32, 64], "patch": 32, ...}'

Prints one line of JSON when compiled; then runs `steps` steps of all seeds for every line it reads and prints the
seconds of one step of one seed. `launch.benchmark` starts it beside `benchmarks.torch_step`.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import data, losses, optim, seeds, train, trees
from jaxseg.models import MODELS, make_model
from jaxseg.settings import Compute, LossSettings, ModelSettings, OptimSettings, TaskSettings
from jaxseg.streams import stream_key
from jaxseg.study.plan.cost import Work, count_work
from jaxseg.types import Cohort, Params, RunInputs, TrainState

CASES = 4


def random_cohort(ndim: int, side: int, classes: int) -> Cohort:
    """Cases of random voxels and labels, a few voxels larger than the patch."""
    rng = np.random.default_rng(0)
    voxels = side**ndim
    label = rng.integers(0, classes, size=CASES * voxels).astype(np.uint8)
    foreground = np.stack(
        [np.stack([np.flatnonzero(case == c)[:64] for c in range(1, classes)]) for case in label.reshape(CASES, voxels)]
    )
    return Cohort(
        image=jnp.asarray(rng.normal(size=(CASES * voxels, 1)), jnp.float32),
        label=jnp.asarray(label),
        offsets=jnp.arange(CASES, dtype=jnp.int32) * voxels,
        shapes=jnp.full((CASES, ndim), side, jnp.int32),
        foreground=jnp.asarray(foreground, jnp.int32),
        num_foreground=jnp.full((CASES, classes - 1), 64, jnp.int32),
    )


def model_settings(settings: dict[str, Any]) -> ModelSettings:
    """The workload's network, as its source has it."""
    return ModelSettings(
        name=settings["network"],
        ndim=settings["ndim"],
        widths=tuple(settings["widths"]),
        norm="instance" if settings["network"] == "unet" else "none",
        dropout=0.1 if settings["network"] == "multiscale_fcn" else 0.0,
    )


def step_work(settings: dict[str, Any]) -> Work:
    """Operations of one seed's convolutions in one step, 2 per product, taps in full; bytes written between them.

    Counted in the traced gradient of the native form, so that there is no input gradient of the first convolution, and
    none below the decoder with a frozen encoder. What folding and filtering save is not taken off: the figure says how
    fast a plain convolution would have to be. Bytes are those of each operation's result, as if none were fused; loss,
    optimizer and sampling are not in it.
    """
    plain = model_settings(settings)
    model = MODELS[plain.name](dataclasses.replace(plain, dropout=0.0), settings["classes"], "native")
    image = jnp.zeros((settings["batch"], *(settings["patch"],) * settings["ndim"], 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    fixed = {"encoder": params.pop("encoder")} if settings["frozen"] else {}

    def total(trained: Params, fixed: Params) -> jax.Array:
        logits: Any = model.apply({"params": trained | fixed}, image)
        return jnp.square(logits).sum()

    return count_work(jax.make_jaxpr(jax.grad(total))(params, fixed).jaxpr)


def make_run(settings: dict[str, Any]) -> tuple[Callable[[int, int], None], float, int]:
    """A function that trains all seeds from one step to another, seconds its compilation took, bytes it needs."""
    ndim, patch, batch, classes = (settings[name] for name in ("ndim", "patch", "batch", "classes"))
    compute = Compute(precision=settings["precision"])
    model = make_model(model_settings(settings), compute, classes=classes).clone(form=settings["form"])
    image = jnp.zeros((batch, *(patch,) * ndim, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    labels = optim.freeze_labels(params, "encoder" if settings["frozen"] else "none")
    total = 10**6
    tx = optim.make_optimizer(OptimSettings(schedule="constant", warmup_steps=10), labels, total)
    task = TaskSettings(patch=(patch,) * ndim)
    sample = data.make_sample(task, batch=batch)
    step = train.make_train_step(model, tx, losses.make_loss(LossSettings(smooth=1e-5)), sample, labels)
    count = settings["seeds"]
    plan = seeds.make_plan(count, strategy=settings["strategy"], devices=settings["devices"])
    chunk = seeds.map_seeds(train.make_train_chunk(step), plan=plan, shared=(2, 3, 4, 5), donate=(0,))

    def init(seed: jax.Array) -> TrainState:
        return train.init_state(stream_key(seed, "init"), stream_key(seed, "order"), model, tx, image)

    one = jax.jit(init)
    state = seeds.put(trees.stack([one(np.uint32(seed)) for seed in range(count)]), plan)
    runs = RunInputs(
        cases=jnp.tile(jnp.arange(CASES, dtype=jnp.int32)[None], (count, 1)),
        num_cases=jnp.full(count, CASES, jnp.int32),
        rate=jnp.full(count, 1e-3, jnp.float32),
    )
    runs, cohort = seeds.put(runs, plan), seeds.replicate(random_cohort(ndim, patch + 8, classes), plan)
    bound = seeds.replicate(jnp.zeros((), jnp.int32), plan)
    start = time.perf_counter()
    compiled = chunk.lower(state, runs, cohort, {}, bound, bound).compile()  # type: ignore[attr-defined]
    compile_seconds = time.perf_counter() - start
    holder = [state]

    def run(first: int, last: int) -> None:
        bounds = (seeds.replicate(jnp.asarray(step, jnp.int32), plan) for step in (first, last))
        holder[0], metrics = compiled(holder[0], runs, cohort, {}, *bounds)
        jax.block_until_ready(metrics)
        if not bool(np.all(np.asarray(metrics["steps_alive"]) == last - first)):
            raise FloatingPointError("a seed of the benchmark diverged: its time means nothing")

    needs = compiled.memory_analysis()
    return run, compile_seconds, needs.temp_size_in_bytes + needs.argument_size_in_bytes


def sample_steps(settings: dict[str, Any], seconds: float) -> int:
    """Steps of a sample: what is asked for, but no more than fit into `sample_seconds` (None: any)."""
    limit = settings["sample_seconds"]
    return settings["steps"] if limit is None else max(1, min(settings["steps"], int(limit / seconds)))


def main() -> None:
    """Compile and warm up, then train for every line read."""
    settings = json.loads(sys.argv[1])
    if settings["platform"] == "cpu":
        jax.config.update("jax_num_cpu_devices", settings["devices"])
    run, compile_seconds, needed = make_run(settings)
    run(0, 1)
    start = time.perf_counter()
    run(1, 2)
    steps, step = sample_steps(settings, time.perf_counter() - start), 2
    ready = {"ready": True, "compile_seconds": compile_seconds, "version": jax.__version__}
    print(json.dumps({**ready, "device": jax.devices()[0].device_kind}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip():
            with jax.profiler.trace(line.strip()):
                run(step, step + steps)
        else:
            run(step, step + steps)
        seconds = (time.perf_counter() - start) / steps / settings["seeds"]
        step += steps
        on_cpu = settings["platform"] == "cpu"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if on_cpu else needed
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
