"""Filters: how far they moved, and tests of randomness that are silent on random filters and find what was planted."""

import functools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxseg.analysis import filters

SHAPES = ((3, 3, 3, 8, 16), (3, 3, 24, 32))


def drawn(seed, shape=SHAPES[0]):
    return 0.1 * filters.truncated_normal(np.random.default_rng(seed), shape)


@settings(max_examples=30, deadline=None)
@given(
    pair=hnp.arrays(np.float64, (2, 3, 2, 4), elements=st.floats(-4, 4).filter(lambda x: x == 0 or abs(x) > 1e-3)),
    scale=st.floats(0.1, 10),
)
def test_angles_do_not_depend_on_norms(pair, scale):
    start, end = pair
    got, scaled = filters.change(start, end), filters.change(start, scale * end)
    np.testing.assert_allclose(scaled.angle_deg, got.angle_deg, atol=1e-6)
    a, b = filters.as_filters(start), filters.as_filters(end)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    usable = norms > 0
    cosine = np.clip(np.sum(a * b, 1)[usable] / norms[usable], -1, 1)
    np.testing.assert_allclose(got.angle_deg[usable], np.degrees(np.arccos(cosine)), atol=1e-4)
    assert np.isnan(got.angle_deg[np.linalg.norm(a, axis=1) == 0]).all()


def test_change_by_hand():
    start = np.zeros((1, 2, 3))
    start[0, 0] = [1, 2, 1]
    end = np.zeros((1, 2, 3))
    end[0] = [[2, 0, 1 - 1e-12], [0, 2, 1e-9]]
    got = filters.change(start, end)
    np.testing.assert_allclose(got.angle_deg[:2], [0, 90], atol=1e-9)
    np.testing.assert_allclose(got.angle_deg[2], np.degrees(1e-9), rtol=1e-3)
    np.testing.assert_allclose(got.relative_change[:2], [1, np.sqrt(2)])
    np.testing.assert_allclose(got.norm_ratio[:2], [2, 1])
    with pytest.raises(ValueError, match="same layer"):
        filters.change(start, end[:, :1])


@pytest.mark.parametrize("shape", SHAPES)
def test_two_independent_draws_are_the_null(shape):
    got = filters.change(drawn(0, (*shape[:-1], 400)), drawn(1, (*shape[:-1], 400)))
    null = filters.null_change(int(np.prod(shape[:-1])))
    np.testing.assert_allclose(got.angle_deg.mean(), null.angle_deg, atol=4 * null.angle_sd_deg / 20)
    np.testing.assert_allclose(got.angle_deg.std(), null.angle_sd_deg, rtol=0.15)
    np.testing.assert_allclose(got.relative_change.mean(), null.relative_change, rtol=0.02)


def test_the_truncated_normal_is_scipys():
    values = filters.truncated_normal(np.random.default_rng(0), (20000,))
    scale = 1 / scipy.stats.truncnorm(-2, 2).std()
    assert scipy.stats.kstest(values, scipy.stats.truncnorm(-2, 2, scale=scale).cdf).pvalue > 0.01
    np.testing.assert_allclose(values.std(), 1, atol=0.02)


def test_distance_to_the_truncated_normal_is_scipys_statistic():
    weights = np.random.default_rng(0).normal(size=(1, 500))
    scale = np.sqrt(np.mean(weights**2)) / scipy.stats.truncnorm(-2, 2).std()
    want = scipy.stats.kstest(weights[0], scipy.stats.truncnorm(-2, 2, scale=scale).cdf).statistic
    np.testing.assert_allclose(filters._truncated_distance(weights)[0], want, atol=1e-9)


def test_neighbours():
    assert len(filters.tap_neighbours((3, 3, 3))) == 54
    assert len(filters.tap_neighbours((3, 3))) == 12
    assert sorted(map(tuple, filters.tap_neighbours((2, 2)).tolist())) == [(0, 1), (0, 2), (1, 3), (2, 3)]


