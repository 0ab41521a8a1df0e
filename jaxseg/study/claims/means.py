"""Takes what studies of several targets measured of a claim to one mean for each quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxseg.analysis.random_effects import Pooled
from jaxseg.study.claims.filters import ANGLE, at_ends
from jaxseg.study.claims.findings import Quantity
from jaxseg.study.claims.pooling import average, general_name, known_by, over_mean
from jaxseg.study.claims.reuse import LEAD, REUSE
from jaxseg.study.claims.rules import LEVEL, MIN_TARGETS
from jaxseg.study.claims.told import TargetStudy, Told
from jaxseg.study.claims.variability import JUDGED


class Speaking(NamedTuple):
    """The studies that can inform a claim, and the reasons why others cannot."""

    told: dict[str, Told]
    left_out: tuple[str, ...]
    seen: tuple[str, ...] = ()
    """What the checkpoints of others that studies start from may have seen, by study."""


def speaking(claim: str, studies: Mapping[str, TargetStudy]) -> Speaking:
    """Takes what each study tells of a claim; studies that cannot carry a verdict alone are left out and named."""
    told: dict[str, Told] = {}
    left_out: dict[str, list[str]] = {}
    for name, study in studies.items():
        found = study.claims[claim]
        if found.quantities:
            told[name] = found._replace(quantities=at_ends(found.quantities)) if claim == "C5" else found
        else:
            left_out.setdefault(found.left_out, []).append(name)
    without = tuple(f"{', '.join(names)} ({reason})" for reason, names in left_out.items())
    return Speaking(told, without, tuple(f"{name}: {one.seen}" for name, one in told.items() if one.seen))


_ANY: Mapping[str, str] = {"C5": ANGLE, "C11": REUSE, "C11b": LEAD}
"""What keys begin with of quantities any one of which supports a claim."""


def confidence_of(claim: str, key: str, keys: Sequence[str], level: float = LEVEL) -> float:
    """Returns the confidence level of a quantity of a claim; quantities any one of which supports share the level.

    Args:
        claim: The claim.
        key: The key of the quantity.
        keys: The keys of all of its quantities that are known.
        level: The level of the claim.
    """
    if claim == "C10":
        return 1 - level / len(JUDGED)
    prefix = _ANY.get(claim)
    if prefix is None or not key.startswith(prefix):
        return 1 - level
    return 1 - level / max(sum(other.startswith(prefix) for other in keys), 1)


Measurements = Mapping[str, Mapping[str, Sequence[Quantity]]]
"""What the studies of each target measured of a claim, by key and target."""


def measurements(found: Speaking, by: Mapping[str, Sequence[str]]) -> Measurements:
    """Returns what studies measured of a claim, its quantities in the same order whichever study is listed first.

    Args:
        found: The studies that can inform the claim.
        by: The names of the studies of each target.
    """
    own: dict[str, dict[str, list[Quantity]]] = {}
    places: dict[str, int] = {}
    for target, names in by.items():
        for place, q in ((place, q) for name in names for place, q in enumerate(found.told[name].quantities)):
            own.setdefault(q.key, {}).setdefault(target, []).append(q)
            places[q.key] = min(place, places.get(q.key, place))
    return {key: own[key] for key in sorted(own, key=lambda key: (places[key], key))}


def averages_of(claim: str, found: Measurements, level: float) -> tuple[Quantity, ...]:
    """Averages the quantities of one target over its studies, with limits at a level that they share as means do."""
    keys = [key for key, own in found.items() if known_by(own)]
    return tuple(
        average(studies, confidence_of(claim, key, keys, level))
        for key, own in found.items()
        for studies in own.values()
    )


class Means(NamedTuple):
    """A claim's quantities over targets."""

    pooled: tuple[tuple[Quantity, Pooled], ...]
    """The means of what at least `MIN_TARGETS` targets know."""
    unknown: tuple[Quantity, ...]
    """The others, without a value: a rule that asks about all of its quantities must not pass over one."""

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What the rule is asked about."""
        return (*(mean for mean, _ in self.pooled), *self.unknown)

    @property
    def missing(self) -> str:
        """The names of the unknown quantities that a number of the rule stands against; empty if there is none."""
        return ", ".join(q.name for q in self.unknown if q.thresholds)


def means_of(claim: str, found: Measurements) -> Means:
    """Pools the quantities of a claim over targets."""
    keys = [key for key, own in found.items() if len(known_by(own)) >= MIN_TARGETS]
    pooled, unknown = list[tuple[Quantity, Pooled]](), list[Quantity]()
    for key, own in found.items():
        result = over_mean(key, own, confidence=confidence_of(claim, key, keys))
        first = next(iter(own.values()))[0]
        if result is not None:
            pooled.append(result)
        elif first.thresholds or not math.isnan(first.low):
            unknown.append(Quantity(general_name(first), math.nan, key=key, thresholds=first.thresholds))
    return Means(tuple(pooled), tuple(unknown))
