"""A stride-1 convolution of volumes as one product per depth slice, for CPU.

Moving data costs more there than multiplying it: the taps of a whole volume are 27 times its size. So slices go by one
after another, their in-plane taps stay in cache, and each product serves all depth taps at once: the sums of the output
slices that it reaches are carried along. The backward pass gathers the cotangent's taps once for both gradients.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax import lax


def fits(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...]) -> bool:
    """Whether `conv` covers this case: three spatial axes, odd taps, stride 1."""
    return x.ndim == 5 and all(k % 2 == 1 for k in kernel.shape[:-2]) and set(strides) == {1}


@jax.custom_vjp
def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A SAME convolution; `x` is `[batch, depth, height, width, channels]`."""
    return _sweep(x, kernel, None)[0]


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    turned = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    d_x, d_kernel = _sweep(g, turned, x)
    return d_x, d_kernel.astype(kernel.dtype)


conv.defvjp(_forward, _backward)


def _sweep(y: jax.Array, kernel: jax.Array, x: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Convolves `y` slice by slice; with `x`, also sums the products of its slices with `y`'s taps.

    Returns:
        The convolution, and the gradient of sum(y * conv(x, k)) by k (an empty array without `x`).
    """
    batch, depth, height, width, channels = y.shape
    deep, high, wide, _, features = kernel.shape
    half = deep // 2
    rows = batch * height * width
    plane = jnp.pad(y, ((0, 0), (0, 0), (high // 2,) * 2, (wide // 2,) * 2, (0, 0)))
    # [in-plane taps and channels, depth taps and features]
    matrix = jnp.moveaxis(kernel.reshape(deep, high * wide * channels, features), 0, 1).reshape(-1, deep * features)
    stack = None if x is None else jnp.pad(x, ((0, 0), (half, half), (0, 0), (0, 0), (0, 0)))

    def body(carry, z):
        sums, d_kernel = carry
        taps = _plane_taps(lax.dynamic_index_in_dim(plane, z, 1, False), high, wide, height, width)
        parts = jnp.dot(taps, matrix, preferred_element_type=jnp.float32)
        part = [parts[:, i * features : (i + 1) * features] for i in range(deep)]
        if stack is not None:
            near = [lax.dynamic_index_in_dim(stack, z + i, 1, False) for i in range(deep)]
            columns = jnp.concatenate(near, -1).reshape(rows, -1)
            product = lax.dot_general(columns, taps, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            d_kernel = d_kernel + product
        # Input slice z adds its tap i to output slice z - i + half; after it, output slice z - half is complete.
        reached = [total + tap for total, tap in zip((*sums, 0.0), part[::-1], strict=True)]
        return (tuple(reached[1:]), d_kernel), reached[0].astype(y.dtype)

    zero = jnp.zeros((rows, features), jnp.float32)
    gradient = jnp.zeros((0,) if x is None else (deep * x.shape[-1], high * wide * channels), jnp.float32)
    (sums, gradient), done = lax.scan(body, ((zero,) * (deep - 1), gradient), jnp.arange(depth))
    ends = [total[None].astype(y.dtype) for total in sums[:half]]
    result = jnp.concatenate([done[half:], *ends]).reshape(depth, batch, height, width, features)
    if x is not None:
        gradient = gradient.reshape(deep, x.shape[-1], high, wide, channels)[:, :, ::-1, ::-1].transpose(0, 2, 3, 1, 4)
    return jnp.moveaxis(result, 0, 1), gradient


def _plane_taps(padded: jax.Array, high: int, wide: int, height: int, width: int) -> jax.Array:
    """The in-plane windows of one slice `[batch, height + , width + , channels]`, as rows of taps and channels."""
    taps = [padded[:, i : i + height, j : j + width, :] for i, j in itertools.product(range(high), range(wide))]
    return jnp.concatenate(taps, -1).reshape(-1, high * wide * padded.shape[-1])
