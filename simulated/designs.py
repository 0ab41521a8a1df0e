"""Simulated designs: rotating folds, two looks, comparisons of equals, and targets taken together.

Beside settings that ask for a verdict, `COVERAGE` and `NOMINAL` hold shares that must lie near a number: how often an
interval covers the truth, and how often a comparison of two equal arms finds something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxseg.analysis.folds import t_quantile
from jaxseg.study.claims import differing, pooling
from jaxseg.study.claims.dsc import gain
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import OF_STEPS, Measured, Quantity, judge
from jaxseg.study.claims.judging import first_seeds, judge_claims, look_levels
from jaxseg.study.claims.ranking import Ranking, rank
from jaxseg.study.claims.training import is_shorter, speed
from simulated import tables as sim
from simulated.settings import AT_REST, FALSE, IN_FOLDS, LAST_DOUBLING, ONE_STUDY, OPPOSITE, TRUE, Setting

# ---------------------------------------------------------------------------------------------------------- two looks


def _two_looks(rng, speed: float, seeds: int = 16) -> sim.StudyTables:
    speeds = {"scratch": 1.0, "transfer": speed}
    rec = sim.record(*speeds)._replace(looks=(8, 16))
    return sim.study(rec, curves=sim.curves(rng, speeds, seeds=seeds, gain=LAST_DOUBLING))


def _look_verdict(rng, speed: float) -> str:
    return judge_claims(_two_looks(rng, speed))["C1"].verdict


def _either_side(rng) -> bool:
    """Whether two looks at a gain that is not there find one, or a loss."""
    found = []
    both = {"scratch": {0: 0.8}, "transfer": {0: 0.8}}
    study = sim.study(sim.record(*both), cases=sim.cases(rng, both, seeds=16, groups=42, spread=AT_REST))
    for look, level in zip((8, 16), look_levels((8, 16)), strict=True):
        q, _ = gain(gather(first_seeds(study, look), level=level), Pair())
        found.append(q.low > 0 or q.high < 0)
    return any(found)


# ------------------------------------------------------------------------------------------------- intervals, equals


def _covers(rng, seeds: int, folds: int, groups: int, spread: sim.Spread) -> bool:
    """Whether the interval of the gain covers it, where each seed is tested on one of several folds."""
    levels = {"scratch": {0: 0.80}, "transfer": {0: 0.82}}
    cases = sim.cases(rng, levels, seeds=seeds, folds=folds, groups=groups, rotate=True, spread=spread)
    found, _ = gain(gather(sim.study(sim.record(*levels), cases=cases)), Pair())
    return found.low <= 0.02 <= found.high


def _hearts(rng) -> bool:
    return _covers(rng, 20, 5, 7, (0.057, 0.035, 0.085))


def _nerves(rng) -> bool:
    return _covers(rng, 12, 3, 4, (0.028, 0.002, 0.021))


def _equals(rng) -> bool:
    """Whether a placebo's gain is told from nothing."""
    levels = {"scratch": {0: 0.8}, "scratch_b": {0: 0.8}}
    cases = sim.cases(rng, levels, groups=42, spread=AT_REST, first_seed={"scratch_b": 1000})
    found, _ = gain(gather(sim.study(sim.record(*levels), cases=cases)), Pair("scratch_b"))
    return found.low > 0 or found.high < 0


def _equal_speeds(rng) -> bool:
    """Whether a placebo's speed is told from scratch's."""
    speeds = {"scratch": 1.0, "scratch_b": 1.0}
    curves = sim.curves(rng, speeds, gain=LAST_DOUBLING, first_seed={"scratch_b": 1000})
    found = sim_speed(sim.study(sim.record(*speeds), curves=curves))
    return found.low > 1 or found.high < 1


def sim_speed(study: sim.StudyTables) -> Quantity:
    """The ratio of steps of the placebo."""
    return speed(gather(study), Pair("scratch_b"))[0]


STARTS = ("transfer_a", "transfer_b", "transfer_c", "transfer_d")


def starts_study(rng, *gains: float, seeds: int = 8, groups: int = 42, **more) -> sim.StudyTables:
    """A study at rest with a start for each gain, from a source of its own, beside scratch and its placebo."""
    levels = {"scratch": {0: 0.8}, "scratch_b": {0: 0.8}}
    levels |= {name: {0: 0.8 + gain} for name, gain in zip(STARTS, gains, strict=False)}
    arms = {
        name: sim.arm(init="pretrained", pretrain_steps=500, source=f"set {name[-1]}", start=name)
        for name in STARTS[: len(gains)]
    }
    first = {"scratch_b": 1000}
    cases = sim.cases(rng, levels, **{"seeds": seeds, "groups": groups, "spread": AT_REST, "first_seed": first, **more})
    rec = sim.record(*levels)
    return sim.study(rec._replace(arms=rec.arms | arms), cases=cases)


def _ranked(rng, *gains: float) -> Ranking:
    found = rank(gather(starts_study(rng, *gains)))
    assert found is not None
    return found


def _one_is_better(rng) -> bool:
    """Whether some of four starts that gain nothing is said to be better than from scratch."""
    return bool(_ranked(rng, 0.0, 0.0, 0.0, 0.0).better)


def _one_is_left_out(rng) -> bool:
    """Whether some of four equal starts is said to be worse than another."""
    return len(_ranked(rng, 0.02, 0.02, 0.02, 0.02).may_be_best) < len(STARTS)


def _the_best_is_found(rng) -> bool:
    """Whether the one start of four that gains is among those that may be the best, and better than from scratch."""
    found = _ranked(rng, 0.0, 0.03, 0.0, 0.0)
    return STARTS[1] in found.may_be_best and STARTS[1] in found.better


