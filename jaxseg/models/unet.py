"""A plain U-Net, for 2-D and 3-D images.

Sources: Ronneberger et al. 2015, arXiv:1505.04597; Cicek et al. 2016, arXiv:1606.06650.
"""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxseg.models import blocks
from jaxseg.models.layout import Layout
from jaxseg.models.network import Network


def refine(
    x: jax.Array | None, low: jax.Array | None, index: int, layout: Layout
) -> Float[Array, "batch *spatial width"]:
    """Apply the two convolutions of level `index`; the first reads `x`, or `low` upsampled, or both."""
    width, kernel = layout.settings.widths[index], layout.kernels[index]
    factors = () if low is None else layout.strides[index]
    x = blocks.ConvBlock(width, kernel, layout, name="conv_0")(x, low, factors)
    return blocks.ConvBlock(width, kernel, layout, name="conv_1")(x)


class EncoderLevel(nn.Module):
    """Encoder level of one resolution, where index 0 is the finest."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch *image channels"], finer: tuple[jax.Array, ...]
    ) -> Float[Array, "batch *spatial width"]:
        """Return features of the next finer level after max pooling, or of the image."""
        x = blocks.max_pool(finer[-1], self.layout.strides[self.index - 1]) if self.index else image
        return refine(x, None, self.index, self.layout)


class DecoderLevel(nn.Module):
    """Decoder level of one resolution, where index 0 is the finest."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(self, skip: jax.Array | None, low: jax.Array) -> Float[Array, "batch *spatial width"]:
        """Return features of the upsampled level below and of the encoder at this resolution."""
        return refine(skip, low, self.index, self.layout)


class UNet(Network):
    """Network with an encoder, a decoder, and a head of one product per voxel."""

    encoder_level = EncoderLevel
    decoder_level = DecoderLevel
