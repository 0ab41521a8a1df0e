"""Differences between runs of one arm: in their predictions and in their parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int

from jaxseg.analysis import sites
from jaxseg.regions import mask


def region_of(
    reference: Int[np.ndarray, "*spatial"], predictions: Int[np.ndarray, "runs *spatial"]
) -> Bool[np.ndarray, "*spatial"]:
    """Return where runs can agree or not: the reference with a band around it, and all that any run predicts.

    Far from both, everything is background for every run, and the amount of it in an image would dominate the share.
    """
    return sites.near(reference > 0) | (predictions > 0).any(0)


def _votes(labels: Int[np.ndarray, "runs voxels"], classes: int) -> Float[np.ndarray, "classes runs voxels"]:
    return (labels[None] == np.arange(classes)[:, None, None]).astype(np.float32)


def differing(
    a: Int[np.ndarray, "runs voxels"], b: Int[np.ndarray, "others voxels"], classes: int
) -> Float[np.ndarray, "runs others"]:
    """Return the number of voxels that every two runs label differently."""
    same = sum(x @ y.T for x, y in zip(_votes(a, classes), _votes(b, classes), strict=True))
    return np.asarray(a.shape[1] - same, np.float64)


def pairwise_dsc(
    labels: Int[np.ndarray, "runs voxels"], classes: int | Sequence[Sequence[int]]
) -> Float[np.ndarray, "runs runs"]:
    """Return the DSC of every two runs, averaged over the labels that either of them predicts; NaN if neither does.

    Args:
        labels: Label maps.
        classes: The number of classes, background included; or, of regions, the classes that each is made of.
    """
    members = [(label,) for label in range(1, classes)] if isinstance(classes, int) else classes
    votes = np.stack([mask(labels, group) for group in members]).astype(np.float32)
    both = np.einsum("crv,csv->crs", votes, votes, optimize=True)
    size = votes.sum(-1)
    total = size[:, :, None] + size[:, None, :]
    count = (total > 0).sum(0)
    return np.where(count, (2 * both / np.maximum(total, 1)).sum(0) / np.maximum(count, 1), np.nan)


def vote_entropy(labels: Int[np.ndarray, "runs voxels"], classes: int) -> Float[np.ndarray, " voxels"]:
    """Return the entropy, in nats, of the runs' votes on each voxel: 0 if all agree, at most ln(classes)."""
    share = _votes(labels, classes).mean(1)
    return -scipy.special.xlogy(share, share).sum(0)


def minority_share(labels: Int[np.ndarray, "runs *spatial"], classes: int) -> Float[np.ndarray, "*spatial"]:
    """Return the share of runs that differ from what most of them predict."""
    flat = labels.reshape(len(labels), -1)
    return 1 - _votes(flat, classes).mean(1).max(0).reshape(labels.shape[1:])


def parameter_distance(leaves: Sequence[Float[np.ndarray, "runs ..."]]) -> Float[np.ndarray, "runs runs"]:
    """Return the Euclidean distance of every two runs' parameters, over the root of the product of their norms.

    It is about sqrt(2) for independent draws without a mean. Permuted channels count as distance: two networks that
    compute the same function can be far apart.

    Args:
        leaves: Parameter arrays, runs first.
    """
    runs = len(leaves[0])
    gram = np.zeros((runs, runs))
    for leaf in leaves:
        flat = np.asarray(leaf, np.float64).reshape(runs, -1)
        gram += flat @ flat.T
    square = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram
    norm = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.maximum(square, 0)) / np.sqrt(np.outer(norm, norm))
