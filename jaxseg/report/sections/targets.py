"""What several targets give together: a forest plot of each claim with mean and prediction, and the meta-regression."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from jaxseg.report.blocks import Block, Chart, Finding, described
from jaxseg.report.charts.rows import Group, Row, ValueAxis, row_chart
from jaxseg.report.charts.style import INK, MUTED, ArmStyle, drawing
from jaxseg.report.sections.figures import difference_row, forest_plot
from jaxseg.report.tables import rows_of
from jaxseg.study.claims import rules
from jaxseg.study.claims.rules import CONFIDENCE, DELTA, MIN_TARGETS
from jaxseg.text import interval, limit, number, plural, signed, significant, significant_interval

_STUDY = ArmStyle("#0072B2", "s", "-")
_MEAN, _PREDICTION, _NUMBER = ArmStyle(INK, "D", "-"), ArmStyle(MUTED, "s", "-"), ArmStyle(INK, "", "-")
_ALL = "All targets"
GAIN_LABEL = "Gain of transfer over scratch, DSC"
"""The label of the axis of `gain_forest` and `harder_forest`."""


def gain_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of over_targets.csv that the forest plot shows: the gain, and its slope on difficulty."""
    own = (table["claim"] == "C2") | ((table["claim"] == "C3") & (table["role"] == "slope"))
    return table[own & (table["quantity"] == "gain")]


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
    by_target = [
        Group(str(target), tuple(_study_row(row, row.study) for row in rows_of(own)))
        for target, own in studies.groupby("target", sort=False)
    ]
    alone = Group("Targets", tuple(_study_row(row, row.target) for row in rows_of(studies)))
    together = tuple(_together(row, _OF_DSC) for row in rows_of(table[table["role"] != "study"]))
    groups = [
        *(by_target if studies["target"].duplicated().any() else [alone]),
        *([Group(_ALL, together)] if together else []),
    ]
    return forest_plot(groups, width=width, xlabel=GAIN_LABEL)


def harder_forest(table: pd.DataFrame, *, width: float) -> Figure:
    """Draw the gains of claim C3 as a forest plot, the easiest target first, with the slope on difficulty below.

    Args:
        table: The rows of over_targets.csv.
        width: Width of the figure, in inches.
    """
    own = table[table["claim"] == "C3"]
    hard = own[own["quantity"] == "difficulty"].set_index("target")["value"].sort_values()
    gains = {row.target: row for row in rows_of(own[(own["quantity"] == "gain") & (own["role"] == "study")])}
    rows = tuple(_study_row(gains[name], f"{name}, {number(hard[name])}") for name in hard.index)
    slope = tuple(_together(row, _OF_DSC) for row in rows_of(own[own["role"] == "slope"]))
    return forest_plot([Group("Targets and scratch's error", rows), Group(_ALL, slope)], width=width, xlabel=GAIN_LABEL)


class Words(NamedTuple):
    """How numbers are written: those with a sign, those without, and limits."""

    signed: Callable[[float], str]
    plain: Callable[[float], str]
    limits: Callable[[float, float], str]

    def whole(self, value: float, low: float, high: float) -> str:
        """Return a number with its limits."""
        return f"{self.signed(value)} {self.limits(low, high)}".rstrip()


_OF_DSC, _OF_ANY_SIZE = Words(signed, number, interval), Words(significant, significant, significant_interval)


class Axis(NamedTuple):
    """What the forest plot of a claim shows, and how its numbers are written."""

    values: ValueAxis
    words: Words = _OF_ANY_SIZE


