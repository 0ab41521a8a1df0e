"""Voxel counts of whole cases in one program: windows are cut, stitched and counted on the device.

`inference.predict_slabs` brings the probabilities of all runs to the host, which maps and distances need. DSC needs
only three counts per label. With many runs on an accelerator, moving probabilities to the host and stitching them there
costs as much as the training between two validations, and on a processor it leaves the devices idle
(docs/performance.md); here they stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from jaxseg import inference, losses, trees
from jaxseg.models import Network
from jaxseg.regions import Regions, decide, masks
from jaxseg.types import Batch, Frozen, Params

Either = Array | np.ndarray


class Canvases(NamedTuple):
    """Cases of different shapes as one array, each in the corner of a canvas that holds the largest of them."""

    images: Float[Either, "case *canvas channels"]
    labels: Int[Either, "case *canvas"]
    """Class indices; outside the case, the index after the last class, which is not counted."""
    starts: Int[Either, "case window axis"]
    """Corners of the windows on the canvas. Cases with fewer windows than others are padded with zeros at the end."""
    windows: Int[Either, " case"]
    """Number of windows of each case."""


def canvas_shape(shapes: Sequence[Sequence[int]], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest shape that holds every case and one window."""
    return tuple(max(lengths) for lengths in zip(*shapes, patch, strict=True))


def sums_held(classes: int, regions: Regions | None) -> int:
    """Return the number of sums of a voxel: one per class or, of regions, one per region and that of the weights."""
    return classes if regions is None else len(regions.members) + 1


def canvas_bytes(
    shapes: Sequence[Sequence[int]], patch: Sequence[int], *, channels: int, classes: int
) -> tuple[int, int]:
    """Return the bytes of the canvases, which all runs share, and of the sums that each run holds at a time.

    Args:
        shapes: Shapes of the cases.
        patch: Window size.
        channels: Channels of an image.
        classes: Sums of a voxel; see `sums_held`.
    """
    voxels = math.prod(canvas_shape(shapes, patch))
    return len(shapes) * voxels * 4 * (channels + 1), voxels * 4 * classes


def lay_out(
    images: Sequence[Float[np.ndarray, "*spatial channels"]],
    labels: Sequence[Integer[np.ndarray, "*spatial"]],
    *,
    patch: tuple[int, ...],
    overlap: float,
    classes: int,
) -> Canvases:
    """Arrange cases on canvases with the windows that `inference.window_starts` gives them.

    As there, a case smaller than the patch lies in the middle of its only window, and the outside is 0.

    Args:
        images: Cases on the training grid.
        labels: Class indices; indices from `classes` on mark voxels without a known label.
        patch: Window size.
        overlap: Least shared part of neighbouring windows, in [0, 1).
        classes: Number of classes, background included.
    """
    shapes = [label.shape for label in labels]
    canvas = canvas_shape(shapes, patch)
    image = np.zeros((len(images), *canvas, images[0].shape[-1]), np.float32)
    label = np.full((len(labels), *canvas), classes, np.int32)
    corners = []
    for index, shape in enumerate(shapes):
        starts = np.array(inference.window_starts(shape, patch, overlap))
        before = np.maximum(-starts[0], 0)  # a negative start is the padding before the case
        place: tuple[int | slice, ...] = (
            index,
            *(slice(low, low + size) for low, size in zip(before, shape, strict=True)),
        )
        image[place], label[place] = images[index], labels[index]
        corners.append(starts + before)
    most = max(map(len, corners))
    padded = [np.pad(starts, ((0, most - len(starts)), (0, 0))) for starts in corners]
    return Canvases(image, label, np.stack(padded).astype(np.int32), np.array([len(starts) for starts in corners]))


def count_overlaps(
    predicted: Integer[Either, "*any voxels"],
    label: Integer[Either, " voxels"],
    classes: int,
    regions: Regions | None = None,
) -> list[tuple[Any, Any, Any]]:
    """Count, for each structure, known voxels in both maps, in the reference and in the prediction.

    A structure is a foreground label or, where there are regions, a region. This works on NumPy and JAX arrays; the
    axis of voxels is summed over.
    """
    known = label < classes
    found = []
    if regions is not None:
        truths, answers = masks(label, regions), masks(predicted, regions) & known[..., None]
        for index in range(len(regions.members)):
            truth, answer = truths[..., index], answers[..., index]
            found.append(((answer & truth).sum(-1), truth.sum(-1), answer.sum(-1)))
        return found
    for index in range(1, classes):
        truth, answer = label == index, (predicted == index) & known
        found.append(((answer & truth).sum(-1), truth.sum(-1), answer.sum(-1)))
    return found


