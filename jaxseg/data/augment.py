"""Augmentation of one patch inside the compiled step. (Thin first version: flips, gamma, brightness, noise.)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxseg.streams import fold_in_name
from jaxseg.types import TaskSettings


def wide_patch(task: TaskSettings) -> tuple[int, ...]:
    """Size of the raw patch that the augmentation needs."""
    return tuple(task.patch)


def make_augment(task: TaskSettings) -> Callable:
    """The second half of sampling: (key, image, label, inside, spacing) -> (image, label)."""
    settings = task.augment

    def transform(key, image, label, inside, spacing):
        for axis in settings.flip:
            flip = jax.random.bernoulli(fold_in_name(key, f"flip {axis}"))
            image, label, inside = (jnp.where(flip, jnp.flip(part, axis), part) for part in (image, label, inside))
        return image, label

    return transform
