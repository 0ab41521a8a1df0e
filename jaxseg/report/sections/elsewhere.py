"""The section on external test sets: what each arm reaches there, and what is left of its gain."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from jaxseg.analysis.statistics import MIN_SEEDS
from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Finding,
    Fold,
    Prose,
    Section,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
)
from jaxseg.report.sections import figures
from jaxseg.report.shown import main_variant, overall_dsc, shared_words
from jaxseg.report.tables import Tables, Variant, of_variant, rows_of, variants_of
from jaxseg.reserved import INTERNAL
from jaxseg.study.claims.rules import DELTA, MIN_GROUPS
from jaxseg.text import MISSING, count, interval, listing, number, plain, plural, signed

OWN = "own test cases"
"""What the page calls the cases that the study held out itself, beside sets from elsewhere."""


class Gains(NamedTuple):
    """The rows of the tables on one test set: DSC over all labels, of all folds together."""

    test_set: str
    scores: pd.DataFrame
    differences: pd.DataFrame

    @property
    def title(self) -> str:
        """What the page calls the set."""
        return OWN if self.test_set == INTERNAL else self.test_set


def elsewhere_section(tables: Tables, styles: Styles) -> Section:
    """Show scores and gains on external test sets beside those on the study's own cases; no blocks without sets."""
    title = "Elsewhere: does the gain survive a change of scanner or hospital?"
    return Section("elsewhere", title, tuple(_elsewhere(tables, styles)))


def sets_of(tables: Tables) -> list[Gains]:
    """Returns what the tables hold of each external test set, behind the study's own cases."""
    summary, comparisons = tables.external_summary, tables.external_comparisons
    if summary is None:
        return []
    found = [_gains(INTERNAL, tables.summary, tables.comparisons)]
    for name in dict.fromkeys(summary["test_set"]):
        own = None if comparisons is None else comparisons[comparisons["test_set"] == name]
        found.append(_gains(str(name), summary[summary["test_set"] == name], own))
    return found


def _gains(name: str, summary: pd.DataFrame | None, comparisons: pd.DataFrame | None) -> Gains:
    def rows(table: pd.DataFrame | None) -> pd.DataFrame:
        return pd.DataFrame() if table is None or table.empty else overall_dsc(table)

    return Gains(name, rows(summary), rows(comparisons))


def _elsewhere(tables: Tables, styles: Styles) -> Iterator[Block]:
    sets, sure = sets_of(tables), f"{100 * tables.confidence:g} %"
    if not sets:
        return
    compared = [one for one in sets if len(one.differences)]
    outside = [one for one in compared if one.test_set != INTERNAL]
    if outside:
        variant = main_variant(variants_of(outside[0].differences))
        ordered = dict.fromkeys(("transfer", *styles))
        arms = [arm for arm in ordered if _row(outside[0].differences, variant, arm) is not None]
        asked = arms[0]
        told = [(one, row) for one in compared if (row := _row(one.differences, variant, asked)) is not None]
        yield Finding(
            f"Is {asked} still ahead of {plain(told[0][1].arm_b)} on images from elsewhere?",
            " ".join(gain_words(one.title, row, few=row.n_groups < MIN_GROUPS) for one, row in told),
        )
        few = [one.title for one, row in told if row.n_seeds < MIN_SEEDS]
        single = [one.title for one, row in told if row.n_groups < 2]
        alone = f", but for {listing(single)}: of one patient it is about new seeds alone" if single else ""
        few_words = f" With fewer than {MIN_SEEDS} seeds none of it is a verdict." if few else ""
        yield Prose(
            "Networks were neither trained nor validated on these sets, and the verdicts of this page do not use them. "
            f"Each interval is about new seeds and about new patients like those of its set{alone}. That one gain is "
            f"larger than another is not tested here.{few_words} {shared_words(tables.study)}".rstrip()
        )
        yield Chart(
            "elsewhere",
            partial(_forest, compared, arms, styles, variant),
            described("Difference in DSC by test set", _told(compared, arms, variant), lambda words: words),
            f"Paired difference in DSC to {plain(told[0][1].arm_b)} on each test set, with {sure} intervals. Grey: "
            f"±{DELTA}, too small to matter.",
        )
    variants = variants_of(pd.concat([one.scores for one in sets if len(one.scores)]))
    shown = [_table(sets, variant, styles, sure, len(variants) > 1) for variant in reversed(variants)]
    yield shown[0]
    if shown[1:]:
        yield Fold("Other training set sizes", tuple(shown[1:]))


