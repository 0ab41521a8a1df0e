"""C8, C9, C11, C11b: what networks represent, from similarities of layers on the same held-out voxels.

A similarity s is read against a floor, the similarity of networks that share nothing: rho = (s - floor) / (1 - floor).
Intervals leave out one seed with all its pairs at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxseg.analysis.permutation import label_swap
from jaxseg.analysis.statistics import mean_of_pairs
from jaxseg.streams import host_rng
from jaxseg.study.claims.accuracy import Trio, accurate_without_encoder
from jaxseg.study.claims.evidence import (
    Alone,
    Evidence,
    Pair,
    Seeds,
    across_arms,
    by_layer_and_seed,
    by_layer_and_seeds,
    doubts_of_arms,
    jackknife,
    layers_of,
    matched,
    seeds_of,
    seeds_of_pairs,
    within_arm,
)
from jaxseg.study.claims.findings import (
    CONTRADICTED,
    SUPPORTED,
    Finding,
    Lacking,
    Quantity,
    few_seeds,
    judge,
    quantity,
)
from jaxseg.study.claims.gate import gated
from jaxseg.study.claims.rules import (
    EARLY,
    EXCESS,
    FLOOR_LIMIT,
    KEPT,
    P_LIMIT,
    REUSE_INDEX,
    REUSED,
    SHARE_OF_LAYERS,
)


def rho(s: Float[np.ndarray, "*axes"], floor: Float[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """How far a similarity is above its floor: 0 at the floor, 1 for equality."""
    return (s - floor) / (1 - floor)


def similarity_rows(evidence: Evidence, comparison: str, index: str, *arms: str) -> pd.DataFrame:
    """Rows of similarity.csv of one comparison and index whose first arm is the first given, the second the last."""
    rows = evidence.table("similarity", arms[0])
    rows = rows[(rows["comparison"] == comparison) & (rows["index"] == index)]
    rows = rows[(rows["arm_a"] == arms[0]) & (rows["arm_b"] == arms[-1])]
    if rows.empty:
        raise Lacking(f"no {comparison} similarities ({index}) of {' and '.join(dict.fromkeys(arms))}")
    return rows


def usable_layers(values: Float[np.ndarray, "folds layers *runs"]) -> Bool[np.ndarray, " layers"]:
    """Layers with a value in every fold and run; too few voxels for its channels leave a layer NaN."""
    return np.isfinite(values).all(axis=(0, *range(2, values.ndim)))


def usable_in_pairs(values: Float[np.ndarray, "folds layers a b"]) -> Bool[np.ndarray, " layers"]:
    """The same for pairs of different seeds."""
    return usable_layers(values[..., ~np.eye(values.shape[-1], dtype=bool)])


def _require_layers(usable: Bool[np.ndarray, " layers"], what: str) -> None:
    """Raises `Lacking` if fewer than half of the layers can be used."""
    if not usable.any() or usable.mean() < SHARE_OF_LAYERS:
        raise Lacking(
            f"only {usable.sum()} of {len(usable)} {what} can be used: the others have too few voxels for their "
            f"channels, or unrelated networks are alike there (above {FLOOR_LIMIT})"
        )


# ----------------------------------------------------------------------------------------- C8: end against own start


def _kept(evidence: Evidence, arm: str, index: str) -> tuple[Callable[[Seeds], float], int]:
    """Mean rho of the encoder's layers between end and start, as a statistic of the seeds kept, and their number."""
    own_rows, other_rows = (similarity_rows(evidence, name, index, arm) for name in ("own_start", "other_start"))
    layers = [layer for layer in layers_of(own_rows) if layer.startswith("encoder/")]
    seeds = np.intersect1d(seeds_of(own_rows, "seed_a"), seeds_of(other_rows, "seed_a"))
    own = by_layer_and_seed(own_rows, layers, seeds)
    other = by_layer_and_seeds(other_rows, layers, seeds, seeds)
    floor = mean_of_pairs(other, np.arange(len(seeds))).mean(0)
    usable = usable_layers(own) & usable_in_pairs(other) & (floor <= FLOOR_LIMIT)
    _require_layers(usable, "encoder layers")
    own, other = own[:, usable], other[:, usable]

    def statistic(kept: Seeds) -> float:
        return float(rho(own[..., kept].mean(-1), mean_of_pairs(other, kept)).mean())

    return statistic, len(seeds)


