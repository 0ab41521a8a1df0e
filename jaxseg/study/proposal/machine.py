"""The machine and the time that a proposal is made for, and what a network takes of them."""

from __future__ import annotations

import dataclasses
import math
import re

from jaxseg.settings import ModelSettings
from jaxseg.study.plan import cost
from jaxseg.types import UserError

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_SHARE = 0.85
"""Share of a budget that runs have; reading, compiling, analyses and the report have the rest."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a study may use."""

    seconds: float
    """The whole budget."""
    runs: float
    """Runs of all kinds, counted in runs of `train.steps` steps."""
    speed: cost.Speed
    """Of all devices together."""
    memory_bytes: int
    """Of one device."""
    platform: str = "cpu"
    """Platform of the devices."""
    other_steps: float = 0.0
    """Steps of runs that are not as long as `train.steps`, such as a given `pretrain.steps`, for each of `runs`."""

    @property
    def run_seconds(self) -> float:
        """The time that one run has for training, validation and test, if all devices worked on it alone."""
        return _SHARE * self.seconds / self.runs

    def step_seconds(self, work: cost.Work) -> float:
        """Returns the time of a step, by the model that `--dry_run` uses."""
        return self.speed.seconds(work)


def read_budget(text: str) -> float:
    """Returns the seconds that a text such as `90min`, `2h`, `1h30min` or `1.5d` says.

    Raises:
        UserError: It says no time.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*(min|[smhd])(?![a-z])", text := text.strip().lower())
    if not parts or re.sub(r"([0-9]+(?:\.[0-9]+)?)\s*(min|[smhd])\s*(?![a-z])", "", text):
        raise UserError(f"--budget = {text!r}; allowed: a time with its unit, such as 90min, 2h, 1h30min or 1.5d")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds < 60:
        raise UserError(f"--budget = {text!r}; allowed: at least a minute, in which hardly anything is learned")
    return seconds


def rough_work(model: ModelSettings, patch: tuple[int, ...], channels: int, classes: int) -> cost.Work:
    """Estimates the work of a training step on one patch from the sizes of its convolutions alone.

    Tracing a network takes a second, and a search looks at dozens. This is within a third of `cost.step_work`, which
    has the last word.
    """
    macs, narrow, elements, voxels = 0.0, 0.0, 0.0, float(math.prod(patch))
    coming = channels
    kernels = model.kernels or ((3,) * model.ndim,) * len(model.widths)
    strides = model.strides or ((2,) * model.ndim,) * (len(model.widths) - 1)
    for level, (width, kernel) in enumerate(zip(model.widths, kernels, strict=True)):
        if level:
            voxels /= math.prod(strides[level - 1])
        taps = math.prod(kernel)
        reads, arrays = coming + width, 2
        if level < len(model.widths) - 1:  # the decoder's level, which reads the encoder's and the one below
            reads, arrays = reads + 2 * width + model.widths[level + 1], 4
        macs, narrow = macs + voxels * taps * width * reads, narrow + voxels * taps * reads
        elements += arrays * voxels * width
        coming = width
    # A backward pass takes two products for one, and Winograd's algorithm does with half of the products. A norm, a
    # nonlinearity and their gradients write about 24 arrays.
    head = math.prod(patch) * classes
    products, narrow = 3 * (macs + head * model.widths[0]), 3 * (narrow + head * model.widths[0] / classes)
    return cost.Work(int(products), narrow, int(4 * (24 * elements + 20 * head)))


def rough_parameters(model: ModelSettings, channels: int, classes: int) -> int:
    """Counts the weights of the convolutions."""
    count, coming = classes * model.widths[0], channels
    kernels = model.kernels or ((3,) * model.ndim,) * len(model.widths)
    for level, (width, kernel) in enumerate(zip(model.widths, kernels, strict=True)):
        reads = coming + width
        if level < len(model.widths) - 1:
            reads += 2 * width + model.widths[level + 1]
        count, coming = count + math.prod(kernel) * width * reads, width
    return count


def rough_bytes(model: ModelSettings, patch: tuple[int, ...], classes: int) -> int:
    """Estimates the memory that a training step on one patch takes, beside the weights."""
    return math.prod(patch) * (120 * model.widths[0] + 24 * classes)
