"""How filters change in training, and whether trained ones still look random.

A kernel is `[*taps, channels, features]`; a filter is one output feature's vector of d = taps x channels weights. Every
measure comes with what it is under its null hypothesis, two independent draws or weights without structure, since none
of them means anything alone. Random draws come from an explicit `np.random.Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage, special, stats

Kernel = Float[np.ndarray, "*taps channels features"]

TRUNCATION = 2.0
"""Initialisers draw from a normal truncated at this many of its standard deviations."""
_BELOW = float(special.ndtr(-TRUNCATION))
"""Share of the normal cut off at either side."""
_TRUNCATED_SD = math.sqrt(1 - 2 * TRUNCATION * stats.norm.pdf(TRUNCATION) / (1 - 2 * _BELOW))
"""Standard deviation of the standard normal so truncated, 0.8796."""


def as_filters(kernel: Kernel) -> Float[np.ndarray, "features d"]:
    """One row per output feature."""
    return np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]).T


# --------------------------------------------------------------------------------------------------------------- change


class Change(NamedTuple):
    """How each filter of a layer moved."""

    angle_deg: Float[np.ndarray, " features"]
    """Between start and end, in [0, 180]. Verdicts use it: norms are moved by weight decay, and free before a norm."""
    relative_change: Float[np.ndarray, " features"]
    """Norm of the difference over the norm at the start."""
    norm_ratio: Float[np.ndarray, " features"]
    """Norm at the end over that at the start."""


class NullChange(NamedTuple):
    """What `Change` is between two independent draws of d weights of the same variance."""

    angle_deg: float
    angle_sd_deg: float
    """About 1 / sqrt(d) in radians."""
    relative_change: float


def change(start: Kernel, end: Kernel) -> Change:
    """Compares a layer's filters before and after training; NaN where a filter starts at zero.

    >>> kernel = np.eye(2).reshape(1, 2, 2)
    >>> change(kernel, kernel[..., ::-1]).angle_deg.tolist()
    [90.0, 90.0]
    """
    if start.shape != end.shape:
        raise ValueError(f"start and end must be the same layer's kernel, got shapes {start.shape} and {end.shape}")
    a, b = as_filters(start), as_filters(end)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = a / norm_a[:, None], b / norm_b[:, None]
        # Of the two chords, so that small angles keep their digits where the arc cosine would round them to 0.
        angle = 2 * np.arctan2(np.linalg.norm(u - v, axis=1), np.linalg.norm(u + v, axis=1))
        return Change(np.degrees(angle), np.linalg.norm(b - a, axis=1) / norm_a, norm_b / norm_a)


def null_change(d: int) -> NullChange:
    """What two independent filters of d weights give: a right angle, and a difference of sqrt(2) norms."""
    return NullChange(90.0, math.degrees(1 / math.sqrt(d)), math.sqrt(2))


# ------------------------------------------------------------------------------- (a) distribution of single weights


def _truncated_distance(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
    """Kolmogorov-Smirnov distance to the truncated normal of mean 0 whose scale is that of the weights."""
    n = weights.shape[1]
    scale = np.sqrt(np.mean(np.square(weights), 1, keepdims=True)) / _TRUNCATED_SD
    ordered = np.clip(np.sort(weights, 1) / scale, -TRUNCATION, TRUNCATION)
    cdf = (special.ndtr(ordered) - _BELOW) / (1 - 2 * _BELOW)
    steps = np.arange(n + 1) / n
    return np.maximum(np.abs(cdf - steps[:-1]), np.abs(cdf - steps[1:])).max(1)


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Draws as initialisers make them, scaled to variance 1."""
    return special.ndtri(rng.uniform(_BELOW, 1 - _BELOW, shape)) / _TRUNCATED_SD


def distribution_null(num_weights: int, rng: np.random.Generator, *, draws: int = 40) -> float:
    """Mean distance of fresh draws of so many weights: a parametric bootstrap."""
    return float(np.mean([_truncated_distance(truncated_normal(rng, (1, num_weights)))[0] for _ in range(draws)]))


def distribution_excess(kernel: Kernel, null: float) -> float:
    """Distance of a layer's weights from the initialiser's distribution, beyond that of a fresh draw of as many.

    The Kolmogorov-Smirnov distance to a normal truncated as the initialiser does, at the layer's own scale, less
    `null`, its mean for draws of that distribution (`distribution_null`). About 0 for weights that still look drawn.
    A p-value would not do: with 100,000 weights it rejects any deviation, however small.
    """
    return float(_truncated_distance(np.asarray(kernel, np.float64).reshape(1, -1))[0] - null)


# ------------------------------------------------------------------------------------ (b) arrangement of the taps


def tap_neighbours(taps: tuple[int, ...]) -> Int[np.ndarray, "pairs 2"]:
    """Pairs of taps that share a face (rook neighbours): 54 in 3 x 3 x 3, 12 in 3 x 3."""
    index = np.arange(math.prod(taps)).reshape(taps)
    pairs = [
        np.stack([index.take(range(size - 1), axis).ravel(), index.take(range(1, size), axis).ravel()], 1)
        for axis, size in enumerate(taps)
    ]
    return np.concatenate(pairs)


