"""Intervals, flips and splits against closed forms, brute force and SciPy; coverage at a few settings."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxseg.analysis import statistics, variance_components


def _simulate(rng, num_seeds, num_groups, seed=1.0, group=1.0, residual=1.0):
    return (
        rng.normal(0, seed, (num_seeds, 1))
        + rng.normal(0, group, (1, num_groups))
        + rng.normal(0, residual, (num_seeds, num_groups))
    )


# ---------------------------------------------------------------------------------------------------------- intervals


def test_t_interval_equals_scipy():
    values = np.random.default_rng(0).normal(3, 2, 9)
    expected = stats.t.interval(0.9, 8, values.mean(), stats.sem(values))
    got = statistics.t_interval(np.append(values, np.nan), confidence=0.9)
    assert got.estimate == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx(expected)
    assert got.df == 8


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.inf], [np.nan, 2.0]])
def test_t_interval_without_limits(values):
    got = statistics.t_interval(np.array(values))
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    known = [v for v in values if not np.isnan(v)]
    np.testing.assert_equal(got.estimate, known[0] if len(known) == 1 else math.nan)


def test_mean_squares_are_those_of_anova():
    """Sums of squares add up to the total, and the seed F equals a regression's."""
    d = _simulate(np.random.default_rng(1), 5, 7)
    seed, group, residual = statistics.mean_squares(d)
    assert 4 * seed + 6 * group + 24 * residual == pytest.approx(np.sum((d - d.mean()) ** 2))
    columns = np.column_stack([np.kron(np.eye(5), np.ones((7, 1))), np.kron(np.ones((5, 1)), np.eye(7))])
    without_seed = columns[:, 5:]

    def left(design):
        return np.sum((d.ravel() - design @ np.linalg.lstsq(design, d.ravel(), rcond=None)[0]) ** 2)

    assert left(columns) / 24 == pytest.approx(residual)
    assert (left(without_seed) - left(columns)) / 4 == pytest.approx(seed)


def test_two_way_interval_by_hand():
    """Two seeds, three groups: mean squares 6, 7 and 1, variance 12 / 6 = 2, df = 12^2 / (6^2/1 + 7^2/2 + 1^2/2)."""
    seed, group = np.array([[-1.0], [1.0]]), np.array([[-math.sqrt(3.5), 0.0, math.sqrt(3.5)]])
    residual = np.outer([1, -1], np.array([1, -1, 0]) / math.sqrt(2))
    d = 5.0 + seed + group + residual
    squares = statistics.mean_squares(d)
    assert squares == pytest.approx((6.0, 7.0, 1.0))
    df = 144 / (36 + 49 / 2 + 1 / 2)
    got = statistics.two_way_interval(d, confidence=0.9)
    half = stats.t.ppf(0.95, df) * math.sqrt(2.0)
    assert got.df == pytest.approx(df)
    assert (got.estimate, got.low, got.high) == pytest.approx((5.0, 5 - half, 5 + half))


def test_two_way_interval_floor():
    """No group effect at all: the mean square of seeds alone decides, on its own degrees of freedom."""
    rng = np.random.default_rng(2)
    d = _simulate(rng, 6, 9, group=0.0)
    d = d - d.mean(0) + d.mean()
    got = statistics.two_way_interval(d)
    half = stats.t.ppf(0.975, 5) * math.sqrt(statistics.mean_squares(d)[0] / d.size)
    assert got.df == 5
    assert got.high - got.estimate == pytest.approx(half)
    turned = statistics.two_way_interval(d.T)
    assert turned == pytest.approx(got)


def test_two_way_interval_moves_and_scales():
    d = _simulate(np.random.default_rng(3), 8, 10)
    plain, other = statistics.two_way_interval(d), statistics.two_way_interval(-3 * d + 7)
    assert (other.estimate, other.low, other.high) == pytest.approx(
        (7 - 3 * plain.estimate, 7 - 3 * plain.high, 7 - 3 * plain.low)
    )
    assert statistics.two_way_interval(np.full((4, 3), 2.0)) == (2.0, 2.0, 2.0, pytest.approx(3.0))


