"""The variability section: how much runs of an arm differ, where, and what lies between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Finding,
    Fold,
    Heading,
    Missing,
    Section,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
    first_then_fold,
)
from jaxseg.report.charts.layers import LayerAxis
from jaxseg.report.charts.overlays import heat_overlay
from jaxseg.report.pictures import Disagreement
from jaxseg.report.sections.by_layer import arm_charts, layer_value
from jaxseg.report.sections.paths import paths_blocks
from jaxseg.report.sections.variance import sources_blocks
from jaxseg.report.shown import baseline_of, main_size, of_fold, of_run, shared_words, sized
from jaxseg.report.tables import Tables, first_fold, rows_of, variants_of
from jaxseg.text import MINUS, MISSING, interval, listing, number

_QUANTITIES = {
    "disagreement": ("Voxels on which two runs differ, share of the region", 4),
    "pairwise_dsc": ("DSC between two runs' predictions", 3),
    "entropy": ("Entropy of a voxel's label over seeds, nats", 4),
    "error_rate": ("Voxels that a run gets wrong, share of the region", 4),
    "representation_distance": (f"Distance of two runs' representations, 1 {MINUS} CKA", 3),
    "parameter_distance": ("Distance of two runs' weights over their length", 2),
    "parameter_distance_aligned": ("The same with channels in the order that fits best", 2),
    "barrier": ("Highest excess loss between two runs", 3),
    "barrier_aligned": ("The same with channels in the order that fits best", 3),
    "sd_dsc": ("DSC, standard deviation over seeds", 4),
    "sd_hd95": ("HD95, standard deviation over seeds", 2),
    "sd_assd": ("ASSD, standard deviation over seeds", 2),
}
"""Quantity of variability.csv -> what it is and its digits, in the order of the table."""


def variability_section(tables: Tables, styles: Styles) -> Section:
    """Show how much runs of an arm differ from each other."""
    blocks = (
        *_numbers(tables, styles),
        *_overlays(tables),
        *paths_blocks(tables, styles),
        *sources_blocks(tables, styles),
    )
    return Section("variability", "How much runs differ from each other", blocks)


def _numbers(tables: Tables, styles: Styles) -> Iterator[Block]:
    table = tables.variability
    if table is None:
        yield Missing(
            "There is no results/variability.csv with rows in it: how much runs of an arm differ is left out."
        )
        return
    size = main_size(table)
    own = first_fold(table, size)
    overall = own[own["layer"] == ""]
    arms = [arm for arm in styles if (overall["arm"] == arm).any()]
    yield Finding(
        "How much does the outcome depend on the seed, that is on chance in the start and in the order of the data?",
        _spread_words(overall, arms, of_fold(table, size)),
    )
    yield _numbers_table(overall, arms, tables, styles, size)
    others = [variant.train_cases for variant in variants_of(table) if variant.train_cases != size]
    if others:
        folded = []
        for other in others:
            rows = first_fold(table, other)
            folded.append(_numbers_table(rows[rows["layer"] == ""], arms, tables, styles, other))
        yield Fold("The same for the other training sets", tuple(folded))
    by_layer = own[(own["quantity"] == "representation_distance") & (own["layer"] != "")]
    if len(by_layer):
        charts = tuple(
            arm_charts(
                "representation_distance",
                [layer_value("distance", row.arm, row) for row in rows_of(by_layer)],
                {"distance": LayerAxis(f"1 {MINUS} CKA between two runs")},
                styles,
                baseline=baseline_of(tables),
                what="Distance of representations of two runs",
                caption=f"Distance of the representations of two runs of an arm, layer by layer{sized(table, size)}: "
                f"mean over pairs and {100 * tables.confidence:g} % jackknife interval. 0: the same representation.",
            )
        )
        yield Fold("Distance of representations by layer", charts)


def _spread_words(overall: pd.DataFrame, arms: list[str], fold: str) -> str:
    """The two arms' numbers that say most, in a sentence that ends with the fold."""
    for quantity, what, digits in (
        ("disagreement", "Two runs label differently {} of the region's voxels", 1),
        ("sd_dsc", "The DSC of runs has a standard deviation of {} over seeds", 3),
    ):
        own = overall[(overall["quantity"] == quantity) & overall["value"].notna()].set_index("arm")["value"]
        told = [arm for arm in arms if arm in own.index]
        if told:
            as_text = [
                f"{number(100 * own[arm], digits)} %" if quantity == "disagreement" else number(own[arm], digits)
                for arm in told[:4]
            ]
            parts = listing([f"{text} in {arm}" for text, arm in zip(as_text, told, strict=False)])
            wrong = overall[(overall["quantity"] == "error_rate")].set_index("arm")["value"]
            errors = (
                f"; a run of {told[0]} gets {number(100 * wrong[told[0]], 1)} % of them wrong"
                if quantity == "disagreement" and told[0] in wrong.index
                else ""
            )
            return f"{what.format(parts)}{errors}{fold}."
    return "The table holds no defined number for any arm."


