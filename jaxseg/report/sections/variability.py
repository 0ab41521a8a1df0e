"""The variability section: how much runs of an arm differ, where, and what lies between two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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
)
from jaxseg.report.charts.layers import LayerAxis
from jaxseg.report.charts.lines import Panel, Series, line_chart
from jaxseg.report.charts.overlays import heat_overlay
from jaxseg.report.charts.shares import Part, share_chart
from jaxseg.report.charts.style import drawing
from jaxseg.report.pictures import Disagreement
from jaxseg.report.sections.by_layer import arm_charts
from jaxseg.report.shown import baseline_of, few_at_a_time, main_size, main_variant, several_sizes, sized
from jaxseg.report.tables import Tables, first_fold, of_variant, rows_of, variants_of
from jaxseg.report.text import MINUS, MISSING, cases, interval, listing, number
from jaxseg.reserved import MEAN

_QUANTITIES = {
    "disagreement": ("Voxels on which two runs differ, share of the region", 4),
    "pairwise_dsc": ("DSC between two runs' predictions", 3),
    "entropy": ("Entropy of a voxel's label over seeds, nats", 4),
    "error_rate": ("Voxels that a run gets wrong, share of the region", 4),
    "representation_distance": (f"Distance of two runs' representations, 1 {MINUS} CKA", 3),
    "parameter_distance": ("Distance of two runs' weights over their length", 2),
    "barrier": ("Highest excess loss between two runs", 3),
    "sd_dsc": ("DSC, standard deviation over seeds", 4),
    "sd_hd95": ("HD95, standard deviation over seeds", 2),
    "sd_assd": ("ASSD, standard deviation over seeds", 2),
}
"""Quantity of variability.csv -> what it is and its digits, in the order of the table."""

_DRAWN_PAIRS = 30
"""Of more pairs of runs an arm's first ones are drawn one by one; all are in the mean."""


def variability_section(tables: Tables, styles: Styles) -> Section:
    """Show how much runs of an arm differ from each other."""
    blocks = (
        *_numbers(tables, styles),
        *_overlays(tables),
        *_paths(tables, styles),
        *_sources(tables, styles),
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
        _spread_words(overall, arms),
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
        values = by_layer.assign(panel="distance").rename(columns={"arm": "series"})
        charts = tuple(
            arm_charts(
                "representation_distance",
                values,
                {"distance": LayerAxis(f"1 {MINUS} CKA between two runs")},
                styles,
                baseline=baseline_of(tables),
                what="Distance of representations of two runs",
                caption=f"Distance of the representations of two runs of an arm, layer by layer{sized(table, size)}: "
                f"mean over pairs and {100 * tables.confidence:g} % jackknife interval. 0: the same representation.",
            )
        )
        yield Fold("Distance of representations by layer", charts)


def _spread_words(overall: pd.DataFrame, arms: list[str]) -> str:
    """The two arms' numbers that say most, in a sentence."""
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
            return what.format(parts) + errors + "."
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
    caption = (
        f"How much runs of an arm differ{sized(tables.variability, size)}, with {100 * tables.confidence:g} % "
        "intervals that leave out one seed at a time. The region is the same for all arms: reference, all predictions, "
        "and a band around them."
    )
    return Table(caption, ("", *(arm_name(arm, styles) for arm in arms)), (TableGroup("", tuple(rows)),))


def _number_cell(row: Any, digits: int) -> Cell:
    if row is None:
        return Cell(MISSING)
    return Cell(number(row.value, digits), interval(row.ci_low, row.ci_high, digits))


def _overlays(tables: Tables) -> Iterator[Block]:
    if not tables.disagreements:
        yield Missing(
            "There is no results/analysis.json and analysis.npz with slices: where runs disagree is left out."
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
            f"Case {shown.case}{_size_of(tables, shown)}: where runs of an arm disagree. The colour is the share of "
            "seeds whose label differs from that of most seeds, from a tenth (light) to a half (dark). White line: "
            "reference.",
        )
        for k, shown in enumerate(tables.disagreements)
    ]
    yield charts[0]
    if charts[1:]:
        yield Fold("More cases", tuple(charts[1:]))


