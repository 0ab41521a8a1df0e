"""The networks of jaxseg in PyTorch.

`python -m launch.export` writes weights for these networks, and a copy of this file beside them, which needs PyTorch
alone:

    from network import build

    network = build(**metadata["network"])
    network.load_state_dict(tensors)

Images are `[batch, channels, *spatial]` with the spatial axes in the order in which jaxseg has them, (x, y, z), and
each spatial axis a multiple of `network.multiple`. Parameters have the names that they have in jaxseg: the kernel at
`encoder/level_0/conv_0/kernel` is `encoder.level_0.conv_0.conv.weight` here.

Two things differ from what is usual in PyTorch, so that the same weights give the same numbers. A strided convolution
with three taps and a stride of two pads by one voxel above and none below, and a transposed convolution makes exactly
size * stride voxels.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE_POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclasses.dataclass(frozen=True)
class Options:
    """A network: the arguments of `build`.

    Attributes:
        name: `unet`, `multiscale_fcn` or `vnet`.
        ndim: Spatial axes, 2 or 3.
        channels: Channels of the image.
        classes: Classes, background included.
        widths: Channels per level, finest first.
        norm: `none`, `instance`, `group` or `batch`.
        groups: Groups of the group norm.
        dropout: Share of features zeroed after each nonlinearity in training.
        encoder: `learned`, or `pooled` for block means of the image.
        strides: Strides per level below the first and axis; empty takes 2 everywhere.
        kernels: Taps per level and axis; empty takes 3, in `vnet` 5.
        skips: Whether the encoder's features of a level reach the decoder's.
        blocks: Convolutions of each level of `unet`'s encoder, finest first; empty takes 2.
        decoder_blocks: Convolutions of each level of its decoder; empty takes 2.
        decoder_widths: Channels of each level of its decoder; empty takes the encoder's.
    """

    name: str
    ndim: int
    channels: int
    classes: int
    widths: Sequence[int]
    norm: str = "instance"
    groups: int = 0
    dropout: float = 0.0
    encoder: str = "learned"
    strides: Sequence[Sequence[int]] = ()
    kernels: Sequence[Sequence[int]] = ()
    skips: bool = True
    blocks: Sequence[int] = ()
    decoder_blocks: Sequence[int] = ()
    decoder_widths: Sequence[int] = ()

    def filled(self) -> Options:
        """The same options, with those of every level."""
        depth, taps = len(self.widths), NETWORKS[self.name][2]
        return dataclasses.replace(
            self,
            strides=self.strides or ((2,) * self.ndim,) * (depth - 1),
            kernels=self.kernels or ((taps,) * self.ndim,) * depth,
            blocks=self.blocks or (2,) * depth,
            decoder_blocks=self.decoder_blocks or (2,) * (depth - 1),
            decoder_widths=self.decoder_widths or self.widths[:-1],
        )

    @property
    def learned(self) -> bool:
        """Whether the encoder has weights."""
        return self.encoder == "learned"

    def skip_width(self, index: int) -> int:
        """Channels that the decoder level of this index reads from the encoder."""
        return (self.widths[index] if self.learned else self.channels) if self.skips else 0


class Convolution(nn.Module):
    """A convolution to ceil(size / stride) voxels, or a transposed one to size * stride."""

    def __init__(
        self,
        options: Options,
        channels: int,
        features: int,
        taps: Sequence[int],
        *,
        strides: Sequence[int] = (),
        transposed: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.strides, self.transposed = tuple(strides) or (1,) * options.ndim, transposed
        excess = [max(k - s, 0) for k, s in zip(taps, self.strides, strict=True)]
        below, above = [e // 2 for e in excess], [e - e // 2 for e in excess]
        self.pads: list[int] = []
        """What `functional.pad` adds where the two sides differ; a convolution pads both by the same."""
        if transposed:
            missing = [max(s - k, 0) for k, s in zip(taps, self.strides, strict=True)]
            kind, how = CONV_TRANSPOSE[options.ndim], {"padding": tuple(below), "output_padding": tuple(missing)}
        else:
            if below != above:
                self.pads = [side for sides in list(zip(below, above, strict=True))[::-1] for side in sides]
            kind, how = CONV[options.ndim], {"padding": (0,) * options.ndim if self.pads else tuple(below)}
        self.conv = kind(channels, features, tuple(taps), stride=self.strides, bias=bias, **how)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, features, *out]`."""
        if not self.transposed:
            return self.conv(functional.pad(x, self.pads) if self.pads else x)
        y = self.conv(x)
        for axis, (size, stride) in enumerate(zip(x.shape[2:], self.strides, strict=True), start=2):
            if y.shape[axis] > size * stride:
                y = y.narrow(axis, 0, size * stride)
        return y


