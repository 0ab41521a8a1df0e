"""The heatmaps of the representations section: runs against runs, and layers against layers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.report.blocks import Block, Chart, Finding, Fold, Heading, Missing, Styles, described
from jaxseg.report.charts.heatmaps import Matrix, heatmaps
from jaxseg.report.shown import baseline_of, main_size, range_words, said, sized
from jaxseg.report.tables import Tables, first_fold, rows_of
from jaxseg.text import listing, number, plural

INDEX_NAMES = {
    "cka_cases": "CKA between cases",
    "cka": "CKA",
    "cka_debiased": "debiased CKA",
    "procrustes": "Procrustes similarity",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
}
"""Similarity index, as tables call it -> as the page does."""

_MANY_RUNS = 96
"""How many runs a heatmap shows; if there are more, it shows the first few arms only."""


def runs_by_runs(rows: pd.DataFrame, index: str, tables: Tables, styles: Styles, size: int) -> Iterator[Block]:
    """Show every run against every other, in a few layers.

    Args:
        rows: Rows of similarity.csv for one index and training set size.
        index: The similarity index of the rows.
        tables: The tables of the workdir.
        styles: The look of each arm.
        size: The training set size of the rows.
    """
    baseline = baseline_of(tables)
    ends = rows[rows["comparison"].isin(["within_arm", "across_arms"])]
    if ends.empty:
        return
    runs_of = {arm: sorted(_seeds_of(ends, arm)) for arm in styles}
    shown: list[str] = []
    n = 0
    for arm, seeds in runs_of.items():
        if seeds and (n + len(seeds) <= _MANY_RUNS or not shown):
            shown.append(arm)
            n += len(seeds)
    runs = [(arm, seed) for arm in shown for seed in runs_of[arm]]
    layers = list(dict.fromkeys(ends["layer"]))
    chosen = _telling(layers)
    blocks = tuple(arm for arm, _ in runs)
    of_layer = {layer: _pairs_of_runs(ends[ends["layer"] == layer]) for layer in layers}
    matrices = {layer: Matrix(layer, _matrix(of_layer[layer], runs), blocks) for layer in layers}
    name = INDEX_NAMES.get(index, index)
    left_out = len([arm for arm, seeds in runs_of.items() if seeds]) - len(shown)
    others = [arm for arm in dict.fromkeys(("transfer", *shown)) if arm in shown and arm != baseline]
    if baseline in shown and others:
        yield from _alike(tables, index, size, str(baseline), others[0])
    caption = (
        f"Every run against every other, {name}{sized(tables.similarity, size)}; arms in blocks, "
        "seeds within them, columns in the order of rows. "
        "Darker is more alike: a dark block on the diagonal is an arm whose runs agree. "
        "Light brown: not compared." + (f" {plural(left_out, 'arm')} left out here." if left_out else "")
    )
    for stem, names, fold in (
        ("runs_by_runs", chosen, False),
        ("runs_by_runs_other_layers", [layer for layer in layers if layer not in chosen], True),
    ):
        if not names:
            continue
        chart = Chart(
            stem,
            partial(heatmaps, [matrices[layer] for layer in names], name),
            described("Similarity of runs", names, lambda layer: f"{layer} {_runs_words(tables, size, layer)}"),
            caption,
        )
        yield Fold("Runs against runs in the other layers", (chart,)) if fold else chart


def mean_rows(tables: Tables, comparison: str, index: str, size: int) -> dict[tuple[str, str], Any]:
    """Return rows of similarity_means.csv by arm_a and arm_b."""
    table = tables.similarity_means
    if table is None:
        return {}
    own = table[(table["comparison"] == comparison) & (table["index"] == index) & (table["train_cases"] == size)]
    return {(row.arm_a, row.arm_b): row for row in rows_of(own)}


def _alike(tables: Tables, index: str, size: int, baseline: str, arm: str) -> Iterator[Block]:
    """How alike two runs of an arm are, and runs of two arms."""
    within, across = (mean_rows(tables, name, index, size) for name in ("within_arm", "across_arms"))
    if not {(baseline, baseline), (arm, arm)} <= within.keys() or (baseline, arm) not in across:
        return
    rows = within[baseline, baseline], within[arm, arm], across[baseline, arm]
    own, other, between = (number(row.value, 2) for row in rows)
    yield Finding(
        "Are runs of one arm more alike than runs of different arms?",
        f"Over all layers, two runs of {baseline} are alike to {own}, two of {arm} to {other}, one of each (of other "
        f"seeds) to {between}.",
    )


def _seeds_of(ends: pd.DataFrame, arm: str) -> set[int]:
    return {int(s) for side in "ab" for s in ends.loc[ends[f"arm_{side}"] == arm, f"seed_{side}"]}


def _telling(layers: list[str]) -> list[str]:
    """The first layer, the bottom of the encoder, and the last."""
    encoder = [layer for layer in layers if layer.startswith("encoder")]
    return list(dict.fromkeys([layers[0], (encoder or layers)[-1], layers[-1]]))


def _pairs_of_runs(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, int], tuple[str, int], float]]:
    for row in rows_of(rows):
        yield (row.arm_a, int(row.seed_a)), (row.arm_b, int(row.seed_b)), row.value


def _matrix(pairs: Iterable[tuple[Hashable, Hashable, float]], names: Sequence[Hashable]) -> np.ndarray:
    """The values of pairs of named rows; 1 on the diagonal, NaN where a pair is missing."""
    place = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(matrix, 1.0)
    for first, second, value in pairs:
        if first in place and second in place:
            i, j = place[first], place[second]
            matrix[i, j] = matrix[j, i] = value
    return matrix


def _runs_words(tables: Tables, size: int, layer: str) -> str:
    page = tables.page
    own = None if page is None else first_fold(page[(page["about"] == "runs") & (page["layer"] == layer)], size)
    return range_words({} if own is None else {row.quantity: row for row in rows_of(own)}, "not compared")


def layers_by_layers(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show the layers of one network of each arm against each other."""
    if tables.layer_similarity is None:
        yield Missing("There is no results/layer_similarity.csv with rows in it: layers against layers are left out.")
        return
    size = main_size(tables.layer_similarity)
    rows = first_fold(tables.layer_similarity, size)
    arms = [arm for arm in styles if (rows["arm"] == arm).any()]
    if not arms:
        return
    layers = list(dict.fromkeys([*rows["layer_a"], *rows["layer_b"]]))
    seed_of = {arm: int(rows.loc[rows["arm"] == arm, "seed"].iloc[0]) for arm in arms}
    one_seed = f", seed {seed_of[arms[0]]}" if len(set(seed_of.values())) == 1 else ""
    # Arms may have seeds of their own.
    titles = {arm: arm if one_seed else f"{arm}, seed {seed_of[arm]}" for arm in arms}
    matrices = []
    for arm in arms:
        pairs = rows.loc[rows["arm"] == arm, ["layer_a", "layer_b", "value"]]
        matrices.append(Matrix(titles[arm], _matrix(pairs.itertuples(index=False), layers), tuple(layers)))
    yield Heading("Which layers do the same work?")

    def next_words(arm: str) -> str:
        return f"{range_words(said(tables, 'neighbours', arm, size), 'not compared')} in {titles[arm]}"

    nearest = [next_words(arm) for arm in arms[:2]]
    yield Finding(
        "Are layers of one network alike, so that some add little to the one before?",
        f"A layer and the next are alike to {listing(nearest)}, by layer.",
    )
    index = INDEX_NAMES.get(str(rows["index"].iloc[0]), str(rows["index"].iloc[0]))
    for k in range(0, len(matrices), 6):
        part = matrices[k : k + 6]
        chart = Chart(
            f"layers_by_layers{f'_{k // 6 + 1}' if k else ''}",
            partial(heatmaps, part, index),
            described("Similarity of neighbouring layers", arms[k : k + 6], next_words),
            f"Layers of one trained network against each other, {index}{one_seed}"
            f"{sized(tables.layer_similarity, size)}. Columns in the order of rows; "
            "darker is more alike.",
        )
        yield chart if k == 0 else Fold("The other arms", (chart,))
