"""C10: whether networks fine-tuned from one source differ among each other as much as networks trained from scratch.

Runs that each start from a source network of their own are as far apart as their sources are, whatever fine-tuning
does. What transfer does to variability shows between the fine-tunings of one source: several for each of at least
eight sources, or all of a single given one, which then is all that the finding speaks of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from jaxseg.analysis.folds import standard_error, t_quantile
from jaxseg.analysis.statistics import Interval, mean_of_pairs
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    doubts_of_rates,
    jackknife,
    layers_of,
    scope_of,
    seeds_of_pairs,
    units,
    within_arm,
)
from jaxseg.study.claims.findings import Lacking, Measured, Quantity, Ruling, Void, few_seeds, quantity, unique
from jaxseg.study.claims.representation import few_cases, index_of, require_layers, similarity_rows, usable_in_pairs
from jaxseg.study.claims.rules import AS_HIGH
from jaxseg.study.claims.study_tables import ArmRecord, Record
from jaxseg.study.score.units import seeds_each

JUDGED = ("representation", "prediction")
"""Distances that decide. They share the level, also with a missing one, which must not make the other easier."""
SHOWN = {"parameters": "parameter_distance_aligned", "barrier": "barrier_aligned"}
"""Distances that are only shown, after permutation alignment, with their names in pairs.csv."""

Matrix = Float[np.ndarray, "seeds seeds"]
"""Distances between runs of an arm, averaged over folds; NaN for pairs that were not compared and on the diagonal."""


def _is_nested(arm: ArmRecord) -> bool:
    """Whether several seeds of an arm share a source network."""
    return arm.one_source or len(set(arm.sources.values())) < len(arm.sources)


def nested_pair(record: Record, pair: Pair) -> Pair:
    """Returns the arms of C10: in the place of an arm whose seeds have a source each, one like it whose seeds share.

    That arm is named after the other, and trained in the same way from networks of the same source; of several, one
    with several source networks comes first. Where there is none, the pair stays as it is.
    """
    own = record.arms.get(pair.arm)
    if own is not None and _is_nested(own):
        return pair

    def alike(other: ArmRecord) -> bool:
        if own is None:
            return (other.init, other.freeze) == ("pretrained", "none")
        return (other.like, other.source, other.seen) == (own.like, own.source, own.seen)

    named = {name: arm for name, arm in record.arms.items() if name.startswith(f"{pair.arm}_") and _is_nested(arm)}
    found = sorted((name for name, arm in named.items() if alike(arm)), key=lambda name: named[name].one_source)
    return pair._replace(arm=found[0]) if found else pair


def _representation(evidence: Evidence, arm: str) -> tuple[Seeds, Matrix]:
    index = index_of(evidence.table("similarity", arm), "within_arm")
    rows = similarity_rows(evidence, "within_arm", index, arm)
    layers, seeds = layers_of(rows), seeds_of_pairs(rows)
    values = within_arm(rows, layers, seeds)
    usable = usable_in_pairs(values)
    require_layers(usable, "layers")
    return seeds, 1 - values[:, usable].mean((0, 1))


def _of_pairs(evidence: Evidence, arm: str, name: str) -> tuple[Seeds, Matrix]:
    rows = evidence.table("pairs", arm)
    rows = rows[(rows["quantity"] == name) & (rows["arm_a"] == arm) & (rows["arm_b"] == arm)].assign(layer=name)
    if rows.empty:
        raise Lacking(f"no {name} between runs of {arm}")
    seeds = seeds_of_pairs(rows)
    return seeds, within_arm(rows, [name], seeds).mean((0, 1))


def _distances(evidence: Evidence, arm: str, kind: str) -> tuple[Seeds, Matrix]:
    if kind == "representation":
        return _representation(evidence, arm)
    return _of_pairs(evidence, arm, {"prediction": "disagreement", **SHOWN}[kind])


def within_sources(matrix: Matrix, sources: Seeds) -> Matrix:
    """Keeps the distances between runs of the same source network; others become NaN."""
    return np.where(sources[:, None] == sources[None, :], matrix, np.nan)


def ratio_of_independent(numerator: Interval, denominator: Interval) -> tuple[float, float, float]:
    """Returns the logarithm of a ratio of independent quantities, with its standard error and degrees of freedom.

    Args:
        numerator: An estimate whose 95 % limits were computed on the logarithm.
        denominator: The same.
    """
    errors = [standard_error(math.log(q.low), math.log(q.high), q.df, 0.95) ** 2 for q in (numerator, denominator)]
    total = sum(errors)
    spread = errors[0] ** 2 / numerator.df + errors[1] ** 2 / denominator.df
    df = total**2 / spread if spread else min(numerator.df, denominator.df)
    return math.log(numerator.estimate / denominator.estimate), math.sqrt(total), df


def _ratio(evidence: Evidence, arm: str, baseline: str, kind: str, confidence: float) -> tuple[Quantity, int]:
    """Mean distance within a source over that among the baseline's runs, and the number of these.

    The arm's error leaves out a source with all its runs, the baseline's a run: they share nothing, so that variances
    of the logarithms add.
    """
    seeds, matrix = _distances(evidence, arm, kind)
    one_source = evidence.arm(arm).one_source
    sources = np.zeros_like(seeds) if one_source else units(evidence, arm, seeds)
    within = within_sources(matrix, sources)
    counted = np.isfinite(within) & ~np.eye(len(seeds), dtype=bool)
    if not counted.any():
        raise Lacking(f"no {kind} between runs of one source network of {arm}")
    # Sources of which only one run is left have no pair, and no part.
    kept = counted.any(1)
    left_out = seeds[kept] if one_source else sources[kept]
    of_arm = _mean(within[kept][:, kept], left_out)
    others, among = _distances(evidence, baseline, kind)
    of_baseline = _mean(among, others)
    if math.isnan(of_arm.low) or math.isnan(of_baseline.low):
        limits = Interval(of_arm.estimate / of_baseline.estimate, math.nan, math.nan, math.nan)
    else:
        log, error, df = ratio_of_independent(of_arm, of_baseline)
        half = t_quantile(df, confidence) * error
        limits = Interval(math.exp(log), math.exp(log - half), math.exp(log + half), df)
    more = {
        "n_seeds": len(np.unique(left_out)),
        "seeds_each": seeds_each(left_out),
        "log": True,
        "thresholds": (AS_HIGH,),
        "key": kind,
    }
    return quantity(f"{kind}, within a source over among {baseline}", limits, confidence, **more), len(others)


def _mean(matrix: Matrix, of_units: Seeds) -> Interval:
    """Mean over pairs, on the log scale, leaving out a unit at a time."""
    return jackknife(lambda kept: float(mean_of_pairs(matrix, kept)), of_units, 0.95, log=True)


def as_variable(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Applies the rule of C10, which can be contradicted only if every deciding distance was measured."""
    ratios = [found[kind] for kind in JUDGED if kind in found]
    complete = len(ratios) == len(JUDGED)
    return Ruling(any(q.low > AS_HIGH for q in ratios), complete and all(q.high < AS_HIGH for q in ratios))


