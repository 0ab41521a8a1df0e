"""Makes tables of ensembles: what the seeds of each arm reach as one network, and how such networks differ.

There is one ensemble of an arm, so that its interval is over test cases alone: it says how far the score might move
with other patients, and nothing about other seeds. Averages are those of `score.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.analysis import statistics
from jaxseg.study.score.comparisons import DISTANCES, METRICS, baseline_of
from jaxseg.study.score.scores import Scores, contrast, group_means, read_scores

INFERENCE = "new groups, these networks"

SUMMARY_COLUMNS = (
    *("test_set", "arm", "train_cases", "fold", "label", "metric", "unit", "mean", "ci_low", "ci_high", "sd"),
    *("n_members", "n_groups", "n_cases", "n_missed", "n_spurious", "n_absent"),
)


def _scores(cases: pd.DataFrame) -> Iterator[Scores]:
    """The arrays of ensembles, each as an arm of one seed."""
    return read_scores(cases.assign(seed=0), METRICS)


def _members(cases: pd.DataFrame) -> Mapping[tuple[str, int], int]:
    """The number of members by arm and training set size, the smallest of its folds."""
    fewest = cases.groupby(["arm", "train_cases"])["n_members"].min().reset_index()
    return {(row["arm"], row["train_cases"]): int(row["n_members"]) for row in fewest.to_dict("records")}


def summary(cases: pd.DataFrame, *, test_set: str, confidence: float) -> pd.DataFrame:
    """Tabulates what each ensemble reaches by training set size, fold (-1: all together), label and metric.

    Args:
        cases: Rows of ensemble_cases.csv on one test set.
        test_set: Its name.
        confidence: Confidence level of the intervals.

    Returns:
        The columns `SUMMARY_COLUMNS`; the interval and `sd` are over groups.
    """
    rows: list[dict[str, Any]] = []
    if cases.empty:
        return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    members, unit = _members(cases), str(cases["unit"].iloc[0])
    for scores in _scores(cases):
        for arm, counts in scores.counts.items():
            for metric in scores.metrics:
                by_group = group_means(scores.of(arm, metric), scores.groups).ravel()
                by_group = by_group[~np.isnan(by_group)]
                interval = statistics.t_interval(by_group, confidence=confidence)
                finite = len(by_group) > 1 and bool(np.isfinite(by_group).all())
                rows.append(
                    {
                        **{"test_set": test_set, "arm": arm, "train_cases": scores.train_cases, "fold": scores.fold},
                        **{"label": scores.label, "metric": metric, "unit": unit if metric in DISTANCES else ""},
                        **{"mean": interval.estimate, "ci_low": interval.low, "ci_high": interval.high},
                        "sd": float(by_group.std(ddof=1)) if finite else math.nan,
                        **{"n_members": members[arm, scores.train_cases], "n_groups": len(by_group)},
                        "n_cases": scores.num_cases,
                        **{f"n_{name}": number for name, number in counts._asdict().items()},
                    }
                )
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


COMPARISON_COLUMNS = (
    *("test_set", "metric", "label", "train_cases", "fold", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high"),
    *("n_members_a", "n_members_b", "n_groups", "n_cases", "inference", "note"),
)


def comparisons(cases: pd.DataFrame, arms: Sequence[str], *, test_set: str, confidence: float) -> pd.DataFrame:
    """Compares the ensemble of each arm with that of the baseline (`scratch` if present, else the first arm).

    Args:
        cases: Rows of ensemble_cases.csv on one test set.
        arms: The study's arms in their order.
        test_set: The name of the test set.
        confidence: Confidence level of the intervals.

    Returns:
        The columns `COMPARISON_COLUMNS`: differences arm_a minus arm_b, case by case, with a t interval over groups.
    """
    rows: list[dict[str, Any]] = []
    if cases.empty:
        return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
    members, baseline = _members(cases), baseline_of(arms)
    for scores in _scores(cases):
        for arm in (arm for arm in arms if arm != baseline and {arm, baseline} <= scores.seeds.keys()):
            for metric in scores.metrics:
                found = contrast(scores, {arm: 1.0, baseline: -1.0}, metric)
                interval = statistics.t_interval(found.d.ravel(), confidence=confidence)
                lost = f"{found.left_out} cases without a value for both left out" if found.left_out else ""
                rows.append(
                    {
                        **{"test_set": test_set, "metric": metric, "label": scores.label},
                        **{"train_cases": scores.train_cases, "fold": scores.fold, "arm_a": arm, "arm_b": baseline},
                        **{"mean_diff": interval.estimate, "ci_low": interval.low, "ci_high": interval.high},
                        "n_members_a": members[arm, scores.train_cases],
                        "n_members_b": members[baseline, scores.train_cases],
                        **{"n_groups": found.d.shape[1], "n_cases": found.num_cases},
                        **{"inference": INFERENCE, "note": lost},
                    }
                )
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
