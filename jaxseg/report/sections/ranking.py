"""Which start to take: the ranking of a study with several, in the accuracy section."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Finding,
    Heading,
    Prose,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
)
from jaxseg.report.charts.rows import Group
from jaxseg.report.sections.figures import difference_row, forest_plot
from jaxseg.report.tables import Tables, rows_of
from jaxseg.study.claims.rules import DELTA
from jaxseg.text import cases, count, interval, number, percent, signed

_ROLES = {"baseline": "reference", "start": "", "placebo": "placebo", "control": "control"}


def ranking_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show the ranking of starts, if the study has several."""
    if tables.ranking is None or tables.claims is None:
        return
    told = list(rows_of(tables.claims[tables.claims["role"] == "ranking"]))
    if not told:
        return
    yield Heading("Which start?")
    yield Finding("Which of the starts is the one to take?", told[0].reason)
    sure = percent(tables.ranking["confidence"].iloc[0])
    compared = tables.ranking.dropna(subset=["gain"])
    base = told[0].baseline
    yield Chart(
        "ranking",
        partial(ranking_chart, compared, styles, base=base),
        described(f"Difference in DSC to {base}, best first", rows_of(compared), _words),
        f"Difference in DSC to {base}, best first, with limits that hold for all starts together ({sure}). An arm "
        f"whose line lies right of 0 is better. Grey: ±{DELTA}, too small to matter.",
    )
    yield _table(tables.ranking, styles, base, sure)
    yield Prose(
        "A start may be the best if no other start is better for certain; the true best is among those. Ranks count "
        "the starts alone. A placebo or control is no start: what the table says of the placebo is what chance does."
    )


def _words(row: Any) -> str:
    return f"{row.arm} {signed(row.gain)}"


def ranking_chart(ranking: pd.DataFrame, styles: Styles, *, base: str, width: float) -> Figure:
    """Show each arm's difference to the baseline, best first, as a forest plot.

    Args:
        ranking: Rows of ranking.csv with a gain.
        styles: The look of each arm.
        base: The baseline's name.
        width: Width of the figure, in inches.
    """
    rows = tuple(
        difference_row(
            f"{row.arm} ({_ROLES[row.role]})" if _ROLES[row.role] else row.arm,
            *(styles[row.arm], row.gain, row.joint_low, row.joint_high),
        )
        for row in rows_of(ranking)
    )
    return forest_plot([Group("", rows)], width=width, xlabel=f"Difference in DSC to {base}")


def _table(ranking: pd.DataFrame, styles: Styles, base: str, sure: str) -> Table:
    rows = []
    for row in rows_of(ranking):
        start = row.role == "start"
        cost = [count(row.pretrain_steps), number(row.pretrain_seconds, 1)] if start else ["", ""]
        rows.append(
            (
                Cell(arm_name(row.arm, styles), _ROLES[row.role]),
                Cell(row.source, row.seen),
                Cell(_rank(row) if start else ""),
                Cell(signed(row.gain), interval(row.joint_low, row.joint_high)),
                Cell(signed(row.to_best), interval(row.to_best_low, row.to_best_high)),
                Cell(("yes" if row.may_be_best else "no") if start else ""),
                *(Cell(text) for text in cost),
            )
        )
    head = (
        "Arm",
        "Pretrained on",
        "Rank",
        f"Against {base}",
        "Against the best",
        "May be the best",
        "Steps",
        "Seconds",
    )
    caption = (
        f"Starts on {cases(ranking['train_cases'].iloc[0])}, best first: differences in DSC with limits that hold for "
        f"all starts together ({sure}). Steps and seconds: the pretraining of one source network."
    )
    return Table(caption, head, (TableGroup("", tuple(rows)),), text_columns=(0, 1, 5))


def _rank(row: Any) -> str:
    low, high = count(row.rank_low), count(row.rank_high)
    return low if low == high else f"{low} to {high}"
