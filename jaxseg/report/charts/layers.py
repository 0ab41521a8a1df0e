"""Charts along the depth of a network: the input's layers at the top, the output's at the bottom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from jaxseg.report.charts.places import (
    KEY_LETTERS,
    KEY_LINE,
    KEY_SIGN,
    is_narrow,
    key_lines,
    place_axes,
    place_ticks,
    shift,
    text_width,
)
from jaxseg.report.charts.style import FONT_PT, INK, MUTED, RULE, ArmStyle, drawing
from jaxseg.text import number, shorten

NULL_COLOUR = "#7a858d"
_BAND_COLOUR = "#dfe4e7"
_LETTERS = 26


class LayerValue(NamedTuple):
    """A value of one layer, by panel and series, and its interval; without one the limits are NaN."""

    panel: str
    series: str
    layer: str
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True)
class Mark:
    """How a series is drawn: filled, hollow (what the filled ones are to be seen against), or as a grey band."""

    style: ArmStyle
    kind: Literal["filled", "hollow", "band"] = "filled"


@dataclasses.dataclass(frozen=True)
class LayerAxis:
    """One quantity: its name with its unit, and lines with their names."""

    label: str
    levels: tuple[tuple[float, str], ...] = ()


def layer_chart(
    values: Sequence[LayerValue], axes: Mapping[str, LayerAxis], marks: Mapping[str, Mark], *, width: float
) -> Figure:
    """Draw quantities by layer, series over each other, panels side by side (one under the other on a phone).

    Args:
        values: At least one; layers in forward order, named by paths.
        axes: The axis of each panel, in the order drawn.
        marks: The look of each series, later ones on top; those without values are left out.
        width: Width of the figure, in inches.

    Returns:
        A figure as high as its layers need. An interval that reaches beyond its panel has an arrow at the cut.
    """
    narrow = is_narrow(width)
    layers = list(dict.fromkeys(value.layer for value in values))
    headings, places = _rows(layers)
    row_height = 0.2 if len(layers) < 24 else 0.155
    body = row_height * (len(layers) + len(headings))
    with drawing():
        names = {layer: shorten(_below(layer), _LETTERS) for layer in layers}
        left = 0.2 + max(text_width(text) for text in [*names.values(), *headings])
        used = [series for series in marks if any(value.series == series for value in values)]
        key = key_lines(used, width)
        columns = 1 if narrow else len(axes)
        gap, top, bottom = 0.24, 0.24, 0.56
        panel_width = (width - left - 0.14 - gap * (columns - 1)) / columns
        block = top + body + bottom
        key_height = KEY_LINE * len(key) + 0.04
        n_rows = -(-len(axes) // columns)
        figure = Figure(figsize=(width, n_rows * block + key_height))
        _draw_key(figure, key, marks)
        for i, (panel, axis) in enumerate(axes.items()):
            row, column = divmod(i, columns)
            x0 = left + column * (panel_width + gap)
            y0 = (n_rows - 1 - row) * block + bottom
            place = place_axes(figure, x0, y0, panel_width, body)
            own = [value for value in values if value.panel == panel]
            _dress(place, own, axis, places, headings, names if column == 0 else {})
            for z, series in enumerate(used):
                _draw_series(place, [value for value in own if value.series == series], marks[series], places, z)
            place_ticks(place.xaxis, 4 if panel_width > 1.8 else 3, number)
    return figure


def _rows(layers: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Heights of headings and of layers, counted in rows from the top; a heading wherever the first name changes."""
    headings: dict[str, float] = {}
    places: dict[str, float] = {}
    part = ""
    for layer in layers:
        first = layer.split("/", 1)[0]
        if first != part and "/" in layer:
            headings[first] = len(headings) + len(places) + 0.5
        part = first
        places[layer] = len(headings) + len(places) + 0.5
    return headings, places


def _below(layer: str) -> str:
    return layer.split("/", 1)[-1]


