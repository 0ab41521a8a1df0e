"""Similarity of two representations of the same datapoints: linear CKA, SVCCA, PWCCA and Procrustes.

A representation is `[datapoints, neurons]`: voxel positions by channels. All four measures are invariant to the origin,
to the overall scale and to the order of the neurons, and all but PWCCA to rotations of the neurons (its weights are
sums over single neurons). None needs equally many neurons on both sides. 1 means equal up to these; the value for two
unrelated networks is far above 0 and has to be measured (a floor), not assumed.

A measure consists of two functions: `prepare`, called once for each representation, and `compare`, called once for each
pair with the product of the two prepared feature matrices. Thus all pairs of runs cost one preparation per run and a
few large products.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

ROUNDING = 1e-6
"""Range of a channel's values, as a share of the largest, up to which they are equal: rounding errors of float32."""
BLOCKS = 6
"""Number of blocks of runs for all pairs: enough that little of the symmetric half is computed twice."""


class Prepared(NamedTuple):
    """Quantities of one side that every comparison needs."""

    features: Float[Array, "datapoints features"]
    side: Any
    """Other quantities of the representation that the measure needs."""


class Measure(NamedTuple):
    """A similarity, computed as `compare(a.side, b.side, a.features^T b.features)` for prepared `a` and `b`."""

    prepare: Callable[[Float[Array, "datapoints neurons"]], Prepared]
    compare: Callable[[Any, Any, Float[Array, "features_a features_b"]], Float[Array, ""]]


def between(
    measure: Measure, x: Float[Array, "runs datapoints neurons"], y: Float[Array, "others datapoints neurons_y"]
) -> Float[Array, "runs others"]:
    """Compute a measure between each of `x` and each of `y`, on the same datapoints; the widths may differ."""
    return compare_prepared(measure, jax.vmap(measure.prepare)(x), jax.vmap(measure.prepare)(y))


def all_pairs(measure: Measure, x: Float[Array, "runs datapoints neurons"]) -> Float[Array, "runs runs"]:
    """Compute a measure between every two of several representations of the same width."""
    ready = jax.vmap(measure.prepare)(x)
    width, columns = ready.features.shape[-1], _columns(ready.features)
    bounds = np.linspace(0, len(x), min(BLOCKS, len(x)) + 1).astype(int).tolist()
    rows = []
    for low, high in itertools.pairwise(bounds):
        block, rest = (
            jax.tree.map(lambda leaf, part=part: leaf[part], ready.side)
            for part in (slice(low, high), slice(low, None))
        )
        product = _product(columns[:, low * width : high * width], columns[:, low * width :])
        values = _compare_all(measure, block, rest, product.reshape(high - low, width, -1, width))
        rows.append(jnp.pad(values, ((0, 0), (low, 0))))
    upper = jnp.triu(jnp.concatenate(rows))
    return upper + jnp.triu(upper, 1).T


def compare_prepared(measure: Measure, a: Prepared, b: Prepared) -> Float[Array, "runs others"]:
    """Compare all of `a` with all of `b`, prepared by `jax.vmap(measure.prepare)`, from one product."""
    product = _product(_columns(a.features), _columns(b.features))
    shape = (len(a.features), a.features.shape[-1], len(b.features), b.features.shape[-1])
    return _compare_all(measure, a.side, b.side, product.reshape(shape))


def _columns(features: Float[Array, "runs datapoints features"]) -> Float[Array, "datapoints runs_features"]:
    """The runs side by side."""
    return jnp.moveaxis(features, 0, 1).reshape(features.shape[1], -1)


def _compare_all(
    measure: Measure, a: Any, b: Any, product: Float[Array, "runs features_a others features_b"]
) -> Float[Array, "runs others"]:
    """Every side of `a` with every side of `b`."""
    return jax.vmap(jax.vmap(measure.compare, (None, 0, 1)), (0, None, 0))(a, b, product)


