"""CKA over pairs of different cases: against the mean over all tuples of cases, and on features smooth within cases."""

import itertools

import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxseg.analysis import case_similarity as cases
from jaxseg.analysis import similarity

CASE = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4])


@jax.jit
def similar(x, y, groups):
    """Of every run of x with every run of y."""
    return cases.compare(cases.prepare(x, groups), cases.prepare(y, groups))


def one(x, y, case):
    sides = (np.asarray(side, np.float32)[None] for side in (x, y))
    return float(similar(*sides, cases.group_points(np.asarray(case)))[0, 0])


def hsic_by_tuples(x, y, case):
    """The definition: means over all tuples of different cases of means over their positions."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    members = [np.flatnonzero(case == name) for name in np.unique(case)]
    count = range(len(members))
    block = lambda matrix, c, d: matrix[np.ix_(members[c], members[d])]  # noqa: E731
    first = np.mean([block(k * l, c, d).mean() for c, d in itertools.permutations(count, 2)])
    second = np.mean([block(k, c, d).mean() * block(l, e, f).mean() for c, d, e, f in itertools.permutations(count, 4)])
    third = np.mean(
        [(block(k, c, d).mean(1) * block(l, c, e).mean(1)).mean() for c, d, e in itertools.permutations(count, 3)]
    )
    return first + second - 2 * third


def test_it_is_the_mean_over_tuples_of_different_cases():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(CASE), 3)) + 5
    y = x[:, :2] + rng.normal(size=(len(CASE), 2))
    own = hsic_by_tuples(x, x, CASE) * hsic_by_tuples(y, y, CASE)
    np.testing.assert_allclose(one(x, y, CASE), hsic_by_tuples(x, y, CASE) / np.sqrt(own), rtol=1e-4)


def test_with_one_position_a_case_it_is_debiased_cka():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 7))
    y[:, :3] += x[:, :3]
    np.testing.assert_allclose(one(x, y, np.arange(40)), similarity.cka(x, y, debiased=True), rtol=1e-4)


def test_origin_scale_and_rotation_do_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    y += x
    case = np.arange(60) % 7
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    np.testing.assert_allclose(one(3 * x @ turn + 10, y, case), one(x, y, case), rtol=1e-3)
    np.testing.assert_allclose(one(x, 2 * x @ turn, case), 1, rtol=1e-4)


def test_three_cases_or_a_constant_say_nothing():
    x = np.random.default_rng(0).normal(size=(30, 3))
    assert np.isnan(one(x, x, np.arange(30) % 3))
    assert np.isnan(one(x, np.ones((30, 2)), np.arange(30) % 5))


def fields(rng, count, sites):
    """Features of 16 channels, smooth over 5 voxels, read at random sites of independent cases."""
    noise = rng.normal(size=(count, 20, 20, 20, 16)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, 5, 5, 5, 0), mode="wrap")
    return np.concatenate([case[tuple(own.T)] for case, own in zip(smooth, sites, strict=True)])


@pytest.mark.parametrize(("count", "debiased"), [(4, 0.6), (8, 0.4), (16, 0.3)])
def test_unrelated_features_that_are_smooth_within_cases_are_not_similar(count, debiased):
    rng, found = np.random.default_rng(0), []
    for _ in range(60 // count):
        sites = rng.integers(0, 20, (count, 32, 3))
        x, y = fields(rng, count, sites), fields(rng, count, sites)
        case = np.repeat(np.arange(count), 32)
        found.append((one(x, y, case), float(similarity.cka(x, y, debiased=True)), one(x, x + 0.7 * y, case)))
    of_cases, plain, related = np.mean(found, 0)
    assert abs(of_cases) < 0.1
    np.testing.assert_allclose(plain, debiased, atol=0.12)
    np.testing.assert_allclose(related, 0.7, atol=0.1)
