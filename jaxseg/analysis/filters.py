"""Changes of filters in training, and tests of whether trained filters still look random.

A kernel is `[*taps, channels, features]`; a filter is one output feature's vector of d = taps x channels weights. Every
measure comes with its value under its null hypothesis, two independent draws or weights without structure, since none
of them means anything alone. Random draws come from an explicit `np.random.Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage, special

Kernel = Float[np.ndarray, "*taps channels features"]

TRUNCATION = 2.0
"""Initialisers draw from a normal truncated at this many standard deviations."""
_BELOW = float(special.ndtr(-TRUNCATION))
"""Share of the normal that is cut off at either side."""
_DENSITY = math.exp(-(TRUNCATION**2) / 2) / math.sqrt(2 * math.pi)
"""Density of the normal where it is cut off."""
_TRUNCATED_SD = math.sqrt(1 - 2 * TRUNCATION * _DENSITY / (1 - 2 * _BELOW))
"""Standard deviation of the standard normal after this truncation, 0.8796."""


def as_filters(kernel: Kernel) -> Float[np.ndarray, "features d"]:
    """Return a kernel as a matrix with one row per output feature."""
    return np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]).T


# --------------------------------------------------------------------------------------------------------------- change


class Change(NamedTuple):
    """Movement of each filter of a layer."""

    angle_deg: Float[np.ndarray, " features"]
    """Angle of start and end, in [0, 180], for verdicts: norms change by weight decay, and freely before a norm."""
    relative_change: Float[np.ndarray, " features"]
    """Norm of the difference over the norm at the start."""
    norm_ratio: Float[np.ndarray, " features"]
    """Norm at the end over the norm at the start."""


class NullChange(NamedTuple):
    """Values of `Change` for two independent draws of d weights of the same variance."""

    angle_deg: float
    angle_sd_deg: float
    """Standard deviation of the angle, in degrees: about 1 / sqrt(d) radians."""
    relative_change: float


def change(start: Kernel, end: Kernel) -> Change:
    """Compare a layer's filters before and after training; NaN where a filter starts at zero.

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
        # The angle comes from the two chords, so that small angles keep digits that the arc cosine would round to 0.
        angle = 2 * np.arctan2(np.linalg.norm(u - v, axis=1), np.linalg.norm(u + v, axis=1))
        return Change(np.degrees(angle), np.linalg.norm(b - a, axis=1) / norm_a, norm_b / norm_a)


def null_change(d: int) -> NullChange:
    """Return the change between two independent filters of d weights: a right angle, and sqrt(2) norms apart."""
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
    """Draw as initialisers do, scaled to variance 1."""
    return special.ndtri(rng.uniform(_BELOW, 1 - _BELOW, shape)) / _TRUNCATED_SD


def distribution_null(num_weights: int, rng: np.random.Generator, *, draws: int = 40) -> float:
    """Return the mean distance of fresh draws of `num_weights` weights, a parametric bootstrap."""
    return float(np.mean([_truncated_distance(truncated_normal(rng, (1, num_weights)))[0] for _ in range(draws)]))


def distribution_excess(kernel: Kernel, null: float) -> float:
    """Return the distance of a layer's weights from the initialiser's distribution, beyond that of a fresh draw.

    This is the Kolmogorov-Smirnov distance to a normal truncated as the initialiser does, at the layer's own scale,
    less `null`, its mean for draws of as many weights (`distribution_null`). It is about 0 for weights that still look
    drawn, and NaN for weights of zero. A p-value would not be useful: with 100,000 weights it rejects any deviation,
    however small.
    """
    if not np.any(kernel):
        return math.nan
    return float(_truncated_distance(np.asarray(kernel, np.float64).reshape(1, -1))[0] - null)


# ------------------------------------------------------------------------------------ (b) arrangement of the taps


def tap_neighbours(taps: tuple[int, ...]) -> Int[np.ndarray, "pairs 2"]:
    """Return the pairs of taps that share a face (rook neighbours): 54 in 3 x 3 x 3, 12 in 3 x 3."""
    index = np.arange(math.prod(taps)).reshape(taps)
    pairs = [
        np.stack([index.take(range(size - 1), axis).ravel(), index.take(range(1, size), axis).ravel()], 1)
        for axis, size in enumerate(taps)
    ]
    return np.concatenate(pairs)


