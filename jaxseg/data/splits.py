"""Splits into training, validation and test cases: by group, seeded and nested.

A group (patient, animal, examination) is never divided: its cases resemble each other, and a network that has seen one
has seen the others. A draw depends only on the names and the seed, not on the order in which cases were read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from jaxseg import streams
from jaxseg.data.names import shown
from jaxseg.data.prepared.task import PreparedTask
from jaxseg.types import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """The case names of one fold, each in name order."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def split_cases(
    prepared: PreparedTask,
    *,
    val_cases: int,
    test_cases: int,
    folds: int,
    fold: int,
    seed: int,
    exclude_groups: Collection[str] = (),
) -> Split:
    """Split a task into training, validation and test cases.

    If the task has folds of its own (`splits_final.json`, or `fold` or `validation` in dataset.json), the cases that a
    fold calls `val` are its test cases, validation cases are taken from its `train`, and cases in neither take no part.
    Otherwise, and where `exclude_groups` holds every case that the fold would test, groups are shuffled with the seed.
    A set of k cases gets at most k where groups do not fit exactly, but at least one group. Groups of each part of a
    pooled task are split by themselves, with a share of these numbers, so that all sets hold cases of all parts.

    Args:
        prepared: The prepared task.
        val_cases: Number of cases for learning curves, taken from the training side; 0 for none.
        test_cases: Number of cases held out in each fold; 0 means a share of 1 / folds, or a fifth with one fold.
        folds: Number of folds; the test sets of different folds share no group.
        fold: Index of the fold, from 0.
        seed: Seed of the draw.
        exclude_groups: Groups that take no part, such as the target's validation and test patients when a source task
            is split (`held_out_groups`).

    Raises:
        UserError: There are too few cases, or the listed folds lack this fold or divide a group.
    """
    if not 0 <= fold < folds:
        raise UserError(f"{prepared.name}: fold {fold} does not exist; folds are 0 to {folds - 1}.")
    draw = _Draw(val_cases, test_cases, folds, fold, seed)
    return (_split_parts if prepared.parts else _split_set)(prepared, draw, frozenset(exclude_groups))


class _Draw(NamedTuple):
    """The arguments of `split_cases` that say how many cases are drawn, and by which seed."""

    val_cases: int
    test_cases: int
    folds: int
    fold: int
    seed: int


def _split_set(prepared: PreparedTask, draw: _Draw, exclude_groups: frozenset[str]) -> Split:
    """The split of a task that is not pooled."""
    val_cases, test_cases, folds, fold, seed = draw
    listed = None if prepared.splits is None else _listed_fold(prepared, fold, folds)
    groups: dict[str, list[str]] = {}
    for record in prepared.cases:
        if record.group not in exclude_groups and (listed is None or record.name in listed[0] | listed[1]):
            groups.setdefault(record.group, []).append(record.name)
    if listed is not None and not _tests_nothing_else(prepared, listed[1], exclude_groups):
        test = _listed_test(prepared, groups, fold, listed[1])
    else:
        test = _drawn_test(prepared, groups, test_cases, folds, fold, seed)
    rest = {group: names for group, names in groups.items() if group not in test}
    val = _take(_shuffled(rest, seed, f"val {fold}"), rest, val_cases) if val_cases else ()
    train = [group for group in rest if group not in val]
    if not train or (val_cases and not val):
        raise UserError(
            f"{prepared.name}: nothing is left to train on: {len(prepared.cases)} cases in {len(groups)} groups, "
            f"val_cases {val_cases}, test_cases {test_cases}, folds {folds}. Ask for fewer, or add cases."
        )
    return Split(*(tuple(sorted(name for group in part for name in groups[group])) for part in (train, val, test)))


