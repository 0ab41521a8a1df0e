"""The densely connected network of Karimi and colleagues, for 2-D and 3-D images.

Every encoder level reads the image and all finer levels through strided convolutions of its own, the decoder is that
of a U-Net, and both refine their features by residual units with dense sums. The wiring follows the description in
Karimi, Warfield and Gholipour 2020, arXiv:2006.00356; `docs/networks.md` gives it in full.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models import blocks, conv, norms
from jaxseg.models.layout import Layout
from jaxseg.models.network import Network

BIAS = 0.001
"""Initial value of every bias."""


def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from a normal of sd sqrt(2 / fan-in), truncated at two sd; the draws have 0.88 of that sd, uncorrected."""
    fan_in = functools.reduce(int.__mul__, shape[:-1])
    return nn.initializers.truncated_normal(stddev=(2.0 / fan_in) ** 0.5)(key, shape, dtype)


block = functools.partial(blocks.ConvBlock, kernel_init=kernel_init, bias_init=BIAS)


def refine(conv_block: Callable[..., nn.Module], x: Float[Array, "batch *spatial width"]) -> jax.Array:
    """Apply two residual units; the second also adds the input of the first."""

    def pair(h: jax.Array, first: int) -> jax.Array:
        return conv_block(name=f"conv_{first + 1}")(conv_block(name=f"conv_{first}")(h))

    h = pair(x, 0) + x
    return pair(h, 2) + h + x


class EncoderLevel(nn.Module):
    """Encoder level of one resolution, where index 0 is the finest."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch *image channels"], finer: tuple[jax.Array, ...]
    ) -> Float[Array, "batch *spatial width"]:
        """Return features of the image and of all finer levels, finest first."""
        layout, i = self.layout, self.index
        widths = layout.settings.widths

        def descend(x: jax.Array, width: int, start: int, name: str) -> jax.Array:
            """Go from the grid of level `start` to this one by one strided convolution per level."""
            for j in range(start + 1, i + 1):
                x = block(width, layout.kernels[j], layout, strides=layout.strides[j - 1], name=f"{name}_{j}")(x)
            return x

        if i == 0:
            x = block(widths[0], layout.kernels[0], layout, name="image_0")(image)
        else:
            sources = [descend(image, widths[0], 0, "image")]
            sources += [descend(h, widths[j], j, f"from_{j}") for j, h in enumerate(finer)]
            x = jnp.concatenate(sources, -1)  # widths[0] + sum(widths[:i]) = widths[i] channels, as widths double
        return refine(functools.partial(block, widths[i], layout.kernels[i], layout), x)


class DecoderLevel(nn.Module):
    """Decoder level of one resolution, where index 0 is the finest, with twice the encoder's width."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(self, skip: jax.Array | None, low: jax.Array) -> Float[Array, "batch *spatial width"]:
        """Return features of the level below, brought to this grid, and of the encoder at this resolution."""
        layout, i = self.layout, self.index
        widths = layout.settings.widths
        below = widths[i + 1] if i == len(widths) - 2 else 2 * widths[i + 1]
        up = block(below // 2, layout.kernels[i + 1], layout, strides=layout.strides[i], transposed=True, name="up")(
            low
        )
        x = up if skip is None else jnp.concatenate([skip, up], -1)
        part = functools.partial(block, 2 * widths[i], layout.kernels[i], layout)
        return refine(part, part(name="merge")(x))


class Head(nn.Module):
    """Head: a convolution to the classes."""

    classes: int
    layout: Layout

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial width"], train: bool = False
    ) -> Float[Array, "batch *spatial classes"]:
        """Return logits in float32, the same in training."""
        kernel = self.param("kernel", kernel_init, (*self.layout.kernels[0], x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.constant(BIAS), (self.classes,))
        logits = conv.conv(x, kernel, **self.layout.convolution)
        return logits.astype(jnp.float32) + norms.over_channels(bias, x.ndim)


class MultiscaleFCN(Network):
    """Network with an encoder of multi-scale inputs, a decoder with skips, and a head of one convolution."""

    encoder_level = EncoderLevel
    decoder_level = DecoderLevel
    head_class = Head
