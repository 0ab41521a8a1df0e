"""The parts that the networks are built from."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.models import conv

ACTIVATIONS = "activations"
"""Collection that holds the features of every level while it is mutable."""


def record(module: nn.Module, name: str, value: jax.Array) -> None:
    """Put `value` under `activations`, at the module's own path followed by `name`, when that is asked for.

    `Module.sow` cannot: a submodule of the same name takes the name for every collection.
    """
    if module.is_mutable_collection(ACTIVATIONS) and not module.is_initializing():
        module.put_variable(ACTIVATIONS, name, value)


class ConvNormRelu(nn.Module):
    """Convolution, instance norm (or a bias) and ReLU; over the channels of [upsampled, x] when `low` is given.

    Attributes:
        features: Output channels.
        kernel: Taps per axis.
        norm: `instance` or `none`. A norm subtracts the mean, so only `none` has a bias.
        form: Of the convolution.
        precision: What the operands of products are rounded to.
    """

    features: int
    kernel: tuple[int, ...]
    norm: str
    form: str = "auto"
    precision: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"] | None,
        low: Float[Array, "batch *coarse coarse_channels"] | None = None,
        factors: Sequence[int] = (),
    ) -> Float[Array, "batch *spatial features"]:
        """Either input may be missing; `factors` upsample `low` to the grid of `x`."""
        from_low = 0 if low is None else low.shape[-1]
        from_x = 0 if x is None else x.shape[-1]
        shape = (*self.kernel, from_low + from_x, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        terms = []
        if x is not None:
            terms.append(conv.conv(x, kernel[..., from_low:, :], form=self.form, dtype=self.precision))
        if low is not None:
            terms.append(
                conv.conv_upsampled(
                    low, kernel[..., :from_low, :], factors=factors, form=self.form, dtype=self.precision
                )
            )
        y = functools.reduce(jnp.add, terms)
        if self.norm == "none":
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            return nn.relu(y + lax.expand_dims(bias.astype(y.dtype), tuple(range(y.ndim - 1))))
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return nn.relu(instance_norm(y, scale, bias))


def instance_norm(
    x: Float[Array, "batch *spatial channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float = 1e-5,
) -> Float[Array, "batch *spatial channels"]:
    """Each channel of each image at mean 0 and variance 1, then scaled and shifted.

    Source: Ulyanov et al. 2016, arXiv:1607.08022. Statistics are float32 whatever the dtype of `x`; the variance is
    the biased one.
    """
    axes = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.square(wide - mean).mean(axes, keepdims=True)
    factor = lax.rsqrt(variance + epsilon) * lax.expand_dims(scale, tuple(range(x.ndim - 1)))
    return ((wide - mean) * factor + lax.expand_dims(bias, tuple(range(x.ndim - 1)))).astype(x.dtype)


def max_pool(
    x: Float[Array, "batch *spatial channels"], strides: Sequence[int]
) -> Float[Array, "batch *coarse channels"]:
    """The maximum of each block of `strides` voxels; the spatial shape must be divisible by `strides`."""
    coarse = [n // s for n, s in zip(x.shape[1:-1], strides, strict=True)]
    blocks = [side for pair in zip(coarse, strides, strict=True) for side in pair]
    return x.reshape(x.shape[0], *blocks, x.shape[-1]).max(tuple(range(2, 2 + 2 * len(coarse), 2)))
