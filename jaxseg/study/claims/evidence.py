"""A study's tables as arrays over folds, layers and seeds; what is not there raises `Lacking`, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from jaxseg.analysis import statistics
from jaxseg.analysis.statistics import Interval
from jaxseg.reserved import MEAN
from jaxseg.study import files
from jaxseg.study.claims.findings import Lacking
from jaxseg.study.claims.rules import LEVEL, MIN_GROUPS
from jaxseg.study.claims.study_tables import ArmRecord, Record, StudyTables
from jaxseg.study.score.scores import Contrast, Scores, contrast, read_scores

Seeds = Int[np.ndarray, " seeds"]


class Alone(NamedTuple):
    """The arm of a claim that compares it with nothing but its own start."""

    arm: str = "scratch"


class Pair(NamedTuple):
    """The arm a claim is about, and what it is held against."""

    arm: str = "transfer"
    baseline: str = "scratch"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A study at one training set size."""

    record: Record
    tables: Mapping[str, pd.DataFrame]
    """Rows of all sizes."""
    scores: Mapping[int, Scores]
    """DSC, labels averaged within a case, all folds together; by training set size."""
    size: int
    """Training cases, 0 for all: as in the tables."""
    level: float = LEVEL
    """1 minus the confidence of intervals; smaller where several studies share it."""

    @property
    def confidence(self) -> float:
        """Of one interval."""
        return 1 - self.level

    def arm(self, name: str) -> ArmRecord:
        """Raises `Lacking` where the study has no such arm."""
        if name not in self.record.arms:
            raise Lacking(f"no arm {name}")
        return self.record.arms[name]

    def table(self, name: str, *arms: str) -> pd.DataFrame:
        """Rows of this size; raises `Lacking` without the table, or without rows of one of the arms."""
        for arm in arms:
            self.arm(arm)
        if name not in self.tables:
            raise Lacking(f"no table {name}.csv")
        rows = self.tables[name]
        rows = rows[rows["train_cases"] == self.size]
        columns = [c for c in ("arm", "arm_a", "arm_b") if c in rows]
        present = {arm for column in columns for arm in rows[column].unique()}
        for arm in arms:
            if arm not in present:
                raise Lacking(f"no rows of arm {arm} in {name}.csv")
        return rows


def largest_size(record: Record, sizes: Sequence[int]) -> int:
    """The training set size that verdicts are drawn at."""
    return max(sizes, key=lambda size: (record.number_of_cases(size), size == 0))


def gather(study: StudyTables, *, level: float = LEVEL) -> Evidence:
    """The evidence of a study at its largest training set size."""
    scores: dict[int, Scores] = {}
    if "cases" in study.tables:
        for found in read_scores(study.tables["cases"], ("dsc",)):
            # All folds together come first.
            if found.label == MEAN and found.train_cases not in scores and "dsc" in found.metrics:
                scores[found.train_cases] = found
    sizes = {size for table in study.tables.values() for size in table["train_cases"].unique()}
    tables = {name: files.at_end(table, name) for name, table in study.tables.items()}
    return Evidence(study.record, tables, scores, largest_size(study.record, sorted(sizes) or [0]), level)


# ------------------------------------------------------------------------------------------------------------- doubts


def doubts_of_arms(evidence: Evidence, *arms: str) -> list[str]:
    """What forbids a verdict on these arms: a source network that all seeds share."""
    shared = [arm for arm in arms if evidence.arm(arm).one_source]
    return [f"one source: all seeds of {arm} start from the same source network" for arm in shared]


def doubts_of_groups(found: int) -> list[str]:
    """What forbids a verdict on new patients: too few of them."""
    return [] if found >= MIN_GROUPS else [f"needs at least {MIN_GROUPS} test groups, has {found}"]


# --------------------------------------------------------------------------------------------------------------- DSC


def dsc_contrast(evidence: Evidence, weights: Mapping[str, float], size: int | None = None) -> Contrast:
    """A linear contrast of arms' DSC, [seed, group], at this or another training set size."""
    size = evidence.size if size is None else size
    for arm in weights:
        evidence.arm(arm)
    if size not in evidence.scores:
        raise Lacking(f"no scores at {size or 'all'} training cases")
    scores = evidence.scores[size]
    for arm in weights:
        if arm not in scores.seeds or not len(scores.seeds[arm]):
            raise Lacking(f"no scores of arm {arm}")
    found = contrast(scores, weights, "dsc")
    if not found.d.size:
        raise Lacking(f"no case with a score of {' and '.join(weights)}")
    return found


def gain(evidence: Evidence, pair: Pair, size: int | None = None) -> Contrast:
    """DSC of the arm minus that of the baseline."""
    return dsc_contrast(evidence, {pair.arm: 1.0, pair.baseline: -1.0}, size)


# -------------------------------------------------------------------------------------------------------------- runs


