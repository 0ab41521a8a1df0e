"""Makes layers.csv and similarity_means.csv: what the claims rest on, layer by layer and averaged over layers.

The definitions are those of the rules, so a page shows the very numbers of a layer that a verdict is made from. Seeds
that share a source network count as one, and `n_seeds` counts source networks in their place.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxseg.analysis.statistics import Interval, from_left_out, mean_of_pairs, t_interval
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    by_layer_and_seed,
    by_layer_and_seeds,
    layers_of,
    matched,
    run_values,
    seeds_of,
    seeds_of_pairs,
    units,
    within_arm,
)
from jaxseg.study.claims.filters import randomness
from jaxseg.study.claims.findings import Lacking, Void
from jaxseg.study.claims.representation import index_of, rho, similarity_rows, usable_in_pairs, usable_layers
from jaxseg.study.claims.reuse import to_source_rows
from jaxseg.study.claims.rules import FLOOR_LIMIT, RANDOM
from jaxseg.study.score.comparisons import baseline_of
from jaxseg.study.score.units import jackknife, joint_units, mean_of_units

COLUMNS = (
    *("arm", "train_cases", "fold", "comparison", "index", "layer", "quantity"),
    *("value", "ci_low", "ci_high", "n_seeds", "limit"),
)
MEANS_COLUMNS = (
    *("comparison", "arm_a", "arm_b", "train_cases", "fold", "index"),
    *("value", "ci_low", "ci_high", "n_seeds"),
)
CHANGES = ("angle_deg", "relative_change", "norm_ratio")
"""Columns of filters.csv that are averaged over seeds without a transformation."""
PROBE = "probe_"
"""What quantities of probes.csv are called, followed by the site."""
SAME_SEED = ("own_start", "to_source")
"""Comparisons of a run with itself at another step, or with its own source network."""
ONE_ARM = ("within_arm", "starts")
"""Comparisons whose pairs are unordered."""

Stack = Float[np.ndarray, "folds layers"]


def _row(quantity: str, interval: Interval, n_seeds: int, **more: Any) -> dict[str, Any]:
    values = {"value": interval.estimate, "ci_low": interval.low, "ci_high": interval.high}
    return {"quantity": quantity, **values, "n_seeds": n_seeds, **more}


def _by_unit(rows: pd.DataFrame, evidence: Evidence, arm: str) -> Float[np.ndarray, " units"]:
    """Column `value` of an arm's runs, averaged over folds and then over the seeds of a source network."""
    if not rows["value"].notna().any():
        return np.zeros(0)
    seeds, by_seed = run_values(rows, "value")
    return mean_of_units(by_seed, units(evidence, arm, seeds))


def _over_seeds(
    rows: pd.DataFrame, quantities: dict[str, pd.Series], evidence: Evidence, arm: str
) -> Iterator[dict[str, Any]]:
    """Means over seeds of numbers that each run of an arm has by layer, averaged over folds first."""
    for quantity, values in quantities.items():
        known = rows.assign(value=values)
        for layer, of_layer in known.groupby("layer", sort=False):
            by_unit = _by_unit(of_layer, evidence, arm)
            interval = t_interval(by_unit, confidence=evidence.confidence)
            yield _row(quantity, interval, len(by_unit), layer=layer, limit=RANDOM.get(quantity, np.nan))


def _of_filters(evidence: Evidence, arm: str) -> Iterator[dict[str, Any]]:
    rows = evidence.table("filters", arm)
    rows = rows[(rows["arm"] == arm) & rows["trained"]]
    yield from _over_seeds(rows, {name: rows[name] for name in CHANGES} | randomness(rows), evidence, arm)


def _of_rewind(evidence: Evidence, arm: str) -> Iterator[dict[str, Any]]:
    rows = evidence.table("rewind", arm)
    rows = rows[rows["arm"] == arm]
    if "how" not in rows:
        yield from _over_seeds(rows, {"drop": rows["drop"]}, evidence, arm)
        return
    for how, quantity in (("rewind", "drop"), ("rerandomise", "drop_rerandomised")):
        own = rows[rows["how"] == how]
        yield from _over_seeds(own, {quantity: own["drop"]}, evidence, arm)


def _of_probes(evidence: Evidence, arm: str) -> Iterator[dict[str, Any]]:
    rows = evidence.table("probes", arm)
    rows = rows[rows["arm"] == arm]
    for site in rows["site"].unique():
        own = rows[rows["site"] == site]
        yield from _over_seeds(own, {f"{PROBE}{site}": own["score"]}, evidence, arm)


def _of_coherence(evidence: Evidence, arm: str) -> Iterator[dict[str, Any]]:
    """The mean over pairs; they share runs and are not all there are, so it has no limits."""
    rows = evidence.table("coherence", arm)
    for layer, own in rows[rows["arm"] == arm].groupby("layer", sort=False):
        n_units = len(np.unique(units(evidence, arm, np.unique(own[["seed_a", "seed_b"]]))))
        yield _row("cosine", t_interval(np.array([own["cosine"].mean()])), n_units, layer=layer, limit=np.nan)


