"""Late averages: one network of the weights of the last steps, made inside the compiled loop.

A large part of the spread between seeds is the noise of the last step (docs/claims.md): the weights of late steps lie
around one another, and their mean is nearer to what the run converges to than any of them. The mean is a running one,
which starts anew at the first step of each window; a window ends at each step at which networks are scored, so that
the networks of a shorter budget are averages too. Outside of windows the "mean" is the last step's weights themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxseg import trees
from jaxseg.types import Params, TrainState

Windows = tuple[tuple[int, int], ...]
"""(before, last): the weights after the steps `before` + 1 to `last` are averaged."""


def make_windows(scored_at: Sequence[int], share: float) -> Windows:
    """The steps whose weights are averaged: the last `share` of the steps up to each step at which networks are scored.

    Windows do not overlap as long as the share is at most a half and each scored step is twice the one before.

    >>> make_windows((100, 200, 400), 0.25)
    ((75, 100), (150, 200), (300, 400))
    """
    return tuple((last - max(int(share * last), 1), last) for last in scored_at)


def num_averaged(step: Int[Array, ""], windows: Windows) -> Int[Array, ""]:
    """How many steps' weights are in the mean after a step; 1 outside of the windows."""
    count = jnp.ones((), jnp.int32)
    for before, last in windows:
        count = jnp.where((step > before) & (step <= last), step - before, count)
    return count


def start_average(params: Params, labels: Any) -> Params:
    """The mean before any step: the parameters that training moves, which are those not labelled `frozen`."""
    return trees.partition(params, labels, "frozen")[1]


def update_average(average: Params, params: Params, count: Int[Array, ""]) -> Params:
    """The mean of `count` steps from that of the steps before and this step's parameters.

    Args:
        average: The mean so far, of some of the parameters.
        params: All parameters after the step.
        count: How many steps the new mean is of; of the first one it is the parameters themselves, bit for bit.
    """
    moved = trees.flatten(params)

    def blend(path: str, mean: Any) -> Any:
        return jnp.where(count == 1, moved[path], mean + (moved[path] - mean) / count.astype(mean.dtype))

    return trees.map_with_path(blend, average)


def scored_params(state: TrainState) -> Params:
    """The parameters that are validated, scored and analysed: the late average where there is one.

    Works on one run's state and on that of many, run axis first.
    """
    return state.params if state.average is None else trees.replace(state.params, state.average)
