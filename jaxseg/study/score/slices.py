"""Draws slices of cases as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8


def example_slice(reference: np.ndarray) -> tuple[Any, ...]:
    """Returns the slice with most foreground, or all of a 2-D case.

    It lies across the last axis, or across the one on which a volume is a single slice: any other cut is a line.
    """
    if reference.ndim == 2:
        return (slice(None), slice(None))
    axis = max((axis for axis, size in enumerate(reference.shape) if size == 1), default=2)
    within = tuple(other for other in range(3) if other != axis)
    return (*[slice(None)] * axis, int(np.argmax((reference > 0).sum(within))), *[slice(None)] * (2 - axis))


def place_of(where: tuple[Any, ...]) -> tuple[int, ...]:
    """Returns the axis and position at which `example_slice` cuts; empty for a 2-D case, which is whole."""
    return next(((axis, at) for axis, at in enumerate(where) if not isinstance(at, slice)), ())


def upright(array: Shaped[np.ndarray, "x y"], ndim: int) -> Shaped[np.ndarray, "rows columns"]:
    """Returns a slice as rows of a picture, which run down.

    The second axis of a canonical volume's slice points to the front or up, which belongs on top; the axes of a 2-D
    image are its columns and rows already.
    """
    return array.T if ndim == 2 else array.T[::-1]


def grey(image: Float[np.ndarray, "x y"]) -> UInt8[np.ndarray, "x y"]:
    """Scales intensities to 0 to 255 between their extreme percentiles."""
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip(255 * (image - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