def _above_floor(
    comparison: str,
    layers: list[str],
    own: Callable[[Seeds], Stack],
    floor: Callable[[Seeds], Stack] | None,
    usable: np.ndarray,
    of_units: Seeds,
    confidence: float,
) -> Iterator[dict[str, Any]]:
    """Similarity, its floor, and rho of each layer, with intervals that leave out a unit from both.

    rho is left empty in layers that the rules do not use: no value for some run, or a floor above `FLOOR_LIMIT`.
    """
    names = np.unique(of_units)
    kept = [np.arange(len(of_units))]
    kept += [np.flatnonzero(of_units != name) for name in names] if len(names) > 1 else []
    similar = np.stack([own(seeds) for seeds in kept])
    found = {"similarity": similar.mean(1)}
    if floor is not None:
        floors = np.stack([floor(seeds) for seeds in kept])
        with np.errstate(invalid="ignore", divide="ignore"):
            usable = usable & (floors[0].mean(0) <= FLOOR_LIMIT)
            share = np.where(usable, rho(similar, floors).mean(1), np.nan)
        found |= {"floor": floors.mean(1), "rho": share}
    for i, layer in enumerate(layers):
        for quantity, values in found.items():
            interval = from_left_out(values[:, i], confidence=confidence)
            yield _row(quantity, interval, len(names), comparison=comparison, layer=layer)


def _index(evidence: Evidence, comparison: str) -> str:
    """The index of similarity that the rules take for a comparison."""
    return index_of(evidence.table("similarity"), comparison)


def _with_index(evidence: Evidence, row: Mapping[str, Any]) -> dict[str, str]:
    """The index of a row of representations; nothing of others."""
    return {"index": _index(evidence, row["comparison"])} if row.get("comparison") else {}


def _own_start(evidence: Evidence, arm: str) -> Iterator[dict[str, Any]]:
    """C8's quantities by layer; of one seed, which has no other start beside it, the similarity alone."""
    index = _index(evidence, "own_start")
    own = similarity_rows(evidence, "own_start", index, arm)
    layers, seeds, other = layers_of(own), seeds_of(own, "seed_a"), own[:0]
    with contextlib.suppress(Lacking, Void):
        other = similarity_rows(evidence, "other_start", index, arm)
        seeds = np.intersect1d(seeds, seeds_of(other, "seed_a"))
    yield from _runs_and_floor("own_start", arm, layers, seeds, own, other, evidence)


def _to_source(evidence: Evidence, arm: str, baseline: str) -> Iterator[dict[str, Any]]:
    """C11's quantities by layer."""
    own, other = to_source_rows(evidence, Pair(arm, baseline), _index(evidence, "to_source"))
    seeds = np.intersect1d(seeds_of_pairs(other), seeds_of(own, "seed_a"))
    yield from _runs_and_floor("to_source", arm, layers_of(own), seeds, own, other, evidence)


def _runs_and_floor(
    comparison: str,
    arm: str,
    layers: list[str],
    seeds: Seeds,
    own_rows: pd.DataFrame,
    other: pd.DataFrame,
    evidence: Evidence,
) -> Iterator[dict[str, Any]]:
    """Single runs above a floor of pairs of different seeds, where there are such pairs."""
    if not len(seeds):
        raise Lacking(f"no seed with {comparison} and its floor")
    own = by_layer_and_seed(own_rows, layers, seeds)
    floor = by_layer_and_seeds(other, layers, seeds, seeds) if len(other) else None
    usable = usable_layers(own) & (True if floor is None else usable_in_pairs(floor))
    yield from _above_floor(
        comparison,
        layers,
        lambda kept: own[..., kept].mean(-1),
        None if floor is None else lambda kept: mean_of_pairs(floor, kept),
        usable,
        units(evidence, arm, seeds),
        evidence.confidence,
    )


