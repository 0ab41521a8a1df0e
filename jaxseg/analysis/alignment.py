"""Alignment of two networks: their channels are brought to the same order, as far as weights tell which correspond.

Networks whose channels are permuted compute the same function and are far apart. Therefore the distance between two
trained networks, and the loss half-way between them, mean little before one of them is permuted towards the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from jaxseg import trees
from jaxseg.analysis.interpolation import layer_of
from jaxseg.analysis.wiring import Axis, Order, Wiring
from jaxseg.types import Params

SWEEPS = 50
"""Largest number of passes over all groups; ten are usual."""

Leaves = Mapping[str, np.ndarray]
"""Parameters by path."""


class _Side(NamedTuple):
    """Where the channels of a parameter belong."""

    layer: str
    last: Axis
    before: Axis | None
    """The axis before the last, of a kernel."""

    def moved(self, leaf: np.ndarray, order: Order) -> np.ndarray:
        """The parameter with its units in another order."""
        leaf = leaf[..., self.last.taken(order)]
        return leaf if self.before is None else leaf[..., self.before.taken(order), :]


def _side(wiring: Wiring, path: str) -> _Side:
    layer = layer_of(path, wiring.gives)
    reads, gives = wiring.axes[layer]
    name = path.removeprefix(f"{layer}/")
    if "/" in name:  # of a norm in front of a convolution, whose channels are those that this reads
        return _Side(layer, reads, None)
    return _Side(layer, gives, reads if name == "kernel" else None)


def permute(wiring: Wiring, params: Params, order: Order) -> Params:
    """Return the network with its units in another order; it computes the same function."""
    leaves = trees.flatten(params)
    return trees.unflatten({path: _side(wiring, path).moved(np.asarray(leaf), order) for path, leaf in leaves.items()})


def align(wiring: Wiring, a: Params, b: Params) -> Order:
    """Return the order of the units of `b` that brings its weights closest to those of `a`, by weight matching.

    Source: Ainsworth, Hayase and Srinivasa 2022, arXiv:2209.04836, algorithm 1. The sum of products of the two
        networks' weights is increased group by group, with all other groups fixed: a linear assignment, solved exactly.
        This ends in a local optimum; it starts from the present order of `b`, so the distance never grows.
    """
    ours, theirs = (_weights(params) for params in (a, b))
    sides = {path: _side(wiring, path) for path in theirs}
    groups = [(group, _uses(sides, group)) for group in wiring.groups]
    order = np.arange(wiring.count)
    for _ in range(SWEEPS):
        changed = False
        for group, uses in groups:
            proposed = order.copy()
            gain = _products(uses, ours, theirs, order, group)
            rows, columns = linear_sum_assignment(gain, maximize=True)
            now = np.searchsorted(np.sort(group), order[group])
            proposed[group[rows]] = np.sort(group)[columns]
            better = gain[rows, columns].sum() - gain[np.arange(len(group)), now].sum()
            if better <= 1e-6 * np.abs(gain).max():
                continue
            # A layer that reads and gives channels of one group was assigned with only one of its sides permuted.
            if _read_and_given(wiring, group):
                layers = {use.side.layer for use in uses}
                touched = {path: side for path, side in sides.items() if side.layer in layers}
                after, before = (_agreement(touched, ours, theirs, each) for each in (proposed, order))
                if after <= before:
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


class _Use(NamedTuple):
    """A parameter that has channels of a group."""

    path: str
    side: _Side
    last: Int[np.ndarray, "times units"]
    """Its channels on the last axis, and on the one before; no rows if there are none."""
    before: Int[np.ndarray, "times units"]


def _uses(sides: Mapping[str, _Side], group: Int[np.ndarray, " units"]) -> list[_Use]:
    none = np.empty((0, len(group)), np.int64)
    found = [
        _Use(path, side, side.last.of(group), none if side.before is None else side.before.of(group))
        for path, side in sides.items()
    ]
    return [use for use in found if len(use.last) or len(use.before)]


def _read_and_given(wiring: Wiring, group: Int[np.ndarray, " units"]) -> bool:
    """Whether some layer reads channels of a group and gives others of it."""
    return any(len(reads.of(group)) and len(gives.of(group)) for reads, gives in wiring.axes.values())


def _agreement(sides: Mapping[str, _Side], ours: Leaves, theirs: Leaves, order: Order) -> float:
    """Sum of products of some weights."""
    return sum(float(np.vdot(ours[path], side.moved(theirs[path], order))) for path, side in sides.items())


def _products(
    uses: Iterable[_Use], ours: Leaves, theirs: Leaves, order: Order, group: Int[np.ndarray, " units"]
) -> Float[np.ndarray, "units units"]:
    """Return the products of all weights of every two units of a group, ours and theirs (the latter ascending)."""
    sums, ascending = np.zeros((len(group), len(group))), np.argsort(group)

    def add(a: np.ndarray, b: np.ndarray, channels: Int[np.ndarray, "times units"]) -> None:
        """Adds products of the columns of two matrices, columns of one unit in their order."""
        for which in channels:
            sums[:] += a[:, which].T @ b[:, which[ascending]]

    for path, side, last, before in uses:
        a, b = ours[path], theirs[path]
        if len(last):
            known = b if side.before is None else b[..., side.before.taken(order), :]
            add(a.reshape(-1, a.shape[-1]), known.reshape(-1, b.shape[-1]), last)
        if len(before):
            known = b[..., side.last.taken(order)]
            left, right = (np.moveaxis(leaf, -2, -1).reshape(-1, leaf.shape[-2]) for leaf in (a, known))
            add(left, right, before)
    return sums