def varying(x: Any) -> Any:
    """Return which neurons of representations `[..., datapoints, neurons]` vary, `[..., 1, neurons]`, by `ROUNDING`.

    >>> varying(np.float32([[0.1, 0.0, 1.0], [0.1, 0.0, 1.1]])).tolist()
    [[False, False, True]]
    """
    high, low = x.max(-2, keepdims=True), x.min(-2, keepdims=True)
    return high - low > ROUNDING * abs(x).max(-2, keepdims=True)


def centred(x: Float[Array, "datapoints neurons"]) -> Float[Array, "datapoints neurons"]:
    """Subtract the mean of every neuron, then scale to Frobenius norm 1; NaN if no neuron varies.

    Without its mean, a constant neuron leaves rounding errors, which are alike in all constant neurons. It becomes 0.
    """
    x = jnp.where(varying(x), x - x.mean(0, keepdims=True), 0)
    return x / jnp.linalg.norm(x)


def _product(x: Float[Array, "datapoints a"], y: Float[Array, "datapoints b"]) -> Float[Array, "a b"]:
    """`x^T y` in full precision, on accelerators too."""
    return jnp.matmul(x.T, y, precision=lax.Precision.HIGHEST)


# ------------------------------------------------------------------------------------------------------------------ CKA


def _rows(x: Float[Array, "datapoints neurons"]) -> Float[Array, " datapoints"]:
    return jnp.sum(jnp.square(x), 1)


def _hsic(
    a_rows: Float[Array, " datapoints"],
    b_rows: Float[Array, " datapoints"],
    product: Float[Array, "neurons_a neurons_b"],
    debiased: bool,
) -> Float[Array, ""]:
    """HSIC of linear kernels of centred features, up to a factor of the number of datapoints.

    Debiased: Song et al. 2012 (JMLR 13, equation 4), written for features; for centred ones the sum over all pairs of
    datapoints is minus that over the diagonal. As in Kornblith et al. 2019.

    Args:
        a_rows: Squared norm of each datapoint.
        b_rows: The same of the other side.
        product: Product of the two feature matrices.
        debiased: Which of the two.
    """
    value = jnp.sum(jnp.square(product))
    if not debiased:
        return value
    n = len(a_rows)
    return value - n / (n - 2) * (a_rows @ b_rows) + a_rows.sum() * b_rows.sum() / ((n - 1) * (n - 2))


def cka_measure(debiased: bool) -> Measure:
    """Return linear CKA as a measure (see `cka`)."""

    def prepare(x: Float[Array, "datapoints neurons"]) -> Prepared:
        x = centred(x)
        rows = _rows(x)
        return Prepared(x, (rows, _hsic(rows, rows, _product(x, x), debiased)))

    def compare(a: Any, b: Any, product: Float[Array, "neurons_a neurons_b"]) -> Float[Array, ""]:
        (a_rows, a_self), (b_rows, b_self) = a, b
        return _hsic(a_rows, b_rows, product, debiased) / jnp.sqrt(a_self * b_self)

    return Measure(prepare, compare)


def cka(
    x: Float[Array, "datapoints neurons_x"], y: Float[Array, "datapoints neurons_y"], debiased: bool = False
) -> Float[Array, ""]:
    """Return the linear centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414).

    Args:
        x: First representation.
        y: Second representation, of the same datapoints.
        debiased: Whether to use the unbiased estimator of HSIC, which is near 0 for unrelated representations, where
            the biased one grows with neurons / datapoints. It can be slightly negative.

    Returns:
        The similarity, at most 1; NaN if one side does not vary.
    """
    return _one(cka_measure(debiased), x, y)


class Hsic(NamedTuple):
    """Sums over batches of datapoints that determine CKA; the sums of disjoint batches add up."""

    cross: Float[Array, "runs others"]
    self_x: Float[Array, " runs"]
    self_y: Float[Array, " others"]


