"""Convolutions as matrix products, with gradients of their own. `jaxseg.models.conv` is the way in."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Fold:
    """How one axis of a kernel acts on a coarse grid when the output is `factor` times finer.

    Output `factor * i + p` reads coarse voxels `i + starts[p] + a` for a < `window`, with the kernel's taps summed
    by `matrix[p, a, tap]`.
    """

    starts: tuple[int, ...]
    window: int
    matrix: tuple[tuple[tuple[float, ...], ...], ...]

    @staticmethod
    def of(reads: dict[int, dict[int, int]], taps: int) -> Fold:
        """From the coarse offset that each tap reads, per output parity."""
        starts = tuple(min(read.values(), default=0) for read in reads.values())
        window = max(
            max(read.values(), default=0) - start + 1 for read, start in zip(reads.values(), starts, strict=True)
        )
        matrix = np.zeros((len(reads), window, taps), np.float32)
        for parity, read in reads.items():
            for tap, offset in read.items():
                matrix[parity, offset - starts[parity], tap] += 1
        return Fold(starts, window, tuple(tuple(map(tuple, m.tolist())) for m in matrix))


def same_padding(size: int, taps: int, stride: int) -> tuple[int, int]:
    """What XLA pads an axis with, below and above, for SAME."""
    total = max((-(-size // stride) - 1) * stride + taps - size, 0)
    return total // 2, total - total // 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """A SAME convolution as one product of gathered taps."""
    spatial, taps = x.shape[1:-1], kernel.shape[:-2]
    padding = [same_padding(n, k, s) for n, k, s in zip(spatial, taps, strides, strict=True)]
    out = [-(-n // s) for n, s in zip(spatial, strides, strict=True)]
    return _dot(gather_taps(_pad(x, padding), taps, out, strides), kernel.reshape(-1, kernel.shape[-1]))


def _conv_forward(x, kernel, strides):
    return conv(x, kernel, strides), (x, kernel)


def _conv_backward(strides, residuals, g):
    x, kernel = residuals
    spatial, taps = x.shape[1:-1], kernel.shape[:-2]
    padding = [same_padding(n, k, s) for n, k, s in zip(spatial, taps, strides, strict=True)]
    gathered = gather_taps(_pad(x, padding), taps, g.shape[1:-1], strides)
    d_kernel = _dot_rows(gathered, g).reshape(kernel.shape).astype(kernel.dtype)
    # dx[s * i + p] = sum over taps t of g[(s * i + p + low - t) / s] k[t]^T, where that is whole
    folds = [_gradient_fold(k, s, low) for k, s, (low, _) in zip(taps, strides, padding, strict=True)]
    d_x = subpixel(g, jnp.swapaxes(kernel, -1, -2), folds)
    return lax.slice(d_x, (0,) * x.ndim, x.shape), d_kernel


conv.defvjp(_conv_forward, _conv_backward)


def subpixel(low: jax.Array, kernel: jax.Array, folds: Sequence[Fold]) -> jax.Array:
    """The convolution that `folds` describe: every parity of the finer output by one product on the coarse grid."""
    batch, *spatial, channels = low.shape
    features = kernel.shape[-1]
    folded = kernel
    for fold in folds:  # each axis of taps becomes (parity, window) at the back, in axis order
        folded = jnp.tensordot(folded, jnp.asarray(fold.matrix, kernel.dtype), ((0,), (2,)))
    ndim = len(folds)
    # now [channels, features, p0, a0, p1, a1, ...] -> [a..., channels, p..., features]
    order = (*range(3, 3 + 2 * ndim, 2), 0, *range(2, 2 + 2 * ndim, 2), 1)
    windows, parities = [f.window for f in folds], [len(f.starts) for f in folds]
    folded = folded.transpose(order).reshape(math.prod(windows) * channels, -1).astype(low.dtype)
    first = [min(f.starts) for f in folds]
    span = [max(f.starts) - min(f.starts) for f in folds]
    positions = [n + s for n, s in zip(spatial, span, strict=True)]
    padding = [(-a, a + s + f.window - 1) for a, s, f in zip(first, span, folds, strict=True)]
    y = _dot(gather_taps(_pad(low, padding), windows, positions, (1,) * ndim), folded)
    y = y.reshape(batch, *positions, *parities, features)
    return _interleave(y, spatial, [[s - a for s in f.starts] for f, a in zip(folds, first, strict=True)], ())


def _interleave(y, spatial, starts, chosen):
    axis = len(chosen)
    ndim = len(spatial)
    if axis == ndim:
        corner = [starts[i][p] for i, p in enumerate(chosen)]
        begin = (0, *corner, *chosen, 0)
        end = (
            y.shape[0],
            *(c + n for c, n in zip(corner, spatial, strict=True)),
            *(p + 1 for p in chosen),
            y.shape[-1],
        )
        return lax.slice(y, begin, end).reshape(y.shape[0], *spatial, y.shape[-1])
    parts = [_interleave(y, spatial, starts, (*chosen, p)) for p in range(len(starts[axis]))]
    stacked = jnp.stack(parts, axis + 2)
    return stacked.reshape(*stacked.shape[: axis + 1], -1, *stacked.shape[axis + 3 :])


def gather_taps(padded: jax.Array, taps, out, strides) -> jax.Array:
    """The windows that each output reads, as channels: `[batch, *out, prod(taps) * channels]`."""
    slices = [
        lax.slice(
            padded,
            (0, *offset, 0),
            (
                padded.shape[0],
                *(o + (n - 1) * s + 1 for o, n, s in zip(offset, out, strides, strict=True)),
                padded.shape[-1],
            ),
            (1, *strides, 1),
        )
        for offset in itertools.product(*map(range, taps))
    ]
    return jnp.concatenate(slices, -1)


def _gradient_fold(taps: int, stride: int, low: int) -> Fold:
    return Fold.of(
        {p: {t: (p + low - t) // stride for t in range(taps) if (p + low - t) % stride == 0} for p in range(stride)},
        taps,
    )


def _pad(x: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in padding), (0, 0, 0)])


def _dot(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    y = lax.dot_general(rows, matrix, (((rows.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return y.astype(rows.dtype)


def _dot_rows(left: jax.Array, right: jax.Array) -> jax.Array:
    """Sum over all positions of the outer products, in float32."""
    axes = tuple(range(left.ndim - 1))
    return lax.dot_general(left, right, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)
