"""Turns JSON into dataclasses and named tuples, checking every field, and such values into JSON."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

_WORDS = {str: "a text", int: "a whole number", float: "a number"}


class MismatchError(ValueError):
    """Raised if JSON is not of the requested type; the text says where, what is there and what should be."""


def from_tree(kind: Any, tree: Any, where: str = "") -> Any:
    """Makes a value of a type from JSON, whose objects may have other fields beside those of the type.

    Args:
        kind: A text, number, `tuple[..., ...]`, `Mapping[str, ...]`, dataclass or named tuple, or one of these and
            None. A whole number passes for `float`.
        tree: What was read. A field that is null or missing has its default, or is None where it may be.
        where: The place of `tree` in the file, for the message.

    Raises:
        MismatchError: If something is of another type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if tree is None else from_tree(inner[0], tree, where)
    if kind in _WORDS:
        if isinstance(tree, bool) or not isinstance(tree, (int, float) if kind is float else kind):
            raise MismatchError(f"{where} is {_shown(tree)} and not {_WORDS[kind]}")
        return tree
    if origin is tuple:
        if not isinstance(tree, list):
            raise MismatchError(f"{where} is {_shown(tree)} and not a list")
        if inner[-1] is not ... and len(tree) != len(inner):
            raise MismatchError(f"{where} has {len(tree)} entries and not {len(inner)}")
        return tuple(from_tree(inner[0], part, f"{where}[{index}]") for index, part in enumerate(tree))
    if not isinstance(tree, dict):
        raise MismatchError(f"{where or 'it'} is {_shown(tree)} and not an object")
    if origin is not None:
        return {name: from_tree(inner[1], part, f"{where}.{name!r}") for name, part in tree.items()}
    hints, defaults = _fields_of(kind)
    given = {name: tree.get(name) for name in hints if name not in defaults or tree.get(name) is not None}
    return kind(**{name: from_tree(hints[name], part, f"{where}.{name}".lstrip(".")) for name, part in given.items()})


@functools.cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of a class's fields by name, and which of them have a default."""
    if not dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind), frozenset(kind._field_defaults)
    missing = dataclasses.MISSING
    fields = [f.name for f in dataclasses.fields(kind) if (f.default, f.default_factory) != (missing, missing)]
    return typing.get_type_hints(kind), frozenset(fields)


def to_tree(value: Any) -> Any:
    """Returns a value as JSON that `from_tree` reads back."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return {name: to_tree(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: to_tree(part) for name, part in value.items()}
    return [to_tree(part) for part in value] if isinstance(value, tuple) else value


def _shown(tree: Any) -> str:
    if tree is None:
        return "missing"
    if isinstance(tree, str | int | float | bool):
        return repr(tree) if len(repr(tree)) < 80 else f"{repr(tree)[:60]}..."
    return "a list" if isinstance(tree, list) else "an object"
