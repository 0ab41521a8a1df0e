"""Random-effects analysis of several targets: their mean, their heterogeneity, and a property they depend on.

The model is y_k = mu + u_k + e_k, with u_k of variance tau^2 between targets and e_k of variance v_k, which is
estimated with df_k degrees of freedom. Targets are usually few, so intervals of means follow Hartung and Knapp with the
modification that they are never narrower than those of a fixed effect (Rover, Knapp and Friede 2015,
doi:10.1186/s12874-015-0091-1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from jaxseg.analysis.folds import t_quantile
from jaxseg.analysis.statistics import Interval

Targets = Float[np.ndarray, " targets"]


class Heterogeneity(NamedTuple):
    """Standard deviation between targets, with the limits of a two-sided interval."""

    tau: float
    low: float
    high: float


class Pooled(NamedTuple):
    """Results for several targets together."""

    mean: Interval
    prediction: Interval
    """Interval in which the value of another target is to be expected."""
    heterogeneity: Heterogeneity


def _weighted_mean(y: Targets, weights: Targets) -> float:
    return float(np.sum(weights * y) / np.sum(weights))


def _residual_square(design: Float[np.ndarray, "targets terms"], y: Targets, v: Targets) -> Callable[[float], float]:
    """Generalised Q as a function of tau^2: it falls as tau^2 grows."""

    def q(tau2: float) -> float:
        weights = 1 / (v + tau2)
        fitted = design @ np.linalg.solve((design.T * weights) @ design, (design.T * weights) @ y)
        return float(np.sum(weights * (y - fitted) ** 2))

    return q


def _root(q: Callable[[float], float], value: float, start: float) -> float:
    """The tau^2 at which a falling function takes a value; 0 where it is below it from the start."""
    if q(0.0) <= value:
        return 0.0
    high = start
    while q(high) > value:
        high *= 4
    return float(optimize.brentq(lambda tau2: q(tau2) - value, 0.0, high, xtol=1e-14 * high))


def _scale(y: Targets, v: Targets) -> float:
    return float(np.var(y) + v.max() + 1e-12)


def _ones(y: Targets) -> Float[np.ndarray, "targets terms"]:
    return np.ones((len(y), 1))


def between_variance(design: Float[np.ndarray, "targets terms"], y: Targets, v: Targets) -> float:
    """Return Paule and Mandel's (1982) estimate of tau^2, at which the residuals vary as much as they should."""
    return _root(_residual_square(design, y, v), len(y) - design.shape[1], _scale(y, v))


def heterogeneity(y: Targets, v: Targets, df: Targets, *, confidence: float = 0.95) -> Heterogeneity:
    """Return the sd between targets, with the limits at which their spread would be too large or too small by chance.

    The limits invert a test of tau, as those of the Q-profile do (Viechtbauer 2007, doi:10.1002/sim.2514). That one
    takes variances as known: with about 7 degrees of freedom each, the lower limit of 12 equal targets is above 0 in 14
    of 100 analyses, and of 24 in 23. The test is Welch's here (see `welch_p`), where they are 4 and 5, and a variance
    v + tau^2 has the degrees of freedom of Satterthwaite.

    Args:
        y: Estimates, one per target.
        v: Variances of the estimates.
        df: Degrees of freedom of each variance; infinite if it is known, which gives the Q-profile.
        confidence: Level of the interval.
    """
    scale, count = _scale(y, v), len(y)

    def surprise(tau2: float) -> float:
        return -welch_p(y, v + tau2, df * (1 + tau2 / v) ** 2)

    tau2 = _root(_residual_square(_ones(y), y, v), count - 1, scale)
    low, high = (_root(surprise, -(1 - side * confidence) / 2, scale) for side in (1, -1))
    return Heterogeneity(math.sqrt(tau2), math.sqrt(min(low, tau2)), math.sqrt(max(high, tau2)))


def pooled(y: Targets, v: Targets, df: Targets, *, confidence: float = 0.95) -> Pooled:
    """Return the mean over targets, the interval for another target, and tau.

    Args:
        y: Estimates, one per target; at least three, since a prediction has two degrees of freedom fewer than targets.
        v: Variances of the estimates.
        df: Degrees of freedom of each variance.
        confidence: Level of all intervals.
    """
    found, count = heterogeneity(y, v, df, confidence=confidence), len(y)
    weights = 1 / (v + found.tau**2)
    mean = _weighted_mean(y, weights)
    spread = max(float(np.sum(weights * (y - mean) ** 2)) / (count - 1), 1.0)
    error2 = spread / float(weights.sum())
    half = t_quantile(count - 1, confidence) * math.sqrt(error2)
    reach = t_quantile(max(count - 2, 1), confidence) * math.sqrt(error2 + found.tau**2)
    return Pooled(
        Interval(mean, mean - half, mean + half, count - 1),
        Interval(mean, mean - reach, mean + reach, max(count - 2, 1)),
        found,
    )


def regression_slope(x: Targets, y: Targets, v: Targets, *, confidence: float = 0.95) -> Interval:
    """Return the random-effects slope of estimates on a property, with Knapp and Hartung's interval (2003).

    Args:
        x: Property of each target.
        y: Estimates, one per target.
        v: Variances of the estimates.
        confidence: Level of the interval, which has two degrees of freedom fewer than there are targets.
    """
    design = np.stack([np.ones(len(x)), x - x.mean()], 1)
    weights = 1 / (v + between_variance(design, y, v))
    covariance = np.linalg.inv((design.T * weights) @ design)
    beta = covariance @ (design.T * weights) @ y
    df = len(y) - 2
    spread = max(float(np.sum(weights * (y - design @ beta) ** 2)) / df, 1.0)
    half = t_quantile(df, confidence) * math.sqrt(spread * covariance[1, 1])
    return Interval(float(beta[1]), float(beta[1] - half), float(beta[1] + half), df)


def welch_p(y: Targets, v: Targets, df: Targets, *, among: int | None = None) -> float:
    """Return the p value of the hypothesis that all targets share one value, allowing for estimated variances.

    This is Welch's (1951, doi:10.2307/2332579) test of means of unequal variance, from estimates, variances and the
    degrees of freedom of the variances. Q itself takes the variances as known and rejects too often.

    Args:
        y: Estimate of each target.
        v: Variance of each estimate.
        df: Degrees of freedom of each variance; infinite if it is known.
        among: The number of targets, if more than there are: p is then what is to be expected of so many like these.
    """
    count, weights = among or len(y), 1 / v
    q = float(np.sum(weights * (y - _weighted_mean(y, weights)) ** 2)) * (count - 1) / (len(y) - 1)
    doubt = float(np.sum((1 - weights / weights.sum()) ** 2 / df)) * count / len(y)
    if not doubt:
        return float(special.chdtrc(count - 1, q))
    f = q / (count - 1) / (1 + 2 * (count - 2) / (count**2 - 1) * doubt)
    return float(special.fdtrc(count - 1, (count**2 - 1) / (3 * doubt), f))
