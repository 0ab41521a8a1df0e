"""A network with its weights as one program that JAX loads and runs without jaxseg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from jaxseg import inference
from jaxseg.models import Network
from jaxseg.types import Params

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that a program is lowered for."""


def window_program(network: Network, params: Params, *, patch: Sequence[int], channels: int) -> jax.export.Exported:
    """Lower the prediction of windows, with the weights in it.

    The program takes windows `[n, *patch, channels]` in float32, of any number n, and returns class probabilities
    `[n, *patch, classes]`. The weights are constants, so that one file is all there is to load.

    Args:
        network: The network, with convolutions in the form `native`, the one that all platforms have.
        params: Parameters of one run.
        patch: Voxels of a window per axis of the network.
        channels: Channels of the image.
    """
    predict = inference.make_window_predict(network)
    (count,) = jax.export.symbolic_shape("n")
    windows = jax.ShapeDtypeStruct((count, *patch, channels), jnp.float32)

    def probabilities(windows: jax.Array) -> jax.Array:
        return predict(params, {}, windows)

    return jax.export.export(jax.jit(probabilities), platforms=PLATFORMS)(windows)


def load(content: bytes) -> Any:
    """Return the program that a file holds; its `call` takes windows."""
    return jax.export.deserialize(bytearray(content))
