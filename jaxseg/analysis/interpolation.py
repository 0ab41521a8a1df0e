"""Loss of a network on the line to another network, and with one layer reset to its start."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
    """Quality of one network on windows, or of several."""

    loss: Float[Array, " *networks"]
    dsc: Float[Array, " *networks"]
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


def make_path(
    quality: Callable[[Params, Windows], Quality], alphas: Sequence[float]
) -> Callable[[Params, Params, Windows], Float[Array, " alphas"]]:
    """Make a function for the losses at (1 - alpha) a + alpha b of two runs (Frankle et al. 2020, arXiv:1912.05671)."""

    def path(a: Params, b: Params, windows: Windows) -> Float[Array, " alphas"]:
        def at(alpha: jax.Array) -> jax.Array:
            return quality(jax.tree.map(lambda x, y: (1 - alpha) * x + alpha * y, a, b), windows).loss

        return lax.map(at, jnp.asarray(alphas, jnp.float32))

    return path


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


def make_rewind(
    quality: Callable[[Params, Windows], Quality], layers: Sequence[str]
) -> Callable[[Params, Params, Windows], Quality]:
    """Make a function for the quality with each layer in turn reset to its start, and with none (Zhang et al. 2019).

    There is no training afterwards (arXiv:1902.01996): a layer that changed little may still matter, and one that
    changed a lot may not.

    Returns:
        `rewind(start, end, windows)`, which returns one value per layer and a last one with nothing reset.
    """
    number = {name: index for index, name in enumerate(layers)}

    def rewind(start: Params, end: Params, windows: Windows) -> Quality:
        def without(index: jax.Array) -> Quality:
            def choose(path: str, new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(index == number[layer_of(path, number)], old, new)

            return quality(trees.map_with_path(choose, end, start), windows)

        return lax.map(without, jnp.arange(len(layers) + 1))

    return rewind
