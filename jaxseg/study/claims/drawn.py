"""Makes the tables behind the page's figures: learning curves with means, and the loss on the line between two runs."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from jaxtyping import Int

from jaxseg.analysis.statistics import t_interval
from jaxseg.study.score.units import EACH_ITS_OWN, Sources, mean_of_units
from jaxseg.types import RunKey

MOST_POINTS, LEAST_POINTS, ALL_POINTS = 60, 12, 24_000
"""Limits on the points of one curve and of all curves together, which keep a page of many runs small."""
RUN_COLUMNS = ("arm", "train_cases", "fold", "seed", "quantity", "step", "value")
BUDGET_COLUMNS = (
    *("arm", "train_cases", "metric", "step", "share"),
    *("value", "ci_low", "ci_high", "n_runs"),
)
MEAN_COLUMNS = ("arm", "train_cases", "quantity", "step", "value", "ci_low", "ci_high", "n_runs")


def drawn_curves(
    curves: pd.DataFrame, lost: Collection[RunKey], *, confidence: float, sources: Sources = EACH_ITS_OWN
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Puts the runs of each arm on common steps and averages them.

    Curves with more steps than a figure can show are averaged in bins of steps first.

    Args:
        curves: Rows of curves.csv.
        lost: The diverged runs; no mean includes them.
        confidence: Confidence level of the t interval over runs; a single run has no interval.
        sources: The source networks of the runs; those of one network are averaged before the mean, and so are the
            folds of a seed; where folds rotate, those of one network in one fold.

    Returns:
        A table of runs with `RUN_COLUMNS` and one of means with `MEAN_COLUMNS`; `quantity` is `loss` or `val_dsc`.
    """
    logged = curves.dropna(subset=["loss", "val_dsc"], how="all")
    n_runs = max(len(logged[["arm", "train_cases", "fold", "seed"]].drop_duplicates()), 1)
    points = max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // n_runs))
    runs, means = [pd.DataFrame(columns=list(RUN_COLUMNS))], []
    for arm, size in logged[["arm", "train_cases"]].drop_duplicates().itertuples(index=False):
        of_arm = logged[(logged["arm"] == arm) & (logged["train_cases"] == size)]
        for quantity in ("loss", "val_dsc"):
            table = _on_common_steps(of_arm, quantity, points)
            fixed = {"arm": arm, "train_cases": size, "quantity": quantity}
            long = pd.DataFrame({"value": table.unstack()}).reset_index()
            runs.append(long.assign(arm=arm, train_cases=size, quantity=quantity))
            whole = table[[run for run in table.columns if (arm, size, *run) not in lost]]
            of_units = _units(whole.columns, str(arm), sources)
            for step, values in zip(table.index, whole.to_numpy(), strict=True):
                known = np.isfinite(values)
                found = t_interval(mean_of_units(values[known], of_units[known]), confidence=confidence)
                limits = {"value": found.estimate, "ci_low": found.low, "ci_high": found.high, "n_runs": known.sum()}
                means.append({**fixed, "step": step, **limits})
    return pd.concat(runs)[list(RUN_COLUMNS)], pd.DataFrame(means, columns=list(MEAN_COLUMNS))


def _on_common_steps(curves: pd.DataFrame, quantity: str, points: int) -> pd.DataFrame:
    """A row a step and a column a run (fold, seed); steps are those of the bins where there are too many."""
    known = curves.dropna(subset=[quantity])
    steps = known["step"].astype(float)
    if steps.nunique() > points:
        bins = np.floor(steps / ((steps.max() + 1) / points))
        steps = steps.groupby(bins).transform("mean")
    return known.assign(step=steps).pivot_table(index="step", columns=["fold", "seed"], values=quantity, aggfunc="mean")


def _units(runs: pd.Index, arm: str, sources: Sources) -> Int[np.ndarray, " runs"]:
    """The unit of each of an arm's runs, given by fold and seed: its seed or source network, with its fold.

    A seed that has several folds is one, as it starts from the same weights in all of them.
    """
    folds, seeds = (runs.get_level_values(name).to_numpy() for name in ("fold", "seed"))
    known = pd.DataFrame({"fold": folds, "seed": seeds, "unit": sources.units(arm, seeds)})
    rotate = not known["seed"].duplicated().any() and arm not in sources.crossed
    return known.groupby(["fold", "unit"] if rotate else "unit").ngroup().to_numpy()


def budget_means(budget: pd.DataFrame, *, confidence: float, sources: Sources = EACH_ITS_OWN) -> pd.DataFrame:
    """What each arm reaches with a quarter, half and all of its steps: means over runs.

    Runs without a value at their last step, which diverged later than at an earlier one, are in none of the means, so
    that those of all steps are of the same runs.

    Args:
        budget: Rows of budget.csv.
        confidence: Confidence level of the t interval over runs.
        sources: The source networks of the runs; those of one network are averaged before the mean, and so are the
            folds of a seed; where folds rotate, those of one network in one fold.

    Returns:
        The columns `BUDGET_COLUMNS`; `share` is that of the arm's steps.
    """
    rows = []
    for key, own in budget.groupby(["arm", "train_cases", "metric"], sort=False):
        runs, steps = own.pivot(index=["fold", "seed"], columns="step", values="value"), sorted(own["step"].unique())
        whole = runs[runs[last := steps[-1]].notna()]
        of_units = _units(whole.index, str(key[0]), sources)
        for step in steps:
            values = whole[step].to_numpy(np.float64)
            known = ~np.isnan(values)
            found = t_interval(mean_of_units(values[known], of_units[known]), confidence=confidence)
            rows.append((*key, step, step / last, found.estimate, found.low, found.high, known.sum()))
    return pd.DataFrame(rows, columns=list(BUDGET_COLUMNS))


def excess_loss(interpolation: pd.DataFrame) -> pd.DataFrame:
    """Computes how far each loss in interpolation.csv lies above the straight line between the losses of both runs.

    Returns:
        The columns of the table, `excess`, and `mean_excess`, its mean over the pairs of runs of the arm.
    """
    pair = ["train_cases", "fold", "arm", "seed_a", "seed_b"]
    rows = interpolation.sort_values([*pair, "alpha"], kind="stable")
    first, last = (rows.groupby(pair)["loss"].transform(which) for which in ("first", "last"))
    rows = rows.assign(excess=rows["loss"] - (1 - rows["alpha"]) * first - rows["alpha"] * last)
    return rows.assign(mean_excess=rows.groupby(["train_cases", "fold", "arm", "alpha"])["excess"].transform("mean"))
