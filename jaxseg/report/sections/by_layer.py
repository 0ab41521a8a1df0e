"""What the analyses' sections share: numbers by layer as rows of a layer chart, and a few arms a chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from jaxseg.report.blocks import Block, Chart, Styles, described, first_then_fold
from jaxseg.report.charts.layers import LayerAxis, LayerValue, Mark, layer_chart
from jaxseg.report.shown import few_at_a_time
from jaxseg.text import number


def at_size(rows: pd.DataFrame, train_cases: int) -> pd.DataFrame:
    """Return the rows of one training set size."""
    return rows[rows["train_cases"] == train_cases]


def layer_value(panel: str, series: str, row: Any) -> LayerValue:
    """Return what a layer chart shows of a row of layers.csv or variability.csv."""
    return LayerValue(panel, series, row.layer, row.value, row.ci_low, row.ci_high)


def arm_charts(
    stem: str,
    values: Sequence[LayerValue],
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
        stem: The name of the figures' files.
        values: What `layer_chart` takes; series that are no arms and not in `behind` are left out.
        axes: The axis of each panel; the first panel is the one put in words.
        styles: The look of each arm.
        baseline: The arm that every chart repeats.
        what: The first panel's quantity, in words.
        caption: What every chart shows and how to read it.
        behind: Series that every chart repeats, drawn first.
    """
    behind = behind or {}
    known = {value.series for value in values}
    arms = [arm for arm in styles if arm in known]
    first = [value for value in values if value.panel == next(iter(axes))]
    charts = []
    for k, few in enumerate(few_at_a_time(arms, baseline)):
        shown = [value for value in values if value.series in {*behind, *few}]
        marks = {**behind, **{arm: Mark(styles[arm]) for arm in few}}
        draw = partial(layer_chart, shown, axes, marks)
        charts.append(Chart(f"{stem}_{k + 1}" if k else stem, draw, _in_words(what, first, few), caption))
    yield from first_then_fold("The other arms", charts)


def _in_words(what: str, values: Iterable[LayerValue], arms: Sequence[str]) -> str:
    own = [value for value in values if value.series in arms]
    return described(what, own, lambda row: f"{row.series}, {row.layer}: {number(row.value, 2)}")
