"""The networks of `jaxseg.models` in PyTorch, as peers of the benchmark: the same operations, not the same weights."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions, each with instance norm and ReLU."""

    def __init__(self, ndim: int, channels: int, features: int):
        super().__init__()
        conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
        self.layers = nn.Sequential(
            conv(channels, features, 3, padding=1, bias=False),
            norm(features, affine=True),
            nn.ReLU(inplace=True),
            conv(features, features, 3, padding=1, bias=False),
            norm(features, affine=True),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features `[batch, features, *spatial]`."""
        return self.layers(x)


class UNet(nn.Module):
    """The network of `jaxseg.models.unet` with its default strides, kernels and norm."""

    def __init__(self, ndim: int, channels: int, widths: list[int], classes: int):
        super().__init__()
        sizes = list(zip([channels, *widths[:-1]], widths, strict=True))
        self.encoder = nn.ModuleList([Block(ndim, a, b) for a, b in sizes])
        self.decoder = nn.ModuleList([Block(ndim, b + a, a) for a, b in list(itertools.pairwise(widths))[::-1]])
        self.head = (nn.Conv3d if ndim == 3 else nn.Conv2d)(widths[0], classes, 1)
        self.pool = functional.max_pool3d if ndim == 3 else functional.max_pool2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes, *spatial]`."""
        skips = []
        for i, block in enumerate(self.encoder):
            x = block(self.pool(x, 2) if i else x)
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2, mode="nearest"), skip], 1))
        return self.head(x)


class ConvAct(nn.Module):
    """Convolution (or its transpose) with a bias, a nonlinearity and dropout."""

    def __init__(
        self,
        ndim: int,
        channels: int,
        features: int,
        taps: int,
        *,
        stride: int = 1,
        up: bool = False,
        prelu: bool = False,
    ):
        super().__init__()
        pad = (taps - 1) // 2
        if up:
            conv = nn.ConvTranspose3d if ndim == 3 else nn.ConvTranspose2d
            self.conv = conv(channels, features, taps, stride=stride, padding=pad, output_padding=taps % 2)
        else:
            conv = nn.Conv3d if ndim == 3 else nn.Conv2d
            self.conv = conv(channels, features, taps, stride=stride, padding=pad)
        self.act = nn.PReLU(features) if prelu else nn.ReLU(inplace=True)
        self.dropout = nn.Identity() if prelu else nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Features; a residual is added before the nonlinearity."""
        y = self.conv(x)
        return self.dropout(self.act(y if residual is None else y + residual))


class Units(nn.Module):
    """Two residual units with dense sums."""

    def __init__(self, ndim: int, width: int):
        super().__init__()
        self.convs = nn.ModuleList([ConvAct(ndim, width, width, 3) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the same shape."""
        h = self.convs[1](self.convs[0](x)) + x
        return self.convs[3](self.convs[2](h)) + h + x


class MultiscaleEncoder(nn.Module):
    """Every level reads the image and all finer levels."""

    def __init__(self, ndim: int, channels: int, widths: list[int]):
        super().__init__()

        def descend(channels: int, width: int, count: int) -> nn.Sequential:
            sizes = [channels] + [width] * count
            return nn.Sequential(*(ConvAct(ndim, a, b, 3, stride=2) for a, b in itertools.pairwise(sizes)))

        self.first = ConvAct(ndim, channels, widths[0], 3)
        self.paths = nn.ModuleList(
            nn.ModuleList([descend(channels, widths[0], i), *(descend(widths[j], widths[j], i - j) for j in range(i))])
            for i in range(1, len(widths))
        )
        self.units = nn.ModuleList([Units(ndim, width) for width in widths])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, finest first."""
        levels = [self.units[0](self.first(image))]
        for paths, units in zip(self.paths, self.units[1:], strict=True):
            levels.append(units(torch.cat([path(x) for path, x in zip(paths, [image, *levels], strict=True)], 1)))
        return levels


class MultiscaleFCN(nn.Module):
    """The network of `jaxseg.models.multiscale_fcn` with its default strides and kernels and a dropout of 0.1."""

    def __init__(self, ndim: int, channels: int, widths: list[int], classes: int):
        super().__init__()
        self.encoder = MultiscaleEncoder(ndim, channels, widths)
        below = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        levels = list(zip(below, widths[-2::-1], strict=True))
        self.up = nn.ModuleList([ConvAct(ndim, b, b // 2, 3, stride=2, up=True) for b, _ in levels])
        self.merge = nn.ModuleList([ConvAct(ndim, w + b // 2, 2 * w, 3) for b, w in levels])
        self.units = nn.ModuleList([Units(ndim, 2 * w) for _, w in levels])
        self.head = (nn.Conv3d if ndim == 3 else nn.Conv2d)(2 * widths[0], classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes, *spatial]`."""
        *skips, x = self.encoder(x)
        for up, merge, units, skip in zip(self.up, self.merge, self.units, skips[::-1], strict=True):
            x = units(merge(torch.cat([skip, up(x)], 1)))
        return self.head(x)


class Stage(nn.Module):
    """Convolutions of five taps and the sum with what they began with."""

    def __init__(self, ndim: int, channels: int, width: int, count: int):
        super().__init__()
        sizes = [channels] + [width] * count
        self.convs = nn.ModuleList([ConvAct(ndim, a, b, 5, prelu=True) for a, b in itertools.pairwise(sizes)])

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Features of the residual's shape."""
        for conv in self.convs[:-1]:
            x = conv(x)
        return self.convs[-1](x, residual)


class VNetEncoder(nn.Module):
    """Levels from fine to coarse."""

    def __init__(self, ndim: int, channels: int, widths: list[int]):
        super().__init__()
        self.width = widths[0]
        self.down = nn.ModuleList(ConvAct(ndim, a, b, 2, stride=2, prelu=True) for a, b in itertools.pairwise(widths))
        sizes = enumerate(widths)
        self.stages = nn.ModuleList(Stage(ndim, w if i else channels, w, min(i + 1, 3)) for i, w in sizes)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, finest first."""
        repeats = -(-self.width // image.shape[1])
        levels = [self.stages[0](image, torch.cat([image] * repeats, 1)[:, : self.width])]
        for down, stage in zip(self.down, self.stages[1:], strict=True):
            x = down(levels[-1])
            levels.append(stage(x, x))
        return levels


class VNet(nn.Module):
    """The network of `jaxseg.models.vnet` with its default strides and kernels and without a norm."""

    def __init__(self, ndim: int, channels: int, widths: list[int], classes: int):
        super().__init__()
        self.encoder = VNetEncoder(ndim, channels, widths)
        below = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        levels = list(zip(below, widths[-2::-1], strict=True))
        self.up = nn.ModuleList([ConvAct(ndim, b, w, 2, stride=2, up=True, prelu=True) for b, w in levels])
        counts = [min(i + 1, 3) for i in range(len(widths) - 1)][::-1]
        self.stages = nn.ModuleList(
            [Stage(ndim, 2 * w, 2 * w, count) for (_, w), count in zip(levels, counts, strict=True)]
        )
        self.head = (nn.Conv3d if ndim == 3 else nn.Conv2d)(2 * widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes, *spatial]`."""
        *skips, x = self.encoder(x)
        for up, stage, skip in zip(self.up, self.stages, skips[::-1], strict=True):
            x = torch.cat([up(x), skip], 1)
            x = stage(x, x)
        return self.head(x)


NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "multiscale_fcn": MultiscaleFCN, "vnet": VNet}
"""By the name that `model.name` takes."""
