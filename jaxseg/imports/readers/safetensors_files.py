"""Reads safetensors files, whose header lists names, types, shapes and places; they cannot hold code."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from jaxseg.types import UserError


def load(path: Path) -> dict[str, Any]:
    """Reads all tensors as NumPy arrays.

    Raises:
        UserError: The file is damaged, or a tensor is of a type that NumPy lacks.
    """
    safetensors: Any = importlib.import_module("safetensors")
    found: dict[str, Any] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                found[name] = opened.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is a damaged safetensors file: {error}") from None
    except (TypeError, AttributeError) as error:  # types of eight bits and less
        raise UserError(f"{path}: tensor {name!r} is of a type that cannot be read ({error})") from None
    return found