class Moran(NamedTuple):
    """Spatial autocorrelation of a layer's taps."""

    value: float
    """Moran's I: near 1 where neighbouring taps are alike, negative where they alternate."""
    expected: float
    """Without any arrangement: -1 / (taps - 1)."""
    p: float
    """Two-sided, by permutations."""


def moran(kernel: Kernel, rng: np.random.Generator, *, permutations: int = 999) -> Moran:
    """Moran's I over the taps (Moran 1950), all channel pairs of a layer together.

    Slices are demeaned, and the index is a ratio of sums over slices. Taps are permuted in the same way in all slices:
    slices of one layer are not independent, and permuting each by itself rejects far too often.

    Returns:
        NaN for kernels of a single tap.
    """
    taps = kernel.shape[:-2]
    slices = np.asarray(kernel, np.float64).reshape(math.prod(taps), -1)
    if len(slices) < 2:
        return Moran(math.nan, math.nan, math.nan)
    slices = slices - slices.mean(0)
    pairs = tap_neighbours(taps)
    # Only products of taps are needed, so a permutation costs taps x taps, not a pass over all slices.
    gram = slices @ slices.T
    expected = -1 / (len(slices) - 1)
    scale = len(slices) / len(pairs) / np.trace(gram)

    def index(order: Int[np.ndarray, " taps"]) -> float:
        return float(scale * gram[order[pairs[:, 0]], order[pairs[:, 1]]].sum())

    observed = index(np.arange(len(slices)))
    null = np.array([index(rng.permutation(len(slices))) for _ in range(permutations)])
    # At least as far, up to rounding: the symmetries of the grid give permutations of the very same index.
    further = np.abs(null - expected) >= abs(observed - expected) - 1e-12
    return Moran(observed, expected, float((1 + further.sum()) / (1 + permutations)))


