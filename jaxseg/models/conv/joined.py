"""XLA's convolution with its own rule for mapping it over runs on a GPU.

`jax.vmap` over images and kernels makes a grouped convolution with one group per run. With the few channels of a
segmentation network, cuDNN leaves most of each tile of the tensor cores empty. Here, the kernels of several runs lie on
the diagonal of one kernel that fills a tile, and a group holds that many runs. This asks for more products, of which
those off the diagonal are zeros, but takes a fraction of the time (docs/performance.md). Without mapping it is
`lax.conv_general_dilated`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxseg.models.conv import xla

TILE = 128
"""Channels of a group: the tile of cuDNN's products on tensor cores."""
TILE_FLOAT32 = 64
"""The same for float32 in full precision, which tensor cores do not compute: each product off the diagonal costs."""


def of_runs(x: jax.Array, kernel: jax.Array, geometry: xla.Geometry) -> jax.Array:
    """Compute `xla.conv` for each run; the operands and the result have a leading run axis."""
    runs, channels, features = x.shape[0], x.shape[-1], kernel.shape[-1]
    full = x.dtype == jnp.float32 and geometry.precision == "highest"
    fitting = max((TILE_FLOAT32 if full else TILE) // max(channels, features), 1)
    sets = -(-runs // fitting)
    if sets == runs:
        return jnp.stack([xla.conv(x[run], kernel[run], geometry) for run in range(runs)])
    # Each set is one group of a grouped convolution, and its runs lie on the diagonal of one kernel, here for two:
    #     [x0 x1] [k0  0] = [x0 k0  x1 k1]
    #             [ 0 k1]
    size = -(-runs // sets)
    x, kernel = (_padded(part, sets * size) for part in (x, kernel))
    x = jnp.moveaxis(x, 0, -2)
    x = x.reshape(*x.shape[:-2], sets * size * channels)
    # [sets, size, *taps, channels, features] to [*taps, size, channels, sets, size, features], zero off the diagonal
    kernel = jnp.moveaxis(kernel.reshape(sets, size, *kernel.shape[1:]), (1, 0), (-4, -2))
    diagonal = jnp.eye(size, dtype=kernel.dtype).reshape(*(1,) * (x.ndim - 2), size, 1, 1, size, 1)
    kernel = kernel[..., None, :] * diagonal
    kernel = kernel.reshape(*kernel.shape[:-5], size * channels, sets * size * features)
    y = xla.conv(x, kernel, geometry, groups=sets)
    return jnp.moveaxis(y.reshape(*y.shape[:-1], sets * size, features), -2, 0)[:runs]


def conv(x: jax.Array, kernel: jax.Array, geometry: xla.Geometry) -> jax.Array:
    """Compute `xla.conv`, which becomes `of_runs` when it is mapped over runs; differentiable in reverse mode."""
    return _operation(geometry)(x, kernel)


@functools.cache
def _operation(geometry: xla.Geometry) -> Callable[[jax.Array, jax.Array], jax.Array]:
    # Mapping comes after differentiation, and the gradients are convolutions that need the rule as well.
    forward = _mapped(lambda x, kernel: xla.conv(x, kernel, geometry), lambda x, kernel: of_runs(x, kernel, geometry))
    d_x, d_kernel = (
        _mapped(_gradient(xla.conv, geometry, of), _gradient(of_runs, geometry, of)) for of in ("x", "kernel")
    )

    @jax.custom_vjp
    def operation(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return forward(x, kernel)

    operation.defvjp(
        lambda x, kernel: (forward(x, kernel), (x, kernel)),
        lambda operands, g: (d_x(*operands, g), d_kernel(*operands, g)),
    )
    return operation


def _gradient(convolve: Callable[..., jax.Array], geometry: xla.Geometry, of: str) -> Callable[..., jax.Array]:
    """Make the gradient of the sum of `convolve(x, kernel, geometry) * g` in one operand, from x, kernel and g."""

    def in_x(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: convolve(x, kernel, geometry), x)(g)[0]

    def in_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: convolve(x, kernel, geometry), kernel)(g)[0]

    return in_x if of == "x" else in_kernel


def _mapped(single: Callable[..., jax.Array], several: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`single`, which mapping turns into `several` where each operand has a run axis."""
    function = custom_vmap(single)

    @function.def_vmap
    def rule(axis_size: int, in_batched: Sequence[bool], *operands: Any) -> tuple[jax.Array, bool]:
        del axis_size
        if all(in_batched):
            return several(*operands), True
        # An operand that the runs share gives an ordinary convolution with a larger batch, or with more features.
        return jax.vmap(single, in_axes=tuple(0 if own else None for own in in_batched))(*operands), True

    return function


def _padded(operand: jax.Array, runs: int) -> jax.Array:
    """Pad with zeros for runs that only fill the last group."""
    return jnp.pad(operand, ((0, runs - operand.shape[0]), *((0, 0),) * (operand.ndim - 1)))
