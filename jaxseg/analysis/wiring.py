"""The channels of a network that can be permuted without changing what it computes.

No network is described here. Instead, its convolutions are replaced, one call at a time, by markers that say which
channel they stand for; the network's own pooling, upsampling, concatenation and residual sums carry the markers to the
next convolution. The inputs of a convolution thus tell which channels it reads, and channels that were added to each
other are found because they arrive together.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxseg import trees
from jaxseg.models import level_strides, make_model
from jaxseg.settings import ModelSettings

IMAGE = ""
"""Name of the image among the layers that channels come from."""
FIXED = -1
"""Unit of a channel with a fixed place: of the image, and of the classes."""

_Channel = tuple[str, int]
"""A layer and the index of one of its output channels."""

Order = Int[np.ndarray, " units"]
"""For each unit of a network, the unit that takes its place."""


class Axis:
    """An axis of channels of some kernel: which unit each belongs to, and where the channels of each unit are."""

    def __init__(self, units: Int[np.ndarray, " channels"]) -> None:
        """Note where units are; one may have several channels here, which keep their order."""
        places: dict[int, list[int]] = collections.defaultdict(list)
        number = np.empty(len(units), np.int64)
        for channel, unit in enumerate(units.tolist()):
            number[channel] = len(places[unit])
            places[unit].append(channel)
        self._still = np.arange(len(units))
        self._moving = np.flatnonzero(units != FIXED)
        self._units, self._number = units[self._moving], number[self._moving]
        places.pop(FIXED, None)
        self._channels = np.full((max(places, default=-1) + 1, max(map(len, places.values()), default=0)), -1)
        for unit, own in places.items():
            self._channels[unit, : len(own)] = own

    def of(self, group: Int[np.ndarray, " units"]) -> Int[np.ndarray, "times units"]:
        """Return the channels of the units of a group, which have equally many; no rows if they have none here."""
        if group.max() >= len(self._channels):
            return np.empty((0, len(group)), np.int64)
        found = self._channels[group]
        return found[:, found[0] >= 0].T

    def taken(self, order: Order) -> Int[np.ndarray, " channels"]:
        """Return the channel that takes the place of each when units are permuted."""
        taken = self._still.copy()
        taken[self._moving] = self._channels[order[self._units], self._number]
        return taken


@dataclasses.dataclass(frozen=True)
class Wiring:
    """Units of a network that can be permuted. A unit is one or more channels that are added and so move together."""

    reads: dict[str, Int[np.ndarray, " channels"]]
    """Unit of every input channel of a layer, by the path of the layer."""
    gives: dict[str, Int[np.ndarray, " channels"]]
    """Unit of every output channel, by the path of the layer."""
    groups: tuple[Int[np.ndarray, " units"], ...]
    """Groups of units that can be permuted among each other, in forward order."""

    @functools.cached_property
    def axes(self) -> dict[str, tuple[Axis, Axis]]:
        """Of every layer, the axis of the channels that it reads, and that of those that it gives."""
        return {layer: (Axis(self.reads[layer]), Axis(self.gives[layer])) for layer in self.gives}

    @property
    def count(self) -> int:
        """Number of units."""
        return sum(map(len, self.groups))


def trace_wiring(settings: ModelSettings, classes: int, channels: int) -> Wiring:
    """Trace the wiring of a network.

    Args:
        settings: Settings of the network.
        classes: Number of output channels.
        channels: Number of image channels.
    """
    sources, added, widths = _run_with_markers(settings, classes, channels)
    head = next(layer for layer in reversed(widths) if layer.startswith("head"))
    parent: dict[_Channel, _Channel] = {}

    def find(channel: _Channel) -> _Channel:
        while (above := parent.setdefault(channel, channel)) != channel:
            channel = above
        return channel

    # Channels of convolutions that arrive together are one unit. Image channels that are added to them are recorded in
    # `beside`: they cannot move, but convolutions to which the same image channel was added can be permuted.
    beside: dict[_Channel, set[int]] = collections.defaultdict(set)
    for together in [*_each_channel(sources), *_each_channel(added)]:
        own = [channel for channel in together if channel[0] != IMAGE]
        for other in own[1:]:
            parent[find(other)] = find(own[0])
        for channel in own:
            beside[channel] |= {number for layer, number in together if layer == IMAGE}
    every = [(layer, number) for layer, width in widths.items() for number in range(width) if layer != head]
    members: dict[_Channel, list[_Channel]] = collections.defaultdict(list)
    for channel in every:
        members[find(channel)].append(channel)
    unit = {channel: index for index, own in enumerate(members.values()) for channel in own}
    reads = {layer: _units(channels, unit) for layer, channels in sources.items()}
    gives = {
        layer: np.array([unit.get((layer, number), FIXED) for number in range(width)])
        for layer, width in widths.items()
    }
    return Wiring(reads, gives, _groups(list(members.values()), unit, beside, reads, settings, widths))


def _groups(
    members: list[list[_Channel]],
    unit: dict[_Channel, int],
    beside: dict[_Channel, set[int]],
    reads: dict[str, np.ndarray],
    settings: ModelSettings,
    widths: dict[str, int],
) -> tuple[Int[np.ndarray, " units"], ...]:
    """Units that the same layers give and read; with a group norm, in the same of its groups."""
    readers: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for layer, units in reads.items():
        for one in units:
            readers[int(one)][layer] += 1
    alike: dict[Any, list[int]] = collections.defaultdict(list)
    for own in members:
        index = unit[own[0]]
        size = {layer: max(widths[layer] // settings.groups, 1) if settings.norm == "group" else widths[layer]
                for layer, _ in own}  # fmt: skip
        given = tuple(sorted((layer, number // size[layer]) for layer, number in own))
        image = frozenset().union(*(beside[channel] for channel in own))
        alike[given, image, frozenset(readers[index].items())].append(index)
    return tuple(np.array(units) for units in alike.values())


def _each_channel(carried: dict[str, list[list[_Channel]]]) -> Iterator[list[_Channel]]:
    for channels in carried.values():
        yield from channels


def _units(channels: list[list[_Channel]], unit: dict[_Channel, int]) -> Int[np.ndarray, " channels"]:
    """The unit of each input channel; all channels that arrive together have the same."""
    return np.array([next((unit[one] for one in together if one in unit), FIXED) for together in channels])


def _run_with_markers(
    settings: ModelSettings, classes: int, channels: int
) -> tuple[dict[str, list[list[_Channel]]], dict[str, list[list[_Channel]]], dict[str, int]]:
    """For each layer, what its input channels and what is added to its output channels are made of; and its width."""
    # The run is in float32 and without recomputation, since markers are whole numbers that are read on the way.
    model = make_model(settings, classes=classes)
    patch = tuple(2 * int(np.prod(axis)) for axis in zip(*level_strides(settings), strict=True)) or (2,) * settings.ndim
    image = jax.ShapeDtypeStruct((1, *patch, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), image)["params"]
    kernels = {path: leaf for path, leaf in trees.flatten(params).items() if path.endswith("/kernel")}
    layers = {path.removesuffix("/kernel") for path in kernels}
    shapes = _output_shapes(model, layers, params, image)
    rows = {layer: 2 * index for index, layer in enumerate((IMAGE, *shapes))}
    sources: dict[str, list[list[_Channel]]] = {}
    added: dict[str, list[list[_Channel]]] = {}

    def mark(layer: str, shape: tuple[int, ...]) -> Float[np.ndarray, "markers *spatial channels"]:
        """Two images of the batch are a layer's own: in one its channels are 1, in the other their number plus 1."""
        values = np.zeros((2 * len(rows), *shape[1:]), np.float32)
        values[rows[layer]] = 1
        values[rows[layer] + 1] = np.arange(1, shape[-1] + 1)
        return values

    def read(markers: Any) -> list[list[_Channel]]:
        """Which channels each channel is made of. Added twice, a channel is counted twice, and so is its number."""
        flat = np.asarray(markers[:, *(0,) * (markers.ndim - 2), :])
        found: list[list[_Channel]] = [[] for _ in range(flat.shape[-1])]
        for layer, row in rows.items():
            times, numbers = flat[row], flat[row + 1]
            for channel in np.flatnonzero(times):
                number = numbers[channel] / times[channel] - 1
                if number != round(number):
                    raise ValueError(f"different channels of {layer or 'the image'} are added to each other")
                found[channel].append((layer, round(number)))
        return found

    def replace(layer: str, args: Any, kwargs: Any) -> Any:
        # These are the argument names of `ConvBlock`: the kernel reads [low, x], and `residual` is added to its output.
        # `DepthwiseUp` has one argument, the first.
        given = dict(zip(("x", "low", "factors", "residual"), args, strict=False)) | kwargs
        arriving = [given[name] for name in ("low", "x") if given.get(name) is not None]
        sources[layer] = [channel for markers in arriving for channel in read(markers)]
        beside = read(given["residual"]) if given.get("residual") is not None else []
        if len(sources[layer]) > kernels[f"{layer}/kernel"].shape[-2]:
            # A kernel that is depthwise: each channel it gives is one that it reads, so the two move together.
            sources[layer], beside = [[]], sources[layer]
        if beside:
            added[layer] = [[(layer, number), *others] for number, others in enumerate(beside)]
        return mark(layer, shapes[layer])

    _apply_with(model, layers, {}, mark(IMAGE, image.shape), lambda layer, call, *given: replace(layer, *given))
    return sources, added, {layer: shape[-1] for layer, shape in shapes.items()}


def _output_shapes(
    model: nn.Module, layers: Collection[str], params: Any, image: jax.ShapeDtypeStruct
) -> dict[str, tuple[int, ...]]:
    """Return the output shape of each layer, in the order of their calls, without computing anything."""
    found: dict[str, tuple[int, ...]] = {}

    def note(layer: str, call: Any, args: Any, kwargs: Any) -> Any:
        out = call(*args, **kwargs)
        found[layer] = out.shape
        return out

    jax.eval_shape(lambda params, image: _apply_with(model, layers, params, image, note), params, image)
    return found


def _apply_with(model: nn.Module, layers: Collection[str], params: Any, image: Any, instead: Callable[..., Any]) -> Any:
    """Applies a network in which `instead(path, call, args, kwargs)` takes the place of each layer's call."""

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        is_layer = path in layers and context.method_name == "__call__"
        return instead(path, call, args, kwargs) if is_layer else call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        return model.apply({"params": params}, image)
