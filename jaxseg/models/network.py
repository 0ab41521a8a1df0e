"""The structure that all networks share: an encoder, a decoder and a head, and the calls that apply them."""

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
    """Encoder with levels from fine to coarse.

    Attributes:
        level: Class of the levels, built as `level(index, layout)`, 0 the finest. A level takes the image and the
            features of all finer levels. layout: Settings that layers share.
    """

    level: type[nn.Module]
    layout: Layout

    @nn.compact
    def __call__(self, image: Float[Array, "batch *spatial channels"], train: bool) -> tuple[jax.Array, ...]:
        """Return the features of every level, finest first."""
        layout = self.layout.training(train)
        # The intermediate values of a level are kept for the backward pass, or recomputed there.
        level = nn.remat(self.level) if layout.compute.remat else self.level
        features: list[jax.Array] = []
        for i in range(len(layout.settings.widths)):
            features.append(level(i, layout, name=f"level_{i}")(image, tuple(features)))
            blocks.record(self, f"level_{i}", features[i])
        return tuple(features)


class Decoder(nn.Module):
    """Decoder with levels from coarse to fine, numbered by resolution like those of the encoder.

    Attributes:
        level: Class of the levels, built as `level(index, layout)`. A level takes the encoder's features of its
            resolution (None without skips) and the features of the level below. layout: Settings that layers share.
    """

    level: type[nn.Module]
    layout: Layout

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], train: bool) -> Float[Array, "batch *spatial width"]:
        """Return features at full resolution from the features of the encoder's levels."""
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
        classes: Output channels: the classes, background included, or the regions.
        form: Form of every convolution; see `jaxseg.models.conv`.
        frozen: Paths of parameters that are not trained. Even in training, frozen layers have no dropout, and their
            batch norms use the statistics that they have.
        compute: Precision of convolutions, and whether the backward pass recomputes levels.
        restores: Whether the network restores images. Its head, with `classes` image channels, is then called
            `restoration` in place of `head`, so that no transfer takes one for the other.
        overlapping: Whether the outputs are regions that may overlap, each of which a sigmoid decides by itself, in
            place of classes that share a softmax. It says how logits are read; the network computes the same.
    """

    settings: ModelSettings
    classes: int
    form: str = "auto"
    frozen: frozenset[str] = frozenset()
    compute: Compute = FULL_PRECISION
    restores: bool = False
    overlapping: bool = False

    encoder_level: ClassVar[type[nn.Module]]
    """See `Encoder.level`."""
    decoder_level: ClassVar[type[nn.Module]]
    """See `Decoder.level`."""
    head_class: ClassVar[type[nn.Module]] = blocks.Head
    """Class of the head, built as `head_class(classes, layout)`; called with the decoder's features and `train`, it
    returns logits."""
    taps: ClassVar[int] = 3
    """Taps of every kernel and axis if `settings.kernels` is empty."""

    def setup(self) -> None:
        """Create the sub-trees of the parameters; a pooled encoder has none."""
        layout = Layout(self.settings, self.taps, self.form, self.frozen, self.compute)
        if self.settings.encoder == "learned":
            self.encoder = Encoder(self.encoder_level, layout)
        self.decoder = Decoder(self.decoder_level, layout)
        if self.restores:
            self.restoration = self.head_class(self.classes, layout)
        else:
            self.head = self.head_class(self.classes, layout)

    def __call__(
        self, image: Float[Array, "batch *spatial channels"], train: bool = False
    ) -> Float[Array, "batch *spatial classes"]:
        """Return logits in float32; `train` turns on dropout and statistics of the batch."""
        return self.decode(self.encode(image, train), train)

    def encode(self, image: Float[Array, "batch *spatial channels"], train: bool = False) -> tuple[jax.Array, ...]:
        """Return the features of every encoder level, finest first; for a shared frozen encoder, once for all seeds."""
        # The products form rounds only operands: on CPU, all other work is slower in bfloat16 than in float32.
        rounded = conv.resolve_form(self.form) != "products"
        dtype = jnp.dtype("bfloat16" if rounded and self.compute.precision == "bfloat16" else "float32")
        if self.settings.encoder == "pooled":
            pyramid = blocks.average_pyramid(image, level_strides(self.settings))
            return tuple(level.astype(dtype) for level in pyramid)
        return self.encoder(image.astype(dtype), train)

    def decode(self, features: tuple[jax.Array, ...], train: bool = False) -> Float[Array, "batch *spatial classes"]:
        """Return logits, or the restored image, from the encoder's features."""
        head = self.restoration if self.restores else self.head
        return head(self.decoder(features, train), train=train)
