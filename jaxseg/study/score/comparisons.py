"""Makes tables from scores and curves: what each arm reaches, how arms differ, and when they converge.

Tables in, tables out. All averages are those of `score.scores`, so the difference of two rows of `summary` is
the difference in `comparisons`, as long as no run is lost.

Seeds that share a source network count as one, see `score.units`.

Where folds rotate over seeds, a row of all folds together is a mean over folds, and its interval is `fold_interval`, as
in the claims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from jaxseg.analysis import convergence as times
from jaxseg.analysis import statistics
from jaxseg.analysis.folds import fold_interval
from jaxseg.study.score import notes
from jaxseg.study.score.scores import Scores, contrast, group_means, read_scores, require_columns
from jaxseg.study.score.units import EACH_ITS_OWN, Sources, mean_of_units

METRICS = ("dsc", "hd95", "assd", "nsd")
DISTANCES = frozenset({"hd95", "assd", "hd"})
"""Metrics in the task's unit of length, of which lower is better."""
BASELINE = "scratch"

_CURVE_COLUMNS = ("arm", "seed", "train_cases", "fold", "step", "seconds", "val_dsc")


def baseline_of(arms: Sequence[str]) -> str:
    """Returns the arm that the others are compared with: `scratch` if present, else the first."""
    return BASELINE if BASELINE in arms else arms[0]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _run_means(groups: np.ndarray) -> np.ndarray:
    """Mean of each run over the groups that it has a value for."""
    return np.array([_mean(run[~np.isnan(run)]) for run in groups])


class _Fold(NamedTuple):
    """What an arm reaches in one fold, of folds that rotate over seeds, or in all together."""

    seeds: Int[np.ndarray, " seeds"]
    groups: Float[np.ndarray, "seeds groups"]

    def by_seed(self) -> Float[np.ndarray, " runs"]:
        """The mean of each run that has a value."""
        means = _run_means(self.groups)
        return means[~np.isnan(means)]

    def by_unit(self, arm: str, sources: Sources) -> Float[np.ndarray, " units"]:
        """The same, averaged over the runs of each source network that several share."""
        means = _run_means(self.groups)
        known = ~np.isnan(means)
        return mean_of_units(means[known], sources.units(arm, self.seeds[known]))


def _folds_with_values(scores: Scores, arm: str, metric: str) -> list[_Fold]:
    """The group means in each fold, of folds that rotate over seeds, or in all together.

    A fold without a case to score (none holds the label) is left out of a mean over folds. One without a run of the arm
    is kept, so that the mean is undefined: over other cases it could not be compared with that of other arms.
    """
    every = [_Fold(block.seeds[arm], group_means(block.of(arm, metric), block.groups)) for block in scores.blocks]
    kept = [fold for fold in every if fold.groups.shape[1] and not (fold.groups.size and np.isnan(fold.groups).all())]
    return kept or every[:1]


def _over_units(folds: Sequence[Float[np.ndarray, " units"]], confidence: float) -> statistics.Interval:
    """The mean over folds of what seeds reach, with its interval for new seeds on these cases."""
    if all(len(values) and np.isfinite(values).all() for values in folds):
        return fold_interval([values[:, None] for values in folds], confidence=confidence)
    return statistics.Interval(float(np.mean([_mean(values) for values in folds])), math.nan, math.nan, math.nan)


SUMMARY_COLUMNS = (
    *("arm", "train_cases", "fold", "label", "metric", "unit", "mean", "ci_low", "ci_high", "sd", "iqm"),
    *("n_seeds", "n_groups", "n_cases", "n_missed", "n_spurious", "n_absent"),
)