class ConvBlock(Convolution):
    """Convolution, norm or bias, nonlinearity and dropout."""

    def __init__(
        self, options: Options, channels: int, features: int, taps: Sequence[int], *, prelu: bool = False, **how: Any
    ):
        super().__init__(options, channels, features, taps, bias=options.norm == "none", **how)
        self.norm = make_norm(options, features)
        self.act = nn.PReLU(features) if prelu else nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Features; a residual is added before the nonlinearity."""
        y = self.norm(super().forward(x))
        return self.dropout(self.act(y if residual is None else y + residual))


def make_norm(options: Options, features: int) -> nn.Module:
    """The norm of a block; without one its convolution has a bias."""
    if options.norm == "instance":
        return INSTANCE_NORM[options.ndim](features, affine=True)
    if options.norm == "batch":
        return BATCH_NORM[options.ndim](features)
    if options.norm == "group":
        return nn.GroupNorm(options.groups, features)
    return nn.Identity()


def upsample(low: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Nearest neighbours on a grid that is finer by whole factors."""
    size = [n * factor for n, factor in zip(low.shape[2:], factors, strict=True)]
    return functional.interpolate(low, size=size, mode="nearest-exact")


class UNetLevel(nn.Module):
    """One convolution after another."""

    def __init__(self, options: Options, index: int, channels: int, *, width: int, count: int):
        super().__init__()
        self.index, self.options, self.features, self.count = index, options, width, count
        for i in range(count):
            self.add_module(f"conv_{i}", ConvBlock(options, width if i else channels, width, options.kernels[index]))

    def refine(self, x: torch.Tensor) -> torch.Tensor:
        """Features on the same grid."""
        for i in range(self.count):
            x = getattr(self, f"conv_{i}")(x)
        return x


class UNetEncoderLevel(UNetLevel):
    """The next finer level after max pooling, or the image."""

    def __init__(self, options: Options, index: int):
        channels = options.widths[index - 1] if index else options.channels
        super().__init__(options, index, channels, width=options.widths[index], count=options.blocks[index])

    def forward(self, image: torch.Tensor, finer: list[torch.Tensor]) -> torch.Tensor:
        """Features of this level."""
        if self.index:
            image = MAX_POOL[self.options.ndim](finer[-1], self.options.strides[self.index - 1])
        return self.refine(image)


class UNetDecoderLevel(UNetLevel):
    """The upsampled level below and the encoder's features."""

    def __init__(self, options: Options, index: int, below: int):
        width, count = options.decoder_widths[index], options.decoder_blocks[index]
        super().__init__(options, index, below + options.skip_width(index), width=width, count=count)

    def forward(self, skip: torch.Tensor | None, low: torch.Tensor) -> torch.Tensor:
        """Features of this level."""
        low = upsample(low, self.options.strides[self.index])
        return self.refine(low if skip is None else torch.cat([low, skip], 1))


