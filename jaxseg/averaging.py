"""Late averages: one network of the weights of the last steps, made inside the compiled loop.

A large part of the spread between seeds is the noise of the last step (docs/claims.md): the weights of late steps
scatter around one another, and their mean is closer to what the run converges to than any of them. The mean is a
running mean that restarts at the first step of each window. A window ends at each step at which networks are scored, so
that networks with a shorter budget are averages too. Outside the windows, the "mean" is the weights of the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg import trees
from jaxseg.types import Params, TrainState

Windows = tuple[tuple[int, int], ...]
"""Pairs (before, last): the weights after the steps `before` + 1 to `last` are averaged."""


def make_windows(scored_at: Sequence[int], share: float) -> Windows:
    """Return the averaged steps: the last `share` of the steps before each step at which networks are scored.

    Windows do not overlap as long as the share is at most a half and each scored step is twice the one before.

    >>> make_windows((100, 200, 400), 0.25)
    ((75, 100), (150, 200), (300, 400))
    """
    return tuple((last - max(int(share * last), 1), last) for last in scored_at)


def num_averaged(step: Int[Array, ""], windows: Windows) -> Int[Array, ""]:
    """Return the number of steps whose weights are in the mean after a step; 1 outside the windows."""
    count = jnp.ones((), jnp.int32)
    for before, last in windows:
        count = jnp.where((step > before) & (step <= last), step - before, count)
    return count


def shares_after(step: int, windows: Windows) -> Float[np.ndarray, " steps"]:
    """Return, of each step up to one, the share of the weights in the mean after that one that have its update.

    >>> shares_after(4, ((1, 4),)).round(2).tolist()
    [1.0, 1.0, 0.67, 0.33]
    """
    before = next((before for before, last in windows if before < step <= last), step - 1)
    return np.minimum((step - np.arange(step)) / (step - before), 1.0)


def start_average(params: Params, labels: Any) -> Params:
    """Return the mean before any step: the trained parameters, that is, those not labelled `frozen`."""
    return trees.partition(params, labels, "frozen")[1]


def update_average(average: Params, params: Params, count: Int[Array, ""]) -> Params:
    """Update the mean over `count` - 1 steps with the parameters of the current step.

    Args:
        average: The mean so far. It may cover only some of the parameters.
        params: All parameters after the step.
        count: Number of steps in the new mean. With 1, the result is the parameters themselves, bit for bit.
    """
    moved = trees.flatten(params)

    def blend(path: str, mean: Any) -> Any:
        return jnp.where(count == 1, moved[path], mean + (moved[path] - mean) / count.astype(mean.dtype))

    return trees.map_with_path(blend, average)


def scored_params(state: TrainState) -> Params:
    """Return the parameters that are validated, scored and analysed: the late average where there is one.

    This works on the state of one run and on stacked states, run axis first.
    """
    return state.params if state.average is None else trees.replace(state.params, state.average)
