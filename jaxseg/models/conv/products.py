"""Convolutions as matrix products with their own gradients. The public functions are in `jaxseg.models.conv`.

Once all voxels that an output reads are its channels, a convolution is a single product: `[outputs, taps * channels]`
by `[taps * channels, features]`. Gathering every tap of a whole image takes as many copies of it as there are taps,
which costs more than the product; therefore this is done for small inputs only. Large inputs go through `winograd`,
block by block, and convolutions between two resolutions (transposed, upsampled, and the gradient of a strided one) go
through `subpixel`, one position of the first axis at a time. Either way, everything between two products stays in
cache.
"""

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
from jax.typing import DTypeLike

from jaxseg.models.conv import winograd

NARROW = 64
"""Input channels times taps up to which one gather of all taps is faster than blocks: an image's first convolution."""
FEW = 256
"""Voxels of a batch up to which one gather of all taps is faster than blocks: kernels are then larger than what they
read, and transforming them costs more than filtering saves."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """Effect of one axis of a kernel on a coarse grid when the output is `factor` times finer.

    The finer voxel `factor * j + first_output + q`, for q < factor, reads the coarse voxels `j + first_input + a` for a
    < `window`, with the kernel's taps summed by `matrix[q, a, tap]`. Thus all finer voxels of one j share a window and
    are adjacent.
    """

    first_output: int
    first_input: int
    window: int
    matrix: tuple[tuple[tuple[float, ...], ...], ...]

    @property
    def factor(self) -> int:
        """Number of finer voxels per coarse voxel."""
        return len(self.matrix)

    @staticmethod
    def of(reads: Sequence[dict[int, int]], taps: int) -> Fold:
        """Build from the reads of finer voxel `factor * i + p`: for every p, the coarse voxel `i + offset` by tap."""
        factor = len(reads)
        candidates = []
        for first in range(1 - factor, 1):
            # Finer voxel factor * j + first + q is parity p of coarse voxel i = j - shift.
            places = [divmod(first + q, factor) for q in range(factor)]
            read = [{t: offset + shift for t, offset in reads[p].items()} for shift, p in places]
            offsets = [offset for taps_read in read for offset in taps_read.values()] or [0]
            candidates.append((max(offsets) - min(offsets) + 1, -first, min(offsets), read))
        window, minus_first, first_input, read = min(candidates, key=lambda c: c[:2])
        matrix = np.zeros((factor, window, taps), np.float32)
        for q, taps_read in enumerate(read):
            for tap, offset in taps_read.items():
                matrix[q, offset - first_input, tap] += 1
        return Fold(-minus_first, first_input, window, tuple(tuple(map(tuple, m.tolist())) for m in matrix))


def same_padding(size: int, taps: int, stride: int) -> tuple[int, int]:
    """Return how XLA pads an axis for SAME, below and above."""
    total = max((-(-size // stride) - 1) * stride + taps - size, 0)
    return total // 2, total - total // 2


def centred_padding(size: int, taps: int, stride: int) -> tuple[int, int]:
    """Return the padding of an axis with which output `i` is centred on input `stride * i`; also ceil(size / stride).

    With stride 1 this is the padding of SAME. With larger ones, SAME pads less below: for 3 taps and stride 2 its
    outputs read the inputs 2 i to 2 i + 2, and centred ones 2 i - 1 to 2 i + 1.
    """
    low = (taps - 1) // 2
    return low, max((-(-size // stride) - 1) * stride + taps - size - low, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], dtype: DTypeLike, centred: bool = False
) -> jax.Array:
    """Compute a padded convolution: by blocks if `_blocked` says so, otherwise as one product of gathered taps."""
    spatial = x.shape[1:-1]
    kernel = _reachable(x, kernel, strides)
    if _blocked(x, kernel, strides):
        x, kernel = (x, kernel) if x.ndim == 5 else (x[:, :, :, None], kernel[:, :, None])
        y, _ = winograd.sweep(x, kernel, dtype=dtype)
        return y.reshape(y.shape[0], *spatial, y.shape[-1])
    gathered, _ = _gather_padded(x, kernel.shape[:-2], strides, centred)
    return _dot(gathered, kernel.reshape(-1, kernel.shape[-1]), dtype)


def _conv_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], dtype: DTypeLike, centred: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv(x, kernel, strides, dtype, centred), (x, kernel)


def _conv_backward(
    strides: tuple[int, ...],
    dtype: DTypeLike,
    centred: bool,
    residuals: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, whole = residuals
    kernel = _reachable(x, whole, strides)
    d_x, d_kernel = _gradients(x, kernel, g, strides, dtype, centred)
    d_kernel = d_kernel.astype(whole.dtype)
    if kernel.shape != whole.shape:  # taps that meet nothing have no gradient
        start = [(every - near) // 2 for every, near in zip(whole.shape, kernel.shape, strict=True)]
        # The barrier keeps XLA from turning this into a pad, which takes 30 ms for 33 MB.
        zeros = lax.optimization_barrier(jnp.zeros_like(whole))
        d_kernel = lax.dynamic_update_slice(zeros, d_kernel, start)
    return d_x, d_kernel


conv.defvjp(_conv_forward, _conv_backward)


def _gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, strides: tuple[int, ...], dtype: DTypeLike, centred: bool
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `sum(conv(x, kernel) * g)`, the second in float32."""
    taps = kernel.shape[:-2]
    if _blocked(x, kernel, strides):
        # dx is the convolution of g with the flipped kernel, and is linear in it: its gradient in that kernel at
        # cotangent x is the flipped dk. Both share one transform and one gather of g.
        flipped, shape = jnp.flip(kernel, range(len(taps))).swapaxes(-1, -2), x.shape
        if x.ndim == 4:
            x, g, flipped = x[:, :, None], g[:, :, None], flipped[:, None]
        d_x, d_flipped = winograd.sweep(g, flipped, x, dtype)
        assert d_flipped is not None
        d_kernel = jnp.flip(d_flipped.reshape(*taps, *d_flipped.shape[-2:]), range(len(taps))).swapaxes(-1, -2)
        return d_x.reshape(shape), d_kernel
    gathered, padding = _gather_padded(x, taps, strides, centred)
    d_kernel = _dot_rows(gathered, g, dtype).reshape(kernel.shape)
    if _centred(kernel, strides) and math.prod(x.shape[:-1]) <= FEW:  # the kernel as it is: moving it is what costs
        d_gathered = _dot(g, kernel.reshape(-1, kernel.shape[-1]).T, dtype)
        return _add_taps(d_gathered.reshape(*g.shape[:-1], *taps, x.shape[-1])), d_kernel
    # dx[s * i + p] = sum over taps t of g[(s * i + p + low - t) / s] k[t]^T, where that is whole
    folds = [_gradient_fold(k, s, low) for k, s, (low, _) in zip(taps, strides, padding, strict=True)]
    d_x = subpixel(g, jnp.swapaxes(kernel, -1, -2), folds, dtype)
    return lax.slice(d_x, (0,) * x.ndim, x.shape), d_kernel