def test_two_way_interval_of_one_group_or_one_seed():
    d = np.array([[1.0], [2.0], [4.0]])
    assert statistics.two_way_interval(d) == statistics.t_interval(d[:, 0])
    got = statistics.two_way_interval(np.array([[1.0, 3.0]]))
    assert got.estimate == 2.0
    assert math.isnan(got.low)
    with pytest.raises(ValueError, match="finite"):
        statistics.two_way_interval(np.array([[1.0, np.nan], [2.0, 3.0]]))


@pytest.mark.parametrize(("num_seeds", "num_groups"), [(6, 10), (8, 14), (16, 40)])
def test_two_way_interval_covers(num_seeds, num_groups):
    """`tools/coverage.py` has the full table; t over seeds alone would cover 50-80 % here."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(2000):
        got = statistics.two_way_interval(_simulate(rng, num_seeds, num_groups))
        hits += got.low <= 0 <= got.high
    assert 0.93 <= hits / 2000 <= 0.97


# --------------------------------------------------------------------------------------------------------- sign flips


def _brute_force(d):
    """p values by definition: all 2^n flips, |t|, rows of zeros never exceed."""

    def t(rows):
        return np.abs(rows.mean(1)) / (rows.std(1, ddof=1) / math.sqrt(rows.shape[1]))

    flips = [np.array(signs) for signs in itertools.product([1, -1], repeat=d.shape[1])]
    observed = t(d)
    flipped = np.array([t(d * flip) for flip in flips])
    tolerant = observed * (1 - 1e-9)
    return (flipped >= tolerant).mean(0), (flipped.max(1)[:, None] >= tolerant).mean(0)


def test_sign_flips_equal_brute_force():
    d = np.random.default_rng(5).normal(0.4, 1, (6, 7))
    p, p_max = statistics.max_t_sign_flip(d)
    expected, expected_max = _brute_force(d)
    np.testing.assert_allclose(p, expected)
    np.testing.assert_allclose(p_max, expected_max)
    assert np.all(p_max >= p)
    np.testing.assert_allclose([statistics.sign_flip(row) for row in d], expected)


def test_smallest_p_is_reached_and_no_smaller():
    for n in range(1, 10):
        assert statistics.sign_flip(np.arange(1.0, n + 1)) == statistics.minimum_p(n) == 2 / 2**n
    assert statistics.minimum_p(0) == statistics.sign_flip(np.array([])) == 1.0


def test_drawn_flips_approach_the_listed_ones():
    d = np.random.default_rng(6).normal(0.3, 1, (4, 12))
    listed, listed_max = statistics.max_t_sign_flip(d)
    drawn, drawn_max = statistics.max_t_sign_flip(d, rng=np.random.default_rng(0), max_flips=2000)
    np.testing.assert_allclose(drawn, listed, atol=4 * math.sqrt(0.25 / 2000))
    np.testing.assert_allclose(drawn_max, listed_max, atol=4 * math.sqrt(0.25 / 2000))
    again = statistics.max_t_sign_flip(d, rng=np.random.default_rng(0), max_flips=2000)
    np.testing.assert_array_equal(again[0], drawn)
    strong = statistics.max_t_sign_flip(np.ones((1, 40)), rng=np.random.default_rng(0), max_flips=99)
    assert strong[0] == pytest.approx(1 / 100)
    with pytest.raises(ValueError, match="rng"):
        statistics.sign_flip(np.ones(20))


def test_a_family_of_copies_costs_nothing_and_zeros_never_win():
    row = np.random.default_rng(7).normal(0.8, 1, 8)
    p, p_max = statistics.max_t_sign_flip(np.stack([row, row, -2 * row, 0 * row]))
    single = statistics.sign_flip(row)
    np.testing.assert_allclose(p, [single, single, single, 1])
    np.testing.assert_allclose(p_max, [single, single, single, 1])


def test_missing_seeds_are_left_out_of_a_test():
    rng = np.random.default_rng(8)
    d = rng.normal(0.5, 1, (2, 9))
    d[1, [2, 5]] = np.nan
    p, _ = statistics.max_t_sign_flip(d)
    assert p[1] == pytest.approx(statistics.sign_flip(d[1, ~np.isnan(d[1])]))
    assert p[1] == statistics.sign_flip(d[1])


# ---------------------------------------------------------------------------------------------------------- jackknife


def test_jackknife_of_a_mean_is_the_t_interval():
    values = np.random.default_rng(9).normal(size=7)
    got = statistics.jackknife(lambda kept: float(values[kept].mean()), 7)
    assert got == pytest.approx(statistics.t_interval(values))


def test_jackknife_of_pairs_by_hand():
    """Three seeds with pair values 1, 2, 6: leaving one out leaves one pair, so the values are 6, 2, 1."""
    matrix = np.array([[9.0, 1, 2], [1, 9.0, 6], [2, 6, 9.0]])
    got = statistics.jackknife(lambda kept: statistics.mean_of_pairs(matrix, kept), 3)
    left_out = np.array([6.0, 2.0, 1.0])
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 / 3 * np.sum((left_out - 3) ** 2))
    assert got == pytest.approx((3.0, 3 - half, 3 + half, 2))


def test_jackknife_on_the_log_scale():
    rng = np.random.default_rng(10)
    a, b = np.exp(rng.normal(size=(2, 8)))

    def ratio(kept):
        return float(a[kept].mean() / b[kept].mean())

    got = statistics.jackknife(ratio, 8, log=True)
    plain = statistics.jackknife(lambda kept: math.log(ratio(kept)), 8)
    assert got.estimate == pytest.approx(ratio(np.arange(8)))
    assert (math.log(got.low), math.log(got.high)) == pytest.approx((plain.low, plain.high))
    inverse = statistics.jackknife(lambda kept: 1 / ratio(kept), 8, log=True)
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((got.low, got.high))
    zero = statistics.jackknife(lambda kept: 0.0, 8, log=True)
    assert zero.estimate == 0.0
    assert math.isnan(zero.low)
    assert math.isnan(statistics.jackknife(lambda kept: 1.0, 2).low)


# --------------------------------------------------------------------------------------- effect sizes, robust means


def test_hedges_g_is_unbiased():
    """Its factor makes the mean of g the true effect: 0.8, to the error of 20,000 draws."""
    rng = np.random.default_rng(11)
    values = [statistics.standardized_difference(row) for row in rng.normal(0.8, 1, (20_000, 6))]
    assert np.mean(values) == pytest.approx(0.8, abs=3 * np.std(values) / math.sqrt(20_000))
    d = np.array([1.0, 2.0, 4.0])
    exact = d.mean() / d.std(ddof=1) * math.gamma(1) / (math.sqrt(1) * math.gamma(0.5))
    assert statistics.standardized_difference(d) == pytest.approx(exact)
    for undefined in ([1.0, 2.0], [3.0, 3.0, 3.0], [1.0, np.inf, 2.0]):
        assert math.isnan(statistics.standardized_difference(np.array(undefined)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_probability_of_improvement_is_mann_whitney(a, b):
    u = stats.mannwhitneyu(a, b, method="asymptotic").statistic if len(set(a + b)) > 1 else len(a) * len(b) / 2
    got = statistics.probability_of_improvement(np.array(a), np.array(b))
    assert got == pytest.approx(u / (len(a) * len(b)))
    assert statistics.probability_of_improvement(np.array(b), np.array(a)) == pytest.approx(1 - got)


def test_interquartile_mean():
    assert statistics.interquartile_mean(np.arange(8.0).reshape(2, 4)) == 3.5
    assert statistics.interquartile_mean(np.array([0.0, 4.0, 6.0, np.inf])) == 5.0
    assert statistics.interquartile_mean(np.array([np.nan, 2.0])) == 2.0
    assert math.isnan(statistics.interquartile_mean(np.array([np.nan])))


# ------------------------------------------------------------------------------------------------------ variance split


def test_variance_split_of_two_factors_is_the_two_way_table():
    d = _simulate(np.random.default_rng(12), 6, 9)
    split = {s.factors: s for s in variance_components.variance_split(d, ("seed", "group"))}
    seed, group, residual = statistics.mean_squares(d)
    assert split["seed",].variance == pytest.approx((seed - residual) / 9)
    assert split["group",].variance == pytest.approx((group - residual) / 6)
    assert split["seed", "group"].variance == pytest.approx(residual)
    assert [s.df for s in split.values()] == [5, 8, 40]
    assert sum(s.share for s in split.values()) == pytest.approx(1)


def test_variance_split_finds_what_was_put_in():
    """Unbiased: over many draws of a 4 x 4 x 6 design, each component's mean is its true value."""
    rng = np.random.default_rng(13)
    truth = {("init",): 1.0, ("order",): 0.5, ("group",): 2.0, ("init", "order"): 0.3, ("order", "group"): 0.2}
    names, shape = ("init", "order", "group"), (4, 4, 6)
    found = []
    for _ in range(3000):
        values = rng.normal(0, math.sqrt(0.4), shape)
        for factors, variance in truth.items():
            axes = [n if name in factors else 1 for name, n in zip(names, shape, strict=True)]
            values = values + rng.normal(0, math.sqrt(variance), axes)
        found.append([s.variance for s in variance_components.variance_split(values, names)])
    expected = [
        truth.get(s.factors, 0.4 if len(s.factors) == 3 else 0.0)
        for s in variance_components.variance_split(values, names)
    ]
    errors = np.abs(np.mean(found, 0) - expected) / (np.std(found, 0) / math.sqrt(3000))
    assert np.all(errors < 4)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_variance_split_shares_are_shares(seed):
    values = np.random.default_rng(seed).normal(size=(3, 2, 4, 2))
    split = variance_components.variance_split(values, ("init", "order", "subset", "group"))
    assert len(split) == 15
    assert sum(s.df for s in split) == values.size - 1
    assert all(s.share >= 0 for s in split)
    assert sum(s.share for s in split) == pytest.approx(1)


