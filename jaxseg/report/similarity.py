"""The representations section: what changes in training, what is reused from the source network, which runs agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

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
from jaxseg.report.by_layer import arm_charts, layer_row
from jaxseg.report.effects import baseline_of, main_size, sized, uses_pretraining
from jaxseg.report.layers import LayerAxis, Mark
from jaxseg.report.matrices import INDEX_NAMES, layers_by_layers, runs_by_runs
from jaxseg.report.spread import Interval, jackknife, means_without_a_seed, over_pairs, seeds_of
from jaxseg.report.style import BASELINE_ARM, ArmStyle
from jaxseg.report.tables import Tables, first_fold, rows_of, variants_of
from jaxseg.report.text import MINUS, cases, count, interval, listing, number

_INDICES = ("cka_debiased", "cka", "procrustes", "svcca", "pwcca")
"""The first that a table holds is the one that figures show."""

_HIGH_FLOOR = 0.95
"""Where unrelated networks are this alike, the share above them is not defined."""

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
        index = next((name for name in _INDICES if (table["index"] == name).any()), str(table["index"].iloc[0]))
        own = first_fold(table, size)
        shown = own[own["index"] == index]
        yield from _training_change(shown, index, tables, styles, size)
        yield from _reuse(shown, index, tables, styles, size)
        yield from _between_runs(shown, index, tables, styles, size)
        yield from runs_by_runs(shown, index, styles, baseline_of(tables))
        yield from _all_indices(own, tables, styles)
    yield from layers_by_layers(tables, styles)


def above_floor(
    similarity: Float[np.ndarray, "*shape"], floor: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Return the share of what is left above the floor; NaN where the floor is too high to tell.

    >>> above_floor(np.array([0.75, 0.99]), np.array([0.5, 0.96])).tolist()
    [0.5, nan]
    """
    return np.where(floor <= _HIGH_FLOOR, (similarity - floor) / np.where(floor < 1, 1 - floor, 1), np.nan)