def _between_runs(evidence: Evidence, arm: str, at_random: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Ends of two runs of an arm; the floor is two starts of an arm that begins at random."""
    index = _index(evidence, "within_arm")
    rows = similarity_rows(evidence, "within_arm", index, arm)
    layers, seeds = layers_of(rows), seeds_of_pairs(rows)
    starts = None
    for other in at_random:
        with contextlib.suppress(Lacking, Void):
            start_rows = similarity_rows(evidence, "starts", index, other)
            seeds, others = matched(seeds, seeds_of_pairs(start_rows))
            starts = within_arm(start_rows, layers, others)
            break
    own = within_arm(rows, layers, seeds)
    usable = usable_in_pairs(own) & (True if starts is None else usable_in_pairs(starts))
    yield from _above_floor(
        "within_arm",
        layers,
        lambda kept: mean_of_pairs(own, kept),
        None if starts is None else lambda kept: mean_of_pairs(starts, kept),
        usable,
        units(evidence, arm, seeds),
        evidence.confidence,
    )


def layer_table(evidence: Evidence, sizes: Mapping[int, int]) -> pd.DataFrame:
    """Tabulates what training does to each layer at every training set size.

    Args:
        evidence: The study, whose level the intervals have.
        sizes: The fold of each training set size, as in the tables.

    Returns:
        The columns `COLUMNS`. Filters have no comparison: `angle_deg`, `relative_change`, `norm_ratio`, the four
        quantities of C6 with the limit within which each still counts as random, `drop`, the DSC lost when a layer is
        set back, `drop_rerandomised`, the same when it is drawn anew, `probe_start`, `probe_source` and `probe_end`,
        what a linear probe scores, and `cosine`, how coherent the ways of runs from one start are. Of
        representations (comparison `own_start`,
        `to_source`, `within_arm`): `similarity`, its `floor`, and `rho`, the share above it.
    """
    arms = evidence.record.arms
    baseline = baseline_of(list(arms)) if arms else ""
    # Source networks are trained networks: as starts they are no floor.
    at_random = [name for name in (baseline, *arms) if name and arms[name].pretrain_steps == 0]
    rows: list[dict[str, Any]] = []
    for size, fold in sizes.items():
        at_size = dataclasses.replace(evidence, size=size)
        fixed = {"train_cases": size, "fold": fold, "comparison": "", "index": ""}
        for arm in arms:
            parts = [_of_filters(at_size, arm), _of_rewind(at_size, arm), _own_start(at_size, arm)]
            parts += [_to_source(at_size, arm, baseline)] if arm != baseline else []
            parts += [_of_probes(at_size, arm), _of_coherence(at_size, arm)]
            for part in [*parts, _between_runs(at_size, arm, at_random)]:
                with contextlib.suppress(Lacking, Void):  # a study need not have every analysis
                    rows += [{**fixed, "arm": arm, **row, **_with_index(at_size, row)} for row in part]
    return pd.DataFrame(rows, columns=list(COLUMNS))


# ------------------------------------------------------------------------------------------------------ over layers


def _mean_of_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a pair of runs and fold; layers without a value are left out."""
    return rows.groupby(["fold", "seed_a", "seed_b"], sort=False)["value"].mean().reset_index().assign(layer="")


def _mean_of_comparison(
    comparison: str, arms: tuple[str, str], rows: pd.DataFrame, evidence: Evidence
) -> tuple[Interval, int]:
    """Mean over runs, or over pairs of different seeds, with its interval, and the number of seeds."""
    pairs, confidence = _mean_of_layers(rows), evidence.confidence
    if comparison in SAME_SEED:
        values = _by_unit(pairs.rename(columns={"seed_a": "seed"}), evidence, arms[0])
        return t_interval(values, confidence=confidence), len(values)
    if comparison in ONE_ARM:
        seeds = seeds_of_pairs(pairs)
        matrix, of_units = within_arm(pairs, [""], seeds), units(evidence, arms[0], seeds)
    else:
        both = matched(seeds_of(pairs, "seed_a"), seeds_of(pairs, "seed_b"))
        matrix = by_layer_and_seeds(pairs, [""], *both)
        of_units = joint_units([units(evidence, arm, own) for arm, own in zip(arms, both, strict=True)])

    def mean(kept: Seeds) -> float:
        return float(mean_of_pairs(matrix[:, 0], kept).mean())

    with np.errstate(invalid="ignore"):
        return jackknife(mean, of_units, confidence=confidence), len(np.unique(of_units))


def similarity_means(evidence: Evidence, sizes: Mapping[int, int]) -> pd.DataFrame:
    """Averages every comparison of similarity.csv over layers and runs, at every training set size.

    Pairs have different seeds, except in `own_start` and `to_source`: runs of one seed may begin with the same
    weights, and what they keep of them would count as similarity.

    Returns:
        The columns `MEANS_COLUMNS`.
    """
    if "similarity" not in evidence.tables:
        return pd.DataFrame(columns=list(MEANS_COLUMNS))
    table, rows = evidence.tables["similarity"], []
    by = ["comparison", "arm_a", "arm_b", "index"]
    for size, fold in sizes.items():
        for (comparison, arm_a, arm_b, index), own in table[table["train_cases"] == size].groupby(by, sort=False):
            interval, n_seeds = _mean_of_comparison(str(comparison), (str(arm_a), str(arm_b)), own, evidence)
            fixed = {"comparison": comparison, "arm_a": arm_a, "arm_b": arm_b, "train_cases": size, "fold": fold}
            found = {"value": interval.estimate, "ci_low": interval.low, "ci_high": interval.high}
            rows.append({**fixed, "index": index, **found, "n_seeds": n_seeds})
    return pd.DataFrame(rows, columns=list(MEANS_COLUMNS))
