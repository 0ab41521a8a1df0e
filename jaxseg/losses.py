"""Losses of segmentation and restoration.

The pieces of segmentation losses return one value per case and label; `make_loss` weights and averages them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxseg.regions import Regions, masks
from jaxseg.settings import LossSettings
from jaxseg.settings.kinds import check
from jaxseg.types import PartialLabel, Restoration

FOCAL_GAMMA = 2.0
"""Exponent of the focal losses (Lin 2017)."""


def soft_dice(
    probabilities: Float[Array, "batch *spatial classes"],
    target: Float[Array, "batch *spatial classes"],
    *,
    smooth: float,
) -> Float[Array, "batch classes"]:
    """Soft Dice loss 1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth) (Milletari 2016).

    Args:
        probabilities: Outputs of a softmax or, of regions that overlap, of a sigmoid.
        target: One-hot labels, or masks of regions.
        smooth: Keeps the ratio defined when a class is absent from both; must be positive.
    """
    axes = tuple(range(1, probabilities.ndim - 1))
    overlap = (probabilities * target).sum(axes)
    sizes = probabilities.sum(axes) + target.sum(axes)
    return 1.0 - (2.0 * overlap + smooth) / (sizes + smooth)


def cross_entropy(
    log_probabilities: Float[Array, "batch *spatial classes"], target: Float[Array, "batch *spatial classes"]
) -> Float[Array, " batch"]:
    """Cross-entropy: the mean over voxels of known label of the negative log-probability of the true class."""
    return _mean_over_known(-(log_probabilities * target).sum(-1), target)


def focal(
    log_probabilities: Float[Array, "batch *spatial classes"],
    target: Float[Array, "batch *spatial classes"],
    *,
    gamma: float,
) -> Float[Array, " batch"]:
    """Focal loss, the mean over voxels of known label of -(1 - p)^gamma log p for the true class (Lin 2017)."""
    true = (log_probabilities * target).sum(-1)
    # expm1 computes 1 - p accurately. The value is kept above 0, because a root has infinite slope there.
    missing = jnp.maximum(-jnp.expm1(true), jnp.finfo(true.dtype).tiny)
    return _mean_over_known(-(missing**gamma) * true, target)


def _mean_over_known(
    values: Float[Array, "batch *spatial"], target: Float[Array, "batch *spatial classes"]
) -> Float[Array, " batch"]:
    axes = tuple(range(1, values.ndim))
    return values.sum(axes) / jnp.maximum(target.sum((*axes, -1)), 1.0)


def merge_unannotated(
    log_probabilities: Float[Array, "batch *spatial classes"], annotated: Bool[Array, "batch classes"]
) -> Float[Array, "batch *spatial classes"]:
    """Merge the classes that a case does not annotate into its background (Fang and Yan 2020; Shi et al. 2021).

    Where a structure is not annotated, its voxels are labelled as background: `background` there stands for the union
    of the background and of all unannotated classes, whose probability is the sum of theirs. A loss of the merged
    probabilities is the same whatever share of the sum each of these classes has, so that such a case teaches nothing
    false about them.

    Args:
        log_probabilities: Log-softmax outputs.
        annotated: Whether the case annotates a class. The background, class 0, always counts as annotated.

    Returns:
        Log-probabilities that are distributions over the annotated classes; the others have the probability 0, whose
        logarithm is the lowest finite number, so that products with a target of 0 stay 0.

    References:
        Fang and Yan, Multi-organ segmentation over partially labeled datasets with multi-scale feature abstraction,
        IEEE TMI 2020. Shi et al., Marginal loss and exclusion loss for partially supervised multi-organ segmentation,
        Medical Image Analysis 2021.
    """
    shape = log_probabilities.shape
    own = jnp.expand_dims(annotated, tuple(range(1, len(shape) - 1)))
    own, first = jnp.broadcast_to(own, shape), jnp.broadcast_to(jnp.arange(shape[-1]) == 0, shape)
    background = jax.nn.logsumexp(log_probabilities, axis=-1, keepdims=True, where=first | ~own)
    return jnp.where(first, background, jnp.where(own, log_probabilities, jnp.finfo(log_probabilities.dtype).min))


def restoration_errors(
    restored: Float[Array, "batch *spatial channels"], wanted: Restoration
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Sum the squared errors of each restored patch, averaged over channels, and count the voxels that they are of.

    Both are sums, so that the errors of several patches can be added before the ratio is taken.
    """
    axes = tuple(range(1, restored.ndim - 1))
    squared = jnp.square(restored - wanted.image).mean(-1)
    return (squared * wanted.weight).sum(axes), wanted.weight.sum(axes)


