"""The paper's claims with their verdicts: the first table of the page, and what stands beside the verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from jaxseg.report.blocks import (
    Block,
    Cell,
    Finding,
    Fold,
    Missing,
    Notice,
    Prose,
    Styles,
    Table,
    TableGroup,
    arm_name,
    sentence,
)
from jaxseg.report.sections.controls import control_words
from jaxseg.report.shown import said
from jaxseg.report.tables import Tables, rows_of
from jaxseg.study.claims.rules import CONFIDENCE
from jaxseg.text import cases, interval, listing, percent, plural, signed, significant, significant_interval

_CLAIM, _GRADED, _CONTROL, _OTHER_SIZE, _ALL_SEEDS, _LACKING = (
    *("claim", "graded", "control", "other size"),
    *("all seeds", "lacking"),
)
"""What a row of claims.csv is about (column role)."""

_MANY_QUANTITIES = 4

_ICONS = {
    "supported": "M-.5 .05L-.12 .42L.55 -.38",
    "contradicted": "M-.4 -.4L.4 .4M.4 -.4L-.4 .4",
    "undecided": "M-.45 0H.45",
    "void": "M-.4 .4L.4 -.4",
}
"""Verdict -> the stroke inside its disc: a tick, a cross, a dash, a slash."""
_EXPLORATORY = Markup('<span class="badge">exploratory</span>')


def claims_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show a verdict for each claim that the study can speak of, the numbers it rests on, and what controls gave."""
    table = tables.claims
    if table is None or not table["role"].isin([_CLAIM, _LACKING]).any():
        yield Missing("There is no results/claims.csv with rows in it: verdicts on the paper's claims are left out.")
        return
    yield from _exploratory(tables, table)
    claims, controls = (table[table["role"] == role] for role in (_CLAIM, _CONTROL))
    yield Finding("Which claims of the paper hold here?", _tally(said(tables, "claims"), len(claims) > 0))
    if words := control_words(controls):
        yield Prose(words)
    if len(claims):
        yield _claims_table(claims, _caption(tables, claims), styles, controls=False)
    lacking = table[table["role"] == _LACKING]
    if len(lacking):
        asked = [f"{row.claim} ({row.needs})" for row in rows_of(lacking)]
        yield Prose(sentence("Not asked here: {claims}.", claims=listing(asked)))
    graded = table[table["role"] == _GRADED]
    if len(graded):
        yield Prose(_parts(graded))
    if len(controls):
        yield Fold("The same on placebos and controls", (_controls_table(controls, styles),))
    yield from _without_verdicts(table)


def verdict_mark(verdict: str) -> Markup:
    """Return a verdict as text behind its sign; signs and words tell verdicts apart without their colours."""
    if verdict not in _ICONS:
        return sentence("{verdict}", verdict=verdict)
    return Markup(
        '<span class="verdict {0}"><svg viewBox="-1 -1 2 2" aria-hidden="true"><circle r="1"/><path d="{1}"/></svg>'
        "{0}</span>"
    ).format(verdict, _ICONS[verdict])


def grade_words(answer: Any) -> Markup:
    """Return the grade of the answer's first number, and how long the runs were trained; empty without a grade."""
    if not answer.grade:
        return Markup("")
    name = f"{answer.quantity[:1].upper()}{answer.quantity[1:]}"
    tag = f", {answer.tag}" if answer.tag else ""
    words = sentence("{name}: <b>{grade}</b>{tag}.", name=name, grade=answer.grade, tag=tag)
    return words + Markup(" ") + _EXPLORATORY if answer.exploratory else words


# ------------------------------------------------------------------------------------------------------- the verdicts


