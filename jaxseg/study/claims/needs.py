"""Says what would decide an undecided claim: more seeds, more test groups, or neither."""

from __future__ import annotations

import math

from jaxseg.analysis.folds import expected_half_width_over_folds, t_quantile
from jaxseg.analysis.statistics import MIN_SEEDS
from jaxseg.study.claims.findings import UNDECIDED, Quantity, count_of_seeds

MAX_SEEDS, MAX_GROUPS = 128, 1024
"""Numbers of seeds and test groups beyond which a study is unrealistic."""
MAX_TARGETS = 64
"""Number of targets beyond which verdicts over targets are unrealistic."""


def half_width_needed(found: Quantity) -> float:
    """Returns the half width at which the estimate would get a grade or clear the rule's numbers; NaN if there is none.

    An estimate that stays where it is gets a grade once its interval excludes zero, or every difference that matters.
    """
    value, thresholds = found.value, found.thresholds
    if found.log:
        value, thresholds = math.log(value), tuple(map(math.log, thresholds))
    if found.scale is not None and found.grade == UNDECIDED:
        least, most = found.scale.limits
        nothing = found.scale.nothing
        if found.log:
            least, most, nothing = math.log(least), math.log(most), math.log(nothing)
        return max(abs(value - nothing), min(value - least, most - value))
    distances = [abs(value - threshold) for threshold in thresholds]
    return min(distances, default=math.nan)


def _half_width(found: Quantity) -> float:
    if found.log:
        return (math.log(found.high) - math.log(found.low)) / 2
    return (found.high - found.low) / 2


def seeds_needed(found: Quantity) -> int | None:
    """Returns the fewest seeds whose interval would be narrow enough to decide; None if no number would."""
    wanted = half_width_needed(found)
    if not wanted > 0:
        return None
    for seeds in range(max(MIN_SEEDS, found.n_seeds) + found.folds, MAX_SEEDS + 1, found.folds):
        if found.spread is not None:
            width = expected_half_width_over_folds(
                found.spread,
                seeds // found.folds,
                found.n_groups // found.folds,
                found.folds,
                confidence=found.confidence,
            )
        else:
            width = _half_width(found) * math.sqrt(found.n_seeds / seeds)
        if width <= wanted:
            return seeds
    return None


def groups_needed(found: Quantity) -> int | None:
    """Returns the fewest test groups that would decide with twice the present seeds; None if no number would."""
    if found.spread is None:
        return None
    wanted, seeds = half_width_needed(found), 2 * found.n_seeds // found.folds
    groups = found.n_groups // found.folds
    while wanted > 0 and groups <= MAX_GROUPS:
        groups += max(groups // 8, 1)
        args = (found.spread, seeds, groups, found.folds)
        if expected_half_width_over_folds(*args, confidence=found.confidence) <= wanted:
            return groups * found.folds
    return None


def what_decides(found: Quantity) -> str:
    """Says what would decide a quantity whose interval is too wide; empty if its limits are unknown."""
    if math.isnan(found.low) or math.isnan(found.high) or (found.log and found.value <= 0):
        return ""
    seeds = seeds_needed(found)
    if seeds is not None:
        return f"about {count_of_seeds(seeds, found.seeds_each)}, if the estimate stays"
    groups = groups_needed(found)
    if groups is not None:
        twice = count_of_seeds(2 * found.n_seeds, found.seeds_each)
        return f"no number of seeds, the patients limit it: about {groups} test groups with {twice}"
    return f"no realistic number of seeds or patients: {found.name} is too near a limit of the rule"


def of_undecided(quantities: tuple[Quantity, ...]) -> str:
    """Returns the needs of the first undecided quantity, which is the one that a claim rests on most."""
    return next(filter(None, map(what_decides, _undecided(quantities))), "")


def _undecided(quantities: tuple[Quantity, ...]) -> list[Quantity]:
    """Quantities whose limits hold a number of the rule, then those without a grade."""
    graded = [q for q in quantities if q.grade == UNDECIDED]
    return [*(q for q in quantities if any(q.low <= t <= q.high for t in q.thresholds)), *graded]


def targets_needed(quantities: tuple[Quantity, ...]) -> str:
    """Returns how many targets would decide the first undecided mean or slope over targets, if its estimate stays.

    Its error falls with the square root of the number of targets, and its degrees of freedom grow with them.
    """
    for found in _undecided(quantities):
        if math.isnan(found.low) or math.isnan(found.df) or not (wanted := half_width_needed(found)) > 0:
            continue
        for more in range(1, MAX_TARGETS):
            df = found.df + more
            narrower = t_quantile(df, found.confidence) / t_quantile(found.df, found.confidence)
            # A mean has one degree of freedom fewer than targets; counting a slope's so errs by a target.
            if _half_width(found) * narrower * math.sqrt((found.df + 1) / (df + 1)) <= wanted:
                return f"about {more} more targets, if {found.name} stays"
        return f"no realistic number of targets: {found.name} is too near a limit of the rule"
    return ""
