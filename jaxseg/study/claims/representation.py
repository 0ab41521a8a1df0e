"""C9: what networks represent, by similarities of layers on the same held-out voxels; with what C8 to C11 share.

A similarity s is read against a floor, the similarity of networks that share nothing: rho = (s - floor) / (1 - floor).
Intervals leave out one seed with all its pairs at a time, and all the seeds of a source network where they share one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components

from jaxseg.analysis.case_similarity import MIN_CASES
from jaxseg.analysis.permutation import label_swap
from jaxseg.analysis.statistics import mean_of_pairs
from jaxseg.streams import host_rng
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    across_arms,
    doubts_of_rates,
    jackknife,
    layers_of,
    matched,
    seeds_of_pairs,
    units,
    within_arm,
)
from jaxseg.study.claims.findings import (
    Lacking,
    Measured,
    Quantity,
    Ruling,
    Void,
    count_of_seeds,
    few_seeds,
    quantity,
    unique,
)
from jaxseg.study.claims.rules import (
    ALIKE,
    DIFFERENT,
    FLOOR_LIMIT,
    INDEXES,
    MIN_SEEDS_A_FOLD,
    NEXT_CHANGE,
    PROJECTION_CONFIDENCE,
    SHAPES,
    SHARE_OF_LAYERS,
)
from jaxseg.study.score.units import seeds_each


def rho(s: Float[np.ndarray, "*axes"], floor: Float[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """Rescales a similarity to 0 at its floor and 1 at equality."""
    return (s - floor) / (1 - floor)


def index_of(rows: pd.DataFrame, comparison: str) -> str:
    """Returns the similarity index that is read: that of different cases, if the table has values of it.

    Voxels of one case are alike, so an index that takes them as independent reads unrelated features as similar.
    """
    present = set(rows.loc[(rows["comparison"] == comparison) & rows["value"].notna(), "index"])
    return next((index for index in INDEXES if index in present), INDEXES[-1])


def few_cases(rows: pd.DataFrame, index: str) -> list[str]:
    """Returns the doubt that fewer cases were analysed than pairs of different cases need; empty if enough were.

    An index is then read that takes the voxels of a case for independent, as in tables of earlier versions.
    """
    if index == INDEXES[0] or not (rows["index"] == INDEXES[0]).any():
        return []
    return [f"needs at least {MIN_CASES} analysed test cases: {index} takes voxels of one case for independent ones"]


def similarity_rows(evidence: Evidence, comparison: str, index: str, *arms: str) -> pd.DataFrame:
    """Returns the rows of similarity.csv for one comparison, index and ordered pair of arms."""
    rows = evidence.table("similarity", arms[0])
    rows = rows[(rows["comparison"] == comparison) & (rows["index"] == index)]
    rows = rows[(rows["arm_a"] == arms[0]) & (rows["arm_b"] == arms[-1])]
    if rows.empty:
        raise Lacking(f"no {comparison} similarities ({index}) of {' and '.join(dict.fromkeys(arms))}")
    return rows


def usable_layers(values: Float[np.ndarray, "folds layers *runs"]) -> Bool[np.ndarray, " layers"]:
    """Returns the layers with a value in every fold and run.

    Too few voxels for its channels leave a layer NaN, and so does a network in which the layer is constant.
    """
    return np.isfinite(values).all(axis=(0, *range(2, values.ndim)))


def usable_in_pairs(values: Float[np.ndarray, "folds layers a b"]) -> Bool[np.ndarray, " layers"]:
    """Returns the layers with a value in every fold and every pair that was compared.

    Pairs that were not compared, such as those of seeds that are tested on different folds, have no value in any layer.
    """
    compared = np.isfinite(values).any(axis=(0, 1)) & ~np.eye(values.shape[-1], dtype=bool)
    return usable_layers(values[..., compared]) & compared.any()


def require_layers(usable: Bool[np.ndarray, " layers"], what: str) -> None:
    """Raises `Void` if fewer than half of the layers can be used."""
    if not usable.any() or usable.mean() < SHARE_OF_LAYERS:
        raise Void(
            f"only {usable.sum()} of {len(usable)} {what} can be used: the others have too few voxels for their "
            f"channels, are constant in a run, or unrelated networks are alike there (above {FLOOR_LIMIT})"
        )


def pair_quantity(
    name: str,
    statistic: Callable[[Seeds], float],
    before: Callable[[Seeds], float] | None,
    of_units: Seeds,
    confidence: float,
    **more: object,
) -> Quantity:
    """Computes a quantity of pairs of runs, projected by its change over the last doubling of the steps.

    Args:
        name: The name that readers see.
        statistic: Computes the quantity from the positions of the seeds that are kept.
        before: The same after half of the steps; None if unknown.
        of_units: The unit of each seed.
        confidence: Confidence level of the interval.
        more: Other fields of the quantity.
    """
    fall = rise = math.nan
    if before is not None:
        half = before

        def change(kept: Seeds) -> float:
            return statistic(kept) - half(kept)

        # A two-sided interval at this confidence has the one-sided limits that projections are made with.
        moved = jackknife(change, of_units, 2 * PROJECTION_CONFIDENCE - 1)
        fall, rise = (NEXT_CHANGE * max(limit, 0.0) for limit in (-moved.low, moved.high))
    count = {"n_seeds": len(np.unique(of_units)), "seeds_each": seeds_each(of_units)}
    numbers = {**count, "fall": fall, "rise": rise, **more}
    return quantity(name, jackknife(statistic, of_units, confidence), confidence, **numbers)


# ------------------------------------------------------------------------------------- C9: across arms against within


def within_similarities(
    evidence: Evidence, pair: Pair, index: str
) -> tuple[list[Float[np.ndarray, "folds layers seeds seeds"]], list[str], tuple[Seeds, Seeds]]:
    """Returns similarities within the baseline and within the arm, with their layers and matched seeds."""
    rows = [similarity_rows(evidence, "within_arm", index, arm) for arm in (pair.baseline, pair.arm)]
    layers = [layer for layer in layers_of(rows[0]) if layer in set(rows[1]["layer"])]
    seeds = matched(*(seeds_of_pairs(part) for part in rows))
    return [within_arm(part, layers, ids) for part, ids in zip(rows, seeds, strict=True)], layers, seeds


def mean_distances(
    similarities: list[Float[np.ndarray, "folds layers seeds seeds"]],
) -> list[Float[np.ndarray, "folds seeds seeds"]]:
    """Averages distances over the layers that have values in all of them; the diagonals are meaningless."""
    usable = np.logical_and.reduce([usable_in_pairs(part) for part in similarities])
    require_layers(usable, "layers")
    return [1 - part[:, usable].mean(1) for part in similarities]


def _excess(evidence: Evidence, pair: Pair, index: str) -> tuple[np.ndarray, np.ndarray, Seeds]:
    """Excess distance across arms over within, [folds, seeds, seeds], the baseline's own distances, and the seeds."""
    within, layers, seeds = within_similarities(evidence, pair, index)
    rows = evidence.table("similarity")
    rows = rows[(rows["comparison"] == "across_arms") & (rows["index"] == index)]
    baseline, arm, across = mean_distances([*within, across_arms(rows, layers, pair, seeds)])
    # Both orders of a pair together: pairs of one seed, on the diagonal, are left out. So are pairs of one source
    # network, which are closer to each other than other runs of the arm.
    of_units = units(evidence, pair.arm, seeds[1])
    other = np.where(of_units[:, None] != of_units[None], 1.0, np.nan)
    excess = (across + across.swapaxes(1, 2)) / 2 - (baseline + arm) / 2
    return excess * other, baseline * other, seeds[1]


