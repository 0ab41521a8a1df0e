"""C5, C6: what training from scratch does to the encoder's filters.

The number of a run averages over the encoder's filters, so that layers with more filters weigh more. Intervals are
Student's t over seeds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxseg.analysis.statistics import t_interval
from jaxseg.study.claims.dsc import blocks_of
from jaxseg.study.claims.evidence import Alone, Evidence, Seeds, run_values
from jaxseg.study.claims.findings import Lacking, Measured, Quantity, Ruling, few_seeds, quantity, unique
from jaxseg.study.claims.rest import next_change
from jaxseg.study.claims.rules import (
    CONTROL_SHARE,
    CONTROLLED,
    DELTA,
    LITTLE_DEG,
    MIN_RATES,
    MUCH_DEG,
    RANDOM,
    RATE_FACTOR,
    STRUCTURED,
)

BySeed = tuple[Seeds, Float[np.ndarray, " seeds"]]

ANGLE, NOISE = "angle ", "noise "
"""What keys of quantities of C5 begin with; the rate follows."""


def _encoder_rows(evidence: Evidence, arm: str) -> pd.DataFrame:
    rows = evidence.table("filters", arm)
    rows = rows[(rows["arm"] == arm) & rows["layer"].str.startswith("encoder/") & rows["trained"]]
    if rows.empty:
        raise Lacking(f"no trained encoder filters of {arm}")
    return rows


def weighted_median(values: Float[np.ndarray, " layers"], weights: Float[np.ndarray, " layers"]) -> float:
    """Computes the value below which half of the weight lies, interpolating linearly between the two middle layers.

    >>> weighted_median(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 1.0]))
    2.0
    """
    order = np.argsort(values, kind="stable")
    weights = weights[order]
    centres = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(0.5, centres, values[order]))


def _median_over_filters(rows: pd.DataFrame, column: str) -> BySeed:
    """The median of each run's filters, from the layers' medians."""
    known = rows.dropna(subset=[column])
    if known.empty:
        return np.zeros(0, np.int64), np.zeros(0)
    parts = [
        (seed, fold, weighted_median(run[column].to_numpy(), run["filters"].to_numpy(np.float64)))
        for (seed, fold), run in known.groupby(["seed", "fold"])
    ]
    return run_values(pd.DataFrame(parts, columns=["seed", "fold", "value"]), "value")


def _projected(
    evidence: Evidence, name: str, of: Callable[[Evidence], BySeed], confidence: float, **more: object
) -> Quantity:
    """A mean over seeds, with what it may change by in one more doubling where it was measured halfway."""
    seeds, values = of(evidence)
    fall = rise = math.nan
    try:
        earlier, before = of(evidence.halfway())
        _, here, there = np.intersect1d(seeds, earlier, return_indices=True)
        if len(here) > 1:
            fall, rise = next_change(values[here] - before[there])
    except Lacking:
        pass
    numbers = {"n_seeds": len(seeds), "fall": fall, "rise": rise, **more}
    return quantity(name, t_interval(values, confidence=confidence), confidence, **numbers)


_UNKNOWN = "growth not known: needs analysis.half", "a look at the networks after half of their steps (analysis.half)"
"""The note of a rule that only projected limits can satisfy, and what would decide it."""

# ------------------------------------------------------------------------------------------------------------- C5


def arms_by_rate(evidence: Evidence, arm: str) -> dict[float, str]:
    """Returns an arm and those that differ from it only in their learning rate, keyed by rate.

    Raises `Lacking` if there are not three rates, each about a factor of 3 or more above another of them.
    """
    own = evidence.arm(arm)
    found: dict[float, str] = {}
    for name, other in ((arm, own), *evidence.record.arms.items()):
        at = other.rates.get(evidence.size, ())
        if len(at) == 1 and other.like == own.like:
            found.setdefault(at[0], name)
    rates = sorted(found)
    apart: list[float] = []
    for rate in rates:
        if not apart or rate >= RATE_FACTOR * apart[-1]:
            apart.append(rate)
    # Rates between these make the grid no wider, but each may be the best one, and what it does counts.
    if len(apart) < MIN_RATES:
        raise Lacking(
            f"needs {arm} at {MIN_RATES} learning rates or more, each about 3 times the one below; has "
            f"{', '.join(f'{rate:g}' for rate in rates) or 'no rate on record'}"
        )
    return {rate: found[rate] for rate in rates}


def _as_good(evidence: Evidence, by_rate: Mapping[float, str]) -> list[float]:
    """Rates at which mean DSC is within `DELTA` of the best rate's; one at which every run diverged has no mean."""
    means, lacking = dict[float, float](), Lacking(f"no scores at {evidence.size or 'all'} training cases")
    for rate, arm in by_rate.items():
        try:
            means[rate] = float(np.mean([d.mean() for d in blocks_of(evidence, {(arm, evidence.size): 1.0}).d]))
        except Lacking as error:
            lacking = error
    if not means:
        raise lacking
    best = max(means.values())
    return [rate for rate, mean in means.items() if mean > best - DELTA]


