"""Alignment of two networks: their channels are brought to the same order, as far as weights tell which correspond.

Networks whose channels are permuted compute the same function and are far apart. Therefore the distance between two
trained networks, and the loss half-way between them, mean little before one of them is permuted towards the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from jaxseg import trees
from jaxseg.analysis.interpolation import layer_of
from jaxseg.analysis.wiring import FIXED, Wiring
from jaxseg.types import Params

SWEEPS = 50
"""Largest number of passes over all groups; ten are usual."""

Order = Int[np.ndarray, " units"]
"""For each unit of a network, the unit that takes its place."""
Leaves = Mapping[str, np.ndarray]
"""Parameters by path."""


def _takes(units: Int[np.ndarray, " channels"], order: Order) -> Int[np.ndarray, " channels"]:
    """The channel that takes the place of each, when units are permuted; a unit may have several channels here."""
    places: dict[int, list[int]] = {}
    for channel, unit in enumerate(units):
        places.setdefault(int(unit), []).append(channel)
    seen = dict.fromkeys(places, 0)
    taken = np.arange(len(units))
    for channel, unit in enumerate(units):
        if unit != FIXED:
            taken[channel] = places[int(order[unit])][seen[int(unit)]]
            seen[int(unit)] += 1
    return taken


def _sides(wiring: Wiring, path: str) -> tuple[str, np.ndarray, np.ndarray | None]:
    """The layer of a parameter, and the units of its last axis, and of the one before that in a kernel."""
    layer = layer_of(path, wiring.gives)
    name = path.removeprefix(f"{layer}/")
    if "/" in name:  # of a norm in front of a convolution, whose channels are those that this reads
        return layer, wiring.reads[layer], None
    return layer, wiring.gives[layer], wiring.reads[layer] if name == "kernel" else None


def _moved(leaf: np.ndarray, last: np.ndarray, before: np.ndarray | None, order: Order) -> np.ndarray:
    leaf = leaf[..., _takes(last, order)]
    return leaf if before is None else leaf[..., _takes(before, order), :]


def permute(wiring: Wiring, params: Params, order: Order) -> Params:
    """Return the network with its units in another order; it computes the same function."""
    moved = {}
    for path, leaf in trees.flatten(params).items():
        _, last, before = _sides(wiring, path)
        moved[path] = _moved(np.asarray(leaf), last, before, order)
    return trees.unflatten(moved)


def align(wiring: Wiring, a: Params, b: Params) -> Order:
    """Return the order of the units of `b` that brings its weights closest to those of `a`, by weight matching.

    Source: Ainsworth, Hayase and Srinivasa 2022, arXiv:2209.04836, algorithm 1. The sum of products of the two
        networks' weights is increased group by group, with all other groups fixed: a linear assignment, solved exactly.
        This ends in a local optimum; it starts from the present order of `b`, so the distance never grows.
    """
    ours, theirs = (_weights(params) for params in (a, b))
    order = np.arange(wiring.count)
    for _ in range(SWEEPS):
        changed = False
        for group in wiring.groups:
            proposed = order.copy()
            gain = _products(wiring, ours, theirs, order, group)
            rows, columns = linear_sum_assignment(gain, maximize=True)
            now = np.searchsorted(np.sort(group), order[group])
            proposed[group[rows]] = np.sort(group)[columns]
            better = gain[rows, columns].sum() - gain[np.arange(len(group)), now].sum()
            if better <= 1e-6 * np.abs(gain).max():
                continue
            # A layer that reads and gives channels of one group was assigned with only one of its sides permuted.
            touched = _touched(wiring, group)
            if any(_reads_and_gives(wiring, layer, group) for layer in touched) and (
                _agreement(wiring, ours, theirs, proposed, touched) <= _agreement(wiring, ours, theirs, order, touched)
            ):
                continue
            order, changed = proposed, True
        if not changed:
            break
    return order


def _weights(params: Params) -> Leaves:
    """Parameters without running statistics, which are no weights and have other magnitudes."""
    return {
        path: np.asarray(leaf, np.float32) for path, leaf in trees.flatten(params).items()
        if not trees.is_statistic(path)
    }  # fmt: skip


def _touched(wiring: Wiring, group: Int[np.ndarray, " units"]) -> list[str]:
    """Layers that give or read channels of a group."""
    return [
        layer for layer in wiring.gives
        if np.isin(wiring.gives[layer], group).any() or np.isin(wiring.reads[layer], group).any()
    ]  # fmt: skip


def _reads_and_gives(wiring: Wiring, layer: str, group: Int[np.ndarray, " units"]) -> bool:
    return bool(np.isin(wiring.gives[layer], group).any() and np.isin(wiring.reads[layer], group).any())


def _agreement(wiring: Wiring, ours: Leaves, theirs: Leaves, order: Order, layers: list[str]) -> float:
    """Sum of products of the weights of some layers."""
    total = 0.0
    for path, leaf in theirs.items():
        layer, last, before = _sides(wiring, path)
        if layer in layers:
            total += float(np.vdot(ours[path], _moved(leaf, last, before, order)))
    return total


def _products(
    wiring: Wiring, ours: Leaves, theirs: Leaves, order: Order, group: Int[np.ndarray, " units"]
) -> Float[np.ndarray, "units units"]:
    """Return the products of all weights of every two units of a group, ours and theirs (the latter ascending)."""
    sums = np.zeros((len(group), len(group)))
    for path, a in ours.items():
        b = theirs[path]
        _, last, before = _sides(wiring, path)
        if np.isin(last, group).any():
            known = b if before is None else b[..., _takes(before, order), :]
            _add(sums, a.reshape(-1, a.shape[-1]), known.reshape(-1, b.shape[-1]), last, group)
        if before is not None and np.isin(before, group).any():
            known = b[..., _takes(last, order)]
            left, right = (np.moveaxis(side, -2, -1).reshape(-1, side.shape[-2]) for side in (a, known))
            _add(sums, left, right, before, group)
    return sums


def _add(sums: np.ndarray, a: np.ndarray, b: np.ndarray, units: np.ndarray, group: np.ndarray) -> None:
    """Adds products of the columns of two matrices, columns of one unit in their order."""
    channels = [np.flatnonzero(units == unit) for unit in group]
    ascending = np.argsort(group)
    for which in zip(*channels, strict=True):
        left = np.array(which)
        sums += a[:, left].T @ b[:, left[ascending]]
