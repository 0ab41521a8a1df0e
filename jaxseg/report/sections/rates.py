"""Learning rates that were tried, the one that each arm took, and where that choice says little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from markupsafe import Markup

from jaxseg.report.blocks import Block, Cell, Finding, Notice, Prose, Styles, Table, TableGroup, arm_name, sentence
from jaxseg.report.sections.figures import titles
from jaxseg.report.shown import main_size, main_variant
from jaxseg.report.tables import Tables, of_variant, rows_of, variants_of
from jaxseg.study.claims.rules import DELTA
from jaxseg.text import MISSING, listing, number, plural

_NAMED = 5
"""Arms that a sentence names; the table has all."""


def rates_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show which rates were tried and taken; nothing where there was no choice."""
    if tables.rates is None:
        return
    own = of_variant(tables.rates, main_variant(variants_of(tables.rates)))
    taken = own[own["chosen"]]
    trials = sorted({int(n) for n in tables.rates["n_seeds"]})
    found = [f"{arm} {rate:g}" for arm in styles for rate in taken.loc[taken["arm"] == arm, "lr"]]
    yield Finding(
        "Which learning rate does each arm train with?",
        f"Chosen on validation data, from trials with {' or '.join(plural(n, 'seed') for n in trials)} of their own: "
        f"{_some(found)}.",
    )
    close = _named(tables, "nearly as good")
    if close:
        yield Prose(
            f"Another rate scores within {DELTA} DSC of the chosen one, so that chance may have chosen, for "
            f"{_some(close)}."
        )
    yield from _second_rate(tables)
    yield _table(tables.rates, styles)


def _second_rate(tables: Tables) -> Iterator[Prose]:
    """A sentence where the trials do not tell the shared rate from the second-best one."""
    if tables.page is None:
        return
    own = tables.page[tables.page["about"] == "joint rate"]
    if own.empty:
        return
    found = own.set_index("quantity")["value"]
    error = "" if pd.isna(found["error"]) else f", with a standard error of {number(found['error'])}"
    pairs = plural(int(found["trials"]), "pair")
    yield Prose(
        f"The trials do not tell {found['taken']:g} from {found['second']:g}, so that chance may have chosen: it is "
        f"ahead by {number(found['gap'])} DSC on average over {pairs} of trials{error}. All "
        "arms train at this rate; more seeds in <code>optim.lr_seeds</code> choose more surely."
    )


def end_of_grid(tables: Tables) -> Iterator[Notice]:
    """A notice where arms took the smallest or largest rate of their grid, at the largest training set."""
    if tables.rates is None:
        return
    if ends := _named(tables, "end of the grid"):
        yield Notice(
            sentence(
                "<b>The chosen learning rate is the smallest or largest that was tried</b> for {arms}. A rate beyond "
                "it may do better, and a difference between arms may be one between rates: widen "
                "<code>optim.lr_grid</code>.",
                arms=_some(ends),
            )
        )


def _some(names: list[str]) -> str:
    """The first of these, each once: folds may repeat a choice."""
    own = list(dict.fromkeys(names))
    more = len(own) - _NAMED
    return listing(own if more <= 0 else [*own[:_NAMED], f"{more} more"])


def _named(tables: Tables, what: str) -> list[str]:
    """Arms with the rate that page.csv tells about them, at the largest training set."""
    if tables.page is None or tables.rates is None:
        return []
    own = tables.page[(tables.page["about"] == "rates") & (tables.page["quantity"] == what)]
    own = own[own["train_cases"] == main_size(tables.rates)]
    return [f"{row.arm} ({row.value:g})" for row in rows_of(own)]


def _table(rates: pd.DataFrame, styles: Styles) -> Table:
    grid = sorted(rates["lr"].unique())
    variants = variants_of(rates)
    heading = titles(variants)
    groups = []
    for variant in variants:
        own = of_variant(rates, variant)
        several = own["fold"].nunique() > 1
        rows = []
        for arm in (arm for arm in styles if (own["arm"] == arm).any()):
            for fold, tried in own[own["arm"] == arm].groupby("fold"):
                name = arm_name(arm, styles) + (f", fold {fold}" if several else "")
                cells = {row.lr: _cell(row) for row in rows_of(tried)}
                rows.append((Cell(name), *(cells.get(rate, Cell(MISSING)) for rate in grid)))
        groups.append(TableGroup(f"Trained on {heading[variant]}" if len(variants) > 1 else "", tuple(rows)))
    return Table(
        "Validation DSC at the end of the trials, by learning rate; the rate that was taken is bold.",
        ("Arm", *(f"{rate:g}" for rate in grid)),
        tuple(groups),
    )


def _cell(row: Any) -> Cell:
    score = number(row.val_dsc)
    shown = Markup("<b>{}</b>").format(score) if row.chosen else score
    return Cell(shown, f"{int(row.n_diverged)} of {int(row.n_seeds)} diverged" if row.n_diverged else "")
