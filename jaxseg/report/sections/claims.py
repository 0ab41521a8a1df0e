"""The paper's claims with their verdicts: the first table of the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from jaxseg.report.blocks import Block, Cell, Finding, Fold, Missing, Styles, Table, TableGroup, arm_name, sentence
from jaxseg.report.shown import said
from jaxseg.report.tables import Tables, rows_of
from jaxseg.report.text import cases, plural, significant

_CLAIM, _CONTROL, _OTHER_SIZE = "claim", "control", "other size"
"""What a row of claims.csv is about (column role)."""

_MANY_QUANTITIES = 4

_ICONS = {
    "supported": "M-.5 .05L-.12 .42L.55 -.38",
    "contradicted": "M-.4 -.4L.4 .4M.4 -.4L-.4 .4",
    "undecided": "M-.45 0H.45",
    "void": "M-.4 .4L.4 -.4",
}
"""Verdict -> the stroke inside its disc: a tick, a cross, a dash, a slash."""


def claims_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show a verdict for each claim, the numbers it rests on, and what controls gave."""
    table = tables.claims
    claims = None if table is None else table[table["role"] == _CLAIM]
    if table is None or claims is None or claims.empty:
        yield Missing("There is no results/claims.csv with rows in it: verdicts on the paper's claims are left out.")
        return
    yield Finding("Which claims of the paper hold here?", _tally(said(tables, "claims")))
    version = table["rule_version"].iloc[0] if "rule_version" in table else None
    fixed = f", by rules fixed before training (version {version})" if version is not None else ""
    yield _claims_table(
        claims,
        "The claims are those of the paper's abstract (Karimi, Warfield and Gholipour, arXiv:2006.00356). Each gets a "
        f"verdict{fixed}: supported, contradicted, undecided or void, with the reason. All numbers are in "
        "results/claims.csv.",
        styles,
        controls=False,
    )
    controls = table[table["role"] == _CONTROL]
    if len(controls):
        yield Fold(
            f"The same on placebos and controls: {_control_words(said(tables, 'controls'))}",
            (_controls_table(controls, styles),),
        )
    others = table[table["role"] == _OTHER_SIZE]
    if len(others):
        yield Fold("The same numbers for the other training set sizes", (_sizes_table(others),))


def verdict_mark(verdict: str) -> Markup:
    """Return a verdict as text behind its sign; signs and words tell verdicts apart without their colours."""
    if verdict not in _ICONS:
        return sentence("{verdict}", verdict=verdict)
    return Markup(
        '<span class="verdict {0}"><svg viewBox="-1 -1 2 2" aria-hidden="true"><circle r="1"/><path d="{1}"/></svg>'
        "{0}</span>"
    ).format(verdict, _ICONS[verdict])


def _tally(counts: Mapping[str, Any]) -> str:
    shown = [verdict for verdict in _ICONS if verdict != "void" or _count(counts, verdict)]
    known = [f"{_count(counts, verdict)} {verdict}" for verdict in shown]
    return f"Of {plural(_count(counts, 'judged'), 'claim')}: {', '.join(known)}."


def _count(counts: Mapping[str, Any], what: str) -> int:
    return int(counts[what].value) if what in counts else 0


def _claims_table(claims: pd.DataFrame, caption: str, styles: Styles, *, controls: bool) -> Table:
    rows = []
    for (claim, arm), own in claims.groupby(["claim", "arm"], sort=False):
        first = next(rows_of(own))
        name = sentence("<b>{claim}</b> {statement}", claim=claim, statement=first.statement)
        rows.append(
            (
                Cell(name),
                *((Cell(arm_name(str(arm), styles)),) if controls else ()),
                Cell(verdict_mark(first.verdict)),
                Cell(_quantities(own)),
                Cell(first.reason),
            )
        )
    head = ("Claim", *(("In place of transfer",) if controls else ()), "Verdict", "Measured", "Why")
    columns = tuple(range(len(head)))
    return Table(caption, head, (TableGroup("", tuple(rows)),), text_columns=columns, cards=True)


def _quantities(own: pd.DataFrame) -> Markup:
    """Each quantity with its interval on a line of its own."""
    rows = [row for row in rows_of(own) if row.quantity]
    lines = [
        sentence(
            "<span>{name} <b>{value}</b> <small>{limits}</small></span>",
            name=row.quantity,
            value=significant(row.value),
            limits=_limits(row),
        )
        for row in rows[:_MANY_QUANTITIES]
    ]
    if len(rows) > _MANY_QUANTITIES:
        lines.append(sentence("<small>and {n} more</small>", n=len(rows) - _MANY_QUANTITIES))
    return Markup('<span class="lines">{}</span>').format(Markup("").join(lines)) if lines else Markup("")


def _limits(row: Any) -> str:
    if math.isnan(row.ci_low) or math.isnan(row.ci_high):
        return ""
    return f"[{significant(row.ci_low)}, {significant(row.ci_high)}]"


def _control_words(counts: Mapping[str, Any]) -> str:
    return f"{_count(counts, 'supported')} of {plural(_count(counts, 'judged'), 'comparison')} supported"


def _controls_table(controls: pd.DataFrame, styles: Styles) -> Table:
    caption = (
        "The rules applied to arms for which the answer is known. A placebo that is found to differ shows how often "
        "chance, or a flaw, earns a verdict."
    )
    return _claims_table(controls, caption, styles, controls=True)


def _sizes_table(others: pd.DataFrame) -> Table:
    groups = [
        TableGroup(
            f"Trained on {cases(int(size))}",
            tuple(
                (Cell(row.claim), Cell(row.quantity), Cell(significant(row.value), _limits(row)))
                for row in rows_of(own)
            ),
        )
        for size, own in ((size, others[others["train_cases"] == size]) for size in others["train_cases"].unique())
    ]
    caption = "What claims rest on at other training set sizes, without verdicts."
    return Table(caption, ("Claim", "Quantity", "Value"), tuple(groups), text_columns=(0, 1))
