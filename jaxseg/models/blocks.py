"""The parts that the networks are built from."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxseg.models import conv, norms
from jaxseg.models.layout import Layout

ACTIVATIONS = "activations"
"""Name of the collection that holds the features of every level while it is mutable."""


def record(module: nn.Module, name: str, value: jax.Array) -> None:
    """Store `value` under `activations`, at the module's own path followed by `name`, if that collection is mutable.

    `Module.sow` cannot do this: a submodule of the same name reserves the name in every collection.
    """
    if module.is_mutable_collection(ACTIVATIONS) and not module.is_initializing():
        module.put_variable(ACTIVATIONS, name, value)


class ConvBlock(nn.Module):
    """Convolution, norm or bias, nonlinearity and dropout, in this order.

    Dropout is off if the kernel is frozen, and in prediction. A norm subtracts the mean, so only `none` has a bias.

    Attributes:
        features: Output channels.
        kernel: Number of taps per axis.
        layout: Settings that the layers of the network share.
        strides: Strides of the convolution per axis; empty means 1.
        transposed: Whether the convolution is transposed, so that strides make the output finer.
        nonlinearity: `relu`, or `prelu` with one slope per channel that starts at 0.25 (He et al. 2015,
            arXiv:1502.01852).
        kernel_init: Initialiser of the kernel.
        bias_init: Initial value of biases; with a norm they start at 0.
    """

    features: int
    kernel: tuple[int, ...]
    layout: Layout
    strides: tuple[int, ...] = ()
    transposed: bool = False
    nonlinearity: str = "relu"
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    bias_init: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"] | None,
        low: Float[Array, "batch *coarse coarse_channels"] | None = None,
        factors: Sequence[int] = (),
        residual: Float[Array, "batch *out features"] | None = None,
    ) -> Float[Array, "batch *out features"]:
        """Return features of `x`, of `low` upsampled to its grid by `factors`, or of the channels of [upsampled, x].

        `residual` is added before the nonlinearity.
        """
        y = self._convolve(x, low, factors)
        y = norms.normalise(self, self.layout, y, self.bias_init)
        y = self._activate(y if residual is None else y + residual)
        if self.layout.train and self.layout.settings.dropout > 0 and not self.layout.is_frozen(self, "kernel"):
            y = dropout(y, self.make_rng("dropout"), self.layout.settings.dropout)
        return y

    def _convolve(self, x: jax.Array | None, low: jax.Array | None, factors: Sequence[int]) -> jax.Array:
        from_low = 0 if low is None else low.shape[-1]
        from_x = 0 if x is None else x.shape[-1]
        shape = (*self.kernel, from_low + from_x, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        operation = conv.conv_transpose if self.transposed else conv.conv
        how = self.layout.convolution
        terms = []
        if x is not None:
            terms.append(operation(x, kernel[..., from_low:, :], strides=self.strides, **how))
        if low is not None:
            terms.append(conv.conv_upsampled(low, kernel[..., :from_low, :], factors=factors, **how))
        return functools.reduce(jnp.add, terms)

    def _activate(self, y: jax.Array) -> jax.Array:
        if self.nonlinearity == "relu":
            return nn.relu(y)
        slope = self.param("slope", nn.initializers.constant(0.25), (self.features,))
        return jnp.where(y >= 0, y, norms.over_channels(slope.astype(y.dtype), y.ndim) * y)


def dropout(x: Float[Array, "*any"], key: Key[Array, ""], rate: float) -> Float[Array, "*any"]:
    """Zero each element with probability `rate` (to 16 bits) and scale the others so that the mean is unchanged.

    Source: Srivastava et al. 2014. An element takes half a random word, since drawing words is the cost of dropout on
        CPU.
    """
    kept = round((1.0 - rate) * 2**16)
    words = jax.random.bits(key, (-(-x.size // 2),), jnp.uint32)
    halves = lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(halves < kept, x * (2**16 / kept), jnp.zeros((), x.dtype))


def max_pool(
    x: Float[Array, "batch *spatial channels"], strides: Sequence[int]
) -> Float[Array, "batch *coarse channels"]:
    """Return the maximum of each block of `strides` voxels; the spatial shape must be divisible by `strides`."""
    return _blocks(x, strides).max(tuple(range(2, 2 * x.ndim - 2, 2)))


def average_pyramid(
    image: Float[Array, "batch *spatial channels"], strides: Sequence[Sequence[int]]
) -> tuple[Float[Array, "batch *coarse channels"], ...]:
    """Return block means of an image on the grid of every level, finest first: an encoder without weights."""
    levels = [image]
    for step in strides:
        levels.append(_blocks(levels[-1], step).mean(tuple(range(2, 2 * image.ndim - 2, 2))))
    return tuple(levels)


def _blocks(x: jax.Array, strides: Sequence[int]) -> jax.Array:
    """`[batch, coarse_0, stride_0, coarse_1, stride_1, ..., channels]`."""
    coarse = [n // s for n, s in zip(x.shape[1:-1], strides, strict=True)]
    return x.reshape(x.shape[0], *(side for pair in zip(coarse, strides, strict=True) for side in pair), x.shape[-1])


class Head(nn.Module):
    """Head: a convolution of one tap to the classes, in float32."""

    classes: int
    layout: Layout

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial width"]) -> Float[Array, "batch *spatial classes"]:
        """Return logits in float32."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        precision = self.layout.product_precision
        logits = jnp.dot(x, kernel.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32)
        return logits + norms.over_channels(bias, x.ndim)
