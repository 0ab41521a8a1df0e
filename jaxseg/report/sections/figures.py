"""Each figure of the report: a table goes in, a matplotlib figure comes out, nothing else happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxseg.report.blocks import Styles
from jaxseg.report.charts.lines import MANY_ARMS, Panel, Series, line_chart
from jaxseg.report.charts.rows import Group, Row, ValueAxis, row_chart
from jaxseg.report.charts.style import ArmStyle, drawing
from jaxseg.report.tables import Variant, of_variant, rows_of, variants_of
from jaxseg.reserved import POOLED
from jaxseg.study.claims.rules import DELTA
from jaxseg.text import MINUS, cases, count, interval, number, signed


def titles(variants: Sequence[Variant]) -> dict[Variant, str]:
    """Return what each variant was trained on, such as `8 cases` or `all cases, over all folds`."""
    return {v: cases(v.train_cases) + (", over all folds" if v.fold == POOLED else "") for v in variants}


def difference_row(label: str, style: ArmStyle, value: float, low: float, high: float) -> Row:
    """Return the row of a forest plot that shows a difference with its interval."""
    return Row(label, style, value, low, high, (), (), f"{signed(value)} {interval(low, high)}")


def forest_plot(groups: Sequence[Group], *, width: float, xlabel: str) -> Figure:
    """Draw differences in DSC in rows, beside a line at zero and the band of those too small to matter."""
    axis = ValueAxis(xlabel, zero=0.0, band=(-DELTA, DELTA), sides=("worse", "better"), ticks=signed)
    with drawing():
        return row_chart(groups, axis, width=width)


def scores(summary: pd.DataFrame, runs: pd.DataFrame, styles: Styles, *, width: float) -> Figure:
    """Show the DSC of every run and each arm's mean with its interval.

    Args:
        summary: Rows of summary.csv with metric `dsc` and label `mean`.
        runs: The same rows of seed_scores.csv.
        styles: The look of each arm.
        width: Width of the figure, in inches.
    """
    variants = variants_of(summary)
    heading = titles(variants)
    groups = []
    for variant in variants:
        rows = []
        for row in _by_arm(of_variant(summary, variant), "arm", styles):
            own = (runs["train_cases"] == variant.train_cases) & (runs["arm"] == row.arm)
            values = runs.loc[own, "value"]
            note = f"{number(row.mean)} {interval(row.ci_low, row.ci_high)}"
            rows.append(Row(row.arm, styles[row.arm], row.mean, row.ci_low, row.ci_high, tuple(values), (), note))
        groups.append(Group(_trained_on(heading[variant]), tuple(rows)))
    axis = ValueAxis("Dice similarity coefficient (DSC), mean over test cases", bounds=(0.0, 1.0))
    with drawing():
        return row_chart(groups, axis, width=width)


def differences(comparisons: pd.DataFrame, styles: Styles, *, width: float) -> Figure:
    """Show paired differences between arms as a forest plot.

    Args:
        comparisons: Rows of comparisons.csv with metric `dsc` and label `mean`.
        styles: The look of each arm.
        width: Width of the figure, in inches.
    """
    variants = variants_of(comparisons)
    heading = titles(variants)
    bases = set(comparisons["arm_b"])
    groups = []
    for variant in variants:
        rows = []
        for row in _by_arm(of_variant(comparisons, variant), "arm_a", styles):
            label = row.arm_a if len(bases) == 1 else f"{row.arm_a} {MINUS} {row.arm_b}"
            rows.append(difference_row(label, styles[row.arm_a], row.mean_diff, row.ci_low, row.ci_high))
        groups.append(Group(_trained_on(heading[variant]), tuple(rows)))
    to_base = f" to {next(iter(bases))}" if len(bases) == 1 else ""
    return forest_plot(groups, width=width, xlabel=f"Difference in DSC{to_base}")


def steps_to_target(
    convergence: pd.DataFrame,
    training: pd.DataFrame,
    styles: Styles,
    lengths: Mapping[tuple[str, int], int],
    *,
    width: float,
) -> Figure:
    """Show at which step each run reached the target; runs that never did stand at the end of their training.

    Args:
        convergence: Rows of convergence.csv.
        training: Rows of training.csv, with what the runs of an arm come to.
        styles: The look of each arm.
        lengths: The training steps of each arm and training set size.
        width: Width of the figure, in inches.
    """
    variants = variants_of(convergence)
    heading = titles(variants)
    groups = []
    for variant in variants:
        own = of_variant(convergence, variant)
        rows = []
        for arm in (arm for arm in styles if arm in set(own["arm"])):
            runs = own[own["arm"] == arm]
            reached = runs.loc[~runs["censored"], "step"].dropna().astype(float)
            length = float(lengths.get((arm, variant.train_cases), np.nan))
            beyond = (length,) * int(runs["censored"].sum())
            median, note = _reached(training, arm, variant.train_cases)
            rows.append(Row(arm, styles[arm], median, np.nan, np.nan, tuple(reached), beyond, note))
        groups.append(Group(_trained_on(heading[variant]), tuple(rows)))
    with drawing():
        return row_chart(groups, ValueAxis("Training steps until the target is reached", start=0.0), width=width)


def _reached(training: pd.DataFrame, arm: str, train_cases: int) -> tuple[float, str]:
    """The median step of an arm's runs and how many reached the target, in words."""
    for row in rows_of(training[(training["arm"] == arm) & (training["train_cases"] == train_cases)]):
        when = f", median {count(row.median_step)}" if np.isfinite(row.median_step) else ""
        return row.median_step, f"{row.n_reached} of {row.n_runs} reached it{when}"
    return np.nan, ""


