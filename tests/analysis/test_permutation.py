"""Exact tests against counting by hand, and their level under the null."""

import itertools

import numpy as np
import pytest

from jaxseg.analysis.permutation import label_swap


def swapped_by_hand(distances, seeds):
    """The p from all relabelled distance matrices, runs 2i and 2i + 1 being seed i's."""

    def excess(labels):
        a, b = 2 * np.arange(seeds) + labels, 2 * np.arange(seeds) + 1 - labels
        off = ~np.eye(seeds, dtype=bool)
        across = distances[np.ix_(a, b)][off].mean()
        return across - (distances[np.ix_(a, a)][off].mean() + distances[np.ix_(b, b)][off].mean()) / 2

    all_of_them = [excess(np.array(labels)) for labels in itertools.product((0, 1), repeat=seeds)]
    return np.mean(np.array(all_of_them) >= all_of_them[0] - 1e-12)


def excess_of(distances):
    a, b = distances[::2], distances[1::2]
    across = (a[:, 1::2] + b[:, ::2]) / 2
    return across - (a[:, ::2] + b[:, 1::2]) / 2


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_label_swap_is_relabelling(shift):
    rng = np.random.default_rng(3)
    for seeds in (2, 3, 6):
        x = rng.normal(size=(2 * seeds, 2))
        x[::2] += shift
        d = np.linalg.norm(x[:, None] - x[None, :], axis=-1)
        assert label_swap(excess_of(d)) == pytest.approx(swapped_by_hand(d, seeds))


def test_label_swap_least_and_drawn():
    apart = np.ones((8, 8))
    assert label_swap(apart) == 1 / 2**7
    assert label_swap(np.ones((20, 20)), rng=np.random.default_rng(0)) < 0.001
    with pytest.raises(ValueError, match="pass `rng`"):
        label_swap(np.ones((20, 20)))


def test_label_swap_keeps_its_level():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):
        x = np.repeat(rng.normal(size=(8, 3)), 2, 0) + rng.normal(size=(16, 3))  # the runs of a seed are alike
        found.append(label_swap(excess_of(np.sum((x[:, None] - x[None, :]) ** 2, -1))) <= 0.05)
    assert np.mean(found) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
