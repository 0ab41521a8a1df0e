"""Whether arms still differ when the seeds of each are taken together as one network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from jaxseg.report.blocks import Block, Cell, Finding, Fold, Heading, Prose, Styles, Table, TableGroup, arm_name
from jaxseg.report.sections.elsewhere import OWN, gain_words
from jaxseg.report.sections.figures import titles
from jaxseg.report.shown import main_variant, overall_dsc, several_folds
from jaxseg.report.tables import Tables, Variant, of_variant, rows_of, variants_of
from jaxseg.reserved import INTERNAL
from jaxseg.text import MISSING, count, interval, number, plain, signed


def ensemble_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show the ensembles of arms on the study's own test cases beside single networks, and those on sets elsewhere."""
    if tables.ensemble_summary is None:
        return
    own = tables.ensemble_summary[tables.ensemble_summary["test_set"] == INTERNAL]
    scores = overall_dsc(own)
    if scores.empty:
        return
    yield Heading("Does it still help when the seeds of an arm are taken together?")
    differences = None if tables.ensemble_comparisons is None else overall_dsc_by_set(tables.ensemble_comparisons)
    variant = main_variant(variants_of(scores))
    if differences is not None and len(differences):
        yield from _finding(differences, variant, styles)
    sure = f"{100 * tables.confidence:g} %"
    yield Prose(
        "An ensemble is one network whose probabilities are the mean of those of an arm's seeds. "
        f"{_number_words(tables)}, so that its intervals are over test patients alone: they say nothing about other "
        "seeds."
    )
    single = pd.DataFrame() if tables.summary is None else overall_dsc(tables.summary)
    shown = [_table(scores, single, differences, one, styles, sure) for one in reversed(variants_of(scores))]
    yield shown[0]
    if shown[1:]:
        yield Fold("Ensembles at other training set sizes", tuple(shown[1:]))


def _number_words(tables: Tables) -> str:
    """How many ensembles an arm has, and of which seeds."""
    if not several_folds(tables):
        return "There is one of each arm"
    of = " of the seeds that are tested there" if "fold" in tables.study.vary else ""
    return f"There is one of each arm and fold{of}"


def overall_dsc_by_set(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows on DSC averaged over labels of each test set, of all folds together where there are several."""
    parts = [overall_dsc(own) for _, own in table.groupby("test_set", sort=False)]
    return pd.concat(parts) if parts else table


def _finding(differences: pd.DataFrame, variant: Variant, styles: Styles) -> Iterator[Block]:
    here = differences[differences["train_cases"] == variant.train_cases]
    arms = [arm for arm in dict.fromkeys(("transfer", *styles)) if arm in set(here["arm_a"])]
    told = [row for row in rows_of(here) if arms and row.arm_a == arms[0]]
    if told:
        base = plain(told[0].arm_b)
        words = [gain_words(OWN if row.test_set == INTERNAL else row.test_set, row) for row in told]
        yield Finding(f"Is the ensemble of {arms[0]} ahead of that of {base}?", " ".join(words))


def _table(
    scores: pd.DataFrame,
    single: pd.DataFrame,
    differences: pd.DataFrame | None,
    variant: Variant,
    styles: Styles,
    sure: str,
) -> Table:
    rows = []
    own = {row.arm: row for row in rows_of(of_variant(scores, variant))}
    for row in (own[arm] for arm in styles if arm in own):
        alone = _of(single, variant, "arm", row.arm)
        apart = differences[differences["test_set"] == INTERNAL] if differences is not None else None
        gain = _of(apart, variant, "arm_a", row.arm)
        rows.append(
            (
                Cell(arm_name(row.arm, styles)),
                Cell(MISSING if alone is None else number(alone.mean)),
                Cell(number(row.mean), interval(row.ci_low, row.ci_high)),
                Cell(MISSING) if gain is None else Cell(signed(gain.mean_diff), interval(gain.ci_low, gain.ci_high)),
                Cell(count(row.n_members)),
            )
        )
    caption = (
        f"DSC of single networks (mean of the seeds) and of each arm's ensemble, and the difference between ensembles, "
        f"with {sure} intervals over patients. Trained on {titles([variant])[variant]}."
    )
    head = ("Arm", "Single networks", "Ensemble", "Difference of ensembles", "Seeds")
    return Table(caption, head, (TableGroup("", tuple(rows)),))


def _of(table: pd.DataFrame | None, variant: Variant, column: str, arm: str) -> Any:
    """The row of an arm at a training set size; None where there is none."""
    if table is None or table.empty:
        return None
    own = table[(table["train_cases"] == variant.train_cases) & (table[column] == arm)]
    return next(rows_of(own), None)
