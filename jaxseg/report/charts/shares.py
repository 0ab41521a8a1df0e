"""Bars that split a whole into shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxseg.report.charts.places import (
    KEY_LETTERS,
    KEY_LINE,
    KEY_SIGN,
    is_narrow,
    key_lines,
    place_axes,
    shift,
    text_width,
)
from jaxseg.report.charts.style import INK, MUTED, ArmStyle, drawing
from jaxseg.text import number, shorten

_FILLS = (
    *(("#0b4a8f", "white"), ("#a6cbe3", INK), ("#eef1f3", INK), ("#e6b8a2", INK), ("#b35806", "white")),
    *(("#d9c46c", INK), ("#4d4d4d", "white")),
)
"""Fill and ink on it, by order of share; neighbours differ in lightness."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A bar: its label, and named shares that sum to 1."""

    label: str
    style: ArmStyle
    shares: tuple[tuple[str, float], ...]


def share_chart(bars: Sequence[Part], *, width: float) -> Figure:
    """Draw one bar a row, its shares in one order in all, their percentages written where there is room.

    Args:
        bars: The bars from top to bottom; at least one.
        width: Width of the figure, in inches.
    """
    narrow = is_narrow(width)
    names = list(dict.fromkeys(name for bar in bars for name, _ in bar.shares))
    letters = 30 if narrow else 28
    row_height, bar_height = (0.5, 0.2) if narrow else (0.3, 0.2)
    with drawing():
        left = 0.05 if narrow else 0.34 + max(text_width(shorten(bar.label, letters)) for bar in bars)
        key = key_lines(names, width)
        top, bottom = KEY_LINE * len(key) + 0.06, 0.1
        body = row_height * len(bars)
        figure = Figure(figsize=(width, top + body + bottom))
        axes = place_axes(figure, left, bottom, width - left - 0.05, body)
        axes.set_xlim(0, 1)
        axes.set_ylim(body, 0)
        axes.set_axis_off()
        for i, bar in enumerate(bars):
            middle = i * row_height + (row_height - 0.13 if narrow else row_height / 2)
            _draw_bar(axes, bar, names, middle, bar_height, width - left)
            label_y = i * row_height + 0.14 if narrow else middle
            at = axes.get_yaxis_transform() + shift(axes, 0.07 - left if not narrow else 0.05, 0)
            axes.plot(
                *([0], [label_y], bar.style.marker),
                transform=at,
                clip_on=False,
                color=bar.style.colour,
                markersize=4.2 * bar.style.scale,
            )
            axes.text(0, label_y, shorten(bar.label, letters), transform=at + shift(axes, 0.1, 0), va="center")
        height = figure.get_figheight()
        for i, line in enumerate(key):
            y = height - 0.12 - KEY_LINE * i
            for name, x in line:
                fill, _ = _FILLS[names.index(name) % len(_FILLS)]
                corner = (x / width, (y - 0.055) / height)
                box = Rectangle(corner, 0.15 / width, 0.11 / height, transform=figure.transFigure)
                box.set(facecolor=fill, edgecolor=MUTED, linewidth=0.5)
                figure.add_artist(box)
                figure.text((x + KEY_SIGN) / width, y / height, shorten(name, KEY_LETTERS), va="center")
    return figure


def _draw_bar(axes: Axes, bar: Part, names: Sequence[str], middle: float, height: float, inches: float) -> None:
    x = 0.0
    values = dict(bar.shares)
    for k, name in enumerate(names):
        share = max(values.get(name, 0.0), 0.0)
        if not share > 0:
            continue
        fill, ink = _FILLS[k % len(_FILLS)]
        axes.add_patch(
            Rectangle((x, middle - height / 2), share, height, facecolor=fill, edgecolor=MUTED, linewidth=0.4)
        )
        if share * inches > 0.36:
            axes.text(x + share / 2, middle, f"{number(100 * share, 0)} %", ha="center", va="center", color=ink)
        x += share
