"""Time to target by hand: the median of three, the step at which it is known, censoring, divergence."""

import math

import numpy as np
import pytest

from jaxseg.analysis import convergence


def test_target_is_a_share_of_the_median_final_value():
    curves = np.array([[0.0, 0.6, 0.7, 0.8], [0.0, 0.9, 0.9, 0.9], [0.0, 0.1, 0.2, 0.3], [0.1, 0.5, np.nan, np.nan]])
    finals = convergence.final_values(curves)
    np.testing.assert_allclose(finals, [0.7, 0.9, 0.2, np.nan])
    assert convergence.target_dsc(curves, fraction=0.99) == pytest.approx(0.99 * 0.7)
    assert convergence.target_dsc(curves[:2], fraction=0.5) == pytest.approx(0.4)
    assert math.isnan(convergence.target_dsc(curves[3:]))
    assert math.isnan(convergence.target_dsc(curves[:, :2]))


@pytest.mark.parametrize(
    ("values", "step", "censored"),
    [
        ([0.1, 0.8, 0.8, 0.8, 0.8], 30, False),  # two of three reach: known at the third
        ([0.8, 0.8, 0.8, 0.8, 0.8], 30, False),
        ([0.1, 0.9, 0.1, 0.1, 0.1], 50, True),  # one lucky evaluation does not count
        ([0.1, 0.8, 0.1, 0.8, 0.8], 40, False),  # nor does one unlucky evaluation delay
        ([0.1, 0.1, 0.1, 0.1, 0.8], 50, True),
        ([0.1, 0.1, 0.1, 0.8, 0.8], 50, False),  # at the very last step: reached, not censored
        ([0.8, 0.8, 0.8, 0.1, 0.1], 30, False),  # reached once is reached
        ([0.8, np.nan, 0.8, 0.8, 0.8], 50, False),  # a window with a missing value has not reached
        ([0.1, np.nan, np.nan, np.nan, np.nan], 50, True),
    ],
)
def test_first_step(values, step, censored):
    found = convergence.steps_to_target(np.array([10, 20, 30, 40, 50]), np.array([values]), 0.8)
    assert (found.step[0], found.censored[0]) == (step, censored)


def test_runs_are_independent_and_the_target_is_inclusive():
    steps = np.array([0, 5, 10, 15])
    curves = np.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    found = convergence.steps_to_target(steps, curves, 0.5)
    assert found.step.tolist() == [10, 10, 15]
    assert found.censored.tolist() == [False, False, True]
    unknown = convergence.steps_to_target(steps, curves, math.nan)
    assert unknown.censored.all()


def test_too_few_evaluations_are_censored():
    found = convergence.steps_to_target(np.array([3, 6]), np.ones((2, 2)), 0.5)
    assert found.censored.all()
    assert found.step.tolist() == [6, 6]


@pytest.mark.parametrize("steps", [[], [1, 1, 2], [3, 2, 1], [1, 2]])
def test_steps_must_increase_and_fit(steps):
    with pytest.raises(ValueError, match="increasing step"):
        convergence.steps_to_target(np.array(steps), np.ones((1, 3 if len(steps) else 0)), 0.5)
