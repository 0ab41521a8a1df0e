"""What all layers of one network have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from jaxseg.settings import Compute, ModelSettings


def level_strides(settings: ModelSettings) -> tuple[tuple[int, ...], ...]:
    """Steps from each level to the next coarser one, per axis."""
    return settings.strides or ((2,) * settings.ndim,) * (len(settings.widths) - 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Settings, and what the caller adds to them."""

    settings: ModelSettings
    taps: int
    """Of every kernel and axis where `settings.kernels` is empty."""
    form: str
    """Of every convolution; see `jaxseg.models.conv`."""
    frozen: frozenset[str]
    """Paths of parameters that are not trained."""
    compute: Compute
    train: bool = False

    @property
    def convolution(self) -> dict[str, Any]:
        """How every convolution is done: the options of `jaxseg.models.conv.conv` that are not its own."""
        precision = self.compute.precision
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        return {"form": self.form, "dtype": dtype, "precision": self.product_precision}

    @property
    def product_precision(self) -> str:
        """Of XLA's products: left to itself it rounds float32 operands on accelerators, on GPUs to TF32."""
        return "highest" if self.compute.precision == "float32" else "default"

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Per level below the first, per axis."""
        return level_strides(self.settings)

    @property
    def kernels(self) -> tuple[tuple[int, ...], ...]:
        """Taps per level, per axis."""
        return self.settings.kernels or ((self.taps,) * self.settings.ndim,) * len(self.settings.widths)

    def training(self, train: bool) -> Layout:
        """The same for training (dropout, statistics of the batch) or for prediction."""
        return dataclasses.replace(self, train=train)

    def is_frozen(self, module: nn.Module, name: str) -> bool:
        """Whether a parameter of a module is kept as it is."""
        return "/".join((*module.path, name)) in self.frozen
