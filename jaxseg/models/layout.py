"""Settings that all layers of one network have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from jaxseg.settings import Compute, ModelSettings


def level_strides(settings: ModelSettings) -> tuple[tuple[int, ...], ...]:
    """Return the strides from each level to the next coarser one, per axis."""
    return settings.strides or ((2,) * settings.ndim,) * (len(settings.widths) - 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Settings of a network, and additions by the caller."""

    settings: ModelSettings
    taps: int
    """Taps of every kernel and axis if `settings.kernels` is empty."""
    form: str
    """Form of every convolution; see `jaxseg.models.conv`."""
    frozen: frozenset[str]
    """Paths of parameters that are not trained."""
    compute: Compute
    train: bool = False

    @property
    def convolution(self) -> dict[str, Any]:
        """Options of `jaxseg.models.conv.conv` that all convolutions of the network share."""
        precision = self.compute.precision
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        return {"form": self.form, "dtype": dtype, "precision": self.product_precision}

    @property
    def product_precision(self) -> str:
        """Precision of XLA's products: by default it rounds float32 operands on accelerators, on GPUs to TF32."""
        return "highest" if self.compute.precision == "float32" else "default"

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides per level below the first, per axis."""
        return level_strides(self.settings)

    @property
    def kernels(self) -> tuple[tuple[int, ...], ...]:
        """Number of taps per level, per axis."""
        return self.settings.kernels or ((self.taps,) * self.settings.ndim,) * len(self.settings.widths)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Convolutions, or residual blocks, per encoder level."""
        return self.settings.blocks or (2,) * len(self.settings.widths)

    @property
    def decoder_blocks(self) -> tuple[int, ...]:
        """Convolutions per decoder level."""
        return self.settings.decoder_blocks or (2,) * (len(self.settings.widths) - 1)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels per decoder level."""
        return self.settings.decoder_widths or self.settings.widths[:-1]

    def training(self, train: bool) -> Layout:
        """Return the same layout for training (dropout, statistics of the batch) or for prediction."""
        return dataclasses.replace(self, train=train)

    def is_frozen(self, module: nn.Module, name: str) -> bool:
        """Return whether a parameter of a module is frozen."""
        return "/".join((*module.path, name)) in self.frozen
