"""Files that an exported network is written to, as bytes, and what is read back from them."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from jaxseg.types import UserError

Format = Literal["torch", "safetensors", "jax"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENDINGS: dict[Format, tuple[str, ...]] = {"torch": (".pth", ".pt"), "safetensors": (".safetensors",), "jax": (".jax",)}
"""Endings of the files of each format; the first is taken where none is given."""
_NEEDS: dict[Format, tuple[str, str]] = {
    "torch": ("torch", "import"),
    "safetensors": ("safetensors.numpy", "import"),
    "jax": ("flatbuffers", "export"),
}
"""The module beyond jaxseg's own dependencies that writes a format, and the extra that installs it."""
KEY = "jaxseg"
"""Key of the metadata in the header of a safetensors file, whose values are texts."""


class StateDict(NamedTuple):
    """What a file of PyTorch's tensors holds."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def require(kind: Format) -> Any:
    """Return the module that a format needs.

    Raises:
        UserError: It is not installed.
    """
    module, extra = _NEEDS[kind]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"--format={kind} needs {package}, which cannot be imported here ({error}): pip install -e '.[{extra}]', "
            f"or pip install {package}"
        ) from None


def to_safetensors(state: StateDict) -> bytes:
    """Return the content of a .safetensors file, with the metadata as JSON under the key `jaxseg`."""
    return require("safetensors").save(state.tensors, metadata={KEY: json.dumps(state.metadata)})


def from_safetensors(content: bytes) -> StateDict:
    """Return what `to_safetensors` wrote."""
    tensors = require("safetensors").load(content)
    # The library reads metadata from files by name only: eight bytes say how long the header is, which is JSON.
    length = int.from_bytes(content[:8], "little")
    return StateDict(tensors, json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY]))


def to_torch(state: StateDict) -> bytes:
    """Return the content of a .pth file: a dict of `state_dict` and `metadata`, loaded with `weights_only=True`."""
    torch = require("torch")
    content = io.BytesIO()
    tensors = {name: torch.from_numpy(tensor.copy()) for name, tensor in state.tensors.items()}
    torch.save({"state_dict": tensors, "metadata": state.metadata}, content)
    return content.getvalue()


def from_torch(content: bytes) -> StateDict:
    """Return what `to_torch` wrote."""
    found = require("torch").load(io.BytesIO(content), weights_only=True)
    return StateDict({name: tensor.numpy() for name, tensor in found["state_dict"].items()}, found["metadata"])


def can_build(arguments: Mapping[str, Any]) -> bool:
    """Return whether what builds a network in PyTorch is installed, which for nnU-Net's is a package of its own."""
    try:
        _import(arguments.get("network_class_name", "jaxseg.exports.torch_network.build"))
    except ImportError:
        return False
    return True


def _import(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _build(arguments: Mapping[str, Any]) -> Any:
    if "network_class_name" not in arguments:
        return _import("jaxseg.exports.torch_network.build")(**arguments)
    given = dict(arguments["arch_kwargs"])
    for name in arguments["_kw_requires_import"]:
        given[name] = given[name] and _import(given[name])
    return _import(arguments["network_class_name"])(**given)


def torch_logits(
    arguments: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    windows: Float[np.ndarray, "windows *patch channels"],
) -> Float[np.ndarray, "windows *patch classes"]:
    """Return the logits that PyTorch computes with a state dict, every name of which its network must have.

    Args:
        arguments: Those of `torch_network.build`, or the architecture of a nnU-Net plan.
        tensors: The state dict.
        windows: Windows in jaxseg's layout.
    """
    torch = require("torch")
    network = _build(arguments)
    network.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    network.eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.moveaxis(windows, -1, 1).copy()))
    return np.moveaxis(logits.numpy(), 1, -1)
