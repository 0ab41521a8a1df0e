"""Similarities of representations: published values, invariances, outside implementations, pairs and batches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.analysis import similarity as sim

MEASURES = {
    "cka": sim.cka,
    "debiased_cka": functools.partial(sim.cka, debiased=True),
    "svcca": sim.svcca,
    "cca": functools.partial(sim.svcca, variance=1.0),
    "pwcca": sim.pwcca,
    "procrustes": sim.procrustes,
}
COMPILED = {name: jax.jit(measure) for name, measure in MEASURES.items()}
AS_MEASURES = {
    "cka": sim.cka_measure(debiased=False),
    "debiased_cka": sim.cka_measure(debiased=True),
    "svcca": sim.svcca_measure(),
    "pwcca": sim.PWCCA,
    "procrustes": sim.PROCRUSTES,
}


def related(seed=0, n=60, width=6, other=4):
    """Two representations of which the second is a noisy linear image of the first."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * np.linspace(1, 3, width) + rng.normal(size=width)
    return x, x @ rng.normal(size=(width, other)) + 2 * rng.normal(size=(n, other))


def test_values_of_the_reference_implementation():
    """Printed by the notebook of google-research/representation_similarity (Kornblith et al. 2019)."""
    state = np.random.RandomState(1337)
    x = state.randn(100, 10)
    y = state.randn(100, 10) + x
    np.testing.assert_allclose(sim.cka(x, y), 0.5576132566, atol=1e-6)
    np.testing.assert_allclose(sim.cka(x, y, debiased=True), 0.5134564895, atol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_one_for_itself_and_symmetric(name):
    x, y = related()
    np.testing.assert_allclose(COMPILED[name](x, x), 1, atol=2e-6)
    np.testing.assert_allclose(COMPILED[name](x, y), COMPILED[name](y, x), atol=2e-6)
    assert COMPILED[name](x, y) < 0.98


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_blind_to_rotation_scale_and_origin(name, seed, scale):
    x, y = related(seed)
    turn = scipy.stats.ortho_group.rvs(6, random_state=seed)
    if name == "pwcca":  # weights neuron by neuron: blind to their order and signs only
        turn = np.diag([1, -1, 1, -1, 1, -1])[:, ::-1]
    moved = scale * (x @ turn) + 5
    np.testing.assert_allclose(COMPILED[name](moved, y), COMPILED[name](x, y), atol=2e-5)
    np.testing.assert_allclose(COMPILED[name](moved, x), 1, atol=2e-5)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_canonical_correlation_alone_is_blind_to_every_invertible_map(seed):
    x, y = related(seed)
    rng = np.random.default_rng(seed)
    left, right = (scipy.stats.ortho_group.rvs(6, random_state=rng) for _ in range(2))
    stretched = x @ (left * np.geomspace(1, 8, 6)) @ right
    np.testing.assert_allclose(COMPILED["cca"](stretched, y), COMPILED["cca"](x, y), atol=2e-5)
    assert abs(COMPILED["procrustes"](stretched, x) - 1) > 0.01
    assert abs(COMPILED["cka"](stretched, x) - 1) > 1e-3


def test_a_permutation_of_channels_is_no_difference():
    x, _ = related()
    for measure in COMPILED.values():
        np.testing.assert_allclose(measure(x, x[:, ::-1]), 1, atol=2e-6)


def test_channels_that_do_not_vary_change_nothing_and_alone_are_undefined():
    x, y = related()
    padded = np.concatenate([x, np.full((60, 2), 3.0)], 1)
    for measure in COMPILED.values():
        np.testing.assert_allclose(measure(padded, y), measure(x, y), atol=2e-6)
        assert np.isnan(measure(np.ones((60, 3)), y))


def test_two_collapsed_layers_are_not_alike():
    # Rounding leaves something of these constants when their mean is subtracted, the same in every channel.
    x, y = (np.tile(np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32), (480, 1)) for seed in (0, 1))
    almost = x * (1 + np.float32(1e-7) * (np.arange(480, dtype=np.float32)[:, None] % 2))
    other = np.random.default_rng(2).normal(size=(480, 8)).astype(np.float32)
    for measure in (*COMPILED.values(), lambda x, y: sim.between_layers([x, y])[0, 1]):
        assert np.isnan([measure(x, y), measure(x, x), measure(almost, y), measure(x, other)]).all()
    assert sim.varying(np.stack([x, almost, other])).sum((1, 2)).tolist() == [0, 0, 8]


def test_canonical_correlations_are_those_of_scipy():
    x, y = related()
    correlations = np.cos(scipy.linalg.subspace_angles(x - x.mean(0), y - y.mean(0)))
    np.testing.assert_allclose(COMPILED["cca"](x, y), correlations.mean(), atol=1e-5)


def test_svcca_keeps_the_directions_that_hold_the_variance():
    rng = np.random.default_rng(0)
    strong = np.linalg.qr(rng.normal(size=(50, 5)))[0] * [10, 8, 6, 0.1, 0.1]
    weak = strong.copy()
    weak[:, 3:] = 0.1 * rng.normal(size=(50, 2))  # replaces what holds next to no variance
    assert COMPILED["svcca"](strong, weak) > 0.999
    assert COMPILED["cca"](strong, weak) < 0.9


