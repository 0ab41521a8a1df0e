"""Turns a study's tables into arrays over folds, layers and seeds; anything missing raises `Lacking` with its name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from jaxseg.analysis.statistics import Interval
from jaxseg.reserved import POOLED
from jaxseg.study.claims.findings import Lacking, Void
from jaxseg.study.claims.rules import LEVEL
from jaxseg.study.claims.study_tables import ArmRecord, Record, StudyTables
from jaxseg.study.score import units as of_seeds
from jaxseg.study.score.scores import Scores, folds_rotate, read_scores
from jaxseg.study.score.units import Sources

Seeds = Int[np.ndarray, " seeds"]
Found = TypeVar("Found")


class Alone(NamedTuple):
    """The arm of a claim that compares the arm only with its own start."""

    arm: str = "scratch"


class Pair(NamedTuple):
    """The arm that a claim is about and the baseline that it is compared with."""

    arm: str = "transfer"
    baseline: str = "scratch"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence of a study at one training set size."""

    record: Record
    tables: Mapping[str, pd.DataFrame]
    """Rows of all training set sizes, for networks at the end of training."""
    scores: Mapping[int, tuple[Scores, ...]]
    """DSC averaged over labels within a case, by training set size: one entry for each fold if folds rotate over seeds,
    else one for all folds together."""
    size: int
    """The number of training cases as in the tables; 0 stands for all."""
    level: float = LEVEL
    """1 minus the confidence of intervals; smaller where several studies, claims or looks share it."""
    half: Mapping[str, pd.DataFrame] = dataclasses.field(default_factory=dict)
    """Rows of filters.csv and similarity.csv of the same networks after half of the steps."""
    memo: dict[tuple[str, str, int], Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """Cache of results from learning curves, which several claims need, keyed by result, arm and size."""

    @property
    def confidence(self) -> float:
        """The confidence level of one interval."""
        return 1 - self.level

    def at(self, size: int) -> Evidence:
        """Returns the study at another training set size."""
        return dataclasses.replace(self, size=size)

    def halfway(self) -> Evidence:
        """Returns the evidence after half of the steps; raises `Lacking` if the networks were not analysed there."""
        if not self.half:
            raise Lacking("the networks were not looked at after half of the steps (analysis.half)")
        return dataclasses.replace(self, tables={**self.tables, **self.half}, half={})

    def arm(self, name: str) -> ArmRecord:
        """Returns the record of an arm; raises `Lacking` if the study has no such arm."""
        if name not in self.record.arms:
            raise Lacking(f"no arm {name}")
        return self.record.arms[name]

    def table(self, name: str, *arms: str) -> pd.DataFrame:
        """Returns the rows of this size; raises `Lacking` if there is no table, or no rows for one of the arms."""
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
    """Returns the training set size at which verdicts are drawn."""
    return max(sizes, key=lambda size: (record.number_of_cases(size), size == 0))


def _rotate(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether each seed is tested on one of several folds instead of all."""
    return next((folds_rotate(tables[name]) for name in ("cases", "curves") if name in tables), False)


_BY_STEP = {"filters": ["arm"], "similarity": ["arm_a", "arm_b", "comparison"]}
"""Tables with rows of several steps, and the columns within which the last step is the end of the training."""


def _by_step(tables: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """The tables at the end of the training, and those after half of it."""
    ends, halves = dict(tables), {}
    for name, by in _BY_STEP.items():
        if name in tables and "step" in tables[name] and len(tables[name]):
            rows = tables[name]
            last = rows["step"] == rows.groupby(by)["step"].transform("max")
            ends[name] = rows[last]
            if not last.all():
                halves[name] = rows[~last]
    return ends, halves


def gather(study: StudyTables, *, level: float = LEVEL) -> Evidence:
    """Collects the evidence of a study at its largest training set size."""
    rotate = _rotate(study.tables)
    scores: dict[int, tuple[Scores, ...]] = {}
    if "cases" in study.tables:
        for found in read_scores(study.tables["cases"], ("dsc",), each_label=False, folds="together"):
            if "dsc" in found.metrics:
                scores[found.train_cases] = found.blocks
    tables = dict(study.tables)
    if rotate:
        # A seed then has one fold, and the fold is no axis of its own.
        tables |= {name: rows.assign(fold=POOLED) for name, rows in tables.items() if name not in ("cases", "curves")}
    sizes = {size for table in tables.values() for size in table["train_cases"].unique()}
    ends, halves = _by_step(tables)
    return Evidence(study.record, ends, scores, largest_size(study.record, sorted(sizes) or [0]), level, halves)


# ------------------------------------------------------------------------------------------------------- arms, doubts


def scope_of(evidence: Evidence, *arms: str) -> str:
    """Returns what a finding on these arms is limited to; empty if each seed has its own source network."""
    return "of this checkpoint alone" if any(evidence.arm(arm).one_source for arm in arms) else ""


def of_one_network(record: Record, *arms: str) -> bool:
    """Returns whether all seeds of one of these arms start from the same source network."""
    return any(record.arms[arm].one_source for arm in arms if arm in record.arms)


def seen_by(record: Record, *arms: str) -> str:
    """Returns what the checkpoints that these arms start from may have seen; empty if none is someone else's."""
    return "; ".join(
        dict.fromkeys(record.arms[arm].seen for arm in arms if arm in record.arms and record.arms[arm].seen)
    )


def doubts_of_rates(evidence: Evidence, *arms: str, sizes: Sequence[int] = ()) -> list[str]:
    """Returns the doubts that learning rates raise about a comparison of arms, or of one arm's sizes.

    Rates that were chosen for each arm by itself raise one even where arms came to the same: what chance in the choice
    does to the comparison does not depend on how it fell.
    """
    compared = [(arm, size) for arm in dict.fromkeys(arms) for size in sizes or (evidence.size,)]
    if len(compared) < 2:
        return []
    doubts = []
    if own := [arm for arm in dict.fromkeys(arms) if evidence.arm(arm).own_rate]:
        doubts.append(f"{OWN_RATES} were chosen for each arm by itself ({' and '.join(own)}), needs {ONE_RATE}")
    found: dict[float, list[str]] = {}
    for arm, size in compared:
        for rate in evidence.arm(arm).rates.get(size, ()):
            found.setdefault(rate, []).append(arm)
    if len(found) > 1:
        named = ", ".join(f"{rate:g} ({' and '.join(dict.fromkeys(names))})" for rate, names in sorted(found.items()))
        doubts.append(f"{OWN_RATES} differ between what is compared: {named}")
    return doubts


OWN_RATES = "exploratory, learning rates"
"""What doubts about learning rates begin with."""
ONE_RATE = "one learning rate for all arms that are compared (optim.lr_choice = 'joint')"


def units(evidence: Evidence, arm: str, seeds: Seeds) -> Seeds:
    """Returns the unit of each seed of an arm, see `score.units`."""
    return sources_of(evidence, arm).units(arm, seeds)


def sources_of(evidence: Evidence, *arms: str) -> Sources:
    """Returns what runs of these arms share, as far as the record has the arms."""
    found = {arm: evidence.record.arms[arm] for arm in arms if arm in evidence.record.arms}
    one = frozenset(arm for arm, own in found.items() if own.one_source)
    crossed = frozenset(arm for arm, own in found.items() if own.crossed)
    return Sources({arm: own.sources for arm, own in found.items()}, one, crossed)


# -------------------------------------------------------------------------------------------------------------- runs


def remembered(evidence: Evidence, what: str, arm: str, make: Callable[[], Found]) -> Found:
    """Returns the result of `make`, which is computed once for each arm and training set size of a study."""
    key = (what, arm, evidence.size)
    if key not in evidence.memo:
        evidence.memo[key] = make()
    return evidence.memo[key]


def surviving_curves(evidence: Evidence, arm: str) -> pd.DataFrame:
    """Returns the learning curves of an arm's runs that did not diverge, that is whose last loss is a number.

    Raises `Void` if none is left.
    """
    return remembered(evidence, "curves", arm, lambda: _surviving(evidence, arm))


def _surviving(evidence: Evidence, arm: str) -> pd.DataFrame:
    rows = evidence.table("curves", arm)
    rows = rows[rows["arm"] == arm]
    last = rows.loc[rows.groupby(["seed", "fold"])["step"].idxmax()]
    alive = last.loc[last["loss"].notna(), ["seed", "fold"]]
    if alive.empty:
        raise Void(f"every run of {arm} diverged")
    return rows.merge(alive, on=["seed", "fold"])


def validations(evidence: Evidence, arm: str) -> pd.DataFrame:
    """Returns validation DSC of the runs that did not diverge, by (seed, fold) and step; NaN if there is none."""
    return remembered(evidence, "validations", arm, lambda: _validations(evidence, arm))


def _validations(evidence: Evidence, arm: str) -> pd.DataFrame:
    rows = surviving_curves(evidence, arm)
    rows = rows[rows["val_dsc"].notna()]
    return rows.pivot(index=["seed", "fold"], columns="step", values="val_dsc").sort_index(axis=1)


def run_values(rows: pd.DataFrame, column: str) -> tuple[Seeds, Float[np.ndarray, "seeds"]]:
    """Returns one number per seed, averaged over folds; seeds without a value in every fold are left out.

    Args:
        rows: Rows of one arm, at most one for each seed and fold.
        column: The column that holds the number.
    """
    table = rows.pivot(index="seed", columns="fold", values=column).dropna().sort_index()
    return table.index.to_numpy(), table.to_numpy(np.float64).mean(1)


def matched(first: Seeds, second: Seeds) -> tuple[Seeds, Seeds]:
    """Pairs the seeds of two arms: those that both have or, if they share none, all in ascending order."""
    shared = np.intersect1d(first, second)
    if len(shared):
        return shared, shared
    count = min(len(first), len(second))
    return np.sort(first)[:count], np.sort(second)[:count]


def seeds_of(rows: pd.DataFrame, column: str) -> Seeds:
    """Returns the seeds that have rows in every fold."""
    counts = rows[[column, "fold"]].drop_duplicates().groupby(column)["fold"].size()
    return np.sort(counts.index[counts == rows["fold"].nunique()].to_numpy())


def seeds_of_pairs(rows: pd.DataFrame) -> Seeds:
    """Returns the seeds that have pairs in every fold, in either of the two seed columns."""
    turned = rows.assign(seed_a=rows["seed_b"])
    return seeds_of(pd.concat([rows, turned])[["seed_a", "fold"]], "seed_a")


def layers_of(rows: pd.DataFrame) -> list[str]:
    """Returns the layers in the order of their first rows, which is the forward order."""
    return [str(layer) for layer in rows["layer"].unique()]


def by_layer_and_seed(
    rows: pd.DataFrame, layers: Sequence[str], seeds: Seeds
) -> Float[np.ndarray, "folds layers seeds"]:
    """Returns the values of single runs (column seed_a); NaN if there is no row."""
    return by_layer_and_seeds(rows.assign(seed_b=rows["seed_a"]), layers, seeds, seeds).diagonal(axis1=2, axis2=3)


def by_layer_and_seeds(
    rows: pd.DataFrame, layers: Sequence[str], seeds_a: Seeds, seeds_b: Seeds
) -> Float[np.ndarray, "folds layers a b"]:
    """Returns the values of pairs of runs (columns seed_a, seed_b); NaN if there is no row."""
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
    """Returns a symmetric matrix of the values of pairs within an arm, each listed once; the diagonal is NaN."""
    once = by_layer_and_seeds(rows, layers, seeds, seeds)
    return np.where(np.isnan(once), once.swapaxes(2, 3), once)


def across_arms(
    rows: pd.DataFrame, layers: Sequence[str], pair: Pair, seeds: tuple[Seeds, Seeds]
) -> Float[np.ndarray, "folds layers a b"]:
    """Returns the values of pairs [baseline run, arm run], whichever arm the table names first."""
    forward = rows[(rows["arm_a"] == pair.baseline) & (rows["arm_b"] == pair.arm)]
    turned = rows[(rows["arm_a"] == pair.arm) & (rows["arm_b"] == pair.baseline)]
    turned = turned.rename(columns={"seed_a": "seed_b", "seed_b": "seed_a"})
    both = pd.concat([forward, turned])
    if both.empty:
        raise Lacking(f"no pairs of {pair.baseline} and {pair.arm}")
    return by_layer_and_seeds(both, layers, *seeds)


def jackknife(
    statistic: Callable[[Seeds], float], of_units: Seeds, confidence: float, *, log: bool = False
) -> Interval:
    """Applies `score.units.jackknife`, with the same arguments; a single unit gives NaN."""
    if len(np.unique(of_units)) < 2:
        return Interval(math.nan, math.nan, math.nan, math.nan)
    return of_seeds.jackknife(statistic, of_units, confidence=confidence, log=log)