def summary(
    cases: pd.DataFrame,
    *,
    confidence: float = 0.95,
    metrics: Sequence[str] = METRICS,
    sources: Sources = EACH_ITS_OWN,
) -> pd.DataFrame:
    """Tabulates what each arm reaches by train size, fold (-1: all together), label (`mean`: within a case) and metric.

    Args:
        cases: Rows of cases.csv.
        confidence: Confidence level of the intervals.
        metrics: Columns of `cases`; one without a single value (NSD without a tolerance) gives no rows.
        sources: The source networks of the runs; those of one network are averaged before the mean and its interval,
            and n_seeds counts the network.

    Returns:
        The columns `SUMMARY_COLUMNS`. The interval and `sd` are over seeds: new seeds, on these cases; `sd` is that of
        single runs. Where folds rotate over seeds, the mean of all together is that over folds, and `sd` is that of the
        seeds of one fold. `iqm` is the interquartile mean over seeds x groups. n_missed, n_spurious and n_absent count
        predictions over all seeds: references not found, predictions of a label that the reference lacks, and all
        references that lack it (n_spurious / n_absent is the false-positive rate). Where networks of several folds are
        tested on the same cases, a case counts once in n_cases, and these counts are means over the folds' networks.
        With `surface_empty` `nan`, misses are no part of a distance mean: read n_missed beside it.

    Raises:
        UserError: If `cases` lacks a column.
    """
    unit = str(cases["unit"].iloc[0]) if "unit" in cases and len(cases) else ""
    rows: list[dict[str, Any]] = []
    for scores in read_scores(cases, metrics):
        for arm, counts in scores.counts.items():
            for metric in scores.metrics:
                folds = _folds_with_values(scores, arm, metric)
                by_unit = [fold.by_unit(arm, sources) for fold in folds]
                interval = _over_units(by_unit, confidence)
                rows.append(
                    {
                        **{"arm": arm, "train_cases": scores.train_cases, "fold": scores.fold},
                        **{"label": scores.label, "metric": metric},
                        "unit": unit if metric in DISTANCES else "",
                        **{"mean": interval.estimate, "ci_low": interval.low, "ci_high": interval.high},
                        "sd": statistics.sd_over_seeds(*(fold.by_seed() for fold in folds)),
                        "iqm": statistics.interquartile_mean(np.concatenate([fold.groups.ravel() for fold in folds])),
                        "n_seeds": sum(map(len, by_unit)),
                        "n_groups": sum(int((~np.isnan(fold.groups)).any(0).sum()) for fold in folds),
                        "n_cases": scores.num_cases,
                        **{f"n_{name}": number for name, number in counts._asdict().items()},
                    }
                )
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


SEED_SCORE_COLUMNS = ("arm", "seed", "train_cases", "fold", "label", "metric", "value")


