"""Time to convergence: the first step at which validation DSC stays at a share of what scratch reaches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

WINDOW = 3
"""Number of successive evaluations that count together, in the median and in the final value."""


class Convergence(NamedTuple):
    """Time to target of each run."""

    step: Int[np.ndarray, " runs"]
    """Step of the last of the three evaluations that reach the target; if censored, of the last evaluation."""
    censored: Bool[np.ndarray, " runs"]
    """Whether the target was not reached by then."""


def final_values(val_dsc: Float[np.ndarray, "runs evals"]) -> Float[np.ndarray, " runs"]:
    """Return the mean of each run's last three evaluations; NaN if the run diverged or has fewer."""
    if val_dsc.shape[1] < WINDOW:
        return np.full(len(val_dsc), np.nan)
    return val_dsc[:, -WINDOW:].mean(1)


def target_dsc(scratch_val_dsc: Float[np.ndarray, "runs evals"], *, fraction: float = 0.99) -> float:
    """Return the value that counts as converged: a share of the median of the final values of scratch's seeds.

    Seeds that diverged (NaN) are left out; NaN if none is left.
    """
    final = final_values(scratch_val_dsc)
    final = final[~np.isnan(final)]
    return float(fraction * np.median(final)) if len(final) else float("nan")


def steps_to_target(
    steps: Int[np.ndarray, " evals"], val_dsc: Float[np.ndarray, "runs evals"], target: float
) -> Convergence:
    """Find the first step at which the median of three successive evaluations reaches the target.

    The step is that of the last of the three, the first at which this can be known. With the median, one lucky
    evaluation does not end the count and one unlucky evaluation does not delay it.

    Args:
        steps: Steps of the evaluations, increasing.
        val_dsc: Validation DSC, NaN where a run has none (diverged): a window with NaN does not reach the target.
        target: See `target_dsc`; with NaN every run is censored.

    Raises:
        ValueError: There is no evaluation, or the steps do not increase.
    """
    steps = np.asarray(steps)
    if not len(steps) or np.any(np.diff(steps) <= 0) or val_dsc.shape[1] != len(steps):
        raise ValueError(
            f"steps_to_target needs one increasing step for each evaluation, got {len(steps)} steps for values of "
            f"shape {val_dsc.shape}"
        )
    reached = np.zeros(val_dsc.shape, bool)
    if len(steps) >= WINDOW:
        windows = np.lib.stride_tricks.sliding_window_view(val_dsc, WINDOW, axis=1)
        reached[:, WINDOW - 1 :] = np.median(windows, axis=2) >= target
    censored = np.logical_not(reached.any(axis=1))
    return Convergence(np.where(censored, steps[-1], steps[reached.argmax(1)]), censored)