class Share(NamedTuple):
    """Something that happens in a share of the studies."""

    name: str
    low: float
    high: float
    """Between which the share must lie."""
    happens: Callable[[np.random.Generator], bool]


SHARES = [
    Share("coverage, 36 hearts in 5 rotating folds, 20 seeds", 0.93, 0.97, _hearts),
    Share("coverage, 12 patients in 3 rotating folds, 12 seeds", 0.93, 0.97, _nerves),
    Share("two looks find a gain or loss that is not there", 0.0, 0.05, _either_side),
    Share("a placebo's gain is told from nothing", 0.0, 0.05, _equals),
    Share("a placebo's steps are told from scratch's", 0.0, 0.05, _equal_speeds),
    Share("of 4 starts that gain nothing, one is called better than scratch", 0.0, 0.05, _one_is_better),
    Share("of 4 equal starts, one is called worse than another", 0.0, 0.05, _one_is_left_out),
    Share("of 4 starts, the one that gains 0.03 is named or cannot be told from it", 0.95, 1.0, _the_best_is_found),
]

# -------------------------------------------------------------------------------------------------------- over targets

CONFIDENCE = 0.95


def _known(rng, value: float, error: float, *, log: bool = False, df: int = 7, key: str = "gain") -> Quantity:
    """A quantity of one target as a study of so many seeds knows it."""
    at = value + error * rng.normal()
    half = t_quantile(df, CONFIDENCE) * error * np.sqrt(rng.chisquare(df) / df)
    estimate, low, high = (float(np.exp(x) if log else x) for x in (at, at - half, at + half))
    scale = OF_STEPS if log else None
    return Quantity(
        key,
        estimate,
        low,
        high,
        df=df,
        confidence=CONFIDENCE,
        n_seeds=8,
        key=key,
        log=log,
        scale=scale,
        fall=0.0,
        rise=0.0,
    )


def _mean_speed(rng, ratio: float, tau: float, targets: int) -> str:
    """C1 over targets, each of whose ratios is known with an error of 0.1 in its logarithm."""
    by = {str(i): [_known(rng, np.log(ratio) + tau * rng.normal(), 0.1, log=True)] for i in range(targets)}
    found = pooling.over_mean("ratio", by)
    assert found is not None
    same = [dataclasses.replace(found[0], key=key) for key in ("ratio", "against", "turned")]
    measured = Measured(tuple(same), is_shorter)
    return judge("C1", measured).verdict


def _differ(rng, tau: float, error: float = 0.003, targets: int = 6, mean: float = 0.01) -> str:
    cells = [differing.cell_of(_known(rng, mean + tau * rng.normal(), error)) for _ in range(targets)]
    measured = Measured(differing.differences(cells, 0.05, "targets"), differing.differ(0.05))
    return judge("C2", measured).verdict


def _harder(rng, slope: float, error: float = 0.003, targets: int = 8) -> str:
    tasks = {}
    for i in range(targets):
        difficulty = rng.uniform(0.1, 0.5)
        found = _known(rng, slope * difficulty + 0.01 * rng.normal(), error)
        tasks[str(i)] = differing.Task(difficulty, found, ())
    return judge("C3", differing.c3(tasks, None)).verdict


def _over(claim: str, truth: str, name: str, draw: Callable, *numbers, **more) -> Setting:
    return Setting(claim, truth, name, lambda rng: draw(rng, *numbers, **more))


DESIGNS = [
    _over("C1", FALSE, "two looks at 8 and 16 seeds, no difference", _look_verdict, 1.0),
    _over("C1", TRUE, "two looks at 8 and 16 seeds, 1.5 times", _look_verdict, 1.5),
    _over("C1", FALSE, "6 targets, mean ratio 1, tau 0.15", _mean_speed, 1.0, 0.15, 6),
    _over("C1", FALSE, "24 targets, mean ratio 1, tau 0.3", _mean_speed, 1.0, 0.3, 24),
    _over("C1", TRUE, "12 targets, mean ratio 1.5, tau 0.15", _mean_speed, 1.5, 0.15, 12),
    _over("C2", FALSE, "6 targets of one gain, at rest", _differ, 0.0),
    _over("C2", FALSE, "6 targets of one gain, 3,000 steps", _differ, 0.0, 0.008),
    _over("C2", TRUE, "6 targets, tau 0.03, at rest", _differ, 0.03),
    _over("C2", OPPOSITE, "12 targets of one gain, at rest", _differ, 0.0, 0.002, 12),
    _over("C3", FALSE, "8 targets, no slope", _harder, 0.0),
    _over("C3", FALSE, "8 targets, no slope, gains known to 0.015", _harder, 0.0, 0.015),
    _over("C3", TRUE, "8 targets, slope 0.1", _harder, 0.1),
    _over("C3", TRUE, "8 targets, slope 0.2", _harder, 0.2),
    _over("C3", OPPOSITE, "8 targets, slope -0.2", _harder, -0.2),
]


SETTINGS = [*ONE_STUDY, *IN_FOLDS, *DESIGNS]
_PLACES = [*ONE_STUDY, *DESIGNS, *SHARES, *IN_FOLDS]
"""The place of each is the seed of its draws: what is new comes last, so that others are drawn as before."""


def verdicts(setting: Setting, draws: int, seed: int = 0) -> list[str]:
    """Of simulated studies of one setting, the same for the same seed."""
    place = _PLACES.index(setting)
    return [setting.verdict(np.random.default_rng((seed, place, draw))) for draw in range(draws)]


def share(of: Share, draws: int, seed: int = 0) -> float:
    """How often it happens in simulated studies, the same for the same seed."""
    place = _PLACES.index(of)
    return float(np.mean([of.happens(np.random.default_rng((seed, place, draw))) for draw in range(draws)]))
