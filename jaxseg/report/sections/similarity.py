"""The representations section: what changes in training, what is reused from the source network, which runs agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from jaxseg.report.blocks import (
    Block,
    Cell,
    Finding,
    Fold,
    Heading,
    Missing,
    Prose,
    Section,
    Styles,
    Table,
    TableGroup,
)
from jaxseg.report.charts.layers import LayerAxis, LayerValue, Mark
from jaxseg.report.charts.style import BASELINE_ARM, ArmStyle
from jaxseg.report.sections.by_layer import arm_charts, at_size, layer_value
from jaxseg.report.sections.matrices import INDEX_NAMES, layers_by_layers, mean_rows, runs_by_runs
from jaxseg.report.sections.probes import probes_blocks
from jaxseg.report.shown import (
    asked_about,
    baseline_of,
    claimed,
    layer_rows,
    main_size,
    of_fold,
    range_words,
    said,
    sized,
)
from jaxseg.report.tables import Tables, first_fold, rows_of, variants_of
from jaxseg.study.claims.rules import EARLY_LEVELS, FLOOR_LIMIT, INDEXES, REUSED
from jaxseg.text import MINUS, MISSING, cases, count, interval, listing, number

_FLOOR = "floor: unrelated networks"
_FLOOR_STYLE = ArmStyle("#5f6b73", "o", "-")

_WORDS = (
    "A layer's representation is what its channels answer at a few thousand places of held-out images. Two networks "
    "are alike (1) where their answers differ by a rotation and a scale only. Even random networks are alike to some "
    f"degree, so every similarity is read against a floor: rho = (similarity {MINUS} floor) / (1 {MINUS} floor)."
)


def similarity_section(tables: Tables, styles: Styles) -> Section:
    """Show how alike representations are, always against their floor."""
    return Section("representations", "What the networks represent", tuple(_similarity(tables, styles)))


def _similarity(tables: Tables, styles: Styles) -> Iterator[Block]:
    table = tables.similarity
    if table is None and tables.layer_similarity is None:
        yield Missing("There is no results/similarity.csv with rows in it: what networks represent is left out.")
        return
    if table is None:
        yield Prose(_WORDS)
        yield Missing("There is no results/similarity.csv with rows in it: only layers of one network are compared.")
    else:
        size = main_size(table)
        known = set(table.loc[table["value"].notna(), "index"])
        index = next((index for index in INDEXES if index in known), INDEXES[-1])
        own = first_fold(table, size)
        shown = own[own["index"] == index]
        yield from _training_change(shown, index, tables, styles, size)
        yield from _reuse(index, tables, styles, size)
        yield from _between_runs(shown, index, tables, styles, size)
        yield from runs_by_runs(shown, index, tables, styles, size)
        yield from _all_indices(tables, size)
    yield from probes_blocks(tables, styles)
    yield from layers_by_layers(tables, styles)


def _layer_values(rows: pd.DataFrame, series: str, *, floor: str | None = None) -> list[LayerValue]:
    """Rows of a chart with a panel of similarities and one of rho, from those of layers.csv on an arm."""
    panels = {"rho": ("rho", series), "similarity": ("similarity", series), "floor": ("similarity", floor)}
    return [
        layer_value(panels[row.quantity][0], name, row)
        for row in rows_of(rows)
        if (name := panels[row.quantity][1]) is not None
    ]


def _of_comparison(tables: Tables, comparison: str, size: int) -> pd.DataFrame:
    """Rows of layers.csv on a comparison at a size: similarity, floor and rho."""
    if tables.layers is None:
        return layer_rows(tables, "rho")
    return at_size(tables.layers[tables.layers["comparison"] == comparison], size)


def _axes(index: str, level: tuple[float, str] | None = None) -> dict[str, LayerAxis]:
    name = INDEX_NAMES.get(index, index)
    return {
        "rho": LayerAxis("rho, share above the floor", ((0.0, "floor"), *((level,) if level else ()))),
        "similarity": LayerAxis(name[0].upper() + name[1:]),
    }


def _counts(rows: pd.DataFrame, tables: Tables, size: int) -> str:
    """How many places and channels a layer was read at, at least."""
    points, neurons = (said(tables, what, "", size) for what in ("n_points", "n_neurons"))
    if "lowest" not in points:
        return ""
    undefined = sorted(set(rows.loc[rows["value"].isna(), "layer"]))
    short = f" Undefined, too few places for their channels: {', '.join(undefined)}." if undefined else ""
    of_points, of_neurons = (
        f"{count(found['lowest'].value)} to {count(found['highest'].value)}" for found in (points, neurons)
    )
    return f" Read at {of_points} places of {of_neurons} channels.{short}"


# ------------------------------------------------------------------------------------------------------ start and end


def _training_change(rows: pd.DataFrame, index: str, tables: Tables, styles: Styles, size: int) -> Iterator[Block]:
    own = rows[rows["comparison"] == "own_start"]
    if own.empty:
        yield Missing("results/similarity.csv compares no run with its own start: what training changes is left out.")
        return
    found = _of_comparison(tables, "own_start", size)
    arms = [arm for arm in styles if (found["arm"] == arm).any()]
    if not arms:
        yield Missing("There is no results/layers.csv on runs and their own starts: what training changes is left out.")
        return
    base = baseline_of(tables)
    first = base if base in arms else arms[0]
    values = [
        row
        for arm in arms
        for row in _layer_values(found[found["arm"] == arm], arm, floor=_FLOOR if arm == first else None)
    ]
    told = asked_about(arms, base)
    kept = [f"{arm} keeps {_share_words(tables, 'own_start', arm, size)}{_claim_c8(tables, arm)}" for arm in told]
    yield Finding(
        "After training, does a network still represent images the way its own start did?",
        f"Of the likeness to the start, beyond that of unrelated networks, {listing(kept)} (1: no change).",
    )
    yield Prose(_WORDS)
    yield from arm_charts(
        "own_start",
        values,
        _axes(index),
        styles,
        baseline=base,
        what="rho between the end and the start of a run",
        caption=f"Each run's end against its own start{sized(tables.layers, size)}. Left: share above the floor. "
        "Right: the similarity itself; grey: its floor in the first arm, the starts of the arm's other runs. Jackknife "
        f"{100 * tables.confidence:g} % intervals over seeds. rho is left out where the floor is above "
        f"{FLOOR_LIMIT}.{_counts(own, tables, size)}",
        behind={_FLOOR: Mark(_FLOOR_STYLE, "hollow")},
    )


def _share_words(tables: Tables, comparison: str, arm: str, size: int) -> str:
    """The range over layers of a share, in words."""
    words = range_words(said(tables, f"{comparison} rho", arm, size), "")
    return f"{words} by layer" if words else "an undefined share"


def _claim_c8(tables: Tables, arm: str) -> str:
    found = next(filter(None, (claimed(tables, "C8", f"rho of end and own start, {i}", arm) for i in INDEXES)), None)
    return "" if found is None else f" ({number(found.value, 2)} in the mean over the encoder, claim C8)"


# ---------------------------------------------------------------------------------------------------------------- reuse


def _reuse(index: str, tables: Tables, styles: Styles, size: int) -> Iterator[Block]:
    base = baseline_of(tables) or BASELINE_ARM
    found = _of_comparison(tables, "to_source", size)
    arms = [arm for arm in styles if arm != base and (found["arm"] == arm).any()]
    if not arms:
        yield Missing(
            f"results/similarity.csv does not compare a pretrained arm and {base} with the source networks: reuse by "
            "depth is left out."
        )
        return
    yield Heading("How deep does reuse of the source network go?")
    floor = f"{base} (floor)"
    values = [
        row
        for arm in arms
        for row in _layer_values(found[found["arm"] == arm], arm, floor=floor if arm == arms[0] else None)
    ]
    arm = "transfer" if "transfer" in arms else arms[0]
    yield Finding(
        "Which layers of a fine-tuned network still represent images as its source network does, beyond what training "
        "from scratch leads to anyway?",
        f"{_reuse_words(tables, arm, size)} (1: unchanged; 0: no more than {base}; below 0: less than that).",
    )
    yield from arm_charts(
        "reuse_by_depth",
        values,
        _axes(index, (REUSED, "limit")),
        styles,
        baseline=None,
        what="Reuse of the source network",
        caption=f"Reuse by depth, on images of the target task{sized(tables.layers, size)}: similarity of a run's "
        f"end to its own source network. The floor: ends of {base} against source networks of other seeds. {REUSED:g} "
        f"is the limit of claim C11. Jackknife {100 * tables.confidence:g} % intervals over seeds.",
        behind={floor: Mark(styles.get(base, _FLOOR_STYLE), "hollow")},
    )


def _reuse_words(tables: Tables, arm: str, size: int) -> str:
    """What the rule of C11 found of the early and the deep layers; the range over layers where it found nothing."""
    early = claimed(tables, "C11", "reuse, mean of early levels", arm)
    layers = dict.fromkeys(_of_comparison(tables, "to_source", size)["layer"])
    found = {layer: claimed(tables, "C11", f"reuse, {layer}", arm) for layer in layers}
    deep = [f"{number(row.value, 2)} in {layer}" for layer, row in found.items() if row is not None]
    if early is None or not deep:
        return f"In {arm} reuse is {_share_words(tables, 'to_source', arm, size)}"
    return (
        f"In {arm} reuse is {number(early.value, 2)} in the encoder's early levels ({listing(EARLY_LEVELS)}) and, "
        f"deeper, {listing(deep)}"
    )


# --------------------------------------------------------------------------------------------------------- between runs


def _between_runs(rows: pd.DataFrame, index: str, tables: Tables, styles: Styles, size: int) -> Iterator[Block]:
    within = rows[rows["comparison"] == "within_arm"]
    if within.empty:
        yield Missing("results/similarity.csv compares no two runs of an arm: agreement between runs is left out.")
        return
    yield Heading("Do runs that differ by their seed agree?")
    found = _of_comparison(tables, "within_arm", size)
    arms = [arm for arm in styles if (found["arm"] == arm).any()]
    if not arms:
        yield Missing("There is no results/layers.csv on two runs of an arm: agreement between runs is left out.")
        return
    values = [
        row
        for k, arm in enumerate(arms)
        for row in _layer_values(found[found["arm"] == arm], arm, floor=_FLOOR if k == 0 else None)
    ]
    yield Finding("Do two runs of one arm end with the same representation?", _agree_words(tables, index, size, styles))
    yield from arm_charts(
        "between_runs",
        values,
        _axes(index),
        styles,
        baseline=baseline_of(tables),
        what="rho between runs of an arm",
        caption=f"Ends of two runs of an arm, mean over all pairs{sized(tables.layers, size)}; the floor is two "
        f"untrained networks. Jackknife {100 * tables.confidence:g} % intervals over seeds.",
        behind={_FLOOR: Mark(_FLOOR_STYLE, "hollow")},
    )


def _agree_words(tables: Tables, index: str, size: int, styles: Styles) -> str:
    """Which arm's runs agree most and least, and two untrained networks."""
    within = {arm: row for (arm, _), row in mean_rows(tables, "within_arm", index, size).items() if arm in styles}
    known = {arm: row.value for arm, row in within.items() if math.isfinite(row.value)}
    if not known:
        return "No similarity of two runs is defined."
    least, most = min(known, key=lambda arm: known[arm]), max(known, key=lambda arm: known[arm])
    agree = f"Runs of {most} agree most, {number(known[most], 2)} on average over layers"
    agree += f"; runs of {least} least, {number(known[least], 2)}." if least != most else "."
    starts = mean_rows(tables, "starts", index, size)
    pretrained = {name for name, arm in tables.study.arms.items() if arm.uses_source}
    at_random = [row for (arm, _), row in starts.items() if arm not in pretrained]
    return agree + (f" Two untrained networks: {number(at_random[0].value, 2)}." if at_random else "")


