"""Linear CKA that compares only positions of different cases.

Debiased CKA takes every datapoint for an independent draw. But voxels of one case are alike, so that two unrelated
smooth features of a few cases seem similar. Here, HSIC is estimated from tuples of positions from different cases, so
that similarity within a case contributes nothing.

The estimator is the unbiased one of Song et al. 2012 (JMLR 13, equation 4), a mean over quadruples, with

    E[k(1, 2) l(1, 2)] + E[k(1, 2)] E[l(3, 4)] - 2 E[k(1, 2) l(1, 3)],

where 1, 2, 3, 4 are different cases, all of equal weight, and each term is the mean over the positions in them. With
one position a case it is debiased CKA. Adding a constant to the features changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.analysis.similarity import ROUNDING

MIN_CASES = 4
"""Number of different cases that an estimate needs."""


class Cases(NamedTuple):
    """Indices of the points of each case, padded to the case with the most points."""

    where: Int[np.ndarray, "cases most"]
    weight: Float[np.ndarray, "cases most"]
    """1 / (number of points of the case), and 0 for padding."""


def group_points(case: Int[np.ndarray, " points"]) -> Cases:
    """Group points by their case.

    >>> group_points(np.array([7, 7, 2])).where.tolist()
    [[2, 0], [0, 1]]
    """
    members = [np.flatnonzero(case == name) for name in np.unique(case)]
    most = max(map(len, members))
    index = np.stack([np.pad(own, (0, most - len(own))) for own in members])
    weight = np.stack([np.pad(np.full(len(own), 1 / len(own)), (0, most - len(own))) for own in members])
    return Cases(index, weight.astype(np.float32))


class Prepared(NamedTuple):
    """Quantities of the representations of several runs that every comparison needs."""

    points: Float[Array, "runs cases most neurons"]
    """Centred features times the square root of their weight."""
    means: Float[Array, "runs cases neurons"]
    along: Float[Array, "runs cases_most"]
    """Product of each of `points` with the mean of its case."""
    gram: Float[Array, "runs cases cases"]
    """Products of the means of the cases."""
    own: Float[Array, " runs"]
    """HSIC of each representation with itself."""


def prepare(x: Float[Array, "runs points neurons"], cases: Cases) -> Prepared:
    """Prepare one side of the comparisons; see `compare`."""
    laid = x[:, cases.where]
    weight = jnp.asarray(cases.weight)[None, ..., None]
    centre = (weight * laid).sum((1, 2), keepdims=True) / len(cases.where)
    points = jnp.sqrt(weight) * (laid - centre)
    # CKA does not depend on the scale, and nothing overflows at norm 1. Rounding errors of a constant are no feature.
    norm, whole = (jnp.linalg.norm(side.reshape(len(x), -1), axis=1) for side in (points, jnp.sqrt(weight) * laid))
    points = points / jnp.where(norm > ROUNDING * whole, norm, jnp.nan)[:, None, None, None]
    means = (jnp.sqrt(weight) * points).sum(2)
    along = jnp.einsum("rcpn,rcn->rcp", points, means, precision=lax.Precision.HIGHEST).reshape(len(x), -1)
    gram = jnp.einsum("rcn,rdn->rcd", means, means, precision=lax.Precision.HIGHEST)
    ready = Prepared(points, means, along, gram, jnp.zeros(len(x)))
    own = lax.map(lambda one: _hsic(*2 * (jax.tree.map(lambda leaf: leaf[None], one),))[0, 0], ready)
    return ready._replace(own=own)


def compare(a: Prepared, b: Prepared) -> Float[Array, "runs others"]:
    """Return CKA of all of `a` with all of `b`: near 0 for unrelated features, 1 for equal ones.

    Returns:
        The values; NaN with fewer than `MIN_CASES` cases, and if cases do not differ enough for a value: a self-term,
        which is an estimate too, is then not above 0.
    """
    if a.means.shape[1] < MIN_CASES:
        return jnp.full((len(a.means), len(b.means)), jnp.nan)
    scale = a.own[:, None] * b.own[None, :]
    usable = (a.own[:, None] > 0) & (b.own[None, :] > 0)
    return jnp.where(usable, _hsic(a, b) / jnp.sqrt(jnp.where(usable, scale, 1)), jnp.nan)


def _hsic(a: Prepared, b: Prepared) -> Float[Array, "runs others"]:
    """The three terms over different cases, as sums over all cases less those in which two are the same.

    The features are centred, so a sum over all cases of their means is 0; that leaves the few terms below. No product
    of two positions is ever formed, only moments (neurons x neurons) of single cases.
    """
    count = a.means.shape[1]
    runs, others = len(a.means), len(b.means)

    def side_by_side(x: Float[Array, "runs rows neurons"]) -> Float[Array, "rows runs_neurons"]:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)

    def blocks(square: Float[Array, "runs_neurons others_neurons"]) -> Float[Array, "runs others"]:
        return square.reshape(runs, -1, others, b.means.shape[-1]).sum((1, 3))

    def add_case(carry: tuple[jax.Array, jax.Array], case: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        moment = _product(side_by_side(case[0]), side_by_side(case[1]))
        return (carry[0] + moment, carry[1] + blocks(jnp.square(moment))), None

    width = (runs * a.means.shape[-1], others * b.means.shape[-1])
    zero = jnp.zeros(width), jnp.zeros((runs, others))
    (moment, within), _ = lax.scan(add_case, zero, (jnp.moveaxis(a.points, 1, 0), jnp.moveaxis(b.points, 1, 0)))
    between_means = blocks(moment * _product(side_by_side(a.means), side_by_side(b.means)))
    trace = jnp.einsum("rcc->rc", a.gram), jnp.einsum("rcc->rc", b.gram)
    flat = a.gram.reshape(runs, -1), b.gram.reshape(others, -1)
    same = _product(trace[0].T, trace[1].T)

    pairs = blocks(jnp.square(moment)) - within
    triples = 2 * _product(a.along.T, b.along.T) - between_means
    quadruples = jnp.outer(trace[0].sum(1), trace[1].sum(1)) + 2 * _product(flat[0].T, flat[1].T) - 6 * same
    of_two = count * (count - 1)
    return pairs / of_two + (quadruples / (count - 3) - 2 * triples) / (of_two * (count - 2))


def _product(x: Float[Array, "rows a"], y: Float[Array, "rows b"]) -> Float[Array, "a b"]:
    """`x^T y` in full precision, on accelerators too."""
    return jnp.matmul(x.T, y, precision=lax.Precision.HIGHEST)
