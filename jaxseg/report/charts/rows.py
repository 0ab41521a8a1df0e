"""Row charts: means with intervals and the values behind them, one under the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, Transform, blended_transform_factory

from jaxseg.report.charts.places import is_narrow, place_axes, place_ticks, shift, text_width
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
    """Values known only to lie beyond these: open arrows."""
    note: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows under a common heading."""

    title: str
    rows: tuple[Row, ...]


def row_chart(
    groups: Sequence[Group],
    *,
    width: float,
    xlabel: str,
    start: float | None = None,
    zero: float | None = None,
    band: tuple[float, float] | None = None,
    sides: tuple[str, str] | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    ticks: Callable[[float, int], str] = number,
) -> Figure:
    """Draw intervals in rows: a forest plot where `zero` is given.

    Args:
        groups: at least one row in all; a heading is drawn where there are several groups.
        width: of the figure.
        xlabel: what the axis shows, with its unit.
        start: where the axis begins, where that is not for the values to say.
        zero: where to draw a line of no difference.
        band: limits of a shaded range around it.
        sides: what lying left and right of `zero` means.
        bounds: values that cannot be; the axis ends there at the latest.
        ticks: (value, digits) -> label of a tick.

    Returns:
        A figure as high as its rows need. An interval much wider than the others is cut, with an arrow at the cut.
    """
    narrow = is_narrow(width)
    rows = [row for group in groups for row in group.rows]
    titled = len(groups) > 1
    row_height = 0.46 if narrow else 0.29
    heading = 0.3 if titled else 0.0
    top, bottom = (0.3 if sides else 0.12), 0.52
    body = len(rows) * row_height + len(groups) * heading
    height = body + top + bottom
    letters = 30 if narrow else 28
    indent = 0.14 if titled else 0.0
    left = 0.12 if narrow else 0.34 + indent + max(text_width(shorten(row.label, letters)) for row in rows)
    right = 0.12 if narrow else 0.18 + max(text_width(row.note) for row in rows)
    figure = Figure(figsize=(width, height))
    axes = place_axes(figure, left, bottom, width - left - right, body)
    axes.set_ylim(body, 0)
    axes.set_xlim(*_limits(rows, zero, band, bounds))
    if start is not None:
        axes.set_xlim(left=start)
    place_ticks(axes.xaxis, 4 if narrow else 6, ticks)
    axes.set_xlabel(xlabel, labelpad=5)
    _draw_background(axes, zero, band, sides)
    y = 0.0
    label_at = 0.14 if narrow else indent + 0.14 - left
    for group in groups:
        if titled:
            at, middle = _inches_left_of(axes), y + heading * 0.62
            axes.text(
                0 if narrow else -left, middle, shorten(group.title, 60), transform=at, va="center", weight="bold"
            )
            y += heading
        for row in group.rows:
            _draw_row(axes, row, y, row_height, narrow=narrow, label_at=label_at, letters=letters)
            y += row_height
    return figure


def _draw_background(
    axes: Axes, zero: float | None, band: tuple[float, float] | None, sides: tuple[str, str] | None
) -> None:
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    if band is not None:
        axes.axvspan(*band, color="#eceff1", linewidth=0, zorder=0)
    if zero is not None:
        axes.axvline(zero, color=INK, linewidth=0.8, zorder=1)
    if sides is not None and zero is not None:
        _above(axes, zero, f"← {sides[0]}", "right")
        _above(axes, zero, f"{sides[1]} →", "left")


def _draw_row(axes: Axes, row: Row, y: float, height: float, *, narrow: bool, label_at: float, letters: int) -> None:
    label_y = y + (0.12 if narrow else height / 2)
    centre = y + (0.31 if narrow else height / 2)
    label_x = label_at
    at = _inches_left_of(axes)
    axes.plot(
        *([label_x - 0.09], [label_y]),
        transform=at,
        clip_on=False,
        **_marker(row.style),
        markersize=4.2 * row.style.scale,
        linestyle="",
    )
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.0} if narrow else None  # over the grid
    axes.text(label_x, label_y, shorten(row.label, letters), transform=at, va="center", ha="left", bbox=paper)
    note: dict[str, Any] = {"va": "center", "fontsize": FONT_PT - 0.5, "color": INK, "bbox": paper}
    beside = axes.get_yaxis_transform() + shift(axes, 0.0 if narrow else 0.13, 0)
    axes.text(1.0, label_y, row.note, transform=beside, ha="right" if narrow else "left", **note)
    spread = 0.07 if row.points or row.beyond else 0.0
    _draw_interval(axes, row, centre - spread)
    if np.isfinite(row.mean):
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


def _asides(values: Sequence[float], limits: tuple[float, float]) -> list[float]:
    """How far to move each value up or down so that those that would hide each other show."""
    places = [round(80 * value / (limits[1] - limits[0])) if np.isfinite(value) else 0 for value in values]
    asides = []
    for i, place in enumerate(places):
        hidden, rank = places.count(place), places[:i].count(place)
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


def _limits(
    rows: Sequence[Row], zero: float | None, band: tuple[float, float] | None, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Limits that hold every mean and value, and every interval up to four times as wide as the usual one."""
    widths = [row.high - row.low for row in rows if np.isfinite(row.high - row.low)]
    reach = 2 * float(np.median(widths)) if widths else 0.0
    values = [v for row in rows for v in (row.mean, *row.points, *row.beyond)]
    values += [max(row.low, row.mean - reach) for row in rows] + [min(row.high, row.mean + reach) for row in rows]
    values = [v for v in [*values, *(band or ()), *([zero] if zero is not None else [])] if np.isfinite(v)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.05 * (abs(high) or 1.0)
    return max(low - margin, bounds[0]), min(high + margin, bounds[1])


def _draw_interval(axes: Axes, row: Row, y: float) -> None:
    if not (np.isfinite(row.low) and np.isfinite(row.high)):
        return
    left, right = axes.get_xlim()
    low, high = max(row.low, left), min(row.high, right)
    axes.plot([low, high], [y, y], color=row.style.colour, linewidth=1.8, zorder=3, solid_capstyle="butt")
    for end, cut, arrow in ((low, row.low < left, "<"), (high, row.high > right, ">")):
        if cut:
            axes.plot([end], [y], arrow, color=row.style.colour, markersize=4.5, clip_on=False, zorder=3)


def _inches_left_of(axes: Axes) -> Transform:
    """A transform whose x counts inches from the axes' left edge and whose y is the axes' data."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    origin = Affine2D().translate(axes.get_position().x0 * figure.get_figwidth(), 0)
    return blended_transform_factory(origin + figure.dpi_scale_trans, axes.transData)
