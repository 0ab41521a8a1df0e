"""Contrasts of DSC: linear in arms and training set sizes, with seeds and groups both random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxseg.analysis.folds import components_over_folds, fold_interval
from jaxseg.study.claims.evidence import Evidence, Pair, Seeds, sources_of
from jaxseg.study.claims.findings import OF_DSC, Lacking, Quantity, Scale, Void, count_of_seeds, few_seeds, quantity
from jaxseg.study.claims.rest import growth, growth_of_contrast
from jaxseg.study.claims.rules import MIN_GROUPS, MIN_SEEDS_A_FOLD
from jaxseg.study.score.scores import Scores, contrast

Weights = Mapping[tuple[str, int], float]
"""The weight of each arm at each training set size."""
Block = Float[np.ndarray, "seeds groups"]


class Blocks(NamedTuple):
    """A contrast with one block per fold, or a single block if folds do not rotate over seeds."""

    seeds: tuple[Seeds, ...]
    d: tuple[Block, ...]
    seeds_each: int = 1
    """Number of seeds that share a source network, and are one row."""

    @property
    def n_seeds(self) -> int:
        """The number of seeds, or of source networks that several share, in all folds."""
        return sum(len(block) for block in self.d)

    @property
    def n_groups(self) -> int:
        """The number of test groups in all folds."""
        return sum(block.shape[1] for block in self.d)

    def doubts(self) -> list[str]:
        """The doubts that too few seeds or test groups raise about a verdict on new seeds and new patients."""
        found = few_seeds(self.n_seeds, self.seeds_each)
        least_seeds, least_groups = (min(block.shape[axis] for block in self.d) for axis in (0, 1))
        rotating = len(self.d) > 1
        if rotating and least_seeds < MIN_SEEDS_A_FOLD:
            least = count_of_seeds(MIN_SEEDS_A_FOLD, self.seeds_each)
            found.append(f"needs at least {least} in each fold, has {least_seeds}")
        if least_groups < MIN_GROUPS:
            found.append(f"needs at least {MIN_GROUPS} test groups{' in each fold' * rotating}, has {least_groups}")
        return found


def _of_size(scores: Scores, weights: Mapping[str, float], evidence: Evidence) -> tuple[Seeds, Block, int]:
    """A contrast at one size and fold; seeds that share a source network are averaged, and their number given."""
    for arm in weights:
        if arm not in scores.seeds or not len(scores.seeds[arm]):
            known = evidence.record.arms.get(arm)
            if known is not None and known.diverged:  # it was trained: a claim on it has an answer, if none to be had
                raise Void(f"no scores of arm {arm}: {known.diverged} of its {known.runs} runs diverged")
            raise Lacking(f"no scores of arm {arm}")
    found = contrast(scores, weights, "dsc", sources_of(evidence, *weights))
    if not found.d.size:
        raise Lacking(f"no case with a score of {' and '.join(weights)}")
    return found.names, found.d, found.seeds_each


def blocks_of(evidence: Evidence, weights: Weights) -> Blocks:
    """Computes a contrast on the seeds that all of its sizes share; the test groups must be the same."""
    sizes = list(dict.fromkeys(size for _, size in weights))
    for arm, size in weights:
        evidence.arm(arm)
        if size not in evidence.scores:
            raise Lacking(f"no scores at {size or 'all'} training cases")
    seeds: list[Seeds] = []
    blocks: list[Block] = []
    each = 1
    for fold in range(min(len(evidence.scores[size]) for size in sizes)):
        parts = [
            _of_size(
                evidence.scores[size][fold], {arm: w for (arm, own), w in weights.items() if own == size}, evidence
            )
            for size in sizes
        ]
        shared = parts[0][0]
        for own, _, of_one in parts:
            shared = np.intersect1d(shared, own)
            each = max(each, of_one)
        if len({d.shape[1] for _, d, _ in parts}) > 1:
            raise Lacking("training set sizes have different test groups")
        seeds.append(shared)
        blocks.append(np.sum([d[np.isin(own, shared)] for own, d, _ in parts], axis=0))
    return Blocks(tuple(seeds), tuple(blocks), each)


def of_blocks(name: str, blocks: Blocks, confidence: float, **more: object) -> Quantity:
    """Computes a quantity with its interval over new seeds and new groups."""
    spread = components_over_folds(blocks.d) if min(min(d.shape) for d in blocks.d) > 1 else None
    numbers = {"n_seeds": blocks.n_seeds, "n_groups": blocks.n_groups, "spread": spread, "folds": len(blocks.d)}
    fixed = {**numbers, "seeds_each": blocks.seeds_each, **more}
    return quantity(name, fold_interval(blocks.d, confidence=confidence), confidence, **fixed)


def dsc_quantity(
    evidence: Evidence,
    name: str,
    weights: Weights,
    *,
    key: str = "",
    scale: Scale | None = None,
    thresholds: Sequence[float] = (0.0,),
    size: int | None = None,
) -> tuple[Quantity, list[str]]:
    """Computes a contrast as a quantity, projected by one doubling of the steps, and the doubts about it.

    Args:
        evidence: The study.
        name: The name that readers see.
        weights: The weight of each arm at each size.
        key: The name that rules use; `name` if empty.
        scale: The scale that grades the quantity, if it is graded.
        thresholds: The numbers of the rule.
        size: The training set size of the quantity, if it is not that of the evidence.
    """
    blocks = blocks_of(evidence, weights)
    grown = {(arm, own): growth(evidence.at(own), arm) for arm, own in weights}
    fall, rise = growth_of_contrast(grown, weights)
    more = {"key": key or name, "scale": scale, "thresholds": tuple(thresholds), "fall": fall, "rise": rise}
    return of_blocks(name, blocks, evidence.confidence, train_cases=size, **more), blocks.doubts()


def gain_weights(pair: Pair, size: int, weight: float = 1.0) -> dict[tuple[str, int], float]:
    """Returns the weights of the arm minus its baseline."""
    return {(pair.arm, size): weight, (pair.baseline, size): -weight}


def gain(evidence: Evidence, pair: Pair, size: int | None = None, *, key: str = "gain") -> tuple[Quantity, list[str]]:
    """Computes the gain of the arm over its baseline, at this or another training set size."""
    size = evidence.size if size is None else size
    name = f"gain, {size_name(evidence, size)}"
    return dsc_quantity(evidence, name, gain_weights(pair, size), key=key, scale=OF_DSC, size=size)


def sizes_with(evidence: Evidence, pair: Pair) -> list[int]:
    """Returns the training set sizes at which both arms have scores, in ascending order and each only once."""
    record, sizes = evidence.record, {}
    for size, folds in evidence.scores.items():
        if all(len(scores.seeds.get(arm, ())) for scores in folds for arm in pair):
            sizes[record.number_of_cases(size)] = size
    return [sizes[number] for number in sorted(sizes)]


def size_name(evidence: Evidence, size: int) -> str:
    """Returns the words that name a number of training cases."""
    return f"{evidence.record.number_of_cases(size)} training cases"
