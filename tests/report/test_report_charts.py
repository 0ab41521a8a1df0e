"""Charts of the analyses draw what they are given: layers in order, cells with room, bars that add up."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from jaxseg.report.charts.heatmaps import Matrix, heatmaps
from jaxseg.report.charts.layers import LayerAxis, LayerValue, Mark, layer_chart
from jaxseg.report.charts.lines import Panel, Series, line_chart
from jaxseg.report.charts.montages import tiled
from jaxseg.report.charts.rows import Group, Row, ValueAxis, row_chart
from jaxseg.report.charts.shares import Part, share_chart
from jaxseg.report.charts.style import NARROW_INCHES, WIDE_INCHES, arm_styles, drawing

WIDTHS = pytest.mark.parametrize("width", [WIDE_INCHES, NARROW_INCHES])


@WIDTHS
def test_layers_stand_in_forward_order_below_their_part(width: float):
    values = [
        LayerValue("p", "s", "encoder/a", 0.1, 0.0, 0.2),
        LayerValue("p", "s", "encoder/b", 0.3),
        LayerValue("p", "s", "head", 0.2, 0.1, 0.3),
    ]
    marks = {"s": Mark(arm_styles(["s"])["s"]), "absent": Mark(arm_styles(["x"])["x"], "band")}
    figure = layer_chart(values, {"p": LayerAxis("value", ((0.5, "limit"),))}, marks, width=width)
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_marker() not in ("None", None, ""))
    np.testing.assert_allclose(line.get_xdata(), [0.1, 0.3, 0.2])
    np.testing.assert_allclose(line.get_ydata(), [1.5, 2.5, 3.5])  # row 0 is the heading
    assert axes.get_ylim() == (4, 0)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["a", "b", "head", "encoder", "limit"]
    assert figure.get_figwidth() == width


def _arrows(axes: Axes, marker: str) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


@WIDTHS
def test_an_interval_that_is_cut_has_an_arrow_at_the_cut(width: float):
    style = arm_styles(["s"])["s"]
    values = [
        LayerValue("p", "s", "encoder/a", 0.1, 0.05, 0.15),
        LayerValue("p", "s", "encoder/b", 0.2, -9.0, 0.25),
        LayerValue("p", "s", "head", 0.3, 0.25, 9.0),
    ]
    (axes,) = layer_chart(values, {"p": LayerAxis("value")}, {"s": Mark(style)}, width=width).axes
    left, right = axes.get_xlim()
    assert (_arrows(axes, "<"), _arrows(axes, ">")) == ([(left, 2.5)], [(right, 3.5)])

    x, mean = np.arange(3.0), np.array([0.1, 0.2, 0.3])
    low, high = np.array([0.05, -9.0, 0.25]), np.array([0.15, 0.25, 9.0])
    panel = Panel("value", (Series("s", style, x, mean, low, high, ()),), None, "")
    with drawing():
        (axes,) = line_chart([panel], width=width, xlabel="size", baseline=None).axes
    bottom, top = axes.get_ylim()
    assert (_arrows(axes, "v"), _arrows(axes, "^")) == ([(1.0, bottom)], [(2.0, top)])

    ends = ((0.15, 0.25), (0.1, 0.3), (-np.inf, 0.25), (0.15, 9.0))
    rows = [Row("s", style, 0.2, *limits, (), (), "") for limits in ends]
    with drawing():
        (axes,) = row_chart([Group("", tuple(rows))], ValueAxis("value"), width=width).axes
    left, right = axes.get_xlim()
    assert [x for x, _ in _arrows(axes, "<")] == [left]
    assert [x for x, _ in _arrows(axes, ">")] == [right]


@WIDTHS
def test_heatmaps_write_values_only_where_there_is_room(width: float):
    few, many = (Matrix("m", np.eye(n), tuple(f"layer {i}" for i in range(n))) for n in (3, 40))
    assert [text.get_text() for text in heatmaps([few], "CKA", width=width).axes[0].texts].count("1.00") == 3
    assert [text.get_text() for text in heatmaps([many], "CKA", width=width).axes[0].texts] == ["m"]


@WIDTHS
def test_shares_fill_the_bar(width: float):
    figure = share_chart([Part("arm", arm_styles(["arm"])["arm"], (("seed", 0.25), ("case", 0.75)))], width=width)
    bars = figure.axes[0].patches
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 0.25), (0.25, 0.75)]
    assert {"25 %", "75 %"} <= {text.get_text() for text in figure.axes[0].texts}


def test_filters_are_tiled_without_touching():
    kernels = np.arange(2 * 3 * 2 * 2, dtype=float).reshape(2, 3, 2, 2)
    sheet = tiled(kernels, 1.0)
    assert sheet.shape == (5, 8)
    np.testing.assert_array_equal(sheet[3:5, 6:8], kernels[1, 2])
    assert np.isnan(sheet[2]).all()
    assert np.isnan(sheet[:, 2]).all()


@WIDTHS
def test_ratios_stand_on_a_logarithmic_axis(width: float):
    """A half and its double lie equally far from 1, no tick crowds another, and a number alone needs no place."""
    (style,) = arm_styles(["transfer"]).values()
    nan = float("nan")
    rows = (
        Row("half", style, 0.5, 0.4, 0.625, (), (), ""),
        Row("twice", style, 2.0, 1.6, 2.5, (), (), ""),
        Row("prediction", style, nan, 0.1, 10.0, (), (), "", "bar"),
        Row("spread", style, nan, nan, nan, (), (), ""),
    )
    with drawing():
        figure = row_chart([Group("", rows)], ValueAxis("times", 1.0, (0.9, 1.1), log=True), width=width)
    (axes,) = figure.axes
    at = [axes.transData.transform((value, 0))[0] for value in (0.1, 0.5, 1.0, 2.0, 10.0)]
    np.testing.assert_allclose([at[2] - at[1], at[2] - at[0]], [at[3] - at[2], at[4] - at[2]])
    low, high = axes.get_xlim()
    np.testing.assert_allclose(low * high, 1.0)
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == (
        ["0.1", "0.2", "0.5", "1", "2", "5", "10"] if width == WIDE_INCHES else ["0.1", "0.3", "1", "3", "10"]
    )
