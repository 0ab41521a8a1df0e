"""Chooses grid, patch and network together: the finest grid whose patches a run can see often enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxseg.models import check_patch
from jaxseg.settings import LossSettings, ModelSettings, OptimSettings, TaskSettings, TrainSettings
from jaxseg.settings.rules import check_network
from jaxseg.study.plan import cost
from jaxseg.study.plan.program import NetworkSize, Program, measure
from jaxseg.study.proposal import grid
from jaxseg.study.proposal.grid import View
from jaxseg.study.proposal.machine import Resources, rough_bytes, rough_parameters, rough_work

BATCHES = {2: 4, 3: 1}
"""Patches in a step where time is short."""


@dataclasses.dataclass(frozen=True)
class Ambition:
    """A size of network and patch, and what it takes for it to pay."""

    width: int
    """Channels of the first level."""
    around: float
    """Length of a patch over that of the longest label."""
    across: float
    """Voxels across the thinnest label that the grid leaves; infinite for the finest grid alone."""
    steps: int
    """Steps that a run should have at least."""


AMBITIONS = (
    Ambition(32, 2.0, math.inf, 6000),
    Ambition(16, 2.0, math.inf, 4000),
    Ambition(16, 1.5, grid.ACROSS, 1500),
    Ambition(8, 1.5, grid.LEAST_ACROSS, 1500),
)
"""From the largest to the smallest. Where time is short, steps and surroundings gain more than a wider network."""
FEWEST_STEPS = 300
"""Steps that a run should have however short its time is."""
WIDEST = {2: 512, 3: 320}
"""Channels of a level at most."""
COVERED = 0.75
"""Share of the wanted patch that is enough."""
_MEMORY = 0.5
"""Share of a device's memory that one run may take, since images and other runs lie beside it."""
_TRAINING = 0.7
"""Share of a run's time for its steps in the search; validation and test have the rest."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A grid, a patch and a network for it."""

    spacing: tuple[float, ...]
    wanted: tuple[float, ...]
    """Voxels of the patch that the structures ask for."""
    patch: tuple[int, ...]
    levels: grid.Levels
    widths: tuple[int, ...]
    steps: int
    """Steps that a run has in its time, by the rough estimate."""

    @property
    def model(self) -> ModelSettings:
        """Settings as a config has them, with () for strides of 2 everywhere and for kernels of 3, in vnet of 5."""
        even = {size for axes in self.levels.strides for size in axes} <= {2}
        flat = {size for axes in self.levels.kernels for size in axes} == {3}
        return ModelSettings(
            ndim=2 if len(self.wanted) == 2 else 3,
            widths=self.widths,
            strides=() if even else self.levels.strides,
            kernels=() if flat else self.levels.kernels,
        )

    @property
    def covered(self) -> float:
        """Share of the wanted patch that there is."""
        return math.prod(self.patch) / math.prod(self.wanted)


Fixed = Mapping[str, Any]
"""Fields of the config that stay as they are, dotted, with their values."""
NOTHING: Fixed = MappingProxyType({})


def step_patches(fixed: Fixed, batch: int) -> int:
    """Returns the patches that a step learns from, those of all batches whose gradients are averaged.

    Args:
        fixed: Fields that stay as they are.
        batch: Patches in a batch where this is not fixed.
    """
    patches: int = fixed.get("train.batch", batch) * fixed.get("train.accumulate", 1)
    return patches


def choose(
    seen: View,
    spacings: Sequence[tuple[float, ...]],
    resources: Resources,
    *,
    channels: int,
    classes: int,
    fixed: Fixed = NOTHING,
) -> Network:
    """Chooses one of several grids, the finest first, with patch and network for images.

    From the largest ambition down and from the finest grid on, the first is taken whose patches cover the structures
    and fit the time and the memory of a run. If none fits, it is the smallest network on the coarsest grid, and steps
    and patches share what time is missing: a run has the same share of the steps as of the surroundings.

    Where `train.steps` is fixed, it is patch and network that must fit the time: the ambitions are those that pay in so
    many steps.
    """
    steps = fixed.get("train.steps")
    wishes: Sequence[Ambition] = AMBITIONS
    if steps is not None:
        pays = [wish for wish in AMBITIONS if wish.steps <= steps] or [AMBITIONS[-1]]
        wishes = [dataclasses.replace(wish, steps=steps) for wish in pays]
    for wish in wishes:
        for spacing in spacings:
            if spacing != spacings[0] and grid.across(seen, spacing) < wish.across:
                break
            made = _fitted(seen, spacing, wish, resources, channels, classes, fixed)
            if made.covered >= COVERED and made.steps >= wish.steps:
                return made
    return _fitted(seen, spacings[-1], wishes[-1], resources, channels, classes, fixed, shared=steps is None)


