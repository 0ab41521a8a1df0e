"""Rising fits of noisy curves and the steps at which they reach a level."""

import math

import numpy as np
import pytest

from jaxseg.analysis.isotonic import first_crossing, isotonic_fit


def test_a_rising_curve_is_its_own_fit_and_a_falling_one_its_mean():
    rising = np.array([0.1, 0.2, 0.2, 0.7])
    assert isotonic_fit(rising).tolist() == rising.tolist()
    assert isotonic_fit(rising[::-1]) == pytest.approx(np.full(4, 0.3))


def test_the_fit_is_the_closest_rising_curve():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=7)
        fit = isotonic_fit(values)
        assert (np.diff(fit) >= -1e-12).all()
        assert fit.mean() == pytest.approx(values.mean())
        # No other rising curve is closer: the residual has no positive product with any step up.
        for start in range(7):
            assert np.sum((values - fit)[start:]) <= 1e-9
        assert np.sum((values - fit) * fit) == pytest.approx(0, abs=1e-9)


def test_crossings_lie_between_points_in_log_step_and_may_never_come():
    steps, fitted = np.array([10.0, 100.0, 1000.0]), np.array([0.2, 0.4, 0.8])
    assert first_crossing(steps, fitted, 0.3) == pytest.approx(10**1.5)
    assert first_crossing(steps, fitted, 0.4) == pytest.approx(100)
    assert first_crossing(steps, fitted, 0.1) == 10
    assert math.isnan(first_crossing(steps, fitted, 0.81))


def test_a_curve_twice_as_fast_crosses_in_half_the_steps():
    steps = np.arange(20.0, 1001, 20)
    slow, fast = (1 - np.exp(-speed * steps / 100) for speed in (1, 2))
    assert first_crossing(steps, slow, 0.9) / first_crossing(steps, fast, 0.9) == pytest.approx(2, rel=0.01)
