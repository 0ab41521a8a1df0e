"""What lies between two runs: the loss on the straight line between their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxseg.report.blocks import Block, Chart, Finding, Heading, Missing, Styles, described, first_then_fold
from jaxseg.report.charts.lines import Panel, Series, line_chart
from jaxseg.report.charts.style import drawing
from jaxseg.report.shown import baseline_of, few_at_a_time, main_size, of_fold, sized
from jaxseg.report.tables import Tables, first_fold, rows_of
from jaxseg.text import listing, number

_DRAWN_PAIRS = 30
"""How many pairs of runs of an arm are drawn one by one, the first ones; all are in the mean."""


def paths_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show the loss between two runs of each arm."""
    if tables.excess_loss is None:
        yield Missing("There is no results/excess_loss.csv with rows in it: the way between two runs is left out.")
        return
    size = main_size(tables.excess_loss)
    excess = first_fold(tables.excess_loss, size)
    yield Heading("Is there a hill between two runs?")
    arms = [arm for arm in styles if (excess["arm"] == arm).any()]
    barriers, aligned = (_barriers(tables, size, quantity) for quantity in ("barrier", "barrier_aligned"))
    told = [f"{number(barriers[arm], 3)} in {arm}" for arm in arms[:4] if arm in barriers]
    if told:
        yield Finding(
            "If the weights of two runs are mixed, does the loss stay low? If it does, they lie in one valley.",
            f"On the way between two runs the loss rises by {listing(told)} at its highest, mean over pairs"
            f"{of_fold(tables.excess_loss, size)}.{_aligned_words(aligned, arms[:4])}",
        )
    base = baseline_of(tables)
    most = f", the first {_DRAWN_PAIRS} of an arm" if _pairs_of(excess) > _DRAWN_PAIRS else ""
    charts = [
        Chart(
            f"interpolation{f'_{k + 1}' if k else ''}",
            partial(interpolation_chart, excess[excess["arm"].isin(few)], styles, baseline=base),
            described("Barrier", few, lambda arm: f"{arm} {number(barriers.get(arm, math.nan))}"),
            f"Loss on the straight line between the weights of two runs of an arm{sized(tables.excess_loss, size)}, "
            f"beyond the line between their two losses: mean over pairs (thick) and pairs (thin{most}).",
        )
        for k, few in enumerate(few_at_a_time(arms, base))
    ]
    yield from first_then_fold("The other arms", charts)


def _aligned_words(aligned: Mapping[str, float], arms: Sequence[str]) -> str:
    """How high the hill is once the channels of one run stand in the order that fits the other's best."""
    told = [f"{number(aligned[arm], 3)} in {arm}" for arm in arms if arm in aligned]
    return f" With the channels of one brought into the other's order first, by {listing(told)}." if told else ""


def _barriers(tables: Tables, size: int, quantity: str) -> dict[str, float]:
    """Mean height of the barrier between two runs of each arm, as variability.csv has it."""
    if tables.variability is None:
        return {}
    own = first_fold(tables.variability, size)
    return {row.arm: row.value for row in rows_of(own[(own["quantity"] == quantity) & (own["layer"] == "")])}


def _pairs_of(excess: pd.DataFrame) -> int:
    """The largest number of pairs of an arm."""
    pairs = excess[["arm", "seed_a", "seed_b"]].drop_duplicates()
    return int(pairs.groupby("arm").size().max())


def interpolation_chart(excess: pd.DataFrame, styles: Styles, *, width: float, baseline: str | None) -> Figure:
    """Show excess loss over the way between two runs.

    Args:
        excess: Rows of excess_loss.csv.
        styles: The look of each arm.
        width: Width of the figure, in inches.
        baseline: The arm that small panels repeat in grey.
    """
    series = []
    for arm in (arm for arm in styles if (excess["arm"] == arm).any()):
        own = excess[excess["arm"] == arm]
        pairs = [pair for _, pair in own.groupby(["seed_a", "seed_b"])]
        runs = tuple((pair["alpha"].to_numpy(float), pair["excess"].to_numpy(float)) for pair in pairs[:_DRAWN_PAIRS])
        mean = own.drop_duplicates("alpha").sort_values("alpha")
        x, y = mean["alpha"].to_numpy(float), mean["mean_excess"].to_numpy(float)
        none = np.full(len(x), np.nan)
        series.append(Series(arm, styles[arm], x, y, none, none, runs))
    with drawing():
        panel = Panel("Excess loss", tuple(series), None, "")
        xlabel = "Way from one run (0) to the other (1)"
        return line_chart([panel], width=width, xlabel=xlabel, baseline=baseline, name_ends=False)
