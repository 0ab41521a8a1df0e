"""An exact permutation test of two arms' labels within each seed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

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
