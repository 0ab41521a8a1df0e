"""Findings on claims: quantities with limits and grades, one verdict, and the reason in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxseg.analysis.statistics import MIN_SEEDS, Interval
from jaxseg.analysis.variance_components import Components
from jaxseg.study.claims.rules import DELTA, RULES, SHORTER
from jaxseg.text import significant, significant_interval

SUPPORTED, CONTRADICTED, UNDECIDED, VOID = "supported", "contradicted", "undecided", "void"
DEPENDS = "depends on the target"
"""Verdict over targets that differ, where the difference itself is the answer."""
MATERIAL_GAIN, GAIN, SAME, LOSS, MATERIAL_LOSS = (
    *("material gain", "gain", "no material difference"),
    *("loss", "material loss"),
)


class Lacking(Exception):  # noqa: N818 - not an error: a study need not have everything
    """Raised if a study lacks an arm, a size or a table that a claim needs; the text says which."""


class Void(Exception):  # noqa: N818 - nor is this
    """Raised if a study has all that a claim needs, but its results make the claim meaningless; the text says why."""


class Scale(NamedTuple):
    """The null value of a quantity and the smallest difference from it that matters."""

    nothing: float
    delta: float
    ratio: bool = False
    """Whether differences are ratios, so that `delta` is a factor."""

    @property
    def limits(self) -> tuple[float, float]:
        """The limits between which a difference does not matter."""
        if self.ratio:
            return self.nothing / self.delta, self.nothing * self.delta
        return self.nothing - self.delta, self.nothing + self.delta


OF_DSC, OF_STEPS = Scale(0.0, DELTA), Scale(1.0, SHORTER, ratio=True)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that a claim rests on, with its limits."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    df: float = math.nan
    """Degrees of freedom of the limits."""
    confidence: float = math.nan
    """Confidence level of the limits."""
    n_seeds: int = 0
    """Number of seeds, or of source networks if several seeds share one."""
    seeds_each: int = 1
    """Number of seeds that share a source network; 1 if each has its own."""
    n_groups: int = 0
    """Number of test groups; 0 if groups play no part."""
    least: float = -math.inf
    """The smallest value that it can take."""
    train_cases: int | None = None
    """Training set size of the quantity, if it is not that of the finding; -1 if it spans several."""
    key: str = ""
    """The name that rules use, which is the same for every study."""
    scale: Scale | None = None
    """The scale that grades the quantity; None if it has no grade."""
    log: bool = False
    """Whether the quantity is a ratio, whose limits are computed on its logarithm."""
    thresholds: tuple[float, ...] = ()
    """The numbers of the rule that the quantity is compared with."""
    fall: float = math.nan
    """How far the lower limit may fall with one more doubling of the steps; NaN if unknown."""
    rise: float = math.nan
    """How far the upper limit may rise with one more doubling of the steps; NaN if unknown."""
    spread: Components | None = None
    """Variance components of one fold, if seeds and groups are both random."""
    folds: int = 1

    @property
    def projected_low(self) -> float:
        """The lower limit after one more doubling of the steps, should it lower the quantity."""
        return self.low - self.fall

    @property
    def projected_high(self) -> float:
        """The upper limit after one more doubling of the steps, should it raise the quantity."""
        return self.high + self.rise

    @property
    def grade(self) -> str:
        """The size of the quantity in words; empty for quantities without a scale."""
        if self.scale is None:
            return ""
        (least, most), nothing = self.scale.limits, self.scale.nothing
        if math.isnan(self.low) or math.isnan(self.high):
            return UNDECIDED
        if self.low > nothing:
            return MATERIAL_GAIN if self.low > most else GAIN
        if self.high < nothing:
            return MATERIAL_LOSS if self.high < least else LOSS
        return SAME if least < self.low and self.high < most else UNDECIDED

    def text(self) -> str:
        """Formats the name, value and limits for the reason of a finding."""
        if math.isnan(self.value):
            return f"{self.name}: {'undefined' if self.n_seeds else 'not measured'}"
        return f"{self.name} {significant(self.value)} {significant_interval(self.low, self.high)}".rstrip()


def quantity(name: str, interval: Interval, confidence: float, **more: object) -> Quantity:
    """Makes a quantity from its interval."""
    limits = {"low": interval.low, "high": interval.high, "df": interval.df, "confidence": confidence}
    return Quantity(name, interval.estimate, **{"key": name, **limits, **more})  # type: ignore[arg-type]


class Ruling(NamedTuple):
    """What a rule says about a claim's quantities."""

    supported: bool
    contradicted: bool
    note: str = ""
    """An explanation, if neither holds for a specific reason."""
    needs: str = ""
    """What would decide the claim, where narrower intervals would not."""


