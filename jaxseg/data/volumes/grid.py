"""Images of formats other than NIfTI in NIfTI's terms, so that everything behind the readers knows one kind of image.

A reader says what its file's header says (shape, affine in mm, dtype) and gives a function that reads the voxels; the
image that is made of them looks like one that nibabel has opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped

from jaxseg.data.volumes import headers
from jaxseg.data.volumes.headers import BadCaseError

MARK_BYTES = 80
"""Length of the text in a NIfTI header that says who wrote a file."""


class GridImage(nib.Nifti2Image):
    """An image of another format; NIfTI-2 keeps its affine in double precision and any length of its axes."""

    spatial_axes: int = 3
    """Number of spatial axes that the file stores, 2 or 3; channels lie on the fourth axis either way."""
    ending: str = ".nii.gz"
    """Ending of the files to which label maps on its grid are written."""


class UnsizedImage(GridImage):
    """An image whose file gives no voxel size."""

    header_class = headers.UnsizedHeader


class _Voxels:
    """Voxels that are read when an array is made of them, in the form of nibabel's array proxies."""

    is_proxy = True

    def __init__(self, path: str, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[], np.ndarray]):
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)
        self._path, self._read = path, read

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        voxels = self._read()
        if voxels.shape != self.shape:
            raise BadCaseError(f"{self._path} has a header of {self.shape} voxels and holds {voxels.shape}")
        return voxels if dtype is None else voxels.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]


def make_image(
    path: str,
    shape: Sequence[int],
    dtype: np.dtype,
    read: Callable[[], Shaped[np.ndarray, "..."]],
    *,
    affine_mm: Float[np.ndarray, "4 4"] | None,
    ending: str,
    spatial_axes: int = 3,
    sized: bool = True,
    oriented: bool = True,
    mark: str = "",
) -> GridImage:
    """Make an image of what a file's header says.

    Args:
        path: Path of the file, for messages.
        shape: Shape `[x, y]`, `[x, y, z]` or `[x, y, z, channels]`.
        dtype: Type of the voxels.
        read: Reads the voxels, in that shape.
        affine_mm: Affine to right, anterior, superior in mm; None if the file gives no voxel size.
        ending: See `GridImage`.
        spatial_axes: See `GridImage`.
        sized: Whether the lengths of `affine_mm` are those of the file, and not 1 mm because it gives none.
        oriented: Whether the file says, or need not say, which way its axes point.
        mark: Text by which a file that was written here is recognised.

    Raises:
        BadCaseError: Voxel sizes are not positive numbers, or the voxels are no plain numbers.
    """
    kind = np.dtype(np.uint8) if dtype == np.bool_ else np.dtype(np.float32) if dtype == np.float16 else dtype
    if kind.kind not in "iuf":
        raise BadCaseError(f"{path} holds {dtype} voxels; one real number a voxel and channel is needed")
    affine = np.eye(4) if affine_mm is None else np.asarray(affine_mm, dtype=float)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise BadCaseError(f"{path} has voxel sizes {lengths.tolist()} mm; they must be positive")
    kept = tuple(int(n) for n in shape)
    known = sized and affine_mm is not None
    image_class = GridImage if known else UnsizedImage
    header = image_class.header_class()
    header.set_data_dtype(kind)
    header.set_data_shape(kept)
    image = image_class(_Voxels(path, kept, kind, lambda: read().astype(kind, copy=False)), affine, header)
    image.header.set_xyzt_units("mm" if known else "unknown")
    image.header.set_qform(affine, 0, strip_shears=True)  # for the voxel sizes alone
    image.header.set_sform(affine, 1 if oriented else 0)
    image.header["descrip"] = mark.encode("ascii", "replace")[:MARK_BYTES]
    image.ending, image.spatial_axes = ending, spatial_axes
    return image
