"""What is found on a claim: its quantities with limits, one verdict, and the reason in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxseg.analysis.statistics import MIN_SEEDS, Interval
from jaxseg.study.claims.rules import RULES

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"


class Lacking(Exception):  # noqa: N818 - not an error: a study need not have everything
    """The study lacks what a claim needs; its text says what. It never leaves this package."""


class Quantity(NamedTuple):
    """A number that a claim rests on."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n_seeds: int = 0
    n_groups: int = 0
    """0 where groups of cases play no part."""
    train_cases: int | None = None
    """The training set size it belongs to where that is not the finding's; -1 where it spans several."""

    def text(self) -> str:
        """For a reason: name, value and limits."""
        if math.isnan(self.low):
            return f"{self.name} {self.value:.3g}"
        return f"{self.name} {self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def quantity(name: str, interval: Interval, n_seeds: int, n_groups: int = 0, size: int | None = None) -> Quantity:
    """A quantity from its interval."""
    return Quantity(name, interval.estimate, interval.low, interval.high, n_seeds, n_groups, size)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One claim, judged."""

    claim: str
    verdict: str
    reason: str
    quantities: tuple[Quantity, ...] = ()


def few_seeds(found: int) -> list[str]:
    """The doubt that too few seeds raise; empty where there are enough."""
    return [] if found >= MIN_SEEDS else [f"needs at least {MIN_SEEDS} seeds, has {found}"]


def lacking(claim: str, reason: str) -> Finding:
    """A claim that nothing can be said about."""
    return Finding(claim, INCONCLUSIVE, reason)


def judge(
    claim: str,
    quantities: Sequence[Quantity],
    *,
    supported: bool,
    contradicted: bool,
    doubts: Sequence[str] = (),
    shown: Sequence[Quantity] | None = None,
) -> Finding:
    """The verdict: what the rule says, unless something forbids it.

    Args:
        claim: A key of `RULES`.
        quantities: All that the claim rests on.
        supported: Whether the rule's condition for it is met.
        contradicted: The same; both, or neither, is inconclusive.
        doubts: What forbids a verdict, in words.
        shown: The quantities that the reason names; None for all of them.
    """
    rule, numbers = RULES[claim], "; ".join(q.text() for q in (quantities if shown is None else shown))
    if doubts:
        return Finding(claim, INCONCLUSIVE, "; ".join(doubts), tuple(quantities))
    if supported == contradicted:
        which = "meets both" if supported else "meets neither"
        reason = f"{numbers}; {which}: supported needs {rule.supported}; contradicted needs {rule.contradicted}"
        return Finding(claim, INCONCLUSIVE, reason, tuple(quantities))
    verdict, why = (SUPPORTED, rule.supported) if supported else (CONTRADICTED, rule.contradicted)
    return Finding(claim, verdict, f"{numbers}; {why}", tuple(quantities))
