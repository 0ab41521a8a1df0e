"""The heatmaps of the representations section: runs against runs, and layers against layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from jaxseg.report.blocks import Block, Chart, Finding, Fold, Heading, Missing, Styles, described
from jaxseg.report.effects import main_size, sized
from jaxseg.report.heatmaps import Matrix, heatmaps
from jaxseg.report.tables import Tables, first_fold, rows_of
from jaxseg.report.text import listing, number, plural

INDEX_NAMES = {
    "cka": "CKA",
    "cka_debiased": "debiased CKA",
    "procrustes": "Procrustes similarity",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
}
"""Similarity index, as tables call it -> as the page does."""

_MANY_RUNS = 96
"""Of more runs a heatmap shows the first few arms only."""


def runs_by_runs(rows: pd.DataFrame, index: str, styles: Styles, baseline: str | None) -> Iterator[Block]:
    """Show every run against every other, in a few layers.

    Args:
        rows: of similarity.csv, one index and variant.
        index: which.
        styles: by arm.
        baseline: the arm that the first one told of is compared with.
    """
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
    matrices = {
        layer: Matrix(layer, _matrix(ends[ends["layer"] == layer], runs), tuple(r[0] for r in runs)) for layer in layers
    }
    name = INDEX_NAMES.get(index, index)
    left_out = len([arm for arm, seeds in runs_of.items() if seeds]) - len(shown)
    others = [arm for arm in dict.fromkeys(("transfer", *shown)) if arm in shown and arm != baseline]
    alike = None
    if baseline in shown and others:
        alike = _alike(ends, str(baseline), others[0])
        own, other, across = (number(value, 2) for value in alike["value"])
        yield Finding(
            "Are runs of one arm more alike than runs of different arms?",
            f"Over all layers, two runs of {baseline} are alike to {own}, two of {others[0]} to {other}, one of each "
            f"(of other seeds) to {across}.",
        )
    caption = (
        f"Every run against every other, {name}; arms in blocks, seeds within them, columns in the order of rows. "
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
            described(
                "Mean similarity of runs", names, lambda layer: f"{layer} {number(_off_diagonal(matrices[layer]), 2)}"
            ),
            caption,
            None if fold else alike,
        )
        yield Fold("Runs against runs in the other layers", (chart,)) if fold else chart


def _alike(ends: pd.DataFrame, baseline: str, arm: str) -> pd.DataFrame:
    """Mean similarity within two arms and between them, over layers and pairs of different seeds.

    Runs of one seed begin with the same random weights, whatever their arm, and would count for the arms' likeness.
    """
    pair = ends[ends["arm_a"].isin([baseline, arm]) & ends["arm_b"].isin([baseline, arm])]
    is_same = pair["arm_a"] == pair["arm_b"]
    within = [pair.loc[is_same & (pair["arm_a"] == one), "value"].mean() for one in (baseline, arm)]
    across = pair.loc[~is_same & (pair["seed_a"] != pair["seed_b"]), "value"].mean()
    return pd.DataFrame({"arm_a": [baseline, arm, baseline], "arm_b": [baseline, arm, arm], "value": [*within, across]})


def _seeds_of(ends: pd.DataFrame, arm: str) -> set[int]:
    return {int(s) for side in "ab" for s in ends.loc[ends[f"arm_{side}"] == arm, f"seed_{side}"]}


def _telling(layers: list[str]) -> list[str]:
    """The first layer, the bottom of the encoder, and the last."""
    encoder = [layer for layer in layers if layer.startswith("encoder")]
    return list(dict.fromkeys([layers[0], (encoder or layers)[-1], layers[-1]]))


def _matrix(pairs: pd.DataFrame, runs: list[tuple[str, int]]) -> np.ndarray:
    place = {run: i for i, run in enumerate(runs)}
    matrix = np.full((len(runs), len(runs)), np.nan)
    np.fill_diagonal(matrix, 1.0)
    for row in rows_of(pairs):
        i, j = place.get((row.arm_a, int(row.seed_a))), place.get((row.arm_b, int(row.seed_b)))
        if i is not None and j is not None:
            matrix[i, j] = matrix[j, i] = row.value
    return matrix


def _off_diagonal(matrix: Matrix) -> float:
    off = matrix.values[~np.eye(len(matrix.names), dtype=bool)]
    off = off[np.isfinite(off)]
    return float(off.mean()) if len(off) else math.nan


def layers_by_layers(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show the layers of one network of each arm against each other."""
    if tables.layer_similarity is None:
        yield Missing("There is no results/layer_similarity.csv with rows in it: layers against layers are left out.")
        return
    rows = first_fold(tables.layer_similarity, main_size(tables.layer_similarity))
    arms = [arm for arm in styles if (rows["arm"] == arm).any()]
    if not arms:
        return
    layers = list(dict.fromkeys([*rows["layer_a"], *rows["layer_b"]]))
    place = {layer: i for i, layer in enumerate(layers)}
    matrices = []
    for arm in arms:
        matrix = np.full((len(layers), len(layers)), np.nan)
        np.fill_diagonal(matrix, 1.0)
        for row in rows_of(rows[rows["arm"] == arm]):
            i, j = place[row.layer_a], place[row.layer_b]
            matrix[i, j] = matrix[j, i] = row.value
        matrices.append(Matrix(arm, matrix, tuple(layers)))
    yield Heading("Which layers do the same work?")
    nearest = [_neighbour_words(matrix) for matrix in matrices[:2]]
    yield Finding(
        "Are layers of one network alike, so that some add little to the one before?",
        f"A layer and the next are alike to {listing(nearest)}, mean over layers.",
    )
    index = INDEX_NAMES.get(str(rows["index"].iloc[0]), str(rows["index"].iloc[0]))
    seeds = sorted(set(rows["seed"].astype(int)))
    for k in range(0, len(matrices), 6):
        part = matrices[k : k + 6]
        chart = Chart(
            f"layers_by_layers{f'_{k // 6 + 1}' if k else ''}",
            partial(heatmaps, part, index),
            described("Mean similarity of neighbouring layers", part, _neighbour_words),
            f"Layers of one trained network against each other, {index}, seed {seeds[0]}"
            f"{sized(tables.layer_similarity, main_size(tables.layer_similarity))}. Columns in the order of rows; "
            "darker is more alike.",
            pd.DataFrame({"arm": [m.title for m in part], "neighbouring_layers": [_neighbours(m) for m in part]}),
        )
        yield chart if k == 0 else Fold("The other arms", (chart,))


def _neighbours(matrix: Matrix) -> float:
    """Mean similarity of a layer and the next."""
    steps = np.diagonal(matrix.values, 1)
    steps = steps[np.isfinite(steps)]
    return float(steps.mean()) if len(steps) else math.nan


def _neighbour_words(matrix: Matrix) -> str:
    return f"{number(_neighbours(matrix), 2)} in {matrix.title}"
