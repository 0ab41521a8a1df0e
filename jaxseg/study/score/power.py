"""Tabulates where scores vary, and how many seeds a difference would need: tables for planning the next study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from jaxseg.analysis import variance_components
from jaxseg.streams import STREAMS
from jaxseg.study.score.comparisons import METRICS, baseline_of
from jaxseg.study.score.scores import contrast, group_means, read_scores

SEEDS = (4, 8, 16, 32, 64)
"""Numbers of seeds that `planning` looks ahead to."""

VARIANCE_COLUMNS = (
    *("arm", "train_cases", "fold", "label", "metric", "source", "variance", "share", "df"),
    *("n_runs", "n_left_out"),
)


def variance(cases: pd.DataFrame, *, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Splits the variance of each arm's scores into what runs differ in, groups, and their interactions.

    Args:
        cases: rows of cases.csv.
        metrics: columns of it.

    Returns:
        The columns `VARIANCE_COLUMNS`, one row a source for each arm, variant, label and metric: `seed`, `group` and
        `seed x group`; in arms of crossed ids the streams that vary in place of the seed (`init`, `order`, `group`,
        `init x order`, ...). See `variance_components.variance_split`: it needs every cell, so that where crossed runs
        are missing (they diverged) the ids that lack most are left out until the others are fully crossed, and groups
        without a value for every run are left out. Arms left with one level of a factor give no rows.
    """
    rows: list[dict[str, Any]] = []
    of_seeds = _ids_of_seeds(cases)
    for scores in read_scores(cases, metrics):
        for arm, seeds in scores.seeds.items():
            factors, ids = _factors(of_seeds.get(arm), seeds)
            grid = complete_grid(ids)
            for metric in scores.metrics:
                values = group_means(scores.of(arm, metric), scores.groups)[grid]
                values = values[..., np.isfinite(values).all(tuple(range(grid.ndim)))]
                if min(values.shape) < 2:
                    continue
                for source in variance_components.variance_split(values, (*factors, "group")):
                    rows.append(
                        {
                            **{"arm": arm, "train_cases": scores.train_cases, "fold": scores.fold},
                            **{"label": scores.label, "metric": metric, "source": " x ".join(source.factors)},
                            **{"variance": source.variance, "share": source.share, "df": source.df},
                            **{"n_runs": grid.size, "n_left_out": len(seeds) - grid.size},
                        }
                    )
    return pd.DataFrame(rows, columns=list(VARIANCE_COLUMNS))


_ID_COLUMNS = {stream: f"{stream}_id" for stream in STREAMS}


def _ids_of_seeds(cases: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The ids of the streams of each arm's seeds; nothing of tables without them."""
    if not set(_ID_COLUMNS.values()) <= set(cases):
        return {}
    known = cases.drop_duplicates(["arm", "seed"]).set_index("seed")
    return {str(arm): own[list(_ID_COLUMNS.values())] for arm, own in known.groupby("arm", sort=False)}


def _factors(
    ids_of_seeds: pd.DataFrame | None, seeds: Int[np.ndarray, " runs"]
) -> tuple[tuple[str, ...], Int[np.ndarray, "runs factors"]]:
    """What an arm's runs differ in, and its ids by run: the seed, or the streams that vary apart from each other.

    Streams whose ids always go together (every stream of a run fed by its seed) cannot be told apart.
    """
    seed_alone = ("seed",), seeds[:, None]
    if ids_of_seeds is None:
        return seed_alone
    of_seed = ids_of_seeds.loc[seeds]
    varied = [stream for stream, column in _ID_COLUMNS.items() if of_seed[column].nunique() > 1]
    ids = of_seed[[_ID_COLUMNS[stream] for stream in varied]]
    if len(varied) < 2 or len(ids.drop_duplicates()) == max(ids.nunique()):
        return seed_alone
    return tuple(varied), ids.to_numpy()


def complete_grid(ids: Int[np.ndarray, "runs factors"]) -> Int[np.ndarray, " *levels"]:
    """Selects the fully crossed runs: one axis per factor, with ascending ids and the index of the run in each cell.

    While a cell is empty, the id that lacks the largest share of its runs is removed; of several the last factor and
    id, so that all tables leave out the same.

    >>> complete_grid(np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]))
    array([[0, 1],
           [2, 3]])
    """
    levels, positions = zip(*(np.unique(column, return_inverse=True) for column in ids.T), strict=True)
    grid = np.full([len(found) for found in levels], -1)
    grid[positions] = np.arange(len(ids))
    while (grid < 0).any():
        axes = range(grid.ndim)
        lacking = [(grid < 0).mean(tuple(other for other in axes if other != axis)) for axis in axes]
        _, axis, level = max((share, axis, level) for axis in axes for level, share in enumerate(lacking[axis]))
        grid = np.delete(grid, level, axis)
    return grid


PLANNING_COLUMNS = (
    *("metric", "label", "train_cases", "fold", "arm_a", "arm_b", "sd_seed", "sd_group", "sd_residual"),
    *("n_groups", "n_seeds", "half_width", "half_width_limit"),
)


def planning(
    cases: pd.DataFrame, arms: Sequence[str], *, confidence: float, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Estimates the width of the intervals of `comparisons` with other numbers of seeds and the same cases.

    Args:
        cases: rows of cases.csv, of this study as the pilot.
        arms: the study's arms in their order.
        confidence: Confidence level of the intervals.
        metrics: columns of `cases`.

    Returns:
        The columns `PLANNING_COLUMNS`, one row for each comparison and number of seeds (`SEEDS` and the study's own).
        The spread of the difference is estimated from this study (`variance_components.components`, itself uncertain
        with few seeds); `half_width` is what to expect, and `half_width_limit` what endless seeds would leave with
        these groups. Comparisons with fewer than two seeds or groups, or with infinite distances, give no rows.
    """
    baseline = baseline_of(arms)
    rows: list[dict[str, Any]] = []
    for scores in read_scores(cases, metrics):
        for arm in (a for a in arms if a != baseline and {a, baseline} <= scores.seeds.keys()):
            for metric in scores.metrics:
                d = contrast(scores, {arm: 1.0, baseline: -1.0}, metric).d
                if min(d.shape) < 2 or not np.isfinite(d).all():
                    continue
                spread, num_groups = variance_components.components(d), d.shape[1]

                # Averaged over endless seeds a difference is that of the groups alone, whatever their number.
                groups_alone = variance_components.Components(0.0, spread.group, 0.0)
                limit = variance_components.expected_half_width(groups_alone, 2, num_groups, confidence=confidence)
                rows += [
                    {
                        **{"metric": metric, "label": scores.label, "train_cases": scores.train_cases},
                        **{"fold": scores.fold, "arm_a": arm, "arm_b": baseline},
                        **{f"sd_{name}": value**0.5 for name, value in spread._asdict().items()},
                        **{"n_groups": num_groups, "n_seeds": num_seeds},
                        "half_width": variance_components.expected_half_width(
                            spread, num_seeds, num_groups, confidence=confidence
                        ),
                        "half_width_limit": limit,
                    }
                    for num_seeds in sorted({*SEEDS, len(d)})
                ]
    return pd.DataFrame(rows, columns=list(PLANNING_COLUMNS))
