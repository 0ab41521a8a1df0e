"""The page's first section: what came out, the verdicts on the claims, and how far both can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from jaxseg.report.blocks import (
    Block,
    Cell,
    KeyFigure,
    Lead,
    Missing,
    Prose,
    Section,
    Strip,
    Styles,
    Table,
    TableGroup,
    arm_name,
    sentence,
)
from jaxseg.report.sections.arms import arms_table
from jaxseg.report.sections.claims import claims_blocks, grade_words
from jaxseg.report.sections.figures import titles
from jaxseg.report.sections.notices import notices
from jaxseg.report.shown import lost_arms, main_variant, overall_dsc
from jaxseg.report.tables import Tables, of_variant, rows_of, variants_of
from jaxseg.study.claims.rules import SPEED_LEVELS
from jaxseg.text import (
    MISSING,
    TIMES,
    cases,
    interval,
    limit,
    listing,
    number,
    p_value,
    percent,
    plain,
    ratio,
    signed,
    significant,
)

_WORDS = (
    "An arm is one way of training: how the weights start and which of them are trained. A seed repeats an arm with "
    "other random numbers. An interval says how far the mean might lie from the truth, given how runs differ."
)


_LEVELS = listing([f"{100 * level:g} %" for level in SPEED_LEVELS])
"""The shares of the baseline's level up to which steps are counted."""


def summary_section(tables: Tables, styles: Styles) -> Section:
    """Say what came out."""
    answer = _answer(tables) if tables.comparisons is not None else _single_arm(tables, styles)
    blocks = (
        *answer,
        *claims_blocks(tables, styles),
        *notices(tables),
        *_effects(tables, styles),
        Prose(_WORDS),
        arms_table(tables, styles),
    )
    return Section("summary", "Summary", blocks)


def _answer(tables: Tables) -> Iterator[Block]:
    """The answer of claims.csv, above the numbers that it rests on."""
    rows = [] if tables.claims is None else list(rows_of(tables.claims[tables.claims["role"] == "answer"]))
    if not rows:
        yield Missing("There is no answer in results/claims.csv: what transfer does here is left out.")
        return
    answer = rows[0]
    yield Lead(answer.reason)
    if grade := grade_words(answer):
        yield Prose(grade)
    figures = [_gain(row) for row in rows if row.quantity.startswith("gain, ")]
    taken = f"{answer.baseline}'s steps over {answer.arm}'s, to {_LEVELS} of {answer.baseline}'s level"
    for key, meaning in (("ratio", taken), ("total", "the same, pretraining counted")):
        figures += [_times(meaning, row) for row in rows if row.key == key]
    if figures:
        yield Strip(tuple(figures))
    assert tables.claims is not None  # it has the answer
    for row in list(rows_of(tables.claims[tables.claims["role"] == "ranking"]))[:1]:
        yield Lead(row.reason)


def _gain(row: Any) -> KeyFigure:
    return KeyFigure(f"{signed(row.value)} DSC", f"{row.arm} against {row.baseline}", _limits(row, limit))


def _times(meaning: str, row: Any) -> KeyFigure:
    # Rounded to fewer digits, limits on either side of 1 would look the same.
    return KeyFigure(ratio(row.value) + TIMES, meaning, _limits(row, significant))


def _limits(row: Any, written: Callable[[float], str]) -> str:
    if not (math.isfinite(row.ci_low) and math.isfinite(row.ci_high)):
        return "too few seeds for an interval"
    return f"{percent(row.confidence)} interval {written(row.ci_low)} to {written(row.ci_high)}"


def _effects(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Every comparison in a table, where there is more than the one of the answer."""
    overall = None if tables.comparisons is None else overall_dsc(tables.comparisons)
    if overall is None or len(overall) < 2:
        return
    yield _effects_table(overall, _speeds(tables), tables, styles)


def _effects_table(overall: pd.DataFrame, by_key: dict[tuple[str, int], Any], tables: Tables, styles: Styles) -> Table:
    variants = variants_of(overall)
    heading = titles(variants)
    one_base = overall["arm_b"].nunique() == 1
    has_speed = bool(by_key) and one_base
    groups = []
    for variant in variants:
        own = of_variant(overall, variant)
        order = {arm: i for i, arm in enumerate(tables.arms)}
        own = own.sort_values("arm_a", key=lambda names: names.map(order), kind="stable")
        rows = []
        for row in rows_of(own):
            cells = [
                Cell(arm_name(row.arm_a, styles)),
                *(() if one_base else (Cell(row.arm_b),)),
                Cell(signed(row.mean_diff), interval(row.ci_low, row.ci_high)),
                Cell(p_value(row.p)),
            ]
            if has_speed:
                speed = by_key.get((row.arm_a, variant.train_cases))
                cells += [_ratio_cell(speed, total=False), _ratio_cell(speed, total=True)]
            rows.append(tuple(cells))
        groups.append(TableGroup(f"Trained on {heading[variant]}" if len(variants) > 1 else "", tuple(rows)))
    speed_head = ("Speed", "Pretraining counted") if has_speed else ()
    head = ("Arm", *(() if one_base else ("Against",)), "DSC difference", "p, these cases", *speed_head)
    against = plain(overall["arm_b"].iloc[0]) if one_base else "another"
    note = ""
    if has_speed:
        level = percent(next(iter(by_key.values())).confidence)
        note = (
            f" Speed, by the rule of claim C1 and on the seeds of the answer: steps of {against} to {_LEVELS} of its "
            f"own level, divided by this arm's to the same, with {level} intervals; above 1 is sooner."
        )
    caption = f"Each arm against {against}, with {percent(tables.confidence)} intervals.{note}"
    return Table(caption, head, tuple(groups), text_columns=(0,) if one_base else (0, 1))


def _ratio_cell(speed: Any, *, total: bool) -> Cell:
    if speed is None:
        return Cell(MISSING)
    own = (speed.total_ratio, speed.total_ci_low, speed.total_ci_high)
    value, low, high = own if total else (speed.ratio, speed.ci_low, speed.ci_high)
    return Cell(ratio(value) + TIMES if math.isfinite(value) else MISSING, interval(low, high, 2))


def _speeds(tables: Tables) -> dict[tuple[str, int], Any]:
    """Rows of speed.csv by arm and training set size."""
    return {} if tables.speed is None else {(row.arm, row.train_cases): row for row in rows_of(tables.speed)}


def _single_arm(tables: Tables, styles: Styles) -> Iterator[Block]:
    lost = lost_arms(tables.study)
    if tables.summary is None:
        if lost:
            yield Missing("Every run of every arm diverged, so there are no scores and no result to state.")
        else:
            yield Missing("There is no summary.csv and no comparisons.csv, so there is no result to state yet.")
        return
    overall = overall_dsc(tables.summary)
    if overall.empty:
        yield Missing("summary.csv holds no mean DSC, so there is no result to state.")
        return
    why = (
        f"Every run of {listing(lost)} diverged" if lost else "There is no comparisons.csv with rows in it"
    )  # a baseline that is lost, or nothing but a baseline
    row = next(rows_of(of_variant(overall, main_variant(variants_of(overall)))))
    text = sentence(
        "{arm} reaches a mean DSC of <b>{mean}</b>, trained on {size}. {why}, so nothing is compared with it.",
        why=why,
        arm=arm_name(row.arm, styles),
        mean=f"{number(row.mean)} {interval(row.ci_low, row.ci_high)}".strip(),
        size=cases(row.train_cases),
    )
    yield Prose(text)
