"""Which seeds count as one: those that start from the same source network.

What a source network is like, all of its fine-tunings share. An interval that takes them for independent draws is too
narrow, so that they are averaged first, and their source networks are counted in place of the seeds.
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
    """The source networks that a study's runs start from."""

    of: Mapping[str, Mapping[int, int]] = MappingProxyType({})
    """The seed of the source network of each seed, by arm; arms that start at random may be missing."""
    one: frozenset[str] = frozenset()
    """Arms all of whose seeds start from one source network. What is found of them is of this network alone, and each
    seed counts."""

    def units(self, arm: str, seeds: Seeds) -> Seeds:
        """Returns the unit of each seed of an arm: the seed itself, or the source network that several start from."""
        found = self.of.get(arm, {})
        if arm in self.one or not set(map(int, seeds)) <= found.keys():
            return seeds
        return np.array([found[int(seed)] for seed in seeds], dtype=np.int64)

    def shared(self, arm: str) -> bool:
        """Returns whether several, but not all, seeds of an arm start from the same source network."""
        return arm not in self.one and len(set(self.of.get(arm, {}).values())) < len(self.of.get(arm, {}))


EACH_ITS_OWN = Sources()
"""No seed shares a source network with another."""


def sources_of(study: StudyRecord | None) -> Sources:
    """Returns the source networks of a study's runs on the target; without a record each seed counts for itself."""
    if study is None:
        return EACH_ITS_OWN
    found = {arm: own for arm in study.arms if (own := study.sources(arm))}
    one = {arm for arm, own in found.items() if len(own) > 1 and len(set(own.values())) == 1}
    return Sources(found, frozenset(one))


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