# ---------------------------------------------------------------------------------------------------------- all indices


def _all_indices(tables: Tables, size: int) -> Iterator[Block]:
    """Every index and comparison, averaged over layers, for those who doubt one of them."""
    if tables.similarity_means is None:
        yield Missing("There is no results/similarity_means.csv: similarity averaged over layers is left out.")
        return
    table = at_size(tables.similarity_means, size)
    indices = [name for name in INDEX_NAMES if table.loc[table["index"] == name, "value"].notna().any()]
    groups = []
    for comparison, words in _COMPARISONS.items():
        of_index = {name: mean_rows(tables, comparison, name, size) for name in indices}
        pairs = dict.fromkeys(pair for rows in of_index.values() for pair in rows)
        lines = []
        for arm_a, arm_b in pairs:
            label = arm_a if arm_a == arm_b or comparison == "to_source" else f"{arm_a} and {arm_b}"
            lines.append((Cell(label), *(_mean_cell(of_index[name].get((arm_a, arm_b))) for name in indices)))
        if lines:
            groups.append(TableGroup(words, tuple(lines)))
    if not groups:
        return
    head = ("Arm", *(INDEX_NAMES[name] for name in indices))
    caption = (
        "Similarity by every index, mean over layers and pairs of runs (of different seeds where two arms are "
        f"compared){of_fold(tables.similarity_means, size)}, with jackknife intervals: results/similarity_means.csv. "
        "Layers by layer: results/similarity.csv."
    )
    blocks: list[Block] = [Table(caption, head, tuple(groups))]
    sizes = variants_of(tables.similarity_means)
    if len(sizes) > 1:
        blocks.append(
            Prose(f"Other training sets ({', '.join(cases(v.train_cases) for v in sizes)}) are in the same table.")
        )
    yield Fold("Every similarity index, averaged over layers", tuple(blocks))


def _mean_cell(row: Any) -> Cell:
    return Cell(MISSING) if row is None else Cell(number(row.value, 2), interval(row.ci_low, row.ci_high, 2))


_COMPARISONS: Mapping[str, str] = {
    "own_start": "A run's end and its own start",
    "other_start": "A run's end and another run's start (floor)",
    "within_arm": "Two runs of an arm",
    "across_arms": "Runs of two arms",
    "starts": "Two starts (floor)",
    "to_source": "A run's end and its source network",
    "to_other_source": "A run's end and a source network of another seed",
}