def learning_curves(
    runs: pd.DataFrame,
    means: pd.DataFrame,
    styles: Styles,
    *,
    width: float,
    baseline: str | None,
    target_dsc: float | None,
    validated: str = "Validation DSC",
) -> Figure:
    """Show loss and validation DSC over steps: mean, its interval over runs, and every run.

    Args:
        runs: Rows of curve_runs.csv for one training set size.
        means: Rows of curve_means.csv for the same size.
        styles: The look of each arm.
        width: Width of the figure, in inches.
        baseline: The arm that small panels repeat in grey.
        target_dsc: The validation DSC that counts as converged.
        validated: What the second panel is called, where networks are validated otherwise.
    """
    panels = []
    for quantity, ylabel, level in (("loss", "Training loss", None), ("val_dsc", validated, target_dsc)):
        series = []
        for arm in styles:
            mean, of_runs = (t[(t["arm"] == arm) & (t["quantity"] == quantity)] for t in (means, runs))
            if len(mean):
                x, y, low, high = (mean[name].to_numpy(float) for name in ("step", "value", "ci_low", "ci_high"))
                lines = [run[["step", "value"]].to_numpy(float).T for _, run in of_runs.groupby(["fold", "seed"])]
                series.append(Series(arm, styles[arm], x, y, low, high, tuple((line[0], line[1]) for line in lines)))
        if series:
            panels.append(Panel(ylabel, tuple(series), level, f"target {number(level)}" if level is not None else ""))
    with drawing():
        return line_chart(panels, width=width, xlabel="Training step", baseline=baseline)


def by_size(summary: pd.DataFrame, styles: Styles, *, width: float, baseline: str | None) -> Figure:
    """Show DSC against the number of training cases.

    Args:
        summary: Rows of summary.csv with metric `dsc` and label `mean`, several train sizes, one fold or pooled.
        styles: The look of each arm.
        width: Width of the figure, in inches.
        baseline: The arm that small panels repeat in grey.
    """
    place = {size: i for i, size in enumerate(dict.fromkeys(v.train_cases for v in variants_of(summary)))}
    shown = [arm for arm in styles if (summary["arm"] == arm).any()]
    series = [
        _size_series(arm, summary[summary["arm"] == arm], "mean", styles[arm], place, _aside(i, len(shown)))
        for i, arm in enumerate(shown)
    ]
    with drawing():
        panel = Panel("DSC, mean over test cases", tuple(series), None, "")
        return line_chart([panel], width=width, xlabel="Training cases", baseline=baseline, xticks=_size_ticks(place))


def gain_by_size(comparisons: pd.DataFrame, styles: Styles, *, width: float) -> Figure:
    """Show the paired difference in DSC against the number of training cases.

    Args:
        comparisons: Rows of comparisons.csv with metric `dsc` and label `mean`, one `arm_b`, several train sizes.
        styles: The look of each arm.
        width: Width of the figure, in inches.
    """
    place = {size: i for i, size in enumerate(dict.fromkeys(v.train_cases for v in variants_of(comparisons)))}
    shown = [arm for arm in styles if (comparisons["arm_a"] == arm).any()]
    series = [
        _size_series(
            arm, comparisons[comparisons["arm_a"] == arm], "mean_diff", styles[arm], place, _aside(i, len(shown))
        )
        for i, arm in enumerate(shown)
    ]
    with drawing():
        ylabel = f"Difference in DSC to {comparisons['arm_b'].iloc[0]}"
        panel = Panel(ylabel, tuple(series), 0.0, "no gain", DELTA)
        return line_chart([panel], width=width, xlabel="Training cases", baseline=None, xticks=_size_ticks(place))


def _aside(i: int, n: int) -> float:
    """How far to move the i-th of n arms so that intervals at one size stand beside each other."""
    return 0.06 * (i - (n - 1) / 2) if n <= MANY_ARMS else 0.0


def _size_series(
    arm: str, rows: pd.DataFrame, column: str, style: ArmStyle, place: Mapping[int, int], aside: float
) -> Series:
    rows = rows.sort_values("train_cases", key=lambda sizes: sizes.map(place))
    x = rows["train_cases"].map(place).to_numpy(float) + aside
    mean, low, high = (rows[name].to_numpy(float) for name in (column, "ci_low", "ci_high"))
    return Series(arm, style, x, mean, low, high, ())


def _size_ticks(place: Mapping[int, int]) -> tuple[list[int], list[str]]:
    return list(place.values()), [count(size) if size else "all" for size in place]


def _trained_on(heading: str) -> str:
    return f"Trained on {heading}"


def _by_arm(table: pd.DataFrame, column: str, styles: Styles) -> list:
    """Rows as named tuples, in the order of the arms."""
    order = {arm: i for i, arm in enumerate(styles)}
    known = table[table[column].isin(order.keys())]
    return list(rows_of(known.sort_values(column, key=lambda names: names.map(order), kind="stable")))
