"""Intensity normalisation, per case or with statistics of the training cases.

| name | result |
| --- | --- |
| `zscore` | (x - mean) / sd over the whole image |
| `zscore_nonzero` | the same over the voxels that are not 0 in the file; the others become 0 (MR without background) |
| `percentile` | 0.5th to 99.5th percentile to 0 .. 1, values beyond clipped |
| `dataset` | clipped to the 0.5th and 99.5th percentile of the training cases' foreground, then their mean and sd |
| `auto` | `dataset` for channels whose modality is CT, else `zscore` |
| `none` | unchanged |

Before the normalisation, a task's `clip` cuts intensities to a fixed range, such as a CT window. All but `dataset` use
one case alone. `dataset` is for CT, whose numbers mean the same in every scan (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z); it is applied when cases are loaded, after the split is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num

LOW, HIGH = 0.5, 99.5
"""Percentiles that bound an intensity window."""

Window = tuple[float, float, float, float]
"""Window of one channel: lower and upper clip, mean, standard deviation."""

Measured = Bool[np.ndarray, " *spatial"] | None
"""The voxels of one channel that are not background; None where all voxels count."""


def add_noise(
    image: Num[np.ndarray, "*spatial channels"], level: float, rng: np.random.Generator
) -> Float[np.ndarray, "*spatial channels"]:
    """Add independent Gaussian noise of `level` times the standard deviation of each channel over the image."""
    deviation = image.std(tuple(range(image.ndim - 1)), dtype=np.float64)
    return (image + level * deviation * rng.standard_normal(image.shape)).astype(np.float32)


def clip(
    image: Float[np.ndarray, "*spatial channels"], limits: Sequence[float]
) -> Float[np.ndarray, "*spatial channels"]:
    """Clip intensities to a range, such as a CT window in Hounsfield units; () leaves them unchanged.

    >>> clip(np.array([-900.0, 30.0, 700.0]), (-160, 240)).tolist()
    [-160.0, 30.0, 240.0]
    """
    return np.clip(image, limits[0], limits[1]) if limits else image


def per_channel(normalization: str, modality: Sequence[str]) -> tuple[str, ...]:
    """Return the normalisation of each channel, with `auto` resolved by the channel's modality."""
    if normalization != "auto":
        return (normalization,) * len(modality)
    return tuple("dataset" if name.strip().upper().startswith("CT") else "zscore" for name in modality)


def measured(image: Float[np.ndarray, "*spatial channels"], names: Sequence[str]) -> tuple[Measured, ...]:
    """Return which voxels of each channel hold a measurement, for `zscore_nonzero`; None for other normalisations.

    A masked background is exactly 0 in the file alone: splines ring into it, and noise and clipping move it.
    """
    return tuple(image[..., place] != 0 if name == "zscore_nonzero" else None for place, name in enumerate(names))


def normalize_case(
    image: Float[np.ndarray, "*spatial channels"], names: Sequence[str], inside: Sequence[Measured]
) -> tuple[Float[np.ndarray, "*spatial channels"], tuple[str, ...]]:
    """Normalise each channel of one case; `dataset` channels are left for `apply_windows`.

    Args:
        image: The image.
        names: Normalisation of each channel.
        inside: `measured` of the image as it was read, on this image's grid.

    Returns:
        The image as float32, and a warning for every channel without contrast.
    """
    out = np.empty(image.shape, dtype=np.float32)
    warnings: list[str] = []
    for channel, (name, mask) in enumerate(zip(names, inside, strict=True)):
        part = image[..., channel]
        if part.min() == part.max():
            warnings.append(f"channel {channel} is constant ({part.flat[0]:g})")
        out[..., channel] = part if name in ("none", "dataset") else _scaled(part, name, mask)
    return out, tuple(warnings)


def _scaled(part: Float[np.ndarray, " *spatial"], name: str, inside: Measured) -> Float[np.ndarray, " *spatial"]:
    values = part.astype(np.float64)  # sums of 1e6 voxels of size 1e6 exceed what float32 resolves
    if name == "percentile":
        low, high = np.percentile(values, (LOW, HIGH))
        return ((np.clip(values, low, high) - low) / _safe(high - low)).astype(np.float32)
    if inside is None:
        return ((values - values.mean()) / _safe(values.std())).astype(np.float32)
    if not inside.any():
        return np.zeros_like(part)
    scaled = (values - values[inside].mean()) / _safe(values[inside].std())
    return np.where(inside, scaled, 0).astype(np.float32)


def _safe(scale: float) -> float:
    return scale if scale > 0 else 1.0


def sample_foreground(
    image: Float[np.ndarray, "*spatial channels"], inside: Bool[np.ndarray, " *spatial"], points: int = 10_000
) -> Float[np.ndarray, "points channels"]:
    """Sample intensities at up to `points` foreground voxels, evenly in memory order; none where there are none.

    Args:
        image: The image.
        inside: The foreground voxels, without those to ignore.
        points: The most voxels to sample.
    """
    places = np.flatnonzero(inside)
    if places.size == 0:
        return np.zeros((0, image.shape[-1]), dtype=np.float32)
    chosen = places[np.linspace(0, places.size - 1, min(points, places.size)).astype(int)]
    return image.reshape(-1, image.shape[-1])[chosen]


def fit_windows(samples: Sequence[Float[np.ndarray, "points channels"]]) -> tuple[Window, ...]:
    """Return window, mean and standard deviation of each channel from the training cases' foreground samples."""
    values = np.concatenate(samples).astype(np.float64)
    windows: list[Window] = []
    for part in values.T:
        low, high = np.percentile(part, (LOW, HIGH))
        clipped = np.clip(part, low, high)
        windows.append((float(low), float(high), float(clipped.mean()), float(_safe(clipped.std()))))
    return tuple(windows)


def apply_windows(
    image: Float[np.ndarray, "*spatial channels"], names: Sequence[str], windows: Sequence[Window]
) -> Float[np.ndarray, "*spatial channels"]:
    """Normalise the `dataset` channels with the windows of the training cases; other channels are unchanged."""
    out = image.astype(np.float32, copy=True)
    for channel, name in enumerate(names):
        if name == "dataset":
            low, high, mean, deviation = windows[channel]
            out[..., channel] = (np.clip(image[..., channel], low, high) - mean) / deviation
    return out
