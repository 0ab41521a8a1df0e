"""C1: whether transfer shortens training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxseg.analysis.isotonic import first_crossing, isotonic_fit
from jaxseg.analysis.statistics import Interval, t_interval
from jaxseg.study.claims.controls import POSITIVE_CONTROL
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    Seeds,
    doubts_of_rates,
    matched,
    scope_of,
    surviving_curves,
    units,
    validations,
)
from jaxseg.study.claims.findings import (
    OF_STEPS,
    Lacking,
    Measured,
    Quantity,
    Ruling,
    Void,
    few_seeds,
    quantity,
    unique,
)
from jaxseg.study.claims.rules import EVALUATIONS, LEVEL_AFTER, SHORTER, SPEED_LEVELS
from jaxseg.study.score.units import mean_of_units, seeds_each


class Reached(NamedTuple):
    """The steps at which runs reached each level; NaN if they never did."""

    seeds: Seeds
    steps: Float[np.ndarray, "runs levels"]
    last: float
    """Step of the last validation, a lower bound for runs that never reached a level."""

    @property
    def censored(self) -> Bool[np.ndarray, "runs levels"]:
        """A mask of the runs and levels that were never reached."""
        return np.isnan(self.steps)


def _of_fold_alone(evidence: Evidence, arm: str, fold: int) -> pd.DataFrame:
    """Validation DSC [seed, step] of the runs of a fold, without the start, which has no logarithm."""
    runs = validations(evidence, arm)
    runs = runs[runs.index.get_level_values("fold") == fold].droplevel("fold").dropna(axis=1, how="all")
    return runs.loc[:, runs.columns.to_numpy(np.float64) > 0]


def _reached(curves: pd.DataFrame, seeds: Seeds, levels: Float[np.ndarray, " levels"]) -> Reached:
    """Crossings of each run's isotonic fit."""
    steps = curves.columns.to_numpy(np.float64)
    found = np.full((len(seeds), len(levels)), np.nan)
    for row, values in enumerate(curves.loc[seeds].to_numpy(np.float64)):
        known = np.isfinite(values)
        fitted = isotonic_fit(values[known])
        found[row] = [first_crossing(steps[known], fitted, level) for level in levels]
    return Reached(seeds, found, float(steps[-1]))


def _of_fold(evidence: Evidence, pair: Pair, fold: int) -> tuple[Reached, Reached]:
    """When baseline and arm reached the levels in a fold, seeds matched."""
    baseline, arm = (_of_fold_alone(evidence, name, fold) for name in (pair.baseline, pair.arm))
    pairs = matched(baseline.index.to_numpy(), arm.index.to_numpy())
    if not len(pairs[0]):
        raise Void(f"no seed of {pair.baseline} or of {pair.arm} was validated while it trained")
    steps = baseline.columns.to_numpy(np.float64)
    late = steps > LEVEL_AFTER * steps[-1]
    levels = np.array(SPEED_LEVELS) * float(np.nanmean(baseline.to_numpy()[:, late]))
    return _reached(baseline, pairs[0], levels), _reached(arm, pairs[1], levels)


def _sparse(evidence: Evidence, pair: Pair) -> list[str]:
    """The doubt that too few validations raise: times to a level are known to their spacing."""
    doubts = []
    for arm in pair:
        curves = surviving_curves(evidence, arm)
        steps = np.unique(curves["step"][curves["val_dsc"].notna()])
        total = evidence.arm(arm).steps
        spacing = np.diff(steps, prepend=0).max(initial=0)
        if spacing <= total / EVALUATIONS:
            continue
        if total < EVALUATIONS:
            doubts.append(f"{arm} has {total} steps, needs at least {EVALUATIONS}, with a validation every fiftieth")
        else:
            doubts.append(
                f"{arm} is validated every {spacing} steps, needs at least every {total // EVALUATIONS} "
                f"(a fiftieth of {total})"
            )
    return doubts


