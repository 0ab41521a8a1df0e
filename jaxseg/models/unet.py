"""A plain U-Net for 2-D and 3-D images.

Sources: Ronneberger et al. 2015, arXiv:1505.04597; Cicek et al. 2016, arXiv:1606.06650.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models import blocks, conv
from jaxseg.types import ModelSettings


class Level(nn.Module):
    """The two convolutions of one resolution."""

    features: int
    kernel: tuple[int, ...]
    norm: str
    form: str
    precision: str

    @nn.compact
    def __call__(self, x: jax.Array | None, low: jax.Array | None = None, factors: tuple[int, ...] = ()) -> jax.Array:
        """Features `[batch, *spatial, features]` of `x`, of upsampled `low`, or of both."""
        part = functools.partial(blocks.ConvNormRelu, self.features, self.kernel, self.norm, self.form, self.precision)
        return part(name="conv_1")(part(name="conv_0")(x, low, factors))


def _level(settings: ModelSettings, i: int, form: str) -> Level:
    """Level i, counted from the finest, of the module that calls."""
    kernel = level_kernels(settings)[i]
    return Level(settings.widths[i], kernel, settings.norm, form, settings.precision, name=f"level_{i}")


class Encoder(nn.Module):
    """Levels from fine to coarse, a max pooling between them."""

    settings: ModelSettings
    form: str

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial channels"]) -> tuple[jax.Array, ...]:
        """Features of every level, finest first."""
        levels = []
        for i in range(len(self.settings.widths)):
            if i:
                x = blocks.max_pool(x, level_strides(self.settings)[i - 1])
            x = _level(self.settings, i, self.form)(x)
            blocks.record(self, f"level_{i}", x)
            levels.append(x)
        return tuple(levels)


class Decoder(nn.Module):
    """Levels from coarse to fine; each reads the upsampled level below and, with `skips`, the encoder's features."""

    settings: ModelSettings
    form: str

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...]) -> Float[Array, "batch *spatial width"]:
        """Features at full resolution from the encoder's levels."""
        x = features[-1]
        for i in reversed(range(len(self.settings.widths) - 1)):
            x = _level(self.settings, i, self.form)(
                features[i] if self.settings.skips else None, x, level_strides(self.settings)[i]
            )
            blocks.record(self, f"level_{i}", x)
        return x


class UNet(nn.Module):
    """Encoder, decoder and a head of one product a voxel.

    Attributes:
        settings: Widths, strides, kernels, norm, skips and compute precision.
        classes: Output channels, background included.
        form: Of every convolution; see `jaxseg.models.conv`.
    """

    settings: ModelSettings
    classes: int
    form: str = "auto"

    def setup(self) -> None:
        """The three sub-trees of the parameters."""
        self.encoder = Encoder(self.settings, self.form)
        self.decoder = Decoder(self.settings, self.form)
        self.head = Head(self.classes)

    def __call__(
        self, image: Float[Array, "batch *spatial channels"], train: bool = False
    ) -> Float[Array, "batch *spatial classes"]:
        """Logits in float32. `train` is there for networks with dropout and changes nothing here."""
        del train
        return self.decode(self.encode(image))

    def encode(self, image: Float[Array, "batch *spatial channels"]) -> tuple[jax.Array, ...]:
        """Features of every encoder level, finest first: what a shared frozen encoder computes once for all seeds."""
        # The products form rounds operands only: on CPU all other work on bfloat16 is slower than on float32.
        rounded = conv.resolve_form(self.form) == "native"
        return self.encoder(image.astype(self.settings.precision if rounded else jnp.float32))

    def decode(self, features: tuple[jax.Array, ...]) -> Float[Array, "batch *spatial classes"]:
        """Logits from the encoder's features."""
        return self.head(self.decoder(features))


class Head(nn.Module):
    """A 1x1 convolution to the classes, in float32."""

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial width"]) -> Float[Array, "batch *spatial classes"]:
        """Logits."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        logits = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


def level_strides(settings: ModelSettings) -> tuple[tuple[int, ...], ...]:
    """Pooling per level below the first, per axis."""
    return settings.strides or ((2,) * settings.ndim,) * (len(settings.widths) - 1)


def level_kernels(settings: ModelSettings) -> tuple[tuple[int, ...], ...]:
    """Taps per level, per axis."""
    return settings.kernels or ((3,) * settings.ndim,) * len(settings.widths)
