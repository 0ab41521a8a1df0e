"""Filters as pictures: the central slice of every kernel of a layer, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jaxseg.report.charts.places import LETTER, is_narrow, place_axes
from jaxseg.report.charts.style import FONT_PT, MUTED, drawing
from jaxseg.report.pictures import Montage
from jaxseg.text import shorten

_SIGNS = LinearSegmentedColormap.from_list("signs", ["#b35806", "#f1a340", "#f7f7f7", "#7aa6d1", "#0b4a8f"])
"""Orange below zero, blue above: told apart by lightness from white and by hue that all can see."""


def montage(layers: Sequence[Montage], *, width: float) -> Figure:
    """Show layers of one run below each other, each at its start, at its end, and as a control.

    Start and end of a layer share one scale, so that what grew is seen to have grown.

    Args:
        layers: The layers of one arm, from top to bottom.
        width: Width of the figure, in inches.
    """
    narrow = is_narrow(width)
    gap, heading, title = 0.18, 0.22, 0.26
    with_control = any(layer.control is not None for layer in layers)
    columns = 3 if with_control else 2
    side = (width - gap * (columns - 1)) / columns
    pictures = []
    for layer in layers:
        reach = _reach(layer.start, layer.end)
        tiles = [tiled(layer.start, reach), tiled(layer.end, reach)]
        if layer.control is not None:
            tiles.append(tiled(layer.control, _reach(layer.control)))
        pictures.append(tiles)
    heights = [side * max(tile.shape[0] / tile.shape[1] for tile in tiles) for tiles in pictures]
    with drawing():
        figure = Figure(figsize=(width, sum(heights) + len(layers) * (heading + title + 0.08)))
        y = figure.get_figheight()
        for layer, tiles, height in zip(layers, pictures, heights, strict=True):
            y -= title
            place = (y + 0.06) / figure.get_figheight()
            figure.text(0, place, shorten(layer.layer, int(width / LETTER)), weight="bold", va="bottom")
            y -= heading
            names = ("start", "end", "control" if narrow else "control: structure put in")
            for i, (tile, name) in enumerate(zip(tiles, names, strict=False)):
                x0 = i * (side + gap)
                own = side * tile.shape[0] / tile.shape[1]
                axes = place_axes(figure, x0, y - own, side, own)
                axes.imshow(tile, cmap=_SIGNS.with_extremes(bad="white"), vmin=-1, vmax=1, interpolation="none")
                axes.set_axis_off()
                at = (x0 / width, (y + 0.03) / figure.get_figheight())
                figure.text(*at, name, va="bottom", color=MUTED, fontsize=FONT_PT - 0.5)
            y -= height + 0.08
    return figure


def tiled(kernels: Float[np.ndarray, "rows columns k k"], reach: float) -> Float[np.ndarray, "h w"]:
    """Put kernels beside each other, a pixel of NaN between them, scaled so that `reach` becomes 1.

    >>> tiled(np.full((1, 2, 1, 1), 3.0), 6.0)
    array([[0.5, nan, 0.5]])
    """
    rows, columns, height, width = kernels.shape
    sheet = np.full((rows, height + 1, columns, width + 1), np.nan)
    sheet[:, :height, :, :width] = np.transpose(kernels, (0, 2, 1, 3)) / reach
    return sheet.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def _reach(*kernels: np.ndarray) -> float:
    """The largest weight but for the largest hundredth."""
    weights = np.abs(np.concatenate([k.ravel() for k in kernels]))
    weights = weights[np.isfinite(weights)]
    return float(np.quantile(weights, 0.99)) or 1.0 if len(weights) else 1.0
