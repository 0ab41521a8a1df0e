"""Estimates the cost of a study before it runs, from the work in the traced step and the speed of a short trial."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg import trees
from jaxseg.models.conv import conv
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

ELEMENTS = 0.8
"""Speed of operations between products relative to their trial, where products have that of theirs."""
WHOLE = 1.3
"""The time of a whole step, relative to one whose operations are as fast as those of the trial's two layers."""
ELSEWHERE = 2.0
"""What a step reaches of the trials' speeds where it is not measured: on devices that one small image does not fill."""

_FEW, _MANY = 8, 64
"""Columns of the trials' products."""

_MOVES = frozenset(
    ("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type", "iota", "gather", "pad",
     "concatenate", "transpose", "dynamic_slice", "dynamic_update_slice", "rev", "slice", "select_n", "scatter",
     "scatter-add")
)  # fmt: skip
"""Operations that compilers fuse with what follows, or that stay in a cache: what they take is within the shares."""


class Work(NamedTuple):
    """The work of a step, as far as its time depends on it."""

    flops: float
    """The multiplications and additions in products and convolutions."""
    narrow: float
    """Those of each product, divided by its columns: the fewer columns a product has, the slower it is."""
    written: float
    """The bytes that all operations between them write, one by one."""


class Speed(NamedTuple):
    """The speed of all devices together, per second: a product of n columns takes 1 / flops + 1 / (n narrow) each."""

    flops: float
    narrow: float
    written: float

    def seconds(self, work: Work) -> float:
        """Estimates how long the work of a step takes."""
        products = work.flops / self.flops + work.narrow / self.narrow
        return WHOLE * (products + work.written / (ELEMENTS * self.written))


def count_work(jaxpr: Any) -> Work:
    """Counts the work of a jaxpr, with every iteration of its loops.

    Loops whose number of iterations does not follow from shapes count once. Products with the zeros that a transposed
    convolution puts between its inputs do not count.
    """
    flops, narrow, written = 0.0, 0.0, 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, inner_jaxprs(equation)
        turns = equation.params.get("length", 1) if name == "scan" else 1
        for part in map(count_work, inner):
            flops, narrow = flops + turns * part.flops, narrow + turns * part.narrow
            written += turns * part.written
        if name == "dot_general":
            own, columns = _product(equation)
            flops, narrow = flops + own, narrow + own / columns
        elif name == "conv_general_dilated":
            kernel, spread = equation.invars[1].aval, math.prod(equation.params["lhs_dilation"])
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            own = 2 * equation.outvars[0].aval.size * kernel.size // (features * spread)
            flops, narrow = flops + own, narrow + own / features
        elif not inner and name not in _MOVES:
            given = [variable.aval for variable in equation.outvars]
            written += sum(aval.size * getattr(aval.dtype, "itemsize", 0) for aval in given)
    return Work(flops, narrow, written)


def _product(equation: Any) -> tuple[int, int]:
    """The operations of a product, and the smaller one of its two free dimensions."""
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    depth, batch = (math.prod(left.shape[axis] for axis in axes) for axes in (contracted, batched))
    rows = left.size // max(1, batch * depth)
    return 2 * out.size * depth, max(1, min(rows, out.size // max(1, batch * rows)))


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
    """Measures in short trials how fast a step's parts are.

    Products of a convolution's shape and an operation on 8 MB say how much faster one is than the other, and products
    of many columns than those of few: processors with wide vectors take several times as long for a product of 8
    columns as for its share in one of 64. What a network reaches of these speeds depends on the processor too, by a
    factor of two and more; on CPUs it is measured in the gradient of two convolutions.
    """
    size, depth = 4096 if devices[0].platform == "cpu" else 65536, 432
    elements = jnp.full((2**21,), 0.5)
    passed = _fastest(lambda values: jnp.maximum(values * 0.5 + 0.25, 0.0), (elements,), devices)

    def each(columns: int) -> float:
        # Random would take longer than the product; any finite numbers do.
        operands = (jnp.full((size, depth), 0.5), jnp.full((depth, columns), 0.5))
        taken = _fastest(lambda left, right: (left @ right).sum(), operands, devices)
        return taken / (len(devices) * 2 * size * depth * columns)

    alone = speed_of(each(_FEW), each(_MANY), len(devices) * elements.nbytes / passed)
    reached = ELSEWHERE
    if devices[0].platform == "cpu":
        layers = (jnp.full((1, 32, 32, 32, 16), 0.5), jnp.full((3, 3, 3, 16, 16), 0.1))
        work = count_work(jax.make_jaxpr(_two_layers)(*layers).jaxpr)
        reached = len(devices) * alone.seconds(work) / WHOLE / _fastest(_two_layers, layers, devices)
    return Speed(*(reached * speed for speed in alone))


def _two_layers(image: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient of two convolutions, each with an instance norm and a nonlinearity."""

    def loss(image: jax.Array, kernel: jax.Array) -> jax.Array:
        for _ in range(2):
            image = conv(image, kernel)
            centred = image - image.mean((1, 2, 3), keepdims=True)
            image = jax.nn.relu(centred * lax.rsqrt(jnp.square(centred).mean((1, 2, 3), keepdims=True) + 1e-5))
        return jnp.square(image).mean()

    return jax.grad(loss, (0, 1))(image, kernel)


def speed_of(few: float, many: float, written: float) -> Speed:
    """Makes the speed from the seconds that an operation takes in products of few and of many columns."""
    narrow = max(few - many, 0.0) / (1 / _FEW - 1 / _MANY)
    wide = max(many - narrow / _MANY, many / 1024)
    return Speed(1 / wide, 1 / max(narrow, many / 1024), written)


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
    return len(job.runs) * job.program.train.steps * speed.seconds(step_work(job.program))


def job_bytes(job: Job, network: NetworkSize, *, devices: int, strategy: str) -> int:
    """Estimates the peak memory of a job's programs on all devices together, without the cohort."""
    running = len(job.runs) if strategy == "vmap" else min(devices, len(job.runs))
    states = STATES[strategy] * len(job.runs) * network.state_bytes + devices * network.shared_bytes
    return states + running * (network.activation_bytes + network.state_bytes)
