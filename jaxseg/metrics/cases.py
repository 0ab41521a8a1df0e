"""All metrics of one predicted case: one row per label, with surfaces extracted only once."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from jaxseg.metrics.lesions import COLUMNS as LESION_COLUMNS
from jaxseg.metrics.lesions import LesionRule, count_lesions, lesion_scores
from jaxseg.metrics.overlap import count_voxels, mask_status, overlap_scores
from jaxseg.metrics.surface import (
    HD_DEFINITIONS,
    SURFACE_EMPTY,
    check_choice,
    check_spacing,
    check_tolerance,
    hausdorff,
    image_diagonal,
    mean_distance,
    share_within,
    surface_distances,
)
from jaxseg.settings.task_schema import Unit
from jaxseg.types import UserError

UNITS = typing.get_args(Unit)


def _check_label_map(name: str, label_map: np.ndarray, num_labels: int) -> None:
    if not isinstance(label_map, np.ndarray) or label_map.dtype.kind not in "iub":
        raise UserError(
            f"metrics: `{name}` must be a label map of whole numbers, got "
            f"{label_map.dtype if isinstance(label_map, np.ndarray) else type(label_map).__name__}."
        )
    low, high = (int(label_map.min()), int(label_map.max())) if label_map.size else (0, 0)
    if low < 0 or high > num_labels:
        raise UserError(
            f"metrics: `{name}` holds values from {low} to {high}; with {num_labels} labels they must lie between 0 "
            f"(background) and {num_labels}. Name all labels of the task, or map the values first."
        )


def _on_one_grid(
    pred: np.ndarray, ref: np.ndarray, num_labels: int, ignore_index: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both label maps, checked, without the voxels whose label is unknown."""
    if pred.shape != ref.shape:
        raise UserError(
            f"metrics: prediction and reference must lie on one grid, got shapes {pred.shape} and {ref.shape}. "
            "Resample the prediction to the case's own grid first."
        )
    if ignore_index is not None:
        unknown = ref == ignore_index
        pred, ref = (np.where(unknown, 0, label_map).astype(label_map.dtype) for label_map in (pred, ref))
    _check_label_map("pred_labels", pred, num_labels)
    _check_label_map("ref_labels", ref, num_labels)
    return pred, ref


def _check_options(unit: str, hd_definition: str, surface_empty: str, tolerance_mm: float | None) -> None:
    check_choice("unit", unit, UNITS)
    check_choice("hd_definition", hd_definition, HD_DEFINITIONS)
    check_choice("surface_empty", surface_empty, SURFACE_EMPTY)
    if tolerance_mm is not None:
        check_tolerance(tolerance_mm)


def _row(
    pred: np.ndarray,
    ref: np.ndarray,
    *,
    spacing: tuple[float, ...],
    diagonal: float,
    hd_definition: str,
    surface_empty: str,
    tolerance_mm: float | None,
) -> dict[str, float | str]:
    counts = count_voxels(pred, ref)
    status = mask_status(counts)
    voxel = math.prod(spacing)
    row: dict[str, float | str] = {"status": status, **overlap_scores(counts)}
    row["volume_pred"] = (counts.both + counts.pred_only) * voxel
    row["volume_ref"] = (counts.both + counts.ref_only) * voxel
    if status == "ok":
        distances = surface_distances(pred, ref, spacing_mm=spacing)
        row["hd95"] = hausdorff(distances, percentile=95.0, definition=hd_definition)
        row["hd"] = hausdorff(distances)
        row["assd"] = mean_distance(distances)
        row["nsd"] = math.nan if tolerance_mm is None else share_within(distances, tolerance_mm)
        return row
    missed = diagonal if surface_empty == "diagonal" else float(surface_empty)
    row["hd95"] = row["hd"] = row["assd"] = missed if status == "missed" else math.nan
    row["nsd"] = math.nan if tolerance_mm is None or status == "both_empty" else 0.0
    return row


def _lesions(
    pred: np.ndarray, ref: np.ndarray, name: str, rule: LesionRule | None, spacing: tuple[float, ...]
) -> Mapping[str, float | str]:
    """What is counted of a label's components; nothing where no lesions are asked for."""
    if rule is None:
        return {}
    if name not in rule.names:
        return dict.fromkeys(LESION_COLUMNS, math.nan)
    min_voxels = rule.min_volume / math.prod(spacing)
    return lesion_scores(count_lesions(pred, ref, overlap=rule.overlap, min_voxels=min_voxels))


COLUMNS = (
    *("label", "dsc", "hd95", "assd", "nsd", "unit", "hd_definition", "status"),
    *("iou", "precision", "recall", "hd", "volume_error", "volume_pred", "volume_ref", "tolerance", "region"),
)
"""Keys of a row of `case_metrics`, in the order of cases.csv."""


