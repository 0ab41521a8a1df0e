"""What is found on a claim: its quantities with limits and grades, one verdict, and the reason in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxseg.analysis.statistics import MIN_SEEDS, Interval
from jaxseg.analysis.variance_components import Components
from jaxseg.study.claims.rules import DELTA, RULES, SHORTER

SUPPORTED, CONTRADICTED, UNDECIDED, VOID = "supported", "contradicted", "undecided", "void"
DEPENDS = "depends on the target"
"""Over targets: they differ, and that is the answer."""
MATERIAL_GAIN, GAIN, SAME, LOSS, MATERIAL_LOSS = (
    *("material gain", "gain", "no material difference"),
    *("loss", "material loss"),
)


class Lacking(Exception):  # noqa: N818 - not an error: a study need not have everything
    """The study lacks an arm, a size or a table that a claim needs; its text says which."""


class Void(Exception):  # noqa: N818 - nor is this
    """The study has all that a claim needs, and its results make the claim mean nothing; the text says why."""


class Scale(NamedTuple):
    """What of a quantity is material: where it is nothing, and how far from there it matters."""

    nothing: float
    delta: float
    ratio: bool = False
    """Distances are ratios: `delta` times more or less."""

    @property
    def limits(self) -> tuple[float, float]:
        """Between these a difference does not matter."""
        if self.ratio:
            return self.nothing / self.delta, self.nothing * self.delta
        return self.nothing - self.delta, self.nothing + self.delta


OF_DSC, OF_STEPS = Scale(0.0, DELTA), Scale(1.0, SHORTER, ratio=True)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that a claim rests on."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    df: float = math.nan
    """Degrees of freedom of its limits."""
    confidence: float = math.nan
    """Of its limits."""
    n_seeds: int = 0
    n_groups: int = 0
    """0 where groups of cases play no part."""
    train_cases: int | None = None
    """The training set size it belongs to where that is not the finding's; -1 where it spans several."""
    key: str = ""
    """What rules call it, the same for every study."""
    scale: Scale | None = None
    """Where it has a grade."""
    log: bool = False
    """A ratio: its limits are those of its logarithm."""
    thresholds: tuple[float, ...] = ()
    """The numbers of the rule that it is held against."""
    fall: float = math.nan
    """How much lower its low may be after one more doubling of the steps; NaN where that is not known."""
    rise: float = math.nan
    """The same for its high."""
    spread: Components | None = None
    """Variance components, of one fold, where seeds and groups both count."""
    folds: int = 1

    @property
    def projected_low(self) -> float:
        """The low after one more doubling of the steps, should it bring the quantity down."""
        return self.low - self.fall

    @property
    def projected_high(self) -> float:
        """The high after one more doubling, should it bring the quantity up."""
        return self.high + self.rise

    @property
    def grade(self) -> str:
        """How large it is, in words; empty for quantities without a scale."""
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
        """For a reason: name, value and limits."""
        if math.isnan(self.low):
            return f"{self.name} {self.value:.3g}"
        return f"{self.name} {self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def quantity(name: str, interval: Interval, confidence: float, **more: object) -> Quantity:
    """A quantity from its interval."""
    limits = {"low": interval.low, "high": interval.high, "df": interval.df, "confidence": confidence}
    return Quantity(name, interval.estimate, **{"key": name, **limits, **more})  # type: ignore[arg-type]


class Ruling(NamedTuple):
    """What a rule says of a claim's quantities."""

    supported: bool
    contradicted: bool
    note: str = ""
    """In words, where neither holds for a reason of its own."""


def _insensitive() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Measured:
    """A claim's quantities, and the rule that they are held against: of one study, or of several targets together."""

    quantities: tuple[Quantity, ...]
    rule: Callable[[Mapping[str, Quantity], bool], Ruling]
    """From the quantities by key, and whether a positive control showed the effect."""
    doubts: tuple[str, ...] = ()
    """What forbids a verdict, in words."""
    arms: tuple[str, ...] = ()
    """Whose training the quantities depend on."""
    scope: str = ""
    """What the finding is limited to, in words."""
    sensitive: Callable[[], bool] = _insensitive
    """Whether the study's positive control shows the effect; asked only where an absence hangs on it."""
    shown: tuple[str, ...] = ()
    """Keys of the quantities that the reason names; all where empty."""

    def by_key(self) -> dict[str, Quantity]:
        """The quantities by their keys."""
        return {q.key: q for q in self.quantities}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One claim, judged."""

    claim: str
    verdict: str
    reason: str
    quantities: tuple[Quantity, ...] = ()
    tag: str = ""
    """Whether the runs were at rest, or what another doubling of their steps brings."""
    exploratory: str = ""
    """Why the finding is none of those that were fixed in advance; empty where it is."""
    needs: str = ""
    """What would decide it, in words."""
    look: int | None = None
    """The number of seeds at which the verdict fell, where looks were declared."""
    lacks: bool = False
    """The study was never meant to speak of it: it has no arm, size or table for it."""


def few_seeds(found: int) -> list[str]:
    """The doubt that too few seeds raise; empty where there are enough."""
    return [] if found >= MIN_SEEDS else [f"needs at least {MIN_SEEDS} seeds, has {found}"]


INSENSITIVE = "nothing here could have shown it: an absence counts only where self_transfer shows the effect"


def judge(claim: str, measured: Measured) -> Finding:
    """The verdict: what the rule says, unless something forbids it."""
    rule, quantities = RULES[claim], measured.quantities
    shown = [q for q in quantities if not measured.shown or q.key in measured.shown]
    numbers = "; ".join(q.text() for q in shown)
    if measured.doubts:
        return Finding(claim, UNDECIDED, "; ".join(measured.doubts), quantities)
    found = measured.rule(measured.by_key(), True)
    if found.contradicted and not found.supported:
        without = measured.rule(measured.by_key(), False)
        if not without.contradicted and not measured.sensitive():
            return Finding(claim, UNDECIDED, f"{numbers}; {INSENSITIVE}", quantities)
    if found.supported == found.contradicted:
        which = "meets both" if found.supported else "meets neither"
        why = found.note or f"{which}: supported needs {rule.supported}; contradicted needs {rule.contradicted}"
        return Finding(claim, UNDECIDED, f"{numbers}; {why}", quantities)
    verdict, why = (SUPPORTED, rule.supported) if found.supported else (CONTRADICTED, rule.contradicted)
    scope = f"{measured.scope}: " if measured.scope else ""
    fragile = "" if _stands(measured, found) else f"; {FRAGILE}"
    return Finding(claim, verdict, f"{scope}{numbers}; {found.note or why}{fragile}", quantities)


FRAGILE = "it need not stand after another doubling of the steps"


def _stands(measured: Measured, found: Ruling) -> bool:
    """Whether a verdict would be the same where the next doubling goes against each quantity, as far as is known."""
    shifted = {}
    for key, q in measured.by_key().items():
        fall, rise = (0.0 if math.isnan(by) else by for by in (q.fall, q.rise))
        shifted[key] = dataclasses.replace(q, low=q.low - fall, high=q.high + rise, fall=0.0, rise=0.0)
    later = measured.rule(shifted, True)
    return (later.supported, later.contradicted) == (found.supported, found.contradicted)


def unique(doubts: Sequence[str]) -> tuple[str, ...]:
    """Each doubt once, in order."""
    return tuple(dict.fromkeys(doubts))
