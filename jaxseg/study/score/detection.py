"""Makes the tables of lesions that were found, missed and spurious: for each arm, and between arms.

Means and intervals are those of `score.comparisons`, over the rows of cases.csv whose labels are lesions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxseg.metrics import lesions as counted
from jaxseg.study.score import comparisons
from jaxseg.study.score.units import EACH_ITS_OWN, Sources

OF_LESIONS = tuple(name for name in counted.COLUMNS if name not in ("lesions_predicted", "lesions_spurious"))
"""Metrics of cases whose reference holds the label, as everywhere."""
OF_ALL_CASES = ("lesions_spurious",)
"""Metrics of all cases: what is found in a case without lesions is wrong as well."""

_STATUS_COUNTS = frozenset({"n_missed", "n_spurious", "n_absent", "n_missed_a", "n_missed_b"}) | {
    *("n_spurious_a", "n_spurious_b", "probability_of_improvement")
}
"""Columns of scores of whole masks, where lower values are better for distances alone."""
SUMMARY_COLUMNS = tuple(name for name in comparisons.SUMMARY_COLUMNS if name not in _STATUS_COUNTS)
COMPARISON_COLUMNS = tuple(name for name in comparisons.COMPARISON_COLUMNS if name not in _STATUS_COUNTS)


def _parts(cases: pd.DataFrame, lesions: Sequence[str]) -> list[tuple[pd.DataFrame, tuple[str, ...]]]:
    """The rows that each group of metrics is taken over, with these metrics."""
    if cases.empty:  # every run diverged
        return []
    own = cases[cases["label"].isin(list(lesions))].assign(region=False)
    return [(own, OF_LESIONS), (own.assign(status="ok"), OF_ALL_CASES)]


def summary(
    cases: pd.DataFrame, lesions: Sequence[str], *, confidence: float, sources: Sources = EACH_ITS_OWN
) -> pd.DataFrame:
    """Tabulates the mean of each metric by arm, train size, fold and label, as `comparisons.summary` does.

    Args:
        cases: Rows of cases.csv with lesions.
        lesions: Labels and regions that are lesions.
        confidence: Confidence level of the intervals.
        sources: The source networks of the runs.

    Returns:
        The columns `SUMMARY_COLUMNS`; counts are means per case.
    """
    parts = [
        comparisons.summary(rows, confidence=confidence, metrics=metrics, sources=sources)
        for rows, metrics in _parts(cases, lesions)
    ]
    return _joined(parts, SUMMARY_COLUMNS)


def differences(
    cases: pd.DataFrame,
    lesions: Sequence[str],
    arms: Sequence[str],
    *,
    confidence: float,
    rng: np.random.Generator,
    sources: Sources = EACH_ITS_OWN,
) -> pd.DataFrame:
    """Compares each arm with the baseline, as `comparisons.comparisons` does.

    Args:
        cases: Rows of cases.csv with lesions.
        lesions: Labels and regions that are lesions.
        arms: The study's arms in their order.
        confidence: Confidence level of the intervals.
        rng: Generator of sign flips.
        sources: The source networks of the runs.

    Returns:
        The columns `COMPARISON_COLUMNS`. `p_maxt` adjusts for the metrics of lesions together, and for those of all
        cases together.
    """
    parts = [
        comparisons.comparisons(rows, arms, confidence=confidence, rng=rng, metrics=metrics, sources=sources)
        for rows, metrics in _parts(cases, lesions)
    ]
    return _joined(parts, COMPARISON_COLUMNS)


def _joined(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    rows = [part for part in parts if len(part)]
    return pd.concat(rows, ignore_index=True)[list(columns)] if rows else pd.DataFrame(columns=list(columns))
