"""What the analyses' sections share: numbers by layer as rows of a layer chart, and a few arms a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd

from jaxseg.report.blocks import Block, Chart, Fold, Styles, described
from jaxseg.report.effects import few_at_a_time
from jaxseg.report.layers import LayerAxis, Mark, layer_chart
from jaxseg.report.spread import Interval, over_seeds
from jaxseg.report.tables import rows_of
from jaxseg.report.text import number


def layer_row(panel: str, series: str, layer: str, interval: Interval) -> dict[str, Any]:
    """Return a row of a layer chart."""
    return {"panel": panel, "series": series, "layer": layer, **interval._asdict()}


def known(value: float, low: float = math.nan, high: float = math.nan) -> Interval:
    """Return a number that is no mean."""
    return Interval(value, low, high, 0)


def mean_by_layer(runs: pd.DataFrame, panels: Mapping[str, str], confidence: float) -> list[dict[str, Any]]:
    """Average over seeds.

    Args:
        runs: columns arm, layer (forward order) and those named by `panels`; one row a seed.
        panels: panel -> column.
        confidence: of the intervals.

    Returns:
        A row a panel, layer and arm.
    """
    return [
        layer_row(panel, str(arm), str(layer), over_seeds(own[column], confidence))
        for panel, column in panels.items()
        for (layer, arm), own in runs.groupby(["layer", "arm"], sort=False)
    ]


def arm_charts(
    stem: str,
    values: pd.DataFrame,
    axes: Mapping[str, LayerAxis],
    styles: Styles,
    *,
    baseline: str | None,
    what: str,
    caption: str,
    behind: Mapping[str, Mark] | None = None,
) -> Iterator[Block]:
    """Show arms by layer: the most asked about in one chart, the others folded away.

    Args:
        stem: of the figures' files.
        values: see `layer_chart`; series that are no arms and not in `behind` are left out.
        axes: panel -> axis; the first panel is the one put in words.
        styles: by arm.
        baseline: the arm that every chart repeats.
        what: the first panel's quantity, in words.
        caption: what every chart shows and how to read it.
        behind: series that every chart repeats, drawn first.
    """
    behind = behind or {}
    arms = [arm for arm in styles if (values["series"] == arm).any()]
    first = values[values["panel"] == next(iter(axes))]
    charts = []
    for k, few in enumerate(few_at_a_time(arms, baseline)):
        shown = values[values["series"].isin([*behind, *few])]
        marks = {**behind, **{arm: Mark(styles[arm]) for arm in few}}
        draw = partial(layer_chart, shown, axes, marks)
        charts.append(Chart(f"{stem}_{k + 1}" if k else stem, draw, _in_words(what, first, few), caption, shown))
    yield charts[0]
    if charts[1:]:
        yield Fold("The other arms", tuple(charts[1:]))


def _in_words(what: str, values: pd.DataFrame, arms: Iterable[str]) -> str:
    own = values[values["series"].isin(list(arms))]
    return described(what, rows_of(own), lambda row: f"{row.series}, {row.layer}: {number(row.value, 2)}")