def batch_hsic(x: Float[Array, "runs batch neurons_x"], y: Float[Array, "others batch neurons_y"]) -> Hsic:
    """Return the unbiased sums of one batch of datapoints (Nguyen et al. 2020, arXiv:2010.15327, equation 3).

    CKA is a ratio, and the mean of such ratios over batches depends on the size of the batches. HSIC has an estimator
    whose expected value does not (Song et al. 2012): its mean over batches estimates the value for all datapoints
    together, however small the batches are. Therefore HSIC is summed over batches, and `cka_of` takes the ratio once.

    Batches have equally many datapoints and should each mix cases. No scaling is applied inside a batch, since it would
    differ between batches.

    Returns:
        The sums, to be added over batches and then given to `cka_of`.
    """

    def prepare(x: Float[Array, "batch neurons"]) -> Prepared:
        x = x - x.mean(0, keepdims=True)
        return Prepared(x, _rows(x))

    def own(one: Prepared) -> Float[Array, ""]:
        return _hsic(one.side, one.side, _product(one.features, one.features), debiased=True)

    ours, theirs = jax.vmap(prepare)(x), jax.vmap(prepare)(y)
    cross = compare_prepared(Measure(prepare, functools.partial(_hsic, debiased=True)), ours, theirs)
    return Hsic(cross, jax.vmap(own)(ours), jax.vmap(own)(theirs))


def cka_of(sums: Hsic) -> Float[Array, "runs others"]:
    """Return minibatch CKA from sums over all batches."""
    return sums.cross / jnp.sqrt(sums.self_x[:, None] * sums.self_y[None, :])


# ------------------------------------------------------------------------------------------- canonical correlations


class Basis(NamedTuple):
    """Mask of the principal directions that count, and the coordinates of the neurons along them."""

    kept: Bool[Array, " rank"]
    neurons: Float[Array, "rank neurons"]
    """Coordinates of each neuron along the directions."""


def _basis(x: Float[Array, "datapoints neurons"], variance: float) -> Prepared:
    """Orthonormal principal directions that hold a share of the variance; others, and those of rounding, are zero."""
    q, r = jnp.linalg.qr(centred(x))
    u, scale, vt = jnp.linalg.svd(r, full_matrices=False)
    power = jnp.square(scale)
    before = jnp.cumsum(power) - power
    noise = jnp.finfo(x.dtype).eps * max(x.shape) * scale[:1]
    kept = (before < variance * power.sum()) & (scale > noise)
    directions = jnp.matmul(q, u, precision=lax.Precision.HIGHEST)
    neurons = jnp.where(kept[:, None], scale[:, None] * vt, 0)
    return Prepared(jnp.where(kept[None, :], directions, 0), Basis(kept, neurons))


def _rank(a: Basis, b: Basis) -> Float[Array, ""]:
    return jnp.minimum(a.kept.sum(), b.kept.sum()).astype(a.neurons.dtype)