def _need_not_learn(evidence: Evidence, arm: str) -> Finding:
    quantities = []
    for index in (REUSE_INDEX, "procrustes"):
        statistic, n = _kept(evidence, arm, index)
        limits = jackknife(statistic, n, evidence.confidence)
        quantities.append(quantity(f"rho of end and own start, {index}", limits, n))
    try:
        accurate = accurate_without_encoder(evidence, Trio(scratch=arm)).verdict
    except Lacking as error:
        accurate = f"open ({error})"
    found = judge(
        "C8",
        quantities,
        supported=accurate == SUPPORTED and all(q.low > KEPT for q in quantities),
        contradicted=accurate == CONTRADICTED or any(q.high < KEPT for q in quantities),
        doubts=few_seeds(min(q.n_seeds for q in quantities)),
    )
    return dataclasses.replace(found, reason=f"C7 is {accurate}; {found.reason}")


def c8(evidence: Evidence, alone: Alone) -> Finding:
    """The encoder need not learn: it ends as it started, and frozen as it started the network does nearly as well."""
    frozen = Trio().frozen
    arms = (alone.arm, frozen) if frozen in evidence.record.arms else alone
    return gated(evidence, lambda scratch: _need_not_learn(evidence, scratch), arms, alone.arm)


# ------------------------------------------------------------------------------------- C9: across arms against within


def within_similarities(
    evidence: Evidence, pair: Pair
) -> tuple[list[Float[np.ndarray, "folds layers seeds seeds"]], list[str], tuple[Seeds, Seeds]]:
    """CKA (biased) between runs of the baseline and between runs of the arm, with the layers and matched seeds."""
    rows = [similarity_rows(evidence, "within_arm", "cka", arm) for arm in (pair.baseline, pair.arm)]
    layers = [layer for layer in layers_of(rows[0]) if layer in set(rows[1]["layer"])]
    seeds = matched(*(seeds_of_pairs(part) for part in rows))
    return [within_arm(part, layers, ids) for part, ids in zip(rows, seeds, strict=True)], layers, seeds


def mean_distances(
    similarities: list[Float[np.ndarray, "folds layers seeds seeds"]],
) -> list[Float[np.ndarray, "folds seeds seeds"]]:
    """1 - CKA averaged over the layers that have values in all of them; diagonals mean nothing."""
    usable = np.logical_and.reduce([usable_in_pairs(part) for part in similarities])
    _require_layers(usable, "layers")
    return [1 - part[:, usable].mean(1) for part in similarities]


def c9(evidence: Evidence, pair: Pair) -> Finding:
    """The arms represent differently: runs are further apart across arms than within them, layers averaged."""
    within, layers, seeds = within_similarities(evidence, pair)
    rows = evidence.table("similarity")
    rows = rows[(rows["comparison"] == "across_arms") & (rows["index"] == "cka")]
    baseline, arm, across = mean_distances([*within, across_arms(rows, layers, pair, seeds)])
    n = len(seeds[0])
    # Both orders of a pair together: pairs of one seed, on the diagonal, are left out.
    excess = (across + across.swapaxes(1, 2)) / 2 - (baseline + arm) / 2

    def ratio(kept: Seeds) -> float:
        return float(mean_of_pairs(excess, kept).mean() / mean_of_pairs(baseline, kept).mean())

    relative = jackknife(ratio, n, evidence.confidence)
    # Drawn swaps, where there are too many to list, are the same every time.
    p = label_swap(excess.mean(0), rng=host_rng(0))
    quantities = [
        quantity(f"excess distance over the distance within {pair.baseline}", relative, n),
        Quantity("p of label swaps", p, n_seeds=n),
    ]
    return judge(
        "C9",
        quantities,
        supported=p <= P_LIMIT and relative.estimate >= EXCESS,
        contradicted=relative.high < EXCESS,
        doubts=[*few_seeds(n), *doubts_of_arms(evidence, pair.arm)],
    )


# ---------------------------------------------------------------------------------------- C11, C11b: reuse by depth


class Reuse(NamedTuple):
    """rho of each usable layer as a function of the seeds kept: nearer to the source than scratch is."""

    layers: tuple[str, ...]
    of: Callable[[Seeds], Float[np.ndarray, " layers"]]
    n_seeds: int

    def early(self) -> Bool[np.ndarray, " layers"]:
        """Which layers are the encoder's finest two levels."""
        return np.isin(self.layers, EARLY)


