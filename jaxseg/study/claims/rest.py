"""Finds whether runs were at rest, and how much another doubling of their steps may bring.

No study trains until nothing changes. Instead of forbidding verdicts on runs that still improve, a verdict must hold
at the steps that were trained *and* after one more doubling that goes against it. On learning curves of a constant rate
the gain of a doubling bounds that of the next: its upper limit is what a verdict is projected by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxseg.analysis.folds import t_quantile
from jaxseg.study.claims.evidence import Evidence, Seeds, remembered, units, validations
from jaxseg.study.claims.findings import Lacking, Void
from jaxseg.study.claims.rules import (
    HALFWAY,
    LATE,
    NEXT_CHANGE,
    PROJECTION_CONFIDENCE,
    REST,
    REST_CONFIDENCE,
)
from jaxseg.study.score.units import mean_of_units
from jaxseg.text import signed

AT_REST, NOT_KNOWN = "at rest", "not known"


def upper_limit(values: Float[np.ndarray, " seeds"], confidence: float) -> float:
    """Computes a one-sided upper limit of a mean over seeds from Student's t; NaN below two seeds."""
    if len(values) < 2:
        return math.nan
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) + t_quantile(len(values) - 1, 2 * confidence - 1) * error


class Growth(NamedTuple):
    """The gain of the last doubling of an arm's steps, in validation DSC."""

    mean: float
    upper: float
    """The upper limit of the gain, by which verdicts are projected."""
    rests: bool
    steps: int

    @property
    def harm(self) -> float:
        """The most that the next doubling may bring."""
        return max(self.upper, 0.0)


def _window(runs: pd.DataFrame, total: int, window: tuple[float, float]) -> pd.Series:
    """Mean validation DSC of each run over a window of its steps."""
    low, high = (share * total for share in window)
    steps = runs.columns.to_numpy(np.float64)
    return runs.loc[:, (steps > low) & (steps <= high)].mean(axis=1)


def gains_of_last_doubling(evidence: Evidence, arm: str) -> tuple[Seeds, Float[np.ndarray, " seeds"]]:
    """Computes by seed how much mean validation DSC rose from half of the steps to the end, averaged over folds."""
    runs, total = validations(evidence, arm), evidence.arm(arm).steps
    gains = (_window(runs, total, LATE) - _window(runs, total, HALFWAY)).dropna()
    by_seed = gains.groupby(level="seed")
    count = by_seed.size()
    # A seed that lacks a fold which others have is left out, as everywhere.
    whole = by_seed.mean()[count == count.max()] if len(gains) else gains
    return whole.index.get_level_values("seed").to_numpy(), whole.to_numpy(np.float64)


def growth(evidence: Evidence, arm: str) -> Growth | None:
    """Returns the gain that another doubling of an arm's steps may bring at this training set size; None if unknown."""
    return remembered(evidence, "growth", arm, lambda: _growth(evidence, arm))


def _growth(evidence: Evidence, arm: str) -> Growth | None:
    found = evidence.arm(arm)
    if found.kind != "network":
        return Growth(0.0, 0.0, rests=True, steps=0)
    try:
        seeds, gains = gains_of_last_doubling(evidence, arm)
    except (Lacking, Void):
        return None
    if len(seeds) < 2:
        return None
    gains = mean_of_units(gains, units(evidence, arm, seeds))
    rests = upper_limit(gains, REST_CONFIDENCE) < REST
    return Growth(float(gains.mean()), upper_limit(gains, PROJECTION_CONFIDENCE), rests, found.steps)


def growth_of_contrast(
    growths: Mapping[tuple[str, int], Growth | None], weights: Mapping[tuple[str, int], float]
) -> tuple[float, float]:
    """Computes how far a contrast of arms' DSC may fall and rise if each arm trains for twice the steps.

    It falls as arms of negative weight grow, and rises as those of positive weight do.

    Args:
        growths: The growth of each arm at each training set size.
        weights: The weights of the contrast, with the same keys.

    Returns:
        Fall and rise; NaN if an arm's growth is unknown.
    """
    fall = rise = 0.0
    for term, weight in weights.items():
        grown = growths[term]
        if grown is None:
            return math.nan, math.nan
        fall += max(-weight, 0.0) * grown.harm
        rise += max(weight, 0.0) * grown.harm
    return fall, rise


def next_change(differences: Float[np.ndarray, " seeds"]) -> tuple[float, float]:
    """Computes how far a filter statistic may fall and rise, from each seed's change over the last doubling."""
    down, up = (upper_limit(sign * differences, PROJECTION_CONFIDENCE) for sign in (-1, 1))
    return NEXT_CHANGE * max(down, 0.0), NEXT_CHANGE * max(up, 0.0)


def tag_of(evidence: Evidence, arms: tuple[str, ...]) -> str:
    """Says that the runs of all these arms were at rest, or else gives the steps and the largest gain of a doubling."""
    networks = [arm for arm in arms if arm in evidence.record.arms and evidence.arm(arm).kind == "network"]
    found = [growth(evidence, arm) for arm in networks]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return NOT_KNOWN
    if all(one.rests for one in known):
        return AT_REST
    most = max(known, key=lambda one: one.mean)
    return f"at {most.steps:,} steps, {signed(most.mean)} a doubling"