def _split_parts(prepared: PreparedTask, draw: _Draw, exclude_groups: frozenset[str]) -> Split:
    """The split of a pooled task, joined from those of its parts; parts that share groups are split together."""
    parts_of: dict[str, set[int]] = {}
    for record in prepared.cases:
        if record.group not in exclude_groups:
            parts_of.setdefault(record.group, set()).add(record.part)
    missing = {*range(len(prepared.parts))}.difference(*parts_of.values())
    if missing:
        raise UserError(
            f"{prepared.name}: no case of the part {prepared.parts[min(missing)].name} is left, as its patients are "
            "those that the target is validated or tested on; leave the part out"
        )
    strata: list[set[int]] = []
    for parts in parts_of.values():
        joined = parts.union(*(stratum for stratum in strata if stratum & parts))
        strata = [stratum for stratum in strata if not stratum & parts] + [joined]
    strata.sort(key=min)
    members = [
        tuple(record for record in prepared.cases if record.group in parts_of and record.part in stratum)
        for stratum in strata
    ]
    counts = list(map(len, members))
    val, test = (_shares(getattr(draw, name), counts, name, prepared) for name in ("val_cases", "test_cases"))
    found = []
    for place, (stratum, cases) in enumerate(zip(strata, members, strict=True)):
        name = " and ".join(prepared.parts[part].name for part in sorted(stratum))
        own = dataclasses.replace(prepared, name=f"{name}, of {prepared.name}", cases=cases, parts=())
        found.append(_split_set(own, draw._replace(val_cases=val[place], test_cases=test[place]), frozenset()))
    names = ([name for split in found for name in getattr(split, kind)] for kind in ("train", "val", "test"))
    return Split(*(tuple(sorted(of_kind)) for of_kind in names))


def _shares(wanted: int, counts: Sequence[int], name: str, prepared: PreparedTask) -> list[int]:
    """A number of cases shared among strata in proportion to their sizes, at least one each; 0 is 0 for each."""
    if wanted == 0:
        return [0] * len(counts)
    if wanted < len(counts):
        raise UserError(
            f"{prepared.name}: {name} = {wanted} is fewer than the {len(counts)} parts that each need a case; ask for "
            f"at least {len(counts)}"
        )
    shares = [1] * len(counts)
    for _ in range(wanted - len(counts)):
        # The next case goes to the stratum that is furthest below its share.
        shares[max(range(len(counts)), key=lambda place: counts[place] / (shares[place] + 1))] += 1
    return shares


def held_out_groups(prepared: PreparedTask, split: Split) -> frozenset[str]:
    """Return the groups of the validation and test cases; a source task on the same patients must not train on them."""
    held = {*split.val, *split.test}
    return frozenset(record.group for record in prepared.cases if record.name in held)


def with_split_warnings(prepared: PreparedTask, splits: Sequence[Split]) -> PreparedTask:
    """Add a warning for every label that no case of a training or test set has, though other cases do."""
    told: list[tuple[str, str]] = []
    for index, label in enumerate(prepared.labels, start=1):
        if not any(record.voxels_per_label[index] for record in prepared.cases):
            continue
        for fold, split in enumerate(splits):
            where = f"in fold {fold} " if len(splits) > 1 else ""
            for part, lack in (("train", "training case holds it: it is not learned"), ("test", "test case holds it")):
                if not any(prepared.record(name).voxels_per_label[index] for name in getattr(split, part)):
                    told.append(("", f"the label {label!r}: {where}no {lack}"))
    report = dataclasses.replace(prepared.report, warnings=(*told, *prepared.report.warnings))
    return dataclasses.replace(prepared, report=report)


def nested_subset(prepared: PreparedTask, train: Sequence[str], size: int, *, seed: int) -> tuple[str, ...]:
    """Return a training subset spread over as many groups as possible; smaller subsets are part of larger ones.

    Args:
        prepared: The prepared task.
        train: Names of the training cases.
        size: Number of cases; 0 for all.
        seed: Seed of the draw.

    Returns:
        The case names in name order.

    Raises:
        UserError: There are fewer training cases than asked for.
    """
    if size == 0:
        return tuple(sorted(train))
    if not 0 < size <= len(train):
        raise UserError(
            f"{prepared.name}: train_cases asks for {size} cases and the split leaves {len(train)} to train on; "
            "0 means all of them."
        )
    groups: dict[str, list[str]] = {}
    for name in train:
        groups.setdefault(prepared.record(name).group, []).append(name)
    order = _shuffled(groups, seed, "subset")
    queues = [_shuffled(groups[group], seed, f"within {group}") for group in order]
    # Take one case of every group, then the second of each, and so on: the first k entries are nested subsets.
    rounds = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return tuple(sorted(rounds[:size]))


