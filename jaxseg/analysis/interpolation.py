"""Networks on the line to another network, and with a layer of another, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg import trees
from jaxseg.regions import Regions, decide, masks
from jaxseg.types import Params

Windows = tuple[Float[Array, "batches windows *patch channels"], Int[Array, "batches windows *patch"]]
"""Images and labels of windows."""


class Quality(NamedTuple):
    """Quality of one network on windows, or of several runs."""

    loss: Float[Array, " *runs"]
    dsc: Float[Array, " *runs"]
    """DSC of all windows' voxels together, averaged over the labels that occur in them."""


def make_quality(
    model: nn.Module, loss: Callable[[jax.Array, jax.Array], Float[Array, ""]], regions: Regions | None = None
) -> Callable[[Params, Windows], Quality]:
    """Make a function that returns loss and DSC of one run's parameters on windows, batch by batch, without dropout.

    Args:
        model: The network.
        loss: Loss of logits and labels.
        regions: The regions that the logits are of, over which DSC is averaged; None if they are of classes.
    """

    def masks_of_regions(logits: jax.Array, label: jax.Array, of: Regions) -> tuple[jax.Array, jax.Array]:
        known = (label <= of.classes)[..., None]
        found = masks(decide(jax.nn.sigmoid(logits), of), of) & known
        return masks(label, of).reshape(-1, len(of.members)), found.reshape(-1, len(of.members))

    def quality(params: Params, windows: Windows) -> Quality:
        def of_batch(batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            image, label = batch
            logits: Any = model.apply({"params": params}, image, train=False)
            if regions is not None:
                inside, said = masks_of_regions(logits, label, regions)
                return loss(logits, label), jnp.stack([(inside & said).sum(0), inside.sum(0), said.sum(0)])
            classes = logits.shape[-1]
            # Labels beyond the last class (unknown) are in no row of the one-hot matrices.
            known = label < classes
            truth = jax.nn.one_hot(label, classes).reshape(-1, classes)
            found = jax.nn.one_hot(jnp.where(known, logits.argmax(-1), classes), classes).reshape(-1, classes)
            sizes = [(truth * found).sum(0), truth.sum(0), found.sum(0)]
            return loss(logits, label), jnp.stack(sizes)[:, 1:]

        losses, sizes = lax.map(of_batch, windows)
        both, truth, found = sizes.sum(0)
        dsc = 2 * both / jnp.maximum(truth + found, 1)
        held = truth > 0
        return Quality(losses.mean(), jnp.where(held, dsc, 0).sum() / jnp.maximum(held.sum(), 1))

    return quality


@jax.jit
def on_line(a: Params, b: Params, alpha: float) -> Params:
    """Return the network at (1 - alpha) a + alpha b, or several of them (Frankle et al. 2020, arXiv:1912.05671)."""
    return jax.tree.map(lambda x, y: (1 - alpha) * x + alpha * y, a, b)


def barrier(
    losses: Float[np.ndarray, "*pairs alphas"], alphas: Float[np.ndarray, " alphas"]
) -> Float[np.ndarray, "*pairs"]:
    """Return the largest rise of the loss above the line between its two ends (Neyshabur et al. 2020); 0 at least.

    >>> float(barrier(np.array([1.0, 4.0, 3.0]), np.array([0.0, 0.5, 1.0])))
    2.0
    """
    line = losses[..., :1] * (1 - alphas) + losses[..., -1:] * alphas
    return np.max(losses - line, axis=-1)


def layer_of(path: str, layers: Collection[str]) -> str:
    """Return the layer of a parameter, the innermost of `layers` around it; all parameters of one are reset together.

    A norm in front of a convolution is a module within the convolution's own.

    Raises:
        ValueError: The parameter is in none of the layers.

    >>> layer_of("encoder/level_0/conv_1/norm/scale", ["encoder/level_0/conv_0", "encoder/level_0/conv_1"])
    'encoder/level_0/conv_1'
    """
    around = path
    while around := around.rpartition("/")[0]:
        if around in layers:
            return around
    raise ValueError(f"the parameter {path} is in none of the layers {', '.join(layers)}")


def with_layer_of(other: Params, params: Params, layer: str, layers: Collection[str]) -> Params:
    """Return a network with one layer of another network, or several networks with those of as many others.

    With a layer of its own start it is rewound (Zhang et al. 2019, arXiv:1902.01996). There is no training afterwards:
    a layer that changed little may still matter, and one that changed a lot may not.

    Args:
        other: The network that the layer is taken from.
        params: The network that all else is taken from.
        layer: One of `layers`.
        layers: The layers, see `layer_of`.
    """
    return trees.map_with_path(
        lambda path, own, others: others if layer_of(path, layers) == layer else own, params, other
    )
