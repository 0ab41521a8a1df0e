"""Exact permutation tests: of two arms' labels within each seed, and of ranks over few targets."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxseg.analysis.statistics import sign_vectors


def label_swap(
    excess: Float[np.ndarray, "seeds seeds"], *, rng: np.random.Generator | None = None, max_swaps: int = 2**14
) -> float:
    """Return the one-sided p of a mean excess over pairs of seeds when the two arms' labels are swapped within seeds.

    excess[i, j] is how much further apart the runs i and j are across two arms than within them, (D[a_i, b_j] + D[b_i,
    a_j]) / 2 - (D[a_i, a_j] + D[b_i, b_j]) / 2. Swapping the labels of one of the two seeds changes its sign; swapping
    both leaves it. The mean of s_i s_j excess[i, j] over all signs s is therefore the whole null distribution, which is
    exact if a seed's two runs are exchangeable, whatever the pairs have in common.

    Args:
        excess: Symmetric matrix; the diagonal is not used.
        rng: Generator, needed if there are more than `max_swaps` distinct swaps; otherwise all are listed.
        max_swaps: Number of swaps to list or draw at most.

    Returns:
        The share of swaps with at least the observed mean, never below 2 / 2^seeds.
    """
    seeds = len(excess)
    pairs = np.where(np.eye(seeds, dtype=bool), 0.0, excess)
    # Equal sums must compare as equal whatever the order of their terms.
    observed = pairs.sum() - 1e-9 * np.abs(pairs).sum()
    hits = 0
    blocks, count, exact = sign_vectors(seeds, max_swaps, rng)
    for signs in blocks:
        hits += int(np.sum(np.einsum("si,ij,sj->s", signs, pairs, signs, optimize=True) >= observed))
    return hits / count if exact else (1 + hits) / (1 + count)


class RankCorrelation(NamedTuple):
    """Spearman's correlation with its one-sided p values."""

    rho: float
    p_positive: float
    p_negative: float


_LISTED = 8
"""Number of points up to which all orders are listed: there are 40,320 for 8."""


def rank_correlation(
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    *,
    rng: np.random.Generator | None = None,
    draws: int = 2**16,
) -> RankCorrelation:
    """Return Spearman's rank correlation with its permutation p: all orders up to 8 points, random ones above.

    Ties get their mean rank. If all values of x or y are equal, the correlation is NaN and both p are 1.

    >>> rank_correlation(np.arange(5.0), np.arange(5.0)).p_positive == 1 / 120
    True
    """
    a, b = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    if scale == 0:
        return RankCorrelation(math.nan, 1.0, 1.0)
    exact = len(a) <= _LISTED
    if exact:
        orders = np.array(list(itertools.permutations(range(len(a)))))
    elif rng is None:
        raise ValueError(f"{len(a)} points have too many orders to list them all: pass `rng`")
    else:
        orders = rng.permuted(np.tile(np.arange(len(a)), (draws, 1)), axis=1)
    sums, observed = b[orders] @ a, float(a @ b)
    above, below = (int(np.sum(sign * sums >= sign * observed - 1e-9)) for sign in (1, -1))
    extra = 0 if exact else 1
    count = len(orders) + extra
    return RankCorrelation(observed / scale, (above + extra) / count, (below + extra) / count)