def test_procrustes_is_that_of_scipy():
    x, y = related(other=6)
    _, _, disparity = scipy.spatial.procrustes(x, y)
    np.testing.assert_allclose(COMPILED["procrustes"](x, y), np.sqrt(1 - disparity), atol=1e-5)


def test_pwcca_weights_by_what_the_neurons_hold():
    """Two shared directions carry most of x, an unshared one little: the weighted mean lies above the plain one."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(400, 4)))[0]
    x = basis[:, :3] * [5, 5, 0.5]
    y = np.stack([basis[:, 0], basis[:, 1], basis[:, 3]], 1)
    x, y = x - x.mean(0), y - y.mean(0)
    from_x, from_y = (5 + 5) / 10.5, 2 / 3
    np.testing.assert_allclose(COMPILED["pwcca"](x, y), (from_x + from_y) / 2, atol=0.03)
    np.testing.assert_allclose(COMPILED["cca"](x, y), 2 / 3, atol=0.03)


def song_hsic(x, y):
    """The unbiased estimator from its definition, with Gram matrices (Song et al. 2012, equation 4)."""
    k, grams = len(x), [a @ a.T for a in (x, y)]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    a, b = grams
    one = np.ones(k)
    trace, sums, mixed = np.trace(a @ b), (one @ a @ one) * (one @ b @ one), one @ a @ b @ one
    return (trace + sums / ((k - 1) * (k - 2)) - 2 * mixed / (k - 2)) / (k * (k - 3))


def test_debiased_cka_from_the_definition():
    x, y = related()
    want = song_hsic(x, y) / np.sqrt(song_hsic(x, x) * song_hsic(y, y))
    np.testing.assert_allclose(COMPILED["debiased_cka"](x, y), want, atol=1e-5)


def test_debiased_cka_of_unrelated_representations_is_zero_on_average():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30, 12)).astype(np.float32)
    pairs = [jax.jit(functools.partial(sim.all_pairs, AS_MEASURES[name]))(x) for name in ("cka", "debiased_cka")]
    biased, debiased = (np.asarray(matrix)[np.triu_indices(40, 1)].mean() for matrix in pairs)
    assert biased > 0.2
    assert abs(debiased) < 0.01


@pytest.mark.parametrize("name", AS_MEASURES)
def test_pairs_are_the_single_values(name):
    x = np.random.default_rng(0).normal(size=(3, 40, 5)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(2, 40, 7)).astype(np.float32)
    x[1] += x[0]
    got = jax.jit(functools.partial(sim.between, AS_MEASURES[name]))(x, y)
    for i, j in itertools.product(range(3), range(2)):
        np.testing.assert_allclose(got[i, j], COMPILED[name](x[i], y[j]), atol=1e-5)


@pytest.mark.parametrize("runs", [2, 8])
def test_all_pairs_are_those_between(runs):
    x = np.random.default_rng(0).normal(size=(runs, 40, 5)).astype(np.float32)
    x[1] += x[0]
    for measure in (AS_MEASURES["debiased_cka"], AS_MEASURES["pwcca"]):
        pairs = jax.jit(functools.partial(sim.all_pairs, measure))(x)
        np.testing.assert_allclose(pairs, jax.jit(functools.partial(sim.between, measure))(x, x), atol=1e-5)
        np.testing.assert_array_equal(pairs, pairs.T)


def test_sums_of_batches_give_the_full_value_in_expectation():
    """Unbiased sums: over many random partitions their mean is what all datapoints together give."""
    rng = np.random.default_rng(0)
    x, y = (np.stack([a]).astype(np.float32) for a in related(n=120, width=8))
    full = np.asarray(sim.batch_hsic(x, y).cross)[0, 0] / (120 * 117)
    sums, ratio = jax.jit(sim.batch_hsic), jax.jit(sim.cka_of)
    means, values = [], []
    for _ in range(60):
        parts = np.split(rng.permutation(120), 6)
        total = functools.reduce(functools.partial(jax.tree.map, jnp.add), [sums(x[:, p], y[:, p]) for p in parts])
        means.append(np.asarray(total.cross)[0, 0] / (6 * 20 * 17))
        values.append(np.asarray(ratio(total))[0, 0])
    error = np.std(means) / np.sqrt(len(means))
    assert error < 0.01 * full
    assert abs(np.mean(means) - full) < 4 * error
    assert abs(np.mean(values) - COMPILED["debiased_cka"](x[0], y[0])) < 0.01


def test_one_batch_of_everything_is_the_debiased_value():
    x, y = (np.stack([a]).astype(np.float32) for a in related())
    np.testing.assert_allclose(sim.cka_of(sim.batch_hsic(x, y))[0, 0], COMPILED["debiased_cka"](x[0], y[0]), atol=1e-6)


def test_datapoints_must_agree():
    with pytest.raises(ValueError, match="same datapoints"):
        sim.cka(np.ones((5, 2)), np.ones((6, 2)))