def _log_ratios(baseline: Reached, arm: Reached, counted: tuple[float, float], extra: int = 0) -> np.ndarray:
    """Logarithm of the baseline's steps over the arm's, averaged over levels; one number a run.

    Args:
        baseline: When its runs got there.
        arm: The same of the arm.
        counted: As how many times its whole training a run counts that never reached a level, of the baseline and of
            the arm. Where both runs of a seed never did nothing is known, and the ratio is 1.
        extra: Steps of pretraining to add to the arm's.
    """
    sides = [
        np.where(side.censored, times * side.last, side.steps)
        for side, times in zip((baseline, arm), counted, strict=True)
    ]
    both = baseline.censored & arm.censored
    return np.where(both & (extra == 0), 0.0, np.log(sides[0] / (sides[1] + extra))).mean(1)


class Times(NamedTuple):
    """Ratios of a baseline's steps to an arm's for the same levels: geometric means over levels and seeds."""

    ratio: Interval
    """The ratio if censored runs count as their whole training."""
    against: Interval
    """The ratio if censored runs count against the arm: its own as twice their training."""
    turned: Interval
    """The ratio if censored runs count against the baseline."""
    total: Interval | None
    """`ratio` with the steps of pretraining counted; None if there were none, or they were not counted here."""
    n_seeds: int
    """Number of seeds, or of source networks if several seeds share one."""
    seeds_each: int
    """Number of seeds that share a source network; 1 if each has its own."""
    n_runs: int
    """Number of runs of the arm, and also of the baseline."""
    n_censored: tuple[int, int]
    """Numbers of runs of the baseline and of the arm that never reached the highest level."""


COUNTS: Mapping[str, tuple[float, float]] = {"ratio": (1, 1), "against": (1, 2), "turned": (2, 1)}
"""Factors on the training of runs that never reached a level, of the baseline and of the arm."""


def _folds_of(evidence: Evidence, pair: Pair) -> list[int]:
    """The folds in which the arms were trained. Raises `Void` if one of them lost all of its runs of a fold."""
    alive = {arm: set(surviving_curves(evidence, arm)["fold"]) for arm in pair}
    rows = evidence.table("curves", *pair)
    folds = sorted(rows.loc[rows["arm"].isin(pair), "fold"].unique())
    for arm, fold in itertools.product(pair, folds):
        if fold not in alive[arm]:
            raise Void(f"every run of {arm} in fold {fold} diverged")
    return list(map(int, folds))


def times(evidence: Evidence, pair: Pair) -> Times:
    """Computes how many times fewer steps the arm takes than the baseline."""
    folds = _folds_of(evidence, pair)
    found = [_of_fold(evidence, pair, fold) for fold in folds]
    pretrain_steps = evidence.arm(pair.arm).pretrain_steps or 0

    def interval(counted: tuple[float, float], extra: int = 0) -> tuple[Interval, int, int]:
        values: dict[int, list[float]] = {}
        for baseline, arm in found:
            for seed, value in zip(arm.seeds, _log_ratios(baseline, arm, counted, extra), strict=True):
                values.setdefault(int(seed), []).append(float(value))
        # A seed that lacks a fold which others have is left out: its mean would be over other cases.
        most = max(map(len, values.values()))
        whole = {seed: np.mean(own) for seed, own in values.items() if len(own) == most}
        seeds = np.array(sorted(whole))
        of_units = units(evidence, pair.arm, seeds)
        logs = mean_of_units(np.array([whole[seed] for seed in seeds]), of_units)
        limits = t_interval(logs, confidence=evidence.confidence)
        low, high = math.exp(limits.low), math.exp(limits.high)
        return Interval(math.exp(limits.estimate), low, high, limits.df), len(logs), seeds_each(of_units)

    named = {name: interval(counted) for name, counted in COUNTS.items()}
    lost = [sum(int(side[i].censored[:, -1].sum()) for side in found) for i in (0, 1)]
    return Times(
        named["ratio"][0],
        named["against"][0],
        named["turned"][0],
        interval((1, 1), pretrain_steps)[0] if pretrain_steps else None,
        *named["ratio"][1:],
        sum(len(arm.seeds) for _, arm in found),
        (lost[0], lost[1]),
    )