def test_moran_by_hand():
    """A checkerboard of 3 x 3: every pair of neighbours differs."""
    board = np.indices((3, 3)).sum(0) % 2 * 2.0 - 1
    centred = board - board.mean()
    pairs = [(a, b) for a, b in filters.tap_neighbours((3, 3))]
    want = 9 / 12 * sum(centred.ravel()[a] * centred.ravel()[b] for a, b in pairs) / (centred**2).sum()
    got = filters.moran(board[:, :, None, None], np.random.default_rng(0))
    np.testing.assert_allclose(got.value, want)
    assert got.expected == -1 / 8
    assert got.p < 0.03  # of 126 boards with as many of each, only this one and the like


def test_moran_permutations_hold_their_level():
    """Slices of one layer that share a pattern: under joint permutations 5 % of tests reject, no more."""
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(3, 3, 1, 1)) * rng.normal(size=(1, 1, 4, 6))
        rejected += filters.moran(shared + rng.normal(size=(3, 3, 4, 6)), rng, permutations=99).p <= 0.05
    assert scipy.stats.binomtest(rejected, 200, 0.05).pvalue > 0.01


def test_kernels_without_taps_or_centre():
    rng = np.random.default_rng(0)
    assert np.isnan(filters.moran(rng.normal(size=(1, 1, 4, 5)), rng).value)
    assert np.isnan(filters.centre_share(rng.normal(size=(1, 1, 4, 5))))
    assert np.isnan(filters.centre_share(rng.normal(size=(2, 2, 4, 5))))
    alone = np.zeros((3, 3, 4, 5))
    alone[1, 1] = 2
    assert filters.centre_share(alone) == 1


@pytest.mark.parametrize("value", [0.0, 0.1, np.float32(0.1), 1.0])
def test_constant_kernels_have_no_arrangement(value):
    rng = np.random.default_rng(0)
    kernel = np.full((3, 3, 4, 8), value)
    found = filters.moran(kernel, rng)
    assert np.isnan([found.value, found.p]).all()
    undefined = [
        filters.centre_share(kernel),
        filters.distribution_excess(kernel, 0),
        filters.spectral_excess(kernel, rng),
    ]
    assert np.isnan(undefined).tolist() == [value == 0] * 3
    # Beside others, a constant slice says nothing, neither for nor against.
    mixed = np.concatenate([kernel[..., :1], drawn(0, kernel.shape)], -1)
    assert filters.moran(mixed, rng, permutations=1).value == filters.moran(mixed[..., 1:], rng, permutations=1).value


@pytest.mark.parametrize("shape", SHAPES)
def test_random_filters_look_random(shape):
    rng = np.random.default_rng(0)
    kernels = np.stack([drawn(seed, shape) for seed in range(6)])
    null = filters.distribution_null(kernels[0].size, rng)
    excess = [filters.distribution_excess(kernel, null) for kernel in kernels]
    assert np.abs(np.mean(excess)) < 0.004
    arranged = [filters.moran(kernel, rng) for kernel in kernels]
    assert abs(np.mean([m.value - m.expected for m in arranged])) < 0.03
    np.testing.assert_allclose(np.mean([filters.centre_share(k) for k in kernels]), 1 / np.prod(shape[:-2]), rtol=0.15)
    assert np.mean([filters.spectral_excess(kernel, rng) for kernel in kernels]) < 0.05


def test_two_sets_of_draws_cannot_be_told_apart():
    sets = [np.stack([drawn(100 * i + seed, (3, 3, 8, 24)) for seed in range(6)]) for i in range(2)]
    assert abs(filters.start_end_auc(*sets).mean() - 0.5) < 0.1


def test_little_change_is_not_found_and_does_not_mislead():
    """Ends close to their own starts: a split of filters at random would score far below 0.5."""
    start = np.stack([drawn(seed, (3, 3, 8, 24)) for seed in range(6)])
    end = start + 0.01 * np.stack([drawn(100 + seed, (3, 3, 8, 24)) for seed in range(6)])
    assert abs(filters.start_end_auc(start, end).mean() - 0.5) < 0.05
    assert np.isnan(filters.start_end_auc(start[:1], end[:1])).all()


