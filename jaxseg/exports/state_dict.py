"""Parameters of jaxseg as the state dict of the same network in PyTorch, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import trees
from jaxseg.exports import nnunet
from jaxseg.imports.layout import Kind, Pair, to_ours, to_theirs
from jaxseg.imports.rules.nnunet import naming as nnunet_naming
from jaxseg.settings import ModelSettings
from jaxseg.types import Params, UserError

NETWORK = Path(__file__).with_name("torch_network.py")
"""The networks in PyTorch, which this module does not import."""
FIELDS = (
    *("name", "ndim", "widths", "norm", "groups", "dropout", "encoder", "strides", "kernels", "skips"),
    *("blocks", "decoder_blocks", "decoder_widths"),
)
"""Fields of `config.model` that `torch_network.build` takes too."""
NETWORKS = ("unet", "multiscale_fcn", "vnet")
"""Networks that it builds."""
_LEAVES = {
    "kernel": "conv.weight",
    "scale": "norm.weight",
    "running_mean": "norm.running_mean",
    "running_variance": "norm.running_var",
    "slope": "act.weight",
}


def network_arguments(settings: ModelSettings, *, channels: int, classes: int) -> dict[str, Any]:
    """Return the arguments of `torch_network.build` for a network, as JSON values; see `nnunet` for nnU-Net's.

    Args:
        settings: The network.
        channels: Channels of the image.
        classes: Classes that it predicts, background included.

    Raises:
        UserError: There is no such network in PyTorch.
    """
    if settings.name == "nnunet":
        return nnunet.network_arguments(settings, channels=channels, classes=classes)
    if settings.name not in NETWORKS:
        raise UserError(
            f"model.name = {settings.name!r} has no network in PyTorch to export to; those with one are "
            f"{', '.join(NETWORKS)} and nnunet. --format=jax exports every network"
        )
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in FIELDS and value != field.default:
            raise UserError(
                f"model.{field.name} = {value!r}: {settings.name} in PyTorch has no such option; --format=jax exports "
                f"every network"
            )
    given = {name: _listed(getattr(settings, name)) for name in FIELDS}
    return {**given, "channels": channels, "classes": classes}


def _listed(value: Any) -> Any:
    return [_listed(part) for part in value] if isinstance(value, tuple) else value


def pairs(params: Params, settings: ModelSettings) -> list[Pair]:
    """Return the parameters of a network and the names that they have in PyTorch.

    Names follow the paths. A bias belongs to the norm where there is one, and otherwise to the convolution.
    """
    if settings.name == "nnunet":
        return list(nnunet_naming(settings).pairs)
    leaves = trees.flatten(params)
    found = []
    for path, leaf in leaves.items():
        place, _, name = path.rpartition("/")
        bias = "norm.bias" if f"{place}/scale" in leaves else "conv.bias"
        kind: Kind = "vector"
        if name == "kernel":
            kind = "product" if leaf.ndim == 2 else "transposed" if place.endswith("/up") else "kernel"
        theirs = bias if name == "bias" else _LEAVES[name]
        found.append(Pair(path, f"{place.replace('/', '.')}.{theirs}", kind))
    return found


def to_state_dict(params: Params, settings: ModelSettings) -> dict[str, np.ndarray]:
    """Return the parameters of a network under their names and in their layout in PyTorch, in the order of the paths.

    Args:
        params: Parameters of one run, float32.
        settings: The network.
    """
    if settings.name == "nnunet":
        return nnunet.to_state_dict(params, settings)
    leaves, ndim = trees.flatten(params), settings.ndim
    return {pair.name: to_theirs(leaves[pair.path], pair.kind, ndim=ndim) for pair in pairs(params, settings)}


def difference(params: Params, tensors: Mapping[str, np.ndarray], settings: ModelSettings) -> str | None:
    """Describe how tensors in PyTorch's layout differ from the parameters that they should be; None if no bit does."""
    expected = to_state_dict(params, settings)
    if set(expected) != set(tensors):
        return f"the names differ: {', '.join(sorted(set(expected) ^ set(tensors)))}"
    leaves, own = trees.flatten(params), pairs(params, settings)
    for name in sorted(set(expected) - {pair.name for pair in own}):  # second names, and zeros
        if tensors[name].shape != expected[name].shape or tensors[name].tobytes() != expected[name].tobytes():
            return f"{name} has other values"
    for pair in own:
        found, leaf = tensors[pair.name], np.asarray(leaves[pair.path])
        if found.dtype != np.float32 or found.size != math.prod(leaf.shape):
            return f"{pair.name} is {found.dtype} of shape {found.shape}"
        back = to_ours(found, pair.kind)
        if back.shape != leaf.shape or back.tobytes() != leaf.tobytes():
            return f"{pair.name} has other values"
    return None