def speed(evidence: Evidence, pair: Pair) -> tuple[Quantity, ...]:
    """Returns the ratio of steps for each way to count censored runs, and with pretraining counted."""
    found = times(evidence, pair)

    def of(name: str, key: str, limits: Interval, *thresholds: float) -> Quantity:
        more = {"n_seeds": found.n_seeds, "seeds_each": found.seeds_each, "scale": OF_STEPS, "log": True}
        more |= {"fall": 0.0, "rise": 0.0}
        return quantity(name, limits, evidence.confidence, key=key, thresholds=thresholds, **more)

    never = f"share of runs that never reach {SPEED_LEVELS[-1]:g} of {pair.baseline}"
    shares = [
        Quantity(f"{never}, {name}", lost / found.n_runs, key=f"never {role}")
        for role, name, lost in zip(("baseline", "arm"), (pair.baseline, pair.arm), found.n_censored, strict=True)
    ]
    total = [] if found.total is None else [of("times fewer steps, pretraining counted", "total", found.total)]
    ratio = of("times fewer steps", "ratio", found.ratio, 1.0, SHORTER)
    if not any(found.n_censored) and found.against == found.ratio == found.turned:
        sides = [of("", key, found.ratio) for key in ("against", "turned")]
    else:
        sides = [of("times fewer steps, censored runs counted against the arm", "against", found.against)]
        sides += [of("times fewer steps, censored runs counted for the arm", "turned", found.turned)]
    return (ratio, *total, *sides, *shares)


def is_shorter(found: Mapping[str, Quantity], sensitive: bool) -> Ruling:
    """Supports shorter training if it holds with censored runs against it; contradicts it with them in its favour."""
    ratio, against, turned = found["ratio"], found["against"], found["turned"]
    supported = against.low > 1 and ratio.value >= SHORTER
    slower = turned.high < 1 / SHORTER
    return Ruling(supported, slower or (sensitive and turned.high < SHORTER), "slower" if slower else "")


def shows_it(evidence: Evidence) -> bool:
    """Returns whether the positive control trained faster than scratch, by what a verdict on it could rest on.

    Its source is what the target leaves of its cases, so that it cannot train on all of them: where it has no runs of
    this training set size, those of its largest count.
    """
    control = Pair(POSITIVE_CONTROL)
    try:
        there = evidence.at(size_of_control(evidence, control))
        found = times(there, control)
        doubts = [
            *few_seeds(found.n_seeds, found.seeds_each),
            *doubts_of_rates(there, *control),
            *_sparse(there, control),
        ]
        return not doubts and found.against.low > 1
    except (Lacking, Void):
        return False


def size_of_control(evidence: Evidence, control: Pair) -> int:
    """Returns the training set size at which a control is judged: that of the evidence, or the largest that it has.

    Raises `Lacking` if it has none that its baseline has too.
    """
    rows = evidence.tables.get("curves", pd.DataFrame(columns=["arm", "train_cases"]))
    sizes = [set(rows.loc[rows["arm"] == arm, "train_cases"]) for arm in control]
    shared = sizes[0] & sizes[1]
    if not shared:
        raise Lacking(f"no curves of {control.arm} and {control.baseline} at one size")
    return evidence.size if evidence.size in shared else int(max(shared, key=evidence.record.number_of_cases))


def c1(evidence: Evidence, pair: Pair) -> Measured:
    """Tests whether transfer shortens training, by the geometric mean of the baseline's steps over the arm's."""
    quantities = speed(evidence, pair)
    few = few_seeds(quantities[0].n_seeds, quantities[0].seeds_each)
    doubts = [*few, *doubts_of_rates(evidence, *pair), *_sparse(evidence, pair)]
    return Measured(
        quantities,
        is_shorter,
        unique(doubts),
        (pair.baseline, pair.arm),
        scope_of(evidence, pair.arm),
        lambda: shows_it(evidence),
        ("ratio",),
    )
