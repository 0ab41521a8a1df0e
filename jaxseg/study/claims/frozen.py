"""C7, C8: how accurate a network is whose encoder stays at its random initialisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxseg.analysis.statistics import mean_of_pairs
from jaxseg.study.claims.dsc import dsc_quantity
from jaxseg.study.claims.evidence import (
    Evidence,
    Seeds,
    by_layer_and_seed,
    by_layer_and_seeds,
    doubts_of_rates,
    jackknife,
    layers_of,
    seeds_of,
)
from jaxseg.study.claims.findings import (
    OF_DSC,
    Lacking,
    Measured,
    Quantity,
    Ruling,
    Void,
    quantity,
    unique,
    unless_projected,
)
from jaxseg.study.claims.representation import index_of, rho, similarity_rows, usable_in_pairs, usable_layers
from jaxseg.study.claims.rules import FLOOR_LIMIT, NEARLY, OF_SCRATCH, VOID


class Trio(NamedTuple):
    """The arms of C7."""

    frozen: str = "frozen_random_encoder"
    scratch: str = "scratch"
    prior: str = "prior"


class Idle(NamedTuple):
    """The arms of C8."""

    frozen: str = "frozen_random_encoder"
    scratch: str = "scratch"
    none: str = "pooled_encoder"


def _ratio_of_sides(
    evidence: Evidence, name: str, above: Mapping[str, float], below: Mapping[str, float]
) -> Quantity | None:
    """A ratio of two contrasts as a number to look at; None where the lower one is not above 0."""
    values = [
        dsc_quantity(evidence, name, {(arm, evidence.size): w for arm, w in part.items()})[0].value
        for part in (above, below)
    ]
    return Quantity(name, values[0] / values[1], key=name) if values[1] > 0 else None


def is_accurate(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Supports the claim at 0.9 of scratch or more, if that is at least half way from the prior to scratch."""
    first, second = found["of scratch"], found["half way"]
    supported, contradicted = first.projected_low > 0 and second.projected_low > 0, first.projected_high < 0
    if supported or contradicted:
        return Ruling(supported, contradicted)
    if first.high < 0:
        return Ruling(False, False, *unless_projected(True, first.projected_high))
    now = first.low > 0 and second.low > 0
    return Ruling(False, False, *unless_projected(now, first.projected_low, second.projected_low))


def c7(evidence: Evidence, arms: Trio) -> Measured:
    """Tests whether a frozen random encoder is quite accurate: at 0.9 of scratch and half way to it from the prior.

    Raises `Void` if the mean label map alone is nearly as good as scratch.
    """
    frozen, scratch, prior = arms
    size, doubts, quantities = evidence.size, doubts_of_rates(evidence, frozen, scratch), []
    margins = (
        ("of scratch", f"{frozen} - {OF_SCRATCH} {scratch}", {frozen: 1.0, scratch: -OF_SCRATCH}),
        ("half way", f"{frozen} - 0.5 {scratch} - 0.5 {prior}", {prior: -0.5, frozen: 1.0, scratch: -0.5}),
        ("prior", f"{prior} - {VOID} {scratch}", {prior: 1.0, scratch: -VOID}),
    )
    for key, name, weights in margins:
        found, more = dsc_quantity(evidence, name, {(arm, size): w for arm, w in weights.items()}, key=key)
        quantities.append(found)
        doubts += more
    if quantities[2].value >= 0:
        raise Void(f"the mean label map alone reaches {VOID:.0%} of {scratch}")
    shares = (
        _ratio_of_sides(evidence, f"{frozen} / {scratch}", {frozen: 1.0}, {scratch: 1.0}),
        _ratio_of_sides(
            evidence,
            f"({frozen} - {prior}) / ({scratch} - {prior})",
            {frozen: 1.0, prior: -1.0},
            {scratch: 1.0, prior: -1.0},
        ),
    )
    return Measured(
        (*quantities, *(share for share in shares if share is not None)),
        is_accurate,
        unique(doubts),
        (scratch, frozen),
        shown=("of scratch", "half way"),
    )