def _exploratory(tables: Tables, table: pd.DataFrame) -> Iterator[Block]:
    """Why findings are none of those that were fixed in advance, where some are not."""
    if not table["exploratory"].any():
        return
    version, own = table["rule_version"].iloc[0], tables.study.rule_version
    why = tables.study.exploratory or "the reason stands with each finding that is marked so"
    if version != own:
        why = f"the study was begun under version {own} of the rules and is judged by version {version}"
    text = "<b>Exploratory:</b> {why}. Findings marked so are none of those that were fixed before the training."
    yield Notice(sentence(text, why=why))


def _caption(tables: Tables, claims: pd.DataFrame) -> str:
    version = claims["rule_version"].iloc[0]
    fixed = ", by rules fixed before training" if version == tables.study.rule_version else ", by rules"
    return (
        "The claims are those of the paper's abstract (Karimi, Warfield and Gholipour, arXiv:2006.00356). Each gets a "
        f"verdict{fixed} (version {version}): supported, contradicted, undecided or void, with the reason and with how "
        "long the runs were trained. All numbers are in results/claims.csv."
    )


def _tally(counts: Mapping[str, Any], judged: bool) -> str:
    if not _count(counts, "judged"):
        return "The table says so claim by claim." if judged else "This study can speak of none of them."
    shown = [verdict for verdict in _ICONS if verdict != "void" or _count(counts, verdict)]
    known = [f"{_count(counts, verdict)} {verdict}" for verdict in shown]
    return f"Of {plural(_count(counts, 'judged'), 'claim')} that this study can speak of: {', '.join(known)}."


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
                Cell(_verdict(first)),
                Cell(_quantities(own)),
                Cell(_why(own)),
            )
        )
    head = ("Claim", *(("In place of transfer",) if controls else ()), "Verdict", "Measured", "Why")
    columns = tuple(range(len(head)))
    return Table(caption, head, (TableGroup("", tuple(rows)),), text_columns=columns, cards=True)


def _verdict(row: Any) -> Markup:
    """The verdict, and below it the look at which it fell, how long the runs were trained, whether it is a test."""
    usual = math.isnan(row.confidence) or math.isclose(row.confidence, CONFIDENCE)
    level = "" if usual else f", {percent(row.confidence)} limits"
    notes = [] if math.isnan(float(row.look)) else [f"at {int(row.look)} seeds{level}"]
    lines = [
        verdict_mark(row.verdict),
        *(sentence('<span class="note">{note}</span>', note=note) for note in (*notes, row.tag) if note),
    ]
    return _lines([*lines, *([_EXPLORATORY] if row.exploratory else [])])


def _why(own: pd.DataFrame) -> Markup:
    """The reason, less the numbers that stand beside it, and what would decide the claim where it does not say so."""
    row, *_ = shown = _shown(own) or list(rows_of(own))
    reason = row.reason
    for one in shown:
        numbers = f"{one.quantity} {significant(one.value)} {significant_interval(one.ci_low, one.ci_high)}"
        reason = reason.replace(f"{numbers.rstrip()}; ", "")
    needs = row.needs if row.needs and row.needs not in row.reason else ""
    decides = [sentence("<b>To decide it:</b> {needs}.", needs=needs)] if needs else []
    return _lines([sentence("{reason}", reason=reason), *decides])


def _shown(own: pd.DataFrame) -> list[Any]:
    """The rows of the quantities that the table shows: the first few."""
    return list(rows_of(own[own["quantity"] != ""].head(_MANY_QUANTITIES)))


def _quantities(own: pd.DataFrame) -> Markup:
    """Each quantity with its interval and grade on a line of its own."""
    lines = [
        sentence(
            "{name} <b>{value}</b> <small>{limits}</small>{grade}{projected}",
            name=row.quantity,
            value=significant(row.value),
            limits=significant_interval(row.ci_low, row.ci_high),
            grade=f" {row.grade}" if row.grade else "",
            projected=_projected(row),
        )
        for row in _shown(own)
    ]
    if more := int((own["quantity"] != "").sum()) - len(lines):
        lines.append(sentence("<small>and {n} more</small>", n=more))
    return _lines(lines)


