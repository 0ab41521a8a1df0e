"""V-Net, for 2-D and 3-D images: residual levels, strided convolutions down, transposed ones up, no pooling.

Source: Milletari, Navab and Ahmadi 2016, arXiv:1606.04797. `docs/networks.md` lists the differences.
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

block = functools.partial(blocks.ConvBlock, nonlinearity="prelu")


def refine(
    x: Float[Array, "batch *spatial channels"],
    residual: Float[Array, "batch *spatial width"],
    index: int,
    layout: Layout,
) -> Float[Array, "batch *spatial width"]:
    """Apply the convolutions of level `index` (one at the finest, two at the next, then three) and add the residual."""
    count = min(index + 1, 3)
    for i in range(count):
        last = i == count - 1
        part = block(residual.shape[-1], layout.kernels[index], layout, name=f"conv_{i}")
        x = part(x, residual=residual if last else None)
    return x


class EncoderLevel(nn.Module):
    """Encoder level of one resolution, where index 0 is the finest."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch *image channels"], finer: tuple[jax.Array, ...]
    ) -> Float[Array, "batch *spatial width"]:
        """Return features of the next finer level, or of the image."""
        layout, i = self.layout, self.index
        width = layout.settings.widths[i]
        if i == 0:  # the image's channels, repeated to the width, are the residual
            repeats = -(-width // image.shape[-1])
            return refine(image, jnp.concatenate([image] * repeats, -1)[..., :width], i, layout)
        strides = layout.strides[i - 1]
        x = block(width, strides, layout, strides=strides, name="down")(finer[-1])
        return refine(x, x, i, layout)


class DecoderLevel(nn.Module):
    """Decoder level of one resolution, where index 0 is the finest, with twice the encoder's width."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(self, skip: jax.Array | None, low: jax.Array) -> Float[Array, "batch *spatial width"]:
        """Return features of the level below, brought to this grid, and of the encoder at this resolution."""
        layout, i = self.layout, self.index
        strides = layout.strides[i]
        # The residual is the input of the level, so up and skip together have its width.
        width = 2 * layout.settings.widths[i] - (0 if skip is None else skip.shape[-1])
        x = block(width, strides, layout, strides=strides, transposed=True, name="up")(low)
        x = x if skip is None else jnp.concatenate([x, skip], -1)
        return refine(x, x, i, layout)


class VNet(Network):
    """Network with an encoder, a decoder, and a head of one product per voxel."""

    encoder_level = EncoderLevel
    decoder_level = DecoderLevel
    taps = 5
