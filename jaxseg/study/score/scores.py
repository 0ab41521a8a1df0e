"""Turns rows of cases.csv into arrays [seed, case] of the same cases for every arm, and into contrasts of arms.

A label counts where the case's *reference* holds it, whatever was predicted. Averages are taken in one order
everywhere: labels within a case, cases within their group, then groups and seeds alike. Regions (unions of labels)
have scores of their own and are no part of the mean over labels.

Where folds rotate over seeds, a seed is tested on the cases of one fold alone. No two folds then share a seed or a
group, so that a mean over all test cases is the mean over folds of what the seeds of each reach on its own groups.

Where folds do not rotate, the networks of all folds are tested on every external case, which then has a value for each
fold. These are averaged with its group; whatever counts cases or predictions counts the case once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from jaxseg.reserved import MEAN, POOLED
from jaxseg.study.score.units import EACH_ITS_OWN, Sources, joint_units, mean_of_units, seeds_each
from jaxseg.types import UserError

_COLUMNS = ("arm", "seed", "train_cases", "fold", "case", "group", "label", "status")


class Counts(NamedTuple):
    """Counts of predictions of a label, over all seeds and cases of an arm.

    Of a case that the networks of several folds predict, each prediction is the share of one that it is of them.
    """

    missed: float = 0
    """Predictions without the label where the reference holds it."""
    spurious: float = 0
    """Predictions with the label where the reference lacks it."""
    absent: float = 0
    """References that lack the label; `spurious / absent` is the false-positive rate."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of all arms for one train size, fold and label.

    Where folds rotate over seeds and are taken together, every run has values for its own fold's cases alone, and
    `blocks` has the folds.
    """

    label: str
    train_cases: int
    fold: int
    metrics: tuple[str, ...]
    groups: Int[np.ndarray, " cases"]
    """The number of each case's group, ascending from 0."""
    cases: Int[np.ndarray, " cases"]
    """The number of each case; the same where the networks of several folds are tested on it."""
    seeds: dict[str, Int[np.ndarray, " seeds"]]
    """The seeds of each arm, ascending."""
    values: dict[str, Float[np.ndarray, "seeds cases metrics"]]
    """The values of each arm; NaN if a run has no value."""
    counts: dict[str, Counts]
    folds: tuple[Scores, ...] = ()
    """The scores within each fold, where folds rotate over seeds and these are of all folds together. An arm without a
    run in a fold has no seeds there."""

    @property
    def num_cases(self) -> int:
        """The number of cases, however many folds are tested on them."""
        return len(np.unique(self.cases))

    @property
    def blocks(self) -> tuple[Scores, ...]:
        """The parts within which every seed is tested on every case: each fold where folds rotate, else the whole."""
        return self.folds or (self,)

    def of(self, arm: str, metric: str) -> Float[np.ndarray, "seeds cases"]:
        """Returns the scores of one arm."""
        return self.values[arm][..., self.metrics.index(metric)]


def require_columns(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Raises UserError, naming the table, if it lacks a column."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise UserError(
            f"{name} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. Give the "
            "table that the study wrote."
        )


def group_means(
    values: Float[np.ndarray, "seeds cases"], groups: Int[np.ndarray, " cases"]
) -> Float[np.ndarray, "seeds groups"]:
    """Averages over each group's cases without NaN; NaN if a group has no value. `groups` must ascend."""
    if not len(groups):
        return np.zeros((len(values), 0))
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    known = ~np.isnan(values)
    totals = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
    numbers = np.add.reduceat(known.astype(np.int64), starts, axis=1)
    return np.where(numbers > 0, totals, np.nan) / np.maximum(numbers, 1)


def _status_counts(table: pd.DataFrame, labels: Sequence[str], arms: Sequence[str]) -> Float[np.ndarray, "label arm 3"]:
    """How many predictions of each label and arm are missed, spurious, and right where there is nothing to find."""
    kinds = pd.Index(["missed", "spurious", "both_empty"])
    places = (
        pd.Index(labels).get_indexer(pd.Index(table["label"])),
        pd.Index(arms).get_indexer(pd.Index(table["arm"])),
        kinds.get_indexer(pd.Index(table["status"])),
    )
    counts = np.zeros((len(labels), len(arms), len(kinds)))
    counted = places[2] >= 0
    np.add.at(counts, tuple(place[counted] for place in places), _share_of_prediction(table)[counted])
    return counts


def _share_of_prediction(table: pd.DataFrame) -> Float[np.ndarray, " rows"]:
    """What share each row is of the predictions of its seed, case and label: 1 unless several folds have one."""
    several = table["fold"].nunique() > 1
    seen = table[["group", "case", "fold"]].drop_duplicates() if several else table[:0]
    if not seen.duplicated(["group", "case"]).any():
        return np.ones(len(table))
    return 1 / table.groupby(["arm", "seed", "group", "case", "label"])["fold"].transform("size").to_numpy(np.float64)


def _whole(count: float) -> float:
    """A sum of shares without the rounding errors of its terms, as a whole number where it is one."""
    return round(count) if math.isclose(count, round(count), abs_tol=1e-6) else round(count, 6)