def rho_by_layer(rows: pd.DataFrame, floors: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Mean similarity, its floor and the share above it, for each layer.

    Args:
        rows: of similarity.csv, one series, one index.
        floors: rows of the series' floor.
        confidence: of the jackknife intervals, which leave out a seed from rows and floor alike.

    Returns:
        Columns layer, quantity (similarity, floor, rho), value, ci_low, ci_high, n; layers in the order of `rows`.
    """
    of_layer = dict(iter(floors.groupby("layer")))
    found = []
    for layer, own in rows.groupby("layer", sort=False):
        floor = of_layer.get(layer, floors[:0])
        seeds = np.union1d(seeds_of(own), seeds_of(floor))
        means, floor_means = (means_without_a_seed(pairs, seeds) for pairs in (own, floor))
        intervals = {
            "similarity": over_pairs(own, confidence),
            "floor": over_pairs(floor, confidence),
            "rho": jackknife(above_floor(means, floor_means), len(own), confidence),
        }
        found += [{"layer": layer, "quantity": name, **value._asdict()} for name, value in intervals.items()]
    return pd.DataFrame(found)


def _layer_values(rho: pd.DataFrame, series: str, *, floor: str | None = None) -> list[dict[str, object]]:
    """Rows of a chart with a panel of similarities and one of rho."""
    rows = []
    for row in rows_of(rho):
        name = floor if row.quantity == "floor" else series
        if name is not None:
            panel = "rho" if row.quantity == "rho" else "similarity"
            rows.append(layer_row(panel, name, row.layer, Interval(row.value, row.ci_low, row.ci_high, row.n)))
    return rows


def _axes(index: str, level: tuple[float, str] | None = None) -> dict[str, LayerAxis]:
    name = INDEX_NAMES.get(index, index)
    return {
        "rho": LayerAxis("rho, share above the floor", ((0.0, "floor"), *((level,) if level else ()))),
        "similarity": LayerAxis(name[0].upper() + name[1:]),
    }


def _counts(rows: pd.DataFrame) -> str:
    """How many places and channels a layer was read at, at least."""
    if not rows["n_points"].notna().any():
        return ""
    undefined = sorted(set(rows.loc[rows["value"].isna(), "layer"]))
    short = f" Undefined, fewer than 10 places a channel: {', '.join(undefined)}." if undefined else ""
    points, neurons = rows["n_points"].dropna(), rows["n_neurons"].dropna()
    return (
        f" Read at {count(points.min())} to {count(points.max())} places of {count(neurons.min())} to "
        f"{count(neurons.max())} channels.{short}"
    )


# ------------------------------------------------------------------------------------------------------ start and end


def _training_change(rows: pd.DataFrame, index: str, tables: Tables, styles: Styles, size: int) -> Iterator[Block]:
    own = rows[rows["comparison"] == "own_start"]
    if own.empty:
        yield Missing("results/similarity.csv compares no run with its own start: what training changes is left out.")
        return
    others = rows[rows["comparison"] == "other_start"]
    arms = [arm for arm in styles if (own["arm_a"] == arm).any()]
    base = baseline_of(tables)
    values, rhos = [], {}
    for arm in arms:
        rhos[arm] = rho_by_layer(own[own["arm_a"] == arm], others[others["arm_a"] == arm], tables.confidence)
        values += _layer_values(rhos[arm], arm, floor=_FLOOR if arm == (base if base in arms else arms[0]) else None)
    told = [arm for arm in dict.fromkeys((base, "transfer", *arms)) if arm in arms][:2]
    kept = [f"{arm} keeps {_share_words(rhos[arm])}" for arm in told]
    yield Finding(
        "After training, does a network still represent images the way its own start did?",
        f"Of the likeness to the start, beyond that of unrelated networks, {listing(kept)} (1: no change).",
    )
    yield Prose(_WORDS)
    yield from arm_charts(
        "own_start",
        pd.DataFrame(values),
        _axes(index, (0.5, "half")),
        styles,
        baseline=base,
        what="rho between the end and the start of a run",
        caption=f"Each run's end against its own start{sized(tables.similarity, size)}. Left: share above the floor. "
        "Right: the similarity itself; grey: its floor in the first arm, the starts of the arm's other runs. Jackknife "
        f"{100 * tables.confidence:g} % intervals over seeds. rho is left out where the floor is above "
        f"{_HIGH_FLOOR}.{_counts(own)}",
        behind={_FLOOR: Mark(_FLOOR_STYLE, "hollow")},
    )


def _share_words(rho: pd.DataFrame) -> str:
    """Mean over layers of a share, in words."""
    shares = rho.loc[rho["quantity"] == "rho", "value"].dropna()
    if shares.empty:
        return "an undefined share"
    spread = f"{number(shares.min(), 2)} to {number(shares.max(), 2)} by layer"
    return f"{number(shares.mean(), 2)} ({spread})"


# ---------------------------------------------------------------------------------------------------------------- reuse


def _reuse(rows: pd.DataFrame, index: str, tables: Tables, styles: Styles, size: int) -> Iterator[Block]:
    to_source = rows[rows["comparison"] == "to_source"]
    base = baseline_of(tables) or BASELINE_ARM
    floors = rows[(rows["comparison"] == "to_other_source") & (rows["arm_a"] == base)]
    arms = [
        arm
        for arm in styles
        if arm != base and (to_source["arm_a"] == arm).any() and uses_pretraining(tables.study, arm)
    ]
    if not arms or floors.empty:
        yield Missing(
            f"results/similarity.csv does not compare a pretrained arm and {base} with the source networks: reuse by "
            "depth is left out."
        )
        return
    yield Heading("How deep does reuse of the source network go?")
    values, words = [], []
    for arm in arms:
        own = to_source[to_source["arm_a"] == arm]
        rho = rho_by_layer(own, floors[floors["arm_b"].isin(own["arm_b"])], tables.confidence)
        values += _layer_values(rho, arm, floor=f"{base} (floor)" if arm == arms[0] else None)
        words.append((arm, rho[rho["quantity"] == "rho"].set_index("layer")["value"]))
    arm, rho_of = words[0]
    early = rho_of[[layer.startswith(("encoder/level_0", "encoder/level_1")) for layer in rho_of.index]]
    deep = rho_of.drop(early.index)
    yield Finding(
        "Which layers of a fine-tuned network still represent images as its source network does, beyond what training "
        "from scratch leads to anyway?",
        f"In {arm} reuse is {number(early.mean(), 2)} in the early layers (encoder levels 0 and 1) and "
        f"{number(deep.mean(), 2)} in the deeper ones (1: unchanged; 0: no more than {base}; below 0: less than that).",
    )
    yield from arm_charts(
        "reuse_by_depth",
        pd.DataFrame(values),
        _axes(index, (0.25, "limit")),
        styles,
        baseline=None,
        what="Reuse of the source network",
        caption=f"Reuse by depth, on images of the target task{sized(tables.similarity, size)}: similarity of a run's "
        f"end to its own source network. The floor: ends of {base} against source networks of other seeds. 0.25 is the "
        f"limit of the study's rules. Jackknife {100 * tables.confidence:g} % intervals over seeds.",
        behind={f"{base} (floor)": Mark(styles.get(base, _FLOOR_STYLE), "hollow")},
    )


# --------------------------------------------------------------------------------------------------------- between runs


def _between_runs(rows: pd.DataFrame, index: str, tables: Tables, styles: Styles, size: int) -> Iterator[Block]:
    within = rows[rows["comparison"] == "within_arm"]
    if within.empty:
        yield Missing("results/similarity.csv compares no two runs of an arm: agreement between runs is left out.")
        return
    yield Heading("Do runs that differ by their seed agree?")
    starts = rows[rows["comparison"] == "starts"]
    # Of an arm that starts from source networks they are trained networks.
    starts = starts[~starts["arm_a"].isin([arm for arm in styles if uses_pretraining(tables.study, arm)])]
    arms = [arm for arm in styles if (within["arm_a"] == arm).any()]
    values, means = [], {}
    for k, arm in enumerate(arms):
        rho = rho_by_layer(within[within["arm_a"] == arm], starts, tables.confidence)
        values += _layer_values(rho, arm, floor=_FLOOR if k == 0 and len(starts) else None)
        means[arm] = rho.loc[rho["quantity"] == "similarity", "value"].mean()
    least, most = min(means, key=lambda arm: _last(means[arm])), max(means, key=lambda arm: _first(means[arm]))
    agree = (
        f"Runs of {most} agree most, {number(means[most], 2)} on average over layers; runs of {least} least, "
        f"{number(means[least], 2)}."
        if least != most
        else f"Runs of {most} agree to {number(means[most], 2)} on average over layers."
    )
    floor = f" Two untrained networks: {number(starts['value'].mean(), 2)}." if len(starts) else ""
    yield Finding("Do two runs of one arm end with the same representation?", agree + floor)
    yield from arm_charts(
        "between_runs",
        pd.DataFrame(values),
        _axes(index),
        styles,
        baseline=baseline_of(tables),
        what="rho between runs of an arm",
        caption=f"Ends of two runs of an arm, mean over all pairs{sized(tables.similarity, size)}; the floor is two "
        f"untrained networks. Jackknife {100 * tables.confidence:g} % intervals over seeds.",
        behind={_FLOOR: Mark(_FLOOR_STYLE, "hollow")},
    )


def _last(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _first(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


# ---------------------------------------------------------------------------------------------------------- all indices


def _all_indices(rows: pd.DataFrame, tables: Tables, styles: Styles) -> Iterator[Block]:
    """Every index and comparison, averaged over layers, for those who doubt one of them."""
    groups, numbers = [], []
    for comparison, words in _COMPARISONS.items():
        own = rows[rows["comparison"] == comparison]
        indices = [name for name in INDEX_NAMES if (rows["index"] == name).any()]
        lines = []
        for (arm_a, arm_b), pairs in own.groupby(["arm_a", "arm_b"], sort=False):
            label = str(arm_a) if arm_a == arm_b or comparison == "to_source" else f"{arm_a} and {arm_b}"
            means = [over_pairs(_mean_of_layers(pairs[pairs["index"] == name]), tables.confidence) for name in indices]
            fixed = {"comparison": comparison, "arm_a": arm_a, "arm_b": arm_b}
            numbers += [{**fixed, "index": name, **m._asdict()} for name, m in zip(indices, means, strict=True)]
            lines.append((Cell(label), *(Cell(number(m.value, 2), interval(m.ci_low, m.ci_high, 2)) for m in means)))
        if lines:
            groups.append(TableGroup(words, tuple(lines)))
    if not groups:
        return
    head = ("Arm", *(INDEX_NAMES[name] for name in indices))
    caption = (
        "Similarity by every index, mean over layers and pairs of runs, with jackknife intervals. Layers by layer: "
        "results/similarity.csv."
    )
    data = pd.DataFrame(numbers)
    blocks: list[Block] = [Table(caption, head, tuple(groups), stem="similarity_means", data=data)]
    sizes = variants_of(tables.similarity) if tables.similarity is not None else []
    if len(sizes) > 1:
        blocks.append(
            Prose(f"Other training sets ({', '.join(cases(v.train_cases) for v in sizes)}) are in the same table.")
        )
    yield Fold("Every similarity index, averaged over layers", tuple(blocks))


_COMPARISONS: Mapping[str, str] = {
    "own_start": "A run's end and its own start",
    "other_start": "A run's end and another run's start (floor)",
    "within_arm": "Two runs of an arm",
    "across_arms": "Runs of two arms",
    "starts": "Two starts (floor)",
    "to_source": "A run's end and its source network",
    "to_other_source": "A run's end and a source network of another seed",
}


def _mean_of_layers(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.groupby(["seed_a", "seed_b"], sort=False)["value"].mean().reset_index()