def _insensitive() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Measured:
    """A claim's quantities and the rule that judges them, of one study or of several targets together."""

    quantities: tuple[Quantity, ...]
    rule: Callable[[Mapping[str, Quantity], bool], Ruling]
    """The rule: a function of the quantities by key, and of whether a positive control showed the effect."""
    doubts: tuple[str, ...] = ()
    """The reasons that forbid a verdict, in words."""
    arms: tuple[str, ...] = ()
    """The arms whose training the quantities depend on."""
    scope: str = ""
    """The scope that the finding is limited to, in words."""
    sensitive: Callable[[], bool] = _insensitive
    """Returns whether the study's positive control shows the effect; called only if an absence depends on it."""
    shown: tuple[str, ...] = ()
    """Keys of the quantities that the reason names; empty for all."""
    unsupported: str = ""
    """What keeps the study from supporting the claim whatever the quantities are; empty if nothing does."""

    def by_key(self) -> dict[str, Quantity]:
        """The quantities, keyed by their names in rules."""
        return {q.key: q for q in self.quantities}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict on one claim, with its quantities and reason."""

    claim: str
    verdict: str
    reason: str
    quantities: tuple[Quantity, ...] = ()
    tag: str = ""
    """Whether the runs were at rest or, if not, what another doubling of their steps brings."""
    exploratory: str = ""
    """Why the finding is not one that was fixed in advance; empty if it is."""
    needs: str = ""
    """What would decide the claim, in words."""
    look: int | None = None
    """The number of seeds at which the verdict was reached, if looks were declared."""
    lacks: bool = False
    """Whether the study has no arm, size or table for the claim."""


def count_of_seeds(count: int, seeds_each: int) -> str:
    """Names a number of seeds, or of source networks if several seeds share one.

    >>> count_of_seeds(8, 1), count_of_seeds(8, 2)
    ('8 seeds', '8 source networks (16 seeds)')
    """
    return f"{count} seeds" if seeds_each == 1 else f"{count} source networks ({count * seeds_each} seeds)"


def few_seeds(found: int, seeds_each: int = 1, *, of: str = "") -> list[str]:
    """Returns the doubt that too few seeds raise, or too few source networks; empty if there are enough.

    Args:
        found: Their number.
        seeds_each: Number of seeds that share a source network.
        of: The arm whose seeds they are, if another's are counted as well.
    """
    if found >= MIN_SEEDS:
        return []
    return [f"needs at least {count_of_seeds(MIN_SEEDS, seeds_each)}{' of ' * bool(of)}{of}, has {found}"]


LONGER = "longer training"
NO_GROWTH = "growth not known: needs validations at half of the steps and late (train.eval_every)"


def unless_projected(now: bool, *projected: float) -> tuple[str, str]:
    """Returns why what holds at the steps that were trained is no verdict, and what would decide it; empty otherwise.

    Args:
        now: Whether limits hold as they are.
        projected: Those limits after another doubling of the steps; NaN if unknown.
    """
    if not now:
        return "", ""
    if any(map(math.isnan, projected)):
        return f"it holds at these steps, but {NO_GROWTH}", "validations at half of the steps and late"
    return "it holds at these steps, but need not after another doubling", LONGER


INSENSITIVE = "nothing here could have shown it: an absence counts only where self_transfer shows the effect"

SENSITIVITY = "an arm self_transfer that shows the effect, with seeds, rate and validations as the claim needs them"


def decides(measured: Measured, *, sensitive: bool) -> bool:
    """Returns whether a claim's rule decides it, whatever the doubts.

    Args:
        measured: The claim's quantities and rule.
        sensitive: Whether the positive control shows the effect.
    """
    found = measured.rule(measured.by_key(), sensitive)
    return found.supported != found.contradicted


def judge(claim: str, measured: Measured) -> Finding:
    """Judges a claim: the verdict is what the rule says, unless a doubt forbids it."""
    rule, quantities = RULES[claim], measured.quantities
    shown = [q for q in quantities if not measured.shown or q.key in measured.shown]
    numbers = "; ".join(q.text() for q in shown)
    if measured.doubts:
        return Finding(claim, UNDECIDED, "; ".join(measured.doubts), quantities)
    found, sensitive = measured.rule(measured.by_key(), True), True
    without = measured.rule(measured.by_key(), False)
    # What contradicts by an absence does so only where the positive control shows the effect.
    if found.contradicted and not without.contradicted and not measured.sensitive():
        if not found.supported:
            return Finding(claim, UNDECIDED, f"{numbers}; {INSENSITIVE}", quantities, needs=SENSITIVITY)
        found, sensitive = without, False
    if found.supported == found.contradicted:
        which = "meets both" if found.supported else "meets neither"
        rules = f"{which}: supported needs {rule.supported}; contradicted needs {rule.contradicted}"
        why = rules if found.supported else found.note or rules
        return Finding(claim, UNDECIDED, f"{numbers}; {why}", quantities, needs=found.needs)
    verdict, why = (SUPPORTED, rule.supported) if found.supported else (CONTRADICTED, rule.contradicted)
    scope = f"{measured.scope}: " if measured.scope else ""
    fragile = "" if _stands(measured, found, sensitive) else f"; {FRAGILE}"
    return Finding(claim, verdict, f"{scope}{numbers}; {found.note or why}{fragile}", quantities)


FRAGILE = "it need not stand after another doubling of the steps"


def _stands(measured: Measured, found: Ruling, sensitive: bool) -> bool:
    """Whether a verdict would be the same where the next doubling goes against each quantity, as far as is known."""
    shifted = {}
    for key, q in measured.by_key().items():
        fall, rise = (0.0 if math.isnan(by) else by for by in (q.fall, q.rise))
        shifted[key] = dataclasses.replace(q, low=q.low - fall, high=q.high + rise, fall=0.0, rise=0.0)
    later = measured.rule(shifted, sensitive)
    return (later.supported, later.contradicted) == (found.supported, found.contradicted)


def unique(doubts: Sequence[str]) -> tuple[str, ...]:
    """Returns each doubt once, in order."""
    return tuple(dict.fromkeys(doubts))
