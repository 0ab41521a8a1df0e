"""C1: whether transfer shortens training."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxseg.analysis.statistics import Interval, t_interval
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    doubts_of_arms,
    matched,
    seeds_of,
    surviving_curves,
)
from jaxseg.study.claims.findings import Finding, Lacking, Quantity, few_seeds, judge, quantity
from jaxseg.study.claims.gate import gated
from jaxseg.study.claims.rules import EVALUATIONS, SHORTER, TARGET_FRACTION
from jaxseg.study.score.comparisons import convergence


def _geometric(log_ratios: Float[np.ndarray, " seeds"], confidence: float) -> Interval:
    found = t_interval(log_ratios, confidence=confidence)
    return Interval(math.exp(found.estimate), math.exp(found.low), math.exp(found.high), found.df)


class Reached(NamedTuple):
    """When the runs of an arm reached the target."""

    seeds: Seeds
    step: Float[np.ndarray, "seeds folds"]
    """Of the last validation where it was not reached."""
    censored: Bool[np.ndarray, "seeds folds"]

    def of(self, seeds: Seeds) -> Reached:
        """Some of the seeds."""
        rows = np.searchsorted(self.seeds, seeds)
        return Reached(seeds, self.step[rows], self.censored[rows])


def _reached(evidence: Evidence, pair: Pair) -> tuple[Reached, Reached]:
    """When baseline and arm reached the target, which is the baseline's; seeds lacking in a fold are left out.

    Raises `Lacking` where nothing was validated.
    """
    curves = pd.concat([surviving_curves(evidence, arm) for arm in (pair.baseline, pair.arm)])
    # In this order: of arms without a `scratch` the first gives the target.
    found = convergence(
        curves.assign(arm=curves["arm"].map({pair.baseline: "baseline", pair.arm: "arm"})),
        ("baseline", "arm"),
        fraction=TARGET_FRACTION,
    )
    parts = []
    for name, arm in (("baseline", pair.baseline), ("arm", pair.arm)):
        rows = found[found["arm"] == name]
        if rows.empty:
            raise Lacking(f"no run of {arm} was validated while it trained")
        seeds = seeds_of(rows, "seed")
        wide = rows[rows["seed"].isin(seeds)].pivot(index="seed", columns="fold", values=["step", "censored"])
        parts.append(Reached(seeds, wide["step"].to_numpy(np.float64), wide["censored"].to_numpy(bool)))
    pairs = matched(parts[0].seeds, parts[1].seeds)
    if not len(pairs[0]):
        raise Lacking(f"no seed of {pair.baseline} or of {pair.arm} was validated while it trained")
    return parts[0].of(pairs[0]), parts[1].of(pairs[1])


def _sparse(evidence: Evidence, pair: Pair) -> list[str]:
    """The doubt that too few validations raise: times to target are known to their spacing."""
    doubts = []
    for arm in pair:
        curves = surviving_curves(evidence, arm)
        steps = np.unique(curves["step"][curves["val_dsc"].notna()])
        total = evidence.arm(arm).steps
        spacing = np.diff(steps, prepend=0).max(initial=0)
        if spacing > total / EVALUATIONS:
            doubts.append(
                f"{arm} is validated every {spacing} steps, needs at least every {max(total // EVALUATIONS, 1)} "
                f"(a fiftieth of {total})"
            )
    return doubts


def _log_ratios(baseline: Reached, arm: Reached, pretrain_steps: int = 0, *, turned: bool) -> np.ndarray:
    """Logarithm of the baseline's steps over the arm's, averaged over folds; one number a seed.

    A run that never got there counts as its whole training (baseline) or as twice that (arm), against the arm; with
    `turned` the other way round. Where both runs of a seed are censored nothing is known and the ratio is 1.
    """
    of_baseline = baseline.step * np.where(baseline.censored & turned, 2.0, 1.0)
    of_arm = arm.step * np.where(arm.censored & (not turned), 2.0, 1.0)
    ratio = np.log(of_baseline / (of_arm + pretrain_steps))
    return np.where(baseline.censored & arm.censored, 0.0, ratio).mean(1)


class Times(NamedTuple):
    """Steps to target of a baseline over those of an arm: geometric means over seeds."""

    ratio: Interval
    """Censored runs counted against the arm."""
    turned: Interval
    """Censored runs counted against the baseline."""
    total: Interval | None
    """The first with the steps of pretraining counted; None where there were none, or not here."""
    n_seeds: int
    censored: tuple[float, float]
    """Share of the baseline's and of the arm's runs that never reached the target."""
    n_runs: int
    """Of the arm, and as many of the baseline: seeds in each fold."""


def times(evidence: Evidence, pair: Pair) -> Times:
    """How many times fewer steps the arm takes than the baseline."""
    baseline, arm = _reached(evidence, pair)
    pretrain_steps = evidence.arm(pair.arm).pretrain_steps

    def ratio(extra: int = 0, *, turned: bool = False) -> Interval:
        return _geometric(_log_ratios(baseline, arm, extra, turned=turned), evidence.confidence)

    return Times(
        ratio(),
        ratio(turned=True),
        ratio(pretrain_steps) if pretrain_steps else None,
        len(baseline.seeds),
        (float(baseline.censored.mean()), float(arm.censored.mean())),
        arm.censored.size,
    )


def _shorter(evidence: Evidence, pair: Pair) -> Finding:
    found = times(evidence, pair)
    quantities = [quantity("times fewer steps", found.ratio, found.n_seeds)]
    if found.total is not None:
        quantities.append(quantity("times fewer steps, pretraining counted", found.total, found.n_seeds))
    quantities += [
        Quantity(f"share of runs that never reach the target, {name}", share, n_seeds=found.n_seeds)
        for name, share in zip((pair.baseline, pair.arm), found.censored, strict=True)
    ]
    return judge(
        "C1",
        quantities,
        supported=found.ratio.low > SHORTER,
        contradicted=found.ratio.high < 1 and found.turned.high < 1,
        doubts=[*few_seeds(found.n_seeds), *doubts_of_arms(evidence, pair.arm), *_sparse(evidence, pair)],
        shown=quantities[:1],
    )


def c1(evidence: Evidence, pair: Pair) -> Finding:
    """Transfer shortens training: geometric mean over seeds of the baseline's steps to target over the arm's."""
    return gated(
        evidence, lambda scratch: _shorter(evidence, Pair(pair.arm, scratch)), (pair.baseline, pair.arm), pair.baseline
    )
