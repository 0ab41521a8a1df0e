"""Makes page.csv: the counts, ranges and combined shares that the page's sentences take from other tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.reserved import MEAN, POOLED
from jaxseg.study.claims.rules import CONTROL_SHARE, DELTA, INDEXES, RANDOM

COLUMNS = ("about", "arm", "train_cases", "fold", "layer", "quantity", "value")
STREAMS, BOTH, RUNS = "streams", "both", "runs"
"""Combined shares of the variance: interactions of random streams, interactions with the case, and what runs differ
in on all cases alike."""

Facts = Iterator[dict[str, Any]]


def page_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tabulates every number that a sentence of the page takes from a whole table.

    Args:
        tables: The tables that exist, by name.

    Returns:
        The columns `COLUMNS`. `about` is the table, with the comparison or quantity in question; `lowest` and `highest`
        name the layer where they are found.
    """
    parts = {
        "claims": _of_claims,
        "filters": _of_filters,
        "filter_controls": _of_controls,
        "layers": _of_layers,
        "layer_similarity": _of_neighbours,
        "rates": _of_rates,
        "similarity": _of_similarity,
        "variance": _of_variance,
    }
    facts = [fact for name, of in parts.items() if name in tables for fact in of(tables[name])]
    empty = {"arm": "", "layer": ""}
    return pd.DataFrame([{**empty, **fact} for fact in facts], columns=list(COLUMNS)).astype(
        {"train_cases": "Int64", "fold": "Int64"}
    )


_BY = ("arm", "train_cases", "fold")


