"""What a setting may be, written as its type, and the one check that reads it there.

A choice is a `Literal`; a range is an `Allowed` in an `Annotated` type; a field that a config holds as
text is `Written` in a form of its own. A mistake names the field by its whole path, what it holds and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple

from jaxseg import paths
from jaxseg.streams import STREAMS
from jaxseg.types import UserError

MAX_SEED = 2**32 - 1
"""Random streams take 32-bit ids."""


class Allowed(NamedTuple):
    """A range: what a message says is allowed, and whether a value is."""

    text: str
    holds: Callable[[Any], bool]


class Written(NamedTuple):
    """A field whose value in a config is text: how it is read, and what stands for the setting's default."""

    read: Callable[[Any, str], Any]
    default: str = ""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a misspelt name, or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def bad_value(path: str, value: Any, allowed: str) -> UserError:
    """The mistake of a field with a value that is not allowed."""
    return UserError(f"config.{path} = {value!r}; allowed: {allowed}")


# ------------------------------------------------------------------------------------------------------------ ranges


def one_of(names: Iterable[Any]) -> str:
    """Choices as messages list them."""
    shown = [repr(name) for name in names]
    return " or ".join(shown) if len(shown) == 2 else ", ".join(shown)


def name_or(choice: Any, prefix: str, rest: str) -> Allowed:
    """One of the names of a `Literal`, or a text that begins with a prefix."""
    names = typing.get_args(choice)
    text = f"{', '.join(map(repr, names))}, '{prefix}{rest}'"
    return Allowed(text, lambda value: value in names or value.startswith(prefix))


def distinct(values: tuple[Any, ...]) -> bool:
    """Whether no value occurs twice."""
    return len(set(values)) == len(values)


def is_seed(value: int) -> bool:
    """Whether random streams take a number as their id."""
    return 0 <= value <= MAX_SEED


Number = Annotated[int, Allowed("a number from 1", lambda number: number >= 1)]
Count = Annotated[int, Allowed("0 or more", lambda number: number >= 0)]
Amount = Annotated[float, Allowed("0 or more", lambda value: 0 <= value < math.inf)]
Positive = Annotated[float, Allowed("a positive number", lambda value: 0 < value < math.inf)]
Share = Annotated[float, Allowed("a share from 0 to 1", lambda value: 0 <= value <= 1)]
ShareBelowOne = Annotated[float, Allowed("a share from 0 to below 1", lambda value: 0 <= value < 1)]
ShareAboveZero = Annotated[float, Allowed("a share above 0 and up to 1", lambda value: 0 < value <= 1)]
ShareBetween = Annotated[float, Allowed("a share between 0 and 1", lambda value: 0 < value < 1)]
Probability = Annotated[float, Allowed("a probability from 0 to 1", lambda value: 0 <= value <= 1)]
Seed = Annotated[int, Allowed(f"a number from 0 to {MAX_SEED}", is_seed)]
Seeds = Annotated[
    tuple[int, ...],
    Allowed(f"different numbers from 0 to {MAX_SEED}", lambda ids: distinct(ids) and all(map(is_seed, ids))),
]
Sizes = Annotated[
    tuple[int, ...],
    Allowed("sizes from 1, or 0 for all", lambda sizes: bool(sizes) and min(sizes) >= 0),
    Allowed("different sizes", distinct),
]
ExternalSets = Annotated[
    tuple[str, ...],
    Allowed("folders, or NAME=FOLDER with different names", lambda sets: all(map(str.strip, sets)) and distinct(sets)),
]
Limits = Annotated[
    tuple[float, ...],
    Allowed(
        "() or a lower and a higher intensity",
        lambda limits: not limits or (len(limits) == 2 and limits[0] < limits[1]),
    ),
]
Rates = Annotated[
    tuple[float, ...],
    Allowed("positive rates", lambda rates: all(0 < rate < math.inf for rate in rates)),
    Allowed("(), or at least two different rates", lambda rates: distinct(rates) and len(rates) != 1),
]


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Types of a settings class by field, with what they are annotated with."""
    return typing.get_type_hints(cls, include_extras=True)


def written(kind: Any) -> Written | None:
    """How a field of this type is written in a config; None where the config holds the value itself."""
    return next((part for part in getattr(kind, "__metadata__", ()) if isinstance(part, Written)), None)


def choices(kind: Any) -> tuple[Any, ...]:
    """The values of a `Literal`; none of other types."""
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def allowed(kind: Any) -> list[Allowed]:
    """What a type restricts its values to."""
    values = choices(kind)
    named = [Allowed(one_of(values), lambda value: value in values)] if values else []
    return named + [part for part in getattr(kind, "__metadata__", ()) if isinstance(part, Allowed)]


def check(settings: Any, path: str = "", note: str = "", *, sections: str | None = None) -> None:
    """Checks every field of a settings class by itself, sections included.

    Args:
        settings: An instance of a settings class.
        path: What messages put in front of its fields.
        note: What they put behind what is allowed.
        sections: In front of the fields of its sections, where that is not `path`.

    Raises:
        UserError: The first value that its type does not allow.
    """
    cls: Any = type(settings)
    for name, kind in hints(cls).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            check(value, f"{path if sections is None else sections}{name}.", note)
            continue
        for text, holds in allowed(kind):
            if not holds(value):
                raise UserError(f"{path}{name} = {value!r}; allowed: {text}{note}")


# ---------------------------------------------------------------------------------------------- fields of mixed type


def read_number(value: Any, path: str) -> int | None:
    """A positive whole number, or None for `auto`."""
    if value == "auto":
        return None
    if (isinstance(value, int) or (isinstance(value, str) and value.isdigit())) and int(value) >= 1:
        return int(value)
    raise bad_value(path, value, "'auto' or a number from 1")


def read_spacing(value: Any, path: str) -> str | tuple[float, ...]:
    """`native`, `median`, or one number an axis, 0 where it stays as it is."""
    if value in ("native", "median"):
        return str(value)
    parts = re.findall(r"[^\s,()]+", value) if isinstance(value, str) else list(value)
    try:
        spacing = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        spacing = ()
    if len(spacing) not in (2, 3) or not all(0 <= size < math.inf for size in spacing):
        text = "'native', 'median', or 2 or 3 positive numbers such as '1.0, 1.0, 3.0' (0 keeps an axis as it is)"
        raise bad_value(path, value, text)
    return spacing


def read_names(value: Any, path: str) -> tuple[str, ...]:
    """Names separated by commas."""
    if not isinstance(value, str):
        raise bad_value(path, value, "names separated by commas, or ''")
    names = tuple(word.strip() for word in value.split(",") if word.strip())
    if not distinct(names):
        raise bad_value(path, value, "different names")
    return names


def _is_name(text: str) -> bool:
    """Whether tables and pages can hold a name as it is: spreadsheets run what begins like a formula."""
    return text.isprintable() and text != "" and text[0] not in "=+-@"


def read_regions(value: Any, path: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Unions of labels, `NAME=LABEL+LABEL`, separated by commas."""
    regions = []
    for text in read_names(value, path):
        name, _, members = text.partition("=")
        labels = tuple(word.strip() for word in members.split("+"))
        if not _is_name(name.strip()) or not all(labels) or not distinct(labels):
            raise bad_value(path, value, "unions of labels such as 'whole=core+edema, other=core+rim', or ''")
        regions.append((name.strip(), labels))
    if not distinct(tuple(name for name, _ in regions)):
        raise bad_value(path, value, "regions of different names")
    return tuple(regions)


