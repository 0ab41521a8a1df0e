"""Quantities that the page draws from the tables: scores of runs, speed-ups, the cases that go worst."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.report.lines import MANY_ARMS
from jaxseg.report.spread import over_seeds
from jaxseg.report.style import BASELINE_ARM
from jaxseg.report.tables import Tables, Variant, of_variant, rows_of, scored_runs, variants_of
from jaxseg.report.text import cases

MIN_SEEDS = 8
"""Below this many seeds the study's rules give no verdict."""

NO_SCORES = pd.DataFrame(columns=["arm", "train_cases", "seed", "value"])
"""What `seed_scores` gives where there are no cases."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """How much sooner an arm reaches the target than the baseline; ratios are baseline steps / arm steps."""

    arm: str
    baseline: str
    variant: Variant
    ratio: float
    low: float
    high: float
    total_ratio: float
    """Pretraining counted in full for every run; NaN, as are its limits, where the arm uses no pretrained weights."""
    total_low: float
    total_high: float
    n_runs: int
    n_censored: int
    """Runs of the arm that never reached the target."""
    n_censored_baseline: int


def overall_dsc(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows on DSC averaged over labels, of all folds together where there are several."""
    rows = table[(table["metric"] == "dsc") & (table["label"] == "mean")]
    return pd.concat([of_variant(rows, variant) for variant in variants_of(rows)] or [rows])


def seed_scores(cases: pd.DataFrame, metric: str = "dsc") -> pd.DataFrame:
    """Average a metric over labels within a case, cases within their group, then groups: one number a seed.

    A case counts for a label where its reference holds that label (status `ok` or `missed`), so that the cases are
    the same for every arm. Folds of a train size are taken together.

    Args:
        cases: rows of cases.csv.
        metric: a column of it.

    Returns:
        Columns arm, train_cases, seed, value.
    """
    run = list(NO_SCORES.columns[:-1])
    held = cases[cases["status"].isin(["ok", "missed"])]
    by_case = held.groupby([*run, "group", "fold", "case"], sort=False)[metric].mean()
    by_group = by_case.groupby(level=[*run, "group"], sort=False).mean()
    return by_group.groupby(level=run, sort=False).mean().rename("value").reset_index()


def baseline_of(tables: Tables) -> str | None:
    """Return the arm that the others are compared with: what the comparisons say, else `scratch`."""
    if tables.comparisons is not None:
        return str(tables.comparisons["arm_b"].mode()[0])
    return BASELINE_ARM if BASELINE_ARM in tables.arms else None


def uses_pretraining(study: dict[str, Any], arm: str) -> bool:
    """Tell whether an arm's start needs a source network."""
    init = str(study.get("arms", {}).get(arm, {}).get("init", "random"))
    return init.startswith("pretrained") or init == "mean_var"


def speeds(tables: Tables, baseline: str) -> list[Speed]:
    """Compare the steps that each arm and the baseline need to reach the target, seed by seed.

    The ratio is the geometric mean over seeds of baseline steps / arm steps. A run that never reached the target
    counts as T steps where it is the baseline's and as 2 T where it is the arm's, T being the length of its
    training; where neither run of a seed reached it the ratio is 1 (the rule of claim C1). The interval is a t
    interval on the logarithms over seeds.

    Args:
        tables: a workdir's tables.
        baseline: the arm compared with.

    Returns:
        One entry for each arm and variant that shares a seed with the baseline, in the study's order.
    """
    if tables.convergence is None:
        return []
    lengths = training_steps(tables)
    pretrain_steps = float(tables.study.get("pretrain", {}).get("steps", 0) or 0)
    found = []
    for variant in variants_of(tables.convergence):
        rows = of_variant(tables.convergence, variant).set_index(["fold", "seed"])
        reference = rows[rows["arm"] == baseline].add_suffix("_base")
        for arm in (arm for arm in tables.arms if arm != baseline):
            pairs = rows[rows["arm"] == arm].join(reference, how="inner")
            if pairs.empty:
                continue
            steps = np.array([_capped_steps(pair, lengths) for pair in rows_of(pairs)])
            spent = pretrain_steps if uses_pretraining(tables.study, arm) else math.nan
            seeds = pairs.index.get_level_values("seed")
            ratio = _geometric(steps[:, 1] / steps[:, 0], seeds, tables.confidence)
            total = _geometric(steps[:, 1] / (steps[:, 0] + spent), seeds, tables.confidence)
            censored = int(pairs["censored"].sum()), int(pairs["censored_base"].sum())
            found.append(Speed(arm, baseline, variant, *ratio, *total, len(pairs), *censored))
    return found


def main_variant(variants: list[Variant]) -> Variant:
    """Return the variant that the plain answer is about: the largest training set."""
    return variants[-1]


def main_size(table: pd.DataFrame) -> int:
    """Return the train size that a table's figures show, the plain answer's; others are folded away or in the CSV."""
    return main_variant(variants_of(table)).train_cases


def sized(table: pd.DataFrame | None, train_cases: int) -> str:
    """Return how to say which train size and fold of a table a figure shows, where it could show another."""
    if table is None or len(table[["train_cases", "fold"]].drop_duplicates()) < 2:
        return ""
    own = table.loc[table["train_cases"] == train_cases, "fold"]
    return f", trained on {cases(train_cases)}" + (f", fold {own.min()}" if own.nunique() > 1 else "")


def few_at_a_time(arms: Sequence[str], baseline: str | None) -> list[list[str]]:
    """Split arms into as many as a chart can show at a time, the most asked about first, the baseline in each."""
    others = [arm for arm in dict.fromkeys(("transfer", *arms)) if arm in arms and arm != baseline]
    first = [arm for arm in arms if arm == baseline]
    take = MANY_ARMS - 1
    return [[*first, *others[i : i + take]] for i in range(0, max(len(others), 1), take)]


def training_steps(tables: Tables) -> dict[tuple[str, int], float]:
    """Return the length of training by (arm, train_cases), NaN where nothing tells it."""
    known = {
        (str(run["arm"]), int(run["train_cases"])): float(run["steps"])
        for run in scored_runs(tables.study)
        if "steps" in run
    }
    planned = float(tables.study.get("train", {}).get("steps", math.nan))
    keys = [] if tables.convergence is None else rows_of(tables.convergence[["arm", "train_cases"]])
    return {(arm, int(size)): known.get((arm, int(size)), planned) for arm, size in keys}


def _capped_steps(pair: Any, lengths: dict[tuple[str, int], float]) -> tuple[float, float]:
    """Steps of the arm and of the baseline in one run, censored ones filled as claim C1 says."""
    size = int(pair.train_cases)
    steps_base = lengths[pair.arm_base, size] if pair.censored_base else pair.step_base
    if pair.censored and pair.censored_base:
        steps = steps_base
    else:
        steps = 2 * lengths[pair.arm, size] if pair.censored else pair.step
    return max(float(steps), 1.0), max(float(steps_base), 1.0)  # a start may be at the target already


def _geometric(ratios: np.ndarray, seeds: pd.Index, confidence: float) -> tuple[float, float, float]:
    """Geometric mean over folds, then seeds, with a t interval over seeds on the logarithms."""
    logs = pd.Series(np.log(ratios)).groupby(np.asarray(seeds)).mean()
    mean = over_seeds(logs, confidence)
    return math.exp(mean.value), math.exp(mean.ci_low), math.exp(mean.ci_high)
