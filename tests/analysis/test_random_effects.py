"""Several targets together: closed forms, published examples' formulas, and coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from jaxseg.analysis.random_effects import between_variance, heterogeneity, pooled, regression_slope, welch_p


def test_equal_variances_give_the_t_interval_of_the_estimates():
    y = np.array([1.0, 2.0, 4.0, 5.0, 9.0])
    found = pooled(y, np.full(5, 0.1), np.full(5, 7.0))
    low, high = stats.t.interval(0.95, 4, y.mean(), y.std(ddof=1) / 5**0.5)
    assert found.mean[:3] == pytest.approx((y.mean(), low, high))
    assert found.heterogeneity.tau**2 == pytest.approx(y.var(ddof=1) - 0.1)
    reach = stats.t.ppf(0.975, 3) * (y.var(ddof=1) / 5 + y.var(ddof=1) - 0.1) ** 0.5
    assert found.prediction.high == pytest.approx(y.mean() + reach)


def test_equal_estimates_keep_the_width_of_a_fixed_effect():
    found = pooled(np.full(4, 0.3), np.full(4, 0.04), np.full(4, 7.0))
    assert found.heterogeneity[:2] == (0, 0)
    assert found.mean.high - 0.3 == pytest.approx(stats.t.ppf(0.975, 3) * 0.1)


def test_known_variances_give_the_q_profile():
    y, v = np.array([0.1, 0.5, 0.9, 0.2, 0.8]), np.array([0.01, 0.02, 0.01, 0.03, 0.02])
    found = heterogeneity(y, v, np.full(5, np.inf))
    for tau, p in ((found.low, 0.975), (found.high, 0.025)):
        w = 1 / (v + tau**2)
        q = np.sum(w * (y - np.sum(w * y) / w.sum()) ** 2)
        assert q == pytest.approx(stats.chi2.ppf(p, 4), rel=1e-6)
    assert found.low < found.tau < found.high


def test_slope_without_heterogeneity_is_weighted_least_squares():
    x, v = np.arange(6.0), np.array([1.0, 2, 1, 3, 1, 2])
    y = 0.5 + 2 * x
    found = regression_slope(x, y, v)
    w = 1 / v
    sxx = np.sum(w * (x - np.sum(w * x) / w.sum()) ** 2)
    assert found.estimate == pytest.approx(2)
    assert found.high - 2 == pytest.approx(stats.t.ppf(0.975, 4) / sxx**0.5)
    assert between_variance(np.stack([np.ones(6), x], 1), y, v) == 0


def test_welch_p_of_two_means_is_the_welch_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 8), rng.normal(1, 3, 12)
    y, v = np.array([a.mean(), b.mean()]), np.array([a.var(ddof=1) / 8, b.var(ddof=1) / 12])
    assert welch_p(y, v, np.array([7.0, 11.0])) == pytest.approx(
        stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-6
    )


def test_coverage_with_few_targets_and_estimated_variances():
    rng, hits, inside, draws = np.random.default_rng(1), 0, 0, 400
    for _ in range(draws):
        targets = 0.2 * rng.normal(size=6)
        y = targets + 0.1 * rng.normal(size=6)
        found = pooled(y, 0.01 * rng.chisquare(7, 6) / 7, np.full(6, 7.0))
        hits += found.mean.low <= 0 <= found.mean.high
        inside += found.prediction.low <= 0.2 * rng.normal() <= found.prediction.high
    # 0.95 +- 3 standard errors of 400 draws, and the slight conservatism of the modified interval.
    assert 0.92 <= hits / draws <= 0.985
    assert 0.91 <= inside / draws <= 0.99


@pytest.mark.parametrize(("tau", "targets"), [(0.0, 12), (0.1, 12), (0.3, 4)])
def test_limits_of_tau_hold_though_variances_are_estimated(tau, targets):
    rng, above, below, plain, draws = np.random.default_rng(2), 0, 0, 0, 300
    df = rng.uniform(6, 14, targets)
    for _ in range(draws):
        true = 0.01 * np.exp(0.7 * rng.normal(size=targets))
        y = tau * rng.normal(size=targets) + np.sqrt(true) * rng.normal(size=targets)
        v = true * rng.chisquare(df) / df
        found = heterogeneity(y, v, df)
        assert found.low <= found.tau <= found.high
        above, below = above + (found.low > tau), below + (found.high < tau)
        plain += heterogeneity(y, v, np.full(targets, np.inf)).low > tau
    # Welch's approximation is 0.035 at tau 0 (1,500 draws; 0.025 would be exact), with 3 standard errors of 300 draws.
    assert max(above, below) / draws < 0.067
    assert above <= plain
    if not tau:
        assert plain / draws > 0.1, "the Q-profile, which knows variances, differs too often: nothing to mend"


def test_a_test_of_equality_and_the_lower_limit_of_tau_agree():
    rng = np.random.default_rng(3)
    for _ in range(50):
        y, v, df = 0.2 * rng.normal(size=6), rng.uniform(0.005, 0.04, 6), rng.uniform(3, 12, 6)
        assert (heterogeneity(y, v, df).low > 0) == (welch_p(y, v, df) < 0.025)


def test_more_targets_like_these_tell_more():
    y, v, df = np.array([0.0, 0.02, 0.04, -0.01, 0.03]), np.full(5, 0.015**2), np.full(5, 14.0)
    expected = [welch_p(y, v, df, among=count) for count in (5, 10, 20, 40)]
    assert expected[0] == welch_p(y, v, df)
    assert sorted(expected, reverse=True) == expected
    assert expected[-1] < 0.01
    alike = 0.02 + np.array([1e-3, -1e-3, 0.0, 0.0, 0.0])
    assert welch_p(alike, v, df, among=40) > 0.9