def read_factors(value: Any, path: str) -> tuple[tuple[str, float], ...]:
    """Factors of the rate by parameter path, `PATH_REGEX=FACTOR`, separated by blanks."""
    factors = []
    for text in convert(value, str, path).split():
        pattern, _, factor = text.rpartition("=")
        try:
            number = float(factor)
        except ValueError:
            number = math.nan
        if not (pattern and 0 < number < math.inf):
            raise bad_value(path, value, "rules such as '^encoder/level_0/=0.01 ^encoder/=0.1', or ''")
        factors.append((pattern, number))
    return tuple(factors)


def _read_words(value: Any, path: str, known: tuple[str, ...]) -> tuple[str, ...]:
    words = tuple(word.strip() for word in convert(value, str, path).split(",") if word.strip())
    for word in words:
        if word not in known:
            raise UserError(f"config.{path} names {word!r}{nearest(word, known)} Allowed: {', '.join(known)}")
    return words


def read_streams(value: Any, path: str) -> tuple[str, ...]:
    """Random streams, separated by commas."""
    return _read_words(value, path, STREAMS)


def read_varied(value: Any, path: str) -> tuple[str, ...]:
    """What differs between a study's seeds, separated by commas: random streams, and the fold they are tested on."""
    return _read_words(value, path, (*STREAMS, "fold"))


def convert(value: Any, kind: Any, path: str) -> Any:
    """A field's value in its type; whole numbers pass for floats, single values for tuples."""
    if typing.get_origin(kind) is Annotated:
        reader = written(kind)
        return convert(value, typing.get_args(kind)[0], path) if reader is None else reader.read(value, path)
    if typing.get_origin(kind) is Literal:
        kind = type(typing.get_args(kind)[0])
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(convert(item, typing.get_args(kind)[0], f"{path}[{place}]") for place, item in enumerate(items))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        raise bad_value(path, value, f"a value of type {getattr(kind, '__name__', kind)}")
    if isinstance(value, str) and not paths.is_text(value):
        raise bad_value(path, value, "UTF-8 text, as records of the study are; rename the file or folder")
    return value


Auto = Annotated[int | None, Written(read_number, "auto")]
Spacing = Annotated[str | tuple[float, ...], Written(read_spacing, "native")]
Names = Annotated[tuple[str, ...], Written(read_names)]
Regions = Annotated[tuple[tuple[str, tuple[str, ...]], ...], Written(read_regions)]
Factors = Annotated[tuple[tuple[str, float], ...], Written(read_factors)]
Streams = Annotated[tuple[str, ...], Written(read_streams)]
