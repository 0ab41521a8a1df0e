"""Applies rules, by name or from a user's file, and checks that what they return is a network of jaxseg's."""

from __future__ import annotations

import hashlib
import importlib
import math
import pkgutil
import runpy
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import trees
from jaxseg.imports import rules
from jaxseg.imports.kinds import Convert, Imported, Weights
from jaxseg.models import level_strides, make_model
from jaxseg.settings import ModelSettings, TaskSettings, parse_model
from jaxseg.settings.kinds import choices, hints, nearest, one_of
from jaxseg.types import UserError

_SHOWN = 5


class Rules(NamedTuple):
    """Rules that take a network's tensors to jaxseg."""

    name: str
    """One of `named_rules`, or the name of a user's file."""
    sha256: str
    """Checksum of the file that holds them."""
    path: Path
    convert: Convert


class Converted(NamedTuple):
    """A network that was taken over and checked."""

    imported: Imported
    model: ModelSettings
    params: Any
    """Nested dict of float32 arrays."""
    missing: tuple[str, ...]
    """Parameters of the network that the rules give nothing for."""
    unused: tuple[str, ...]
    """Tensors of the file that the rules say nothing of."""


def named_rules() -> tuple[str, ...]:
    """Returns the names of the rules that jaxseg has."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(rules.__path__)))


def find_rules(name: str) -> Rules:
    """Finds rules by name, or executes a user's file that defines `convert`.

    Raises:
        UserError: There are no such rules, or the file cannot be executed or defines none.
    """
    if name in named_rules():
        module = importlib.import_module(f"{rules.__name__}.{name}")
        path = Path(cast(str, module.__file__))
        return Rules(name, hashlib.sha256(path.read_bytes()).hexdigest(), path, module.convert)
    known = f"rules by name are {', '.join(named_rules()) or 'none'}, and a file of your own ends in .py"
    if not name.endswith(".py"):
        raise UserError(f"--rules={name}: there are no such rules{nearest(name, named_rules())} {known.capitalize()}")
    path = Path(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--rules={name} cannot be read: {error.strerror}") from None
    try:
        found = runpy.run_path(str(path))
    except UserError:
        raise
    except Exception as error:
        raise _fault(path, error) from None
    convert = found.get("convert")
    if not callable(convert):
        raise UserError(f"{path} defines no function `convert(tensors, *, metadata)`; docs/import.md shows one")
    return Rules(path.name, hashlib.sha256(content).hexdigest(), path, convert)


def _fault(path: Path, error: Exception) -> UserError:
    """An error inside a user's rules, with the line of their file that it came from."""
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    at = own[-1] if own else getattr(error, "lineno", None)  # of a file that cannot be parsed
    line = f", line {at}" if at else ""
    return UserError(f"{path}{line}: {type(error).__name__}: {error}")


def convert(found: Rules, weights: Weights) -> Converted:
    """Applies rules to the tensors of a file.

    Raises:
        UserError: The tensors are not those that the rules are for, or the rules return what is no network of jaxseg's.
    """
    try:
        imported = found.convert(weights.tensors, metadata=weights.metadata)
    except UserError:
        raise
    except Exception as error:
        raise _fault(found.path, error) from None
    if not isinstance(imported, Imported):
        raise UserError(f"{found.name}: `convert` returns a {type(imported).__name__} and not an Imported")
    try:
        return _checked(imported, weights)
    except UserError as error:
        raise UserError(f"rules {found.name}: {error}") from None


def _checked(imported: Imported, weights: Weights) -> Converted:
    if not isinstance(imported.model, Mapping):
        raise UserError(f"model is a {type(imported.model).__name__} and not a dict of fields of config.model")
    model = parse_model(imported.model)
    for name in ("channels", "classes"):
        count = getattr(imported, name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"{name} = {count!r}; allowed: a number from 1")
    if imported.outputs not in ("classes", "regions"):
        raise UserError(f"outputs = {imported.outputs!r}; allowed: 'classes' or 'regions'")
    allowed = choices(hints(TaskSettings)["normalization"])
    told = imported.normalization
    if told is not None and not (isinstance(told, str) and told in allowed):
        raise UserError(f"normalization = {imported.normalization!r}; allowed: None, {one_of(allowed)}")
    wanted = network_shapes(model, channels=imported.channels, classes=imported.classes)
    params = _check_params(imported.params, wanted)
    _check_names(imported, weights, params)
    told_of = {*imported.used.values(), *(name for name, _ in imported.ignored)}
    return Converted(
        imported,
        model,
        trees.unflatten(params),
        tuple(path for path in wanted if path not in params),
        tuple(name for name in weights.tensors if name not in told_of),
    )


def network_shapes(model: ModelSettings, *, channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a network by its path, without computing anything."""
    # The smallest patch whose coarsest features have two voxels an axis, as some norms need.
    divisors = [math.prod(axis) for axis in zip(*level_strides(model), strict=True)] or [1] * model.ndim
    image = jax.ShapeDtypeStruct((1, *(2 * divisor for divisor in divisors), channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    made = jax.eval_shape(make_model(model, classes=classes).init, key, image)["params"]
    return {path: tuple(leaf.shape) for path, leaf in trees.flatten(made).items()}


def _check_params(given: Any, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the parameters by path, in float32.

    Raises:
        UserError: One has no place in the network, another shape, or values that are not finite; or there is none.
    """
    try:
        flat = trees.flatten(given)
    except Exception:
        flat = {}
    if len(flat) < len(jax.tree.leaves(given)):
        raise UserError("params has two arrays for one path, once in nested dicts and once by the whole path")
    if not flat:
        raise UserError("params holds no arrays by path; it is a nested dict as {'encoder': {'level_0': ...}, ...}")
    params = {}
    for path, leaf in flat.items():
        array = np.asarray(leaf)
        if array.dtype.kind != "f":
            raise UserError(f"params: {path} is of type {array.dtype} and not float32")
        if path not in wanted:
            raise UserError(
                f"params: {path} is no parameter of the network that `model` describes{nearest(path, wanted)}"
            )
        if array.shape != wanted[path]:
            raise UserError(
                f"params: {path} has shape {array.shape}, and the network that `model` describes {wanted[path]}"
            )
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused
            params[path] = np.asarray(array, np.float32, order="C")
        if not np.isfinite(params[path]).all():
            raise UserError(f"params: {path} holds values that are not finite, or too large for float32")
        if path.endswith("running_variance") and (params[path] < 0).any():
            raise UserError(f"params: {path} holds values below 0, which no variance is")
    return params


def _check_names(imported: Imported, weights: Weights, params: Mapping[str, Any]) -> None:
    """Compares what the rules say of names with the file and with what they return.

    Raises:
        UserError: They name a tensor that the file lacks, or name none for a parameter, or are of another form.
    """
    if not isinstance(imported.used, Mapping) or not all(isinstance(name, str) for name in imported.used.values()):
        raise UserError("used is no dict from paths of params to names of tensors")
    if not isinstance(imported.ignored, tuple | list) or not all(map(_is_pair, imported.ignored)):
        raise UserError("ignored is no tuple of pairs, each of a tensor's name and the reason")
    if differing := sorted(imported.used.keys() ^ params.keys(), key=str):
        raise UserError(
            f"used must name a tensor for every path of params and for no other, and differs in "
            f"{', '.join(map(str, differing[:_SHOWN]))}"
        )
    for name in (*imported.used.values(), *(name for name, _ in imported.ignored)):
        if name not in weights.tensors:
            raise UserError(f"used or ignored names {name!r}, which the file does not have")


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple | list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