def surviving_curves(evidence: Evidence, arm: str) -> pd.DataFrame:
    """Learning curves of an arm's runs that did not diverge: those whose last loss is a number.

    Raises `Lacking` where none is left.
    """
    rows = evidence.table("curves", arm)
    rows = rows[rows["arm"] == arm]
    last = rows.loc[rows.groupby(["seed", "fold"])["step"].idxmax()]
    alive = last.loc[last["loss"].notna(), ["seed", "fold"]]
    if alive.empty:
        raise Lacking(f"every run of {arm} diverged")
    return rows.merge(alive, on=["seed", "fold"])


def run_values(rows: pd.DataFrame, column: str) -> tuple[Seeds, Float[np.ndarray, "seeds"]]:
    """A number for each seed, averaged over folds; seeds without a value in every fold are left out.

    Args:
        rows: of one arm, at most one row a seed and fold.
        column: the number.
    """
    table = rows.pivot(index="seed", columns="fold", values=column).dropna().sort_index()
    return table.index.to_numpy(), table.to_numpy(np.float64).mean(1)


def matched(first: Seeds, second: Seeds) -> tuple[Seeds, Seeds]:
    """Seeds of two arms side by side: those they share; arms that share none are matched in the order of seeds."""
    shared = np.intersect1d(first, second)
    if len(shared):
        return shared, shared
    count = min(len(first), len(second))
    return np.sort(first)[:count], np.sort(second)[:count]


def seeds_of(rows: pd.DataFrame, column: str) -> Seeds:
    """Seeds that have rows in every fold."""
    counts = rows[[column, "fold"]].drop_duplicates().groupby(column)["fold"].size()
    return np.sort(counts.index[counts == rows["fold"].nunique()].to_numpy())


def seeds_of_pairs(rows: pd.DataFrame) -> Seeds:
    """Seeds that have pairs in every fold, whichever of the two columns names them."""
    turned = rows.assign(seed_a=rows["seed_b"])
    return seeds_of(pd.concat([rows, turned])[["seed_a", "fold"]], "seed_a")


def layers_of(rows: pd.DataFrame) -> list[str]:
    """Layers in the order of their first row, which is the forward order."""
    return [str(layer) for layer in rows["layer"].unique()]


def by_layer_and_seed(
    rows: pd.DataFrame, layers: Sequence[str], seeds: Seeds
) -> Float[np.ndarray, "folds layers seeds"]:
    """Values of single runs (column seed_a); NaN where there is no row."""
    return by_layer_and_seeds(rows.assign(seed_b=rows["seed_a"]), layers, seeds, seeds).diagonal(axis1=2, axis2=3)


def by_layer_and_seeds(
    rows: pd.DataFrame, layers: Sequence[str], seeds_a: Seeds, seeds_b: Seeds
) -> Float[np.ndarray, "folds layers a b"]:
    """Values of pairs of runs (columns seed_a, seed_b); NaN where there is no row."""
    folds = np.sort(rows["fold"].unique())
    out = np.full((len(folds), len(layers), len(seeds_a), len(seeds_b)), np.nan)
    places = (
        pd.Index(folds).get_indexer(pd.Index(rows["fold"])),
        pd.Index(layers).get_indexer(pd.Index(rows["layer"])),
        pd.Index(seeds_a).get_indexer(pd.Index(rows["seed_a"])),
        pd.Index(seeds_b).get_indexer(pd.Index(rows["seed_b"])),
    )
    known = np.logical_and.reduce([place >= 0 for place in places])
    out[tuple(place[known] for place in places)] = rows["value"].to_numpy(np.float64)[known]
    return out


def within_arm(
    rows: pd.DataFrame, layers: Sequence[str], seeds: Seeds
) -> Float[np.ndarray, "folds layers seeds seeds"]:
    """Values of pairs within an arm, each listed once, in both orders; the diagonal is NaN."""
    once = by_layer_and_seeds(rows, layers, seeds, seeds)
    return np.where(np.isnan(once), once.swapaxes(2, 3), once)


def across_arms(
    rows: pd.DataFrame, layers: Sequence[str], pair: Pair, seeds: tuple[Seeds, Seeds]
) -> Float[np.ndarray, "folds layers a b"]:
    """Values of pairs [baseline run, arm run], whichever of the two arms the table names first."""
    forward = rows[(rows["arm_a"] == pair.baseline) & (rows["arm_b"] == pair.arm)]
    turned = rows[(rows["arm_a"] == pair.arm) & (rows["arm_b"] == pair.baseline)]
    turned = turned.rename(columns={"seed_a": "seed_b", "seed_b": "seed_a"})
    both = pd.concat([forward, turned])
    if both.empty:
        raise Lacking(f"no pairs of {pair.baseline} and {pair.arm}")
    return by_layer_and_seeds(both, layers, *seeds)


def jackknife(statistic: Callable[[Seeds], float], num_seeds: int, confidence: float, *, log: bool = False) -> Interval:
    """`statistics.jackknife`; nothing at all of one seed, which makes no pair."""
    if num_seeds < 2:
        return Interval(math.nan, math.nan, math.nan, math.nan)
    return statistics.jackknife(statistic, num_seeds, confidence=confidence, log=log)