def c10(evidence: Evidence, pair: Pair) -> Measured:
    """Tests whether variability can be as high, by distances within a source over those among scratch (Bonferroni)."""
    arm = pair.arm
    if not _is_nested(evidence.arm(arm)):
        raise Lacking("needs several fine-tunings of each source network (pretrain.runs_per_source = 2)")
    evidence.arm(pair.baseline)
    confidence = 1 - evidence.level / len(JUDGED)
    ratios: dict[str, Quantity] = {}
    among: dict[str, int] = {}
    absent: list[str] = []
    for kind in (*JUDGED, *SHOWN):
        try:
            ratios[kind], among[kind] = _ratio(evidence, arm, pair.baseline, kind, confidence)
        except (Lacking, Void) as error:
            absent.append(str(error))
    judged = [ratios[kind] for kind in JUDGED if kind in ratios]
    if not judged:
        raise Lacking("; ".join(dict.fromkeys(absent)))
    fewest = min(judged, key=lambda q: q.n_seeds)
    doubts = [
        *few_seeds(fewest.n_seeds, fewest.seeds_each, of=arm),
        *few_seeds(min(among[q.key] for q in judged), of=pair.baseline),
        *doubts_of_rates(evidence, arm, pair.baseline),
    ]
    if JUDGED[0] in ratios:
        rows = evidence.table("similarity", arm)
        doubts += few_cases(rows, index_of(rows, "within_arm"))
    return Measured(
        tuple(ratios.values()),
        as_variable,
        unique(doubts),
        (pair.baseline, arm),
        scope_of(evidence, arm),
        shown=JUDGED,
    )