def _mean_over_labels(
    values: Float[np.ndarray, "seeds cases labels metrics"], held: Bool[np.ndarray, "cases labels"]
) -> Float[np.ndarray, "seeds cases metrics"]:
    """A held label without a value leaves its case without a mean: averaging the others would drop a miss."""
    return np.where(held[None, :, :, None], values, 0.0).sum(2) / held.sum(1)[None, :, None]


def _labels(table: pd.DataFrame) -> tuple[list[str], Bool[np.ndarray, " labels"]]:
    """Labels in the order of their appearance, and which of them are part of the mean: those that are no regions."""
    labels = [str(label) for label in table["label"].unique()]
    regions = set(table["label"][table["region"]]) if "region" in table else set()
    return labels, np.array([label not in regions for label in labels])


def _distinct(rows: pd.DataFrame) -> Int[np.ndarray, " rows"]:
    """The number of the case of each row, whatever its fold."""
    return rows.groupby(["group", "case"], sort=True).ngroup().to_numpy()


def _variant(
    table: pd.DataFrame,
    fold: int,
    metrics: tuple[str, ...],
    *,
    each_label: bool,
    rotate: bool = False,
    arms: Sequence[str] = (),
) -> Iterator[Scores]:
    """Scores of one train size and fold: each label in its order of appearance, then their mean.

    A run that was not evaluated in one fold (it diverged) leaves the seed out of the folds together, unless they
    `rotate`. `arms` are those of the table unless given.
    """
    held_rows = table[table["status"].isin(["ok", "missed"])]
    if held_rows.empty:
        return
    train_cases = int(table["train_cases"].iloc[0])
    labels, alone = _labels(table)
    # Groups sort first, so that case numbers ascend with group numbers.
    by_case = held_rows.groupby(["group", "fold", "case"], sort=True)
    case_of, label_of = by_case.ngroup().to_numpy(), held_rows["label"].map(labels.index).to_numpy()
    group_of, fold_of = held_rows.groupby("group", sort=True).ngroup().to_numpy(), held_rows["fold"].to_numpy()
    num_cases = by_case.ngroups
    groups = np.zeros(num_cases, np.int64)
    groups[case_of] = group_of
    cases = _distinct(held_rows.iloc[np.unique(case_of, return_index=True)[1]])
    held = np.zeros((num_cases, len(labels)), bool)
    held[case_of, label_of] = True

    numbers, seeds, values = held_rows[list(metrics)].to_numpy(np.float64), {}, {}
    arm_of, seed_of = held_rows["arm"].to_numpy(), held_rows["seed"].to_numpy()
    for arm in arms or _arms(table):
        rows = np.flatnonzero(arm_of == arm)
        found, position = np.unique(seed_of[rows], return_inverse=True)
        cube = np.full((len(found), num_cases, len(labels), len(metrics)), np.nan)
        cube[position, case_of[rows], label_of[rows]] = numbers[rows]
        tested = [np.isin(found, seed_of[rows][fold_of[rows] == f]) for f in np.unique(fold_of)]
        everywhere = np.logical_and.reduce(tested) | rotate
        seeds[arm], values[arm] = found[everywhere], cube[everywhere]

    numbers_of = _status_counts(table, labels, list(seeds))
    for index, label in enumerate([*labels, MEAN]):
        if label != MEAN and not each_label:
            continue
        of_arms = numbers_of[alone].sum(0) if label == MEAN else numbers_of[index]
        counts = {
            arm: Counts(_whole(missed), _whole(spurious), _whole(spurious + empty))
            for arm, (missed, spurious, empty) in zip(seeds, of_arms.tolist(), strict=True)
        }
        kept = held[:, alone].any(1) if label == MEAN else held[:, index]
        of_cases = {
            arm: _mean_over_labels(v[:, kept][:, :, alone], held[kept][:, alone])
            if label == MEAN
            else v[:, kept, index]
            for arm, v in values.items()
        }
        dense = np.unique(groups[kept], return_inverse=True)[1]
        yield Scores(label, train_cases, fold, metrics, dense, cases[kept], seeds, of_cases, counts)


def _arms(table: pd.DataFrame) -> list[str]:
    return [str(arm) for arm in table["arm"].unique()]


def _rotating(table: pd.DataFrame, metrics: tuple[str, ...], *, each_label: bool) -> Iterator[Scores]:
    """Scores of one train size over all folds, where each seed is tested on one of them."""
    by_label: dict[str, list[Scores]] = {}
    for fold, of_fold in table.groupby("fold", sort=True):
        for scores in _variant(of_fold, int(str(fold)), metrics, each_label=each_label, arms=_arms(table)):
            by_label.setdefault(scores.label, []).append(scores)
    for scores in _variant(table, POOLED, metrics, each_label=each_label, rotate=True):
        yield dataclasses.replace(scores, folds=tuple(by_label.get(scores.label, ())))


def folds_rotate(table: pd.DataFrame) -> bool:
    """Returns whether each seed of a table of runs or cases has one of several folds instead of all."""
    folds = table.groupby(["arm", "train_cases", "seed"])["fold"].nunique()
    return bool(table["fold"].nunique() > 1 and (folds == 1).all())


