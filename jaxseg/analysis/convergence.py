"""When a run has converged: first step at which validation DSC stays at a share of what scratch reaches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

WINDOW = 3
"""Successive evaluations that count together, in the median and in the final value."""


class Convergence(NamedTuple):
    """Time to target of each run."""

    step: Int[np.ndarray, " runs"]
    """Step of the last of the three evaluations that reach the target; where censored, of the last evaluation."""
    censored: Bool[np.ndarray, " runs"]
    """The target was not reached by then."""


def final_values(val_dsc: Float[np.ndarray, "runs evals"]) -> Float[np.ndarray, " runs"]:
    """Mean of each run's last three evaluations, NaN for a run that has none of them (diverged) or fewer."""
    if val_dsc.shape[1] < WINDOW:
        return np.full(len(val_dsc), np.nan)
    return val_dsc[:, -WINDOW:].mean(1)


def target_dsc(scratch_val_dsc: Float[np.ndarray, "runs evals"], *, fraction: float = 0.99) -> float:
    """The value that counts as converged: a share of the median over scratch's seeds of their final values.

    Seeds that diverged (NaN) are left out; NaN if none is left.
    """
    final = final_values(scratch_val_dsc)
    final = final[~np.isnan(final)]
    return float(fraction * np.median(final)) if len(final) else float("nan")


def steps_to_target(
    steps: Int[np.ndarray, " evals"], val_dsc: Float[np.ndarray, "runs evals"], target: float
) -> Convergence:
    """Finds the first step at which the median of three successive evaluations reaches the target.

    The step is that of the last of the three, the first at which one can know. The median lets neither one lucky
    evaluation end the count nor one unlucky one delay it.

    Args:
        steps: of the evaluations, increasing.
        val_dsc: validation DSC, NaN where a run has none (diverged): such a window has not reached anything.
        target: see `target_dsc`; with NaN every run is censored.

    Raises:
        ValueError: if there is no evaluation, or steps do not increase.
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
