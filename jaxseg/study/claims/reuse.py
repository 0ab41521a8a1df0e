"""C11, C11b: which layers of a fine-tuned network stay similar to its source network, by depth."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxseg.analysis.statistics import mean_of_pairs
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    by_layer_and_seed,
    by_layer_and_seeds,
    doubts_of_rates,
    layers_of,
    scope_of,
    seeds_of,
    seeds_of_pairs,
    units,
)
from jaxseg.study.claims.findings import Lacking, Measured, Quantity, Ruling, Void, few_seeds, unique
from jaxseg.study.claims.representation import (
    few_cases,
    index_of,
    pair_quantity,
    require_layers,
    rho,
    similarity_rows,
    usable_in_pairs,
    usable_layers,
)
from jaxseg.study.claims.rules import EARLY_LEVELS, FLOOR_LIMIT, NOT_REUSED, REUSED
from jaxseg.study.score.units import seeds_each

REUSE, LEAD = "reuse ", "lead "
"""What keys of quantities of C11 and of C11b begin with; the layer follows."""


class Reuse(NamedTuple):
    """The reuse of each usable layer, its rho against the floor that scratch sets, as a function of the seeds kept."""

    layers: tuple[str, ...]
    of: Callable[[Seeds], Float[np.ndarray, " layers"]]
    units: Seeds
    """The unit of each seed: the seed itself or its source network."""
    unknown: tuple[str, ...]
    """The deep layers that cannot be used: what all deep levels would have to show is then not known."""

    def early(self) -> Bool[np.ndarray, " layers"]:
        """A mask of the layers on the encoder's finest two levels."""
        return np.array([encoder_level(layer) in EARLY_LEVELS for layer in self.layers])

    def deep(self) -> Bool[np.ndarray, " layers"]:
        """A mask of the layers on the encoder's other levels."""
        return np.array([is_deep(layer) for layer in self.layers])

    def num_deep(self) -> int:
        """How many deep levels there are, usable or not; they share the level of a claim."""
        return int(self.deep().sum()) + len(self.unknown)


def is_deep(layer: str) -> bool:
    """Returns whether a layer is on a level of the encoder below the early ones."""
    level = encoder_level(layer)
    return level is not None and level not in EARLY_LEVELS


def encoder_level(layer: str) -> int | None:
    """Returns the level of a layer in the encoder; None for other layers.

    >>> encoder_level("encoder/level_2"), encoder_level("decoder/level_2")
    (2, None)
    """
    found = re.match(r"encoder/level_(\d+)", layer)
    return int(found[1]) if found else None


