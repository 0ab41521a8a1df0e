"""Estimates the cost of a study before it runs, from the work in the traced step and the speed of a short trial."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseg import trees
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.program import (
    STATES,
    NetworkSize,
    Program,
    abstract_batch,
    abstract_params,
    inner_jaxprs,
    make_objective,
    param_labels,
)

PRODUCTS, ELEMENTS = 1.51, 0.81
"""Speed of products, and of the operations between them, in a step relative to the trials (docs/performance.md)."""

_MOVES = frozenset(
    ("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type", "iota", "gather", "pad",
     "concatenate", "transpose", "dynamic_slice", "dynamic_update_slice", "rev", "slice", "select_n", "scatter",
     "scatter-add")
)  # fmt: skip
"""Operations that compilers fuse with what follows, or that stay in a cache: what they take is within the shares."""


class Work(NamedTuple):
    """The work of a step, as far as its time depends on it."""

    flops: int
    """The multiplications and additions in products and convolutions."""
    written: int
    """The bytes that all operations between them write, one by one."""


class Speed(NamedTuple):
    """The speed of all devices together, per second."""

    flops: float
    written: float


def count_work(jaxpr: Any) -> Work:
    """Counts the work of a jaxpr, with every iteration of its loops.

    Loops whose number of iterations does not follow from shapes count once. Products with the zeros that a transposed
    convolution puts between its inputs do not count.
    """
    flops, written = 0, 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, inner_jaxprs(equation)
        turns = equation.params.get("length", 1) if name == "scan" else 1
        for part in map(count_work, inner):
            flops, written = flops + turns * part.flops, written + turns * part.written
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            flops += 2 * equation.outvars[0].aval.size * depth
        elif name == "conv_general_dilated":
            kernel, spread = equation.invars[1].aval, math.prod(equation.params["lhs_dilation"])
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            flops += 2 * equation.outvars[0].aval.size * kernel.size // (features * spread)
        elif not inner and name not in _MOVES:
            given = [variable.aval for variable in equation.outvars]
            written += sum(aval.size * getattr(aval.dtype, "itemsize", 0) for aval in given)
    return Work(flops, written)


@functools.lru_cache(maxsize=64)
def step_work(program: Program) -> Work:
    """Counts the work of one training step of one run, with the backward pass of the trained parameters.

    Sampling and the optimizer, a few percent of a step, are left out.
    """
    params, labels = abstract_params(program), param_labels(program)
    trained, fixed = trees.partition(params, labels, "train")
    gradient = jax.make_jaxpr(jax.grad(make_objective(program)))(trained, fixed, abstract_batch(program))
    work = count_work(gradient.jaxpr)
    return Work(*(program.train.accumulate * part for part in work))


def measure_speed(devices: tuple[jax.Device, ...]) -> Speed:
    """Measures in a short trial the speed of products of a convolution's shape and of one operation on 8 MB."""
    size = 4096 if devices[0].platform == "cpu" else 65536
    # Random would take longer than the product; any finite numbers do.
    operands = (jnp.full((size, 432), 0.5), jnp.full((432, 64), 0.5))
    elements = jnp.full((2**21,), 0.5)
    product = _fastest(lambda left, right: (left @ right).sum(), operands, devices)
    passed = _fastest(lambda values: jnp.maximum(values * 0.5 + 0.25, 0.0), (elements,), devices)
    return Speed(len(devices) * 2 * size * 432 * 64 / product, len(devices) * elements.nbytes / passed)


def _fastest(function: Callable[..., Any], operands: Any, devices: tuple[jax.Device, ...]) -> float:
    """Seconds of a function on all devices at once, the fastest of several."""
    compiled = jax.jit(function)
    placed = [jax.device_put(operands, device) for device in devices]
    times = []
    for _ in range(8):
        began = time.perf_counter()
        jax.block_until_ready([compiled(*own) for own in placed])
        times.append(time.perf_counter() - began)
    return min(times[1:])


def job_seconds(job: Job, speed: Speed) -> float:
    """Estimates the training time of a job, without compiling and validation."""
    work = step_work(job.program)
    seconds = work.flops / (PRODUCTS * speed.flops) + work.written / (ELEMENTS * speed.written)
    return len(job.runs) * job.program.train.steps * seconds


def job_bytes(job: Job, network: NetworkSize, *, devices: int, strategy: str) -> int:
    """Estimates the peak memory of a job's programs on all devices together, without the cohort."""
    running = len(job.runs) if strategy == "vmap" else min(devices, len(job.runs))
    states = STATES[strategy] * len(job.runs) * network.state_bytes + devices * network.shared_bytes
    return states + running * (network.activation_bytes + network.state_bytes)
