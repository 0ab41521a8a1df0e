"""Values of a config's fields: text of mixed meaning parsed, types checked, settings dataclasses filled.

A mistake names the field by its whole path, what it holds and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from jaxseg import paths
from jaxseg.settings.schema import EvaluateSettings, RuntimeSettings, TaskSettings
from jaxseg.types import UserError

STREAMS = ("init", "order", "subset")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean ...?` for a misspelt name, or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def bad_value(path: str, value: Any, allowed: str) -> UserError:
    """The mistake of a field with a value that is not allowed."""
    return UserError(f"config.{path} = {value!r}; allowed: {allowed}")


# ---------------------------------------------------------------------------------------------- fields of mixed type


def parse_number_or(word: str, value: Any, path: str) -> int | None:
    """A positive whole number, or None for the word that stands for an automatic choice."""
    if value == word:
        return None
    if (isinstance(value, int) or (isinstance(value, str) and value.isdigit())) and int(value) >= 1:
        return int(value)
    raise bad_value(path, value, f"{word!r} or a number from 1")


def parse_spacing(value: Any, path: str) -> str | tuple[float, ...]:
    """`native`, `median`, or one number an axis, 0 where it stays as it is."""
    if value in ("native", "median"):
        return str(value)
    parts = re.findall(r"[^\s,()]+", value) if isinstance(value, str) else list(value)
    try:
        spacing = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        spacing = ()
    if len(spacing) not in (2, 3) or not all(0 <= size < math.inf for size in spacing):
        allowed = "'native', 'median', or 2 or 3 positive numbers such as '1.0, 1.0, 3.0' (0 keeps an axis as it is)"
        raise bad_value(path, value, allowed)
    return spacing


def parse_names(value: Any, path: str) -> tuple[str, ...]:
    """Names separated by commas."""
    if not isinstance(value, str):
        raise bad_value(path, value, "names separated by commas, or ''")
    names = tuple(word.strip() for word in value.split(",") if word.strip())
    if len(set(names)) != len(names):
        raise bad_value(path, value, "different names")
    return names


def _is_name(text: str) -> bool:
    """Whether tables and pages can hold a name as it is: spreadsheets run what begins like a formula."""
    return text.isprintable() and text != "" and text[0] not in "=+-@"


def parse_regions(value: Any, path: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Unions of labels, `NAME=LABEL+LABEL`, separated by commas."""
    regions = []
    for text in parse_names(value, path):
        name, _, members = text.partition("=")
        labels = tuple(word.strip() for word in members.split("+"))
        if not _is_name(name.strip()) or not all(labels) or len(set(labels)) != len(labels):
            raise bad_value(path, value, "unions of labels such as 'whole=core+edema, other=core+rim', or ''")
        regions.append((name.strip(), labels))
    if len({name for name, _ in regions}) != len(regions):
        raise bad_value(path, value, "regions of different names")
    return tuple(regions)


# ------------------------------------------------------------------------------------------------------ typed filling


def convert(value: Any, kind: Any, path: str) -> Any:
    """Checks a value against a dataclass field's type; whole numbers pass for floats, single values for tuples."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(convert(item, arguments[0], f"{path}[{index}]") for index, item in enumerate(items))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        raise bad_value(path, value, f"a value of type {getattr(kind, '__name__', kind)}")
    if isinstance(value, str) and not paths.is_text(value):
        raise bad_value(path, value, "UTF-8 text, as records of the study are; rename the file or folder")
    return value


PARSERS: dict[tuple[type, str], Any] = {
    (TaskSettings, "spacing_mm"): parse_spacing,
    (EvaluateSettings, "largest_component"): parse_names,
    (EvaluateSettings, "regions"): parse_regions,
    (RuntimeSettings, "seeds_per_chunk"): lambda value, path: parse_number_or("auto", value, path),
    (RuntimeSettings, "devices"): lambda value, path: parse_number_or("auto", value, path),
}


def fill(cls: type, section: Mapping[str, Any], path: str, **given: Any) -> Any:
    """Builds a settings dataclass from a config section with exactly its fields, apart from those given."""
    if not isinstance(section, Mapping):
        raise bad_value(path, section, "a section of fields, as in configs/default.py")
    hints = typing.get_type_hints(cls)
    expected = [field.name for field in dataclasses.fields(cls) if field.name not in given]
    for name in section:
        if name not in expected:
            raise UserError(
                f"unknown field config.{path}.{name}{nearest(name, expected)} Fields: {', '.join(expected)}"
            )
    values = dict(given)
    for name in expected:
        if name not in section:
            raise UserError(
                f"config.{path}.{name} is missing; start from configs/default.py, which declares every field"
            )
        where, value, kind = f"{path}.{name}", section[name], hints[name]
        if (cls, name) in PARSERS:
            values[name] = PARSERS[cls, name](value, where)
        elif dataclasses.is_dataclass(kind):
            values[name] = fill(typing.cast(type, kind), value, where)
        else:
            values[name] = convert(value, kind, where)
    return cls(**values)


def parse_streams(value: Any, path: str) -> tuple[str, ...]:
    """Random streams, separated by commas."""
    words = tuple(word.strip() for word in convert(value, str, path).split(",") if word.strip())
    for word in words:
        if word not in STREAMS:
            raise UserError(f"config.{path} names {word!r}{nearest(word, STREAMS)} Allowed: {', '.join(STREAMS)}")
    return words


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except re.error:
        return False
    return True
