"""Fully convolutional networks as pure Flax modules, and the convolution they share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxseg.models.blocks import ACTIVATIONS as ACTIVATIONS
from jaxseg.models.layout import level_strides
from jaxseg.models.multiscale_fcn import MultiscaleFCN
from jaxseg.models.network import Network as Network
from jaxseg.models.nnunet import NNUNet
from jaxseg.models.unet import UNet
from jaxseg.models.vnet import VNet
from jaxseg.settings import Compute, ModelSettings
from jaxseg.settings.kinds import check
from jaxseg.settings.schema import FULL_PRECISION, ModelName
from jaxseg.types import UserError

MODELS: dict[ModelName, type[Network]] = {
    "unet": UNet,
    "multiscale_fcn": MultiscaleFCN,
    "vnet": VNet,
    "nnunet": NNUNet,
}
"""Networks by their `model.name`. A network is built as `MODELS[name](settings, classes)`."""


def make_model(
    settings: ModelSettings,
    compute: Compute = FULL_PRECISION,
    *,
    classes: int,
    restores: bool = False,
    overlapping: bool = False,
) -> Network:
    """Build the network that `settings` name, with `classes` output channels (background included).

    `model.init(key, image)["params"]` has the sub-trees `encoder`, `decoder` and `head`;
    `model.apply({"params": params}, image, train=False)` gives float32 logits `[batch, *spatial, classes]`; with
    `mutable=["activations"]` it also returns the features of the levels that `layer_names` lists. Training with
    dropout needs `rngs={"dropout": key}`. A network that `restores` images has a sub-tree `restoration` in place of
    `head`, and `classes` is the number of image channels. One whose outputs are `overlapping` regions has no
    background, and `classes` is the number of regions.

    Raises:
        UserError: See `check_model`.
    """
    check_model(settings)
    return MODELS[settings.name](settings, classes, compute=compute, restores=restores, overlapping=overlapping)


def layer_names(settings: ModelSettings) -> tuple[str, ...]:
    """Return the paths of the recorded activations in forward order; decoder level 0 is the finest resolution."""
    depth = len(settings.widths)
    encoder = tuple(f"encoder/level_{i}" for i in range(depth)) if settings.encoder == "learned" else ()
    return encoder + tuple(f"decoder/level_{i}" for i in reversed(range(depth - 1)))


def check_model(settings: ModelSettings) -> None:
    """Check that the settings describe an existing network.

    Raises:
        UserError: A setting is not allowed, its widths have the wrong form, or an option would change nothing.
    """
    check(settings, "model.")
    widths = settings.widths
    doubled = tuple(widths[0] * 2**i for i in range(len(widths)))
    if settings.name == "multiscale_fcn" and widths != doubled:
        raise UserError(
            f"model.widths = {widths}: in multiscale_fcn the features of all finer levels add up to a level's, so "
            f"widths double; with {widths[0]} at the finest level they are {doubled}"
        )
    if len(widths) == 1 and (settings.encoder == "pooled" or not settings.skips):
        option = "model.encoder = 'pooled'" if settings.encoder == "pooled" else "model.skips = False"
        raise UserError(f"{option} needs a decoder, and with model.widths = {widths} there is none; give two widths")


def check_patch(settings: ModelSettings, patch: Sequence[int]) -> None:
    """Check that the network's strides divide a patch.

    Raises:
        UserError: The patch has another number of axes than the network, or an axis that the product of its strides
            does not divide.
    """
    if len(patch) != settings.ndim:
        raise UserError(
            f"patch {tuple(patch)}: the network has model.ndim = {settings.ndim} axes, the patch has {len(patch)}. "
            "Give one size an axis, or change model.ndim."
        )
    divisors = [math.prod(axis) for axis in zip(*level_strides(settings), strict=True)] or [1] * settings.ndim
    divisors = [1 if axis in settings.pool_padding else divisor for axis, divisor in enumerate(divisors)]
    if all(size > 0 and size % divisor == 0 for size, divisor in zip(patch, divisors, strict=True)):
        return
    below = tuple(max(size // divisor, 1) * divisor for size, divisor in zip(patch, divisors, strict=True))
    above = tuple(max(-(-size // divisor), 1) * divisor for size, divisor in zip(patch, divisors, strict=True))
    nearest = f"{below}" if below == above else f"{below} or {above}"
    raise UserError(
        f"patch {tuple(patch)}: each axis must be a multiple of {tuple(divisors)}, the product of the network's "
        "strides. "
        f"The nearest allowed are {nearest}; fewer levels (model.widths) or smaller model.strides also help."
    )


def check_batch(settings: ModelSettings, patch: Sequence[int], batch: int) -> None:
    """Check that batch norms have more than one value at the coarsest level.

    Raises:
        UserError: A batch of these patches is a single voxel there, which has no variance.
    """
    strides = [math.prod(axis) for axis in zip(*level_strides(settings), strict=True)] or [1] * settings.ndim
    coarsest = math.prod(max(size // stride, 1) for size, stride in zip(patch, strides, strict=True))
    if settings.norm == "batch" and batch * coarsest < 2:
        raise UserError(
            f"patch {tuple(patch)}: at the coarsest level a batch of one is a single voxel, over which model.norm = "
            "'batch' has no variance; use a larger train.batch or patch, fewer levels (model.widths), or another norm"
        )