def _dress(
    axes: Axes,
    own: Sequence[LayerValue],
    axis: LayerAxis,
    places: Mapping[str, float],
    headings: Mapping[str, float],
    names: Mapping[str, str],
) -> None:
    axes.set_ylim(len(places) + len(headings), 0)
    axes.set_xlim(*_limits(own, [level for level, _ in axis.levels]))
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(axis.label, labelpad=4)
    heights = np.array(list(places.values()))
    rows = _dashes(np.zeros_like(heights), np.ones_like(heights), heights)
    axes.plot(*rows, transform=axes.get_yaxis_transform(), color="#eef1f3", linewidth=0.6, zorder=0)
    if names:
        at = axes.get_yaxis_transform() + shift(axes, -0.08, 0)
        for layer, y in places.items():
            axes.text(0, y, names[layer], transform=at, ha="right", va="center")
        for heading, y in headings.items():
            axes.text(0, y + 0.1, shorten(heading, _LETTERS), transform=at, ha="right", va="center", weight="bold")
    for level, label in axis.levels:
        axes.axvline(level, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.text(
            *(level, 1),
            label,
            transform=axes.get_xaxis_transform() + shift(axes, 0, 0.05),
            ha="center",
            va="bottom",
            color=MUTED,
            fontsize=FONT_PT - 1,
        )


def _draw_series(axes: Axes, own: Sequence[LayerValue], mark: Mark, places: Mapping[str, float], z: int) -> None:
    y = np.array([places[one.layer] for one in own], float)
    value, low, high = np.array([(one.value, one.low, one.high) for one in own], float).reshape(-1, 3).T
    if mark.kind == "band":
        for at, first, last in zip(y.tolist(), low.tolist(), high.tolist(), strict=True):
            if np.isfinite(first) and np.isfinite(last):
                axes.add_patch(Rectangle((first, at - 0.5), last - first, 1, color=_BAND_COLOUR, linewidth=0, zorder=0))
        axes.plot(value, y, "|", color=NULL_COLOUR, markersize=7, zorder=1)
        return
    known = np.isfinite(value)
    colour, limits = mark.style.colour, axes.get_xlim()
    hollow = mark.kind == "hollow"
    axes.plot(value[known], y[known], color=colour, linewidth=0.7, alpha=0.45, zorder=2)
    axes.plot(*_dashes(low, high, y), color=colour, linewidth=1.5, solid_capstyle="butt", zorder=3 + z)
    axes.plot(
        *(value[known], y[known]),
        mark.style.marker,
        color="white" if hollow else colour,
        markeredgecolor=colour if hollow else "white",
        markeredgewidth=1.1 if hollow else 0.5,
        markersize=(4.4 if hollow else 5.2) * mark.style.scale,
        clip_on=False,
        zorder=4 + z,
    )
    for cut, end, arrow in zip((low < limits[0], high > limits[1]), limits, "<>", strict=True):
        at = np.full(int(cut.sum()), end)
        axes.plot(at, y[cut], arrow, color=colour, markersize=4, linestyle="", clip_on=False, zorder=3 + z)


def _dashes(
    left: Float[np.ndarray, " n"], right: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal lines as one broken line: a page of many layers stays light."""
    gap = np.full_like(y, np.nan)
    return np.stack([left, right, gap], 1).ravel(), np.stack([y, y, gap], 1).ravel()


def _limits(own: Sequence[LayerValue], levels: Sequence[float]) -> tuple[float, float]:
    """Limits that hold every value and level, and intervals up to as much again on either side."""
    values = np.array([*(one.value for one in own), *levels], float)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    reach = high - low or 0.1
    ends = np.array([end for one in own for end in (one.low, one.high)], float)
    ends = ends[np.isfinite(ends)].clip(low - reach, high + reach)
    low, high = min([low, *ends]), max([high, *ends])
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _draw_key(figure: Figure, lines: Sequence[Sequence[tuple[str, float]]], marks: Mapping[str, Mark]) -> None:
    width, height = figure.get_size_inches()
    for i, line in enumerate(lines):
        y = height - 0.12 - KEY_LINE * i
        for name, x in line:
            mark = marks[name]
            if mark.kind == "band":
                figure.add_artist(
                    Rectangle(
                        (x / width, (y - 0.06) / height),
                        0.18 / width,
                        0.12 / height,
                        color=_BAND_COLOUR,
                        linewidth=0,
                        transform=figure.transFigure,
                    )
                )
            hollow = mark.kind == "hollow"
            colour = NULL_COLOUR if mark.kind == "band" else mark.style.colour
            figure.add_artist(
                Line2D(
                    *([(x + 0.09) / width], [y / height]),
                    marker="|" if mark.kind == "band" else mark.style.marker,
                    color="white" if hollow else colour,
                    markeredgecolor=colour,
                    markersize=5.2 * mark.style.scale,
                    linestyle="",
                )
            )
            figure.text((x + KEY_SIGN) / width, y / height, shorten(name, KEY_LETTERS), va="center")