class Moran(NamedTuple):
    """Spatial autocorrelation of a layer's taps."""

    value: float
    """Moran's I: near 1 if neighbouring taps are alike, negative if they alternate."""
    expected: float
    """Expected value without any arrangement: -1 / (taps - 1)."""
    p: float
    """Two-sided p value from permutations."""


def moran(kernel: Kernel, rng: np.random.Generator, *, permutations: int = 999) -> Moran:
    """Return Moran's I over the taps (Moran 1950), with all channel pairs of a layer together.

    Slices are demeaned, and the index is a ratio of sums over slices. Taps are permuted in the same way in all slices:
    the slices of one layer are not independent, and separate permutations would reject far too often.

    Returns:
        The index with its test; NaN for kernels of a single tap, and for those whose taps are all alike.
    """
    taps = kernel.shape[:-2]
    slices = np.asarray(kernel, np.float64).reshape(math.prod(taps), -1)
    if len(slices) < 2:
        return Moran(math.nan, math.nan, math.nan)
    # A slice whose taps are equal has no arrangement; less its mean, rounding errors would be left of it.
    slices = slices[:, np.ptp(slices, 0) > 0]
    expected = -1 / (len(slices) - 1)
    if not slices.size:
        return Moran(math.nan, expected, math.nan)
    slices = slices - slices.mean(0)
    pairs = tap_neighbours(taps)
    # Only products of taps are needed, so a permutation costs taps x taps instead of a pass over all slices.
    gram = slices @ slices.T
    scale = len(slices) / len(pairs) / np.trace(gram)

    def indices(orders: Int[np.ndarray, "orders taps"]) -> Float[np.ndarray, " orders"]:
        return scale * gram[orders[:, pairs[:, 0]], orders[:, pairs[:, 1]]].sum(1)

    observed = float(indices(np.arange(len(slices))[None])[0])
    null = indices(rng.permuted(np.tile(np.arange(len(slices)), (permutations, 1)), axis=1))
    # Count indices at least as far, up to rounding: symmetries of the grid give permutations with the same index.
    further = np.abs(null - expected) >= abs(observed - expected) - 1e-12
    return Moran(observed, expected, float((1 + further.sum()) / (1 + permutations)))