def _relative(excess: np.ndarray, baseline: np.ndarray) -> Callable[[Seeds], float]:
    def ratio(kept: Seeds) -> float:
        return float(mean_of_pairs(excess, kept).mean() / mean_of_pairs(baseline, kept).mean())

    return ratio


def _of_index(evidence: Evidence, pair: Pair, index: str, key: str) -> tuple[tuple[Quantity, Quantity], list[str]]:
    """The excess distance by one index with the p of label swaps within seeds, and the doubts that few seeds raise."""
    excess, baseline, seeds = _excess(evidence, pair, index)
    before = None
    try:
        half, half_baseline, half_seeds = _excess(evidence.halfway(), pair, index)
        before = _relative(half, half_baseline) if np.array_equal(half_seeds, seeds) else None
    except (Lacking, Void):
        pass
    of_units = units(evidence, pair.arm, seeds)
    relative = pair_quantity(
        f"excess distance over the distance within {pair.baseline}, {index}",
        _relative(excess, baseline),
        before,
        of_units,
        evidence.confidence,
        key=key,
        thresholds=(DIFFERENT, ALIKE),
    )
    # Drawn swaps, where there are too many to list, are the same every time.
    between = _between_units(excess.mean(0), of_units)
    p = label_swap(between, rng=host_rng(0))
    # Swapping all seeds that are compared with each other changes nothing: of a swap and its reverse, one counts.
    together = np.bincount(_compared_with(excess, of_units))
    least = 2.0 ** (len(together) - len(between))
    swaps = Quantity(f"p of label swaps, {index}", p, n_seeds=len(between), key=f"p {key}", least=least)
    return (relative, swaps), _few_together(together, seeds_each(of_units))