class Units(nn.Module):
    """Two residual units with dense sums."""

    def __init__(self, options: Options, width: int, taps: Sequence[int]):
        super().__init__()
        for i in range(4):
            self.add_module(f"conv_{i}", ConvBlock(options, width, width, taps))

    def refine(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the same shape."""
        h = self.conv_1(self.conv_0(x)) + x
        return self.conv_3(self.conv_2(h)) + h + x


class MultiscaleEncoderLevel(Units):
    """The image and all finer levels, each through strided convolutions of its own."""

    def __init__(self, options: Options, index: int):
        super().__init__(options, options.widths[index], options.kernels[index])
        self.index = index
        widths, kernels, strides = options.widths, options.kernels, options.strides
        if index == 0:
            self.image_0 = ConvBlock(options, options.channels, widths[0], kernels[0])
            return
        sources = [("image", options.channels, widths[0], 0)]
        sources += [(f"from_{j}", widths[j], widths[j], j) for j in range(index)]
        for name, channels, width, start in sources:
            for j in range(start + 1, index + 1):
                reads = channels if j == start + 1 else width
                self.add_module(f"{name}_{j}", ConvBlock(options, reads, width, kernels[j], strides=strides[j - 1]))

    def forward(self, image: torch.Tensor, finer: list[torch.Tensor]) -> torch.Tensor:
        """Features of this level."""
        if self.index == 0:
            return self.refine(self.image_0(image))
        parts = []
        for name, start, x in [("image", 0, image), *((f"from_{j}", j, h) for j, h in enumerate(finer))]:
            for j in range(start + 1, self.index + 1):
                x = getattr(self, f"{name}_{j}")(x)
            parts.append(x)
        return self.refine(torch.cat(parts, 1))


class MultiscaleDecoderLevel(Units):
    """The level below, brought to this grid, and the encoder's features."""

    def __init__(self, options: Options, index: int, below: int):
        self.features = 2 * options.widths[index]
        super().__init__(options, self.features, options.kernels[index])
        half = options.widths[index + 1] // (2 if index == len(options.widths) - 2 else 1)
        taps, strides = options.kernels[index + 1], options.strides[index]
        self.up = ConvBlock(options, below, half, taps, strides=strides, transposed=True)
        self.merge = ConvBlock(options, options.skip_width(index) + half, self.features, options.kernels[index])

    def forward(self, skip: torch.Tensor | None, low: torch.Tensor) -> torch.Tensor:
        """Features of this level."""
        up = self.up(low)
        return self.refine(self.merge(up if skip is None else torch.cat([skip, up], 1)))


class Stage(nn.Module):
    """One convolution at the finest level, two at the next, then three, and the residual."""

    def __init__(self, options: Options, index: int, channels: int, width: int):
        super().__init__()
        self.count = min(index + 1, 3)
        for i in range(self.count):
            reads = width if i else channels
            self.add_module(f"conv_{i}", ConvBlock(options, reads, width, options.kernels[index], prelu=True))

    def refine(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Features of the residual's shape."""
        for i in range(self.count):
            x = getattr(self, f"conv_{i}")(x, residual if i == self.count - 1 else None)
        return x


class VNetEncoderLevel(Stage):
    """The next finer level through a strided convolution, or the image."""

    def __init__(self, options: Options, index: int):
        self.index, self.width = index, options.widths[index]
        super().__init__(options, index, self.width if index else options.channels, self.width)
        if index:
            strides = options.strides[index - 1]
            finer = options.widths[index - 1]
            self.down = ConvBlock(options, finer, self.width, strides, strides=strides, prelu=True)

    def forward(self, image: torch.Tensor, finer: list[torch.Tensor]) -> torch.Tensor:
        """Features of this level."""
        if self.index == 0:  # the image's channels, repeated to the width, are the residual
            repeats = -(-self.width // image.shape[1])
            return self.refine(image, torch.cat([image] * repeats, 1)[:, : self.width])
        x = self.down(finer[-1])
        return self.refine(x, x)


class VNetDecoderLevel(Stage):
    """The level below, brought to this grid, and the encoder's features."""

    def __init__(self, options: Options, index: int, below: int):
        self.features = 2 * options.widths[index]
        super().__init__(options, index, self.features, self.features)
        strides = options.strides[index]
        width = self.features - options.skip_width(index)
        self.up = ConvBlock(options, below, width, strides, strides=strides, transposed=True, prelu=True)

    def forward(self, skip: torch.Tensor | None, low: torch.Tensor) -> torch.Tensor:
        """Features of this level."""
        x = self.up(low) if skip is None else torch.cat([self.up(low), skip], 1)
        return self.refine(x, x)


class Encoder(nn.Module):
    """Levels from fine to coarse."""

    def __init__(self, level: type[nn.Module], options: Options):
        super().__init__()
        for i in range(len(options.widths)):
            self.add_module(f"level_{i}", level(options, i))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, finest first."""
        features: list[torch.Tensor] = []
        for level in self.children():
            features.append(level(image, features))
        return features


class Decoder(nn.Module):
    """Levels from coarse to fine, numbered by resolution like those of the encoder."""

    def __init__(self, level: type[nn.Module], options: Options):
        super().__init__()
        self.features = options.widths[-1] if options.learned else options.channels
        self.skips = options.skips
        for i in reversed(range(len(options.widths) - 1)):
            self.add_module(f"level_{i}", level(options, i, self.features))
            self.features = getattr(self, f"level_{i}").features

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features at full resolution."""
        x = features[-1]
        for level, skip in zip(self.children(), features[-2::-1], strict=True):
            x = level(skip if self.skips else None, x)
        return x


class Network(nn.Module):
    """A fully convolutional network with an encoder, a decoder and a head."""

    def __init__(self, options: Options):
        super().__init__()
        encoder, decoder, _ = NETWORKS[options.name]
        self.options = options
        self.multiple = tuple(math.prod(axis) for axis in zip(*options.strides, strict=True)) or (1,) * options.ndim
        """What the size of an image must be a multiple of, per axis."""
        if options.learned:
            self.encoder = Encoder(encoder, options)
        self.decoder = Decoder(decoder, options)
        taps = options.kernels[0] if options.name == "multiscale_fcn" else (1,) * options.ndim
        self.head = Convolution(options, self.decoder.features, options.classes, taps)

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Block means of the image on the grid of every level: an encoder without weights."""
        pool = AVERAGE_POOL[self.options.ndim]
        return list(itertools.accumulate(self.options.strides, lambda x, step: pool(x, step), initial=image))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes, *spatial]`; class 0 is the background."""
        return self.head(self.decoder(self.encoder(image) if self.options.learned else self.pyramid(image)))


NETWORKS = {
    "unet": (UNetEncoderLevel, UNetDecoderLevel, 3),
    "multiscale_fcn": (MultiscaleEncoderLevel, MultiscaleDecoderLevel, 3),
    "vnet": (VNetEncoderLevel, VNetDecoderLevel, 5),
}
"""Classes of the levels, and taps of every kernel where none are given."""


def build(**options: Any) -> Network:
    """Build a network, with weights drawn by PyTorch; see `Options`."""
    return Network(Options(**options).filled())
