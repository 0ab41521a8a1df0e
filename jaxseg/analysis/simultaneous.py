"""Simultaneous intervals of several contrasts of the same runs, and the ranks that they allow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

DRAWS = 20_000
"""Draws of all statistics together, from which the level of a single interval is taken."""


def covariance_of_means(d: Float[np.ndarray, "contrasts seeds groups"]) -> Float[np.ndarray, "contrasts contrasts"]:
    """Return the covariance of contrasts' grand means, with seeds and groups both random, up to a common scale.

    This is the sum of the mean squares and products of seeds and of groups over the number of cells. Each holds the
    residual once, so that the sum holds it once too often (see `statistics.two_way_interval`); without it, unlike with
    it taken off, the matrix cannot have a negative eigenvalue, and correlations hardly depend on it.
    """
    num_seeds, num_groups = d.shape[1:]
    centred = d - d.mean((1, 2), keepdims=True)
    by_seed = centred.mean(2)
    total = num_groups * by_seed @ by_seed.T / (num_seeds - 1)
    if num_groups > 1:
        by_group = centred.mean(1)
        total = total + num_seeds * by_group @ by_group.T / (num_groups - 1)
    return total / (num_seeds * num_groups)


def joint_level(
    blocks: Sequence[Float[np.ndarray, "contrasts seeds groups"]],
    dfs: Sequence[float],
    *,
    level: float,
    rng: np.random.Generator,
) -> float:
    """Return the level of each t interval at which a family of contrasts errs on any with the probability `level`.

    The single-step max-t method (Hothorn, Bretz and Westfall 2008, doi:10.1002/bimj.200810425): t statistics are drawn
    together, with the correlation of the contrasts, and the smallest of their p values is below the returned level in a
    share `level` of draws. Contrasts differ in their degrees of freedom, which is why p values are compared and not the
    statistics. Estimates of two variances are drawn with the squared correlation of the contrasts, as they have it in a
    Wishart distribution.

    Args:
        blocks: One array for each fold, which share no seed and no group; the contrasts are those of the means over
            folds.
        dfs: Degrees of freedom of each contrast's variance.
        level: Level of the family.
        rng: Generator of the draws.

    Returns:
        A number between `level` over the number of contrasts and `level`.
    """
    count = len(dfs)
    covariance = np.sum([covariance_of_means(np.asarray(block, np.float64)) for block in blocks], axis=0)
    scale = np.sqrt(np.diag(covariance))
    # A contrast without any variance has a correlation with nothing.
    correlation = np.where(
        np.eye(count, dtype=bool), 1.0, covariance / np.outer(*[np.where(scale > 0, scale, 1.0)] * 2)
    )
    freedom = np.asarray(dfs, np.float64)
    quantiles = special.ndtr(_correlated(correlation**2, rng))
    t = _correlated(correlation, rng) / np.sqrt(2 * special.gammaincinv(freedom / 2, quantiles) / freedom)
    smallest = 2 * special.stdtr(freedom, -np.abs(t)).min(1)
    return float(np.clip(np.quantile(smallest, level), level / count, level))


def _correlated(
    correlation: Float[np.ndarray, "contrasts contrasts"], rng: np.random.Generator
) -> Float[np.ndarray, "draws contrasts"]:
    """Standard normal draws with this correlation."""
    values, vectors = np.linalg.eigh(correlation)
    return rng.normal(size=(DRAWS, len(correlation))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T


def rank_limits(better: Bool[np.ndarray, "arms arms"]) -> tuple[Int[np.ndarray, " arms"], Int[np.ndarray, " arms"]]:
    """Return the lowest and the highest rank that each arm may have, 1 being the best.

    With simultaneous comparisons the true ranks all lie within these limits at the level of the family (Mohamad, Goeman
    and van Zwet 2019, doi:10.1111/biom.12896).

    Args:
        better: Whether the arm of a row is better than that of a column for certain.

    >>> rank_limits(np.array([[False, False, True], [False, False, True], [False, False, False]]))
    (array([1, 1, 3]), array([2, 2, 3]))
    """
    return 1 + better.sum(0), len(better) - better.sum(1)
