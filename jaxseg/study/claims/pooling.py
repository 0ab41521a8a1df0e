"""Pools a claim's quantities over targets as random effects, from estimates, limits and degrees of freedom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseg.analysis.folds import standard_error, t_quantile
from jaxseg.analysis.random_effects import Pooled, pooled
from jaxseg.study.claims.findings import Quantity
from jaxseg.study.claims.rules import CONFIDENCE, MIN_TARGETS


class Known(NamedTuple):
    """A quantity as an estimate with its variance, on the scale on which targets are pooled."""

    value: float
    variance: float
    df: float
    """Degrees of freedom of the variance."""


def known(found: Quantity) -> Known | None:
    """Returns a quantity on the scale of pooling; None if its limits are unknown or give no variance."""
    if math.isnan(found.low) or math.isnan(found.df) or found.high <= found.low:
        return None
    low, high, value = (math.log(x) if found.log else x for x in (found.low, found.high, found.value))
    return Known(value, standard_error(low, high, found.df, found.confidence) ** 2, found.df)


def of_target(studies: Sequence[Quantity]) -> Known | None:
    """Averages studies of one target; None if none is known.

    The variance stays that of one study, since they share its patients, with the fewest degrees of freedom of all.
    """
    found = [one for one in map(known, studies) if one is not None]
    if not found:
        return None
    value, variance = (float(np.mean([one[field] for one in found])) for field in range(2))
    return Known(value, variance, min(one.df for one in found))


def average(studies: Sequence[Quantity], confidence: float) -> Quantity:
    """Averages studies of one target into one quantity with limits of this confidence; without limits if none has."""
    one, first = of_target(studies), dataclasses.replace(studies[0], **counts([studies]))
    if one is None:
        return dataclasses.replace(first, low=math.nan, high=math.nan, confidence=confidence)
    half = t_quantile(one.df, confidence) * math.sqrt(one.variance)
    turned = math.exp if studies[0].log else float
    value, low, high = map(turned, (one.value, one.value - half, one.value + half))
    return dataclasses.replace(first, value=value, low=low, high=high, df=one.df, confidence=confidence)


def counts(by_target: Iterable[Sequence[Quantity]]) -> dict[str, Any]:
    """Counts what a mean over targets rests on: the fewest seeds of a study, and the test groups of all targets.

    Studies of one target share its patients, who count once: as many as the study with the most of them has.
    """
    targets = list(by_target)
    return {
        "n_seeds": min(q.n_seeds for own in targets for q in own),
        "n_groups": sum(max(q.n_groups for q in own) for own in targets),
    }


def known_by(by: Mapping[str, Sequence[Quantity]]) -> dict[str, Known]:
    """Returns a quantity by target, of the targets whose studies know it."""
    return {target: one for target, own in by.items() if (one := of_target(own)) is not None}


def over_mean(
    key: str, by: Mapping[str, Sequence[Quantity]], *, confidence: float = CONFIDENCE
) -> tuple[Quantity, Pooled] | None:
    """Pools a quantity over targets; None if fewer than `MIN_TARGETS` know it.

    Args:
        key: The name that rules use.
        by: What the studies of each target measured.
        confidence: Confidence level of the mean, whatever that of the studies' own limits is.
    """
    found = known_by(by)
    if len(found) < MIN_TARGETS:
        return None
    every = [q for own in by.values() for q in own]
    # A study leaves a quantity unnamed that equals another of its own; whichever comes first must not matter.
    first = next((q for q in every if q.name), every[0])
    y, v, df = (np.array(column) for column in zip(*found.values(), strict=True))
    result = pooled(y, v, df, confidence=confidence)
    mean = result.mean
    limits = [math.exp(x) if first.log else x for x in (mean.estimate, mean.low, mean.high)]
    whole = dataclasses.replace(
        first,
        name=f"{general_name(first)}, mean over {len(found)} targets",
        value=limits[0],
        low=limits[1],
        high=limits[2],
        df=mean.df,
        confidence=confidence,
        # What studies may change by in another doubling of their steps, on average.
        fall=float(np.mean([q.fall for q in every])),
        rise=float(np.mean([q.rise for q in every])),
        **counts(by.values()),
        train_cases=-1,
        spread=None,
        key=key,
    )
    return whole, result


def general_name(found: Quantity) -> str:
    """Returns the name of a quantity without its number of training cases, which is another for each target."""
    name, _, sizes = found.name.partition(", ")
    if not found.name.endswith("training cases"):
        return found.name
    return f"{name}, most less fewest training cases" if " less " in sizes else name
