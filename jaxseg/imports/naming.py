"""Which tensor of another network each parameter of ours is: one list for a network, read in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxseg import trees
from jaxseg.imports.layout import Kind, Pair, to_ours, to_theirs
from jaxseg.types import Params

_NORM = {
    "scale": "weight",
    "bias": "bias",
    "running_mean": "running_mean",
    "running_variance": "running_var",
}
"""Parameters of a norm here, and in PyTorch."""


@dataclasses.dataclass(frozen=True)
class Naming:
    """Names of a network's parameters in a state dict of PyTorch.

    PyTorch's networks often have a bias before a norm. An instance norm subtracts it again, whatever it is, and a batch
    norm subtracts it from the running mean as well; jaxseg has none. A bias of zeros computes the same on the way out.
    """

    pairs: tuple[Pair, ...]
    biases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of biases that a norm follows, each with the path of the module that has the norm here."""

    def __add__(self, other: Naming) -> Naming:
        """Return the names of both."""
        return Naming((*self.pairs, *other.pairs), {**self.biases, **other.biases})


def conv_block(path: str, conv: str, normed: str, norm: str, *, leading: int = 0) -> Naming:
    """Return the names of a `jaxseg.models.blocks.ConvBlock`.

    Args:
        path: Path of the block.
        conv: Name of PyTorch's convolution.
        normed: Name of PyTorch's norm.
        norm: The network's `model.norm`; without a norm, the bias is the convolution's.
        leading: See `Pair`.
    """
    kernel = Pair(f"{path}/kernel", f"{conv}.weight", "kernel", leading)
    if norm == "none":
        return Naming((kernel, Pair(f"{path}/bias", f"{conv}.bias", "vector")))
    return Naming((kernel, *_norm(path, normed, norm)), {f"{conv}.bias": path})


def norm_first(path: str, conv: str, normed: str, norm: str) -> Naming:
    """Return the names of a `ConvBlock` whose norm stands in front of the convolution; see `conv_block`."""
    return Naming(_norm(f"{path}/norm", normed, norm)) + plain(path, conv, "kernel")


def _norm(path: str, normed: str, norm: str) -> tuple[Pair, ...]:
    names = [name for name in _NORM if norm == "batch" or not trees.is_statistic(name)]
    return tuple(Pair(f"{path}/{name}", f"{normed}.{_NORM[name]}", "vector") for name in names)


def plain(path: str, name: str, kind: Kind) -> Naming:
    """Return the names of a layer with a kernel and a bias and no norm."""
    return Naming((Pair(f"{path}/kernel", f"{name}.weight", kind), Pair(f"{path}/bias", f"{name}.bias", "vector")))


def take(
    tensors: Mapping[str, np.ndarray], naming: Naming, *, axes: Sequence[int] | None = None
) -> tuple[Params, dict[str, str], list[tuple[str, str]]]:
    """Return the parameters that a state dict holds, the tensor that each was made from, and the biases left out.

    Args:
        tensors: The state dict.
        naming: Names of the network's parameters there.
        axes: See `layout.kernel`.
    """
    leaves = {pair.path: to_ours(tensors[pair.name], pair.kind, axes=axes) for pair in naming.pairs}
    for pair in naming.pairs:
        if pair.leading:
            leaves[pair.path] = np.roll(leaves[pair.path], -pair.leading, -2)
    used = {pair.path: pair.name for pair in naming.pairs}
    ignored = []
    for name, path in naming.biases.items():
        if name not in tensors:  # a network that was built without them
            continue
        mean = f"{path}/running_mean"
        if mean in leaves:
            leaves[mean] = leaves[mean] - tensors[name].astype(np.float32)
            ignored.append((name, "subtracted from the running mean of the norm behind it, where it computes the same"))
        else:
            ignored.append((name, "a bias that the norm behind it subtracts again"))
    return trees.unflatten(leaves), used, ignored


def give(params: Params, naming: Naming, *, ndim: int, axes: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Return the state dict of parameters, in which biases before norms are zeros; it computes what they compute.

    Args:
        params: Parameters of a network.
        naming: Names of its parameters in PyTorch.
        ndim: Spatial axes of the network.
        axes: See `layout.kernel`.
    """
    leaves = trees.flatten(params)
    tensors = {}
    for pair in naming.pairs:
        leaf = np.asarray(leaves[pair.path])
        leaf = np.roll(leaf, pair.leading, -2) if pair.leading else leaf
        tensors[pair.name] = to_theirs(leaf, pair.kind, axes=axes, ndim=ndim)
    for name, path in naming.biases.items():
        tensors[name] = np.zeros(leaves[f"{path}/bias"].shape, np.float32)
    return tensors
