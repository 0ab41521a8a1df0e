"""Figures show what the tables say: marks at the values, bands as the t interval, outlines exact to the pixel."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from scipy import stats

from jaxseg.report.blocks import Chart
from jaxseg.report.charts.overlays import crop, overlay, pixel_outline
from jaxseg.report.charts.style import (
    NARROW_INCHES,
    WIDE_INCHES,
    arm_styles,
    contrast_on_white,
    drawing,
    inline_svg,
    to_png,
    to_svg,
)
from jaxseg.report.pictures import Example
from jaxseg.report.sections import figures
from jaxseg.report.sections.training import training_section
from jaxseg.report.tables import read_tables
from jaxseg.study.claims.drawn import drawn_curves
from jaxseg.study.score import comparisons
from jaxseg.types import RunKey
from tests.report.tables_builder import write_workdir

ARMS = tuple(f"arm_{i}" for i in range(12))
WIDTHS = pytest.mark.parametrize("width", [WIDE_INCHES, NARROW_INCHES])


def _marks(figure: Figure) -> list[tuple[float, float]]:
    """Points at which a figure's first axes has markers, in data units."""
    axes = figure.axes[0]
    lines = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    in_data = [line for line in lines if line.get_transform() == axes.transData]
    return [(float(x), float(y)) for line in in_data for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


NO_SCORES = pd.DataFrame(columns=["arm", "train_cases", "value"])


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def _summary(rows: list[tuple[str, int, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["arm", "train_cases", "mean"])
    return table.assign(fold=0, label="mean", metric="dsc", ci_low=table["mean"] - 0.02, ci_high=table["mean"] + 0.02)


@WIDTHS
def test_scores_mark_means_and_single_seeds(width: float):
    runs = pd.DataFrame({"arm": "a", "train_cases": 8, "seed": [0, 1], "value": [0.81, 0.85]})
    figure = figures.scores(_summary([("a", 8, 0.83), ("b", 8, 0.6)]), runs, arm_styles(["a", "b"]), width=width)
    assert sorted(x for x, _ in _marks(figure)) == pytest.approx([0.6, 0.81, 0.83, 0.85])
    assert "0.830 [0.810, 0.850]" in _texts(figure)
    assert figure.get_figwidth() == width


def test_no_score_axis_reaches_beyond_what_a_dsc_can_be():
    summary = _summary([("a", 8, 0.9), ("b", 8, 0.4)]).assign(ci_low=[-0.7, 0.1], ci_high=[2.4, 0.7])
    figure = figures.scores(summary, NO_SCORES, arm_styles(["a", "b"]), width=WIDE_INCHES)
    low, high = figure.axes[0].get_xlim()
    assert 0 <= low < high <= 1
    cut = [line.get_marker() for line in figure.axes[0].lines if line.get_marker() in ("<", ">")]
    assert sorted(cut) == ["<", ">", ">"][: len(cut)]
    assert cut


@WIDTHS
def test_differences_stand_beside_a_line_of_no_difference(width: float):
    table = pd.DataFrame(
        {
            "arm_a": ["b", "c"], "arm_b": "a", "train_cases": 8, "fold": 0, "mean_diff": [0.03, -0.01],
            "ci_low": [0.01, -0.02], "ci_high": [0.05, 0.0],
        }
    )  # fmt: skip
    figure = figures.differences(table, arm_styles(["a", "b", "c"]), width=width)
    assert [x for x, _ in sorted(_marks(figure), key=lambda mark: mark[1])] == pytest.approx([0.03, -0.01])
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < high
    assert "+0.030 [0.010, 0.050]" in _texts(figure)
    assert "Difference in DSC to a" in _texts(figure)


def _steps_to_target(convergence: pd.DataFrame) -> Figure:
    curves = convergence.assign(loss=0.5, val_dsc=0.9)
    went = comparisons.training(curves, convergence)
    return figures.steps_to_target(convergence, went, arm_styles(["a"]), {("a", 8): 100.0}, width=WIDE_INCHES)


def test_censored_runs_stand_at_the_end_of_their_training():
    table = pd.DataFrame(
        {
            "arm": "a", "seed": [0, 1, 2], "train_cases": 8, "fold": 0, "target_dsc": 0.9, "step": [30, 40, 90],
            "censored": [False, False, True],
        }
    )  # fmt: skip
    figure = _steps_to_target(table)
    assert sorted(x for x, _ in _marks(figure)) == [30, 40, 40, 100]  # 40: a run, and the median
    assert "2 of 3 reached it, median 40" in _texts(figure)


def test_the_median_is_unknown_while_most_runs_have_not_reached_the_target():
    table = pd.DataFrame(
        {
            "arm": "a", "seed": [0, 1, 2], "train_cases": 8, "fold": 0, "target_dsc": 0.9, "step": [30, 90, 90],
            "censored": [False, True, True],
        }
    )  # fmt: skip
    figure = _steps_to_target(table)
    assert "1 of 3 reached it" in _texts(figure)


def _curves(values: np.ndarray) -> pd.DataFrame:
    """[seeds, steps] losses of one arm, evaluated at every second step."""
    seeds, steps = np.indices(values.shape)
    table = pd.DataFrame({"seed": seeds.ravel(), "step": steps.ravel(), "loss": values.ravel()})
    return table.assign(arm="a", train_cases=8, fold=0, val_dsc=(1 - table["loss"]).where(table["step"] % 2 == 0))


def _learning_curves(table: pd.DataFrame, *, lost: tuple[RunKey, ...] = ()) -> Figure:
    drawn = drawn_curves(table, lost, confidence=0.9)
    return figures.learning_curves(*drawn, arm_styles(["a"]), width=WIDE_INCHES, baseline="a", target_dsc=0.5)


def test_curves_draw_the_mean_and_its_t_interval():
    values = np.random.default_rng(0).random((4, 10))
    figure = _learning_curves(_curves(values))
    loss, dsc = figure.axes
    mean = loss.lines[-1]
    np.testing.assert_allclose(mean.get_ydata(), values.mean(0))
    low, high = stats.t.interval(0.9, 3, values.mean(0), stats.sem(values, axis=0))
    band = loss.collections[0].get_paths()[0].vertices
    for step in range(10):
        drawn = band[band[:, 0] == step, 1]
        assert (drawn.min(), drawn.max()) == pytest.approx((low[step], high[step]))
    np.testing.assert_array_equal(dsc.lines[0].get_xdata(), [0, 2, 4, 6, 8])
    assert "target 0.500" in _texts(figure)


def test_long_curves_are_averaged_in_bins_and_keep_their_mean():
    values = np.random.default_rng(0).random((2, 300))
    mean = _learning_curves(_curves(values)).axes[0].lines[-1]
    np.testing.assert_allclose(mean.get_ydata(), values.mean(0).reshape(60, 5).mean(1))
    np.testing.assert_allclose(mean.get_xdata(), np.arange(300).reshape(60, 5).mean(1))


def test_a_diverged_run_is_drawn_but_moves_no_mean():
    values = np.random.default_rng(0).random((3, 10))
    values[2, 5:] = np.nan
    values[2, :5] = 50
    figure = _learning_curves(_curves(values), lost=(RunKey("a", 8, 0, 2),))
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), values[:2].mean(0))
    assert any(np.nanmax(line.get_ydata()) == 50 for line in figure.axes[0].lines)


def test_loss_is_drawn_between_evaluations_too(tmp_path: Path):
    tables = read_tables(write_workdir(tmp_path, arms=("scratch",), seeds=1, steps=300))
    blocks = training_section(tables, arm_styles(tables.arms)).blocks
    chart = next(block for block in blocks if isinstance(block, Chart))
    loss, dsc = chart.draw(width=WIDE_INCHES).axes
    assert (len(loss.lines[-1].get_xdata()), len(dsc.lines[0].get_xdata())) == (31, 11)  # every 10 and every 30 steps


@WIDTHS
def test_many_arms_get_a_panel_each_beside_the_baseline(width: float):
    summary = _summary([(arm, size, 0.5 + 0.02 * i) for i, arm in enumerate(ARMS) for size in (4, 8, 0)])
    figure = figures.by_size(summary, arm_styles(ARMS), width=width, baseline=ARMS[0])
    assert len(figure.axes) == 11
    assert {"4", "8", "all"} <= {label.get_text() for label in figure.axes[-1].get_xticklabels()}
    # the baseline, then the arm
    np.testing.assert_allclose(figure.axes[3].lines[0].get_ydata(), 0.5)
    np.testing.assert_allclose(figure.axes[3].lines[1].get_ydata(), 0.58)


def test_arms_can_be_told_apart_without_colour_and_read_on_white():
    styles = arm_styles(("scratch", *ARMS))
    assert len({(style.colour, style.marker) for style in styles.values()}) == 13
    assert len({(style.colour, style.dash) for style in styles.values()}) == 13
    assert all(contrast_on_white(style.ink) >= 4.5 for style in styles.values())
    assert arm_styles(ARMS[:3]) == dict(list(arm_styles(ARMS).items())[:3])  # more arms change no one's look


def test_figures_leave_the_users_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.spines.bottom": False, "xtick.direction": "in"}):
        small = to_svg(figures.scores(_summary([("a", 8, 0.8)]), NO_SCORES, arm_styles(["a"]), width=WIDE_INCHES))
    same = to_svg(figures.scores(_summary([("a", 8, 0.8)]), NO_SCORES, arm_styles(["a"]), width=WIDE_INCHES))
    assert small == same
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in str(figures.__dict__)


# ------------------------------------------------------------------------------------------------------------- outlines


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_outline_runs_along_every_edge_of_the_mask_once(mask: np.ndarray):
    ends = pixel_outline(mask).vertices.reshape(-1, 2, 2)
    padded = np.pad(mask, 1)
    edges = np.sum(padded[1:] != padded[:-1]) + np.sum(padded[:, 1:] != padded[:, :-1])
    assert np.abs(ends[:, 1] - ends[:, 0]).sum() == edges
    for (x0, y0), (x1, y1) in ends:
        if y0 == y1:  # a pixel of the mask on one side only
            columns = np.arange(int(x0 + 0.5), int(x1 + 0.5)) + 1
            assert np.all(padded[int(y0 + 0.5), columns] != padded[int(y0 + 1.5), columns])


def test_outline_of_one_pixel_is_its_square():
    ends = pixel_outline(np.array([[False, True]])).vertices
    assert (ends.min(0).tolist(), ends.max(0).tolist()) == ([0.5, -0.5], [1.5, 0.5])


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(4, 90), st.integers(4, 90)), elements=st.just(0)), st.data())
def test_crop_keeps_every_outlined_pixel(image: np.ndarray, data: st.DataObject):
    at = [data.draw(st.integers(0, size - 1)) for size in image.shape]
    reference, prediction = image.copy(), image.copy()
    reference[tuple(at)] = 1
    prediction[image.shape[0] // 2, image.shape[1] // 2] = 2
    region = crop(reference, [prediction])
    assert reference[region].sum() == 1
    assert prediction[region].sum() == 2


def _example(predictions: int = 2) -> Example:
    reference = np.zeros((20, 30), np.uint8)
    reference[5:12, 8:20] = 1
    image = (np.arange(600).reshape(20, 30) % 251).astype(np.uint8)
    maps = {f"arm {i}": np.roll(reference, i, 0) for i in range(predictions)}
    return Example("case", ("x",), (2, 0), image, reference, maps, {})


@WIDTHS
def test_overlay_has_a_tile_for_the_image_and_each_arm(width: float):
    figure = overlay(_example(), {"arm 0": "DSC 0.5"}, width=width)
    assert len(figure.axes) == 3
    assert {"arm 0", "arm 1", "DSC 0.5"} <= set(_texts(figure))


def test_overlay_of_an_empty_slice_and_without_predictions_is_drawn():
    example = _example(0)
    example.reference[:] = 0
    assert len(overlay(example, {}, width=WIDE_INCHES).axes) == 1


# ------------------------------------------------------------------------------------------------------------------ SVG


def _nasty_figure() -> Figure:
    styles = arm_styles(['<script>alert("1")</script>', "$x_1$ & 'y'\x07", "腕\U0001f9e0"])
    return figures.scores(_summary([(arm, 8, 0.5) for arm in styles]), NO_SCORES, styles, width=WIDE_INCHES)


def test_names_reach_the_svg_as_text_and_nothing_else():
    document = to_svg(_nasty_figure())
    assert "<script" not in document
    texts = [
        "".join(element.itertext()) for element in ET.fromstring(document).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert '<script>alert("1")</script>' in texts
    assert "$x_1$ & 'y'\ufffd" in texts
    assert "腕\U0001f9e0" in texts


def test_png_is_drawn_without_a_warning_for_letters_no_font_has():
    assert to_png(_nasty_figure())[1:4] == b"PNG"


def test_inline_svg_has_its_own_ids_and_all_it_refers_to():
    document = to_svg(overlay(_example(), {}, width=WIDE_INCHES))
    inline = inline_svg(document, prefix="a-b", alt='says "<this>"')
    root = ET.fromstring(inline)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(name).startswith("a-b-") for name in ids)
    assert {*re.findall(r"url\(#([^)]*)\)", inline), *re.findall(r'href="#([^"]*)"', inline)} <= set(ids)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'says "<this>"')
    assert "font-family" not in inline
    assert inline.count("data:image/png") == 1  # three tiles, one picture
    assert len(inline) < len(document)


def test_rounding_moves_no_point_by_more_than_a_tenth():
    with drawing():
        figure = Figure(figsize=(4, 3))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.plot(np.linspace(0, 1, 60), np.random.default_rng(0).random(60), gid="line")
    svg = "{http://www.w3.org/2000/svg}"
    document = to_svg(figure)
    paths = [
        max((element.get("d", "") for element in ET.fromstring(text).iter(f"{svg}path")), key=len)
        for text in (document, inline_svg(document, prefix="p", alt=""))
    ]
    exact, rounded = (np.array(re.findall(r"-?[\d.]+", path), float) for path in paths)
    np.testing.assert_allclose(rounded, exact, atol=0.051, rtol=0)
    assert re.sub(r"[-\d.\s]", "", paths[1]) == "M"  # the L of each line is understood
