"""XLA's convolution with its own rule for mapping it over runs on a GPU.

`jax.vmap` over images and kernels makes a grouped convolution with one group per run. With the few channels of a
segmentation network, cuDNN leaves most of each tile of the tensor cores empty. Here, the kernels of several runs lie on
the diagonal of one kernel that fills a tile, and a group holds that many runs. This asks for more products, of which
those off the diagonal are zeros, but takes a fraction of the time (docs/performance.md). Without mapping it is
`lax.conv_general_dilated`.

Runs that share a kernel stay independent. A NaN times the zeros off the diagonal would be NaN in every run of the
group, so a run that has diverged takes part as zeros, and its own result is NaN throughout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxseg.models.conv import xla

Convolve = Callable[[jax.Array, jax.Array, xla.Geometry], jax.Array]

TILE = 128
"""Channels of a group: the tile of cuDNN's products on tensor cores."""
TILE_FLOAT32 = 64
"""The same for float32 in full precision, which tensor cores do not compute: each product off the diagonal costs."""
HEADROOM = 2.0**-16
"""Share of the largest number of a dtype up to which operands are joined. Above, an algorithm that transforms its input
(Winograd's, Fourier's) may overflow before the zeros off the diagonal multiply it."""


def of_runs(x: jax.Array, kernel: jax.Array, geometry: xla.Geometry) -> jax.Array:
    """Compute `xla.conv` for each run; the operands and the result have a leading run axis."""
    runs, channels, features = x.shape[0], x.shape[-1], kernel.shape[-1]
    # Each set is one group of a grouped convolution, and its runs lie on the diagonal of one kernel, here for two:
    #     [x0 x1] [k0  0] = [x0 k0  x1 k1]
    #             [ 0 k1]
    sets = _num_sets(x, kernel, geometry)
    size = -(-runs // sets)
    x, kernel = (_padded(part, sets * size) for part in (x, kernel))
    x = jnp.moveaxis(x, 0, -2)
    x = x.reshape(*x.shape[:-2], sets * size * channels)
    # [sets, size, *taps, channels, features] to [*taps, size, channels, sets, size, features], zero off the diagonal.
    # In the gradient, this selection leaves out products of different runs, which may have overflowed.
    kernel = jnp.moveaxis(kernel.reshape(sets, size, *kernel.shape[1:]), (1, 0), (-4, -2))
    diagonal = jnp.eye(size, dtype=bool).reshape(*(1,) * (x.ndim - 2), size, 1, 1, size, 1)
    kernel = jnp.where(diagonal, kernel[..., None, :], 0)
    kernel = kernel.reshape(*kernel.shape[:-5], size * channels, sets * size * features)
    y = xla.conv(x, kernel, geometry, groups=sets)
    return jnp.moveaxis(y.reshape(*y.shape[:-1], sets * size, features), -2, 0)[:runs]


def _num_sets(x: jax.Array, kernel: jax.Array, geometry: xla.Geometry) -> int:
    """Number of kernels that the runs are joined into, as many to a kernel as fill a tile."""
    full = x.dtype == jnp.float32 and geometry.precision == "highest"
    fitting = max((TILE_FLOAT32 if full else TILE) // max(x.shape[-1], kernel.shape[-1]), 1)
    return -(-x.shape[0] // fitting)


def conv(x: jax.Array, kernel: jax.Array, geometry: xla.Geometry) -> jax.Array:
    """Compute `xla.conv`, which becomes `of_runs` when it is mapped over runs; differentiable in reverse mode."""
    return _operation(geometry)(x, kernel)


@functools.cache
def _operation(geometry: xla.Geometry) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def output(convolve: Convolve, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel, geometry)

    # The gradients, in one operand, of the sum of `convolve(x, kernel) * g`.
    def in_x(convolve: Convolve, x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: convolve(x, kernel, geometry), x)(g)[0]

    def in_kernel(convolve: Convolve, x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: convolve(x, kernel, geometry), kernel)(g)[0]

    # Mapping comes after differentiation, and the gradients are convolutions that need the rule as well.
    forward = _mapped(output, geometry, reads=(0, 1))
    d_x, d_kernel = _mapped(in_x, geometry, reads=(1, 2)), _mapped(in_kernel, geometry, reads=(0, 2))

    @jax.custom_vjp
    def operation(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return forward(x, kernel)

    operation.defvjp(
        lambda x, kernel: (forward(x, kernel), (x, kernel)),
        lambda operands, g: (d_x(*operands, g), d_kernel(*operands, g)),
    )
    return operation


def _mapped(function: Callable[..., jax.Array], geometry: xla.Geometry, reads: Sequence[int]) -> Callable[..., Any]:
    """`function` of `xla.conv`, which mapping turns into that of `of_runs` where each operand has a run axis.

    Args:
        function: Function of a convolution and of operands, of which the first two are x and kernel.
        geometry: Parameters of the convolution.
        reads: Positions of the operands of which it reads the values.
    """
    single = functools.partial(function, xla.conv)
    mapped = custom_vmap(single)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Sequence[bool], *operands: Any) -> tuple[jax.Array, bool]:
        if not all(in_batched):
            # An operand that the runs share gives an ordinary convolution with a larger batch, or with more features.
            return jax.vmap(single, in_axes=tuple(0 if own else None for own in in_batched))(*operands), True
        if _num_sets(operands[0], operands[1], geometry) == axis_size:
            return jnp.stack([single(*(operand[run] for operand in operands)) for run in range(axis_size)]), True
        sound = functools.reduce(jnp.logical_and, (_sound(operands[index]) for index in reads))
        y = function(of_runs, *(jnp.where(_over(sound, operand), operand, 0) for operand in operands))
        return jnp.where(_over(sound, y), y, jnp.nan), True

    return mapped


def _sound(operand: jax.Array) -> jax.Array:
    """Which runs have finite values that leave headroom; comparisons with NaN are false."""
    limit = float(jnp.finfo(operand.dtype).max) * HEADROOM
    return (jnp.abs(operand) <= limit).all(tuple(range(1, operand.ndim)))


def _over(runs: jax.Array, operand: jax.Array) -> jax.Array:
    """One value per run, over the other axes of an operand."""
    return lax.expand_dims(runs, tuple(range(1, operand.ndim)))


def _padded(operand: jax.Array, runs: int) -> jax.Array:
    """Pad with zeros for runs that only fill the last group."""
    return jnp.pad(operand, ((0, runs - operand.shape[0]), *((0, 0),) * (operand.ndim - 1)))