def _defined(a: Basis, b: Basis, value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(a.kept.any() & b.kept.any(), value, jnp.nan)


def _mean_correlation(a: Basis, b: Basis, product: Float[Array, "rank_a rank_b"]) -> Float[Array, ""]:
    rho = jnp.linalg.svd(product, compute_uv=False)
    return _defined(a, b, jnp.minimum(rho, 1).sum() / jnp.maximum(_rank(a, b), 1))


def svcca_measure(variance: float = 0.99) -> Measure:
    """Return SVCCA as a measure (see `svcca`)."""
    return Measure(functools.partial(_basis, variance=variance), _mean_correlation)


def svcca(
    x: Float[Array, "datapoints neurons_x"], y: Float[Array, "datapoints neurons_y"], variance: float = 0.99
) -> Float[Array, ""]:
    """Return the mean canonical correlation of the directions that hold a share of the variance (Raghu et al. 2017).

    The mean is over as many directions as the side with fewer has kept (arXiv:1706.05806). With `variance` 1 this is
    plain CCA, invariant to every invertible linear map of the neurons.

    Args:
        x: First representation.
        y: Second representation, of the same datapoints.
        variance: Share of the variance that the kept principal directions hold, in (0, 1].

    Returns:
        The similarity in [0, 1]; NaN if one side does not vary.
    """
    return _one(svcca_measure(variance), x, y)


def _weighted_correlation(a: Basis, b: Basis, product: Float[Array, "rank_a rank_b"]) -> Float[Array, ""]:
    left, rho, right = jnp.linalg.svd(product, full_matrices=False)
    counts = jnp.arange(rho.shape[0]) < _rank(a, b)
    rho = jnp.where(counts, jnp.minimum(rho, 1), 0)

    def weighted(own: Float[Array, "rank pairs"], basis: Basis) -> Float[Array, ""]:
        # Canonical variate h_i is `directions @ own[:, i]`, so <h_i, neuron j> is `own[:, i] @ neurons[:, j]`.
        weights = jnp.where(counts, jnp.sum(jnp.abs(_product(own, basis.neurons)), 1), 0)
        return (weights * rho).sum() / weights.sum()

    return _defined(a, b, (weighted(left, a) + weighted(right.T, b)) / 2)


PWCCA = Measure(functools.partial(_basis, variance=1.0), _weighted_correlation)
"""PWCCA as a measure (see `pwcca`)."""


def pwcca(x: Float[Array, "datapoints neurons_x"], y: Float[Array, "datapoints neurons_y"]) -> Float[Array, ""]:
    """Return canonical correlations weighted by how much of the neurons they account for (Morcos et al. 2018).

    The weights follow arXiv:1806.05759, section 2.2, and are taken from either side in turn; the result is the mean of
    both, so that it is symmetric. A rotation of the neurons changes it a little.

    Returns:
        The similarity in [0, 1]; NaN if one side does not vary.
    """
    return _one(PWCCA, x, y)


# ------------------------------------------------------------------------------------------------------- Procrustes


PROCRUSTES = Measure(
    lambda x: Prepared(centred(x), ()), lambda a, b, product: jnp.linalg.svd(product, compute_uv=False).sum()
)
"""Procrustes similarity as a measure (see `procrustes`)."""


def procrustes(x: Float[Array, "datapoints neurons_x"], y: Float[Array, "datapoints neurons_y"]) -> Float[Array, ""]:
    """Return how well one representation can be rotated onto the other (Ding et al. 2021, arXiv:2108.01661).

    This is the nuclear norm of x^T y, both centred and of Frobenius norm 1; the squared Procrustes distance is 2 minus
    twice that.

    Returns:
        The similarity in [0, 1]; NaN if one side does not vary.
    """
    return _one(PROCRUSTES, x, y)


def _one(measure: Measure, x: jax.Array, y: jax.Array) -> Float[Array, ""]:
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"representations are [datapoints, neurons] arrays of the same datapoints, got {x.shape} and {y.shape}"
        )
    a, b = measure.prepare(x), measure.prepare(y)
    return measure.compare(a.side, b.side, _product(a.features, b.features))


def between_layers(
    layers: Sequence[Float[np.ndarray, "points channels"]],
) -> Float[np.ndarray, "layers layers"]:
    """Return linear CKA between every two layers of one network, which may differ in width; NaN if one is constant."""
    wide = [np.asarray(layer, np.float64) for layer in layers]
    columns = np.concatenate([np.where(varying(layer), layer - layer.mean(0), 0) for layer in wide], 1)
    gram = np.square(columns.T @ columns)
    starts = np.cumsum([0, *(layer.shape[1] for layer in layers[:-1])])
    hsic = np.add.reduceat(np.add.reduceat(gram, starts, 0), starts, 1)
    own = np.sqrt(np.diag(hsic))
    with np.errstate(invalid="ignore", divide="ignore"):
        return hsic / np.outer(own, own)
