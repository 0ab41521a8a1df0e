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


class Norm(nn.Module):
    """The norm of the layout on its own, in front of a convolution."""

    layout: Layout

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch *spatial channels"]:
        """Return normalised features."""
        return norms.normalise(self, self.layout, x, 0.0)


class ConvBlock(nn.Module):
    """Convolution, norm or bias, nonlinearity and dropout, in this order.

    Dropout is off if the kernel is frozen, and in prediction. A norm subtracts the mean, so only `none` has a bias.
    With `first`, nonlinearity and norm come in front of the convolution, which then has a bias.

    Attributes:
        features: Output channels.
        kernel: Number of taps per axis.
        layout: Settings that the layers of the network share.
        strides: Strides of the convolution per axis; empty means 1.
        transposed: Whether the convolution is transposed, so that strides make the output finer.
        nonlinearity: `relu`; `leaky_relu` with a slope of 0.01 below 0; `prelu` with one slope per channel that starts
            at 0.25 (He et al. 2015, arXiv:1502.01852); or `none`, after which there is no dropout either.
        first: Whether nonlinearity and norm come first.
        normed: Whether the norm of the layout follows; otherwise there is a bias.
        centred: Whether strides are centred as in PyTorch; see `jaxseg.models.conv.conv`.
        kernel_init: Initialiser of the kernel.
        bias_init: Initial value of biases; with a norm they start at 0.
    """

    features: int
    kernel: tuple[int, ...]
    layout: Layout
    strides: tuple[int, ...] = ()
    transposed: bool = False
    nonlinearity: str = "relu"
    first: bool = False
    normed: bool = True
    centred: bool = False
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
        if self.first:
            y = norms.add_bias(self, self._convolve(self._prepare(x, low, factors), None, ()), self.bias_init)
            return self._drop(y)
        y = self._convolve(x, low, factors)
        if self.normed:
            y = norms.normalise(self, self.layout, y, self.bias_init)
        else:
            y = norms.add_bias(self, y, self.bias_init)
        y = y if residual is None else y + residual
        return y if self.nonlinearity == "none" else self._drop(self._activate(y))

    def _prepare(self, x: jax.Array | None, low: jax.Array | None, factors: Sequence[int]) -> jax.Array:
        """Return the channels of [upsampled, x] after the nonlinearity and the norm in front of the convolution."""
        given = [conv.upsample(low, factors)] if low is not None else []
        given += [x] if x is not None else []
        y = self._activate(jnp.concatenate(given, -1))
        return y if self.layout.settings.norm == "none" else Norm(self.layout, name="norm")(y)

    def _drop(self, y: jax.Array) -> jax.Array:
        if self.layout.train and self.layout.settings.dropout > 0 and not self.layout.is_frozen(self, "kernel"):
            y = dropout(y, self.make_rng("dropout"), self.layout.settings.dropout)
        return y

    def _convolve(self, x: jax.Array | None, low: jax.Array | None, factors: Sequence[int]) -> jax.Array:
        from_low = 0 if low is None else low.shape[-1]
        from_x = 0 if x is None else x.shape[-1]
        shape = (*self.kernel, from_low + from_x, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        operation = conv.conv_transpose if self.transposed else functools.partial(conv.conv, centred=self.centred)
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
        if self.nonlinearity == "leaky_relu":
            return nn.leaky_relu(y, 0.01)
        slope = self.param("slope", nn.initializers.constant(0.25), (self.features,))
        return jnp.where(y >= 0, y, norms.over_channels(slope.astype(y.dtype), y.ndim) * y)


def linear_up(features: int, strides: tuple[int, ...], layout: Layout) -> ConvBlock:
    """Make a transposed convolution `up` with a bias, with as many taps as its stride: no two voxels reach the same."""
    return ConvBlock(
        features, strides, layout, strides=strides, transposed=True, nonlinearity="none", normed=False, name="up"
    )


class DepthwiseUp(nn.Module):
    """Transposed convolution of each channel alone, with as many taps as its stride: voxels become blocks of voxels.

    Attributes:
        strides: Factors per axis by which the grid becomes finer.
    """

    strides: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "batch *coarse channels"]) -> Float[Array, "batch *out channels"]:
        """Return the products of every voxel with the kernel `[*taps, 1, channels]`, and the bias."""
        kernel = self.param("kernel", nn.initializers.ones, (*self.strides, 1, x.shape[-1]))
        # No two blocks of voxels overlap, so the kernel repeats itself over the finer grid.
        taps = jnp.tile(kernel[..., 0, :].astype(x.dtype), (*x.shape[1:-1], 1))
        return norms.add_bias(self, conv.upsample(x, self.strides) * taps[None], 0.0)


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
    x: Float[Array, "batch *spatial channels"], strides: Sequence[int], padding: Sequence[int] = ()
) -> Float[Array, "batch *coarse channels"]:
    """Return the maximum of each block of `strides` voxels; the spatial shape must be divisible by `strides`.

    Axes in `padding` are padded by one voxel at both ends where their stride is not 1, and may have any size: blocks of
    two then begin at voxel -1, as with `padding=1` in PyTorch.
    """
    if padding:
        ends = []
        for axis, (size, step) in enumerate(zip(x.shape[1:-1], strides, strict=True)):
            low = int(axis in padding and step > 1)
            ends.append((low, (size + 2 * low) // step * step - size - low, 0))  # what fills no block is cut
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    return _blocks(x, strides).max(tuple(range(2, 2 * x.ndim - 2, 2)))


def average_pool(
    x: Float[Array, "batch *spatial channels"], strides: Sequence[int]
) -> Float[Array, "batch *coarse channels"]:
    """Return the mean of each block of `strides` voxels; the spatial shape must be divisible by `strides`."""
    return _blocks(x, strides).mean(tuple(range(2, 2 * x.ndim - 2, 2)))


def centre_crop(
    x: Float[Array, "batch *spatial channels"], spatial: Sequence[int]
) -> Float[Array, "batch *cropped channels"]:
    """Crop the spatial axes to a shape, evenly at both ends; an odd surplus is cut by one more at the upper end."""
    low = [(size - wanted) // 2 for size, wanted in zip(x.shape[1:-1], spatial, strict=True)]
    return x[:, *(slice(first, first + size) for first, size in zip(low, spatial, strict=True)), :]


def average_pyramid(
    image: Float[Array, "batch *spatial channels"], strides: Sequence[Sequence[int]]
) -> tuple[Float[Array, "batch *coarse channels"], ...]:
    """Return block means of an image on the grid of every level, finest first: an encoder without weights."""
    levels = [image]
    for step in strides:
        levels.append(average_pool(levels[-1], step))
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
    def __call__(
        self, x: Float[Array, "batch *spatial width"], train: bool = False
    ) -> Float[Array, "batch *spatial classes"]:
        """Return logits in float32, the same in training."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        precision = self.layout.product_precision
        logits = jnp.dot(x, kernel.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32)
        return logits + norms.over_channels(bias, x.ndim)
