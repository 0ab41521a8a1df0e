"""Row charts: means with intervals and the values behind them, one under the other."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, Transform, blended_transform_factory

from jaxseg.report.charts.places import is_narrow, place_axes, place_log_ticks, place_ticks, shift, text_width
from jaxseg.report.charts.style import FONT_PT, INK, MUTED, RULE, ArmStyle
from jaxseg.text import number, shorten


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a row chart: a mean with its interval, the single values behind it, and its numbers in words."""

    label: str
    style: ArmStyle
    mean: float
    low: float
    high: float
    points: tuple[float, ...]
    beyond: tuple[float, ...]
    """Values that are known only as lower limits, which open arrows show."""
    note: str
    shape: Literal["line", "diamond", "bar"] = "line"
    """How the interval is drawn: with a mark at the mean, or as a forest plot's mean or prediction over its rows."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows under a common heading."""

    title: str
    rows: tuple[Row, ...]


_PAPER: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
"""Behind words that stand over the grid."""
_BOTTOM = 0.52
"""Height below the rows, for ticks and the axis' label."""


class ValueAxis(NamedTuple):
    """The axis of a row chart."""

    label: str
    """What it shows, with its unit."""
    zero: float | None = None
    """Where there is a line of no difference."""
    band: tuple[float, float] | None = None
    """Limits of a shaded range: values too small to matter, or those between the two limits of a rule."""
    sides: tuple[str, str] | None = None
    """What lying left and right of `zero` means."""
    start: float | None = None
    """Where the axis begins, where that is not for the values to say."""
    bounds: tuple[float, float] = (-np.inf, np.inf)
    """Values beyond cannot be; the axis ends there at the latest."""
    ticks: Callable[[float, int], str] = number
    """Returns the label of a tick, given its value and the number of digits."""
    log: bool = False
    """Whether it is logarithmic, as is due to ratios: half as much and twice as much lie equally far from as much. All
    values are positive then, and `start`, `bounds` and `ticks` are not asked for."""


def row_chart(groups: Sequence[Group], axis: ValueAxis, *, width: float) -> Figure:
    """Draw intervals in rows: a forest plot where the axis has a line of no difference.

    Args:
        groups: At least one row in all; a heading is drawn where there are several groups.
        axis: What the values are.
        width: Width of the figure, in inches.

    Returns:
        A figure as high as its rows need. An interval much wider than the others is cut, with an arrow at the cut.
    """
    layout = _lay_out(groups, width)
    height = layout.body + (0.3 if axis.sides else 0.12) + _BOTTOM
    figure = Figure(figsize=(width, height))
    axes = place_axes(figure, layout.left, _BOTTOM, width - layout.left - layout.right, layout.body)
    axes.set_ylim(layout.body, 0)
    _scale(axes, axis, [row for group in groups for row in group.rows], 4 if layout.narrow else 6)
    axes.set_xlabel(axis.label, labelpad=5)
    _draw_background(axes, axis)
    _draw_groups(axes, groups, layout)
    return figure


def _scale(axes: Axes, axis: ValueAxis, rows: Sequence[Row], at_most: int) -> None:
    if axis.log:
        axes.set_xscale("log")
        axes.set_xlim(*np.exp(_limits([_logged(row) for row in rows], _logged_axis(axis))))
        place_log_ticks(axes.xaxis, at_most)
        return
    axes.set_xlim(*_limits(rows, axis))
    if axis.start is not None:
        axes.set_xlim(left=axis.start)
    place_ticks(axes.xaxis, at_most, axis.ticks)


def _logged(row: Row) -> Row:
    points, beyond = (tuple(map(math.log, values)) for values in (row.points, row.beyond))
    mean, low, high = map(math.log, (row.mean, row.low, row.high))
    return dataclasses.replace(row, mean=mean, low=low, high=high, points=points, beyond=beyond)


def _logged_axis(axis: ValueAxis) -> ValueAxis:
    band = None if axis.band is None else (math.log(axis.band[0]), math.log(axis.band[1]))
    return axis._replace(zero=None if axis.zero is None else math.log(axis.zero), band=band)


