"""Line charts: means with bands over steps or sizes, and the runs behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxseg.report.charts.places import LETTER, is_narrow, place_axes, place_ticks, shift, text_width
from jaxseg.report.charts.style import FONT_PT, INK, MUTED, RULE, ArmStyle, readable
from jaxseg.text import number, shorten

MANY_ARMS = 5
"""Above this many arms lines in one panel cannot be told apart: each arm gets a panel of its own."""


@dataclasses.dataclass(frozen=True)
class Series:
    """A mean over runs along an axis, its interval, and the single runs.

    Many steps make a band; a few sizes, which come without single runs, make error bars.
    """

    label: str
    style: ArmStyle
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One quantity of all arms over one axis."""

    ylabel: str
    series: tuple[Series, ...]
    level: float | None
    """Where to draw a horizontal line."""
    level_label: str
    band: float | None = None
    """Half the height of a grey band about the level."""


def line_chart(
    panels: Sequence[Panel],
    *,
    width: float,
    xlabel: str,
    baseline: str | None,
    xticks: tuple[Sequence[float], Sequence[str]] | None = None,
    name_ends: bool = True,
) -> Figure:
    """Draw means with bands and the runs behind them.

    A few arms share a panel and are named at the ends of their lines (above the panels on a phone); with many arms
    each has a small panel of its own, over the baseline in grey.

    Args:
        panels: Quantities over the same axis and arms.
        width: Width of the figure, in inches.
        xlabel: What the axis shows, with its unit.
        baseline: The arm to repeat in every small panel.
        xticks: Positions and labels, where steps of a number line do not fit.
        name_ends: Whether lines end apart, so that names beside their ends tell which is which; else a key does.

    Returns:
        A figure as high as its panels need. An error bar that reaches beyond its panel has an arrow at the cut.
    """
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    if len(labels) > MANY_ARMS:
        return _small_multiples(panels, labels, width, xlabel, baseline, xticks)
    narrow = is_narrow(width)
    columns = 1 if narrow else len(panels)
    rows = -(-len(panels) // columns)
    left, gap, top, bottom = 0.5, 0.62, 0.32, 0.48
    with_key = narrow or not name_ends
    key_rows = len(labels) if with_key and len(labels) > 1 else 0
    letters = 32 if narrow else 24
    names = 0.0 if with_key or len(labels) < 2 else 0.15 + max(text_width(shorten(x, letters)) for x in labels)
    right = 0.12 + names
    panel_width = (width - left - right - gap * (columns - 1)) / columns
    panel_height = 1.75 if narrow else min(2.5, max(1.9, 0.85 * panel_width))
    key = 0.19 * key_rows + (0.08 if key_rows else 0.0)
    figure = Figure(figsize=(width, rows * (panel_height + top + bottom) + key))
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        x0 = left + column * (panel_width + gap)
        y0 = (rows - 1 - row) * (panel_height + top + bottom) + bottom
        axes = place_axes(figure, x0, y0, panel_width, panel_height)
        axes.set_ylim(*_limits(panel.series, panel.level))
        for series in panel.series:
            _draw_series(axes, series)
        named = bool(names) and column == columns - 1
        _dress(axes, panel, xlabel, xticks, _reach(panels), heading=panel.ylabel, label_level=not named)
        if named:
            _name_lines(axes, panel, letters)
    if key_rows:
        _draw_key(figure, panels[0].series, letters)
    return figure


def _small_multiples(
    panels: Sequence[Panel],
    labels: Sequence[str],
    width: float,
    xlabel: str,
    baseline: str | None,
    xticks: tuple[Sequence[float], Sequence[str]] | None,
) -> Figure:
    shown = [label for label in labels if label != baseline] or list(labels)
    columns = 2 if is_narrow(width) else 4
    rows = -(-len(shown) // columns)
    left, right, gap, top, bottom, heading = 0.45, 0.1, 0.16, 0.24, 0.12, 0.34
    panel_width = (width - left - right - gap * (columns - 1)) / columns
    panel_height = 0.72 * panel_width
    block = heading + rows * (panel_height + top + bottom) + 0.4
    figure = Figure(figsize=(width, block * len(panels)))
    letters = int(panel_width / LETTER)
    for k, panel in enumerate(panels):
        by_label = {series.label: series for series in panel.series}
        floor = (len(panels) - 1 - k) * block + 0.4
        _write(figure, 0.06, floor + block - 0.4 - 0.12, panel.ylabel, weight="bold", va="top")
        limits = _limits(panel.series, panel.level)
        for i, label in enumerate(shown):
            row, column = divmod(i, columns)
            y0 = floor + (rows - 1 - row) * (panel_height + top + bottom) + bottom
            axes = place_axes(figure, left + column * (panel_width + gap), y0, panel_width, panel_height)
            axes.set_ylim(*limits)
            if baseline in by_label and label != baseline:
                series = by_label[baseline]
                axes.plot(series.x, series.mean, color="#9aa4ab", linewidth=1.4)
            if label in by_label:
                _draw_series(axes, by_label[label])
                colour = by_label[label].style.ink
            else:
                colour = MUTED
            _dress(axes, panel, "", xticks, _reach(panels), heading="", label_level=False, small=True)
            axes.text(
                *(0, 1),
                shorten(label, letters),
                transform=axes.transAxes + shift(axes, 0, 0.06),
                color=colour,
                va="bottom",
            )
            is_last_in_column = i + columns >= len(shown)
            axes.tick_params(labelleft=column == 0, labelbottom=is_last_in_column)
        _write(figure, left + (width - left - right) / 2, floor - 0.3, xlabel, ha="center")
    return figure


def _write(figure: Figure, x: float, y: float, text: str, **style) -> None:
    figure.text(x / figure.get_figwidth(), y / figure.get_figheight(), text, **style)


def _draw_series(axes: Axes, series: Series) -> None:
    colour = series.style.colour
    for x, y in series.runs:
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.35, zorder=2)
    band = np.isfinite(series.low) & np.isfinite(series.high)
    x, low, high = series.x[band], series.low[band], series.high[band]
    if series.runs and len(x):
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=1)
    elif len(x):
        axes.vlines(x, low, high, color=colour, linewidth=1.4, zorder=2)
        bottom, top = axes.get_ylim()
        for cut, end, arrow in ((low < bottom, bottom, "v"), (high > top, top, "^")):
            at = np.full(int(cut.sum()), end)
            axes.plot(x[cut], at, arrow, color=colour, markersize=4, linestyle="", clip_on=False, zorder=2)
    marker = None if series.runs else series.style.marker
    axes.plot(
        *(series.x, series.mean),
        color=colour,
        linewidth=1.7,
        linestyle=series.style.dash,
        marker=marker,
        markersize=4.5 * series.style.scale,
        markeredgecolor="white",
        zorder=3,
    )


