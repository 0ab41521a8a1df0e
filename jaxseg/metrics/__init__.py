"""Segmentation metrics on boolean masks, in physical units."""

from jaxseg.metrics.cases import case_metrics
from jaxseg.metrics.overlap import (
    Counts,
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
    "Counts",
    "SurfaceDistances",
    "assd",
    "case_metrics",
    "count_voxels",
    "dsc",
    "hd",
    "hd95",
    "iou",
    "mask_status",
    "nsd",
    "overlap_scores",
    "precision",
    "recall",
    "surface_distances",
    "volume_error",
]