def centre_share(kernel: Kernel) -> float:
    """Return the centre tap's share of a layer's energy, which Moran's I cannot see; NaN without centre or energy.

    Without structure the share is 1 / taps: 1/27 in 3 x 3 x 3, 1/9 in 3 x 3.
    """
    taps = kernel.shape[:-2]
    if math.prod(taps) < 2 or not all(size % 2 for size in taps):
        return math.nan
    energy = np.square(np.asarray(kernel, np.float64))
    total = float(energy.sum())
    return float(energy[tuple(size // 2 for size in taps)].sum()) / total if total > 0 else math.nan


# ------------------------------------------------------------------------------------------------ (c) shared structure


def spectral_excess(kernel: Kernel, rng: np.random.Generator, *, draws: int = 20) -> float:
    """Return the share of a layer's energy in directions stronger than any of the same weights shuffled.

    These are the singular values of the features x d matrix above the largest one in `draws` shuffled matrices, so that
    the measure shows what filters share (low rank). It is in [0, 1], and near 0 without structure; NaN for a layer of
    zeros.
    """
    if not np.any(kernel):
        return math.nan
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
    """Return features of each filter for a classifier, at unit norm: how taps covary, and how heavy the tails are.

    They are the products of every two taps, summed over channels, and the logarithm of the kurtosis. The sign of a
    single weight says nothing, since filters of either sign are equally likely at the start.
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
    # Use the smaller of the two products: their eigenvalues are the squared singular values of x.
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
    start: Float[np.ndarray, "runs *taps channels features"],
    end: Float[np.ndarray, "runs *taps channels features"],
    origin: Int[np.ndarray, " runs"] | None = None,
    wave: Int[np.ndarray, " runs"] | None = None,
) -> Float[np.ndarray, " runs"]:
    """Return how well filters of trained networks can be told from their own starts: 0.5 not at all, 1 always.

    A ridge classifier on `filter_features` is trained on some runs and tested on others, in folds over runs, so that
    both ends of a filter are in the same fold. If filters were split at random, the start of a filter in the training
    data would bias the prediction for its end in the wrong direction. Runs that began with the same weights are in one
    fold as well: the classifier would know the others by these.

    Args:
        start: Kernels of a layer before training.
        end: The same after training.
        origin: Number of the start of each run; None if each run has its own.
        wave: When each run came to the study: it is told by runs of its own and earlier waves alone, so that what was
            found of it stays. None if all came together.

    Returns:
        The area under the ROC curve on each run's filters; NaN with fewer than two starts.
    """
    runs = len(start)
    if wave is not None and len(np.unique(wave)) > 1:
        found = np.full(runs, np.nan)
        for number in np.unique(wave):
            there = wave <= number
            areas = start_end_auc(start[there], end[there], None if origin is None else origin[there])
            found[wave == number] = areas[wave[there] == number]
        return found
    origin = np.arange(runs) if origin is None else origin
    origins = np.unique(origin)
    if len(origins) < 2:
        return np.full(runs, np.nan)
    rows = [filter_features(kernels).reshape(runs, -1, 1 + _pairs(kernels)) for kernels in (start, end)]
    filters = rows[0].shape[1]
    areas = np.empty(runs)
    for asked_of in np.array_split(origins, min(len(origins), 5)):
        here = np.isin(origin, asked_of)
        test, train = np.flatnonzero(here), np.flatnonzero(~here)
        learnt, asked = (
            np.concatenate([part[fold].reshape(-1, part.shape[-1]) for part in rows]) for fold in (train, test)
        )
        scores = _ridge_scores(learnt, np.repeat([-1.0, 1.0], len(learnt) // 2), asked).reshape(2, len(test), filters)
        areas[test] = [_area(ends, starts) for starts, ends in zip(*scores, strict=True)]
    return areas


def _area(high: Float[np.ndarray, " n"], low: Float[np.ndarray, " m"]) -> float:
    """Return the area under the ROC curve, Mann and Whitney's U: how often `high` is above `low`, ties as halves.

    >>> _area(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    0.875
    """
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.sum() / (2 * len(high) * len(low)))


def _pairs(kernels: np.ndarray) -> int:
    taps = math.prod(kernels.shape[1:-2])
    return taps * (taps + 1) // 2


# -------------------------------------------------------------------------------------------------- positive controls


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Draw weights from a t distribution with 3 degrees of freedom, scaled to variance 1."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Draw weights that vary smoothly over the taps, with variance 1."""
    taps = shape[:-2]
    wide = rng.normal(size=(*(size + 4 for size in taps), *shape[-2:]))
    blurred = ndimage.gaussian_filter(wide, (*(1.0 for _ in taps), 0, 0))
    inner = blurred[tuple(slice(2, -2) for _ in taps)]
    return inner / inner.std()


def low_rank(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Draw filters that are multiples of one another, with variance 1."""
    pattern = np.multiply.outer(rng.normal(size=shape[:-1]), rng.normal(size=shape[-1:]))
    return pattern / pattern.std()


CONTROLS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "distribution": heavy_tailed,
    "arrangement": smooth,
    "spectrum": low_rank,
    "auc": smooth,
}
"""For each test of randomness, a kind of structure that it should detect."""


def blend(kernel: Kernel, pattern: Float[np.ndarray, "*taps channels features"], share: float) -> Kernel:
    """Blend a pattern of variance 1 into a kernel as a share of its variance, which itself is unchanged."""
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
    """Return the smallest blended-in share of a control that a test detects in at least `power` of the draws.

    Args:
        finds: Returns whether a test detects structure in a kernel.
        kernel: Kernel into which the control is blended.
        control: One of `CONTROLS`.
        rng: Generator of the control's draws.
        shares: Shares to try, ascending.
        draws: Number of draws for each share.
        power: Share of draws in which the test must detect the control.

    Returns:
        One of `shares`, or NaN if none is detected often enough: the test could then not have seen such structure, and
        a negative result means nothing.
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
