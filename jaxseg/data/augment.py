"""Changes of a patch's intensities inside the compiled step; each drawn per patch with a probability of its own.

In this order, with strengths in units of the patch itself (mean, deviation and range over the voxels inside the case,
per channel), so that they mean the same after every normalisation:

| setting | what happens |
| --- | --- |
| `gamma` | the range is mapped through x^g, g in 0.7 .. 1.5 (even on the log scale); mean and deviation are kept |
| `contrast` | deviations from the mean times 0.75 .. 1.25 |
| `brightness` | a shift of up to 0.3 deviations |
| `blur` | a Gaussian of 0.5 .. 1.25 voxels |
| `low_resolution` | voxels 1 .. 2 times as large, interpolated back |
| `noise` | white Gaussian noise of up to 0.3 deviations |

Voxels outside the case stay 0. Labels are not touched here; flips, turns and affine maps are in `spatial.py`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxseg.streams import fold_in_name
from jaxseg.types import AugmentSettings

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
        key: of the patch.
        image: the patch.
        inside: where it lies inside its case.
        settings: probabilities; 0 leaves a change out of the compiled program.
    """
    channels = image.shape[-1]
    mask = inside[..., None]
    if settings.gamma > 0:
        limits = (math.log(GAMMA[0]), math.log(GAMMA[1]))
        exponent = jnp.exp(_draw(key, "gamma", settings.gamma, (channels,), limits, 0.0))
        image = _gamma(image, mask, exponent)
    if settings.contrast > 0 or settings.brightness > 0:
        mean, deviation = _moments(image, mask)
        factor = _draw(key, "contrast", settings.contrast, (channels,), CONTRAST, 1.0)
        shift = _draw(key, "brightness", settings.brightness, (channels,), (-BRIGHTNESS, BRIGHTNESS), 0.0)
        # Written as a change of the image: factor 1 and shift 0 leave it as it is, bit for bit.
        image = image + _spread(factor - 1.0, image) * (image - mean) + _spread(shift, image) * deviation
    if settings.blur > 0 or settings.low_resolution > 0:
        sigma = _draw(key, "blur", settings.blur, (), BLUR, 0.0)
        coarse = _draw(key, "low_resolution", settings.low_resolution, (), (1.0, LOW_RESOLUTION), 1.0)
        for axis in range(image.ndim - 1):
            image = _along(image, _resolution_matrix(image.shape[axis], sigma, coarse), axis)
    if settings.noise > 0:
        _, deviation = _moments(image, mask)
        level = _draw(key, "noise", settings.noise, (), (0.0, NOISE), 0.0)
        image = image + level * deviation * jax.random.normal(fold_in_name(key, "noise values"), image.shape)
    return jnp.where(mask, image, 0.0)


def _draw(
    key: Key[Array, ""],
    name: str,
    probability: float,
    shape: tuple[int, ...],
    limits: tuple[float, float],
    otherwise: float,
) -> Float[Array, " *shape"]:
    """Uniform numbers with the given probability (one decision a patch), otherwise the value that changes nothing."""
    happens = jax.random.bernoulli(fold_in_name(key, f"{name}?"), probability)
    values = jax.random.uniform(fold_in_name(key, name), shape, minval=limits[0], maxval=limits[1])
    return jnp.where(happens, values, otherwise)


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
