"""Segmentation metrics on boolean masks, in physical units."""

from jaxseg.metrics.calibration import CalibrationBins, calibration_error, count_bins, expected_calibration_error
from jaxseg.metrics.cases import case_metrics, classes_by_name, members_of
from jaxseg.metrics.lesions import LesionCounts, LesionRule, count_lesions, lesion_scores
from jaxseg.metrics.overlap import (
    Counts,
    bounding_box,
    count_voxels,
    dsc,
    iou,
    mask_status,
    overlap_scores,
    precision,
    recall,
    volume_error,
)
from jaxseg.metrics.surface import SurfaceDistances, assd, hd, hd95, nsd, surface_distances

__all__ = [
    "CalibrationBins",
    "Counts",
    "LesionCounts",
    "LesionRule",
    "SurfaceDistances",
    "assd",
    "bounding_box",
    "calibration_error",
    "case_metrics",
    "classes_by_name",
    "count_bins",
    "count_lesions",
    "count_voxels",
    "dsc",
    "expected_calibration_error",
    "hd",
    "hd95",
    "iou",
    "lesion_scores",
    "mask_status",
    "members_of",
    "nsd",
    "overlap_scores",
    "precision",
    "recall",
    "surface_distances",
    "volume_error",
]
