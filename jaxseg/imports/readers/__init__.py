"""Reads tensors by name from files of PyTorch and of safetensors; whatever a file is, nothing in it is run."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.imports.kinds import Tensors, Weights
from jaxseg.imports.readers import safetensors_files, state, torch_files
from jaxseg.imports.readers.signature import signature_of
from jaxseg.types import UserError

WRAPPERS = ("module.", "_orig_mod.")
"""Beginnings of all names that `torch.nn.DataParallel` and `torch.compile` add to those of the network inside."""
_WIDER = ("float16", "bfloat16", "float64")
"""Types that are converted to float32, which parameters have here."""


def read(path: Path, *, key: str = "", prefix: str = "") -> Weights:
    """Reads a file's tensors by name.

    Args:
        path: A checkpoint of PyTorch (.pth, .pt, .tar, ...) or a safetensors file; its content decides, not its name.
        key: The entry of a checkpoint that holds the network's tensors; empty where one entry alone can be it.
        prefix: Only tensors whose names begin with it are read, and their names lose it.

    Raises:
        UserError: The file cannot be read, is damaged, is something else, or holds what weights are not made of.
    """
    kind = signature_of(path)
    notes: list[str] = []
    if kind == "safetensors":
        if path.suffix != ".safetensors":
            notes.append(f"{path.name} is a safetensors file, whatever its name says.")
        _require("safetensors", path)
        found = safetensors_files.load(path)
    else:
        _require("torch", path)
        found = torch_files.load(path, zipped=kind == "zip")
    entry, chosen, others = state.find(found, path, key=key)
    if entry:
        notes.append(f"The tensors are those of {entry!r}; not read: {state.listed(others) or 'nothing else'}.")
    named, unwrapped = _unwrapped(chosen)
    if unwrapped:
        notes.append(f"All names begin with {unwrapped!r}, which a wrapper of the network added; it is left out.")
    if prefix:
        named = _below(named, prefix, path, notes)
    tensors, dtypes = _checked(named, path)
    if narrow := sorted({dtype for dtype in dtypes.values() if dtype in _WIDER}):
        notes.append(f"Tensors of type {' and '.join(narrow)} are converted to float32.")
    return Weights(tensors, dtypes, state.plain_parts(others), tuple(notes))


def _require(package: str, path: Path) -> None:
    """Refuses to go on without a package of the extra `import`.

    Raises:
        UserError: It is not installed, or older than the first version that reads files safely.
    """
    what = {"torch": "a checkpoint of PyTorch", "safetensors": "a safetensors file"}[package]
    install = "pip install 'jaxseg[import]'"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{path} is {what}, and the package {package} that reads it is not installed: {install}"
        ) from None
    least = torch_files.LEAST_VERSION
    if package == "torch" and tuple(int(part) for part in version.split(".")[:2]) < least:
        raise UserError(
            f"torch {version} may run code that hides in a checkpoint; at least {'.'.join(map(str, least))} is needed: "
            f"{install}"
        )


def _unwrapped(named: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Tensors without the beginnings that wrappers add to all names, and what was left out."""
    found, left_out = dict(named), ""
    while wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in found)), ""):
        found = {name.removeprefix(wrapper): value for name, value in found.items()}
        left_out += wrapper
    return found, left_out


def _below(named: Mapping[str, Any], prefix: str, path: Path, notes: list[str]) -> dict[str, Any]:
    found = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    if not found:
        raise UserError(f"--prefix={prefix}: no tensor of {path} has a name that begins so; --list shows the names")
    if beside := [name for name in named if not name.startswith(prefix)]:
        notes.append(
            f"{len(beside)} tensor(s) whose names do not begin with {prefix!r} are not read, as {beside[0]!r}."
        )
    return found


def _checked(named: Mapping[str, Any], path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors as NumPy arrays, and their types in the file.

    Raises:
        UserError: A tensor is of a kind that no network here has, or holds values that are not finite.
    """
    tensors, dtypes = Tensors(), {}
    for name, value in named.items():
        array = torch_files.to_numpy(value, f"{path}: tensor {name!r}")
        dtypes[name] = str(array.dtype)
        if array.dtype.kind == "c":
            raise UserError(f"{path}: tensor {name!r} is complex ({array.dtype}); networks here have real parameters")
        if array.dtype.kind not in "iub":  # bfloat16 is of NumPy's kind V
            with np.errstate(over="ignore"):  # what overflows is infinite, and refused
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise UserError(
                    f"{path}: tensor {name!r} holds values that are not finite, or too large for float32; a network "
                    f"with them computes nothing"
                )
        tensors[name] = array
    if not any(dtype.startswith(("float", "bfloat")) and math.prod(tensors[n].shape) for n, dtype in dtypes.items()):
        raise UserError(f"{path} holds no tensor of numbers with a fraction, and so no weights")
    return tensors, dtypes