def _projected(row: Any) -> Markup:
    """The limits after another doubling of the steps that goes against the claim, where they are others than now."""
    later = significant_interval(row.projected_low, row.projected_high)
    if not later or later == significant_interval(row.ci_low, row.ci_high):
        return Markup("")
    return sentence(" <small>one doubling on: {later}</small>", later=later)


def _lines(lines: list[Markup]) -> Markup:
    """Each on a line of its own."""
    one_each = Markup(" ").join(Markup("<span>{}</span>").format(line) for line in lines)
    return Markup('<span class="lines">{}</span>').format(one_each) if lines else Markup("")


# ------------------------------------------------------------------------------------------------ beside the verdicts


def _parts(graded: pd.DataFrame) -> Markup:
    """What of a pretrained network makes the gain, in a sentence for each of its parts."""
    sentences = []
    for _, own in graded.groupby("claim", sort=False):
        rows = list(rows_of(own))
        numbers = [
            f"{row.quantity} {signed(row.value)} DSC {interval(row.ci_low, row.ci_high)}, {row.grade}"
            if row.grade
            else f"{row.quantity}: {significant(row.value)}"
            for row in rows
            if row.quantity
        ]
        # What is needed is said below; what else limits the numbers, as an arm that is lost, stands beside them.
        needs = f" To decide it: {rows[0].needs}." if rows[0].needs else ""
        numbers += [part for part in rows[0].reason.split("; ") if part and part not in rows[0].needs]
        text = "<b>{what}:</b> {numbers}.{needs}"
        what = f"{rows[0].statement[:1].upper()}{rows[0].statement[1:]}"
        sentences.append(sentence(text, what=what, numbers="; ".join(numbers), needs=needs))
    return Markup(" ").join(sentences)


def _controls_table(controls: pd.DataFrame, styles: Styles) -> Table:
    caption = (
        "The rules applied to arms for which the answer is known. A placebo that is found to differ shows how often "
        "chance, or a flaw, earns a verdict."
    )
    if controls["arm"].str.match(r"given(_|$)").any():
        caption += " A checkpoint of someone else's beside transfer is judged as transfer is; its answer is not known."
    return _claims_table(controls, caption, styles, controls=True)


def _without_verdicts(table: pd.DataFrame) -> Iterator[Block]:
    """Quantities that no verdict rests on: with seeds that were added later, and at other training set sizes."""
    later, others = (table[table["role"] == role] for role in (_ALL_SEEDS, _OTHER_SIZE))
    if len(later):
        rows = tuple(_number_row(row, mark=_EXPLORATORY) for row in rows_of(later))
        caption = (
            f"What claims rest on with all {int(later['n_seeds'].max())} seeds: exploratory, without verdicts: "
            "seeds were added when the results of the first were known, without looks declared beforehand."
        )
        shown = Table(caption, _HEAD, (TableGroup("", rows),), text_columns=(0, 1))
        yield Fold("The same numbers with the seeds that were added later (exploratory)", (shown,))
    if len(others):
        groups = [
            TableGroup(f"Trained on {cases(int(size))}", tuple(map(_number_row, rows_of(own))))
            for size, own in ((size, others[others["train_cases"] == size]) for size in others["train_cases"].unique())
        ]
        caption = "What claims rest on at other training set sizes, without verdicts."
        shown = Table(caption, _HEAD, tuple(groups), text_columns=(0, 1))
        yield Fold("The same numbers for the other training set sizes", (shown,))


_HEAD = ("Claim", "Quantity", "Value")


def _number_row(row: Any, mark: Markup | None = None) -> tuple[Cell, ...]:
    claim = (
        sentence("{claim}", claim=row.claim) if mark is None else sentence("{claim} {mark}", claim=row.claim, mark=mark)
    )
    return Cell(claim), Cell(row.quantity), Cell(significant(row.value), significant_interval(row.ci_low, row.ci_high))
