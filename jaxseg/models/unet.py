"""A plain U-Net, for 2-D and 3-D images, and what common U-Nets in PyTorch do differently.

Sources: Ronneberger et al. 2015, arXiv:1505.04597; Cicek et al. 2016, arXiv:1606.06650.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models import blocks
from jaxseg.models.layout import Layout
from jaxseg.models.network import Network


def refine(
    x: jax.Array | None, low: jax.Array | None, index: int, layout: Layout, *, width: int, count: int
) -> Float[Array, "batch *spatial width"]:
    """Apply the `count` convolutions of level `index`; the first reads `x`, or `low` upsampled, or both."""
    settings = layout.settings
    part = functools.partial(
        blocks.ConvBlock, width, layout.kernels[index], layout,
        nonlinearity=settings.activation, first=settings.order == "act_norm_conv",
    )  # fmt: skip
    x = part(name="conv_0")(x, low, () if low is None else layout.strides[index])
    for i in range(1, count):
        x = part(name=f"conv_{i}")(x)
    return x


class EncoderLevel(nn.Module):
    """Encoder level of one resolution, where index 0 is the finest."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch *image channels"], finer: tuple[jax.Array, ...]
    ) -> Float[Array, "batch *spatial width"]:
        """Return features of the next finer level after max pooling, or of the image."""
        layout, i = self.layout, self.index
        padding = layout.settings.pool_padding
        x = blocks.max_pool(finer[-1], layout.strides[i - 1], padding) if i else image
        return refine(x, None, i, layout, width=layout.settings.widths[i], count=layout.blocks[i])


class DecoderLevel(nn.Module):
    """Decoder level of one resolution, where index 0 is the finest."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(self, skip: jax.Array | None, low: jax.Array) -> Float[Array, "batch *spatial width"]:
        """Return features of the upsampled level below and of the encoder at this resolution."""
        layout, i = self.layout, self.index
        width, count = layout.decoder_widths[i], layout.decoder_blocks[i]
        if layout.settings.up == "nearest":
            return refine(skip, low, i, layout, width=width, count=count)
        strides = layout.strides[i]
        if layout.settings.up == "depthwise":
            x = blocks.DepthwiseUp(strides, name="up")(low)
        else:
            x = blocks.linear_up(layout.settings.widths[i], strides, layout)(low)
        if skip is not None:
            x = jnp.concatenate([blocks.centre_crop(x, skip.shape[1:-1]), skip], -1)
        return refine(x, None, i, layout, width=width, count=count)


class Head(blocks.Head):
    """Head of one product per voxel, or of a convolution and a norm without a nonlinearity."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial width"], train: bool = False
    ) -> Float[Array, "batch *spatial classes"]:
        """Return logits in float32."""
        if self.layout.settings.head == "product":
            return super().__call__(x)
        layout = self.layout.training(train)
        conv = blocks.ConvBlock(self.classes, layout.kernels[0], layout, nonlinearity="none", name="conv")
        return conv(x).astype(jnp.float32)


class UNet(Network):
    """Network with an encoder, a decoder, and a head of one product per voxel or of one convolution."""

    encoder_level = EncoderLevel
    decoder_level = DecoderLevel
    head_class = Head
