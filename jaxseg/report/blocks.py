"""What a section of the page is made of; the template knows how each kind looks.

Texts are plain strings, which the template escapes, or Markup built by `sentence`, which escapes what it fills in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxseg.report.charts.style import ArmStyle, swatch_path
from jaxseg.text import plain

Styles = Mapping[str, ArmStyle]
"""The look of each arm, in the study's order."""

_DESCRIBED_ROWS = 10


def sentence(pattern: str, **values: object) -> Markup:
    """Fill a pattern, which may hold tags, with values, which may not.

    >>> sentence("<b>{arm}</b> leads", arm="<i>")
    Markup('<b>&lt;i&gt;</b> leads')
    """
    return Markup(pattern).format(
        **{key: value if isinstance(value, Markup) else plain(value) for key, value in values.items()}
    )


def arm_name(arm: str, styles: Styles) -> Markup:
    """Return an arm's name behind its marker, kept together."""
    style = styles.get(arm)
    first, *rest = re.split(r"(?<=[_\-./])(?=.)", plain(arm))  # a long name may be broken after these
    mark = (
        Markup('<svg class="swatch" viewBox="-1 -1 2 2" aria-hidden="true"><path d="{}" fill="{}"/></svg>').format(
            swatch_path(style), style.colour
        )
        if style
        else Markup("")
    )
    tail = Markup("").join(Markup("<wbr>{}").format(part) for part in rest)
    if style and style.note:
        tail += Markup('<sup title="{}">†</sup>').format(plain(style.note))
    return Markup('<span class="arm"><span>{}{}</span>{}</span>').format(mark, first, tail)


def described(what: str, rows: Iterable[Any], words: Callable[[Any], str]) -> str:
    """Put a figure's rows in words for those who cannot see it; of many, the first ten.

    >>> described("DSC", [("a", 1)], lambda row: f"{row[0]} {row[1]}")
    'DSC: a 1.'
    """
    texts = [words(row) for row in rows]
    more = f"; and {len(texts) - _DESCRIBED_ROWS} more" if len(texts) > _DESCRIBED_ROWS else ""
    return f"{what}: {'; '.join(texts[:_DESCRIBED_ROWS])}{more}."


@dataclasses.dataclass(frozen=True)
class _Words:
    text: str


class Prose(_Words):
    """A paragraph."""

    kind = "prose"


class Lead(_Words):
    """What the reader came for: the sentences that the page starts with."""

    kind = "lead"


class Notice(_Words):
    """A paragraph that the reader must not miss."""

    kind = "notice"


class Missing(_Words):
    """Stands where something would be shown if its table were there."""

    kind = "missing"


class Heading(_Words):
    """A heading inside a section."""

    kind = "heading"


class Verbatim(_Words):
    """Text as it stands in a file."""

    kind = "verbatim"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is asked, and what was found, a plain sentence each: how every section and analysis starts."""

    asked: str
    found: str
    kind: ClassVar[str] = "finding"


@dataclasses.dataclass(frozen=True)
class KeyFigure:
    """A number to remember: `value`, what it means, and how sure it is."""

    value: str
    meaning: str
    interval: str


@dataclasses.dataclass(frozen=True)
class Strip:
    """Key figures side by side."""

    figures: tuple[KeyFigure, ...]
    kind: ClassVar[str] = "strip"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure: a file stem, a function of the keyword `width`, and what it shows in words."""

    stem: str
    draw: Callable[..., Figure]
    alt: str
    caption: str
    data: pd.DataFrame | None = None
    """Numbers that the report made itself for this figure and its text, to lie beside it as a CSV."""
    kind: ClassVar[str] = "chart"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: a number or name, and a smaller addition such as its interval."""

    text: str
    small: str = ""


@dataclasses.dataclass(frozen=True)
class TableGroup:
    """Rows below one heading; an empty heading is not shown. The first cell of a row names it."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; columns listed in `text_columns` hold words, the others numbers."""

    caption: str
    head: tuple[str, ...]
    groups: tuple[TableGroup, ...]
    text_columns: tuple[int, ...] = (0,)
    cards: bool = False
    """Whether a phone shows each row as a card, since its cells hold sentences."""
    stem: str = ""
    data: pd.DataFrame | None = None
    """Numbers that the report made itself for this table, to lie among the figures as `stem`.csv."""
    kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens."""

    title: str
    blocks: tuple[Block, ...]
    kind: ClassVar[str] = "fold"


def first_then_fold(title: str, blocks: Sequence[Block]) -> Iterator[Block]:
    """Show the first block; those after it, if there are any, are for the reader to open."""
    yield blocks[0]
    if blocks[1:]:
        yield Fold(title, tuple(blocks[1:]))


Block = Prose | Lead | Notice | Missing | Finding | Heading | Strip | Chart | Table | Verbatim | Fold


@dataclasses.dataclass(frozen=True)
class Section:
    """A numbered part of the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