def _dress(
    axes: Axes,
    panel: Panel,
    xlabel: str,
    xticks: tuple[Sequence[float], Sequence[str]] | None,
    reach: float,
    *,
    heading: str,
    label_level: bool,
    small: bool = False,
) -> None:
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    place_ticks(axes.yaxis, 3 if small else 6, number)
    if xticks is not None:
        axes.set_xticks(xticks[0], xticks[1])
        axes.set_xlim(min(xticks[0]) - 0.4, max(xticks[0]) + 0.4)
    else:
        axes.set_xlim(-0.01 * reach, 1.01 * reach)
        place_ticks(axes.xaxis, 2 if small else 4, number)
    if xlabel:
        axes.set_xlabel(xlabel, labelpad=4)
    if heading:
        at = axes.transAxes + shift(axes, -0.5, 0.12)
        axes.text(0, 1, heading, transform=at, weight="bold", va="bottom")
    if panel.level is not None and np.isfinite(panel.level):
        axes.axhline(panel.level, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=2)
        if panel.band is not None:
            axes.axhspan(panel.level - panel.band, panel.level + panel.band, color="#eceff1", linewidth=0, zorder=0)
        if label_level:
            at = axes.get_yaxis_transform() + shift(axes, -0.03, 0.03)
            axes.text(1, panel.level, panel.level_label, transform=at, ha="right", va="bottom", fontsize=FONT_PT - 1)


def _reach(panels: Sequence[Panel]) -> float:
    """The last step of any series: panels side by side share their axis."""
    return max((float(s.x.max()) for panel in panels for s in panel.series if len(s.x)), default=1.0) or 1.0


def _limits(series: Sequence[Series], level: float | None = None) -> tuple[float, float]:
    """Limits that hold every mean and run; intervals up to twice that range count too, wider ones run out."""
    arrays = [s.mean for s in series] + [y for s in series for _, y in s.runs]
    values = _finite(arrays)
    if level is not None and np.isfinite(level):
        values = np.append(values, level)
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if not any(s.runs for s in series):
        ends = _finite([s.low for s in series] + [s.high for s in series])
        reach = max(high - low, 0.02)
        ends = ends[(ends > low - reach) & (ends < high + reach)]
        low, high = float(min([low, *ends])), float(max([high, *ends]))
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _finite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return values[np.isfinite(values)]


def _name_lines(axes: Axes, panel: Panel, letters: int) -> None:
    """Write each arm's name at the height where its line ends, moved apart where they would touch; the level's too."""
    ended = [(s, s.mean[np.isfinite(s.mean)]) for s in panel.series]
    named = [(float(mean[-1]), shorten(s.label, letters), readable(s.style.colour)) for s, mean in ended if len(mean)]
    if panel.level is not None and np.isfinite(panel.level):
        named.append((panel.level, panel.level_label, INK))
    named.sort()
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.get_position().height * figure.get_figheight()
    gap = 0.16 * (high - low) / inches
    at = axes.get_yaxis_transform() + shift(axes, 0.08, 0)
    heights = spread([height for height, _, _ in named], gap)
    for (_, name, colour), height in zip(named, heights, strict=True):
        axes.text(1, height, name, transform=at, color=colour, va="center")


def spread(sorted_values: Sequence[float], gap: float) -> list[float]:
    """Move sorted values apart until neighbours are `gap` apart, each cluster about its own centre.

    >>> spread([0.0, 0.1, 5.0], 1.0)
    [-0.45, 0.55, 5.0]
    """
    clusters: list[list[float]] = []
    for value in sorted_values:
        clusters.append([value])
        while len(clusters) > 1 and _start(clusters[-1], gap) < _start(clusters[-2], gap) + len(clusters[-2]) * gap:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [round(_start(cluster, gap) + i * gap, 12) for cluster in clusters for i in range(len(cluster))]


def _start(cluster: Sequence[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _draw_key(figure: Figure, series: Sequence[Series], letters: int) -> None:
    height = figure.get_figheight()
    width = figure.get_figwidth()
    for i, s in enumerate(series):
        y = 1 - (0.12 + 0.19 * i) / height
        line = Line2D([0.12 / width, 0.42 / width], [y, y], color=s.style.colour, linewidth=1.8, linestyle=s.style.dash)
        figure.add_artist(line)
        figure.text(0.5 / width, y, shorten(s.label, letters), va="center")
