"""What several targets give together: a forest plot of the gain with mean and prediction, and the meta-regression."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from jaxseg.report.blocks import Block, Chart, Finding, described
from jaxseg.report.charts.rows import Group, Row
from jaxseg.report.charts.style import INK, MUTED, ArmStyle
from jaxseg.report.sections.figures import difference_row, forest_plot
from jaxseg.report.tables import rows_of
from jaxseg.study.claims.rules import CONFIDENCE, DELTA, MIN_TARGETS
from jaxseg.text import interval, limit, number, plural, signed

_STUDY = ArmStyle("#0072B2", "s", "-")
_MEAN, _PREDICTION, _NUMBER = ArmStyle(INK, "D", "-"), ArmStyle(MUTED, "s", "-"), ArmStyle(INK, "", "-")
_ALL = "All targets"


def gain_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of over_targets.csv that the forest plot shows: the gain, and its slope on difficulty."""
    return table[(table["quantity"] == "gain") & (table["claim"].isin(["C2", "C3"]))]


def targets_blocks(table: pd.DataFrame) -> Iterator[Block]:
    """Show what transfer gains on each target and on all together.

    Args:
        table: The rows of over_targets.csv; nothing is shown where none is a gain.
    """
    own = gain_rows(table)
    studies = own[own["role"] == "study"]
    if studies.empty:
        return
    yield Finding("What does transfer gain over several targets?", _words(own, studies["target"].nunique()))
    yield Chart(
        "over_targets",
        partial(gain_forest, own),
        described("Gain in DSC", rows_of(studies), lambda row: f"{row.study} on {row.target} {signed(row.value)}"),
        f"Gain in DSC of each study at its largest training set, with {100 * CONFIDENCE:g} % intervals. Diamond: mean "
        "over targets, as random effects; its width is its interval. Bar: where the gain on another target is to be "
        f"expected. The grey band, ±{DELTA} DSC, holds gains too small to matter.",
    )


def _words(own: pd.DataFrame, n_targets: int) -> str:
    """The mean, the prediction and the slope in a sentence each, as far as they are known."""
    by_role = {row.role: row for row in rows_of(own)}
    if "mean" not in by_role:
        return f"{plural(n_targets, 'target')} can speak of it; a mean needs {MIN_TARGETS}."
    mean, other = by_role["mean"], by_role["prediction"]
    text = (
        f"{signed(mean.value)} DSC {interval(mean.ci_low, mean.ci_high)} on average over "
        f"{plural(n_targets, 'target')}. On another target a gain of {limit(other.ci_low)} to {limit(other.ci_high)} "
        "is to be expected."
    )
    if "slope" in by_role:
        slope = by_role["slope"]
        text += (
            " By meta-regression over targets the gain changes with difficulty (1 less the DSC of training from "
            f"scratch) at a slope of {signed(slope.value)} {interval(slope.ci_low, slope.ci_high)}: claim C3."
        )
    return text


def gain_forest(table: pd.DataFrame, *, width: float) -> Figure:
    """Draw the gain of every study as a forest plot, with what all targets give below.

    Args:
        table: The rows that `gain_rows` returns.
        width: Width of the figure, in inches.
    """
    studies = table[table["role"] == "study"]
    repeated = studies["target"].duplicated().any()
    by_target = [
        Group(str(target), tuple(_study_row(row, row.study) for row in rows_of(own)))
        for target, own in studies.groupby("target", sort=False)
    ]
    alone = Group("Targets", tuple(_study_row(row, row.target) for row in rows_of(studies)))
    together = tuple(_together(row) for row in rows_of(table[table["role"] != "study"]))
    groups = [*(by_target if repeated else [alone]), *([Group(_ALL, together)] if together else [])]
    return forest_plot(groups, width=width, xlabel="Gain of transfer over scratch, DSC")


def _study_row(row: Any, label: str) -> Row:
    return difference_row(label, _STUDY, row.value, row.ci_low, row.ci_high)


def _together(row: Any) -> Row:
    """The row of a number over all targets; tau and the slope are no gains, so that they stand in words alone."""
    none, limits = float("nan"), interval(row.ci_low, row.ci_high)
    if row.role == "mean":
        note = f"{signed(row.value)} {limits}"
        return Row("mean", _MEAN, row.value, row.ci_low, row.ci_high, (), (), note, "diamond")
    if row.role == "prediction":
        return Row("another target", _PREDICTION, row.value, row.ci_low, row.ci_high, (), (), limits, "bar")
    if row.role == "tau":
        return Row("spread of targets, tau", _NUMBER, none, none, none, (), (), f"{number(row.value)} {limits}")
    return Row("slope on difficulty (C3)", _NUMBER, none, none, none, (), (), f"{signed(row.value)} {limits}")
