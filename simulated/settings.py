"""What is true in simulated studies, claim by claim, and the verdict that a good rule gives in most of them.

Each setting draws a study and judges one claim. `TRUE`: the claim holds by a clear margin. `FALSE`: it does not hold,
by as little as can be (on the boundary of its rule) or by being pure chance; `supported` is an error there.
`OPPOSITE`: what contradicts it holds by a clear margin. Spreads are those of published studies: `AT_REST` of 3-D
networks at rest, with 42 test patients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED
from jaxseg.study.claims.judging import judge_claim
from simulated import tables as sim

TRUE, FALSE, OPPOSITE = "true", "false", "opposite"
EXPECTED = {TRUE: SUPPORTED, OPPOSITE: CONTRADICTED}


class Setting(NamedTuple):
    """A truth, and how a study of it is drawn and judged."""

    claim: str
    truth: str
    name: str
    verdict: Callable[[np.random.Generator], str]


ROOT2 = 2**0.5
AT_REST = (0.003 / ROOT2, 0.005 / ROOT2, 0.02 / ROOT2)
"""Effects of seed, group and both in one arm; the difference of two arms has sqrt(2) times as much."""
LITTLE_CHANCE = (0.001, 0.001, 0.004)


def judge_study(claim: str, study: sim.StudyTables) -> str:
    """The verdict on a claim, alone."""
    return judge_claim(claim, gather(study)).verdict


# ----------------------------------------------------------------------------------------------------------- training

LAST_DOUBLING = 0.0122
"""Gain of the published hippocampus curves in their last doubling."""


def _curves(rng, transfer: float, control: float | None = None, **more) -> sim.StudyTables:
    speeds = {"scratch": 1.0, "transfer": transfer}
    if control is not None:
        speeds["self_transfer"] = control
    return sim.study(sim.record(*speeds), curves=sim.curves(rng, speeds, **{"gain": LAST_DOUBLING, **more}))


QUIET = {"seeds": 16, "spread": 0.05, "noise": 0.002, "level_sd": 0.002}
HEARTS = {"gain": 0.3 / 1**0.4 * (2**0.4 - 1), "level": 0.95, "power": 0.4, "noise": 0.05}
"""Of 2-D networks of a thousand steps, whose validations scatter and which are far from rest."""


# ----------------------------------------------------------------------------------------------------------- accuracy

SIZES = (4, 16, 64, 0)
BY_SIZE = {
    4: (0.0071, 0.0028, 0.024),
    16: (0.0064, 0.0028, 0.021),
    64: (0.0064, 0.0028, 0.0205),
    0: (0.0021, 0.0028, 0.014),
}
LEARNING = {4: 0.70, 16: 0.80, 64: 0.85, 0: 0.87}
"""What scratch reaches at each size."""


def gains(rng, by_size: dict[int, float], *, control: float = 0.0, groups: int = 42, **more) -> sim.StudyTables:
    """A study with these gains; with a control `self_transfer` gains as much at every size."""
    levels = {
        "scratch": {size: LEARNING[size] for size in by_size},
        "transfer": {size: LEARNING[size] + gain for size, gain in by_size.items()},
    }
    if control:
        levels["self_transfer"] = {size: LEARNING[size] + control for size in by_size}
    cases = sim.cases(rng, levels, groups=groups, **{"spread": BY_SIZE, **more})
    return sim.study(sim.record(*levels, full_size=158), cases=cases)


def _sizes(*of: float) -> dict[int, float]:
    return dict(zip(SIZES, of, strict=True))


def _full(rng, gain: float, **more) -> sim.StudyTables:
    return gains(rng, {0: gain}, **{"spread": AT_REST, **more})


SIX = (4, 8, 16, 32, 64, 0)


def _six(rng, *of: float) -> sim.StudyTables:
    levels = {"scratch": dict.fromkeys(SIX, 0.8), "transfer": {size: 0.8 + g for size, g in zip(SIX, of, strict=True)}}
    rec = sim.record(*levels, full_size=158)
    return sim.study(rec, cases=sim.cases(rng, levels, groups=42, spread=(0.005, 0.003, 0.015)))


# ------------------------------------------------------------------------------------------------------------ filters


def _by_rate(rng, *angles: float, better: float = 0.0, growing: float = 0.0) -> sim.StudyTables:
    """Scratch at three rates; the DSC of each rate is by `better` above that of the one below."""
    names = ("scratch_low", "scratch", "scratch_high")
    rates = dict(zip(names, (3e-4, 1e-3, 3e-3), strict=True))
    arms = {name: sim.arm(rates={0: (rate,)}, like="same") for name, rate in rates.items()}
    levels = {name: {0: 0.8 + better * i} for i, name in enumerate(names)}
    parts = [sim.filters(rng, (n,), angle=angle, growing=growing) for n, angle in zip(names, angles, strict=True)]
    tables = {"filters": pd.concat(parts), "cases": sim.cases(rng, levels, spread=LITTLE_CHANCE)}
    return sim.study(sim.record(*names)._replace(arms=arms), **tables)


def _filters(rng, **truth) -> sim.StudyTables:
    tables = {"filters": sim.filters(rng, ("scratch",), **truth), "filter_controls": sim.filter_controls()}
    return sim.study(sim.record("scratch"), **tables)


# ------------------------------------------------------------------------------------------------------ frozen encoder

FROZEN = ("scratch", "frozen_random_encoder", "prior")
OF_FROZEN = (0.008 / ROOT2, 0.017 / ROOT2, 0.027 / ROOT2)


def _frozen(
    rng,
    frozen: float,
    prior: float = 0.4,
    *,
    scratch: float = 0.868,
    pooled: float | None = None,
    growing=(0.003, 0.005),
):
    """A study of frozen encoders; scratch and the frozen arm still gain this much in the last doubling."""
    levels = {"scratch": {0: scratch}, "frozen_random_encoder": {0: frozen}, "prior": {0: prior}}
    if pooled is not None:
        levels["pooled_encoder"] = {0: pooled}
    gain = {"scratch": growing[0], "frozen_random_encoder": growing[1], "pooled_encoder": growing[1]}
    speeds = {name: 1.0 for name in levels if name != "prior"}
    tables = {
        "cases": sim.cases(rng, levels, groups=42, spread=OF_FROZEN),
        "curves": sim.curves(rng, speeds, gain=gain),
    }
    return sim.study(sim.record(*levels), **tables)


# ------------------------------------------------------------------------------------------------------ representation


def _runs(rng, **truth) -> sim.StudyTables:
    of = sim.points(rng, **truth)
    return sim.study(sim.record(*of), similarity=sim.between_runs(of))


def nested(rng, ratio: float, between: float = 0.0, *, k: int = 30) -> sim.StudyTables:
    """Sixteen runs from eight source networks; representation and prediction have the same truth."""
    of, others = (sim.nested_points(rng, ratio=ratio, between=between, k=k) for _ in range(2))
    sources = {seed: seed // 2 for seed in range(16)}
    tables = {"similarity": sim.between_runs(of), "pairs": sim.pairs({"disagreement": others})}
    return sim.study(sim.record(*of, transfer=sim.arm(sources=sources)), **tables)


def _reuse(rng, *reuse: float, sd: float = 0.05) -> sim.StudyTables:
    return sim.study(sim.record("scratch", "transfer"), similarity=sim.to_source(rng, reuse, sd=sd))


def _runs_in_folds(rng, **truth) -> sim.StudyTables:
    return sim.in_folds(_runs(rng, **truth), rng, apart=0.02)


def _reuse_in_folds(rng, *reuse: float) -> sim.StudyTables:
    return sim.in_folds(_reuse(rng, *reuse), rng)


# ------------------------------------------------------------------------------------------------------------ the list


def of(claim: str, truth: str, name: str, draw: Callable, *numbers, **more) -> Setting:
    """A setting whose study is drawn by a function of these numbers."""
    return Setting(claim, truth, name, lambda rng: judge_study(claim, draw(rng, *numbers, **more)))


def _settings() -> list[Setting]:
    falling, none, flat = _sizes(0.02, 0.012, 0.005, 0.001), _sizes(0, 0, 0, 0), _sizes(0.03, 0.03, 0.03, 0.03)
    return [
        of("C1", TRUE, "1.5 times fewer steps, 8 seeds", _curves, 1.5),
        of("C1", TRUE, "1.5 times fewer steps, 16 seeds", _curves, 1.5, seeds=16),
        of("C1", FALSE, "no difference", _curves, 1.0),
        of("C1", FALSE, "no difference, 2-D far from rest", _curves, 1.0, **HEARTS),
        of("C1", OPPOSITE, "no difference, little chance, a control twice as fast", _curves, 1.0, 2.0, **QUIET),
        of("C1", OPPOSITE, "1.6 times more steps", _curves, 1 / 1.6),
        of("C2", TRUE, "gains 0.06 to 0 over 6 sizes", _six, 0.06, 0.045, 0.03, 0.02, 0.01, 0.0),
        of("C2", FALSE, "0.03 at every of 6 sizes", _six, *(0.03,) * 6),
        of("C4", TRUE, "gain 0.02 at 4 cases, falling", gains, falling),
        of("C4", FALSE, "no gain", gains, none),
        of("C4", FALSE, "0.03 at every size", gains, flat),
        of("C4", FALSE, "none at the smallest, a loss at full size", gains, _sizes(0, -0.01, -0.02, -0.03)),
        of("C4", OPPOSITE, "no gain, and a control that gains", gains, none, control=0.1),
        of("C4b", TRUE, "no gain, at rest", _full, 0.0),
        of("C4b", TRUE, "gain 0.005", _full, 0.005),
        of("C4b", FALSE, "gain 0.01", _full, 0.01),
        of("C4b", FALSE, "gain 0.01, skewed to losses", _full, 0.01, skew=-2.0),
        of("C4b", OPPOSITE, "gain 0.03", _full, 0.03),
        of("C5", TRUE, "20 degrees at one of three equal rates", _by_rate, 20.0, 35.0, 50.0),
        of("C5", FALSE, "30 degrees at all three rates", _by_rate, 30.0, 30.0, 30.0),
        of("C5", FALSE, "20 degrees at the worst rate, 35 at the others", _by_rate, 20.0, 35.0, 35.0, better=0.015),
        of("C5", OPPOSITE, "60 degrees", _by_rate, 60.0, 60.0, 60.0),
        of("C6", TRUE, "random", _filters),
        of("C6", FALSE, "distribution at its limit", _filters, distribution=0.02),
        of("C6", FALSE, "arrangement at its limit", _filters, arrangement=-0.03),
        of("C6", FALSE, "spectrum at its limit", _filters, spectrum=0.05),
        of("C6", FALSE, "AUC at its limit", _filters, auc=0.6),
        of("C6", OPPOSITE, "smooth", _filters, arrangement=0.2, auc=0.9),
        of("C7", TRUE, "frozen at 0.96 of scratch, near rest", _frozen, 0.833),
        of("C7", FALSE, "frozen at 0.9 of scratch", _frozen, 0.7812),
        of("C7", FALSE, "0.904 of scratch, which still gains", _frozen, 0.785, growing=(0.015, 0.0)),
        of("C7", FALSE, "half way from the prior", _frozen, 0.784, prior=0.70),
        of("C7", OPPOSITE, "frozen at 0.81 of scratch", _frozen, 0.70, growing=(0.005, 0.01)),
        of("C8", TRUE, "frozen as good as scratch, 0.05 above none", _frozen, 0.868, pooled=0.81),
        of("C8", FALSE, "frozen 0.02 below scratch", _frozen, 0.848, pooled=0.7),
        of("C8", FALSE, "no better than without encoder", _frozen, 0.868, pooled=0.868),
        of("C8", OPPOSITE, "frozen 0.07 below scratch", _frozen, 0.80, pooled=0.7),
        of("C9", TRUE, "excess 0.15", _runs, shift=0.15, k=200),
        of("C9", FALSE, "excess 0.05", _runs, shift=0.05, k=200),
        of("C9", FALSE, "no difference, runs in six dimensions", _runs, k=6),
        of("C9", OPPOSITE, "no difference, many dimensions", _runs, k=200),
        of("C10", TRUE, "ratio 1, 60 dimensions", nested, 1.0, k=60),
        of("C10", TRUE, "ratio 1, 30 dimensions", nested, 1.0),
        of("C10", FALSE, "ratio 2/3, sources apart by the rest", nested, 2 / 3, 1 / 3),
        of("C10", FALSE, "ratio 0.4, sources apart by the rest", nested, 0.4, 0.6),
        of("C10", OPPOSITE, "ratio 0.2", nested, 0.2, 0.8),
        of("C11", TRUE, "deep encoder level 0.2", _reuse, 0.6, 0.6, 0.2, 0.0, 0.0),
        of("C11", FALSE, "deep encoder level 0.05, decoder reused", _reuse, 0.6, 0.6, 0.05, 0.5, 0.5),
        of("C11", FALSE, "nothing reused", _reuse, 0.0, 0.0, 0.0, 0.0, 0.0),
        of("C11", OPPOSITE, "early 0.6, deep 0", _reuse, 0.6, 0.6, 0.0, 0.0, 0.0),
        of("C11b", TRUE, "the deep level leads by 0.2", _reuse, 0.3, 0.3, 0.5, 0.3, 0.1),
        of("C11b", FALSE, "all alike", _reuse, 0.4, 0.4, 0.4, 0.4, 0.4),
        of("C11b", OPPOSITE, "the deep level is behind by 0.3", _reuse, 0.5, 0.5, 0.2, 0.2, 0.2),
    ]


ONE_STUDY = _settings()

IN_FOLDS = [
    of("C9", TRUE, "excess 0.15, two rotating folds", _runs_in_folds, shift=0.15, k=200),
    of("C9", FALSE, "excess 0.05, two rotating folds", _runs_in_folds, shift=0.05, k=200),
    of("C9", FALSE, "no difference, six dimensions, two rotating folds", _runs_in_folds, k=6),
    of("C9", OPPOSITE, "no difference, many dimensions, two rotating folds", _runs_in_folds, k=200),
    of("C11", TRUE, "deep encoder level 0.2, two rotating folds", _reuse_in_folds, 0.6, 0.6, 0.2, 0.0, 0.0),
    of(
        "C11",
        FALSE,
        "deep encoder level 0.05, decoder reused, two rotating folds",
        _reuse_in_folds,
        0.6,
        0.6,
        0.05,
        0.5,
        0.5,
    ),
    of("C11", OPPOSITE, "early 0.6, deep 0, two rotating folds", _reuse_in_folds, 0.6, 0.6, 0.0, 0.0, 0.0),
    of("C11b", FALSE, "all alike, two rotating folds", _reuse_in_folds, 0.4, 0.4, 0.4, 0.4, 0.4),
]
"""Settings of networks that are compared where folds rotate over seeds."""