def changes_little(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Any rate that trains as well as the best supports the claim; only all of them together contradict it."""
    angles = [q for key, q in found.items() if key.startswith(ANGLE)]
    unknown = any(q.high <= LITTLE_DEG and math.isnan(q.rise) for q in angles)
    supported = any(q.projected_high <= LITTLE_DEG for q in angles)
    contradicted = bool(angles) and all(q.low > MUCH_DEG for q in angles)
    if supported or contradicted:
        return Ruling(supported, contradicted)
    note = "depends on the rate" if len({q.value > LITTLE_DEG for q in angles}) > 1 else ""
    return Ruling(False, False, *(_UNKNOWN if unknown else (note,)))


def at_ends(quantities: Sequence[Quantity]) -> tuple[Quantity, ...]:
    """Returns the angles of C5 at the slowest and the fastest of a study's rates, by these names instead of the rates.

    Studies choose their rates, so that few targets share one. Filters turn further at a higher rate, so what holds at
    both ends holds between them; that a rate is the slowest or the fastest does not hang on what was measured there.
    """
    found = {q.key: q for q in quantities}
    rates = sorted((key.removeprefix(ANGLE) for key in found if key.startswith(ANGLE)), key=float)
    ends = {"slowest": rates[0], "fastest": rates[-1]} if rates else {}
    return tuple(
        dataclasses.replace(q, name=q.name.replace(f"rate {rate}", f"the {end} rate"), key=f"{kind}{end}")
        for end, rate in ends.items()
        for kind in (ANGLE, NOISE)
        if (q := found.get(f"{kind}{rate}")) is not None
    )


def _angles(evidence: Evidence, arm: str) -> BySeed:
    return _median_over_filters(_encoder_rows(evidence, arm), "angle_deg")


def c5(evidence: Evidence, alone: Alone) -> Measured:
    """Tests whether filters change little, by the median angle between their start and end at rates that train well."""
    by_rate = arms_by_rate(evidence, alone.arm)
    rates = _as_good(evidence, by_rate)
    # Any of the rates may support, so that they share the level.
    confidence = 1 - evidence.level / len(rates)
    quantities, seeds = [], []
    for rate in rates:
        arm = by_rate[rate]
        _encoder_rows(evidence, arm)
        angle = _projected(
            evidence,
            f"median angle at rate {rate:g}, degrees",
            functools.partial(_angles, arm=arm),
            confidence,
            key=f"{ANGLE}{rate:g}",
            thresholds=(LITTLE_DEG, MUCH_DEG),
        )
        quantities.append(angle)
        seeds.append(angle.n_seeds)
        rows = _encoder_rows(evidence, arm)
        if "angle_noise_deg" in rows:
            noise = _median_over_filters(rows, "angle_noise_deg")[1]
            if len(noise):
                name = f"noise alone would turn them, at rate {rate:g}, degrees"
                quantities.append(Quantity(name, float(noise.mean()), key=f"{NOISE}{rate:g}"))
    arms = tuple(by_rate[rate] for rate in rates)
    return Measured(tuple(quantities), changes_little, unique(few_seeds(min(seeds))), arms)


# ------------------------------------------------------------------------------------------------------------- C6


def randomness(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Computes the four quantities of each row of filters.csv; NaN if a test does not apply to a layer.

    Each has a limit in `RANDOM` and one in `STRUCTURED`. All are one-sided, as an excess below zero is not structure.
    """
    nothing = pd.Series(np.nan, rows.index)
    return {
        # Against the run's own start, so that what an initialiser brings with it does not count.
        "distribution": rows["distribution_end"] - rows["distribution_start"],
        # Absolute in each layer: arrangements of opposite kinds must not cancel.
        "arrangement": (rows["moran_end"] - rows["moran_expected"]).abs(),
        "spectrum": rows["spectral_end"] - rows["spectral_start"],
        # Against their own weights permuted: start against end is told apart on pure noise.
        "auc": rows.get("auc_permuted", nothing),
    }


_NAMES = {
    "distribution": "Kolmogorov-Smirnov excess",
    "arrangement": "Moran's I, distance from chance",
    "spectrum": "excess spectral energy",
    "auc": "AUC, filters against their own weights permuted",
}


def _over_layers(rows: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Mean over the filters of each run, in the layers where the test applies."""
    known = rows.assign(value=values, weight=rows["filters"].astype(float)).dropna(subset=["value"])
    known["value"] *= known["weight"]
    sums = known.groupby(["seed", "fold"])[["value", "weight"]].sum()
    return (sums["value"] / sums["weight"]).rename("value").reset_index()


def _randomness_by_seed(evidence: Evidence, arm: str, name: str) -> BySeed:
    rows = _encoder_rows(evidence, arm)
    values = randomness(rows)[name]
    if not values.notna().any():
        return np.zeros(0, np.int64), np.zeros(0)
    return run_values(_over_layers(rows, values), "value")


def controlled_share(evidence: Evidence, name: str, rows: pd.DataFrame) -> float:
    """Computes the share of filters in layers where a test found its control, among layers that were given one.

    Each fold has starts and controls of its own: a control that was found in one says nothing of the others.

    Args:
        evidence: The study.
        name: The test, a key of `RANDOM`.
        rows: Rows of filters.csv of the arm whose controls count.
    """
    controls = evidence.table("filter_controls")
    own = controls[(controls["quantity"] == name) & controls["arm"].isin(rows["arm"])]
    weights = own["layer"].map(rows.groupby("layer")["filters"].first()).fillna(0.0)
    found = own["smallest_share"] <= CONTROL_SHARE
    return float(weights[found].sum() / weights.sum()) if weights.sum() else 0.0


def _without_control(evidence: Evidence, rows: pd.DataFrame) -> str:
    """Tests whose control was not found: their silence means nothing."""
    shares = {name: controlled_share(evidence, name, rows) for name in RANDOM}
    return "; ".join(
        f"the test of {_NAMES[name]} finds its control at a share of {CONTROL_SHARE} in layers with only {share:.0%} "
        f"of the filters, needs {CONTROLLED:.0%}"
        for name, share in shares.items()
        if share < CONTROLLED
    )


def look_random(uncontrolled: str) -> Callable[[Mapping[str, Quantity], bool], Ruling]:
    """Returns the rule of C6; an empty text means that the study's controls were found.

    Only a test that finds nothing needs its control: one that finds structure has shown that it can.
    """

    def rule(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
        within = all(found[name].projected_high <= limit for name, limit in RANDOM.items())
        contradicted = any(found[name].low > limit for name, limit in STRUCTURED.items())
        if within and uncontrolled:
            return Ruling(False, contradicted, uncontrolled)
        silent = all(found[name].high <= limit for name, limit in RANDOM.items())
        unknown = [name for name in RANDOM if math.isnan(found[name].rise)]
        return Ruling(within, contradicted, *(_UNKNOWN if silent and unknown and not within else ()))

    return rule


def c6(evidence: Evidence, alone: Alone) -> Measured:
    """Tests whether trained filters still look random in distribution, arrangement, spectrum and permutation."""
    rows = _encoder_rows(evidence, alone.arm)
    quantities: Sequence[Quantity] = [
        _projected(
            evidence,
            _NAMES[name],
            functools.partial(_randomness_by_seed, arm=alone.arm, name=name),
            evidence.confidence,
            key=name,
            thresholds=(RANDOM[name], STRUCTURED[name]),
        )
        for name in RANDOM
    ]
    # An index that tables of an earlier version do not have cannot support, nor does it hide what others show.
    seeds = min((q.n_seeds for q in quantities if q.n_seeds), default=0)
    uncontrolled = _without_control(evidence, rows)
    doubts = unique(few_seeds(seeds))
    return Measured(tuple(quantities), look_random(uncontrolled), doubts, (alone.arm,), unsupported=uncontrolled)
