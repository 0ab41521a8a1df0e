"""Means over folds that share neither seeds nor groups."""

import numpy as np
import pytest

from jaxseg.analysis.folds import (
    components_over_folds,
    expected_half_width_over_folds,
    fold_interval,
    standard_error,
    t_quantile,
)
from jaxseg.analysis.statistics import two_way_interval
from jaxseg.analysis.variance_components import Components, expected_half_width


def block(rng, seeds=4, groups=7, seed=0.01, group=0.01, residual=0.03):
    parts = seed * rng.normal(size=(seeds, 1)), group * rng.normal(size=(1, groups))
    return sum(parts) + residual * rng.normal(size=(seeds, groups))


def test_one_fold_is_the_two_way_interval_and_variances_of_several_add():
    rng = np.random.default_rng(0)
    blocks = [block(rng) for _ in range(5)]
    assert fold_interval(blocks[:1]) == two_way_interval(blocks[0])
    found = fold_interval(blocks)
    assert found.estimate == pytest.approx(np.mean([b.mean() for b in blocks]))
    parts = [two_way_interval(b) for b in blocks]
    errors = [standard_error(p.low, p.high, p.df, 0.95) for p in parts]
    assert standard_error(found.low, found.high, found.df, 0.95) == pytest.approx(np.sum(np.square(errors)) ** 0.5 / 5)
    assert min(p.df for p in parts) <= found.df <= sum(p.df for p in parts)


def test_a_fold_without_an_interval_leaves_none():
    found = fold_interval([np.zeros((1, 3)), np.ones((4, 3))])
    assert found.estimate == 0.5
    assert np.isnan(found.low)


def test_coverage_of_rotating_folds():
    rng, hits, draws = np.random.default_rng(2), 0, 600
    for _ in range(draws):
        found = fold_interval([block(rng) for _ in range(4)])
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / draws <= 0.98


def with_spread(spread, seeds, groups):
    """Values of every seed and group whose mean squares are those to expect with a spread."""
    rng = np.random.default_rng(seeds * groups)
    squares = (
        groups * spread.seed + spread.residual,
        seeds * spread.group + spread.residual,
        spread.residual,
    )
    drawn = rng.normal(size=(seeds, groups))
    rows, columns = drawn.mean(1, keepdims=True) - drawn.mean(), drawn.mean(0, keepdims=True) - drawn.mean()
    made = np.zeros((seeds, groups))
    for part, square in zip((rows, columns, drawn - drawn.mean() - rows - columns), squares, strict=True):
        df = max((seeds - 1 if part.shape[0] > 1 else 1) * (groups - 1 if part.shape[1] > 1 else 1), 1)
        full = np.broadcast_to(part, made.shape)
        if (full**2).sum() > 1e-12:
            made = made + full * np.sqrt(square * df / (full**2).sum())
    return made


@pytest.mark.parametrize(("seeds", "groups", "folds"), [(8, 3, 5), (2, 20, 5), (8, 1, 5), (8, 4, 2), (4, 7, 1)])
@pytest.mark.parametrize("spread", [(1e-4, 0, 1e-4), (1e-4, 1e-5, 1e-4), (0, 1e-3, 1e-4)])
def test_the_expected_half_width_is_that_of_the_interval(spread, seeds, groups, folds):
    spread = Components(*spread)
    found = fold_interval([with_spread(spread, seeds, groups)] * folds)
    expected = expected_half_width_over_folds(spread, seeds, groups, folds)
    assert expected == pytest.approx((found.high - found.low) / 2, rel=1e-9)


def test_planning_over_folds():
    spread = Components(1e-4, 1e-4, 9e-4)
    assert expected_half_width_over_folds(spread, 8, 20, 1) == expected_half_width(spread, 8, 20)
    wide, narrow = (expected_half_width_over_folds(spread, n, 7, 5) for n in (4, 8))
    assert narrow < wide < expected_half_width(spread, 4, 7)
    rng = np.random.default_rng(3)
    found = components_over_folds([block(rng, 30, 30) for _ in range(5)])
    assert found.residual == pytest.approx(9e-4, rel=0.1)
    assert t_quantile(1e9, 0.95) == pytest.approx(1.95996, rel=1e-4)
