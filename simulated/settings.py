"""What is true in simulated studies, claim by claim, and the verdict that a good rule gives in most of them.

Each setting draws a study and judges one claim. `TRUE`: the claim holds by a clear margin. `FALSE`: it does not hold,
by as little as can be (on the boundary of its rule) or by being pure chance; `supported` is an error there.
`OPPOSITE`: what contradicts it holds by a clear margin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxseg.study.claims import over_targets
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED
from jaxseg.study.claims.rules import NOISE_LEVELS
from jaxseg.study.claims.table import judge_claim
from simulated import tables as sim

TRUE, FALSE, OPPOSITE = "true", "false", "opposite"
EXPECTED = {TRUE: SUPPORTED, OPPOSITE: CONTRADICTED}


class Setting(NamedTuple):
    """A truth, and how a study of it is drawn and judged."""

    claim: str
    truth: str
    name: str
    verdict: Callable[[np.random.Generator], str]


def _judge(claim: str, study: sim.StudyTables) -> str:
    return judge_claim(claim, gather(study)).verdict


def _curves(rng, transfer: float, **more) -> sim.StudyTables:
    speeds = {"scratch": 1.0, "scratch_double": 1.0, "transfer": transfer}
    return sim.study(sim.record(*speeds), curves=sim.curves(rng, speeds, **more))


def _gains(rng, gains: dict[int, float], **more) -> sim.StudyTables:
    levels = {
        "scratch": dict.fromkeys(gains, 0.75),
        "transfer": {size: 0.75 + gain for size, gain in gains.items()},
    }
    return sim.study(sim.record(*levels), cases=sim.cases(rng, levels, **more))


SIZES = (8, 16, 32, 0)


def _sizes(*gains: float) -> dict[int, float]:
    return dict(zip(SIZES, gains, strict=True))


def _converged(rng) -> dict:
    """Curves that pass the gate, for arms of frozen encoders as well."""
    speeds = dict.fromkeys(("scratch", "scratch_double", "frozen_random_encoder"), 1.0)
    return {"curves": sim.curves(rng, speeds, every=50, noise=0.0005)}


def _filters(rng, **truth) -> sim.StudyTables:
    arms = ("scratch", "scratch_double")
    tables = {"filters": sim.filters(rng, arms, **truth), "filter_controls": sim.filter_controls(), **_converged(rng)}
    return sim.study(sim.record(*arms), **tables)


def _frozen_tables(rng, frozen: float, prior: float = 0.4) -> dict:
    levels = {
        "scratch": {0: 0.8},
        "scratch_double": {0: 0.8},
        "frozen_random_encoder": {0: frozen},
        "prior": {0: prior},
    }
    return {"cases": sim.cases(rng, levels), **_converged(rng)}


FROZEN = ("scratch", "scratch_double", "frozen_random_encoder", "prior")


def _frozen(rng, frozen: float, prior: float = 0.4) -> sim.StudyTables:
    return sim.study(sim.record(*FROZEN), **_frozen_tables(rng, frozen, prior))


def _kept(rng, debiased: float, procrustes: float, frozen: float = 0.78) -> sim.StudyTables:
    rhos = {"cka_debiased": debiased, "procrustes": procrustes}
    similarity = sim.own_starts(rng, ("scratch", "scratch_double"), rhos)
    return sim.study(sim.record(*FROZEN), similarity=similarity, **_frozen_tables(rng, frozen))


def _runs(rng, **truth) -> sim.StudyTables:
    of = sim.points(rng, **truth)
    return sim.study(sim.record(*of), similarity=sim.between_runs(of))


def _variable(rng, *scales: float, k: int = 6) -> sim.StudyTables:
    representation, *others = (sim.points(rng, scale=scale, k=k) for scale in scales)
    names = ("disagreement", "parameter_distance", "barrier")
    tables = {
        "similarity": sim.between_runs(representation),
        "pairs": sim.pairs(dict(zip(names, others, strict=True))),
    }
    return sim.study(sim.record("scratch", "transfer"), **tables)


def _reuse(rng, *reuse: float) -> sim.StudyTables:
    return sim.study(sim.record("scratch", "transfer"), similarity=sim.to_source(rng, reuse))


def _c3(rng, slope: float, follows: float) -> str:
    """Four noise levels with this slope, and six targets whose gain is `follows` times difficulty, plus chance."""
    noisy = {level: gather(_gains(rng, {0: 0.03 + slope * i}, seeds=8)) for i, level in enumerate(NOISE_LEVELS)}
    by_target = {}
    for i in range(6):
        scratch = rng.uniform(0.5, 0.9)
        gain = 0.02 + follows * (0.9 - scratch) + 0.005 * rng.normal()
        levels = {"scratch": {32: scratch}, "transfer": {32: scratch + gain}, "scratch_b": {32: scratch}}
        rec = sim.record(*levels, target=f"target_{i}")
        by_target[f"target_{i}"] = gather(sim.study(rec, cases=sim.cases(rng, levels, first_seed={"scratch_b": 1000})))
    return over_targets.c3(by_target, noisy, Pair()).verdict


def _settings() -> list[Setting]:
    def of(claim: str, truth: str, name: str, draw: Callable, *numbers, **more) -> Setting:
        return Setting(claim, truth, name, lambda rng: _judge(claim, draw(rng, *numbers, **more)))

    steep, flat, smallest = _sizes(0.06, 0.045, 0.03, 0.015), _sizes(0.03, 0.03, 0.03, 0.03), _sizes(0.01, 0, 0, -0.02)
    random = {"distribution": 0.0, "arrangement": 0.0, "spectrum": 0.0, "auc": 0.5}
    return [
        of("C1", TRUE, "1.6 times fewer steps", _curves, 1.6),
        of("C1", FALSE, "1.1 times", _curves, 1.1),
        of("C1", FALSE, "1.1 times, a third of the runs censored", _curves, 1.1, level_sd=0.02),
        of("C1", FALSE, "no difference", _curves, 1.0),
        of("C1", OPPOSITE, "1.6 times more", _curves, 1 / 1.6),
        of("C2", TRUE, "gains 0.06 to 0.015", _gains, steep),
        of("C2", FALSE, "0.03 at every size", _gains, flat),
        of("C2", FALSE, "the same, skewed to losses", _gains, flat, skew=-2.0),
        of("C2", OPPOSITE, "0.03 at every size, little chance", _gains, flat, spread=(0.002, 0.002, 0.005)),
        Setting("C3", TRUE, "both parts", lambda rng: _c3(rng, 0.015, 0.2)),
        Setting("C3", FALSE, "targets follow, no slope", lambda rng: _c3(rng, 0.0, 0.2)),
        Setting("C3", FALSE, "slope, targets do not follow", lambda rng: _c3(rng, 0.015, 0.0)),
        Setting("C3", OPPOSITE, "both parts turned", lambda rng: _c3(rng, -0.015, -0.2)),
        of("C4", TRUE, "gain halves from 0.06 with each doubling", _gains, _sizes(0.06, 0.04, 0.02, 0.01)),
        of("C4", FALSE, "0.03 at every size", _gains, flat),
        of("C4", FALSE, "falls, but 0.01 at the smallest", _gains, smallest),
        of("C4", OPPOSITE, "0.03 at every size, little chance", _gains, flat, spread=(0.002, 0.002, 0.005)),
        of("C4b", TRUE, "no gain, little chance", _gains, {0: 0.0}, spread=(0.002, 0.002, 0.005)),
        of("C4b", FALSE, "gain 0.01", _gains, {0: 0.01}),
        of("C4b", FALSE, "loss 0.01", _gains, {0: -0.01}),
        of("C4b", FALSE, "gain 0.01, skewed to gains", _gains, {0: 0.01}, skew=2.0),
        of("C4b", OPPOSITE, "gain 0.03", _gains, {0: 0.03}),
        of("C5", TRUE, "20 degrees", _filters, angle=20.0),
        of("C5", FALSE, "30 degrees", _filters, angle=30.0),
        of("C5", OPPOSITE, "60 degrees", _filters, angle=60.0),
        of("C6", TRUE, "random", _filters),
        of("C6", FALSE, "distribution at its limit", _filters, **random | {"distribution": 0.02}),
        of("C6", FALSE, "arrangement at its limit", _filters, **random | {"arrangement": -0.03}),
        of("C6", FALSE, "spectrum at its limit", _filters, **random | {"spectrum": 0.05}),
        of("C6", FALSE, "AUC at its limit", _filters, **random | {"auc": 0.6}),
        of("C6", OPPOSITE, "smooth", _filters, **random | {"arrangement": 0.2, "auc": 0.9}),
        of("C7", TRUE, "frozen at 0.97 of scratch", _frozen, 0.78),
        of("C7", FALSE, "frozen at 0.9 of scratch", _frozen, 0.72),
        of("C7", FALSE, "frozen half way from the prior", _frozen, 0.735, prior=0.67),
        of("C7", OPPOSITE, "frozen at 0.8 of scratch", _frozen, 0.64),
        of("C8", TRUE, "rho 0.8 and 0.7", _kept, 0.8, 0.7),
        of("C8", FALSE, "rho 0.5 and 0.8", _kept, 0.5, 0.8),
        of("C8", FALSE, "rho 0.8 and 0.5", _kept, 0.8, 0.5),
        of("C8", FALSE, "rho 0.8, frozen at 0.9 of scratch", _kept, 0.8, 0.8, frozen=0.72),
        of("C8", OPPOSITE, "rho 0.2", _kept, 0.2, 0.2),
        of("C9", TRUE, "excess 1", _runs, shift=1.0),
        of("C9", FALSE, "no difference", _runs),
        of("C9", FALSE, "no difference, runs in one dimension", _runs, k=1),
        of("C9", FALSE, "another spread around the same centre", _runs, scale=0.25),
        of("C9", OPPOSITE, "no difference, many dimensions", _runs, k=200),
        of("C10", TRUE, "all as variable", _variable, 1.2, 1.2, 1.2, 1.2, k=30),
        of("C10", FALSE, "all ratios 0.8", _variable, 0.8, 0.8, 0.8, 0.8),
        of("C10", FALSE, "the same, parameters sqrt(2) norms apart in both", _variable, 0.8, 0.8, 1.0, 0.8),
        of("C10", OPPOSITE, "all ratios 0.2", _variable, 0.2, 0.2, 0.2, 0.2, k=30),
        of("C11", TRUE, "deep 0.5", _reuse, 0.6, 0.6, 0.5, 0.5, 0.5),
        of("C11", FALSE, "deep mean 0.25", _reuse, 0.6, 0.6, 0.35, 0.25, 0.15),
        of("C11", OPPOSITE, "deep 0.05, early 0.6", _reuse, 0.6, 0.6, 0.05, 0.05, 0.05),
        of("C11b", TRUE, "one deep layer leads by 0.3", _reuse, 0.3, 0.3, 0.6, 0.3, 0.1),
        of("C11b", FALSE, "all alike", _reuse, 0.4, 0.4, 0.4, 0.4, 0.4),
        of("C11b", OPPOSITE, "all deep layers behind by 0.3", _reuse, 0.5, 0.5, 0.2, 0.2, 0.2),
    ]


SETTINGS = _settings()


def verdicts(setting: Setting, draws: int, seed: int = 0) -> list[str]:
    """Of simulated studies of one setting, the same for the same seed."""
    place = SETTINGS.index(setting)
    return [setting.verdict(np.random.default_rng((seed, place, draw))) for draw in range(draws)]
