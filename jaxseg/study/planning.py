"""Where scores vary, and how many seeds a difference would need to be known well enough: tables for the next study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.analysis import statistics
from jaxseg.study.comparisons import METRICS, baseline_of
from jaxseg.study.scores import contrast, group_means, read_scores

SEEDS = (4, 8, 16, 32, 64)
"""Numbers of seeds that `planning` looks ahead to."""

VARIANCE_COLUMNS = ("arm", "train_cases", "fold", "label", "metric", "source", "variance", "share", "df")


def variance(cases: pd.DataFrame, *, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Splits the variance of each arm's scores into seeds, groups and what is particular to a seed on a group.

    Args:
        cases: rows of cases.csv.
        metrics: columns of it.

    Returns:
        The columns `VARIANCE_COLUMNS`, three rows (`seed`, `group`, `seed x group`) for each arm, variant, label and
        metric; see `statistics.variance_split`. Groups without a value for every seed are left out; arms with fewer
        than two seeds or two groups give no rows.
    """
    rows: list[dict[str, Any]] = []
    for scores in read_scores(cases, metrics):
        for arm in scores.seeds:
            for metric in scores.metrics:
                values = group_means(scores.of(arm, metric), scores.groups)
                values = values[:, np.isfinite(values).all(0)]
                if min(values.shape) < 2:
                    continue
                for source in statistics.variance_split(values, ("seed", "group")):
                    rows.append(
                        {
                            **{"arm": arm, "train_cases": scores.train_cases, "fold": scores.fold},
                            **{"label": scores.label, "metric": metric, "source": " x ".join(source.factors)},
                            **{"variance": source.variance, "share": source.share, "df": source.df},
                        }
                    )
    return pd.DataFrame(rows, columns=list(VARIANCE_COLUMNS))


PLANNING_COLUMNS = (
    *("metric", "label", "train_cases", "fold", "arm_a", "arm_b", "sd_seed", "sd_group", "sd_residual"),
    *("n_groups", "n_seeds", "half_width", "half_width_limit"),
)


def planning(
    cases: pd.DataFrame, arms: Sequence[str], *, confidence: float, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """How wide the intervals of `comparisons` would be with other numbers of seeds, the cases staying the same.

    Args:
        cases: rows of cases.csv, of this study as the pilot.
        arms: the study's arms in their order.
        confidence: level of the intervals.
        metrics: columns of `cases`.

    Returns:
        The columns `PLANNING_COLUMNS`, one row for each comparison and number of seeds (`SEEDS` and the study's own).
        The spread of the difference is estimated from this study (`statistics.components`, itself uncertain with few
        seeds); `half_width` is what to expect, and `half_width_limit` what endless seeds would leave with these
        groups. Comparisons with fewer than two seeds or groups, or with infinite distances, give no rows.
    """
    baseline = baseline_of(arms)
    rows: list[dict[str, Any]] = []
    for scores in read_scores(cases, metrics):
        for arm in (a for a in arms if a != baseline and {a, baseline} <= scores.seeds.keys()):
            for metric in scores.metrics:
                d = contrast(scores, {arm: 1.0, baseline: -1.0}, metric).d
                if min(d.shape) < 2 or not np.isfinite(d).all():
                    continue
                spread, num_groups = statistics.components(d), d.shape[1]

                # Averaged over endless seeds a difference is that of the groups alone, whatever their number.
                groups_alone = statistics.Components(0.0, spread.group, 0.0)
                limit = statistics.expected_half_width(groups_alone, 2, num_groups, confidence=confidence)
                rows += [
                    {
                        **{"metric": metric, "label": scores.label, "train_cases": scores.train_cases},
                        **{"fold": scores.fold, "arm_a": arm, "arm_b": baseline},
                        **{f"sd_{name}": value**0.5 for name, value in spread._asdict().items()},
                        **{"n_groups": num_groups, "n_seeds": num_seeds},
                        "half_width": statistics.expected_half_width(
                            spread, num_seeds, num_groups, confidence=confidence
                        ),
                        "half_width_limit": limit,
                    }
                    for num_seeds in sorted({*SEEDS, len(d)})
                ]
    return pd.DataFrame(rows, columns=list(PLANNING_COLUMNS))
