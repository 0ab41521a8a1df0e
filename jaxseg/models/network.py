"""What all networks share: an encoder, a decoder and a head, and the calls that lead through them."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models import blocks, conv
from jaxseg.models.layout import Layout, level_strides
from jaxseg.settings import Compute, ModelSettings
from jaxseg.settings.schema import FULL_PRECISION


class Encoder(nn.Module):
    """Levels from fine to coarse.

    Attributes:
        level: Built as `level(index, layout)`, 0 the finest; takes the image and the features of all finer levels.
        layout: What layers share.
    """

    level: type[nn.Module]
    layout: Layout

    @nn.compact
    def __call__(self, image: Float[Array, "batch *spatial channels"], train: bool) -> tuple[jax.Array, ...]:
        """Features of every level, finest first."""
        layout = self.layout.training(train)
        # What a level computes on its way is kept for the backward pass, or computed there again.
        level = nn.remat(self.level) if layout.compute.remat else self.level
        features: list[jax.Array] = []
        for i in range(len(layout.settings.widths)):
            features.append(level(i, layout, name=f"level_{i}")(image, tuple(features)))
            blocks.record(self, f"level_{i}", features[i])
        return tuple(features)


class Decoder(nn.Module):
    """Levels from coarse to fine, numbered by resolution as the encoder's.

    Attributes:
        level: Built as `level(index, layout)`; takes the encoder's features of its resolution (None without skips)
            and the features of the level below.
        layout: What layers share.
    """

    level: type[nn.Module]
    layout: Layout

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], train: bool) -> Float[Array, "batch *spatial width"]:
        """Features at full resolution from the encoder's levels."""
        layout = self.layout.training(train)
        level = nn.remat(self.level) if layout.compute.remat else self.level
        x = features[-1]
        for i in reversed(range(len(features) - 1)):
            x = level(i, layout, name=f"level_{i}")(features[i] if layout.settings.skips else None, x)
            blocks.record(self, f"level_{i}", x)
        return x


class Network(nn.Module):
    """A fully convolutional network; a subclass names its parts.

    Attributes:
        settings: Widths, strides, kernels, norm, dropout, skips and encoder.
        classes: Output channels, background included.
        form: Of every convolution; see `jaxseg.models.conv`.
        frozen: Paths of parameters that are not trained: even in training there is no dropout beside them, and batch
            norms use the statistics that they have.
        compute: Precision of convolutions, and whether the backward pass computes levels again.
    """

    settings: ModelSettings
    classes: int
    form: str = "auto"
    frozen: frozenset[str] = frozenset()
    compute: Compute = FULL_PRECISION

    encoder_level: ClassVar[type[nn.Module]]
    """See `Encoder.level`."""
    decoder_level: ClassVar[type[nn.Module]]
    """See `Decoder.level`."""
    head_class: ClassVar[type[nn.Module]] = blocks.Head
    """Built as `head_class(classes, layout)`; takes the decoder's features to logits."""
    taps: ClassVar[int] = 3
    """Of every kernel and axis where `settings.kernels` is empty."""

    def setup(self) -> None:
        """The sub-trees of the parameters; a pooled encoder has none."""
        layout = Layout(self.settings, self.taps, self.form, self.frozen, self.compute)
        if self.settings.encoder == "learned":
            self.encoder = Encoder(self.encoder_level, layout)
        self.decoder = Decoder(self.decoder_level, layout)
        self.head = self.head_class(self.classes, layout)

    def __call__(
        self, image: Float[Array, "batch *spatial channels"], train: bool = False
    ) -> Float[Array, "batch *spatial classes"]:
        """Logits in float32; with `train`, dropout and statistics of the batch."""
        return self.decode(self.encode(image, train), train)

    def encode(self, image: Float[Array, "batch *spatial channels"], train: bool = False) -> tuple[jax.Array, ...]:
        """Features of every encoder level, finest first: what a shared frozen encoder computes once for all seeds."""
        # The products form rounds operands only: on CPU all other work on bfloat16 is slower than on float32.
        rounded = conv.resolve_form(self.form) != "products"
        dtype = jnp.dtype("bfloat16" if rounded and self.compute.precision == "bfloat16" else "float32")
        if self.settings.encoder == "pooled":
            pyramid = blocks.average_pyramid(image, level_strides(self.settings))
            return tuple(level.astype(dtype) for level in pyramid)
        return self.encoder(image.astype(dtype), train)

    def decode(self, features: tuple[jax.Array, ...], train: bool = False) -> Float[Array, "batch *spatial classes"]:
        """Logits from the encoder's features."""
        return self.head(self.decoder(features, train))