def _fitted(
    seen: View,
    spacing: tuple[float, ...],
    wish: Ambition,
    resources: Resources,
    channels: int,
    classes: int,
    fixed: Fixed,
    *,
    shared: bool = False,
) -> Network:
    """A network on a grid, with the patch made smaller until time and memory suffice, or it is smallest.

    With `shared`, fewer steps suffice for smaller patches. In equal time, three levels of 8 to 32 channels reached a
    DSC of 0.70 on the hippocampus in 1,550 steps of 16^3 voxels, 0.77 in 470 of 24^3, 0.79 in 300 of 28^3, and 0.61 in
    200 of 32^3; on hearts, 1,550 steps of 32 x 32 x 10 reached 0.69, and 650 of 64 x 64 x 8 reached 0.58.
    """
    wanted = grid.wanted_size(seen, spacing, wish.around)
    whole = tuple(length / edge for length, edge in zip(seen.lengths, spacing, strict=True))
    size = wanted
    while True:
        found = grid.levels(size, spacing)
        patch = found.patch(size, whole)
        made = Network(spacing, wanted, patch, found, _widths(wish.width, found), 0)
        batch = fixed.get("train.batch", BATCHES[len(patch)])
        seconds = step_patches(fixed, batch) * resources.step_seconds(rough_work(made.model, patch, channels, classes))
        made = dataclasses.replace(made, steps=int(_TRAINING * resources.run_seconds / seconds - resources.other_steps))
        fits = batch * rough_bytes(made.model, patch, classes) <= _MEMORY * resources.memory_bytes
        smaller = grid.shrunk(size, 0.9 * math.prod(size))
        enough = max(FEWEST_STEPS, made.covered * wish.steps) if shared else wish.steps
        if (fits and made.steps >= enough) or smaller == size:
            return made
        size = smaller


def _widths(first: int, levels: grid.Levels) -> tuple[int, ...]:
    return tuple(min(first * 2**level, WIDEST[levels.ndim]) for level in range(len(levels.kernels)))


def program_of(network: Network, *, batch: int, channels: int, classes: int, fixed: Fixed = NOTHING) -> Program:
    """Returns what would be compiled for a run from scratch, with the fields that are fixed.

    Raises:
        UserError: If these do not go with the network.
    """
    own, of_train = (
        {field.removeprefix(section): value for field, value in fixed.items() if field.startswith(section)}
        for section in ("model.", "train.")
    )
    model, train = network.model, TrainSettings(**{**of_train, "batch": batch})
    if len(own.get("widths", model.widths)) != len(model.widths):  # of another depth, nothing else is planned
        model = dataclasses.replace(model, strides=(), kernels=())
    if own or "target.patch" in fixed:
        model = dataclasses.replace(model, **own)
        check_network(model)
        check_patch(model, network.patch)
    return Program(
        TaskSettings(patch=network.patch),
        model,
        train.compute,
        OptimSettings(),
        LossSettings(),
        train,
        "none",
        channels,
        classes,
    )


class Meter(NamedTuple):
    """How the work and the size of a program are found."""

    work: Callable[[Program], cost.Work]
    size: Callable[..., NetworkSize]
    """Takes the program and the platform of the devices."""


EXACT = Meter(cost.step_work, measure)
"""Traces the program, which takes seconds: what --dry_run and the planning of jobs go by."""


def _rough_work(program: Program) -> cost.Work:
    work = rough_work(program.model, program.task.patch, program.channels, program.classes)
    return cost.Work(*(program.train.accumulate * program.train.batch * part for part in work))


def _rough_size(program: Program, platform: str = "cpu") -> NetworkSize:
    del platform  # what TPUs pad is left to the exact measure, which has the last word
    count = rough_parameters(program.model, program.channels, program.classes)
    held = program.train.batch * rough_bytes(program.model, program.task.patch, program.classes)
    return NetworkSize(parameters=count, trainable=count, state_bytes=12 * count, activation_bytes=held)


ROUGH = Meter(_rough_work, _rough_size)
"""Estimates from the sizes of the convolutions alone."""


def fit_memory(
    network: Network,
    resources: Resources,
    meter: Meter,
    *,
    channels: int,
    classes: int,
    batch: int,
    fixed: Fixed = NOTHING,
) -> tuple[Network, int]:
    """Makes batch and then patch smaller until a run fits the memory by the measure that packs runs into jobs.

    What is fixed stays, whether it fits or not.
    """
    while True:
        program = program_of(network, batch=batch, channels=channels, classes=classes, fixed=fixed)
        size = meter.size(program, resources.platform)
        needed = 3 * size.state_bytes + size.activation_bytes
        if needed <= _MEMORY * resources.memory_bytes:
            return network, batch
        if batch > 1 and "train.batch" not in fixed:
            batch //= 2
            continue
        if "target.patch" in fixed:
            return network, batch
        smaller = grid.shrunk(network.patch, 0.7 * math.prod(network.patch))
        levels = grid.levels(smaller, network.spacing)
        patch = levels.patch(smaller, smaller)
        if math.prod(patch) >= math.prod(network.patch):
            return network, batch
        widths = _widths(network.widths[0], levels)
        network = dataclasses.replace(network, patch=patch, levels=levels, widths=widths)
