"""Distances between the surfaces of two masks, in the unit of the spacing.

The surface is the set of a mask's border voxels as in MedPy: the mask minus its erosion by the face-connected element.
Outside the image counts as background, so a mask voxel at the edge of the image is border. Axes of length 1 are dropped
first, since otherwise every voxel of a one-slice volume would be border.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

from jaxseg.metrics.overlap import bounding_box, check_masks
from jaxseg.settings.schema import HdDefinition, SurfaceEmpty
from jaxseg.types import UserError

HD_DEFINITIONS = typing.get_args(HdDefinition)
SURFACE_EMPTY = typing.get_args(SurfaceEmpty)


class SurfaceDistances(NamedTuple):
    """Distances from every border voxel of one mask to the nearest border voxel of the other."""

    pred_to_ref: Float[np.ndarray, " pred_border"]
    ref_to_pred: Float[np.ndarray, " ref_border"]


def check_spacing(spacing_mm: Sequence[float], ndim: int) -> tuple[float, ...]:
    """Return the spacing as floats.

    Raises:
        UserError: There is not exactly one positive finite number per axis.
    """
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise UserError(
            f"metrics: `spacing_mm` must hold one positive number for each of the {ndim} axes, got {spacing_mm!r}."
        )
    return spacing


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless the value is one of those allowed."""
    if value not in allowed:
        raise UserError(f"metrics: `{name}` must be one of {', '.join(allowed)}, got {value!r}.")


def check_tolerance(tolerance_mm: float) -> None:
    """Raise UserError unless the tolerance is finite and not negative."""
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UserError(f"metrics: `tolerance_mm` must be a number of at least 0, got {tolerance_mm!r}.")