def centre_share(kernel: Kernel) -> float:
    """Share of the centre tap in a layer's energy, which Moran's I cannot see; NaN without a centre.

    Without structure it is 1 / taps: 1/27 in 3 x 3 x 3, 1/9 in 3 x 3.
    """
    taps = kernel.shape[:-2]
    if math.prod(taps) < 2 or not all(size % 2 for size in taps):
        return math.nan
    energy = np.square(np.asarray(kernel, np.float64))
    return float(energy[tuple(size // 2 for size in taps)].sum() / energy.sum())


# ------------------------------------------------------------------------------------------------ (c) shared structure


def spectral_excess(kernel: Kernel, rng: np.random.Generator, *, draws: int = 20) -> float:
    """Share of a layer's energy in directions stronger than any of the same weights shuffled.

    Singular values of the features x d matrix above the largest singular value seen in `draws` shuffled matrices; what
    filters share (low rank) shows here. Near 0 without structure; in [0, 1].
    """
    matrix = as_filters(kernel)
    shuffled = (rng.permutation(matrix.ravel()).reshape(matrix.shape) for _ in range(draws))
    ceiling = max(float(_squared_singular_values(one)[-1]) for one in shuffled)
    energy = _squared_singular_values(matrix)
    return float(energy[energy > ceiling].sum() / energy.sum())


def _squared_singular_values(matrix: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " rank"]:
    """Ascending, from the smaller of the two products with the transpose: a layer has far more weights than filters."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return np.linalg.eigvalsh(wide @ wide.T)


# --------------------------------------------------------------------------- (d) telling start and end apart by filter


def filter_features(kernels: Float[np.ndarray, "kernels *taps channels features"]) -> Float[np.ndarray, "filters k"]:
    """What a classifier sees of each filter, at unit norm: how its taps go together, and how heavy its tails are.

    The products of every two taps, summed over channels, and the logarithm of the kurtosis. A single weight's sign
    says nothing, as filters of either sign are alike at the start.
    """
    *_, channels, features = kernels.shape
    taps = math.prod(kernels.shape[1:-2])
    layers = np.moveaxis(np.asarray(kernels, np.float64).reshape(-1, taps, channels, features), -1, 1)
    raw = layers.reshape(-1, taps, channels)
    filters = raw / np.linalg.norm(raw, axis=(1, 2), keepdims=True)
    gram = filters @ filters.transpose(0, 2, 1)
    upper = np.triu_indices(taps)
    size = filters[0].size
    kurtosis = np.log(size * np.sum(filters**4, axis=(1, 2)))
    return np.concatenate([gram[:, upper[0], upper[1]], kurtosis[:, None]], 1)


def _ridge_scores(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, " n"], new: Float[np.ndarray, "m k"]) -> np.ndarray:
    """Scores of new rows by ridge regression on -1 and 1, the penalty chosen by generalised cross-validation."""
    mean, sd = x.mean(0), x.std(0)
    sd[sd == 0] = 1
    x, new = (x - mean) / sd, (new - mean) / sd
    # From the smaller of the two products: their eigenvalues are the squared singular values of x.
    by_rows = len(x) <= x.shape[1]
    power, vectors = np.linalg.eigh(x @ x.T if by_rows else x.T @ x)
    power = np.maximum(power, 0)
    target = vectors.T @ (y if by_rows else x.T @ y)
    fitted = target**2 if by_rows else np.divide(target**2, power, out=np.zeros_like(power), where=power > 0)
    best, solved = math.inf, np.zeros(len(power))
    for penalty in np.geomspace(1e-3, 1e3, 13) * max(float(power[-1]), 1e-300) / len(power):
        shrink = power / (power + penalty)
        residual = np.sum(np.square(y)) - np.sum((2 * shrink - shrink**2) * fitted)
        score = residual / (len(y) - shrink.sum()) ** 2
        if score < best:
            best, solved = score, target / (power + penalty)
    weights = vectors @ solved
    return new @ (x.T @ weights if by_rows else weights)


def start_end_auc(
    start: Float[np.ndarray, "runs *taps channels features"], end: Float[np.ndarray, "runs *taps channels features"]
) -> Float[np.ndarray, " runs"]:
    """How well filters of trained networks can be told from their own starts: 0.5 not at all, 1 always.

    A ridge classifier on `filter_features` is trained on some runs and tested on others, in folds over runs, so that
    both ends of a filter lie in the same fold. With filters split at random, the start of a filter among the training
    data gives its end away in the wrong direction.

    Returns:
        The area under the ROC curve on each run's filters; NaN with fewer than two runs.
    """
    runs = len(start)
    if runs < 2:
        return np.full(runs, np.nan)
    rows = [filter_features(kernels).reshape(runs, -1, 1 + _pairs(kernels)) for kernels in (start, end)]
    filters = rows[0].shape[1]
    areas = np.empty(runs)
    for test in np.array_split(np.arange(runs), min(runs, 5)):
        train = np.setdiff1d(np.arange(runs), test)
        learnt, asked = (
            np.concatenate([part[fold].reshape(-1, part.shape[-1]) for part in rows]) for fold in (train, test)
        )
        scores = _ridge_scores(learnt, np.repeat([-1.0, 1.0], len(learnt) // 2), asked).reshape(2, len(test), filters)
        ranks = stats.rankdata(np.concatenate([scores[1], scores[0]], 1), axis=1)[:, :filters]
        areas[test] = (ranks.sum(1) - filters * (filters + 1) / 2) / filters**2  # Mann and Whitney's U
    return areas


def _pairs(kernels: np.ndarray) -> int:
    taps = math.prod(kernels.shape[1:-2])
    return taps * (taps + 1) // 2


# -------------------------------------------------------------------------------------------------- positive controls


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Weights of a t distribution with 3 degrees of freedom, variance 1."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Weights that vary smoothly over the taps, variance 1."""
    taps = shape[:-2]
    wide = rng.normal(size=(*(size + 4 for size in taps), *shape[-2:]))
    blurred = ndimage.gaussian_filter(wide, (*(1.0 for _ in taps), 0, 0))
    inner = blurred[tuple(slice(2, -2) for _ in taps)]
    return inner / inner.std()


def low_rank(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Filters that are multiples of one another, variance 1."""
    pattern = np.multiply.outer(rng.normal(size=shape[:-1]), rng.normal(size=shape[-1:]))
    return pattern / pattern.std()


CONTROLS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "distribution": heavy_tailed,
    "arrangement": smooth,
    "spectrum": low_rank,
    "auc": smooth,
}
"""For each test of randomness, structure that it is made to find."""


def blend(kernel: Kernel, pattern: Float[np.ndarray, "*taps channels features"], share: float) -> Kernel:
    """A kernel in which a pattern of variance 1 makes up a share of the variance, which itself stays."""
    return math.sqrt(1 - share) * kernel + math.sqrt(share) * pattern * np.std(kernel)


def smallest_share(
    finds: Callable[[Kernel], bool],
    kernel: Kernel,
    control: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
    rng: np.random.Generator,
    *,
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5),
    draws: int = 20,
    power: float = 0.8,
) -> float:
    """The smallest blended-in share of a control that a test finds in at least `power` of draws.

    Args:
        finds: Whether a test finds structure in a kernel.
        kernel: Into which the control is blended.
        control: One of `CONTROLS`.
        rng: Of the control's draws.
        shares: Tried, ascending.
        draws: For each share.
        power: Share of draws in which the test must find it.

    Returns:
        One of `shares`, or NaN if none is found often enough: then the test could not have seen structure there, and
        its silence says nothing.
    """
    for share in shares:
        found = missed = 0
        while missed <= (1 - power) * draws + 1e-9:  # one more and it cannot be found often enough
            if finds(blend(kernel, control(rng, kernel.shape), share)):
                found += 1
            else:
                missed += 1
            if found >= power * draws:
                return share
    return math.nan