def to_source_rows(evidence: Evidence, pair: Pair, index: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the arm against its source networks, and of the baseline against those of other seeds.

    Source networks stand in the table as the starts of an arm that took them whole, which may be another one.
    """
    rows = evidence.table("similarity", pair.arm)
    own = rows[(rows["comparison"] == "to_source") & (rows["index"] == index) & (rows["arm_a"] == pair.arm)]
    if own.empty:
        raise Lacking(f"no to_source similarities ({index}) of {pair.arm}")
    return own, similarity_rows(evidence, "to_other_source", index, pair.baseline, str(own["arm_b"].iloc[0]))


def _reuse(evidence: Evidence, pair: Pair, index: str = REUSE_INDEX) -> Reuse:
    """How far each layer of the arm stays with its source network, on target images.

    The floor is the baseline's likeness to source networks of other seeds: with the same seed both start from the same
    random weights, and what they keep of those would pass for what training leads to anyway.
    """
    of_arm, of_baseline = to_source_rows(evidence, pair, index)
    layers = layers_of(of_arm)
    seeds = np.intersect1d(seeds_of_pairs(of_baseline), seeds_of(of_arm, "seed_a"))
    floor = by_layer_and_seeds(of_baseline, layers, seeds, seeds)
    own = by_layer_and_seed(of_arm, layers, seeds)
    usable = usable_layers(own) & usable_in_pairs(floor)
    usable[usable] = mean_of_pairs(floor[:, usable], np.arange(len(seeds))).mean(0) <= FLOOR_LIMIT
    _require_layers(usable, "layers")
    own, floor = own[:, usable], floor[:, usable]

    def of(kept: Seeds) -> Float[np.ndarray, " layers"]:
        return rho(own[..., kept].mean(-1), mean_of_pairs(floor, kept)).mean(0)

    found = Reuse(tuple(np.array(layers)[usable]), of, len(seeds))
    for part, name in ((found.early(), "early"), (~found.early(), "deep")):
        if not part.any():
            raise Lacking(f"no {name} layer can be used")
    return found


def _limits(reuse: Reuse, weights: Float[np.ndarray, " layers"], name: str, confidence: float) -> Quantity:
    """A linear combination of the layers' reuse, with its limits."""
    found = jackknife(lambda kept: float(reuse.of(kept) @ weights), reuse.n_seeds, confidence)
    return quantity(name, found, reuse.n_seeds)


def c11(evidence: Evidence, pair: Pair) -> Finding:
    """Feature reuse is not only early: the deep layers stay with the source as well."""
    reuse = _reuse(evidence, pair)
    early, confidence = reuse.early(), evidence.confidence
    deep_mean, early_mean = (
        _limits(reuse, part / part.sum(), f"reuse, mean of {name} layers", confidence)
        for part, name in ((~early, "deep"), (early, "early"))
    )
    by_layer = [
        _limits(reuse, row, f"reuse, {layer}", confidence)
        for row, layer in zip(np.eye(len(reuse.layers)), reuse.layers, strict=True)
    ]
    return judge(
        "C11",
        [deep_mean, early_mean, *by_layer],
        supported=deep_mean.low > REUSED,
        contradicted=deep_mean.high < REUSED and early_mean.low > REUSED,
        doubts=[*few_seeds(reuse.n_seeds), *doubts_of_arms(evidence, pair.arm)],
        shown=[deep_mean, early_mean],
    )


def c11b(evidence: Evidence, pair: Pair) -> Finding:
    """Reuse can be larger in deeper layers: each deep layer's reuse less that of the early ones, Bonferroni."""
    reuse = _reuse(evidence, pair)
    early = reuse.early()
    deep = np.flatnonzero(~early)
    confidence = 1 - evidence.level / len(deep)
    leads = [
        _limits(
            reuse,
            (np.arange(len(early)) == i) - early / early.sum(),
            f"lead over early layers, {reuse.layers[i]}",
            confidence,
        )
        for i in deep
    ]
    return judge(
        "C11b",
        leads,
        supported=any(lead.low > 0 for lead in leads),
        contradicted=all(lead.high < 0 for lead in leads),
        doubts=[*few_seeds(reuse.n_seeds), *doubts_of_arms(evidence, pair.arm)],
    )