def _differing_words(shown: Disagreement, arm: str) -> str:
    share = shown.differing.get(arm)
    return arm if share is None else f"{arm} {number(100 * share, 1)} % of the pixels"


def _size_of(tables: Tables, shown: Disagreement) -> str:
    known = shown.train_cases is not None and several_sizes(tables)
    return f", trained on {cases(shown.train_cases or 0)}" if known else ""


# ----------------------------------------------------------------------------------------------------- between two runs


def _paths(tables: Tables, styles: Styles) -> Iterator[Block]:
    if tables.interpolation is None:
        yield Missing("There is no results/interpolation.csv with rows in it: the way between two runs is left out.")
        return
    size = main_size(tables.interpolation)
    rows = first_fold(tables.interpolation, size)
    yield Heading("Is there a hill between two runs?")
    excess = excess_loss(rows)
    arms = [arm for arm in styles if (excess["arm"] == arm).any()]
    barriers = _barriers(tables, size)
    told = [f"{number(barriers[arm], 3)} in {arm}" for arm in arms[:4] if arm in barriers]
    if told:
        yield Finding(
            "If the weights of two runs are mixed, does the loss stay low? If it does, they lie in one valley.",
            f"On the way between two runs the loss rises by {listing(told)} at its highest, mean over pairs.",
        )
    base = baseline_of(tables)
    most = f", the first {_DRAWN_PAIRS} of an arm" if _pairs_of(excess) > _DRAWN_PAIRS else ""
    charts = [
        Chart(
            f"interpolation{f'_{k + 1}' if k else ''}",
            partial(interpolation_chart, excess[excess["arm"].isin(few)], styles, baseline=base),
            described("Barrier", few, lambda arm: f"{arm} {number(barriers.get(arm, math.nan))}"),
            f"Loss on the straight line between the weights of two runs of an arm{sized(tables.interpolation, size)}, "
            f"beyond the line between their two losses: mean over pairs (thick) and pairs (thin{most}).",
        )
        for k, few in enumerate(few_at_a_time(arms, base))
    ]
    yield charts[0]
    if charts[1:]:
        yield Fold("The other arms", tuple(charts[1:]))


def _barriers(tables: Tables, size: int) -> dict[str, float]:
    """Mean height of the barrier between two runs of each arm, as variability.csv has it."""
    if tables.variability is None:
        return {}
    own = first_fold(tables.variability, size) if (tables.variability["train_cases"] == size).any() else None
    own = tables.variability[:0] if own is None else own
    return {row.arm: row.value for row in rows_of(own[(own["quantity"] == "barrier") & (own["layer"] == "")])}


def _pairs_of(excess: pd.DataFrame) -> int:
    """The largest number of pairs of an arm."""
    pairs = excess[["arm", "seed_a", "seed_b"]].drop_duplicates()
    return int(pairs.groupby("arm").size().max())