def classes_by_name(
    labels: Sequence[str],
    unions: Mapping[str, Sequence[str]] | None = None,
    members: Sequence[Sequence[int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return the classes of a label map that everything which is scored is made of, by name.

    Args:
        labels: Names of the labels.
        unions: Unions of labels that are scored as well.
        members: The classes of each label where labels are regions that overlap; None if label i is class i + 1.

    Raises:
        UserError: See `members_of`.
    """
    own = [(index,) for index in range(1, len(labels) + 1)] if members is None else [tuple(part) for part in members]
    of_label = dict(zip(labels, own, strict=True))
    return {
        name: tuple(dict.fromkeys(value for label in group for value in of_label[label]))
        for name, group in members_of(labels, unions or {}).items()
    }


def members_of(labels: Sequence[str], regions: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the labels of everything that is scored, by name: every label by itself, then every region.

    Raises:
        UserError: A region has the name of a label, or a member that is no label.
    """
    members = {name: (name,) for name in labels} | {name: tuple(group) for name, group in regions.items()}
    unknown = {label for group in members.values() for label in group} - set(labels)
    if unknown or len(members) != len(labels) + len(regions):
        raise UserError(
            f"metrics: regions must have names of their own and be made of the labels {tuple(labels)}, got "
            f"{dict(regions)!r}."
        )
    return members


def case_metrics(
    pred_labels: Num[np.ndarray, "*spatial"],
    ref_labels: Num[np.ndarray, "*spatial"],
    *,
    labels: Sequence[str],
    spacing_mm: Sequence[float],
    unit: str,
    hd_definition: str,
    surface_empty: str,
    tolerance_mm: float | None,
    regions: Mapping[str, Sequence[str]] | None = None,
    ignore_index: int | None = None,
    members: Sequence[Sequence[int]] | None = None,
    lesions: LesionRule | None = None,
) -> list[dict[str, float | str]]:
    """Score one predicted label map against its reference, on the case's own grid.

    Args:
        pred_labels: Predicted label map; value i + 1 is `labels[i]` (but see `members`), 0 is background.
        ref_labels: Reference label map on the same grid.
        labels: Names of the labels.
        spacing_mm: Voxel size along each axis.
        unit: `mm`, or `voxel` if the true spacing is unknown: distances and volumes are then in voxels, whatever the
            spacing.
        hd_definition: `pooled` or `directed`; see `surface.hausdorff`.
        surface_empty: Distance of a missed label: `diagonal`, `nan` or `inf`.
        tolerance_mm: Tolerance of NSD, in `unit`; None if the task has none, in which case NSD is NaN.
        regions: Unions of labels to score as well, region name to label names (`{"whole": ("core", "edema")}`).
        ignore_index: Value of reference voxels without a known label, which are left out of both maps; None if unused.
        members: The values that each label is made of, where labels are regions that overlap; None if label i is i + 1.
        lesions: Labels and regions whose components are counted (see `lesions`); None for none.

    Returns:
        One dict per label, then one per region (`region` is true), with the keys `COLUMNS` and, if lesions are counted,
        `lesions.COLUMNS`, which are NaN for other labels. `volume_pred` and
        `volume_ref` are in unit^ndim. `status` is `ok`, `missed`, `spurious` or `both_empty`; undefined values are NaN
        (see `overlap.overlap_scores` and `surface.empty_distance`), and the NSD of a missed or spurious label is 0.

    Raises:
        UserError: A map holds other values than labels, the maps differ in shape, or an option is unknown.
    """
    _check_options(unit, hd_definition, surface_empty, tolerance_mm)
    named = classes_by_name(labels, regions, members)
    pred_labels, ref_labels = _on_one_grid(pred_labels, ref_labels, max(map(max, named.values())), ignore_index)
    spacing = check_spacing(spacing_mm, pred_labels.ndim)
    if unit == "voxel":
        spacing = (1.0,) * len(spacing)
    options: dict[str, Any] = {"hd_definition": hd_definition, "surface_empty": surface_empty}
    options["tolerance_mm"] = tolerance_mm
    rows = []
    for name, values in named.items():
        pred, ref = (m == values[0] if len(values) == 1 else np.isin(m, values) for m in (pred_labels, ref_labels))
        row = _row(pred, ref, spacing=spacing, diagonal=image_diagonal(pred.shape, spacing), **options)
        row |= {"label": name, "unit": unit, "hd_definition": hd_definition, "region": name not in labels}
        row["tolerance"] = math.nan if tolerance_mm is None else float(tolerance_mm)
        rows.append({column: row[column] for column in COLUMNS})
        rows[-1].update(_lesions(pred, ref, name, lesions, spacing))
    return rows