def _make_predict(model: Network, slice_axis: int | None) -> Callable[..., Float[Array, "window *patch sums"]]:
    """`inference.make_window_predict`, for windows that keep the axis across which a 2-D network sees slices.

    A network of regions gives a last channel of ones, whose weighted sum is the weight of each voxel.
    """
    predict = inference.make_window_predict(model)

    def summed(params: Params, frozen: Frozen, shown: Array) -> Array:
        found = predict(params, frozen, shown if slice_axis is None else shown.squeeze(1 + slice_axis))
        if model.overlapping:
            found = jnp.concatenate([found, jnp.ones_like(found[..., :1])], axis=-1)
        return found if slice_axis is None else jnp.expand_dims(found, 1 + slice_axis)

    return summed


def _decide(sums: Float[Array, "*canvas sums"], regions: Regions | None) -> Int[Array, "*canvas"]:
    """The label map of weighted sums; see `_make_predict` for their last channel."""
    if regions is None:
        # The largest weighted sum is also the largest mean, since all classes of a voxel have the same weights.
        return decide(sums, None)
    # Outside the case no window has a weight, and nothing is divided.
    return decide(sums[..., :-1] / jnp.where(sums[..., -1:] > 0, sums[..., -1:], 1), regions)


def make_case_counts(
    model: Network,
    *,
    patch: tuple[int, ...],
    window_batch: int,
    classes: int,
    slice_axis: int | None = None,
    regions: Regions | None = None,
) -> Callable[[Params, Frozen, Canvases, Int[Array, " own"]], Int[Array, "own label 3"]]:
    """Make a function that counts the voxels of whole cases for one run, without dropout.

    Cases are processed one at a time, with windows in batches, so that a run holds only the sums of one canvas.

    Args:
        model: The network.
        patch: Window size, one voxel along `slice_axis`.
        window_batch: Number of windows that go through the network at once.
        classes: Number of classes of label maps, background included.
        slice_axis: Spatial axis across which a 2-D network sees slices; None for a network of all axes.
        regions: The regions that the network finds; None if it finds the classes.

    Returns:
        `count(params, frozen, canvases, own)`, which gives for each case in `own`, positions on the canvases, and each
        structure the number of voxels in both, in the reference and in the prediction (see `count_overlaps`).
    """
    weight = jnp.asarray(inference.window_weight(patch))[..., None]
    predict = _make_predict(model, slice_axis)

    def count(params: Params, frozen: Frozen, canvases: Canvases, own: Int[Array, " own"]) -> Int[Array, "own label 3"]:
        batch = min(window_batch, canvases.starts.shape[1])
        channels = canvases.images.shape[-1]

        # All batches have the same size. Rows of the last batch that are not windows of the case, or that the batch
        # before already had, are computed and get weight zero.
        def of_case(case: Canvases) -> Int[Array, "label 3"]:
            def add_batch(index: Array, sums: Float[Array, "*canvas classes"]) -> Float[Array, "*canvas classes"]:
                first = jnp.clip(index * batch, 0, len(case.starts) - batch)
                corners = lax.dynamic_slice_in_dim(case.starts, first, batch)
                shown = jax.vmap(lambda at: lax.dynamic_slice(case.images, (*at, 0), (*patch, channels)))(corners)
                found = predict(params, frozen, shown)

                def add(row: Array, sums: Float[Array, "*canvas classes"]) -> Float[Array, "*canvas classes"]:
                    position, corner = first + row, (*corners[row], 0)
                    fresh = (position >= index * batch) & (position < case.windows)
                    part = jnp.where(fresh, weight, 0) * found[row]
                    return lax.dynamic_update_slice(sums, lax.dynamic_slice(sums, corner, part.shape) + part, corner)

                return lax.fori_loop(0, batch, add, sums)

            sums = jnp.zeros((*case.labels.shape, sums_held(classes, regions)), jnp.float32)
            sums = lax.fori_loop(0, -(-case.windows // batch), add_batch, sums)
            counted = count_overlaps(_decide(sums, regions).ravel(), case.labels.ravel(), classes, regions)
            return jnp.stack([jnp.stack(of_label) for of_label in counted]).astype(jnp.int32)

        return lax.map(lambda case: of_case(jax.tree.map(lambda leaf: jnp.asarray(leaf)[case], canvases)), own)

    return count


def make_restoration_errors(
    model: nn.Module, *, group: int
) -> Callable[[Params, Frozen, Batch], Float[Array, " patch"]]:
    """Make a function that measures how well one run restores corrupted patches, without dropout.

    Args:
        model: A network that restores images.
        group: Number of patches that go through the network at once; it divides the number of patches.

    Returns:
        `errors(params, frozen, patches)`: the sum of squared errors of each patch, see `losses.restoration_errors`.
    """

    def errors(params: Params, frozen: Frozen, patches: Batch) -> Float[Array, " patch"]:
        variables = {"params": trees.merge(params, frozen)}

        def of_group(some: Batch) -> Float[Array, " some"]:
            restored: Any = model.apply(variables, some.image, train=False)
            return losses.restoration_errors(restored, some.label)[0]

        groups = jax.tree.map(lambda leaf: leaf.reshape(-1, group, *leaf.shape[1:]), patches)
        return lax.map(of_group, groups).reshape(-1)

    return errors
