"""Which seeds count as one: those that start from the same source network, and all of an arm whose streams are crossed.

What a source network is like, all of its fine-tunings share. An interval that takes them for independent draws is too
narrow, so that they are averaged first, and their source networks are counted in place of the seeds. Where random
streams are crossed, each run shares its start with some runs and its order of batches with others: no part of them is
independent of the rest. Such an arm is there to split the variance, and its mean has no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxseg.analysis import statistics
from jaxseg.study.record import StudyRecord

Seeds = Int[np.ndarray, " seeds"]


class Sources(NamedTuple):
    """What a study's runs share: source networks that they start from, and ids of crossed random streams."""

    of: Mapping[str, Mapping[int, int]] = MappingProxyType({})
    """The seed of the source network of each seed, by arm; arms that start at random may be missing."""
    one: frozenset[str] = frozenset()
    """Arms all of whose seeds start from one source network. What is found of them is of this network alone, and each
    seed counts."""
    crossed: frozenset[str] = frozenset()
    """Arms whose random streams are crossed: all of their runs count as one."""

    def units(self, arm: str, seeds: Seeds) -> Seeds:
        """Returns the unit of each seed of an arm: the seed itself, or the source network that several start from.

        Seeds of a crossed arm are one unit.
        """
        if arm in self.crossed:
            return np.zeros_like(seeds)
        found = self.of.get(arm, {})
        if arm in self.one or not set(map(int, seeds)) <= found.keys():
            return seeds
        return np.array([found[int(seed)] for seed in seeds], dtype=np.int64)

    def shared(self, arm: str) -> bool:
        """Returns whether several, but not all, seeds of an arm start from the same source network."""
        own = self.of.get(arm, {})
        return arm not in self.one | self.crossed and len(set(own.values())) < len(own)


EACH_ITS_OWN = Sources()
"""No seed shares anything with another."""


def is_crossed(study: StudyRecord, arm: str) -> bool:
    """Returns whether the random streams of an arm are crossed: its runs share the ids of some, not of all."""
    ids = {run.seed: (run.init_id, run.order_id, run.subset_id) for run in study.runs_of("train") if run.arm == arm}
    return any(1 < len(set(of_stream)) < len(ids) for of_stream in zip(*ids.values(), strict=True))


def sources_of(study: StudyRecord | None) -> Sources:
    """Returns what a study's runs on the target share; without a record each seed counts for itself."""
    if study is None:
        return EACH_ITS_OWN
    found = {arm: own for arm in study.arms if (own := study.sources(arm))}
    one = {arm for arm, own in found.items() if len(own) > 1 and len(set(own.values())) == 1}
    return Sources(found, frozenset(one), frozenset(arm for arm in study.arms if is_crossed(study, arm)))


def joint_units(labels: Sequence[Seeds]) -> Int[np.ndarray, " seeds"]:
    """Returns the first seed, by position, of those that each seed shares a unit with, directly or through others.

    Args:
        labels: The unit of each seed in each of several arms.

    >>> joint_units([np.array([0, 1, 2, 3]), np.array([5, 5, 6, 7])]).tolist()
    [0, 0, 2, 3]
    """
    firsts = np.arange(len(labels[0]))
    places = [np.unique(own, return_inverse=True)[1] for own in labels]
    while True:
        before = firsts
        for place in places:
            least = np.full(len(firsts), len(firsts))
            np.minimum.at(least, place, firsts)
            firsts = least[place]
        if np.array_equal(firsts, before):
            return firsts


def mean_of_units(values: Float[np.ndarray, "seeds *axes"], of_units: Seeds) -> Float[np.ndarray, "units *axes"]:
    """Computes the mean over the seeds of each unit, in ascending order of units."""
    names = np.unique(of_units)
    if len(names) == len(of_units):  # each seed is one
        return values[np.argsort(of_units)]
    return np.stack([values[of_units == unit].mean(0) for unit in names])


def jackknife(
    statistic: Callable[[Seeds], float], of_units: Seeds, *, confidence: float, log: bool = False
) -> statistics.Interval:
    """Applies `statistics.jackknife` over units, each left out with all of its seeds.

    Args:
        statistic: Computes the quantity from the positions of the seeds that are kept.
        of_units: The unit of each seed.
        confidence: Confidence level of the interval.
        log: Work on the logarithm.
    """
    names = np.unique(of_units)

    def of_kept(kept: Seeds) -> float:
        return statistic(np.flatnonzero(np.isin(of_units, names[kept])))

    return statistics.jackknife(of_kept, len(names), confidence=confidence, log=log)


def seeds_each(of_units: Seeds) -> int:
    """Returns how many seeds share a unit at most."""
    return int(np.unique(of_units, return_counts=True)[1].max()) if len(of_units) else 1