def _numbers_table(overall: pd.DataFrame, arms: list[str], tables: Tables, styles: Styles, size: int) -> Table:
    rows = []
    of = {(row.arm, row.quantity): row for row in rows_of(overall)}
    listed = [*_QUANTITIES, *(name for name in dict.fromkeys(overall["quantity"]) if name not in _QUANTITIES)]
    for quantity in listed:
        if (overall["quantity"] == quantity).any():
            words, digits = _QUANTITIES.get(quantity, (quantity, 3))
            rows.append((Cell(words), *(_number_cell(of.get((arm, quantity)), digits) for arm in arms)))
    counts = overall.groupby("arm")["n_seeds"].max()
    rows.append((Cell("Seeds"), *(Cell(number(counts[arm], 0) if arm in counts.index else MISSING) for arm in arms)))
    shared = f"{words} " if (words := shared_words(tables.study)) else ""
    caption = (
        f"How much runs of an arm differ{sized(tables.variability, size)}, with {100 * tables.confidence:g} % "
        f"intervals that leave out one seed at a time. {shared}The region is the same for all arms: reference, all "
        "predictions, and a band around them."
    )
    return Table(caption, ("", *(arm_name(arm, styles) for arm in arms)), (TableGroup("", tuple(rows)),))


def _number_cell(row: Any, digits: int) -> Cell:
    if row is None:
        return Cell(MISSING)
    return Cell(number(row.value, digits), interval(row.ci_low, row.ci_high, digits))


def _overlays(tables: Tables) -> Iterator[Block]:
    if not tables.disagreements:
        yield Missing(
            "There is no results/analysis.json and analysis.npz with slices of several runs: where they disagree is "
            "left out."
        )
        return
    yield Heading("Where do runs disagree?")
    first = tables.disagreements[0]
    told = [f"{number(100 * share, 1)} % in {arm}" for arm, share in first.differing.items()]
    if told:
        yield Finding(
            "Do runs that differ by their seed disagree at outlines only, or about whole structures?",
            f"Pixels of this slice of {first.case} on which some run differs from the majority: {listing(told[:4])}.",
        )
    charts = [
        Chart(
            f"disagreement_{k}",
            partial(heat_overlay, shown),
            f"Slice of case {shown.case} with the share of seeds that differ from their majority, for "
            + described("the arms", shown.shares, partial(_differing_words, shown)),
            f"Case {shown.case}{of_run(tables, shown.train_cases, shown.fold)}: where runs of an arm disagree. "
            "The colour is the share of "
            "seeds whose label differs from that of most seeds, from few of them (light) to half or more (dark). White "
            "line: reference.",
        )
        for k, shown in enumerate(tables.disagreements)
    ]
    yield from first_then_fold("More cases", charts)


def _differing_words(shown: Disagreement, arm: str) -> str:
    share = shown.differing.get(arm)
    return arm if share is None else f"{arm} {number(100 * share, 1)} % of the pixels"
