"""Reads checkpoints of PyTorch, which are pickles, without running what a pickle asks for.

PyTorch's own restricted unpickler (`weights_only=True`) makes tensors and plain values and refuses every other name.
Checkpoints often hold numbers of NumPy beside the weights (a best score, a history of losses). Their names are allowed
too, but stand for `Unread`, which ignores what it is given: NumPy itself makes nothing from the file.
"""

from __future__ import annotations

import importlib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxseg.types import UserError

LEAST_VERSION = (2, 6)
"""The first version whose restricted unpickler holds: before, a crafted file could run code (CVE-2025-32434)."""

_NUMPY = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
)
"""Names by which pickles of NumPy's scalars and arrays ask for them."""


class Unread:
    """Stands for a number or an array of NumPy in a checkpoint."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def load(path: Path, *, zipped: bool) -> Any:
    """Reads the object that `torch.save` wrote: tensors, texts, numbers, and lists and dicts of these.

    Args:
        path: The file.
        zipped: Whether it is a zip file, as since PyTorch 1.6.

    Raises:
        UserError: The file is damaged, or its pickle asks for anything else.
    """
    torch: Any = importlib.import_module("torch")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(Unread, name) for name in _NUMPY]):
            warnings.simplefilter("ignore")  # on protocols of pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error), zipped=zipped) from None
    except MemoryError:
        raise UserError(f"{path} asks for more memory than there is; it is damaged, or made to fill it") from None
    # What damaged bytes make the unpickler and the reader of storages raise.
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        said = str(error).splitlines()[0].partition(". ")[0] if str(error) else "it ends too early"
        raise UserError(
            f"{path} is a damaged checkpoint of PyTorch ({said}): it may be cut short; download it again"
        ) from None


def _refused(path: Path, said: str, *, zipped: bool) -> UserError:
    """What to say of a pickle that the restricted unpickler refused."""
    asked = re.search(r"GLOBAL (\S+)|(?:class|function) <?(?:class |function )?'?([\w.]+\.[\w.]+)", said)
    name = next((group for group in asked.groups() if group), "") if asked else ""
    if name.startswith("torch.nn.") or (name and ".models." in name):
        return UserError(
            f"{path} holds a whole network ({name}) and not its weights alone, and is not opened; where you trust it, "
            f"torch.save(network.state_dict(), NEW_FILE) writes the weights"
        )
    if name:
        return UserError(
            f"{path} asks for {name}, which no weights are made of; nothing of it was run. Where you trust it, "
            f"torch.save(network.state_dict(), NEW_FILE) writes the weights alone, which can be read"
        )
    if "magic number" in said or not zipped:
        return UserError(
            f"{path} is a pickle, but no checkpoint that torch.save wrote, or a damaged one; nothing of it was run"
        )
    return UserError(f"{path} is a damaged checkpoint of PyTorch: its pickle cannot be read; nothing of it was run")


def is_tensor(value: Any) -> bool:
    """Returns whether a value is a tensor of PyTorch or an array of NumPy."""
    return isinstance(value, np.ndarray) or (
        type(value).__module__.split(".")[0] == "torch" and hasattr(value, "layout")
    )


def to_numpy(value: Any, where: str) -> np.ndarray:
    """Returns a tensor as an array of its type, bfloat16 included.

    Raises:
        UserError: The tensor is no plain block of numbers, or claims more values than its storage holds.
    """
    if isinstance(value, np.ndarray):
        return value
    torch: Any = importlib.import_module("torch")
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        what = "quantised" if value.is_quantized else "without values" if value.device.type == "meta" else "sparse"
        raise UserError(f"{where} is {what}; only plain tensors are read")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(
            f"{where} claims {value.numel():,} values, and its storage holds fewer; it is damaged, or made to fill the "
            f"memory"
        )
    if value.dtype == torch.bfloat16:
        return value.detach().contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    try:
        return value.detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{where} is of type {value.dtype}, which is not read ({error})") from None
