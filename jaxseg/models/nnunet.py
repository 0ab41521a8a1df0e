"""The U-Nets of nnU-Net, plain and with a residual encoder, for 2-D and 3-D images.

Strided convolutions lead down and transposed ones up; nonlinearities are leaky. Strides are centred and channels
concatenated as in PyTorch, so that weights of nnU-Net compute here what they compute there.

Sources: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; Isensee et al. 2024, arXiv:2404.09556 (residual encoder);
    He et al. 2019, arXiv:1812.01187 (its blocks, of ResNet-D). `docs/networks.md` lists the differences.
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

block = functools.partial(blocks.ConvBlock, nonlinearity="leaky_relu", centred=True)


class ResidualBlock(nn.Module):
    """Two convolutions and the sum with their input, which is pooled and projected where shapes differ.

    Attributes:
        features: Output channels.
        kernel: Number of taps per axis.
        layout: Settings that the layers of the network share.
        strides: Strides of the first convolution per axis; empty means 1.
    """

    features: int
    kernel: tuple[int, ...]
    layout: Layout
    strides: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch *out features"]:
        """Return features on the grid that the strides leave."""
        part = functools.partial(block, self.features, layout=self.layout)
        residual = blocks.average_pool(x, self.strides) if self.strides else x
        if x.shape[-1] != self.features:
            residual = part((1,) * len(self.kernel), nonlinearity="none", name="skip")(residual)
        y = part(self.kernel, strides=self.strides, name="conv_0")(x)
        return part(self.kernel, name="conv_1")(y, residual=residual)


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
        width, kernel = layout.settings.widths[i], layout.kernels[i]
        x = finer[-1] if i else image
        if layout.settings.residual and i == 0:
            x = block(width, kernel, layout, name="stem")(x)
        for j in range(layout.blocks[i]):
            strides = layout.strides[i - 1] if i and j == 0 else ()
            if layout.settings.residual:
                x = ResidualBlock(width, kernel, layout, strides, name=f"block_{j}")(x)
            else:
                x = block(width, kernel, layout, strides=strides, name=f"conv_{j}")(x)
        return x


class DecoderLevel(nn.Module):
    """Decoder level of one resolution, where index 0 is the finest; it is plain for both encoders."""

    index: int
    layout: Layout

    @nn.compact
    def __call__(self, skip: jax.Array | None, low: jax.Array) -> Float[Array, "batch *spatial width"]:
        """Return features of the level below, brought to this grid, and of the encoder at this resolution."""
        layout, i = self.layout, self.index
        width = layout.settings.widths[i]
        x = blocks.linear_up(width, layout.strides[i], layout)(low)
        x = x if skip is None else jnp.concatenate([x, skip], -1)
        for j in range(layout.decoder_blocks[i]):
            x = block(width, layout.kernels[i], layout, name=f"conv_{j}")(x)
        return x


class NNUNet(Network):
    """Network with an encoder, a decoder, and a head of one product per voxel."""

    encoder_level = EncoderLevel
    decoder_level = DecoderLevel