class _Layout(NamedTuple):
    """Where the rows of a chart stand, in inches. On a phone names and notes stand above their rows, else beside."""

    narrow: bool
    letters: int
    """The number of letters to which a row's name is shortened."""
    indent: float
    """How far rows stand in from their headings; 0 where there are none."""
    heading: float
    row: float
    body: float
    left: float
    right: float


def _lay_out(groups: Sequence[Group], width: float) -> _Layout:
    narrow, titled = is_narrow(width), len(groups) > 1
    rows = [row for group in groups for row in group.rows]
    letters, row_height = (30, 0.46) if narrow else (28, 0.29)
    heading, indent = (0.3, 0.14) if titled else (0.0, 0.0)
    left = 0.12 if narrow else 0.34 + indent + max(text_width(shorten(row.label, letters)) for row in rows)
    right = 0.12 if narrow else 0.18 + max(text_width(row.note) for row in rows)
    body = len(rows) * row_height + len(groups) * heading
    return _Layout(narrow, letters, indent, heading, row_height, body, left, right)


def _draw_groups(axes: Axes, groups: Sequence[Group], layout: _Layout) -> None:
    at = _inches_left_of(axes)
    letters, paper = (46, _PAPER) if layout.narrow else (60, None)
    y = 0.0
    for group in groups:
        if layout.heading:
            x, middle = 0 if layout.narrow else -layout.left, y + layout.heading * 0.62
            axes.text(x, middle, shorten(group.title, letters), transform=at, va="center", weight="bold", bbox=paper)
            y += layout.heading
        for row in group.rows:
            _draw_row(axes, row, y, layout)
            y += layout.row


def _draw_background(axes: Axes, axis: ValueAxis) -> None:
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    if axis.band is not None:
        axes.axvspan(*axis.band, color="#eceff1", linewidth=0, zorder=0)
    if axis.zero is not None:
        axes.axvline(axis.zero, color=INK, linewidth=0.8, zorder=1)
        if axis.sides is not None:
            _above(axes, axis.zero, f"← {axis.sides[0]}", "right")
            _above(axes, axis.zero, f"{axis.sides[1]} →", "left")


def _draw_row(axes: Axes, row: Row, y: float, layout: _Layout) -> None:
    narrow = layout.narrow
    centre = y + (0.31 if narrow else layout.row / 2)
    _write_row(axes, row, y + (0.12 if narrow else layout.row / 2), layout)
    spread = 0.07 if row.points or row.beyond else 0.0
    _draw_interval(axes, row, centre - spread)
    if np.isfinite(row.mean) and row.shape == "line":
        axes.plot(
            [row.mean],
            [centre - spread],
            **_marker(row.style),
            markersize=5.4 * row.style.scale,
            linestyle="",
            zorder=4,
        )
    dots: dict[str, Any] = {"linestyle": "", "zorder": 3, "markeredgewidth": 0.6, "clip_on": False}
    if row.points:
        below = [centre + spread + aside for aside in _asides(row.points, axes.get_xlim())]
        colours: dict[str, Any] = {"color": row.style.colour, "markeredgecolor": "white"}
        axes.plot(row.points, below, "o", alpha=0.6, markersize=3.4, **colours, **dots)
    if row.beyond:
        below = [centre + spread + aside for aside in _asides(row.beyond, axes.get_xlim())]
        axes.plot(row.beyond, below, ">", color="white", markersize=4.4, **dots | {"markeredgecolor": row.style.colour})