def seed_scores(cases: pd.DataFrame, *, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Tabulates the score of every run, whose mean, interval and spread over seeds are a row of `summary`.

    Args:
        cases: Rows of cases.csv.
        metrics: Columns of it.

    Returns:
        The columns `SEED_SCORE_COLUMNS`, in the order of `summary`; folds together have fold -1, where a seed that is
        tested on one fold has what it reaches there. A run without a value (no reference holds the label) gives no row.

    Raises:
        UserError: If `cases` lacks a column.
    """
    rows: list[dict[str, Any]] = []
    for scores in read_scores(cases, metrics):
        variant = {"train_cases": scores.train_cases, "fold": scores.fold, "label": scores.label}
        for arm, seeds in scores.seeds.items():
            for metric in scores.metrics:
                values = _run_means(group_means(scores.of(arm, metric), scores.groups))
                for seed, value in zip(seeds, values, strict=True):
                    if not np.isnan(value):
                        rows.append({"arm": arm, "seed": int(seed), **variant, "metric": metric, "value": value})
    return pd.DataFrame(rows, columns=list(SEED_SCORE_COLUMNS))


def _improvement(scores: Scores, arm: str, baseline: str, metric: str) -> float:
    """The probability in each fold, whose runs are tested on the same cases, averaged over folds."""
    found = []
    for block in scores.blocks:
        a, b = (_run_means(group_means(block.of(name, metric), block.groups)) for name in (arm, baseline))
        if len(block.groups) or len(scores.blocks) == 1:
            found.append(statistics.probability_of_improvement(*((b, a) if metric in DISTANCES else (a, b))))
    return float(np.mean(found)) if found else math.nan


COMPARISON_COLUMNS = (
    *("metric", "label", "train_cases", "fold", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high", "p", "p_maxt"),
    *("n_seeds", "n_groups", "n_cases", "inference", "p_min", "effect_size", "probability_of_improvement"),
    *("n_missed_a", "n_missed_b", "n_spurious_a", "n_spurious_b", "note"),
)


def comparisons(
    cases: pd.DataFrame,
    arms: Sequence[str],
    *,
    confidence: float,
    rng: np.random.Generator,
    metrics: Sequence[str] = METRICS,
    sources: Sources = EACH_ITS_OWN,
) -> pd.DataFrame:
    """Compares each arm with the baseline (`scratch` if present, else the first arm), as arm_a minus arm_b.

    Args:
        cases: Rows of cases.csv.
        arms: The study's arms in their order; one without rows (all its runs diverged) gives none.
        confidence: Confidence level of the intervals.
        rng: Generator of sign flips, used if there are too many to list.
        metrics: Columns of `cases`.
        sources: The source networks of the runs; those of one network are averaged before the interval and the flips,
            and n_seeds counts the network, which the note says.

    Returns:
        The columns `COMPARISON_COLUMNS`, by train size, fold (-1: all folds together), label (`mean`: labels averaged
        within a case) and metric. The interval is `statistics.two_way_interval`, or `fold_interval` over folds that
        rotate over seeds, and decides; `p` is a sign-flip p over seeds, on these cases; `p_maxt` adjusts it for all
        rows of the same fold. `probability_of_improvement` is that a run of arm_a beats one of arm_b. `p_min` is the
        smallest p that this many seeds can give. Cases that lack a value in a run of either arm are left out for both,
        and the note says how many.

    Raises:
        UserError: If `cases` lacks a column.
    """
    baseline = baseline_of(arms)
    rows: list[dict[str, Any]] = []
    differences: list[pd.Series] = []
    for scores in read_scores(cases, metrics):
        for arm in (a for a in arms if a != baseline and {a, baseline} <= scores.seeds.keys()):
            for metric in scores.metrics:
                row, by_unit = _comparison(scores, arm, baseline, metric, confidence, sources)
                rows.append(row)
                differences.append(by_unit)
    table = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)).astype({"p": float, "p_maxt": float})
    known = np.array([series.notna().any() for series in differences], bool)
    for fold in table["fold"].unique():
        family = np.flatnonzero((table["fold"] == fold).to_numpy() & known)
        if len(family):
            d = pd.concat([differences[i] for i in family], axis=1).T.to_numpy()
            table.loc[family, ["p", "p_maxt"]] = np.stack(statistics.max_t_sign_flip(d, rng=rng), 1)
    return table


def _comparison(
    scores: Scores, arm: str, baseline: str, metric: str, confidence: float, sources: Sources
) -> tuple[dict[str, Any], pd.Series]:
    """A row of `comparisons` without its p values, and the differences by seed or source that these are made of."""
    counts_a, counts_b = scores.counts[arm], scores.counts[baseline]
    every = [contrast(block, {arm: 1.0, baseline: -1.0}, metric, sources) for block in scores.blocks]
    # A fold without a case to compare is left out; one without a run of both arms leaves no mean over folds.
    folds = [fold for fold in every if fold.num_cases] or every[:1]
    finite = all(fold.d.size and np.isfinite(fold.d).all() for fold in folds)
    interval = (
        fold_interval([fold.d for fold in folds], confidence=confidence)
        if finite
        else statistics.Interval(float(np.mean([_mean(fold.d) for fold in folds])), math.nan, math.nan, math.nan)
    )
    by_unit = [fold.d.mean(1) if finite else np.full(len(fold.d), math.nan) for fold in folds]
    n_units = sum(map(len, by_unit))
    row = {
        **{"metric": metric, "label": scores.label},
        **{"train_cases": scores.train_cases, "fold": scores.fold, "arm_a": arm, "arm_b": baseline},
        **{"mean_diff": interval.estimate, "ci_low": interval.low, "ci_high": interval.high},
        **{"n_seeds": n_units, "n_groups": sum(fold.d.shape[1] for fold in folds)},
        **{"n_cases": sum(fold.num_cases for fold in folds)},
        **{"inference": notes.inference(folds), "p_min": statistics.minimum_p(n_units)},
        "effect_size": statistics.standardized_difference(*by_unit),
        "probability_of_improvement": _improvement(scores, arm, baseline, metric),
        **{"n_missed_a": counts_a.missed, "n_missed_b": counts_b.missed},
        **{"n_spurious_a": counts_a.spurious, "n_spurious_b": counts_b.spurious},
        "note": notes.note(folds, sum(fold.left_out for fold in every), (arm, baseline), sources),
    }
    # Flips go by the baseline's seed, which all comparisons of a family share; seeds that count as one, by their first.
    return row, pd.Series(np.concatenate(by_unit), index=np.concatenate([fold.seeds for fold in folds]))


def convergence(curves: pd.DataFrame, arms: Sequence[str], *, fraction: float = 0.99) -> pd.DataFrame:
    """Tabulates when each run reaches the target; see `jaxseg.analysis.convergence`.

    Args:
        curves: Rows of curves.csv; val_dsc is NaN between evaluations.
        arms: The study's arms in their order; the target is `scratch`'s, the first arm's where there is none.
        fraction: Fraction of the baseline's final value that is the target.

    Returns:
        Columns arm, seed, train_cases, fold, target_dsc, step, seconds, censored; the target is that of the same train
        size and fold. A censored run has the step and seconds of its last evaluation. Runs and variants without an
        evaluation give no row.

    Raises:
        UserError: If `curves` lacks a column.
    """
    require_columns(curves, _CURVE_COLUMNS, "curves.csv")
    baseline = baseline_of(arms)
    rows = []
    for (train_cases, fold), variant in curves.groupby(["train_cases", "fold"], sort=True):
        # A step counts as an evaluation of an arm if one of its runs has a value there: a run that diverged has NaN.
        evaluated = variant[variant.groupby(["arm", "step"])["val_dsc"].transform("count") > 0]
        by_arm = {
            arm: part.pivot(index="seed", columns="step", values="val_dsc").sort_index(axis=1)
            for arm, part in evaluated.groupby("arm", sort=False)
        }
        target = times.target_dsc(by_arm[baseline].to_numpy(), fraction=fraction) if baseline in by_arm else math.nan
        for arm in (arm for arm in arms if arm in by_arm):
            found = times.steps_to_target(by_arm[arm].columns.to_numpy(), by_arm[arm].to_numpy(), target)
            clock = evaluated[evaluated["arm"] == arm].set_index(["seed", "step"])["seconds"]
            for seed, step, censored in zip(by_arm[arm].index, *found, strict=True):
                rows.append(
                    (arm, seed, train_cases, fold, target, step, clock.get((seed, step), math.nan), bool(censored))
                )
    columns = ["arm", "seed", "train_cases", "fold", "target_dsc", "step", "seconds", "censored"]
    return pd.DataFrame(rows, columns=columns)


TRAINING_COLUMNS = ("arm", "train_cases", "n_runs", "n_reached", "median_step", "n_survived", "last_val_dsc")


def training(curves: pd.DataFrame, convergence: pd.DataFrame) -> pd.DataFrame:
    """Summarises the training of each arm and training set size over seeds and folds.

    Args:
        curves: Rows of curves.csv.
        convergence: Rows of convergence.csv.

    Returns:
        The columns `TRAINING_COLUMNS`. `n_reached` of `n_runs` reached the target of convergence.csv; `median_step`
        takes the others as later than all that did, and is empty where half or more never did. `last_val_dsc` is the
        mean of the last validation DSC of the runs that did not diverge, of which there are `n_survived`.
    """
    keys = ["arm", "train_cases"]
    timed: dict[Any, pd.DataFrame] = dict(iter(convergence.groupby(keys, sort=False)))
    rows: list[dict[str, Any]] = []
    for (arm, size), own in curves.groupby(keys, sort=False):
        ordered = own.sort_values("step", kind="stable").groupby(["fold", "seed"], sort=True)
        loss = ordered.tail(1).set_index(["fold", "seed"])["loss"]
        alive = loss.index[loss.notna()]
        last = ordered["val_dsc"].last().reindex(alive).dropna()
        reached = timed.get((arm, size), convergence[:0])
        steps = reached["step"].astype(float).where(~reached["censored"].astype(bool), math.inf)
        median = float(steps.median()) if len(steps) else math.nan
        rows.append(
            {
                **{"arm": arm, "train_cases": size, "n_runs": len(loss)},
                "n_reached": int((~reached["censored"].astype(bool)).sum()),
                "median_step": median if math.isfinite(median) else math.nan,
                **{"n_survived": len(alive), "last_val_dsc": float(last.mean()) if len(last) else math.nan},
            }
        )
    return pd.DataFrame(rows, columns=list(TRAINING_COLUMNS))


WORST_COLUMNS = (
    *("train_cases", "fold", "case", "group", "label", "mean", "min", "max"),
    *("worst_arm", "worst_seed", "n_missed", "n_runs"),
)


def worst_cases(cases: pd.DataFrame, *, metric: str = "dsc", limit: int = 10) -> pd.DataFrame:
    """Lists the cases and labels with the worst mean over all arms and seeds of a training set size.

    Args:
        cases: Rows of cases.csv.
        metric: A column of `cases`.
        limit: How many rows to keep of each training set size.

    Returns:
        The columns `WORST_COLUMNS`, worst first within a size; no rows if no run has scores.
    """
    held = cases[cases["status"].isin(["ok", "missed"])].dropna(subset=[metric])
    if "region" in held:  # unions of labels would stand beside their own parts
        held = held[~held["region"].astype(bool)]
    if held.empty:
        return pd.DataFrame(columns=list(WORST_COLUMNS))
    held = held.assign(missed=held["status"] == "missed")
    keys = ["train_cases", "fold", "case", "group", "label"]
    by_case, far = held.groupby(keys, sort=False), metric in DISTANCES
    table = by_case[metric].agg(["mean", "min", "max"])
    worst = held.loc[by_case[metric].idxmax() if far else by_case[metric].idxmin()].set_index(keys)
    table["worst_arm"], table["worst_seed"] = worst["arm"], worst["seed"]
    table["n_missed"], table["n_runs"] = by_case["missed"].sum(), by_case.size()
    ranked = table.sort_values("mean", ascending=not far, kind="stable")
    return ranked.groupby("train_cases", sort=False).head(limit).reset_index()