def _shuffled(names: Collection[str], seed: int, purpose: str) -> list[str]:
    rng = streams.host_rng(seed, purpose)
    ordered = sorted(names)
    return [ordered[position] for position in rng.permutation(len(ordered))]


def _take(order: Sequence[str], groups: Mapping[str, Sequence[str]], wanted: int) -> tuple[str, ...]:
    """Groups in this order, as many as fit into the wanted number of cases; the first when none fits."""
    chosen: list[str] = []
    count = 0
    for group in order:
        if count + len(groups[group]) <= wanted:
            chosen.append(group)
            count += len(groups[group])
    return tuple(chosen) if chosen else tuple(order[:1])


def _drawn_test(
    prepared: PreparedTask, groups: Mapping[str, Sequence[str]], test_cases: int, folds: int, fold: int, seed: int
) -> tuple[str, ...]:
    order = _shuffled(groups, seed, "test")
    if len(groups) < max(2, folds):
        raise UserError(
            f"{prepared.name}: {len(groups)} group(s) of cases cannot be split into {folds} fold(s) with training and "
            "test cases; a group is never cut."
        )
    if test_cases:
        left = list(order)
        for _ in range(fold + 1):
            test = _take(left, groups, test_cases)
            left = [group for group in left if group not in test]
            if not test:
                raise UserError(
                    f"{prepared.name}: {folds} folds of {test_cases} test cases need more than its "
                    f"{len(prepared.cases)} cases; set test_cases to 0 for a share of 1 / folds."
                )
        return test
    if folds == 1:
        total = sum(map(len, groups.values()))
        return _take(order, groups, max(1, round(total / 5)))
    parts: list[list[str]] = [[] for _ in range(folds)]
    sizes = [0] * folds
    # Assign the largest groups first, each to the fold with the fewest cases, so that folds differ as little as
    # possible.
    for group in sorted(order, key=lambda group: -len(groups[group])):
        smallest = sizes.index(min(sizes))
        parts[smallest].append(group)
        sizes[smallest] += len(groups[group])
    return tuple(parts[fold])


_LISTED = "its listed folds (splits_final.json, or `fold` or `validation` of dataset.json)"


def _listed_fold(prepared: PreparedTask, fold: int, folds: int) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a listed fold trains on and tests."""
    splits = prepared.splits or ()
    if fold >= len(splits):
        raise UserError(
            f"{prepared.name}: {_LISTED}: there are {len(splits)} fold(s) and fold {fold} of {folds} is asked for; set "
            "folds to fewer, or remove the list."
        )
    train, test = map(frozenset, splits[fold])
    both = sorted(train & test)
    if both:
        raise UserError(f"{prepared.name}: {_LISTED}, fold {fold}: {', '.join(both[:5])} in train and in val.")
    unknown = sorted((train | test) - {record.name for record in prepared.cases} - dict(prepared.report.refused).keys())
    if unknown:
        raise UserError(
            f"{prepared.name}: {_LISTED}, fold {fold}: unknown cases: {', '.join(map(shown, unknown[:5]))}. It has "
            f"{', '.join(record.name for record in prepared.cases[:5])}, ..."
        )
    return train, test


def _tests_nothing_else(prepared: PreparedTask, test: frozenset[str], groups: frozenset[str]) -> bool:
    """Whether a listed fold tests cases of these groups alone.

    So it is where a source is the target, or lists the same patients: the target tests that very fold, so that its
    cases take no part in the source, whose own test cases are then drawn like those of a task without a list.
    """
    tested = {record.group for record in prepared.cases if record.name in test}
    return bool(tested) and tested <= groups


def _listed_test(
    prepared: PreparedTask, groups: Mapping[str, Sequence[str]], fold: int, test: frozenset[str]
) -> tuple[str, ...]:
    known = {name for names in groups.values() for name in names}
    cut = sorted(group for group, names in groups.items() if set(names) & test and not set(names) <= test)
    if cut:
        raise UserError(
            f"{prepared.name}: {_LISTED}, fold {fold}: cases of one group are in train and in val: "
            f"{', '.join(cut[:5])}. Results would be too good; mend the file or the `groups` of dataset.json."
        )
    if not known & test:
        raise UserError(f"{prepared.name}: {_LISTED}, fold {fold}: there is no case to test on.")
    return tuple(group for group, names in groups.items() if set(names) & test)
