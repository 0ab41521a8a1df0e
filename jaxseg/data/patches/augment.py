"""Intensity augmentation inside the compiled step; each change is drawn per patch with its own probability.

The changes are applied in this order. Strengths are relative to the patch itself (mean, standard deviation and range
over the voxels inside the case, per channel), so that they mean the same after every normalisation:

| setting | what happens |
| --- | --- |
| `gamma` | the range is mapped through x^g, g in 0.7 .. 1.5 (even on the log scale); mean and deviation are kept |
| `contrast` | deviations from the mean times 0.75 .. 1.25 |
| `brightness` | a shift of up to 0.3 deviations |
| `blur` | a Gaussian of 0.5 .. 1.25 voxels |
| `low_resolution` | voxels 1 .. 2 times as large, interpolated back |
| `noise` | white Gaussian noise of up to 0.3 deviations |

Voxels outside the case stay 0. Labels are not changed here; flips, turns and affine maps are in `spatial.py`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxseg.settings import AugmentSettings
from jaxseg.streams import fold_in_name

GAMMA = (0.7, 1.5)
CONTRAST = (0.75, 1.25)
BRIGHTNESS = 0.3
BLUR = (0.5, 1.25)
LOW_RESOLUTION = 2.0
NOISE = 0.3

Image = Float[Array, "*patch channels"]
Inside = Bool[Array, " *patch"]


def augment_intensity(key: Key[Array, ""], image: Image, inside: Inside, settings: AugmentSettings) -> Image:
    """Apply the intensity changes that are switched on to one patch.

    Args:
        key: Key of the patch.
        image: Image of the patch.
        inside: Mask of the voxels inside the case.
        settings: Probabilities; 0 leaves a change out of the compiled program.
    """
    mask = inside[..., None]
    # Every number has a fixed place, so that switching a change on or off does not alter the draws of the others.
    names = ("gamma", "contrast", "brightness", "blur", "low_resolution", "noise")
    numbers = jax.random.uniform(fold_in_name(key, "strength"), (len(names), 1 + image.shape[-1]))

    def draw(name: str, low: float, high: float, otherwise: float) -> Float[Array, " channels"]:
        """Strengths for each channel with the setting's probability (decided once), else what changes nothing."""
        row = numbers[names.index(name)]
        return jnp.where(row[0] < getattr(settings, name), low + (high - low) * row[1:], otherwise)

    if settings.gamma > 0:
        image = _gamma(image, mask, jnp.exp(draw("gamma", math.log(GAMMA[0]), math.log(GAMMA[1]), 0.0)))
    if settings.contrast > 0 or settings.brightness > 0:
        mean, deviation = _moments(image, mask)
        factor = draw("contrast", *CONTRAST, 1.0)
        shift = draw("brightness", -BRIGHTNESS, BRIGHTNESS, 0.0)
        # This is written as a change of the image, so that factor 1 and shift 0 leave it unchanged bit for bit.
        image = image + _spread(factor - 1.0, image) * (image - mean) + _spread(shift, image) * deviation
    if settings.blur > 0 or settings.low_resolution > 0:
        sigma, coarse = draw("blur", *BLUR, 0.0)[0], draw("low_resolution", 1.0, LOW_RESOLUTION, 1.0)[0]
        filtered = image
        for axis in range(image.ndim - 1):
            filtered = _along(filtered, _resolution_matrix(image.shape[axis], sigma, coarse), axis)
        image = jnp.where((sigma > 0) | (coarse > 1), filtered, image)
    if settings.noise > 0:
        _, deviation = _moments(image, mask)
        level = _spread(draw("noise", 0.0, NOISE, 0.0), image)
        image = image + level * deviation * jax.random.normal(fold_in_name(key, "noise"), image.shape)
    return jnp.where(mask, image, 0.0)


def _spread(values: Float[Array, " channels"], image: Image) -> Float[Array, "*ones channels"]:
    return values.reshape((1,) * (image.ndim - 1) + values.shape)


def _moments(
    image: Image, mask: Bool[Array, "*patch 1"]
) -> tuple[Float[Array, "*ones channels"], Float[Array, "*ones channels"]]:
    """Mean and standard deviation of each channel over the mask; (0, 0) where it is empty."""
    axes = tuple(range(image.ndim - 1))
    count = jnp.maximum(mask.sum(axis=axes, keepdims=True), 1).astype(image.dtype)
    mean = jnp.where(mask, image, 0.0).sum(axis=axes, keepdims=True) / count
    variance = jnp.where(mask, (image - mean) ** 2, 0.0).sum(axis=axes, keepdims=True) / count
    return mean, jnp.sqrt(variance)


def _gamma(image: Image, mask: Bool[Array, "*patch 1"], exponent: Float[Array, " channels"]) -> Image:
    axes = tuple(range(image.ndim - 1))
    low = jnp.where(mask, image, jnp.inf).min(axis=axes, keepdims=True)
    high = jnp.where(mask, image, -jnp.inf).max(axis=axes, keepdims=True)
    extent = jnp.where(high > low, high - low, 1.0)
    bent = jnp.clip((image - low) / extent, 1e-6, 1.0) ** _spread(exponent, image)
    mean, deviation = _moments(image, mask)
    bent_mean, bent_deviation = _moments(bent, mask)
    result = (bent - bent_mean) / jnp.where(bent_deviation > 0, bent_deviation, 1.0) * deviation + mean
    unchanged = _spread(exponent, image) == 1.0
    return jnp.where(unchanged | (high <= low), image, result)


def _resolution_matrix(size: int, sigma: Float[Array, ""], coarse: Float[Array, ""]) -> Float[Array, "size size"]:
    """Blur by a Gaussian, then keep one voxel of every `coarse` and interpolate back, along one axis.

    Borders are repeated by giving the weights inside a sum of 1. With sigma 0 and coarse 1 it is the identity.
    """
    place = jnp.arange(size, dtype=jnp.float32)
    apart = place[:, None] - place[None, :]
    gauss = jnp.exp(-0.5 * (apart / jnp.where(sigma > 0, sigma, 1.0)) ** 2)
    blur = jnp.where(sigma > 0, gauss / gauss.sum(axis=1, keepdims=True), jnp.eye(size))

    kept = jnp.maximum(jnp.round(size / coarse), 1.0)
    centre = jnp.clip((place + 0.5) * kept / size - 0.5, 0.0, kept - 1.0)
    low = jnp.floor(centre)
    share = centre - low
    source = [jnp.floor((index + 0.5) * size / kept) for index in (low, jnp.minimum(low + 1.0, kept - 1.0))]
    picks = [(part[:, None] == place[None, :]).astype(jnp.float32) for part in source]
    lowered = picks[0] * (1.0 - share)[:, None] + picks[1] * share[:, None]
    return jnp.matmul(lowered, blur, precision=jax.lax.Precision.HIGHEST)


def _along(image: Image, matrix: Float[Array, "size size"], axis: int) -> Image:
    moved = jnp.tensordot(matrix, image, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(moved, 0, axis)
