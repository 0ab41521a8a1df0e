"""A network's features at chosen sites, from which representations are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg import trees
from jaxseg.models import ACTIVATIONS
from jaxseg.types import Params

Recorded = dict[str, Float[Array, "points channels"]]
"""Recorded features by layer."""


def features(model: nn.Module, params: Params, windows: Float[Array, "windows *patch channels"]) -> dict[str, Any]:
    """Return whole feature maps `[windows, *grid, channels]` of every recorded layer, after the nonlinearity."""
    _, state = model.apply({"params": params}, windows, train=False, mutable=[ACTIVATIONS])
    return trees.flatten(state[ACTIVATIONS])


def layer_grids(model: nn.Module, params: Params, patch: tuple[int, ...], channels: int) -> dict[str, tuple[int, ...]]:
    """Return the spatial shape of every recorded layer over one window, without computing anything."""
    window = jax.ShapeDtypeStruct((1, *patch, channels), jnp.float32)
    shapes = jax.eval_shape(functools.partial(features, model), params, window)
    return {name: leaf.shape[1:-1] for name, leaf in shapes.items()}


def make_record(
    model: nn.Module,
) -> Callable[[Params, Float[Array, "batches windows *patch channels"], Mapping[str, Int[Array, "..."]]], Recorded]:
    """Make a function that records the features of every layer at sites of windows, for one run.

    No more than one batch of feature maps is in memory.

    Returns:
        `record(params, windows, sites)`. The sites are flat indices `[batches, windows, sites]` on each layer's grid
        (see `sites.nearest_sites`), and the result is `[batches * windows * sites, channels]`, after the nonlinearity.
    """

    def record(params: Params, windows: jax.Array, sites: Mapping[str, jax.Array]) -> Recorded:
        def of_batch(args: tuple[jax.Array, Mapping[str, jax.Array]]) -> Recorded:
            batch, chosen = args
            maps = features(model, params, batch)
            return {
                name: jnp.take_along_axis(
                    maps[name].reshape(len(batch), -1, maps[name].shape[-1]), index[..., None], axis=1
                ).astype(jnp.float32)
                for name, index in chosen.items()
            }

        found = lax.map(of_batch, (windows, dict(sites)))
        return {name: values.reshape(-1, values.shape[-1]) for name, values in found.items()}

    return record