def read_scores(
    cases: pd.DataFrame,
    metrics: Sequence[str],
    *,
    each_label: bool = True,
    folds: Literal["all", "together"] = "all",
) -> Iterator[Scores]:
    """Reads the arrays of every train size, fold and label; several folds come first all together (`POOLED`).

    Where folds rotate over seeds, those of all folds together have the folds in `Scores.blocks`.

    Args:
        cases: rows of cases.csv.
        metrics: columns of it; one without a single value (NSD without a tolerance) is left out.
        each_label: whether to yield each label too, and not only their mean.
        folds: of several folds, all together and each, or all together alone.

    Yields:
        One `Scores` a label, then one for their mean (`MEAN`), by train size and fold.

    Raises:
        UserError: if `cases` lacks a column.
    """
    require_columns(cases, (*_COLUMNS, *metrics), "cases.csv")
    known = tuple(m for m in metrics if cases[m].notna().any())
    rotate = folds_rotate(cases)
    for _, of_size in cases.groupby("train_cases", sort=True):
        several = of_size["fold"].nunique() > 1
        if several and rotate:
            yield from _rotating(of_size, known, each_label=each_label)
        elif several:
            yield from _variant(of_size, POOLED, known, each_label=each_label)
        for fold, of_fold in of_size.groupby("fold", sort=True):
            if not several or folds != "together":
                yield from _variant(of_fold, int(str(fold)), known, each_label=each_label)


class Contrast(NamedTuple):
    """A linear contrast of arms on the seeds and cases that all of them have."""

    d: Float[np.ndarray, "units groups"]
    """The sum over arms of weight times group mean; not finite if a distance is infinite. A row is a seed, or the mean
    of the seeds that share a source network in one of the arms."""
    names: Int[np.ndarray, " units"]
    """The seed of each row, or the source network that its seeds share; ascending."""
    seeds: Int[np.ndarray, " units"]
    """The first seed of each row, of the last arm."""
    row_of: Int[np.ndarray, " seeds"]
    """The row that each seed is part of."""
    paired: bool
    """Whether the arms' rows have the same seeds; otherwise they are matched in the order of their seeds."""
    num_cases: int
    left_out: int
    """Number of cases that are left out because some run has no value."""

    @property
    def seeds_each(self) -> int:
        """The number of seeds that share a source network, at most."""
        return seeds_each(self.row_of)


def contrast(scores: Scores, weights: Mapping[str, float], metric: str, sources: Sources = EACH_ITS_OWN) -> Contrast:
    """Combines arms seed by seed and group by group: `{"transfer": 1, "scratch": -1}` is their difference.

    Of folds that rotate over seeds it takes one, see `Scores.blocks`: no case has a value for every seed of all folds.
    Arms that share no seed at all (a placebo with seeds of its own) are matched in the order of their seeds. Seeds that
    share a source network are averaged, and so are all runs of arms of which one is crossed, see `score.units`.
    """
    shared = scores.seeds[next(iter(weights))]
    for arm in weights:
        shared = np.intersect1d(shared, scores.seeds[arm])
    paired = bool(len(shared))
    count = min(len(scores.seeds[arm]) for arm in weights)
    as_one = not paired and count > 0 and bool(sources.crossed & weights.keys())
    parts, labels, seeds = [], [], np.zeros(0, np.int64)
    for arm in weights:
        own = np.arange(len(scores.seeds[arm]))
        rows = own[np.isin(scores.seeds[arm], shared)] if paired else own if as_one else own[:count]
        parts.append(scores.of(arm, metric)[rows])
        seeds = scores.seeds[arm][rows]
        labels.append(sources.units(arm, seeds))
    if as_one:
        parts, seeds = [part.mean(0, keepdims=True) for part in parts], seeds[:1]
        labels = [seeds] * len(parts)
    complete = np.logical_and.reduce([~np.isnan(part).any(0) for part in parts])
    names, firsts, row_of = _rows(labels, seeds, paired)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        d = sum(
            weight * group_means(part[:, complete], scores.groups[complete])
            for weight, part in zip(weights.values(), parts, strict=True)
        )
        d = mean_of_units(np.asarray(d), row_of)
    num_cases, left_out = (len(np.unique(scores.cases[which])) for which in (complete, ~complete))
    return Contrast(d, names, seeds[firsts], row_of, paired, num_cases, left_out)


def _rows(
    labels: Sequence[Int[np.ndarray, " seeds"]], seeds: Int[np.ndarray, " seeds"], paired: bool
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], Int[np.ndarray, " seeds"]]:
    """The names of the rows of a contrast, ascending, the position of each row's first seed, and the row of each seed.

    Names are those of source networks where arms have the same seeds: a row keeps its name where it loses a seed.
    """
    firsts, row_of = np.unique(joint_units(labels), return_inverse=True)
    shared = (own for own in labels if paired and len(np.unique(own)) < len(own))
    names = next(shared, seeds)[firsts]
    order = np.argsort(names)
    return names[order], firsts[order], np.argsort(order)[row_of]
