"""C10: whether transferred networks differ among each other as much as networks trained from scratch."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxseg.analysis.statistics import mean_of_pairs
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    doubts_of_arms,
    jackknife,
    matched,
    seeds_of_pairs,
    within_arm,
)
from jaxseg.study.claims.findings import INCONCLUSIVE, Finding, Lacking, Quantity, few_seeds, judge, quantity
from jaxseg.study.claims.representation import mean_distances, within_similarities
from jaxseg.study.claims.rules import AS_HIGH

OF_PAIRS = {"prediction": "disagreement", "parameters": "parameter_distance", "barrier": "barrier"}
"""Quantities of C10 by their names in pairs.csv; the fourth is the representation."""
TRIVIAL = frozenset({"parameters"})
"""Kinds that cannot support: weights drawn independently stay about sqrt(2) norms apart, in whatever arm."""


Matrices = tuple[Float[np.ndarray, "folds seeds seeds"], Float[np.ndarray, "folds seeds seeds"]]
"""Between runs of the baseline, and between runs of the arm."""


def _representation(evidence: Evidence, pair: Pair) -> Matrices:
    baseline, arm = mean_distances(within_similarities(evidence, pair)[0])
    return baseline, arm


def _of_pairs(evidence: Evidence, pair: Pair, name: str) -> Matrices:
    table = evidence.table("pairs", *pair)
    table = table[(table["quantity"] == name) & (table["arm_a"] == table["arm_b"])].assign(layer=name)
    rows = [table[table["arm_a"] == arm] for arm in (pair.baseline, pair.arm)]
    if any(part.empty for part in rows):
        raise Lacking(f"no {name} between runs of {pair.baseline} and of {pair.arm}")
    seeds = matched(*(seeds_of_pairs(part) for part in rows))
    baseline, arm = (within_arm(part, [name], ids)[:, 0] for part, ids in zip(rows, seeds, strict=True))
    return baseline, arm


def _ratio(
    name: str,
    baseline: Float[np.ndarray, "folds seeds seeds"],
    arm: Float[np.ndarray, "folds seeds seeds"],
    confidence: float,
) -> Quantity:
    """Mean over pairs of the arm's runs over that of the baseline's, with limits on the log scale."""

    def statistic(kept: Seeds) -> float:
        return float(mean_of_pairs(arm, kept).mean() / mean_of_pairs(baseline, kept).mean())

    return quantity(name, jackknife(statistic, arm.shape[-1], confidence, log=True), arm.shape[-1])


def c10(evidence: Evidence, pair: Pair) -> Finding:
    """Variability can be as high: ratio of mean distances between runs of the arm and of the baseline, Bonferroni."""
    kinds = ("representation", *OF_PAIRS)
    # All four share the level, those that are missing too: what was not looked at must not make the others easier.
    confidence = 1 - evidence.level / len(kinds)
    ratios: dict[str, Quantity] = {}
    absent = []
    for kind in kinds:
        try:
            baseline, arm = (
                _of_pairs(evidence, pair, OF_PAIRS[kind]) if kind in OF_PAIRS else _representation(evidence, pair)
            )
        except Lacking as error:
            absent.append(str(error))
            continue
        ratios[kind] = _ratio(f"ratio of distances, {kind}", baseline, arm, confidence)
    if not ratios:
        raise Lacking("; ".join(dict.fromkeys(absent)))
    found = judge(
        "C10",
        list(ratios.values()),
        supported=any(q.low > AS_HIGH for kind, q in ratios.items() if kind not in TRIVIAL),
        contradicted=not absent and all(q.high < AS_HIGH for q in ratios.values()),
        doubts=[*few_seeds(min(q.n_seeds for q in ratios.values())), *doubts_of_arms(evidence, pair.arm)],
    )
    if found.verdict == INCONCLUSIVE and absent:
        found = dataclasses.replace(found, reason="; ".join([found.reason, *dict.fromkeys(absent)]))
    return found
