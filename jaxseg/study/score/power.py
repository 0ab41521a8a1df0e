"""Tabulates where scores vary, and how many seeds a difference would need: tables for planning the next study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from jaxseg.analysis.folds import components_over_folds, expected_half_width_over_folds, variance_split_over_folds
from jaxseg.analysis.variance_components import Components
from jaxseg.streams import STREAMS
from jaxseg.study.score.comparisons import METRICS, baseline_of
from jaxseg.study.score.scores import Scores, contrast, group_means, read_scores
from jaxseg.study.score.units import EACH_ITS_OWN, Sources

SEEDS = (4, 8, 16, 32, 64)
"""Numbers of seeds that `planning` looks ahead to."""
_ENDLESS = 2**20
"""So many seeds that only the groups limit an interval."""

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
        without a value for every run are left out. Arms left with one level of a factor give no rows. Where folds
        rotate over seeds, those of all folds together are means over folds.
    """
    rows: list[dict[str, Any]] = []
    of_seeds = _ids_of_seeds(cases)
    for scores in read_scores(cases, metrics):
        for arm, seeds in scores.seeds.items():
            for metric in scores.metrics:
                factors, folds = _crossed(scores, arm, metric, of_seeds.get(arm))
                if min(min(values.shape) for values in folds) < 2:
                    continue
                n_runs = sum(math.prod(values.shape[:-1]) for values in folds)
                for source in variance_split_over_folds(folds, (*factors, "group")):
                    rows.append(
                        {
                            **{"arm": arm, "train_cases": scores.train_cases, "fold": scores.fold},
                            **{"label": scores.label, "metric": metric, "source": " x ".join(source.factors)},
                            **{"variance": source.variance, "share": source.share, "df": source.df},
                            **{"n_runs": n_runs, "n_left_out": len(seeds) - n_runs},
                        }
                    )
    return pd.DataFrame(rows, columns=list(VARIANCE_COLUMNS))


def _crossed(
    scores: Scores, arm: str, metric: str, of_seeds: pd.DataFrame | None
) -> tuple[tuple[str, ...], list[Float[np.ndarray, "*levels groups"]]]:
    """The factors of an arm's runs, and the crossed values in each fold that has a case, or in all together."""
    factors = _factors(of_seeds, scores.seeds[arm])
    folds = []
    for block in [block for block in scores.blocks if len(block.groups)] or [scores]:
        grid = complete_grid(_ids(of_seeds, factors, block.seeds[arm]))
        values = group_means(block.of(arm, metric), block.groups)[grid]
        folds.append(values[..., np.isfinite(values).all(tuple(range(grid.ndim)))])
    return factors, folds


_ID_COLUMNS = {stream: f"{stream}_id" for stream in STREAMS}


def _ids_of_seeds(cases: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The ids of the streams of each arm's seeds; nothing of tables without them."""
    if not set(_ID_COLUMNS.values()) <= set(cases):
        return {}
    known = cases.drop_duplicates(["arm", "seed"]).set_index("seed")
    return {str(arm): own[list(_ID_COLUMNS.values())] for arm, own in known.groupby("arm", sort=False)}


_SEED_ALONE = ("seed",)


def _factors(ids_of_seeds: pd.DataFrame | None, seeds: Int[np.ndarray, " runs"]) -> tuple[str, ...]:
    """What an arm's runs differ in: the seed, or the streams that vary apart from each other.

    Streams whose ids always go together (every stream of a run fed by its seed) cannot be told apart.
    """
    if ids_of_seeds is None:
        return _SEED_ALONE
    of_seed = ids_of_seeds.loc[seeds]
    varied = [stream for stream, column in _ID_COLUMNS.items() if of_seed[column].nunique() > 1]
    ids = of_seed[[_ID_COLUMNS[stream] for stream in varied]]
    if len(varied) < 2 or len(ids.drop_duplicates()) == max(ids.nunique()):
        return _SEED_ALONE
    return tuple(varied)


def _ids(
    ids_of_seeds: pd.DataFrame | None, factors: Sequence[str], seeds: Int[np.ndarray, " runs"]
) -> Int[np.ndarray, "runs factors"]:
    """The ids of runs, one column for each factor."""
    if ids_of_seeds is None or factors == _SEED_ALONE:
        return seeds[:, None]
    return ids_of_seeds.loc[seeds, [_ID_COLUMNS[stream] for stream in factors]].to_numpy()


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
    cases: pd.DataFrame,
    arms: Sequence[str],
    *,
    confidence: float,
    metrics: Sequence[str] = METRICS,
    sources: Sources = EACH_ITS_OWN,
) -> pd.DataFrame:
    """Estimates the width of the intervals of `comparisons` with other numbers of seeds and the same cases.

    Args:
        cases: rows of cases.csv, of this study as the pilot.
        arms: the study's arms in their order.
        confidence: Confidence level of the intervals.
        metrics: columns of `cases`.
        sources: the source networks of the runs; where several seeds share one, n_seeds counts source networks, each
            with as many seeds as in this study.

    Returns:
        The columns `PLANNING_COLUMNS`, one row for each comparison and number of seeds (`SEEDS` and the study's own).
        The spread of the difference is estimated from this study (`variance_components.components`, itself uncertain
        with few seeds); `half_width` is what to expect, and `half_width_limit` what endless seeds would leave with
        these groups. Comparisons with fewer than two seeds or groups, or with infinite distances, give no rows. Where
        folds rotate over seeds, the spread of all folds together is that within a fold, averaged over folds, and
        numbers of seeds that leave a fold fewer than two give no rows.
    """
    baseline = baseline_of(arms)
    rows: list[dict[str, Any]] = []
    for scores in read_scores(cases, metrics):
        for arm in (a for a in arms if a != baseline and {a, baseline} <= scores.seeds.keys()):
            for metric in scores.metrics:
                found = [contrast(block, {arm: 1.0, baseline: -1.0}, metric, sources) for block in scores.blocks]
                folds = [fold.d for fold in found if fold.num_cases]
                if not folds or not all(min(d.shape) > 1 and np.isfinite(d).all() for d in folds):
                    continue
                spread, num_groups = components_over_folds(folds), sum(d.shape[1] for d in folds)

                def half_width(spread: Components, seeds: int, groups: int = num_groups, n: int = len(folds)) -> float:
                    """In all folds, which share seeds and groups among them."""
                    return expected_half_width_over_folds(spread, seeds // n, groups // n, n, confidence=confidence)

                # Averaged over endless seeds a difference is that of the groups alone, whatever their number.
                limit = half_width(Components(0.0, spread.group, 0.0), _ENDLESS * len(folds))
                rows += [
                    {
                        **{"metric": metric, "label": scores.label, "train_cases": scores.train_cases},
                        **{"fold": scores.fold, "arm_a": arm, "arm_b": baseline},
                        **{f"sd_{name}": value**0.5 for name, value in spread._asdict().items()},
                        **{"n_groups": num_groups, "n_seeds": num_seeds},
                        **{"half_width": half_width(spread, num_seeds), "half_width_limit": limit},
                    }
                    for num_seeds in sorted({*SEEDS, sum(map(len, folds))})
                    if num_seeds >= 2 * len(folds)
                ]
    return pd.DataFrame(rows, columns=list(PLANNING_COLUMNS))