def excess_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of interpolation.csv with `excess`, the loss beyond the line between the losses at both ends."""
    pair = ["arm", "seed_a", "seed_b"]
    rows = rows.sort_values([*pair, "alpha"], kind="stable")
    first, last = (rows.groupby(pair)["loss"].transform(which) for which in ("first", "last"))
    return rows.assign(excess=rows["loss"] - (1 - rows["alpha"]) * first - rows["alpha"] * last)


def interpolation_chart(excess: pd.DataFrame, styles: Styles, *, width: float, baseline: str | None) -> Figure:
    """Show excess loss over the way between two runs.

    Args:
        excess: see `excess_loss`.
        styles: by arm.
        width: inches.
        baseline: the arm that small panels repeat in grey.
    """
    series = []
    for arm in (arm for arm in styles if (excess["arm"] == arm).any()):
        own = excess[excess["arm"] == arm]
        table = own.pivot_table(index="alpha", columns=["seed_a", "seed_b"], values="excess", dropna=False)
        x = table.index.to_numpy(float)
        runs = tuple((x, table[pair].to_numpy(float)) for pair in table.columns[:_DRAWN_PAIRS])
        none = np.full(len(x), np.nan)
        series.append(Series(arm, styles[arm], x, table.mean(axis=1).to_numpy(float), none, none, runs))
    with drawing():
        panel = Panel("Excess loss", tuple(series), None, "")
        xlabel = "Way from one run (0) to the other (1)"
        return line_chart([panel], width=width, xlabel=xlabel, baseline=baseline, name_ends=False)


# ------------------------------------------------------------------------------------------------------------- variance

_SOURCES = {
    "seed": "seed: chance in training",
    "init": "initialisation",
    "order": "order of batches",
    "subset": "draw of training cases",
    "streams": "these in combination",
    "group": "case: some are harder",
    "both": "both: which cases a run gets wrong",
}
"""What shares of the variance are called; interactions of the streams are one share, those with the case another."""


def _shares_of(rows: pd.DataFrame) -> dict[str, float]:
    """An arm's shares by name of `_SOURCES`, in that order."""
    shares: dict[str, float] = {}
    for source, share in zip(rows["source"], rows["share"], strict=True):
        interaction = "both" if "group" in source.split(" x ") else "streams"
        name = source if source in _SOURCES else interaction
        shares[name] = shares.get(name, 0.0) + float(share)
    return {name: shares[name] for name in _SOURCES if name in shares}


def _of_runs(shares: dict[str, float]) -> float:
    """What runs differ in on all cases alike."""
    return sum(share for name, share in shares.items() if name not in ("group", "both"))


def _crossed_words(arm: str, shares: dict[str, float], rows: pd.DataFrame) -> str:
    """What each stream of a crossed arm accounts for, and which runs the split leaves out."""
    named = [f"{_SOURCES[name]} {number(100 * share, 0)} %" for name, share in shares.items() if name != "group"]
    left_out, used = int(rows["n_left_out"].max()), int(rows["n_runs"].max())
    without = f" (from {used} runs; {left_out} left out, because runs they are crossed with are missing)"
    return f"In {arm}, whose random streams are crossed: {listing(named)}{without if left_out else ''}."


def _sources(tables: Tables, styles: Styles) -> Iterator[Block]:
    table = tables.variance
    rows = None if table is None else table[(table["metric"] == "dsc") & (table["label"] == MEAN)]
    if rows is None or rows.empty:
        yield Missing(
            "There is no results/variance.csv on mean DSC: where the spread of scores comes from is left out."
        )
        return
    size = main_variant(variants_of(rows))
    own = of_variant(rows, size)
    own = own[own["fold"] == own["fold"].min()]
    arms = [arm for arm in styles if (own["arm"] == arm).any()]
    if not arms:
        return
    of_arm = {arm: own[own["arm"] == arm] for arm in arms}
    shares = {arm: _shares_of(rows) for arm, rows in of_arm.items()}
    crossed = [arm for arm in arms if "seed" not in shares[arm]]
    yield Heading("Where does the spread of scores come from?")
    told = arms[:3]
    seed_words = listing([f"{number(100 * _of_runs(shares[arm]), 0)} % in {arm}" for arm in told])
    sentences = [f"Of the variance of DSC the seed accounts for {seed_words}; the rest lies in the cases."]
    sentences += [_crossed_words(arm, shares[arm], of_arm[arm]) for arm in crossed]
    yield Finding("Do scores differ more between seeds or between cases?", " ".join(sentences))
    parts = [
        Part(arm, styles[arm], tuple((_SOURCES[name], share) for name, share in shares[arm].items())) for arm in arms
    ]
    yield Chart(
        "variance_split",
        partial(share_chart, parts),
        described("Share of variance by seed", arms, lambda arm: f"{arm} {number(_of_runs(shares[arm]), 2)}"),
        f"Variance of DSC (mean of labels){sized(rows, size.train_cases)}, split into what the seed does to all cases, "
        "what is particular to a case (or patient) for all seeds, and the rest.",
    )