def _row(differences: pd.DataFrame, variant: Variant, arm: str) -> Any:
    """The difference of an arm at a training set size; None where there is none."""
    own = differences[(differences["train_cases"] == variant.train_cases) & (differences["arm_a"] == arm)]
    return next(rows_of(own), None)


def gain_words(title: str, row: Any, *, few: bool = False) -> str:
    """Returns a difference in a sentence that says no more than its interval does.

    Args:
        title: What the test set is called.
        row: A row of a table of differences.
        few: Whether it has too few patients for its interval to hold as often as it says.
    """
    low, high = row.ci_low, row.ci_high
    measured = f"{signed(row.mean_diff)} DSC {interval(low, high)}".strip()
    if not interval(low, high):
        means = "there is no interval, so nothing can be said"
    elif few:
        means = f"of too few patients to conclude from (fewer than {MIN_GROUPS})"
    elif max(-low, high) < DELTA:
        means = "any difference is too small to matter"
    elif low > 0:
        means = "it is ahead"
    elif high < 0:
        means = "it is behind"
    else:
        means = "the interval holds 0, so this study cannot tell"
    where = "On its own test cases" if title == OWN else f"On {plain(title)}"
    return f"{where}: {measured}, {means}."


def _told(sets: list[Gains], arms: list[str], variant: Variant) -> list[str]:
    found = [(one, arm, _row(one.differences, variant, arm)) for arm in arms for one in sets]
    return [f"{arm}, {one.title}: {signed(row.mean_diff)}" for one, arm, row in found if row is not None]


def _forest(sets: list[Gains], arms: list[str], styles: Styles, variant: Variant, *, width: float) -> Any:
    groups = []
    for arm in arms:
        found = [(one, _row(one.differences, variant, arm)) for one in sets]
        rows = [
            figures.difference_row(one.title, styles[arm], row.mean_diff, row.ci_low, row.ci_high)
            for one, row in found
            if row is not None
        ]
        groups.append(figures.Group(arm, tuple(rows)))
    return figures.forest_plot(groups, width=width, xlabel="Difference in DSC")


def _table(sets: list[Gains], variant: Variant, styles: Styles, sure: str, several: bool) -> Table:
    groups = []
    bases: dict[str, None] = {}
    for one in sets:
        if one.scores.empty:
            continue
        own = of_variant(one.scores, variant)
        rows = []
        for arm in (arm for arm in styles if (own["arm"] == arm).any()):
            score = next(rows_of(own[own["arm"] == arm]))
            gain = None if one.differences.empty else _row(one.differences, variant, arm)
            if gain is not None:
                bases[str(gain.arm_b)] = None
            difference = Cell(MISSING) if gain is None else _difference(gain)
            score_cell = Cell(number(score.mean), interval(score.ci_low, score.ci_high))
            rows.append((Cell(arm_name(arm, styles)), score_cell, difference, Cell(count(score.n_seeds))))
        number_of_groups = max((int(row.n_groups) for row in rows_of(own)), default=0)
        groups.append(TableGroup(f"{one.title} ({plural(number_of_groups, 'group')})", tuple(rows)))
    trained = f" Trained on {figures.titles([variant])[variant]}." if several else ""
    caption = (
        f"DSC on each test set, mean and {sure} interval over seeds, and the paired difference to "
        f"{listing([*bases]) or 'another arm'} with its interval over seeds and patients.{trained}"
    )
    return Table(caption, ("Arm", "DSC", "Difference", "Seeds"), tuple(groups))


def _difference(row: Any) -> Cell:
    return Cell(signed(row.mean_diff), interval(row.ci_low, row.ci_high))