def _compared_with(excess: Float[np.ndarray, "folds seeds seeds"], of_units: Seeds) -> Int[np.ndarray, " units"]:
    """The number of the set of units that each is compared with; where folds rotate over seeds, each fold is one."""
    known = ~np.isnan(excess).all(0) & (of_units[:, None] != of_units[None])
    members = (of_units[None] == np.unique(of_units)[:, None]).astype(int)
    return connected_components(members @ known @ members.T > 0, directed=False)[1]


def _few_together(together: Int[np.ndarray, " sets"], each: int) -> list[str]:
    if len(together) < 2 or together.min() >= MIN_SEEDS_A_FOLD:
        return []
    return [f"needs at least {count_of_seeds(MIN_SEEDS_A_FOLD, each)} in each fold, has {together.min()}"]


def _between_units(matrix: Float[np.ndarray, "seeds seeds"], of_units: Seeds) -> Float[np.ndarray, "units units"]:
    """Means over the pairs of seeds of two units; what the runs of one unit share is on the diagonal."""
    members = (of_units[None] == np.unique(of_units)[:, None]).astype(float)
    return members @ np.nan_to_num(matrix) @ members.T / np.outer(members.sum(1), members.sum(1))


def differ(level: float) -> Callable[[Mapping[str, Quantity], bool], Ruling]:
    """Returns the rule of C9 at a significance level."""

    def rule(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
        excess, p = [found["cka"], found["shapes"]], [found.get("p cka"), found.get("p shapes")]
        above = all(q.low > DIFFERENT for q in excess)
        swapped = all(one is None or one.value <= level for one in p)
        alike = all(q.high < ALIKE for q in excess)
        blind = next((one for one in p if one is not None and one.least > level), None)
        if blind is None or not above:
            return Ruling(above and swapped, alike)
        why = f"with {blind.n_seeds} p is never below {blind.least:.2g}, and the level is {level:.2g}"
        return Ruling(False, alike, f"needs more seeds: {why}", f"more seeds: {why}")

    return rule


def c9(evidence: Evidence, pair: Pair) -> Measured:
    """Tests whether arms represent differently: whether runs are further apart across arms than within, over layers."""
    rows = evidence.table("similarity", *pair)
    index = index_of(rows, "within_arm")
    quantities: list[Quantity] = []
    few: list[str] = []
    for name, key in ((index, "cka"), (SHAPES, "shapes")):
        found, doubts_of_few = _of_index(evidence, pair, name, key)
        quantities, few = [*quantities, *found], [*few, *doubts_of_few]
    shared = evidence.arm(pair.arm).one_source
    # What all seeds have from one source network would pass for what transferred networks have in common.
    doubts = [f"one source: all seeds of {pair.arm} start from the same source network"] if shared else []
    fewest = min(quantities, key=lambda q: q.n_seeds)
    doubts += [
        *few_seeds(fewest.n_seeds, fewest.seeds_each),
        *few,
        *few_cases(rows, index),
        *doubts_of_rates(evidence, *pair),
    ]
    return Measured(tuple(quantities), differ(evidence.level), unique(doubts), pair)
