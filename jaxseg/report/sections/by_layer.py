"""What the analyses' sections share: numbers by layer as rows of a layer chart, and a few arms a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd

from jaxseg.report.blocks import Block, Chart, Fold, Styles, described
from jaxseg.report.charts.layers import LayerAxis, Mark, layer_chart
from jaxseg.report.shown import few_at_a_time
from jaxseg.report.tables import rows_of
from jaxseg.text import number


def at_size(rows: pd.DataFrame, train_cases: int) -> pd.DataFrame:
    """Return the rows of one training set size."""
    return rows[rows["train_cases"] == train_cases]


def chart_row(panel: str, series: str, row: Any) -> dict[str, Any]:
    """Return a row of a layer chart from one of layers.csv or variability.csv."""
    limits = {"ci_low": row.ci_low, "ci_high": row.ci_high}
    return {"panel": panel, "series": series, "layer": row.layer, "value": row.value, **limits}


def null_row(
    panel: str, series: str, layer: str, value: float, low: float = math.nan, high: float = math.nan
) -> dict[str, Any]:
    """Return a row of a layer chart with a number that is no mean over seeds."""
    return {"panel": panel, "series": series, "layer": layer, "value": value, "ci_low": low, "ci_high": high}


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
        charts.append(Chart(f"{stem}_{k + 1}" if k else stem, draw, _in_words(what, first, few), caption))
    yield charts[0]
    if charts[1:]:
        yield Fold("The other arms", tuple(charts[1:]))


def _in_words(what: str, values: pd.DataFrame, arms: Iterable[str]) -> str:
    own = values[values["series"].isin(list(arms))]
    return described(what, rows_of(own), lambda row: f"{row.series}, {row.layer}: {number(row.value, 2)}")
