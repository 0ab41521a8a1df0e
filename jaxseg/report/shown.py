"""Which rows of the tables a page shows, and what it calls them. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from jaxseg.report.charts.lines import MANY_ARMS
from jaxseg.report.charts.style import BASELINE_ARM
from jaxseg.report.tables import Tables, Variant, first_fold, of_variant, rows_of, variants_of
from jaxseg.reserved import MEAN, POOLED
from jaxseg.study.record import StudyRecord
from jaxseg.text import cases, listing, number


def overall_dsc(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows on DSC averaged over labels, of all folds together where there are several."""
    rows = table[(table["metric"] == "dsc") & (table["label"] == MEAN)]
    return pd.concat([of_variant(rows, variant) for variant in variants_of(rows)] or [rows])


def baseline_of(tables: Tables) -> str | None:
    """Return the arm that the others are compared with: what the comparisons say, else `scratch`."""
    if tables.comparisons is not None:
        return str(tables.comparisons["arm_b"].mode()[0])
    return BASELINE_ARM if BASELINE_ARM in tables.arms else None


ALL_RUNS, LEAST_RUNS = 1600, 8
"""Limits on the runs that a figure draws: of all arms and train sizes together, and of each where these are many."""


def drawn_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows on the runs that a figure draws: all, or of each arm and train size as many as keep it small.

    These are evenly spread over the runs in the table's order. Nothing on the page is computed from them.
    """
    runs = table[["arm", "train_cases", "fold", "seed"]].drop_duplicates()
    of_row = runs.groupby(["arm", "train_cases"], sort=False)
    place, size, most = of_row.cumcount(), of_row["seed"].transform("size"), _most_runs(of_row.ngroups)
    # Of n places, `most` begin a new share of n / most places.
    taken = (size <= most) | ((place + 1) * most // size > place * most // size)
    return table if taken.all() else table.merge(runs[taken])


def _most_runs(rows: int) -> int:
    return max(LEAST_RUNS, ALL_RUNS // max(rows, 1))


def drawn_words(table: pd.DataFrame, name: str) -> str:
    """Return a sentence on the runs that `drawn_runs` leaves out, which are in the table `name`; empty if none."""
    if len(drawn_runs(table)) == len(table):
        return ""
    most = _most_runs(len(table[["arm", "train_cases"]].drop_duplicates()))
    return f" Of more than {most} runs of an arm and size, {most} are drawn; results/{name}.csv has all."


def lost_arms(study: StudyRecord) -> list[str]:
    """Return the arms of which every run diverged: they have no scores."""
    alive = {run.arm for run in study.runs_of("train") if run.diverged_at is None}
    return [arm for arm in study.arms if arm not in alive and any(run.arm == arm for run in study.runs_of("train"))]


def main_variant(variants: list[Variant]) -> Variant:
    """Return the variant that the plain answer is about: the largest training set."""
    return variants[-1]


def main_size(table: pd.DataFrame) -> int:
    """Return the train size that a table's figures show, the plain answer's; others are folded away or in the CSV."""
    return main_variant(variants_of(table)).train_cases


def sized(table: pd.DataFrame | None, train_cases: int) -> str:
    """Return how to say which train size and fold of a table a figure shows, where it could show another."""
    if table is None:
        return ""
    several = table["train_cases"].nunique() > 1
    return (f", trained on {cases(train_cases)}" if several else "") + of_fold(table, train_cases)


def of_fold(table: pd.DataFrame, train_cases: int) -> str:
    """Return how to say what `first_fold` takes of a train size with several folds; empty where there is one."""
    folds = table.loc[table["train_cases"] == train_cases, "fold"]
    if folds.min() == POOLED:
        return ", over all folds"
    return f", fold {folds.min()}" if folds.nunique() > 1 else ""


def of_run(tables: Tables, train_cases: int | None, fold: int | None) -> str:
    """Return how to say which train size and fold a picture is of, where it could be of another and it is noted."""
    several = train_cases is not None and several_sizes(tables)
    size = f", trained on {cases(train_cases or 0)}" if several else ""
    return size + (f", fold {fold}" if fold is not None and several_folds(tables) else "")


def seeds_per_arm(study: StudyRecord) -> tuple[int, int]:
    """Return the smallest and the largest number of seeds of an arm; a placebo's are other ones than the rest's."""
    seeds: dict[str, set[int]] = {}
    for run in study.runs_of("train"):
        seeds.setdefault(run.arm, set()).add(run.seed)
    numbers = [len(of_arm) for of_arm in seeds.values()] or [0]
    return min(numbers), max(numbers)


def shared_words(study: StudyRecord) -> str:
    """Return a sentence on the arms whose seeds share source networks, which tables count in their place."""
    sources = {arm: study.sources(arm) for arm in study.arms}
    arms = [arm for arm, own in sources.items() if 1 < len({*own.values()}) < len(own)]
    return f"Seeds of {listing(arms)} that share a source network count as one here." if arms else ""


def several_sizes(tables: Tables) -> bool:
    """Tell whether the study trains with more than one number of cases."""
    return len({run.train_cases for run in tables.study.runs_of("train")}) > 1


def several_folds(tables: Tables) -> bool:
    """Tell whether the study has more than one split into training and test cases."""
    return len({run.fold for run in tables.study.runs_of("train")}) > 1


def asked_about(arms: Sequence[str], baseline: str | None) -> list[str]:
    """Return the two arms that a sentence names: the baseline and `transfer`, as far as they are among the arms."""
    return [arm for arm in dict.fromkeys([*([baseline] if baseline else []), "transfer", *arms]) if arm in arms][:2]


def few_at_a_time(arms: Sequence[str], baseline: str | None) -> list[list[str]]:
    """Split arms into as many as a chart can show at a time, the most asked about first, the baseline in each."""
    others = [arm for arm in dict.fromkeys(("transfer", *arms)) if arm in arms and arm != baseline]
    first = [arm for arm in arms if arm == baseline]
    take = MANY_ARMS - 1
    return [[*first, *others[i : i + take]] for i in range(0, max(len(others), 1), take)]


def said(tables: Tables, about: str, arm: str = "", train_cases: int | None = None) -> dict[str, Any]:
    """Return the rows of page.csv on a matter by their quantity; of several folds the first one's."""
    if tables.page is None:
        return {}
    own = tables.page[(tables.page["about"] == about) & (tables.page["arm"] == arm)]
    own = own if train_cases is None else first_fold(own, train_cases)
    return {row.quantity: row for row in rows_of(own)}


def layer_facts(tables: Tables, about: str, train_cases: int) -> list[tuple[Any, ...]]:
    """Return what page.csv says of each layer on a matter: the layer, then its numbers in the table's order."""
    if tables.page is None:
        return []
    own = first_fold(tables.page[tables.page["about"] == about], train_cases)
    return [(layer, *rows["value"]) for layer, rows in own.groupby("layer", sort=False)]


def range_words(found: Mapping[str, Any], nothing: str) -> str:
    """Return the lowest and the highest value of a matter of page.csv in words, see `said`."""
    if "lowest" not in found:
        return nothing
    return f"{number(found['lowest'].value, 2)} to {number(found['highest'].value, 2)}"


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