def test_runs_of_one_start_are_not_known_by_it():
    """Noise alone is told from the start of another run only where that is the start of the run as well."""
    shared = drawn(0, (3, 3, 3, 8, 16))
    noise = 0.5 * shared.std() * np.random.default_rng(1).normal(size=(8, *shared.shape))
    own, start, origin = (
        np.stack([drawn(200 + seed, shared.shape) for seed in range(8)]),
        np.stack([shared] * 8),
        np.zeros(8, int),
    )
    apart = filters.start_end_auc(own, own + noise).mean()
    known = filters.start_end_auc(start, start + noise).mean()
    assert known > apart + 0.1, "each start is among those that are learned from"
    assert np.isnan(filters.start_end_auc(start, start + noise, origin)).all(), "there is no other to learn from"
    crossed = np.stack([drawn(seed // 4, shared.shape) for seed in range(8)])
    areas = filters.start_end_auc(crossed, crossed, np.arange(8) // 4)
    np.testing.assert_array_equal(areas, 0.5)


def test_what_was_found_of_runs_stays_when_others_come():
    start = np.stack([drawn(seed, (3, 3, 8, 24)) for seed in range(8)])
    end = start + 0.8 * np.stack([drawn(100 + seed, (3, 3, 8, 24)) for seed in range(8)])
    before = filters.start_end_auc(start[:4], end[:4])
    wave = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = filters.start_end_auc(start, end, wave=wave)
    np.testing.assert_array_equal(found[:4], before)
    together = filters.start_end_auc(start, end)
    np.testing.assert_array_equal(found[4:], together[4:])
    assert not np.array_equal(together[:4], before), "later runs would help to tell the first"


@pytest.mark.parametrize("shape", SHAPES)
def test_each_test_finds_its_control_and_says_at_which_share(shape):
    rng = np.random.default_rng(0)
    kernel = drawn(0, shape)
    ceiling = np.quantile([filters.distribution_excess(drawn(s, shape), 0.0) for s in range(40)], 0.95)
    finds = {
        "distribution": lambda k: filters.distribution_excess(k, 0.0) > ceiling,
        "arrangement": lambda k: (lambda m: abs(m.value - m.expected))(filters.moran(k, rng, permutations=1)) > 0.03,
        "spectrum": lambda k: filters.spectral_excess(k, rng, draws=20) > 0.05,
    }
    for name, found in finds.items():
        assert not found(kernel)
        share = filters.smallest_share(found, kernel, filters.CONTROLS[name], rng, draws=10)
        assert share <= 0.5, name
    never = filters.smallest_share(lambda _: False, kernel, filters.smooth, rng, draws=2)
    assert np.isnan(never)


def mixed(rng, shape):
    """Smooth and heavy-tailed in equal parts, variance 1."""
    return (filters.smooth(rng, shape) + filters.heavy_tailed(rng, shape)) / np.sqrt(2)


def test_filters_that_became_smooth_or_heavy_tailed_are_told_apart():
    start = np.stack([drawn(seed, (3, 3, 8, 24)) for seed in range(6)])
    for control in (filters.smooth, mixed):
        pattern = functools.partial(control, shape=start[0].shape)
        end = np.stack([filters.blend(k, pattern(np.random.default_rng(50 + i)), 0.3) for i, k in enumerate(start)])
        assert filters.start_end_auc(start, end).min() > 0.7


def test_controls_have_variance_one_and_blending_keeps_it():
    rng = np.random.default_rng(0)
    kernel = drawn(0, (3, 3, 3, 16, 16))
    for name, control in filters.CONTROLS.items():
        pattern = control(rng, kernel.shape)
        np.testing.assert_allclose(pattern.std(), 1, rtol=0.2, err_msg=name)
        np.testing.assert_allclose(filters.blend(kernel, pattern, 0.3).std(), kernel.std(), rtol=0.1, err_msg=name)
