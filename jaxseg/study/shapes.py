"""The shape of JSON that was read from disk: types where they should be, or what is wrong and where.

A shape is a type; a list of one shape; a dict of fields, beside which others may stand; or a dict of one shape under
the key `str`, whose names are any. A whole number passes for `float`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Maybe(NamedTuple):
    """The shape of a value that may be null or missing."""

    shape: Any


def problem(value: Any, shape: Any, where: str) -> str | None:
    """What differs from a shape, with its place in the record; None where nothing does."""
    if isinstance(shape, Maybe):
        return None if value is None else problem(value, shape.shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is {_kind(value)} and not a list"
        parts = [(item, shape[0], f"{where}[{index}]") for index, item in enumerate(value)]
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where or 'it'} is {_kind(value)} and not an object"
        if str in shape:
            parts = [(item, shape[str], f"{where}.{name!r}") for name, item in value.items()]
        else:
            parts = [(value.get(name), part, f"{where}.{name}".lstrip(".")) for name, part in shape.items()]
    else:
        allowed = (int, float) if shape is float else (shape,)
        sound = isinstance(value, allowed) and not isinstance(value, bool)
        return None if sound else f"{where} is {_kind(value)} and not {_NAMES[shape]}"
    return next((told for part in parts if (told := problem(*part)) is not None), None)


_NAMES = {str: "a text", int: "a whole number", float: "a number"}


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str | int | float | bool):
        return repr(value) if len(repr(value)) < 80 else f"{repr(value)[:60]}..."
    return "a list" if isinstance(value, list) else "an object"