_SHORTER = (1 / rules.SHORTER, rules.SHORTER)
_DSC_SIDES = ("worse", "better")
AXES: Mapping[str, Axis] = {
    "C1": Axis(ValueAxis("Times fewer steps than from scratch", 1.0, _SHORTER, ("slower", "faster"), log=True)),
    "C4": Axis(ValueAxis("Gain in DSC, and its slope a doubling of the training set", 0.0, (-DELTA, DELTA)), _OF_DSC),
    "C4b": Axis(
        ValueAxis("Gain of transfer over scratch with all cases, DSC", 0.0, (-DELTA, DELTA), _DSC_SIDES), _OF_DSC
    ),
    "C5": Axis(
        ValueAxis(
            "Median angle of filters between start and end, degrees",
            band=(rules.LITTLE_DEG, rules.MUCH_DEG),
            bounds=(0.0, 180.0),
        )
    ),
    "C6": Axis(ValueAxis("Structure of trained filters beyond chance, and AUC", 0.0)),
    "C7": Axis(
        ValueAxis("Margin of a frozen random encoder, DSC", 0.0, sides=("not accurate", "quite accurate")), _OF_DSC
    ),
    "C8": Axis(ValueAxis("Margin of a frozen random encoder, DSC", 0.0, sides=_DSC_SIDES), _OF_DSC),
    "C9": Axis(ValueAxis("Excess distance between arms, in that within scratch", 0.0, (rules.DIFFERENT, rules.ALIKE))),
    "C10": Axis(
        ValueAxis(
            "Distance within a source over that among scratch", rules.AS_HIGH, sides=("alike", "as variable"), log=True
        )
    ),
    "C11": Axis(ValueAxis("Reuse: similarity to the source above the floor", 0.0, (rules.REUSED, rules.NOT_REUSED))),
    "C11b": Axis(ValueAxis("Reuse, lead over the early levels", 0.0, sides=("less deep", "more deep"))),
}
"""The axes of the claims that are not about the gain alone: `gain_forest` draws C2, `harder_forest` C3."""


def claim_forest(table: pd.DataFrame, claim: str, names: Mapping[str, str], *, width: float) -> Figure:
    """Draw what every study found on a claim as a forest plot, with what all targets give below.

    Args:
        table: The rows of over_targets.csv.
        claim: The claim.
        names: What each quantity is called, by its name in the table and in the order of the plot; others are not
            drawn.
        width: Width of the figure, in inches.
    """
    if claim == "C3":
        return harder_forest(table, width=width)
    if claim not in AXES:
        return gain_forest(gain_rows(table), width=width)
    axis, own = AXES[claim], table[table["claim"] == claim]
    groups = []
    for key, name in names.items():
        rows = own[own["quantity"] == key]
        label = "study" if rows.loc[rows["role"] == "study", "target"].duplicated().any() else "target"
        lines = [
            _own(row, getattr(row, label), axis.words) if row.role == "study" else _together(row, axis.words)
            for row in rows_of(rows)
        ]
        groups.append(Group(name, tuple(lines)))
    with drawing():
        return row_chart(groups, axis.values, width=width)


def words_of(claim: str) -> Words:
    """Return how the numbers of a claim are written."""
    return AXES[claim].words if claim in AXES else _OF_DSC


def _own(row: Any, label: str, words: Words) -> Row:
    note = words.whole(row.value, row.ci_low, row.ci_high)
    return Row(label, _STUDY, row.value, row.ci_low, row.ci_high, (), (), note)


def _study_row(row: Any, label: str) -> Row:
    return difference_row(label, _STUDY, row.value, row.ci_low, row.ci_high)


def _together(row: Any, words: Words) -> Row:
    """The row of a number over all targets; tau and the slope are no gains, so that they stand in words alone."""
    none, limits = float("nan"), words.limits(row.ci_low, row.ci_high)
    if row.role == "mean":
        note = f"{words.signed(row.value)} {limits}"
        return Row("mean", _MEAN, row.value, row.ci_low, row.ci_high, (), (), note, "diamond")
    if row.role == "prediction":
        return Row("another target", _PREDICTION, row.value, row.ci_low, row.ci_high, (), (), limits, "bar")
    if row.role == "tau":
        return Row("spread of targets, tau", _NUMBER, none, none, none, (), (), f"{words.plain(row.value)} {limits}")
    return Row("slope on difficulty (C3)", _NUMBER, none, none, none, (), (), f"{words.signed(row.value)} {limits}")