def restoration_loss(restored: Float[Array, "batch *spatial channels"], wanted: Restoration) -> Float[Array, ""]:
    """Mean squared error over the voxels that count, averaged over the batch; a patch without such voxels adds 0."""
    errors, voxels = restoration_errors(restored, wanted)
    return (errors / jnp.maximum(voxels, 1.0)).mean()


def make_loss(
    settings: LossSettings, regions: Regions | None = None
) -> Callable[[Float[Array, "batch *spatial classes"], Int[Array, "batch *spatial"] | PartialLabel], Float[Array, ""]]:
    """Make the training loss of logits and integer labels, averaged over the batch.

    `dice` averages the soft Dice loss over foreground labels, `ce` is the cross-entropy over all classes and `focal`
    its focal form. `dice_ce` (as in nnU-Net, Isensee 2021) and `dice_focal` are sums of the two. Of a `PartialLabel`
    the classes that a case does not annotate are merged into its background (`merge_unannotated`), and `dice` averages
    over the foreground labels that the case annotates.

    Of regions that overlap, every output has a sigmoid of its own and says whether a voxel lies in its region: `dice`
    averages over all regions, and `ce` and `focal` are binary, averaged over voxels and regions. `dice_ce` is then
    nnU-Net's loss for region-based training.

    Args:
        settings: Name of the loss, and its smoothing.
        regions: The regions that the logits are of; None if they are of classes that exclude each other.

    Raises:
        UserError: A setting is not allowed.
    """
    check(settings, "loss.")
    if regions is not None:
        return _make_region_loss(settings, regions)

    def loss(
        logits: Float[Array, "batch *spatial classes"], label: Int[Array, "batch *spatial"] | PartialLabel
    ) -> Float[Array, ""]:
        log_probabilities, annotated = jax.nn.log_softmax(logits), None
        if isinstance(label, PartialLabel):
            annotated = label.annotated
            log_probabilities = merge_unannotated(log_probabilities, annotated)
            label = label.label
        # One-hot products instead of a gather along the class axis: gathers of single elements are slow on CPU.
        target = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
        value = jnp.zeros((), logits.dtype)
        if "dice" in settings.name:
            # Voxels of unknown label (the index after the last class) belong to no class and contribute nothing.
            known = target.sum(-1, keepdims=True)
            per_label = soft_dice(jnp.exp(log_probabilities) * known, target, smooth=settings.smooth)
            value = value + _mean_over_labels(per_label, annotated)
        return _with_voxel_terms(value, settings, log_probabilities, target)

    return loss


def _with_voxel_terms(
    value: Float[Array, ""],
    settings: LossSettings,
    log_probabilities: Float[Array, "batch *spatial classes"],
    target: Float[Array, "batch *spatial classes"],
) -> Float[Array, ""]:
    """Add the terms of a loss that are means over voxels."""
    if "ce" in settings.name.split("_"):
        value = value + cross_entropy(log_probabilities, target).mean()
    if "focal" in settings.name:
        value = value + focal(log_probabilities, target, gamma=FOCAL_GAMMA).mean()
    return value


def _make_region_loss(
    settings: LossSettings, regions: Regions
) -> Callable[[Float[Array, "batch *spatial regions"], Any], Float[Array, ""]]:
    """The loss of one logit per region, with masks that are made of the label map here."""

    def loss(logits: Float[Array, "batch *spatial regions"], label: Any) -> Float[Array, ""]:
        known = (label <= regions.classes).astype(logits.dtype)[..., None]
        target = masks(label, regions).astype(logits.dtype) * known
        value = jnp.zeros((), logits.dtype)
        if "dice" in settings.name:
            value = value + soft_dice(jax.nn.sigmoid(logits) * known, target, smooth=settings.smooth).mean()
        # A voxel and region is a voxel with the two classes outside and inside, so that the forms above hold.
        log_probabilities = jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], -1)
        return _with_voxel_terms(value, settings, log_probabilities, jnp.stack([known - target, target], -1))

    return loss


def _mean_over_labels(
    values: Float[Array, "batch classes"], annotated: Bool[Array, "batch classes"] | None
) -> Float[Array, ""]:
    """The mean over foreground labels, of each case those that it annotates, and then over the batch."""
    if annotated is None:
        return values[:, 1:].mean()
    weight = annotated[:, 1:].astype(values.dtype)
    return ((values[:, 1:] * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)).mean()
