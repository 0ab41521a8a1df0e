"""What the report's charts share: places in inches, and when a chart is a phone's.

Charts are pure functions of what they show and of a width, so that one call serves a page's column and another a
phone. All lengths are inches unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from jaxseg.report.charts.style import FONT_PT, WIDE_INCHES
from jaxseg.text import number, shorten

LETTER = 0.6 * FONT_PT / 72
"""Width of an average letter of the layout's font."""


def text_width(text: str) -> float:
    """Return how wide a text is in the layout's font, to be called while `style.drawing` holds."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=FONT_PT), False)
    return float(width) / 72


KEY_LINE = 0.2
"""Height of a line of a key."""
KEY_SIGN = 0.26
"""How far behind its sign an entry's name begins."""
KEY_LETTERS = 44
"""The number of letters to which an entry's name is shortened."""


def key_lines(names: Sequence[str], width: float) -> list[list[tuple[str, float]]]:
    """Break a key's entries into lines that fit, to be called while `style.drawing` holds.

    Args:
        names: The names of the entries, in order.
        width: Width of the figure, in inches.

    Returns:
        Lines of (name, place of its sign).
    """
    lines: list[list[tuple[str, float]]] = [[]]
    x = 0.08
    for name in names:
        takes = KEY_SIGN + 0.1 + text_width(shorten(name, KEY_LETTERS))
        if lines[-1] and x + takes > width:
            lines.append([])
            x = 0.08
        lines[-1].append((name, x))
        x += takes + 0.12
    return lines


def is_narrow(width: float) -> bool:
    """Tell whether a chart of this width goes to a phone."""
    return width < 0.75 * WIDE_INCHES


def shift(axes: Axes, right: float, up: float) -> ScaledTranslation:
    """Return a transform that moves by inches, to be added to another."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return ScaledTranslation(right, up, figure.dpi_scale_trans)


def place_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes to a figure at a place in inches from its lower left corner."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))


def place_ticks(axis: Axis, at_most: int, write: Callable[[float, int], str]) -> None:
    """Put a few round ticks on an axis whose limits stand, all with as many digits as the finest needs.

    Args:
        axis: The x or y axis of a plot.
        at_most: The largest number of intervals between ticks.
        write: Returns the label of a tick, given its value and the number of digits.
    """
    low, high = sorted(axis.get_view_interval())
    values = [
        float(v) for v in MaxNLocator(at_most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= v <= high
    ]
    digits = next((d for d in range(8) if np.allclose(np.round(values, d), values, rtol=0, atol=1e-9)), 8)
    axis.set_major_locator(FixedLocator(values))
    axis.set_ticklabels([write(0.0 if abs(v) < 1e-12 else v, digits) for v in values])


def place_log_ticks(axis: Axis, at_most: int) -> None:
    """Put ticks at 1, 2 and 5 times powers of ten on a logarithmic axis whose limits stand, or fewer where too many.

    Args:
        axis: The x or y axis of a plot, with positive limits.
        at_most: The largest number of intervals between ticks.
    """
    low, high = sorted(axis.get_view_interval())
    axis.set_minor_locator(NullLocator())
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= at_most + 1:
            break
    if len(found) < 2:  # less than a decade between them: round values will do
        place_ticks(axis, at_most, number)
        return
    axis.set_major_locator(FixedLocator(found))
    axis.set_ticklabels([f"{value:.10g}" for value in found])