def to_source_rows(evidence: Evidence, pair: Pair, index: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the rows of the arm against its source networks, and of the baseline against those of other seeds.

    The table lists source networks as the starts of an arm that loaded them whole, which may be another arm.
    """
    rows = evidence.table("similarity", pair.arm)
    own = rows[(rows["comparison"] == "to_source") & (rows["index"] == index) & (rows["arm_a"] == pair.arm)]
    if own.empty:
        raise Lacking(f"no to_source similarities ({index}) of {pair.arm}")
    return own, similarity_rows(evidence, "to_other_source", index, pair.baseline, str(own["arm_b"].iloc[0]))


def _reuse(evidence: Evidence, pair: Pair, index: str) -> Reuse:
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
    require_layers(usable, "layers")
    own, floor = own[:, usable], floor[:, usable]

    def of(kept: Seeds) -> Float[np.ndarray, " layers"]:
        return rho(own[..., kept].mean(-1), mean_of_pairs(floor, kept)).mean(0)

    unknown = tuple(layer for layer, known in zip(layers, usable, strict=True) if is_deep(layer) and not known)
    return Reuse(tuple(np.array(layers)[usable]), of, units(evidence, pair.arm, seeds), unknown)


class Depths(NamedTuple):
    """Reuse at the end of training and, if known, after half of the steps."""

    end: Reuse
    half: Reuse | None
    doubts: tuple[str, ...]
    """What forbids a verdict on it."""

    def quantity(self, weights: Float[np.ndarray, " layers"], name: str, confidence: float, **more: object) -> Quantity:
        """Computes a linear combination of the layers' reuse, projected by one doubling."""
        half = self.half

        def at(reuse: Reuse) -> Callable[[Seeds], float]:
            return lambda kept: float(reuse.of(kept) @ weights)

        before = None if half is None else at(half)
        return pair_quantity(name, at(self.end), before, self.end.units, confidence, **more)


def depths(evidence: Evidence, pair: Pair) -> Depths:
    """Measures reuse by layer; raises `Lacking` without a deep encoder level, and `Void` if no early one is usable."""
    rows = evidence.table("similarity", pair.arm)
    index = index_of(rows, "to_source")
    end, half = _reuse(evidence, pair, index), None
    try:
        half = _reuse(evidence.halfway(), pair, index)
        if half.layers != end.layers or not np.array_equal(half.units, end.units):
            half = None
    except (Lacking, Void):
        pass
    if not end.deep().any():
        raise Lacking(f"no encoder level below level {EARLY_LEVELS[-1]} can be used")
    if not end.early().any():
        raise Void("no early encoder level can be used")
    return Depths(end, half, tuple(few_cases(rows, index)))


def _doubts(evidence: Evidence, pair: Pair, found: Depths) -> tuple[str, ...]:
    of_units = found.end.units
    few = few_seeds(len(np.unique(of_units)), seeds_each(of_units))
    return unique([*few, *found.doubts, *doubts_of_rates(evidence, *pair)])


def reused_in_depth(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Any reused deep level supports the claim; reuse of the early levels alone contradicts it."""
    deep = [q for key, q in found.items() if key.startswith(REUSE)]
    supported = any(q.low > REUSED for q in deep)
    none = bool(deep) and all(q.high < NOT_REUSED for q in deep)
    return Ruling(supported, none and found["early"].low > NOT_REUSED)


def c11(evidence: Evidence, pair: Pair) -> Measured:
    """Tests whether feature reuse is not only early but some deep encoder level is reused too (Bonferroni)."""
    found = depths(evidence, pair)
    reuse, early = found.end, found.end.early()
    deep = np.flatnonzero(reuse.deep())
    levels = [
        found.quantity(
            np.eye(len(early))[i],
            f"reuse, {reuse.layers[i]}",
            1 - evidence.level / reuse.num_deep(),
            key=f"{REUSE}{reuse.layers[i]}",
            thresholds=(REUSED, NOT_REUSED),
        )
        for i in deep
    ]
    levels += [Quantity(f"reuse, {layer}", math.nan, key=f"{REUSE}{layer}") for layer in reuse.unknown]
    mean = found.quantity(
        early / early.sum(),
        "reuse, mean of early levels",
        evidence.confidence,
        key="early",
        thresholds=(NOT_REUSED,),
    )
    return Measured(
        (*levels, mean), reused_in_depth, _doubts(evidence, pair, found), pair, scope_of(evidence, pair.arm)
    )


def leads(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Any deep level with more reuse than the early ones supports the claim; it is contradicted if all have less."""
    return Ruling(
        any(q.low > 0 for q in found.values()),
        all(q.high < 0 for q in found.values()),
    )


def c11b(evidence: Evidence, pair: Pair) -> Measured:
    """Tests whether reuse can be larger in deeper layers, by each deep level's reuse minus that of the early ones."""
    found = depths(evidence, pair)
    reuse, early = found.end, found.end.early()
    deep = np.flatnonzero(reuse.deep())
    quantities = [
        found.quantity(
            (np.arange(len(early)) == i) - early / early.sum(),
            f"lead over early levels, {reuse.layers[i]}",
            1 - evidence.level / reuse.num_deep(),
            key=f"{LEAD}{reuse.layers[i]}",
            thresholds=(0.0,),
        )
        for i in deep
    ]
    quantities += [
        Quantity(f"lead over early levels, {layer}", math.nan, key=f"{LEAD}{layer}") for layer in reuse.unknown
    ]
    return Measured(tuple(quantities), leads, _doubts(evidence, pair, found), pair, scope_of(evidence, pair.arm))
