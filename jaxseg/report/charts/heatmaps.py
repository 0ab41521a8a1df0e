"""Square matrices of similarities, as grids of shaded cells with their scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jaxseg.report.charts.places import LETTER, is_narrow, place_axes, shift, text_width
from jaxseg.report.charts.style import FONT_PT, INK, MUTED, RULE, drawing
from jaxseg.text import number, shorten

_SHADES = LinearSegmentedColormap.from_list("similarity", ["#f7fafc", "#a6cbe3", "#3f86ba", "#0d4a80", "#062a4d"])
"""Light to dark in one hue: order is seen by lightness alone."""
_UNDEFINED = "#e9dccb"
_FEW = 8


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A square matrix and its rows' names; consecutive rows of one name make a block."""

    title: str
    values: Float[np.ndarray, "n n"]
    """The similarities, between 0 and 1; NaN where undefined."""
    names: tuple[str, ...]


def heatmaps(matrices: Sequence[Matrix], scale_label: str, *, width: float) -> Figure:
    """Draw matrices side by side, all to one scale from 0 to 1; values are written where there is room.

    Rows are named; columns, being the same, are not.

    Args:
        matrices: The matrices in the order of reading; at least one.
        scale_label: What the shades mean, written above their scale.
        width: Width of the figure, in inches.

    Returns:
        A figure as high as its rows of matrices need.
    """
    columns = 1 if is_narrow(width) else min(3, max(2, len(matrices)))
    with drawing():
        names = {name for matrix in matrices for name in matrix.names}
        letters = 17
        left = 0.12 + max(text_width(shorten(name, letters)) for name in names)
        gap, heading, foot = 0.2, 0.3, 0.1
        side = (width - left - 0.08 - gap * (columns - 1)) / columns
        side = min(side, 2.6)
        rows = -(-len(matrices) // columns)
        key = 0.62
        figure = Figure(figsize=(width, rows * (heading + side + foot) + key))
        for i, matrix in enumerate(matrices):
            row, column = divmod(i, columns)
            x0 = left + column * (side + gap)
            y0 = key + (rows - 1 - row) * (heading + side + foot) + foot
            axes = place_axes(figure, x0, y0, side, side)
            _draw(axes, matrix, side, letters, named=column == 0)
            title = shorten(matrix.title, max(8, int(side / LETTER)))
            axes.text(0, 1, title, transform=axes.transAxes + shift(axes, 0, 0.07), va="bottom", weight="bold")
        _draw_scale(figure, left, scale_label, min(2.4, width - left - 0.3))
    return figure


def _draw(axes: Axes, matrix: Matrix, side: float, letters: int, *, named: bool) -> None:
    n = len(matrix.names)
    shades = _SHADES.with_extremes(bad=_UNDEFINED)
    axes.imshow(np.ma.masked_invalid(matrix.values), cmap=shades, vmin=0, vmax=1, interpolation="none", aspect="auto")
    for spine in axes.spines.values():
        spine.set_visible(False)
    blocks = _blocks(matrix.names)
    middles = [(start + stop - 1) / 2 for start, stop, _ in blocks]
    step = max(1, int(np.ceil(0.15 / (side / len(blocks)))))  # where blocks are thinner than a line, some stay unnamed
    shown = list(range(0, len(blocks), step))
    axes.set_xticks([])
    axes.set_yticks([middles[i] for i in shown], [shorten(blocks[i][2], letters) for i in shown] if named else [])
    axes.tick_params(length=0, pad=3)
    if n > len(blocks):
        for start, _, _ in blocks[1:]:
            axes.axhline(start - 0.5, color="white", linewidth=1.4)
            axes.axvline(start - 0.5, color="white", linewidth=1.4)
    if n <= _FEW and side / n > 0.27:
        for i, j in np.ndindex(n, n):
            value = matrix.values[i, j]
            colour = "white" if value > 0.5 else INK
            axes.text(j, i, number(float(value), 2), ha="center", va="center", color=colour, fontsize=FONT_PT - 2)


def _blocks(names: Sequence[str]) -> list[tuple[int, int, str]]:
    """First row, row after the last, and name of each run of equal names."""
    starts = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    return [(start, stop, names[start]) for start, stop in zip(starts, [*starts[1:], len(names)], strict=True)]


def _draw_scale(figure: Figure, left: float, label: str, width: float) -> None:
    axes = place_axes(figure, left, 0.34, width, 0.11)
    axes.imshow(np.linspace(0, 1, 128)[None], cmap=_SHADES, aspect="auto", extent=(0, 1, 0, 1), interpolation="none")
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(length=2, color=RULE)
    for spine in axes.spines.values():
        spine.set_visible(False)
    at = axes.transAxes + shift(axes, 0, 0.05)
    axes.text(0, 1, label, transform=at, va="bottom", ha="left", color=MUTED, fontsize=FONT_PT - 0.5)
