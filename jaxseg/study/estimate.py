"""What a study will cost, before it runs: arithmetic counted from the traced step, speed from a short trial product."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import trees
from jaxseg.study.plan import Job
from jaxseg.study.program import (
    Network,
    Program,
    abstract_params,
    image_shape,
    inner_jaxprs,
    make_objective,
    param_labels,
)

EFFICIENCY = 0.6
"""Share of the trial product's speed that a whole step is taken to reach: a guess from a busy machine."""


def count_flops(jaxpr: Any) -> int:
    """Multiplications and additions of the products and convolutions in a jaxpr; loops count all their turns.

    Loops whose number of turns is not known from shapes count once. Products with the zeros that a transposed
    convolution puts between its inputs do not count.
    """
    total = 0
    for equation in jaxpr.eqns:
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += turns * sum(map(count_flops, inner_jaxprs(equation)))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * depth
        elif equation.primitive.name == "conv_general_dilated":
            kernel, spread = equation.invars[1].aval, math.prod(equation.params["lhs_dilation"])
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size // (features * spread)
    return total


@functools.lru_cache(maxsize=64)
def step_flops(program: Program) -> int:
    """Of one training step of one run, the backward pass of the trained parameters included."""
    params, labels = abstract_params(program), param_labels(program)
    trained, fixed = trees.partition(params, labels, "train")
    shape = image_shape(program)
    objective = make_objective(program.model, program.loss, program.classes)
    image, label = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:-1], jnp.int32)
    jaxpr = jax.make_jaxpr(jax.grad(objective))(trained, fixed, image, label)
    return program.train.accumulate * count_flops(jaxpr.jaxpr)


def device_flops(devices: tuple[jax.Device, ...]) -> float:
    """Multiplications and additions a second of all devices together, from products of a convolution's shape."""
    size = 4096 if devices[0].platform == "cpu" else 65536
    # Random would take longer than the product; any finite numbers do.
    left, right = jnp.full((size, 432), 0.5), jnp.full((432, 64), 0.5)
    product = jax.jit(lambda left, right: (left @ right).sum())
    operands = [jax.device_put((left, right), device) for device in devices]
    times = []
    for _ in range(8):
        began = time.perf_counter()
        jax.block_until_ready([product(*pair) for pair in operands])
        times.append(time.perf_counter() - began)
    return len(devices) * 2 * size * 432 * 64 / min(times[1:])


def job_seconds(job: Job, flops_per_second: float) -> float:
    """How long a job may train, without compiling and validation."""
    return len(job.runs) * job.program.train.steps * step_flops(job.program) / (EFFICIENCY * flops_per_second)


def job_bytes(job: Job, network: Network, *, devices: int, strategy: str) -> int:
    """Memory that a job's programs hold at their peak on all devices together, the cohort left out."""
    running = len(job.runs) if strategy == "vmap" else min(devices, len(job.runs))
    states = 2 * len(job.runs) * network.state_bytes + devices * network.shared_bytes
    return states + running * (network.activation_bytes + network.state_bytes)