def _write_row(axes: Axes, row: Row, y: float, layout: _Layout) -> None:
    """A row's mark and name at the left, its numbers at the right."""
    at = _inches_left_of(axes)
    x = 0.14 if layout.narrow else layout.indent + 0.14 - layout.left
    axes.plot(
        *([x - 0.09], [y]),
        transform=at,
        clip_on=False,
        **_marker(row.style),
        markersize=4.2 * row.style.scale,
        linestyle="",
    )
    paper = _PAPER if layout.narrow else None
    axes.text(x, y, shorten(row.label, layout.letters), transform=at, va="center", ha="left", bbox=paper)
    note: dict[str, Any] = {"va": "center", "fontsize": FONT_PT - 0.5, "color": INK, "bbox": paper}
    beside = axes.get_yaxis_transform() + shift(axes, 0.0 if layout.narrow else 0.13, 0)
    axes.text(1.0, y, row.note, transform=beside, ha="right" if layout.narrow else "left", **note)


def _asides(values: Sequence[float], limits: tuple[float, float]) -> list[float]:
    """How far to move each value up or down so that those that would hide each other show."""
    places = [round(80 * value / (limits[1] - limits[0])) if np.isfinite(value) else 0 for value in values]
    at_place, before = Counter(places), Counter[int]()
    asides = []
    for place in places:
        hidden, rank = at_place[place], before[place]
        before[place] += 1
        asides.append((rank - (hidden - 1) / 2) * min(0.045, 0.11 / max(hidden - 1, 1)))
    return asides


def _marker(style: ArmStyle) -> dict[str, Any]:
    return {"marker": style.marker, "color": style.colour, "markeredgecolor": "white", "markeredgewidth": 0.5}


def _above(axes: Axes, x: float, text: str, ha: str) -> None:
    """Words beside a value, above the axes. The gap is a shift: browsers drop blanks at the ends of SVG text."""
    axes.text(
        *(x, 1.0),
        text,
        transform=axes.get_xaxis_transform() + shift(axes, 0.08 if ha == "left" else -0.08, 0.09),
        ha=ha,
        va="bottom",
        color=MUTED,
        fontsize=FONT_PT - 0.5,
    )


def _limits(rows: Sequence[Row], axis: ValueAxis) -> tuple[float, float]:
    """Limits that hold every value, all that is pooled, and intervals up to four times as wide as the usual one."""
    widths = [row.high - row.low for row in rows if np.isfinite(row.high - row.low) and row.shape == "line"]
    reach = 2 * float(np.median(widths)) if widths else 0.0
    values = [v for row in rows for v in (row.mean, *row.points, *row.beyond)]
    values += [end for row in rows if row.shape != "line" for end in (row.low, row.high)]
    values += [max(row.low, row.mean - reach) for row in rows] + [min(row.high, row.mean + reach) for row in rows]
    values = [
        v for v in [*values, *(axis.band or ()), *([axis.zero] if axis.zero is not None else [])] if np.isfinite(v)
    ]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.05 * (abs(high) or 1.0)
    return max(low - margin, axis.bounds[0]), min(high + margin, axis.bounds[1])


def _draw_interval(axes: Axes, row: Row, y: float) -> None:
    if np.isnan(row.low) or np.isnan(row.high):
        return
    left, right = axes.get_xlim()
    low, high = max(row.low, left), min(row.high, right)
    if row.shape == "diamond":
        half = 0.08
        axes.fill([low, row.mean, high, row.mean], [y, y - half, y, y + half], color=row.style.colour, zorder=3)
    else:
        look: dict[str, Any] = {"linewidth": 6.0, "alpha": 0.45} if row.shape == "bar" else {"linewidth": 1.8}
        axes.plot([low, high], [y, y], color=row.style.colour, zorder=3, solid_capstyle="butt", **look)
    for end, cut, arrow in ((low, row.low < left, "<"), (high, row.high > right, ">")):
        if cut:
            axes.plot([end], [y], arrow, color=row.style.colour, markersize=4.5, clip_on=False, zorder=3)


def _inches_left_of(axes: Axes) -> Transform:
    """A transform whose x counts inches from the axes' left edge and whose y is the axes' data."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    origin = Affine2D().translate(axes.get_position().x0 * figure.get_figwidth(), 0)
    return blended_transform_factory(origin + figure.dpi_scale_trans, axes.transData)
