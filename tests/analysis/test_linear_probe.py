"""Linear probes: against densities of SciPy, where a label can be read off, and where it cannot."""

import numpy as np
import pytest
from scipy import stats

from jaxseg.analysis import linear_probe

CASE = np.repeat(np.arange(6), 100)


def test_scores_are_log_densities_of_gaussians_with_one_covariance():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 200)
    x = rng.normal(size=(200, 4)) * (1, 2, 3, 4) + 7 + label[:, None]
    slopes, intercepts = linear_probe.discriminant(linear_probe.moments(x, label, np.ones(3)), penalty=0)
    means = [x[label == one].mean(0) for one in range(3)]
    covariance = sum((label == one).mean() * np.cov(x[label == one].T, bias=True) for one in range(3))
    densities = np.stack([stats.multivariate_normal.logpdf(x, mean, covariance) for mean in means], 1)
    scores = x @ slopes + intercepts
    np.testing.assert_allclose(scores - scores[:, :1], densities - densities[:, :1], atol=1e-8)


def test_a_label_between_two_others_is_found():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 3))
    x[:, 0] += 8 * label
    assert linear_probe.probe_score(x, label, CASE) > 0.99


def test_a_label_that_one_fold_alone_has_is_not_found_and_nothing_breaks():
    label = np.where(CASE == 0, 2, np.arange(600) % 2)
    x = np.eye(3)[label] + 0.01 * np.random.default_rng(0).normal(size=(600, 3))
    np.testing.assert_allclose(linear_probe.probe_score(x, label, CASE), 2 / 3)


def test_a_label_that_can_be_read_off_is_read_off_however_rare():
    rng = np.random.default_rng(0)
    label = (rng.random(600) < 0.05).astype(int)
    x = rng.normal(size=(600, 4))
    x[:, 2] += 6 * label
    assert linear_probe.probe_score(x, label, CASE) > 0.97
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    np.testing.assert_allclose(
        linear_probe.probe_score(10 * x @ turn + 3, label, CASE), linear_probe.probe_score(x, label, CASE), atol=0.02
    )


@pytest.mark.parametrize("labels", [2, 4])
def test_noise_is_read_at_chance(labels):
    rng = np.random.default_rng(0)
    scores = [linear_probe.probe_score(rng.normal(size=(600, 8)), rng.integers(0, labels, 600), CASE) for _ in range(8)]
    np.testing.assert_allclose(np.mean(scores), 1 / labels, atol=0.03)


def test_what_only_tells_cases_apart_does_not_help():
    """The case is in the features and the label is the case's: no other case tells what it means."""
    label = np.array([0, 1, 0, 1, 0, 1])[CASE]
    x = np.eye(6)[CASE] + 0.1 * np.random.default_rng(0).normal(size=(600, 6))
    assert linear_probe.probe_score(x, label, CASE) < 0.7


def test_dead_channels_change_nothing_and_one_case_or_label_says_nothing():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(600, 4)), rng.integers(0, 2, 600)
    x[:, 0] += label
    dead = np.concatenate([x, np.full((600, 1), 3.0)], 1)
    assert linear_probe.probe_score(dead, label, CASE) == linear_probe.probe_score(x, label, CASE)
    assert np.isnan(linear_probe.probe_score(x, np.zeros(600, int), CASE))
    assert np.isnan(linear_probe.probe_score(x, label, np.zeros(600, int)))
