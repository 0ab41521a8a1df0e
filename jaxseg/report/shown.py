"""Which rows of the tables a page shows, and what it calls them. Nothing is computed here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from jaxseg.report.charts.lines import MANY_ARMS
from jaxseg.report.charts.style import BASELINE_ARM
from jaxseg.report.tables import Tables, Variant, of_variant, rows_of, scored_runs, variants_of
from jaxseg.report.text import cases
from jaxseg.reserved import MEAN
from jaxseg.study.claims.rules import LEVEL

RULE_CONFIDENCE = 1 - LEVEL
"""Of the intervals that verdicts rest on, and of those of speed.csv, whatever `analysis.confidence` is."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """A row of speed.csv: how many times fewer steps an arm takes than the baseline, by the rule of C1."""

    arm: str
    baseline: str
    train_cases: int
    ratio: float
    ci_low: float
    ci_high: float
    total_ratio: float
    """Pretraining counted in full for every run; NaN, as are its limits, where that is not known or there is none."""
    total_ci_low: float
    total_ci_high: float
    pretrain_steps: float
    n_runs: int
    n_censored: int
    """Runs of the arm that never reached the target."""
    n_censored_baseline: int


def overall_dsc(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows on DSC averaged over labels, of all folds together where there are several."""
    rows = table[(table["metric"] == "dsc") & (table["label"] == MEAN)]
    return pd.concat([of_variant(rows, variant) for variant in variants_of(rows)] or [rows])


def baseline_of(tables: Tables) -> str | None:
    """Return the arm that the others are compared with: what the comparisons say, else `scratch`."""
    if tables.comparisons is not None:
        return str(tables.comparisons["arm_b"].mode()[0])
    return BASELINE_ARM if BASELINE_ARM in tables.arms else None


def uses_pretraining(study: dict[str, Any], arm: str) -> bool:
    """Tell whether an arm's start needs a source network."""
    init = str(study.get("arms", {}).get(arm, {}).get("init", "random"))
    return init.startswith("pretrained") or init == "mean_var"


def pretraining_of(study: dict[str, Any], arm: str) -> dict[str, Any]:
    """Return what study.json says of an arm's source networks: steps, share, from_workdir; empty without any.

    A study.json of an earlier version has one entry for all arms, that of the first.
    """
    if not uses_pretraining(study, arm):
        return {}
    own = study.get("arms", {}).get(arm, {}).get("pretrain")
    return dict(own or study.get("pretrain") or {})


def lost_arms(study: dict[str, Any]) -> list[str]:
    """Return the arms of which every run diverged: they have no scores."""
    runs = scored_runs(study)
    alive = {str(run["arm"]) for run in runs if run.get("diverged_at") is None}
    return [arm for arm in dict.fromkeys(str(run["arm"]) for run in runs) if arm not in alive]


def speeds(tables: Tables) -> dict[tuple[str, int], Speed]:
    """Return the rows of speed.csv by arm and training set size, arms in the study's order."""
    if tables.speed is None:
        return {}
    fields = [field.name for field in dataclasses.fields(Speed)]
    found = [Speed(**{name: getattr(row, name) for name in fields}) for row in rows_of(tables.speed)]
    order = {arm: i for i, arm in enumerate(tables.arms)}
    found.sort(key=lambda speed: order.get(speed.arm, len(order)))
    return {(speed.arm, speed.train_cases): speed for speed in found}


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


def seeds_per_arm(study: dict[str, Any]) -> tuple[int, int]:
    """Return the smallest and the largest number of seeds of an arm; a placebo's are other ones than the rest's."""
    seeds: dict[str, set[int]] = {}
    for run in scored_runs(study):
        seeds.setdefault(str(run["arm"]), set()).add(int(run["seed"]))
    numbers = [len(of_arm) for of_arm in seeds.values()] or [0]
    return min(numbers), max(numbers)


def several_sizes(tables: Tables) -> bool:
    """Tell whether the study trains with more than one number of cases."""
    return len({int(run["train_cases"]) for run in scored_runs(tables.study)}) > 1


def few_at_a_time(arms: Sequence[str], baseline: str | None) -> list[list[str]]:
    """Split arms into as many as a chart can show at a time, the most asked about first, the baseline in each."""
    others = [arm for arm in dict.fromkeys(("transfer", *arms)) if arm in arms and arm != baseline]
    first = [arm for arm in arms if arm == baseline]
    take = MANY_ARMS - 1
    return [[*first, *others[i : i + take]] for i in range(0, max(len(others), 1), take)]


def training_steps(tables: Tables) -> dict[tuple[str, int], float]:
    """Return the length of training by (arm, train_cases), that of the study where a run's is not noted."""
    known = {
        (str(run["arm"]), int(run["train_cases"])): float(run["steps"])
        for run in scored_runs(tables.study)
        if "steps" in run
    }
    planned = float(tables.study.get("train", {}).get("steps", float("nan")))
    keys = [] if tables.convergence is None else rows_of(tables.convergence[["arm", "train_cases"]])
    return {(arm, int(size)): known.get((arm, int(size)), planned) for arm, size in keys}


def claimed(tables: Tables, claim: str, quantity: str, arm: str) -> Any:
    """Return the row of claims.csv with what a rule found of an arm, as a claim's or a control's; None without one."""
    table = tables.claims
    if table is None:
        return None
    own = table[(table["claim"] == claim) & (table["quantity"] == quantity) & (table["arm"] == arm)]
    own = own[own["role"].isin(["claim", "control"])]
    return next(rows_of(own), None)


def layer_rows(tables: Tables, quantity: str, comparison: str = "") -> pd.DataFrame:
    """Return rows of layers.csv on a quantity; none where the table is missing."""
    if tables.layers is None:
        return pd.DataFrame(columns=["arm", "train_cases", "fold", "layer", "value", "ci_low", "ci_high", "n_seeds"])
    table = tables.layers
    return table[(table["quantity"] == quantity) & (table["comparison"] == comparison)]
