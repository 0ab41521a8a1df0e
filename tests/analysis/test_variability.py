"""How much runs differ, by hand and against slow definitions."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import metrics, trees
from jaxseg.analysis import interpolation, variability
from jaxseg.study.probe.networks import kernel_layers
from tests import networks


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), runs=st.integers(2, 5), classes=st.integers(2, 4))
def test_pairs_of_runs_against_their_definitions(seed, runs, classes):
    labels = np.random.default_rng(seed).integers(0, classes, (runs, 40)).astype(np.uint8)
    differing, dsc = (
        variability.differing(labels, labels, classes),
        variability.pairwise_dsc(labels, classes),
    )
    for i, j in itertools.product(range(runs), repeat=2):
        assert differing[i, j] == (labels[i] != labels[j]).sum()
        known = [c for c in range(1, classes) if (labels[[i, j]] == c).any()]
        expected = np.mean([metrics.dsc(labels[i] == c, labels[j] == c) for c in known]) if known else np.nan
        np.testing.assert_allclose(dsc[i, j], expected, rtol=1e-6)
    shares = np.stack([(labels == c).mean(0) for c in range(classes)])
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = -np.nansum(shares * np.log(shares), 0)
    np.testing.assert_allclose(variability.vote_entropy(labels, classes), expected, atol=1e-6)
    np.testing.assert_allclose(variability.minority_share(labels, classes), 1 - shares.max(0), atol=1e-6)


def test_two_runs_that_predict_nothing_have_no_dsc():
    assert np.isnan(variability.pairwise_dsc(np.zeros((2, 9), np.uint8), [(1,), (2,)])).all()


def test_the_region_holds_reference_band_and_every_prediction():
    reference = np.zeros((30, 30), int)
    reference[10, 10] = 1
    predictions = np.zeros((2, 30, 30), int)
    predictions[1, 28, 2] = 2
    region = variability.region_of(reference, predictions)
    assert region.sum() == 11 * 11 + 1
    assert region[5, 15]
    assert region[28, 2]


def test_distance_of_parameters():
    leaves = [np.array([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]), np.zeros((3, 1))]
    found = variability.parameter_distance(leaves)
    np.testing.assert_allclose(found[0], [0, np.sqrt(2), 0], atol=1e-12)
    rng = np.random.default_rng(0)
    drawn = variability.parameter_distance([rng.normal(size=(2, 20000))])
    assert drawn[0, 1] == pytest.approx(np.sqrt(2), rel=0.02)


@pytest.mark.parametrize("name", [*networks.NAMES, *networks.VARIANTS])
def test_a_layer_is_reset_with_its_norm(name):
    shapes = networks.shapes_of(networks.settings_of(name, norm="batch"), (8, 8))
    paths = list(trees.flatten(shapes))
    layers = kernel_layers(paths)
    # All is 1 at the end and 0 at the start; the score says how many parameters are still those of the end.
    start, end = (jax.tree.map(lambda leaf, at=at: at, shapes) for at in (0, 1))
    left = [sum(jax.tree.leaves(interpolation.with_layer_of(start, end, layer, layers))) for layer in layers]
    own = [sum(path.startswith(f"{layer}/") for path in paths) for layer in layers]
    assert [len(paths) - number for number in left] == own
    assert sum(own) == len(paths)


def test_a_parameter_without_a_layer_is_named():
    with pytest.raises(ValueError, match=r"encoder/norm/scale is in none of the layers encoder/conv"):
        interpolation.layer_of("encoder/norm/scale", ["encoder/conv", "head"])


def test_a_barrier_is_the_rise_above_the_line_between_the_ends():
    alphas = np.linspace(0, 1, 5)
    bowl = (alphas - 0.5) ** 2
    assert interpolation.barrier(bowl, alphas) == 0
    assert interpolation.barrier(np.stack([3 * alphas, -bowl + 0.25 + alphas]), alphas).tolist() == [0, 0.25]