def _groups(table: pd.DataFrame, *by: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The groups of a table, each with what its rows have in common."""
    for key, own in table.groupby(list(by), sort=False):
        yield dict(zip(by, key, strict=True)), own


def _range(rows: pd.DataFrame, column: str = "value", **fixed: Any) -> Facts:
    """The smallest and the largest of the defined values, and their number."""
    known = rows.dropna(subset=[column])
    yield {**fixed, "quantity": "defined", "value": len(known)}
    for quantity, place in (("lowest", "idxmin"), ("highest", "idxmax")) if len(known) else ():
        row = known.loc[getattr(known[column], place)()]
        yield {"layer": row["layer"], **fixed, "quantity": quantity, "value": row[column]}


def _of_claims(claims: pd.DataFrame) -> Facts:
    judged = claims[claims["role"].isin(["claim", "control"])].drop_duplicates(["role", "claim", "arm"])
    for role, own in judged.groupby("role", sort=False):
        about = f"{role}s"
        yield {"about": about, "quantity": "judged", "value": len(own)}
        for verdict, rows in own.groupby("verdict", sort=False):
            yield {"about": about, "quantity": verdict, "value": len(rows)}


def _of_layers(layers: pd.DataFrame) -> Facts:
    for key, own in _groups(layers, "comparison", "quantity", *_BY):
        comparison, quantity = key.pop("comparison"), key.pop("quantity")
        fixed = {"about": f"{comparison} {quantity}".strip(), **key}
        if quantity in ("angle_deg", "drop", "drop_rerandomised", "rho", "probe_end", "cosine"):
            yield from _range(own, **fixed)
        if quantity in RANDOM:
            yield {**fixed, "quantity": "beyond", "value": int((own["value"] > own["limit"]).sum())}
        if quantity == "drop":
            yield {**fixed, "quantity": "small", "value": int((own["value"] < DELTA).sum())}
    for key, own in _groups(layers[layers["quantity"].isin(RANDOM)], *_BY):
        beyond, n_layers = own.loc[own["value"] > own["limit"], "layer"].nunique(), own["layer"].nunique()
        for quantity, value in (("layers", n_layers), ("within", n_layers - beyond)):
            yield {"about": "random", **key, "quantity": quantity, "value": value}


def _of_filters(filters: pd.DataFrame) -> Facts:
    """Two unrelated filters of each layer: their angle, with two standard deviations to either side."""
    trained = filters[filters["trained"]].drop_duplicates(["train_cases", "fold", "layer"])
    for row in trained.to_dict("records"):
        fixed = {key: row[key] for key in ("train_cases", "fold", "layer")}
        mean, sd = row["angle_of_null"], row["angle_null_sd"]
        for quantity, value in (("mean", mean), ("low", mean - 2 * sd), ("high", mean + 2 * sd)):
            yield {"about": "angle_of_null", **fixed, "quantity": quantity, "value": value}
        yield {"about": "change_of_null", **fixed, "quantity": "mean", "value": row["relative_change_of_null"]}


def _of_controls(controls: pd.DataFrame) -> Facts:
    """How many controls are found at a share that the rule of C6 asks for."""
    for key, own in _groups(controls, *_BY):
        fixed = {"about": "filter_controls", **key}
        yield {**fixed, "quantity": "found", "value": int((own["smallest_share"] <= CONTROL_SHARE).sum())}
        yield {**fixed, "quantity": "controls", "value": len(own)}


def _of_similarity(similarity: pd.DataFrame) -> Facts:
    present = set(similarity["index"])
    shown = similarity[similarity["index"] == next((index for index in INDEXES if index in present), "")]
    if "step" in shown:  # networks halfway through their training have rows as well
        shown = shown[shown["step"] == shown.groupby(["arm_a", "arm_b", "comparison"])["step"].transform("max")]
    for fixed, own in _groups(shown, "train_cases", "fold"):
        ends = own[own["comparison"].isin(["within_arm", "across_arms"])]
        for layer, rows in ends.groupby("layer", sort=False):
            yield from _range(rows, about="runs", layer=layer, **fixed)
    for size, own in shown[shown["comparison"] == "own_start"].groupby("train_cases"):
        # Of all folds together, as the means by layer beside which these stand.
        fold = POOLED if own["fold"].nunique() > 1 else own["fold"].iloc[0]
        for column in ("n_points", "n_neurons"):
            yield from _range(own, column, about=column, train_cases=size, fold=fold)


def _of_neighbours(rows: pd.DataFrame) -> Facts:
    """How alike a layer and the next are."""
    layers = list(dict.fromkeys([*rows["layer_a"], *rows["layer_b"]]))
    following = dict(itertools.pairwise(layers))
    pairs = pd.concat([rows, rows.rename(columns={"layer_a": "layer_b", "layer_b": "layer_a"})])
    pairs = pairs[pairs["layer_a"].map(following) == pairs["layer_b"]].rename(columns={"layer_a": "layer"})
    for key, own in _groups(pairs.reset_index(drop=True), *_BY):
        yield from _range(own, about="neighbours", **key)


def _of_rates(rates: pd.DataFrame) -> Facts:
    """Where the rate that was taken is an end of its grid, and the best other rate that is not told apart from it."""
    if "joint" not in rates:
        return  # of an earlier version; the page says how it is written again
    for key, tried in _groups(rates, *_BY):
        fixed = {"about": "rates", **key}
        for chosen in tried[tried["chosen"]].to_dict("records"):
            if chosen["lr"] in (tried["lr"].min(), tried["lr"].max()):
                yield {**fixed, "quantity": "end of the grid", "value": chosen["lr"]}
            others = tried[~tried["chosen"] & ~tried["joint"] & (chosen["val_dsc"] - tried["val_dsc"] < DELTA)]
            if len(others):
                yield {**fixed, "quantity": "nearly as good", "value": others.loc[others["val_dsc"].idxmax(), "lr"]}
    yield from _of_joint_rate(rates[rates["joint"]])


def _of_joint_rate(tried: pd.DataFrame) -> Facts:
    """The second-best of the rates that arms chose from jointly, if their trials do not tell it from the best.

    Trials of the two rates are compared arm by arm. An arm whose trials are another's, as the placebo's are, counts
    once: the standard error would be too small.
    """
    scores = tried.pivot_table(index=list(_BY), columns="lr", values="val_dsc").dropna(how="any").drop_duplicates()
    if scores.shape[1] < 2 or scores.empty:
        return
    best = tried.loc[tried["chosen"], "lr"].iloc[0]
    second = scores.drop(columns=best).mean().idxmax()
    gaps = scores[best] - scores[second]
    error = gaps.sem() if len(gaps) > 1 else np.nan
    if gaps.mean() < DELTA or not gaps.mean() > 2 * error:
        about = {"about": "joint rate"}
        found = {"taken": best, "second": second, "gap": gaps.mean(), "error": error, "trials": len(gaps)}
        yield from ({**about, "quantity": quantity, "value": value} for quantity, value in found.items())


def _of_variance(variance: pd.DataFrame) -> Facts:
    """Shares of the variance of mean DSC; interactions of streams are one share, those with the case another."""
    own = variance[(variance["metric"] == "dsc") & (variance["label"] == MEAN)]
    for key, rows in _groups(own, *_BY):
        fixed = {"about": "variance", **key}
        names = np.where(rows["source"].str.split(" x ").map(lambda parts: "group" in parts), BOTH, STREAMS)
        parts = rows["source"].where(~rows["source"].str.contains(" x "), names)
        shares = rows.groupby(parts, sort=False)["share"].sum()
        yield from ({**fixed, "quantity": name, "value": share} for name, share in shares.items())
        yield {**fixed, "quantity": RUNS, "value": shares.drop(["group", BOTH], errors="ignore").sum()}
        for column in ("n_runs", "n_left_out"):
            yield {**fixed, "quantity": column, "value": rows[column].max()}
