"""Stride-1 convolutions as matrix products with Winograd's minimal filtering along one axis, block by block.

The first axis is filtered by F(m, r) (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308): m outputs of r taps take
m + r - 1 products instead of m r. Of the other two axes, the taps of the last are gathered as input channels and those
of the middle one are scattered as output channels, so that every product is wide in both directions; on a short middle
axis and in 2-D they are gathered too. Transforms are also written as products: on CPU, this keeps XLA from fusing a
transform into the gather after it, which costs ten times more.

In symbols, with the small constant matrices D, K and B of `Filtering` acting along the first axis,

    y = B (sum over taps of the other axes, and channels, of (K k) (D x)),
    dk = K^T (sum over voxels of (D x) (B^T dy)).

The parentheses hold one product for each point of the algorithm. Both need D x, so `sweep` makes them in one pass.

Blocks are chosen so that everything between two products stays in cache.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

ROWS = 1400
"""Number of rows of one product that a block aims at: enough to be efficient, few enough for a 1-2 MB cache."""
ENOUGH = 300
"""Rows that are efficient already: tiles are not combined beyond them unless all fit, since that takes a copy."""
SHORT = 8
"""Length of the scattered axis up to which gathering its taps costs less than the products of its halo."""


@dataclasses.dataclass(frozen=True)
class Filtering:
    """A bilinear algorithm: `outputs` results of a `taps`-tap filter are `back @ ((kernel @ k) * (data @ x))`."""

    outputs: int
    data: np.ndarray
    kernel: np.ndarray
    back: np.ndarray

    @property
    def reads(self) -> int:
        """Number of inputs of one tile."""
        return self.data.shape[1]


POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
"""Points of evaluation besides infinity; small ones first, since rounding errors grow with their powers."""
OUTPUTS = {3: (1, 2, 4), 5: (1, 2, 4)}
"""Possible numbers of outputs of a tile, by taps; filters with other numbers of taps are plain sums."""


@functools.cache
def filtering(taps: int, outputs: int) -> Filtering:
    """Return F(outputs, taps) by Cook and Toom's construction; for one output, the plain sum over taps.

    A filter is a product of polynomials, which is determined by its values at as many points as it has coefficients:
    it takes `outputs + taps - 1` products instead of `outputs * taps`.
    """
    if outputs == 1:
        return Filtering(
            1, np.eye(taps, dtype=np.float32), np.eye(taps, dtype=np.float32), np.ones((1, taps), np.float32)
        )
    finite = POINTS[: outputs + taps - 2]
    data = np.zeros((len(finite) + 1,) * 2)
    kernel, back = np.zeros((len(finite) + 1, taps)), np.zeros((outputs, len(finite) + 1))
    for i, point in enumerate(finite):
        others = [other for other in finite if other != point]
        data[i, :-1] = np.poly(others)[::-1]  # Lagrange's polynomial of this point, lowest power first
        kernel[i] = point ** np.arange(taps) / np.prod([point - other for other in others])
        back[:, i] = point ** np.arange(outputs)
    data[-1] = np.poly(finite)[::-1]
    kernel[-1, -1] = back[-1, -1] = 1  # infinity: the highest coefficient
    return Filtering(outputs, data.astype(np.float32), kernel.astype(np.float32), back.astype(np.float32))


def choose_filtering(taps: int, size: int) -> Filtering:
    """Return the algorithm with the fewest products on an axis of length `size`."""
    options = OUTPUTS.get(taps, (1,))
    return filtering(taps, min(options, key=lambda m: (-(-size // m) * (m + taps - 1 if m > 1 else taps), m)))


def sweep(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array | None = None, dtype: DTypeLike | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Return `y`, the SAME convolution of `x` with `kernel`, and, if asked for, a gradient in `kernel`.

    Transforms are float32 whatever the dtype of the products between them.

    Args:
        x: Input `[batch, a, b, c, channels]`; axis a is filtered, b scattered, c gathered.
        kernel: Kernel `[taps_a, taps_b, taps_c, channels, features]`, with odd or even numbers of taps.
        cotangent: Cotangent of the shape of y, or None.
        dtype: Dtype of the operands of products; None for that of `x`.

    Returns:
        `y` `[batch, a, b, c, features]`, and the gradient of `sum(y * cotangent)` in `kernel` as float32 (or None).
    """
    dtype = dtype or x.dtype
    batch, size_a, size_b, size_c, channels = x.shape
    taps_a, taps_b, taps_c, _, features = kernel.shape
    algorithm = choose_filtering(taps_a, size_a)
    m, reads = algorithm.outputs, algorithm.reads
    tiles = -(-size_a // m)
    images, group, rows = block_shape(batch, tiles, size_b, size_c, taps_b)
    halo = [((k - 1) // 2, k // 2) for k in kernel.shape[:3]]
    pad_a = (halo[0][0], tiles * m - size_a + halo[0][1])
    # The filtered axis comes first: the inputs of one tile are then contiguous and need no copy before their transform.
    padded = jnp.pad(jnp.moveaxis(x, 1, 0), (pad_a, (0, 0), *halo[1:], (0, 0)))
    both = gathers_both(size_b, size_c)
    folded = _fold(kernel, algorithm, both).astype(dtype)
    counts = (tiles // group, batch // images, size_b // rows)

    def block(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        index = jnp.unravel_index(i, counts)
        start = (index[0] * group * m, index[1] * images, index[2] * rows, 0, 0)
        shape = ((group - 1) * m + reads, images, rows + taps_b - 1, size_c + taps_c - 1, channels)
        slab = _tiles(lax.dynamic_slice(padded, start, shape).astype(jnp.float32), group, m, reads)
        gathered = [_gather(part, -2, taps_c, size_c).astype(dtype) for part in _combine(algorithm.data, slab)]
        if both:
            gathered = [_gather(part, -3, taps_b, rows) for part in gathered]
        products = [_dot(part, folded[p]) for p, part in enumerate(gathered)]
        scattered = jnp.stack(products if both else [_scatter(part, taps_b, rows) for part in products])
        y = _untile(_combine(algorithm.back, scattered))
        out = (lax.dynamic_update_slice(carry[0], y.astype(x.dtype), start),)
        if cotangent is None:
            return out
        shape = (group * m, images, rows, size_c, features)
        slab = _tiles(lax.dynamic_slice(whole, start, shape).astype(jnp.float32), group, m, m)
        other = _combine(algorithm.back.T, slab)
        return (*out, carry[1] + _kernel_products(gathered, other, taps_b, both, dtype))

    carry: tuple[jax.Array, ...] = (jnp.zeros((tiles * m, batch, size_b, size_c, features), x.dtype),)
    if cotangent is not None:
        pad_tiles = ((0, tiles * m - size_a), *((0, 0),) * 4)
        whole = jnp.pad(jnp.moveaxis(cotangent, 1, 0), pad_tiles)
        carry = (*carry, jnp.zeros(folded.shape, jnp.float32))
    carry = lax.fori_loop(0, math.prod(counts), block, carry)
    y = jnp.moveaxis(lax.slice_in_dim(carry[0], 0, size_a, axis=0), 0, 1)
    if cotangent is None:
        return y, None
    return y, _unfold(carry[1], kernel.shape, algorithm, both)


def _fold(kernel: jax.Array, algorithm: Filtering, both: bool) -> jax.Array:
    """The kernel as one matrix a point, float32: gathered taps and channels by scattered taps and features."""
    _, taps_b, taps_c, channels, features = kernel.shape
    folded = jnp.tensordot(algorithm.kernel, kernel.astype(jnp.float32), 1)  # [points, b, c, channels, features]
    if both:
        return folded.reshape(len(folded), taps_b * taps_c * channels, features)
    return folded.transpose(0, 2, 3, 1, 4).reshape(len(folded), taps_c * channels, taps_b * features)


def _unfold(d_folded: jax.Array, shape: Sequence[int], algorithm: Filtering, both: bool) -> jax.Array:
    """The kernel's gradient from that of its matrices, as `_kernel_products` gives them."""
    _, taps_b, taps_c, channels, features = shape
    if both:
        d_folded = d_folded.reshape(-1, taps_b, taps_c, channels, features)
        return jnp.tensordot(algorithm.kernel.T, d_folded, 1)
    d_folded = d_folded.reshape(-1, taps_c, channels, taps_b, features)[:, :, :, ::-1]
    return jnp.tensordot(algorithm.kernel.T, d_folded, 1).transpose(0, 3, 1, 2, 4)


def _kernel_products(
    gathered: Sequence[jax.Array], cotangent: jax.Array, taps_b: int, both: bool, dtype: DTypeLike
) -> jax.Array:
    """Return one block's share of the gradient of the kernel's matrices: one product per point, summed over voxels."""
    if both:
        return jnp.stack([_dot_rows(part, g.astype(dtype)) for part, g in zip(gathered, cotangent, strict=True)])
    rows = cotangent.shape[-3]
    products = []
    for part, g in zip(gathered, cotangent, strict=True):
        wide = jnp.pad(g, ((0, 0), (0, 0), (taps_b - 1, taps_b - 1), (0, 0), (0, 0)))
        # Row r of the gathered input meets cotangent rows r - t: taps in reverse order.
        products.append(_dot_rows(part, _gather(wide, -3, taps_b, rows + taps_b - 1).astype(dtype)))
    return jnp.stack(products)


def gathers_both(size_b: int, size_c: int) -> bool:
    """Return whether the taps of axis b are gathered as well, rather than scattered.

    Scattering makes products of `rows + taps_b - 1` rows for `rows` rows of output: a third too many for five taps on
    eight rows. Gathering copies the inputs of those products once per tap, which is little if axis c has one tap.
    """
    return size_b <= SHORT or size_c == 1


def block_shape(batch: int, tiles: int, size_b: int, size_c: int, taps_b: int) -> tuple[int, int, int]:
    """Return images, tiles of the filtered axis and rows of the scattered axis in a block; each divides its total."""
    rows = max(r for r in _divisors(size_b) if r == 1 or (r + taps_b - 1) * size_c <= ROWS)
    if rows < size_b and rows < 8:  # a long axis with no good divisor: the halo would cost more than the cache saves
        rows = size_b
    plane = (rows + taps_b - 1) * size_c
    images = max(n for n in _divisors(batch) if n == 1 or n * plane <= ROWS) if rows == size_b else 1
    whole = rows == size_b and images == batch
    if whole and tiles * images * plane <= ROWS:
        return images, tiles, rows
    group = max(g for g in _divisors(tiles) if g == 1 or g * images * plane <= ENOUGH) if whole else 1
    return images, group, rows


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _tiles(slab: jax.Array, group: int, step: int, reads: int) -> jax.Array:
    """`[a, ...]` to `[reads, group, ...]`: the j-th input of every tile; no copy where there is one tile."""
    if group == 1:
        return slab[:, None]
    return jnp.stack([lax.slice_in_dim(slab, j, j + (group - 1) * step + 1, step, axis=0) for j in range(reads)])


def _untile(y: jax.Array) -> jax.Array:
    """`[m, group, ...]` to `[group * m, ...]`."""
    return jnp.moveaxis(y, 0, 1).reshape(y.shape[0] * y.shape[1], *y.shape[2:])


def _combine(matrix: np.ndarray, parts: jax.Array) -> jax.Array:
    """Linear combinations over the first axis, as a product in float32."""
    if len(matrix) == matrix.shape[1] and (matrix == np.eye(len(matrix))).all():
        return parts
    flat = jnp.dot(jnp.asarray(matrix), parts.reshape(len(parts), -1))
    return flat.reshape(len(matrix), *parts.shape[1:])


def _gather(x: jax.Array, axis: int, taps: int, size: int) -> jax.Array:
    """Windows of `taps` along `axis`, as channels."""
    return jnp.concatenate([lax.slice_in_dim(x, t, t + size, axis=axis % x.ndim) for t in range(taps)], -1)


def _scatter(y: jax.Array, taps: int, rows: int) -> jax.Array:
    """Sum over taps t of the t-th group of channels, read t rows further on; rows are the third axis from the back."""
    features = y.shape[-1] // taps

    def part(t: int) -> jax.Array:
        shifted = lax.slice_in_dim(y, t, t + rows, axis=y.ndim - 3)
        return lax.slice_in_dim(shifted, t * features, (t + 1) * features, axis=-1)

    return functools.reduce(jnp.add, map(part, range(taps)))


def _dot(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    flat = rows.reshape(-1, rows.shape[-1])
    y = lax.dot_general(flat, matrix, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return y.reshape(*rows.shape[:-1], matrix.shape[-1])


def _dot_rows(left: jax.Array, right: jax.Array) -> jax.Array:
    left, right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
    return lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