@pytest.mark.parametrize("values", [np.ones((3, 1)), np.ones(3), np.full((3, 3), np.nan)])
def test_variance_split_refuses_what_is_no_crossed_design(values):
    with pytest.raises(ValueError, match="variance_split needs"):
        variance_components.variance_split(values, ("init", "order"))


# ------------------------------------------------------------------------------------------------------------ planning


def test_components_and_planner_agree_with_the_interval():
    """At the components of a table none of which is floored, the planner's width is the interval's own."""
    d = _simulate(np.random.default_rng(14), 8, 12)
    got = statistics.two_way_interval(d)
    spread = variance_components.components(d)
    assert min(spread) > 0
    assert variance_components.expected_half_width(spread, 8, 12) == pytest.approx(got.high - got.estimate)
    column = d[:, :1]
    one = variance_components.Components(float(column.var(ddof=1)), 0.0, 0.0)
    interval = statistics.two_way_interval(column)
    assert variance_components.expected_half_width(one, 8, 1) == pytest.approx(interval.high - interval.estimate)


def test_planned_seeds_are_the_fewest():
    spread = variance_components.Components(seed=0.02**2, group=0.01**2, residual=0.01**2)
    needed = variance_components.plan_seeds(spread, 40, 0.01)
    assert needed is not None
    assert variance_components.expected_half_width(spread, needed, 40) <= 0.01
    assert variance_components.expected_half_width(spread, needed - 1, 40) > 0.01
    # Groups alone leave 2 x 0.01 / sqrt(6), whatever the seeds.
    assert variance_components.plan_seeds(spread, 6, 0.005) is None


def test_planned_width_is_what_simulation_gives():
    rng = np.random.default_rng(15)
    widths = [
        (lambda i: i.high - i.estimate)(statistics.two_way_interval(_simulate(rng, 12, 20, 0.5, 0.3, 0.4)))
        for _ in range(500)
    ]
    spread = variance_components.Components(0.25, 0.09, 0.16)
    assert variance_components.expected_half_width(spread, 12, 20) == pytest.approx(float(np.mean(widths)), rel=0.05)
