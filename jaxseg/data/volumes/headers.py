"""Spatial information in NIfTI headers: the affine in mm, the closest canonical axes, and what is doubtful.

nibabel reads the numbers; these functions add what it leaves to its users: lengths in metres or micrometres, an sform
that maps everything to one point, and axes that are equally close to two directions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num


class UnsizedHeader(nib.Nifti2Header):
    """Header of an image whose file gives no voxel size, as a picture: its voxels are taken to be 1 mm long."""


LENGTHS_MM = {
    **{"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4},
    **{"um": 1e-3, "µm": 1e-3, "μm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3},
    **{"micrometers": 1e-3, "nm": 1e-6, "nanometer": 1e-6, "nanometers": 1e-6},
}
"""Units of length as text in files of other formats than NIfTI, in lower case, in mm."""
MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
UNIT_NOTES = {
    "meter": "the header gives lengths in metres; they are converted to mm",
    "micron": "the header gives lengths in micrometres; they are converted to mm",
    "unknown": "the header gives no unit of length; mm is assumed",
    "none": "the file gives no voxel size; 1 mm is assumed (where no size is known, set the task's unit to voxel)",
}
"""Warning that is given once for all cases of a task: it tells of the files' writer and not of a case."""
TIED = 1e-3
"""Direction cosines that differ by less are equally close: half of a tenth of a degree at 45 degrees."""
_PIXDIM = 1e-3
"""Relative difference of pixdim and affine above which they disagree; headers differ by less through rounding."""


class BadCaseError(ValueError):
    """A case cannot be used; the text says why, without the name of the case."""


def length_unit(header: Any) -> str:
    """Return `mm`, `meter`, `micron`, `unknown` (also for codes that NIfTI does not define), or `none`.

    The last is of files that give no voxel size at all.
    """
    if isinstance(header, UnsizedHeader):
        return "none"
    try:
        unit = header.get_xyzt_units()[0]
    except (KeyError, ValueError):
        return "unknown"
    return unit if unit in MM else "unknown"


def unit_mm(header: Any) -> float:
    """Return the length of the header's unit in mm."""
    return MM.get(length_unit(header), 1.0)


def regular(affine: Num[np.ndarray, "4 4"]) -> bool:
    """Return whether an affine keeps three dimensions, whatever its unit of length."""
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths > 0).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6)


def spatial_affine(
    header: Any, where: str, given: Num[np.ndarray, "4 4"] | None = None
) -> tuple[Float[np.ndarray, "4 4"], Any, tuple[str, ...]]:
    """Return the affine to use, in the header's own unit.

    The sform has priority over the qform, as everywhere. Some tools write an sform of zeros beside a valid qform, with
    an sform code that says that it should be used; the qform is then taken.

    Args:
        header: Header of the file.
        where: Name of the file in messages.
        given: Affine of an opened image; the header holds it rounded to single precision.

    Returns:
        The affine, the header with an sform code of 0 where the sform is not to be used, and warnings.

    Raises:
        BadCaseError: There is no affine that keeps three dimensions.
    """
    affine = header.get_best_affine() if given is None else given
    if regular(affine):
        return np.array(affine, dtype=float), header, ()
    if int(header["sform_code"]) > 0:
        mended = header.copy()
        mended.set_sform(None, 0)
        with contextlib.suppress(nib.spatialimages.HeaderDataError, ValueError):
            qform, code = mended.get_qform(coded=True)
            if code > 0 and regular(qform):
                return (
                    np.array(qform, dtype=float),
                    mended,
                    ("the sform maps the volume to nothing; the qform is used",),
                )
    raise BadCaseError(
        f"{where} has an affine that maps the volume to a plane or to nothing: {affine.tolist()} "
        f"(sform code {int(header['sform_code'])}, qform code {int(header['qform_code'])})"
    )


