"""What is named to decide an undecided claim does decide it, by the claim's own rule, and less of it does not."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxseg.analysis.folds import expected_half_width_over_folds
from jaxseg.analysis.variance_components import Components
from jaxseg.study.claims import differing, needs
from jaxseg.study.claims.accuracy import is_none
from jaxseg.study.claims.answer import plain_answer
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.filters import look_random
from jaxseg.study.claims.findings import (
    OF_DSC,
    SENSITIVITY,
    UNDECIDED,
    Measured,
    Quantity,
    judge,
)
from jaxseg.study.claims.judging import DECIDED, judge_claim
from jaxseg.study.claims.over_targets import RULE_OF
from jaxseg.study.claims.representation import differ
from jaxseg.study.claims.rules import RANDOM, STRUCTURED
from simulated import tables as sim
from tests.study.whole_study import rng

RULES = {**RULE_OF, "C2": differing.differ(0.05), "C3": differing.follows, "C6": look_random(""), "C9": differ(0.05)}
NUMBERS: dict[str, dict[str, tuple[float, ...]]] = {
    "C1": {"ratio": (1.0, 1.1), "against": (), "turned": ()},
    "C2": {"tau": (0.01,), "p": ()},
    "C3": {"slope": (0.0,)},
    "C4": {"slope": (0.0,), "smallest": (0.0, 0.01)},
    "C4b": {"gain": (0.01,)},
    "C5": {"angle 0.001": (30.0, 45.0), "angle 0.003": (30.0, 45.0)},
    "C6": {key: (RANDOM[key], STRUCTURED[key]) for key in RANDOM},
    "C7": {"of scratch": (0.0,), "half way": (0.0,), "prior": ()},
    "C8": {"nearly": (0.0,), "used": (0.0,)},
    "C9": {"cka": (0.05, 0.1), "p cka": (), "shapes": (0.05, 0.1), "p shapes": ()},
    "C10": {"representation": (2 / 3,), "prediction": (2 / 3,)},
    "C11": {"reuse level_2": (0.05, 0.1), "reuse level_3": (0.05, 0.1), "early": (0.1,)},
    "C11b": {"lead level_2": (0.0,), "lead level_3": (0.0,)},
}
"""The quantities that each rule asks about, with its numbers."""
OF_SCORES = ("C4", "C4b", "C7", "C8")
"""Claims whose quantities have test groups."""


def quantity(key: str, value: float, half: float = math.nan, log: bool = False, **more: object) -> Quantity:
    """A quantity of 8 seeds; on a logarithm, `half` is a factor."""
    low, high = (value / half, value * half) if log else (value - half, value + half)
    fixed = {"key": key, "df": 7.0, "confidence": 0.95, "n_seeds": 8, "log": log, "fall": 0.0, "rise": 0.0, **more}
    return Quantity(key, value, low, high, **fixed)  # type: ignore[arg-type]


def is_p(key: str) -> bool:
    return key.split(" ")[0] == "p"


def of_claim(claim: str, *quantities: Quantity, sensitive: bool = True) -> Measured:
    known = [dataclasses.replace(q, thresholds=NUMBERS[claim][q.key]) for q in quantities]
    return Measured(tuple(known), RULES[claim], sensitive=lambda: sensitive)


def times_as_wide(q: Quantity, factor: float) -> Quantity:
    if q.log:
        half = math.log(q.high / q.low) / 2 * factor
        return dataclasses.replace(q, low=q.value * math.exp(-half), high=q.value * math.exp(half))
    half = (q.high - q.low) / 2 * factor
    return dataclasses.replace(q, low=q.value - half, high=q.value + half)


def of_seeds(q: Quantity, seeds: int, groups: int | None = None) -> Quantity:
    """What a quantity is expected to be with these seeds and groups, worked out apart from `needs`."""
    if is_p(q.key):
        z = stats.norm.isf(q.value) * math.sqrt(seeds / q.n_seeds)
        least = 2.0 ** (1 - seeds) if q.least > 0 else q.least
        return dataclasses.replace(q, value=max(stats.norm.sf(z), least), least=least, n_seeds=seeds)
    if q.spread is None:
        return times_as_wide(q, math.sqrt(q.n_seeds / seeds))
    sizes = (seeds // q.folds, (groups or q.n_groups) // q.folds, q.folds)
    half = expected_half_width_over_folds(q.spread, *sizes, confidence=q.confidence)
    return dataclasses.replace(q, low=q.value - half, high=q.value + half)


def verdict(claim: str, measured: Measured, *, sensitive: bool | None = None) -> str:
    own = measured if sensitive is None else dataclasses.replace(measured, sensitive=lambda: sensitive)
    return judge(claim, own).verdict


def verdict_at(claim: str, measured: Measured, seeds: int, groups: int | None = None, **more: bool) -> str:
    larger = tuple(of_seeds(q, seeds, groups) for q in measured.quantities)
    return verdict(claim, dataclasses.replace(measured, quantities=larger), **more)


# ------------------------------------------------------------------------------------------------------ known cases


def published(half: float) -> dict[str, object]:
    return {"half": half, "confidence": 0.9946}


CASES: Mapping[str, tuple[str, tuple[Quantity, ...], int | None]] = {
    "of no seeds would the grade `gain` be an answer": ("C4b", (quantity("gain", 0.009, 0.012, scale=OF_DSC),), None),
    "low above 1 is not enough below 1.1": (
        "C1",
        tuple(quantity(key, 1.08, 1.12, log=True) for key in ("ratio", "against", "turned")),
        None,
    ),
    "the farther number decides, C11 of hearts to hippocampus": (
        "C11",
        (quantity("reuse level_2", 0.116, **published(0.129)), quantity("early", 0.294, **published(0.091))),
        31,
    ),
    "the farther number decides, C9 of objectives on the throat": (
        "C9",
        tuple(quantity(key, 0.10, **published(0.113)) for key in ("cka", "shapes")),
        41,
    ),
    "within what matters": ("C4b", (quantity("gain", 0.003, 0.012, scale=OF_DSC),), 24),
    "slower, without a control": (
        "C1",
        tuple(quantity(key, 0.8, 1.3, log=True) for key in ("ratio", "against", "turned")),
        34,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_named_number_of_seeds_decides_and_clearly_fewer_do_not(name: str) -> None:
    claim, quantities, seeds = CASES[name]
    measured = of_claim(claim, *quantities, sensitive=False)
    assert verdict(claim, measured) == UNDECIDED
    words = needs.of_claim(measured)
    if seeds is None:
        assert (
            words == f"no realistic number of seeds or patients: {quantities[0].name} is too near a limit of the rule"
        )
        assert verdict_at(claim, measured, needs.MAX_SEEDS) == UNDECIDED
        return
    assert words == f"about {seeds} seeds, if the estimate stays"
    assert verdict_at(claim, measured, seeds) in DECIDED
    assert verdict_at(claim, measured, round(0.9 * seeds)) == UNDECIDED


# ------------------------------------------------------------------------------------------------------ any quantities


def span(claim: str) -> float:
    numbers = [t for own in NUMBERS[claim].values() for t in own]
    return max(max(numbers) - min(numbers), 0.02) if claim not in ("C1", "C10") else 0.5


@st.composite
def any_quantities(draw: st.DrawFn, claim: str, *, df: float = 7.0) -> Measured:
    """Quantities around the numbers of a claim's rule, some with test groups, with growth or without limits."""
    found = []
    log, scores, width = claim in ("C1", "C10"), claim in OF_SCORES and draw(st.booleans()), span(claim)
    folds = draw(st.sampled_from((1, 2))) if scores else 1
    for key, own in NUMBERS[claim].items():
        if is_p(key):
            least = 2.0**-7 if claim == "C9" else -math.inf
            p = draw(st.floats(0.0, 0.3))
            found.append(Quantity(key, max(p, least), key=key, n_seeds=8, least=least))
            continue
        at = draw(st.sampled_from(own or (1.0 if log else 0.0,)))
        value = at * (1 + draw(st.floats(-0.3, 0.3))) if log else at + draw(st.floats(-2.0, 2.0)) * width
        half = draw(st.floats(0.05, 1.0))
        more: dict[str, object] = {"df": df}
        if claim not in ("C1", "C9", "C10", "C11", "C11b"):
            more |= {key: draw(st.sampled_from((0.0, 0.3 * width, math.nan))) for key in ("fall", "rise")}
        if scores:
            spread = Components(*(draw(st.floats(1e-3, 3.0)) * width**2 for _ in range(3)))
            args = (spread, 8 // folds, 6 // folds, folds)
            half = expected_half_width_over_folds(*args, confidence=0.95) / width
            more |= {"spread": spread, "n_groups": 6, "folds": folds}
        found.append(quantity(key, value, math.exp(half) if log else half * width, log, **more))
    return of_claim(claim, *found, sensitive=draw(st.booleans()))


@pytest.mark.parametrize("claim", NUMBERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_named_is_the_least_that_decides(claim: str, data: st.DataObject) -> None:
    measured = data.draw(any_quantities(claim))
    if verdict(claim, measured) in DECIDED or verdict(claim, measured, sensitive=True) in DECIDED:
        return
    words = needs.of_claim(measured)
    control = {"sensitive": True} if SENSITIVITY in words else {}
    folds = max(q.folds for q in measured.quantities)
    numbers = range(8 + folds, needs.MAX_SEEDS + 1, folds)
    if seeds := re.match(r"about (\d+) seeds", words):
        assert verdict_at(claim, measured, int(seeds[1]), **control) in DECIDED
        numbers = range(8 + folds, int(seeds[1]), folds)
    elif groups := re.match(r"no number of seeds, the patients limit it: about (\d+) test groups with 16 seeds", words):
        assert verdict_at(claim, measured, 16, int(groups[1]), **control) in DECIDED
    else:
        assert words.startswith(("no realistic number of seeds or patients: ", "no number of seeds or patients"))
    assert not [n for n in numbers if verdict_at(claim, measured, n, **control) in DECIDED]


@pytest.mark.parametrize("claim", sorted(RULE_OF))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_named_over_targets_is_the_least_that_decides(claim: str, data: st.DataObject) -> None:
    measured = data.draw(any_quantities(claim, df=4.0))
    means = tuple(dataclasses.replace(q, spread=None) for q in measured.quantities)
    measured = dataclasses.replace(measured, quantities=means)
    if verdict(claim, measured) in DECIDED or verdict(claim, measured, sensitive=True) in DECIDED:
        return

    def over(more: int, **control: bool) -> str:
        """Five targets, and more of them."""
        quantiles = [stats.t.ppf(0.975, df) / math.sqrt(df + 1) for df in (4, 4 + more)]
        later = tuple(times_as_wide(q, quantiles[1] / quantiles[0]) for q in means if not math.isnan(q.low))
        missing = tuple(q for q in means if math.isnan(q.low))
        return verdict(claim, dataclasses.replace(measured, quantities=(*later, *missing)), **control)

    words = needs.targets_needed(means, measured)
    control = {"sensitive": True} if SENSITIVITY in words else {}
    numbers = range(1, needs.MAX_TARGETS)
    if more := re.match(r"about (\d+) more targets, if .* stays?", words):
        assert over(int(more[1]), **control) in DECIDED
        numbers = range(1, int(more[1]))
    else:
        assert words.startswith(("no realistic number of targets: ", "no number of targets"))
    assert not [n for n in numbers if over(n, **control) in DECIDED]


# --------------------------------------------------------------------------------------------------------------- words


def test_no_gain_over_targets_is_asked_by_its_rule_and_not_by_its_grade() -> None:
    mean = quantity("gain", 0.009, 0.012, df=4.0, scale=OF_DSC)
    measured = of_claim("C4b", mean)
    assert measured.rule is is_none
    assert needs.targets_needed((mean,)) == "about 2 more targets, if gain stays"  # a gain, for certain
    assert needs.targets_needed(measured.quantities, measured) == (
        "no realistic number of targets: gain is too near a limit of the rule"
    )
    clear = of_claim("C4b", dataclasses.replace(mean, value=0.002, low=-0.01, high=0.014))
    assert needs.targets_needed(clear.quantities, clear) == "about 4 more targets, if gain stays"


def test_what_no_precision_decides_is_said() -> None:
    between = of_claim("C5", quantity("angle 0.001", 37.0, 1.0), quantity("angle 0.003", 38.0, 9.0))
    neither = "no number of seeds or patients: with these estimates the rule decides neither way"
    assert needs.of_claim(between) == neither
    apart = of_claim("C5", quantity("angle 0.001", 31.0, 0.5), quantity("angle 0.003", 28.0, 1.0, rise=math.nan))
    assert needs.of_claim(apart).startswith("no number of seeds or patients alone: also a look at the networks")
    both = of_claim("C4", quantity("slope", -0.01, 0.04), quantity("smallest", 0.005, 0.02))
    assert needs.of_claim(both) == neither


def test_a_projection_that_no_number_of_seeds_makes_up_for_asks_for_longer_training() -> None:
    margins = (
        quantity("of scratch", -0.05, 0.09, rise=0.08),
        quantity("half way", 0.0, 0.1),
        quantity("prior", -0.1, 0.1),
    )
    assert needs.of_claim(of_claim("C7", *margins)) == "no number of seeds or patients alone: also longer training"
    room = (dataclasses.replace(margins[0], rise=0.021), *margins[1:])
    assert needs.of_claim(of_claim("C7", *room)) == "about 78 seeds, if the estimate stays"
    narrow = (quantity("of scratch", -0.05, 0.04, rise=0.02), *margins[1:])
    measured = of_claim("C7", *narrow)
    ruling = measured.rule(measured.by_key(), True)
    assert ruling.needs == "longer training"
    assert needs.of_claim(measured, ruling.needs) == "longer training, or about 15 seeds, if the estimate stays"


def test_an_absence_is_not_promised_without_the_positive_control() -> None:
    equal = [quantity(key, 1.0, 1.2, log=True) for key in ("ratio", "against", "turned")]
    number = "about 30 seeds, if the estimate stays"
    assert needs.of_claim(of_claim("C1", *equal)) == number
    assert needs.of_claim(of_claim("C1", *equal, sensitive=False)) == f"{number}; and {SENSITIVITY}"


def test_a_p_that_cannot_be_small_enough_yet_is_not_in_the_way() -> None:
    least = 2.0**-7
    excess = [quantity(key, 0.2, 0.2) for key in ("cka", "shapes")]
    ps = [Quantity(f"p {key}", least, key=f"p {key}", n_seeds=8, least=least) for key in ("cka", "shapes")]
    measured = dataclasses.replace(of_claim("C9", *excess, *ps), rule=differ(0.0054))
    assert needs.of_claim(measured) == "about 15 seeds, if the estimate stays"
    never = [dataclasses.replace(p, value=0.5) for p in ps]
    measured = dataclasses.replace(measured, quantities=(*measured.quantities[:2], *never))
    assert (
        needs.of_claim(measured) == "no number of seeds or patients: with these estimates the rule decides neither way"
    )


def test_quantities_that_nothing_is_known_of_are_named() -> None:
    known = [quantity(key, 0.0, 0.5) for key in RANDOM if key != "auc"]
    measured = of_claim("C6", *known, Quantity("AUC", math.nan, key="auc"))
    assert needs.of_claim(measured) == "limits of AUC, which are not known"
    assert needs.targets_needed(measured.quantities, measured) == "4 targets that know AUC"
    assert needs.of_claim(of_claim("C4b", Quantity("gain", 0.1, key="gain"))) == ""


# --------------------------------------------------------------------------------------------------------------- looks


def test_more_seeds_are_judged_at_the_level_of_the_last_look() -> None:
    levels = {"scratch": {0: 0.8}, "transfer": {0: 0.8}}
    cases = sim.cases(rng(1), levels, groups=30, spread=(0.012, 0.001, 0.005), seeds=8)

    def seeds(looks: tuple[int, ...], level: float | None = None) -> tuple[int, int]:
        """Seeds that decide the claim, and that give the gain of the answer a grade."""
        evidence = gather(sim.study(sim.record(*levels)._replace(looks=looks), cases=cases), level=level or 0.0054)
        found = judge_claim("C4b", evidence)
        assert (found.verdict, found.quantities[0].confidence) == (UNDECIDED, 1 - evidence.level)
        named = (found.needs, plain_answer(evidence, Pair()).needs)
        return tuple(int(re.fullmatch(r"about (\d+) seeds, if the estimate stays", words)[1]) for words in named)

    strict, last = seeds(()), seeds((), 0.0492)
    assert 8 < last[0] < 16 < last[1] < strict[1]
    assert seeds((8, 16)) == (16, last[1])  # at the second look, or later at its level
    assert seeds((8, 64)) == (64, 64)
