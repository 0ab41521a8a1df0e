"""Example slices with the outlines of reference and predictions, exact to the pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from jaxseg.report.charts.places import LETTER, is_narrow, place_axes
from jaxseg.report.charts.style import FONT_PT, drawing
from jaxseg.report.pictures import Disagreement, Example
from jaxseg.text import shorten

LABEL_COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#00C896", "#FF6F3C", "#B9B9FF", "#FFFFFF")
"""The colours of predictions' outlines, by label; they are bright, since they lie on grey images."""
BLACK, WHITE = ("#000000",), ("#FFFFFF",)


def overlay(example: Example, notes: Mapping[str, str], *, width: float) -> Figure:
    """Show a slice alone, then with the reference's outline in white and each arm's prediction over it in colour.

    Args:
        example: The slice to show.
        notes: What to write beside the name of each arm, such as its DSC.
        width: Width of the figure, in inches.
    """
    region = crop(example.reference, tuple(example.predictions.values()))
    image, reference = example.image[region], example.reference[region]
    tiles: list[tuple[str, str, np.ndarray | None]] = [("Image and reference", "", None)]
    tiles += [(arm, notes.get(arm, ""), prediction[region]) for arm, prediction in example.predictions.items()]
    columns = 2 if is_narrow(width) or len(tiles) < 3 else 3 if len(tiles) in (3, 5, 6, 9) else 4
    rows = -(-len(tiles) // columns)
    gap, edge = 0.12, 0.0
    side = (width - 2 * edge - gap * (columns - 1)) / columns
    height = side * min(image.shape[0] / image.shape[1], 1.6)
    heading = 0.42 if any(notes.values()) else 0.26
    with drawing():
        figure = Figure(figsize=(width, rows * (height + heading) + edge))
        for i, (name, note, prediction) in enumerate(tiles):
            row, column = divmod(i, columns)
            x0 = edge + column * (side + gap)
            y0 = edge + (rows - 1 - row) * (height + heading)
            inches = np.array([width, figure.get_figheight()] * 2)
            axes = figure.add_axes(tuple(np.array([x0, y0, side, height]) / inches))
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none")
            axes.set_axis_off()
            _outline(axes, reference, (BLACK, 2.6), (WHITE, 1.8))
            if prediction is not None:
                _outline(axes, prediction, (LABEL_COLOURS, 1.0))
            letters = int(side / LETTER)
            top = (y0 + height + 0.06) / inches[1]
            lift = 0.16 / inches[1] if any(notes.values()) else 0.0
            figure.text(
                x0 / width, top + lift, shorten(name, letters), weight="bold", va="bottom", fontsize=FONT_PT - 0.5
            )
            figure.text(x0 / width, top, shorten(note, letters), va="bottom", fontsize=FONT_PT - 0.5)
    return figure


def heat_overlay(shown: Disagreement, *, width: float) -> Figure:
    """Show a slice alone and, for each arm, the share of seeds that differ from their majority in colour over it.

    Args:
        shown: The slice to show.
        width: Width of the figure, in inches.
    """
    marked = tuple((share > 0).astype(np.uint8) for share in shown.shares.values())
    region = crop(shown.reference, marked)
    grey = _grey(shown.image[region])
    tiles = [("Image and reference", grey)]
    tiles += [(arm, _heated(grey, share[region])) for arm, share in shown.shares.items()]
    columns = 2 if is_narrow(width) or len(tiles) < 3 else 3 if len(tiles) in (3, 5, 6, 9) else 4
    rows = -(-len(tiles) // columns)
    gap, heading = 0.12, 0.26
    side = (width - gap * (columns - 1)) / columns
    height = side * min(grey.shape[0] / grey.shape[1], 1.6)
    with drawing():
        figure = Figure(figsize=(width, rows * (height + heading)))
        for i, (name, picture) in enumerate(tiles):
            row, column = divmod(i, columns)
            x0, y0 = column * (side + gap), (rows - 1 - row) * (height + heading)
            axes = place_axes(figure, x0, y0, side, height)
            axes.imshow(picture, interpolation="none")
            axes.set_axis_off()
            _outline(axes, shown.reference[region], (BLACK, 1.8), (WHITE, 1.0))
            top = (y0 + height + 0.06) / figure.get_figheight()
            title = shorten(name, int(side / LETTER))
            figure.text(x0 / width, top, title, weight="bold", va="bottom", fontsize=FONT_PT - 0.5)
    return figure


_HEAT = np.array([(255, 224, 138), (230, 120, 40), (150, 20, 30)], float)
"""Light to dark: from few seeds to half of them."""


def _grey(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    values = image.astype(float)
    if image.dtype != np.uint8:
        low, high = np.quantile(values, [0.005, 0.995])
        values = 255 * np.clip((values - low) / (high - low or 1.0), 0, 1)
    return np.repeat(values.round().astype(np.uint8)[..., None], 3, axis=-1)


def _heated(grey: UInt8[np.ndarray, "h w 3"], share: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Colour over the pixels on which some seed differs from the majority; half of them is full."""
    reach = np.clip(share / 0.5, 0, 1) * (len(_HEAT) - 1)
    below = np.minimum(reach.astype(int), len(_HEAT) - 2)
    part = (reach - below)[..., None]
    colour = (1 - part) * _HEAT[below] + part * _HEAT[below + 1]
    mixed = 0.15 * grey + 0.85 * colour
    return np.where((share > 0)[..., None], mixed, grey).round().astype(np.uint8)


def crop(reference: UInt8[np.ndarray, "h w"], predictions: Sequence[UInt8[np.ndarray, "h w"]]) -> tuple[slice, slice]:
    """Return the rows and columns that hold every outline and as much again around them.

    The whole slice is kept where that would save less than a third of either side, or where nothing is outlined.
    """
    marked = np.any(np.stack([reference > 0, *(p > 0 for p in predictions)]), axis=0)
    if not marked.any():
        return slice(None), slice(None)
    spans = []
    for axis, size in enumerate(marked.shape):
        used = np.flatnonzero(marked.any(axis=1 - axis))
        spans.append((used[0], used[-1] + 1, size))
    side = max(max(stop - start for start, stop, _ in spans) * 1.8, 24)
    if side > min(size for _, _, size in spans) * 2 / 3:
        return slice(None), slice(None)
    slices = []
    for start, stop, size in spans:
        first = round(max(0, min((start + stop - side) / 2, size - side)))
        slices.append(slice(first, min(size, first + round(side))))
    return slices[0], slices[1]


def _outline(axes: Axes, label_map: UInt8[np.ndarray, "h w"], *strokes: tuple[Sequence[str], float]) -> None:
    """Draw around each label with strokes, one over the other: their colours by label, and their width."""
    labels = np.unique(label_map[label_map > 0])
    paths = [pixel_outline(label_map == label) for label in labels]
    for colours, linewidth in strokes:
        for label, path in zip(labels, paths, strict=True):
            colour = colours[(int(label) - 1) % len(colours)]
            line: dict[str, Any] = {"edgecolor": colour, "linewidth": linewidth, "capstyle": "projecting"}
            # add_patch would look for the limits of each of a few hundred edges, where those of the image hold.
            axes.add_artist(PathPatch(path, facecolor="none", clip_on=False, **line))


def pixel_outline(mask: Bool[np.ndarray, "h w"]) -> Outline:
    """Return the edges between a mask's pixels and the others, neighbours on one line joined.

    Pixel (row, column) covers x from column - 0.5 to column + 0.5, as imshow draws it.

    Args:
        mask: [H, W].

    Returns:
        A path of separate straight lines; outside the image counts as outside the mask.
    """
    padded = np.pad(mask, 1)
    lines: list[np.ndarray] = []
    for transposed in (False, True):
        grid = padded.T if transposed else padded
        edges = grid[1:, 1:-1] != grid[:-1, 1:-1]  # between row i - 1 and row i
        steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        starts, stops = np.argwhere(steps == 1), np.argwhere(steps == -1)
        # Of each line its two ends, of which each is (x, y); argwhere gives (line, position on it).
        ends = np.stack([starts, stops], axis=1)[..., slice(None) if transposed else slice(None, None, -1)]
        lines.append(ends.reshape(-1, 2) - 0.5)
    points = np.concatenate(lines)
    return Outline(points, [Outline.MOVETO, Outline.LINETO] * (len(points) // 2))
