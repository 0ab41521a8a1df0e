"""The convolution that every network uses: SAME padding, channels last, any number of spatial axes.

XLA's own convolution is best on TPU. On CPU its gradients are several times slower than PyTorch's, and up to 70 times
inside a compiled loop; there, each operation is written as matrix products with its own gradient. On GPU it is slow
when it is mapped over runs; there, several runs are joined. `form` chooses: `native` (XLA), `products`, `joined`, or
`auto` (by the backend at trace time). `form_for` names the form of any platform, for programs that are lowered for a
platform other than that of the process.

All forms are the same function up to rounding. All but `native` have a custom reverse-mode gradient: forward-mode
differentiation (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) needs `native`. The gradient of `products` is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxseg.models.conv import joined, products, xla

FORMS = ("auto", "native", "products", "joined")
_FORM_OF_PLATFORM = {"cpu": "products", "gpu": "joined", "cuda": "joined", "rocm": "joined", "tpu": "native"}


def form_for(platform: str) -> str:
    """Return the form that `auto` means on a platform, by its name as a backend (`gpu`) or as a target (`cuda`)."""
    return _FORM_OF_PLATFORM.get(platform, "native")


def resolve_form(form: str) -> str:
    """Return `form` itself, or the form that `auto` means on the default backend.

    Raises:
        ValueError: `form` is none of `FORMS`.
    """
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}; allowed are {', '.join(FORMS)}")
    if form != "auto":
        return form
    return form_for(jax.default_backend())


def conv(
    x: Float[Array, "batch *spatial channels"],
    kernel: Float[Array, "*taps channels features"],
    *,
    strides: Sequence[int] = (),
    dtype: DTypeLike | None = None,
    form: str = "auto",
    precision: str | None = None,
    centred: bool = False,
) -> Float[Array, "batch *out features"]:
    """Compute a SAME convolution as `lax.conv_general_dilated` defines it; `out` is ceil(spatial / strides).

    Args:
        x: Input; the output has its dtype.
        kernel: Kernel with the taps of every pair of channels.
        strides: Strides per axis; empty means 1 everywhere.
        dtype: Dtype to which the operands of products may be rounded (XLA can keep more); None for that of the input.
        form: One of `FORMS`.
        precision: Precision of XLA's convolution, as in `lax.conv_general_dilated`; not used by the products form.
        centred: Whether output `i` is centred on input `stride * i`, as in PyTorch with a padding of (taps - 1) // 2.
            SAME pads strided convolutions less below; without strides the two are the same.

    Raises:
        ValueError: Ranks or channels do not fit, or the form is unknown.
    """
    strides = _check(x, kernel, strides, "strides")
    dtype = dtype or x.dtype
    form = resolve_form(form)
    if form != "products":
        sizes = zip(x.shape[1:-1], kernel.shape, strides, strict=False)
        padding = tuple(products.centred_padding(*size) for size in sizes) if centred else "SAME"
        return _by_xla(x, kernel, xla.Geometry(strides, padding, (1,) * len(strides), precision), dtype, form)
    return products.conv(x, kernel, strides, dtype, centred)


def conv_transpose(
    x: Float[Array, "batch *spatial channels"],
    kernel: Float[Array, "*taps channels features"],
    *,
    strides: Sequence[int] = (),
    dtype: DTypeLike | None = None,
    form: str = "auto",
    precision: str | None = None,
) -> Float[Array, "batch *out features"]:
    """Compute a transposed SAME convolution as `lax.conv_transpose` defines it; `out` is spatial * strides.

    Args:
        x: Input; the output has its dtype.
        kernel: Taps of every channel pair.
        strides: Per axis; empty means 1 everywhere.
        dtype: As in `conv`.
        form: As in `conv`.
        precision: As in `conv`.

    Raises:
        ValueError: Ranks or channels do not fit, or the form is unknown.
    """
    strides = _check(x, kernel, strides, "strides")
    padding = [transpose_padding(k, s) for k, s in zip(kernel.shape, strides, strict=False)]
    dtype, form = dtype or x.dtype, resolve_form(form)
    if form != "products":
        geometry = xla.Geometry((1,) * len(strides), tuple(padding), strides, precision)
        return _by_xla(x, kernel, geometry, dtype, form)
    folds = [_transpose_fold(k, s, lo) for (k, s, (lo, _)) in zip(kernel.shape, strides, padding, strict=False)]
    return products.subpixel(x, kernel, folds, dtype)


def conv_upsampled(
    low: Float[Array, "batch *coarse channels"],
    kernel: Float[Array, "*taps channels features"],
    *,
    factors: Sequence[int],
    dtype: DTypeLike | None = None,
    form: str = "auto",
    precision: str | None = None,
) -> Float[Array, "batch *out features"]:
    """Compute `conv(upsample_nearest(low, factors), kernel)` without the upsampled tensor; `out` is coarse * factors.

    All outputs with the same offset modulo the factor see the low-resolution voxels through one smaller kernel: at
    factor 2, a 3^n kernel becomes 2^n kernels of 2^n taps, which in 3-D takes 64 products per coarse voxel instead of
    216.

    Args:
        low: Coarse input; the output has its dtype.
        kernel: Kernel of the convolution at full resolution.
        factors: Upsampling factors per axis.
        dtype: As in `conv`.
        form: As in `conv`.
        precision: As in `conv`.

    Raises:
        ValueError: Ranks or channels do not fit, or the form is unknown.
    """
    factors = _check(low, kernel, factors, "factors")
    form = resolve_form(form)
    if form != "products":
        return conv(upsample(low, factors), kernel, dtype=dtype, form=form, precision=precision)
    folds = [_upsample_fold(k, s) for k, s in zip(kernel.shape, factors, strict=False)]
    return products.subpixel(low, kernel, folds, dtype or low.dtype)


def upsample(
    low: Float[Array, "batch *coarse channels"], factors: Sequence[int]
) -> Float[Array, "batch *out channels"]:
    """Upsample by `factors` per axis to the nearest neighbour."""
    grown = [side for size, factor in zip(low.shape[1:-1], factors, strict=True) for side in (size, factor)]
    out = [size * factor for size, factor in zip(low.shape[1:-1], factors, strict=True)]
    batch, channels = low.shape[0], low.shape[-1]
    spread = (batch, *grown, channels)
    return lax.broadcast_in_dim(low, spread, (0, *range(1, 2 * len(out), 2), len(spread) - 1)).reshape(
        batch, *out, channels
    )


def transpose_padding(taps: int, stride: int) -> tuple[int, int]:
    """Return the padding, below and above, of the dilated input of `lax.conv_transpose` for SAME."""
    total = taps + stride - 2
    low = taps - 1 if stride > taps - 1 else math.ceil(total / 2)
    return low, total - low


def _check(x: jax.Array, kernel: jax.Array, factors: Sequence[int], name: str) -> tuple[int, ...]:
    ndim = x.ndim - 2
    factors = tuple(factors) or (1,) * ndim
    if kernel.ndim != x.ndim or len(factors) != ndim:
        raise ValueError(
            f"an input of shape {x.shape} has {ndim} spatial axes: got a kernel of shape {kernel.shape} and "
            f"{name} {factors}; the kernel needs {ndim} axes of taps, then channels and features"
        )
    if kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"input channels: the kernel {kernel.shape} takes {kernel.shape[-2]}, the input has {x.shape[-1]}"
        )
    return factors


def _by_xla(x: jax.Array, kernel: jax.Array, geometry: xla.Geometry, dtype: DTypeLike, form: str) -> jax.Array:
    operation = joined.conv if form == "joined" else xla.conv
    return operation(x.astype(dtype), kernel.astype(dtype), geometry).astype(x.dtype)


def _upsample_fold(taps: int, factor: int) -> products.Fold:
    """Tap t of output `factor * i + p` reads coarse voxel `i + floor((p + t - low) / factor)`."""
    low = (taps - 1) // 2
    return products.Fold.of([{t: (p + t - low) // factor for t in range(taps)} for p in range(factor)], taps)


def _transpose_fold(taps: int, stride: int, low: int) -> products.Fold:
    """Tap t of output `stride * i + p` reads voxel `i + (p + t - low) / stride` where that is whole."""
    reads = [{t: (p + t - low) // stride for t in range(taps) if (p + t - low) % stride == 0} for p in range(stride)]
    return products.Fold.of(reads, taps)