def header_warnings(header: Any) -> tuple[str, ...]:
    """Warn of doubts about a readable header: its orientation, or lengths that are given twice and differ."""
    affine, used, warnings = spatial_affine(header, "the header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    sform_code, qform_code = int(used["sform_code"]), int(used["qform_code"])
    if sform_code == 0 and qform_code == 0:
        warnings += ("the header gives no orientation (sform and qform codes are 0): left and right are a guess",)
    elif sform_code > 0 and qform_code > 0:
        with contextlib.suppress(Exception):
            # A hundredth of a millimetre, or of the smallest voxel where that is shorter.
            allowed = 1e-2 * min(1 / unit_mm(used), float(lengths.min()))
            if not np.allclose(affine, used.get_qform(), rtol=0, atol=allowed):
                warnings += ("sform and qform disagree; the sform is used",)
    stored = np.abs(np.asarray(used["pixdim"][1:4], dtype=float))
    kept = [axis for axis in range(3) if axis < int(used["dim"][0]) and int(used["dim"][axis + 1]) > 1]
    if sform_code > 0 and not np.allclose(stored[kept], lengths[kept], rtol=_PIXDIM, atol=0):
        warnings += (
            f"pixdim gives voxels of {_sizes(stored)} and the sform {_sizes(lengths)}; the sform is used. "
            "Programs that read pixdim take the volume for another size",
        )
    unit = length_unit(used)
    return warnings + ((UNIT_NOTES[unit],) if unit in UNIT_NOTES else ())


def without_unit_notes(warnings: Sequence[str]) -> tuple[str, ...]:
    """Drop the warnings about the unit of length, which a case needs once and not for each of its files."""
    return tuple(text for text in warnings if text not in UNIT_NOTES.values())


def spacing_mm(affine: Float[np.ndarray, "4 4"]) -> tuple[float, ...]:
    """Return the voxel sizes of an affine in mm, without the digits that are rounding errors of single precision."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(float(np.round(length, 6)) if length >= 0.1 else float(f"{length:.6g}") for length in lengths)


def _sizes(lengths: Num[np.ndarray, " axes"]) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def in_mm(affine: Float[np.ndarray, "4 4"], unit: float) -> Float[np.ndarray, "4 4"]:
    """Convert an affine to mm; `unit` is the length of its unit in mm."""
    return np.diag([unit, unit, unit, 1.0]) @ affine


# -------------------------------------------------------------------------------------------------------------- axes


def closest_axes(
    affine: Float[np.ndarray, "4 4"], like: Float[np.ndarray, "4 4"] | None = None
) -> Num[np.ndarray, "3 2"]:
    """Return, for each voxel axis, the output axis that it becomes and its direction (1 or -1), in nibabel's form.

    Without `like`, this is the closest of right, anterior and superior. At 45 degrees two are equally close and
    rounding would decide; therefore the first of the output axes within a twentieth of a degree is taken.

    Args:
        affine: Affine of the array.
        like: Affine of an array on canonical axes that shows the same scene, such as the image of a label map. Its axes
            are then taken. This is safe at any angle, since grids that fit each other are never rotated by 45 degrees
            against each other.
    """
    if like is not None:
        return nib.orientations.io_orientation(np.linalg.solve(like, affine))
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # Use the rotation closest to the directions, which are not orthogonal where there is shear (as nibabel does).
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    closeness, out = np.abs(rotation), np.zeros((3, 2))
    for _ in range(3):  # the surest pair of output and voxel axis first
        axis, chosen = np.argwhere(closeness.max() - closeness.T < TIED)[0]
        out[axis] = chosen, np.sign(rotation[chosen, axis])
        closeness[chosen], closeness[:, axis] = -1.0, -1.0
    return out


def canonical_affine(
    affine: Float[np.ndarray, "4 4"], orientation: Num[np.ndarray, "3 2"], shape: Sequence[int]
) -> Float[np.ndarray, "4 4"]:
    """Return the affine of an array of this shape after its axes were permuted and flipped."""
    return affine @ nib.orientations.inv_ornt_aff(orientation, tuple(shape))