# ------------------------------------------------------------------------------------------------------------- C8


def need_not_learn(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Supports the claim if the arm is nearly as good as scratch and better than one without an encoder."""
    nearly, used = found["nearly"], found["used"]
    supported, contradicted = nearly.projected_low > 0 and used.projected_low > 0, nearly.projected_high < 0
    if supported or contradicted:
        return Ruling(supported, contradicted)
    if nearly.projected_low > 0 and used.high < 0:
        return Ruling(False, False, "the encoder is idle: without any the network does better")
    if nearly.high < 0:
        return Ruling(False, False, *unless_projected(True, nearly.projected_high))
    now = nearly.low > 0 and used.low > 0
    return Ruling(False, False, *unless_projected(now, nearly.projected_low, used.projected_low))


def _kept(evidence: Evidence, arm: str, index: str) -> Quantity:
    """Mean rho of the encoder's layers between end and own start, above the starts of other seeds."""
    own_rows, other_rows = (similarity_rows(evidence, name, index, arm) for name in ("own_start", "other_start"))
    layers = [layer for layer in layers_of(own_rows) if layer.startswith("encoder/")]
    seeds = np.intersect1d(seeds_of(own_rows, "seed_a"), seeds_of(other_rows, "seed_a"))
    own = by_layer_and_seed(own_rows, layers, seeds)
    other = by_layer_and_seeds(other_rows, layers, seeds, seeds)
    floor = mean_of_pairs(other, np.arange(len(seeds))).mean(0)
    usable = usable_layers(own) & usable_in_pairs(other) & (floor <= FLOOR_LIMIT)
    if not usable.any():
        raise Void("no encoder layer can be used")
    own, other = own[:, usable], other[:, usable]

    def statistic(kept: Seeds) -> float:
        return float(rho(own[..., kept].mean(-1), mean_of_pairs(other, kept)).mean())

    name = f"rho of end and own start, {index}"
    return quantity(name, jackknife(statistic, seeds, evidence.confidence), evidence.confidence, n_seeds=len(seeds))


def _similarities(evidence: Evidence, arm: str) -> list[Quantity]:
    """How far the encoder stays as it started, by two indexes: reported, without a part in the verdict."""
    found = []
    try:
        rows: pd.DataFrame = evidence.table("similarity", arm)
        for index in (index_of(rows, "own_start"), "procrustes"):
            found.append(_kept(evidence, arm, index))
    except (Lacking, Void):
        pass
    return found


def c8(evidence: Evidence, arms: Idle) -> Measured:
    """Tests whether the encoder need not learn: frozen, it is nearly as good as scratch and better than none."""
    frozen, scratch, none = arms
    size, doubts, quantities = evidence.size, doubts_of_rates(evidence, *arms), []
    differences = (
        ("nearly", f"{frozen} - {scratch}", {frozen: 1.0, scratch: -1.0}),
        ("used", f"{frozen} - {none}", {frozen: 1.0, none: -1.0}),
    )
    for key, name, weights in differences:
        found, more = dsc_quantity(
            evidence, name, {(arm, size): w for arm, w in weights.items()}, key=key, scale=OF_DSC
        )
        quantities.append(found)
        doubts += more
    quantities[0] = shifted(quantities[0], NEARLY, f"{frozen} - ({scratch} - {NEARLY})")
    return Measured(
        (*quantities, *_similarities(evidence, scratch)),
        need_not_learn,
        unique(doubts),
        arms,
        shown=("nearly", "used"),
    )


def shifted(found: Quantity, by: float, name: str) -> Quantity:
    """Adds a constant to a quantity; the result has no grade."""
    moved = {field: getattr(found, field) + by for field in ("value", "low", "high")}
    return dataclasses.replace(found, name=name, scale=None, **moved)