def _centred(kernel: jax.Array, strides: tuple[int, ...]) -> bool:
    return set(strides) == {1} and all(k % 2 for k in kernel.shape[:-2])


def _reachable(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """The taps that meet the image somewhere: 2 n - 1 on an axis of n voxels, so three of five on two voxels."""
    if not _centred(kernel, strides):
        return kernel
    far = [max(k // 2 - (n - 1), 0) for k, n in zip(kernel.shape, x.shape[1:-1], strict=False)]
    return kernel[tuple(slice(cut, k - cut) for k, cut in zip(kernel.shape, far, strict=False))]


def _blocked(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...]) -> bool:
    taps = kernel.shape[:-2]
    if not _centred(kernel, strides) or len(taps) not in (2, 3):
        return False
    return x.shape[-1] * math.prod(taps) > NARROW and math.prod(x.shape[:-1]) > FEW


def _gather_padded(
    x: jax.Array, taps: Sequence[int], strides: Sequence[int], centred: bool
) -> tuple[jax.Array, list[tuple[int, int]]]:
    """Gather the inputs of every output of a padded convolution as channels; also return the padding used."""
    pad = centred_padding if centred else same_padding
    padding = [pad(n, k, s) for n, k, s in zip(x.shape[1:-1], taps, strides, strict=True)]
    out = [-(-n // s) for n, s in zip(x.shape[1:-1], strides, strict=True)]
    return gather_taps(_pad(x, padding), taps, out, strides), padding


def _add_taps(d_gathered: jax.Array) -> jax.Array:
    """The transpose of gathering centred taps: `[batch, *spatial, *taps, channels]` to `[batch, *spatial, channels]`.

    Voxel by voxel of each axis: XLA's pads, which would shift a whole axis, take ten times as long.
    """
    ndim = (d_gathered.ndim - 2) // 2
    for axis in range(1, ndim + 1):
        size, taps = d_gathered.shape[axis], d_gathered.shape[ndim + 1]
        sums = []
        for i in range(size):
            reads = [(t, i + taps // 2 - t) for t in range(taps) if 0 <= i + taps // 2 - t < size]
            # Tap axes that have been summed are gone, so the next one is always the first that is left.
            terms = [
                lax.index_in_dim(lax.index_in_dim(d_gathered, t, ndim + 1, keepdims=False), j, axis) for t, j in reads
            ]
            sums.append(functools.reduce(jnp.add, terms))
        d_gathered = jnp.concatenate(sums, axis)
    return d_gathered


def subpixel(low: jax.Array, kernel: jax.Array, folds: Sequence[Fold], dtype: DTypeLike) -> jax.Array:
    """Compute the convolution that `folds` describe: one product gives all finer voxels of a coarse one."""
    folded = kernel
    for fold in folds:  # each axis of taps becomes (finer voxel, window) at the back, in axis order
        folded = jnp.tensordot(folded, jnp.asarray(fold.matrix, kernel.dtype), ((0,), (2,)))
    ndim = len(folds)
    # from [channels, features, q0, a0, q1, a1, ...] to [a..., channels, q..., features]
    order = (*range(3, 3 + 2 * ndim, 2), 0, *range(2, 2 + 2 * ndim, 2), 1)
    folded = folded.transpose(order).reshape(math.prod(f.window for f in folds) * low.shape[-1], -1)
    return _subpixel(low, folded, tuple(folds), dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _subpixel(low: jax.Array, folded: jax.Array, folds: tuple[Fold, ...], dtype: DTypeLike) -> jax.Array:
    """One product for every position along the first spatial axis, so that what lies between stays in cache."""
    # Position j of an axis is one window of coarse voxels and the `factor` finer voxels that read it. The loop runs
    # over positions of the first axis; those of the other axes are rows. A product gives
    # [batch, *positions, *factors, features], and moving each factor beside its position makes the finer grid.
    batch, *coarse, _ = low.shape
    positions, windows = _positions(low, folds), _window_planes(low, folds)
    first, *rest = folds
    features = folded.shape[-1] // math.prod(f.factor for f in folds)
    crop = [(-f.first_output, n * f.factor - f.first_output) for n, f in zip(coarse[1:], rest, strict=True)]

    def position(j: jax.Array, fine: jax.Array) -> jax.Array:
        y = _dot(_window_rows(windows, j, folds, positions), folded, dtype)
        y = y.reshape(batch, *positions[1:], *(f.factor for f in folds), features)
        n = len(rest)
        pairs = [axis for i in range(n) for axis in (1 + i, 2 + n + i)]  # of [batch, *rest, first, *factors, features]
        y = y.transpose(1 + n, 0, *pairs, 2 + 2 * n)
        y = y.reshape(first.factor, batch, *(p * f.factor for p, f in zip(positions[1:], rest, strict=True)), features)
        y = y[(slice(None), slice(None), *(slice(*bounds) for bounds in crop))]
        return lax.dynamic_update_slice_in_dim(fine, y, j * first.factor, axis=0)

    shape = (positions[0] * first.factor, batch, *(b - a for a, b in crop), features)
    fine = lax.fori_loop(0, positions[0], position, jnp.zeros(shape, low.dtype))
    fine = lax.slice_in_dim(fine, -first.first_output, coarse[0] * first.factor - first.first_output, axis=0)
    return jnp.moveaxis(fine, 0, 1)


def _subpixel_forward(
    low: jax.Array, folded: jax.Array, folds: tuple[Fold, ...], dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _subpixel(low, folded, folds, dtype), (low, folded)


def _subpixel_backward(
    folds: tuple[Fold, ...], dtype: DTypeLike, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # The forward pass in reverse, in one loop: the cotangent of a position's finer voxels, as rows, gives its share of
    # the kernel's gradient (windows^T rows) and of the input's (rows kernel^T). A coarse voxel lies in several windows,
    # so the latter are added up: along the first axis in the carry, along the others by shifts.
    low, folded = residuals
    batch, *coarse, channels = low.shape
    positions, windows = _positions(low, folds), _window_planes(low, folds)
    first, *rest = folds
    padding = [
        (-f.first_output, p * f.factor - n * f.factor + f.first_output)
        for n, p, f in zip(coarse, positions, folds, strict=True)
    ]
    fine = jnp.pad(jnp.moveaxis(g, 1, 0), (padding[0], *((0, 0),) * (g.ndim - 1)))
    # Coarse voxel i was read by position j as window a = i - j - first_input.
    spread = [
        (max(0, f.first_input + f.window - 1), max(0, n - f.first_input - p))
        for n, p, f in zip(coarse[1:], positions[1:], rest, strict=True)
    ]

    def position(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        planes = lax.dynamic_slice_in_dim(fine, j * first.factor, first.factor, axis=0)
        planes = _pad(planes, [(0, 0), *padding[1:]])
        pairs = [side for p, f in zip(positions[1:], rest, strict=True) for side in (p, f.factor)]
        n = len(rest)
        planes = planes.reshape(first.factor, batch, *pairs, g.shape[-1])
        planes = planes.transpose(1, *range(2, 2 + 2 * n, 2), 0, *range(3, 3 + 2 * n, 2), 2 + 2 * n)
        rows = planes.reshape(batch, *positions[1:], -1)
        d_folded = carry[1] + _dot_rows(_window_rows(windows, j, folds, positions), rows, dtype)
        d_windows = _dot(rows, folded.T, dtype).reshape(
            batch, *positions[1:], first.window, *(f.window for f in rest), channels
        )
        d_windows = jnp.pad(d_windows, ((0, 0), *spread, *((0, 0),) * (n + 2)))

        def read_as(window: tuple[int, ...]) -> jax.Array:
            begin = [before - f.first_input - a for (before, _), f, a in zip(spread, rest, window, strict=True)]
            ranges = (slice(b, b + size) for b, size in zip(begin, coarse[1:], strict=True))
            return d_windows[(slice(None), *ranges, slice(None), *window)]

        d_planes = functools.reduce(jnp.add, map(read_as, itertools.product(*(range(f.window) for f in rest))))
        d_planes = jnp.moveaxis(d_planes, -2, 0)
        d_planes += lax.dynamic_slice_in_dim(carry[0], j, first.window, axis=0)
        return lax.dynamic_update_slice_in_dim(carry[0], d_planes, j, axis=0), d_folded

    start = (
        jnp.zeros((positions[0] + first.window - 1, batch, *coarse[1:], channels), low.dtype),
        jnp.zeros(folded.shape, jnp.float32),
    )
    d_low, d_folded = lax.fori_loop(0, positions[0], position, start)
    d_low = _pad(jnp.moveaxis(d_low, 0, 1), [_read_range(coarse[0], first, positions[0]), *((0, 0),) * len(rest)])
    return d_low, d_folded.astype(folded.dtype)


_subpixel.defvjp(_subpixel_forward, _subpixel_backward)


def _positions(low: jax.Array, folds: Sequence[Fold]) -> list[int]:
    """Windows that cover each axis: one more than coarse voxels where a window's finer voxels begin before its own."""
    return [n + (f.first_output < 0) for n, f in zip(low.shape[1:-1], folds, strict=True)]


def _read_range(size: int, fold: Fold, positions: int) -> tuple[int, int]:
    """Cropping (negative: padding) that leads from the coarse voxels that windows read to the `size` that exist."""
    return fold.first_input, size - fold.first_input - (positions + fold.window - 1)


def _window_planes(low: jax.Array, folds: Sequence[Fold]) -> jax.Array:
    """The coarse voxels that windows read, zeros outside the image, the first spatial axis in front."""
    ranges = [_read_range(n, f, p) for n, f, p in zip(low.shape[1:-1], folds, _positions(low, folds), strict=True)]
    return jnp.moveaxis(_pad(low, [(-a, -b) for a, b in ranges]), 1, 0)


def _window_rows(planes: jax.Array, j: jax.Array, folds: Sequence[Fold], positions: Sequence[int]) -> jax.Array:
    """The windows at position j of the first axis, as channels: `[batch, *positions[1:], windows * channels]`."""
    near = lax.dynamic_slice_in_dim(planes, j, folds[0].window, axis=0)
    taps = [f.window for f in folds[1:]]
    return jnp.concatenate([gather_taps(plane, taps, positions[1:], (1,) * len(taps)) for plane in near], -1)


def gather_taps(padded: jax.Array, taps: Sequence[int], out: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """Return the windows that each output reads, as channels: `[batch, *out, prod(taps) * channels]`."""
    slices = []
    for offset in itertools.product(*map(range, taps)):
        end = [o + (n - 1) * s + 1 for o, n, s in zip(offset, out, strides, strict=True)]
        bounds = (0, *offset, 0), (padded.shape[0], *end, padded.shape[-1])
        slices.append(lax.slice(padded, *bounds, (1, *strides, 1)))
    return jnp.concatenate(slices, -1)


def _gradient_fold(taps: int, stride: int, low: int) -> Fold:
    reads = [{t: (p + low - t) // stride for t in range(taps) if (p + low - t) % stride == 0} for p in range(stride)]
    return Fold.of(reads, taps)


def _pad(x: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Zero padding; a negative amount crops."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in padding), (0, 0, 0)])


def _dot(rows: jax.Array, matrix: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Products of operands rounded to `dtype`, summed in float32; the result has the dtype of `rows`."""
    axes = (((rows.ndim - 1,), (0,)), ((), ()))
    y = lax.dot_general(rows.astype(dtype), matrix.astype(dtype), axes, preferred_element_type=jnp.float32)
    return y.astype(rows.dtype)


def _dot_rows(left: jax.Array, right: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Sum over all positions of the outer products of operands rounded to `dtype`, in float32."""
    axes = tuple(range(left.ndim - 1))
    left, right = left.astype(dtype), right.astype(dtype)
    return lax.dot_general(left, right, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)