def image_diagonal(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the length of the image's diagonal over full voxels, without axes of length 1 (over all axes if all are).

    Voxels count in full (240 x 240 x 155 at 1 mm gives BraTS's 373.13 mm), so no two voxel centres are that far apart.
    """
    sides = [n * s for n, s in zip(shape, spacing_mm, strict=True) if n > 1]
    return math.hypot(*(sides or spacing_mm))


def border(mask: Bool[np.ndarray, "*spatial"]) -> Bool[np.ndarray, "*spatial"]:
    """Mark the voxels of a mask that have a face neighbour outside the mask or outside the array.

    An erosion is the conjunction of shifted masks. Two views and two in-place operations per axis need no structuring
    element and a single copy.

    >>> border(np.ones((3, 3), bool)).astype(int).tolist()
    [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    interior = mask.copy()
    for axis in range(mask.ndim):
        inner, outer = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= outer[:-1]
        inner[:-1] &= outer[1:]
        inner[:1] = False
        inner[-1:] = False
    return mask & ~interior


_PAIR_COST, _TREE_COST, _CROWD_COST, _TRANSFORM_COST = 0.0012, 0.9, 0.04, 0.085
"""Microseconds per pair, search, candidate of a search and voxel, as measured; only their ratios matter."""
_NEAR_RADIUS = {1: 16, 2: 4}
"""Radius in voxels within which near targets are looked up, by number of axes; 2 in 3-D gives about 80 offsets."""
_SAMPLE = 256


def _tree_cost(tree: cKDTree, points: Float[np.ndarray, "points ndim"], spacing: Float[np.ndarray, " ndim"]) -> float:
    """Estimate the cost of searching a tree for each point.

    A search slows down with the number of targets about as near as the nearest one (a ball's centre is as far from all
    of its surface), so a few points are tried first.
    """
    tried = points[:: max(1, len(points) // 32)]
    nearest = tree.query(tried)[0]
    crowd = tree.query_ball_point(tried, nearest + 2 * spacing.max(), return_length=True).mean()
    return len(points) * (_TREE_COST + _CROWD_COST * crowd)


def _nearest_of_all(
    points: Float[np.ndarray, "points ndim"], targets: Float[np.ndarray, "targets ndim"]
) -> Float[np.ndarray, " points"]:
    """Distance of each point to the nearest target by comparing all of them, as products of small matrices.

    The products only tell which target is nearest; its distance is taken anew, free of their cancellation.
    """
    # This is |p - t|^2 without |p|^2, which is the same for all targets. The blocks stay in cache and are too small for
    # the product to start threads of its own, since cases are already scored in threads.
    rows, columns = 128, 512
    left = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    right = np.concatenate([-2 * targets, np.sum(targets**2, axis=1)[:, None]], axis=1)
    least, nearest = np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    for j in range(0, len(targets), columns):
        block = np.ascontiguousarray(right[j : j + columns].T)
        for i in range(0, len(points), rows):
            found = left[i : i + rows] @ block
            which = found.argmin(axis=1)
            values = found[np.arange(len(which)), which]
            better = values < least[i : i + rows]
            least[i : i + rows][better] = values[better]
            nearest[i : i + rows][better] = j + which[better]
    return np.linalg.norm(points - targets[nearest], axis=1)


class _Near(NamedTuple):
    """Offsets to neighbouring voxels, the nearest first: no voxel that is left out is as near as the last of them."""

    flat: Int[np.ndarray, " offsets"]
    distance: Float[np.ndarray, " offsets"]


def _near_offsets(radius: int, shape: Sequence[int], spacing: Float[np.ndarray, " ndim"]) -> _Near:
    steps = np.stack(np.meshgrid(*(np.arange(-radius, radius + 1),) * len(shape), indexing="ij"), -1)
    steps = steps.reshape(-1, len(shape))
    distance = np.linalg.norm(steps * spacing, axis=1)
    order = np.argsort(distance, kind="stable")
    order = order[(distance[order] > 0) & (distance[order] < (radius + 1) * spacing.min())]
    return _Near(steps[order] @ _strides(shape), distance[order])


def _strides(shape: Sequence[int]) -> Int[np.ndarray, " ndim"]:
    return np.cumprod([1, *shape[:0:-1]])[::-1]


def _look_around(
    at: Int[np.ndarray, " points"], targets: Bool[np.ndarray, " voxels"], near: _Near
) -> Float[np.ndarray, " points"]:
    """Distance of each position to the nearest target among the offsets; NaN where there is none."""
    result = np.full(len(at), np.nan)
    left = np.arange(len(at))
    for step, distance in zip(near.flat, near.distance, strict=True):
        hit = targets[at[left] + step]
        result[left[hit]] = distance
        left = left[~hit]
        if not len(left):
            break
    return result


def _directed(
    queries: Bool[np.ndarray, "*box"], targets: Bool[np.ndarray, "*box"], spacing: Float[np.ndarray, " ndim"]
) -> Float[np.ndarray, " queries"]:
    """Distance of each query voxel (C order) to the nearest target voxel.

    Every way is exact, and the cheapest is taken. Where many targets are a voxel or two away the neighbourhood is
    looked through first. For what is left: all pairs when one surface is small, a search tree over the targets when
    surfaces are small beside the box, or a feature transform of the box.
    """
    points = np.argwhere(queries)
    result = np.zeros(len(points))
    left = np.flatnonzero(~targets[queries])  # voxels on both surfaces have distance 0
    radius = _NEAR_RADIUS.get(queries.ndim, 2)
    padded = np.pad(targets, radius)
    near = _near_offsets(radius, padded.shape, spacing)
    at = (points[left] + radius) @ _strides(padded.shape)
    tried = _look_around(at[:: max(1, len(at) // _SAMPLE)], padded.ravel(), near)
    if len(at) and np.isfinite(tried).mean() > 0.1:
        found = _look_around(at, padded.ravel(), near)
        known = np.isfinite(found)
        result[left[known]] = found[known]
        left = left[~known]
    if not len(left):
        return result

    searched, goal = points[left] * spacing, np.argwhere(targets) * spacing
    pairs, transform = len(searched) * len(goal) * _PAIR_COST, queries.size * _TRANSFORM_COST
    cheapest = min(pairs, transform)
    if len(searched) * _TREE_COST < cheapest and len(goal) < queries.size / 10:
        # Midpoint splits without shrunken boxes: median splits are up to 3 times slower if one surface lies far inside
        # the other.
        tree = cKDTree(goal, balanced_tree=False, compact_nodes=False)
        if _tree_cost(tree, searched, spacing) < cheapest:
            result[left] = tree.query(searched)[0]
            return result
    if pairs < transform:
        result[left] = _nearest_of_all(searched, goal)
        return result
    # Only indices are computed, and distances where needed: the transform's own float64 volume costs a third more.
    nearest = ndimage.distance_transform_edt(~targets, sampling=spacing, return_distances=False, return_indices=True)
    result[left] = np.linalg.norm((nearest[:, queries].T[left] - points[left]) * spacing, axis=1)
    return result


def surface_distances(
    pred: Bool[np.ndarray, "*spatial"], ref: Bool[np.ndarray, "*spatial"], *, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Measure the distance of every border voxel of two non-empty masks to the other mask's border.

    The computation is restricted to the bounding box of the union, which is exact: both borders lie in it, and
    everything outside the box is outside both masks, just like everything outside the image.

    Args:
        pred: Predicted mask.
        ref: Reference mask.
        spacing_mm: Voxel size along each axis.

    Raises:
        UserError: A mask is empty or not boolean, or shapes or spacing do not fit.
    """
    check_masks(pred, ref)
    spacing = check_spacing(spacing_mm, pred.ndim)
    kept = [axis for axis, n in enumerate(pred.shape) if n > 1] or [0]
    pred, ref = (mask.reshape([mask.shape[axis] for axis in kept]) for mask in (pred, ref))
    if not (pred.any() and ref.any()):
        raise UserError("metrics: a surface distance needs two masks that both hold a voxel; see `mask_status`.")
    box = bounding_box(pred | ref)
    borders = border(pred[box]), border(ref[box])
    sampling = np.array([spacing[axis] for axis in kept])
    return SurfaceDistances(_directed(borders[0], borders[1], sampling), _directed(borders[1], borders[0], sampling))


def hausdorff(distances: SurfaceDistances, *, percentile: float = 100.0, definition: str = "pooled") -> float:
    """Return the Hausdorff distance, or a percentile of it, from directed surface distances.

    Args:
        distances: Distances of two non-empty masks.
        percentile: 100 for the Hausdorff distance, 95 for HD95; ranks are interpolated linearly.
        definition: `pooled`, the percentile of both directed sets together (MedPy), or `directed`, the larger of the
            two directed percentiles (MONAI). They agree at 100.

    Raises:
        UserError: The definition is unknown.
    """
    check_choice("definition", definition, HD_DEFINITIONS)
    if definition == "pooled":
        return float(np.percentile(np.concatenate(distances), percentile))
    return float(max(np.percentile(directed, percentile) for directed in distances))


def mean_distance(distances: SurfaceDistances) -> float:
    """Return the mean over both directed sets (Heimann et al. 2009, doi:10.1109/TMI.2009.2013851; MedPy's ASSD)."""
    return float(np.concatenate(distances).mean())


def share_within(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Return the share of all border voxels of both masks within a tolerance of the other border, counted in voxels.

    Nikolov et al. 2021 (doi:10.2196/26151) weight surface elements by area; here, as in MONAI, border voxels count
    alike. A distance equal to the tolerance is within it, up to rounding (three steps of 0.1 mm are 0.3 mm).

    Raises:
        UserError: The tolerance is negative or not finite.
    """
    check_tolerance(tolerance_mm)
    return float(np.mean(np.concatenate(distances) <= tolerance_mm * (1 + 1e-9)))


def empty_distance(
    pred: Bool[np.ndarray, "*spatial"],
    ref: Bool[np.ndarray, "*spatial"],
    *,
    spacing_mm: Sequence[float],
    surface_empty: str,
) -> float | None:
    """Return the value that replaces a distance if a mask is empty; None if neither is.

    A missed label (reference only) gets the value that `surface_empty` names: the image's diagonal, NaN or infinity.
    Without a reference there is no surface to measure from, so the value is NaN whether the prediction is empty or not.

    Raises:
        UserError: A mask is not boolean, shapes or spacing do not fit, or `surface_empty` is unknown.
    """
    check_masks(pred, ref)
    spacing = check_spacing(spacing_mm, pred.ndim)
    check_choice("surface_empty", surface_empty, SURFACE_EMPTY)
    if not ref.any():
        return math.nan
    if pred.any():
        return None
    return image_diagonal(pred.shape, spacing) if surface_empty == "diagonal" else float(surface_empty)


def hd95(
    pred: Bool[np.ndarray, "*spatial"],
    ref: Bool[np.ndarray, "*spatial"],
    *,
    spacing_mm: Sequence[float],
    definition: str = "pooled",
    surface_empty: str = "diagonal",
) -> float:
    """Return the 95th percentile of the Hausdorff distance, in the unit of the spacing; see `hausdorff`.

    Args:
        pred: Predicted mask.
        ref: Reference mask.
        spacing_mm: Voxel size along each axis.
        definition: `pooled` or `directed`.
        surface_empty: Value for an empty prediction; see `empty_distance`. An empty reference gives NaN.

    Raises:
        UserError: A mask is not boolean, shapes or spacing do not fit, or an option is unknown.
    """
    check_choice("definition", definition, HD_DEFINITIONS)
    empty = empty_distance(pred, ref, spacing_mm=spacing_mm, surface_empty=surface_empty)
    if empty is not None:
        return empty
    return hausdorff(surface_distances(pred, ref, spacing_mm=spacing_mm), percentile=95.0, definition=definition)


def hd(
    pred: Bool[np.ndarray, "*spatial"],
    ref: Bool[np.ndarray, "*spatial"],
    *,
    spacing_mm: Sequence[float],
    surface_empty: str = "diagonal",
) -> float:
    """Return the Hausdorff distance of the borders, in the unit of the spacing; empty masks and errors as in `hd95`."""
    empty = empty_distance(pred, ref, spacing_mm=spacing_mm, surface_empty=surface_empty)
    return hausdorff(surface_distances(pred, ref, spacing_mm=spacing_mm)) if empty is None else empty


def assd(
    pred: Bool[np.ndarray, "*spatial"],
    ref: Bool[np.ndarray, "*spatial"],
    *,
    spacing_mm: Sequence[float],
    surface_empty: str = "diagonal",
) -> float:
    """Return the average symmetric surface distance (see `mean_distance`); empty masks and errors as in `hd95`."""
    empty = empty_distance(pred, ref, spacing_mm=spacing_mm, surface_empty=surface_empty)
    return mean_distance(surface_distances(pred, ref, spacing_mm=spacing_mm)) if empty is None else empty


def nsd(
    pred: Bool[np.ndarray, "*spatial"],
    ref: Bool[np.ndarray, "*spatial"],
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> float:
    """Return the normalised surface Dice at a tolerance (see `share_within`); 0 if one mask is empty, NaN if both are.

    Raises:
        UserError: A mask is not boolean, shapes or spacing do not fit, or the tolerance is negative.
    """
    check_masks(pred, ref)
    if not (pred.any() and ref.any()):
        check_tolerance(tolerance_mm)
        return 0.0 if pred.any() or ref.any() else math.nan
    return share_within(surface_distances(pred, ref, spacing_mm=spacing_mm), tolerance_mm)
