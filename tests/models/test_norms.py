"""Norms against closed forms; what batch statistics a batch norm uses, keeps and leaves alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import norms
from jaxseg.models.layout import Layout
from jaxseg.settings import Compute, ModelSettings
from jaxseg.types import UserError

SETTINGS = ModelSettings(name="unet", ndim=2, widths=(4,), norm="batch", strides=(), kernels=(), skips=True)


def draw(*shape, seed=0):
    return (5 + 3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def closed_form(x, scale, bias, groups):
    """Image by image and group by group."""
    y = np.empty(x.shape)
    size = x.shape[-1] // groups
    for image in range(len(x)):
        for first in range(0, x.shape[-1], size):
            part = np.asarray(x[image, ..., first : first + size], np.float64)
            y[image, ..., first : first + size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return y * np.asarray(scale) + np.asarray(bias)


@pytest.mark.parametrize("shape", [(2, 6, 7, 6), (1, 3, 4, 2, 6)], ids=["2d", "3d"])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm_has_its_closed_form(shape, groups):
    x, scale, bias = draw(*shape), draw(6, seed=1), draw(6, seed=2)
    y = jax.jit(norms.group_norm, static_argnums=3)(x, scale, bias, groups)
    np.testing.assert_allclose(y, closed_form(x, scale, bias, groups), rtol=1e-4, atol=1e-4)
    half = jax.eval_shape(lambda x: norms.group_norm(x.astype(jnp.bfloat16), scale, bias, groups), x)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("groups", "norm"),
    [
        (2, norms.group_norm),
        (1, norms.group_norm),
        (2, lambda x, scale, bias, groups: norms.instance_norm(x, scale, bias)),
    ],
    ids=["instance", "layer", "instance-as-products"],
)
def test_gradients(groups, norm):
    x = draw(2, 3, 3, 2)

    def plain(x, scale, bias):
        axes = (1, 2) if groups == 2 else (1, 2, 3)
        z = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
        return z * scale[None, None, None] + bias[None, None, None]

    def ours(x, scale, bias):
        return norm(x, scale, bias, groups)

    scale, bias = jnp.asarray([1.5, -0.5]), jnp.asarray([0.1, 0.2])
    got, want = (
        jax.jit(jax.grad(lambda *args, f=f: jnp.sum(jnp.sin(f(*args))), (0, 1, 2)))(x, scale, bias)
        for f in (ours, plain)
    )
    for a, b in zip((*got, ours(x, scale, bias)), (*want, plain(x, scale, bias)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


class Normed(nn.Module):
    """A norm alone."""

    layout: Layout

    @nn.compact
    def __call__(self, x):
        return norms.normalise(self, self.layout, x, 0.5)


def apply(x, train, frozen=frozenset(), params=None, **changes):
    """Output and next statistics of a norm."""
    settings = dataclasses.replace(SETTINGS, **changes)
    module = Normed(Layout(settings, 3, "native", frozen, Compute(), train))
    params = module.init(jax.random.key(0), x)["params"] if params is None else params
    y, state = jax.jit(lambda x: module.apply({"params": params}, x, mutable=[norms.STATISTICS]))(x)
    return np.asarray(y), state.get(norms.STATISTICS, {})


PARAMS = {
    "scale": np.asarray([1, 2, 3, 4], np.float32),
    "bias": np.asarray([0, 1, 2, 3], np.float32),
    "running_mean": np.asarray([4, 5, 6, 7], np.float32),
    "running_variance": np.asarray([8, 9, 10, 11], np.float32),
}


def test_batch_norm_trains_on_the_batch_and_keeps_a_tenth_of_it():
    x = draw(2, 3, 5, 4)
    y, kept = apply(x, True, params=PARAMS)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5) * PARAMS["scale"] + PARAMS["bias"], atol=1e-4)
    np.testing.assert_allclose(kept["running_mean"], 0.9 * PARAMS["running_mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(kept["running_variance"], 0.9 * PARAMS["running_variance"] + 0.1 * variance, rtol=1e-5)


@pytest.mark.parametrize(
    ("train", "frozen"), [(False, frozenset()), (True, frozenset({"running_mean"}))], ids=["prediction", "frozen"]
)
def test_batch_norm_predicts_and_is_frozen_with_the_statistics_it_has(train, frozen):
    x = draw(2, 3, 5, 4)
    y, kept = apply(x, train, frozen, PARAMS)
    spread = np.sqrt(PARAMS["running_variance"] + 1e-5)
    np.testing.assert_allclose(
        y, (x - PARAMS["running_mean"]) / spread * PARAMS["scale"] + PARAMS["bias"], rtol=1e-4, atol=1e-4
    )
    assert not kept
    x[1] = 0
    other, _ = apply(x, train, frozen, PARAMS)
    np.testing.assert_array_equal(y[0], other[0])  # an image's features do not depend on the rest of its batch


def test_without_a_norm_there_is_a_bias():
    x = draw(1, 2, 2, 3)
    y, kept = apply(x, True, norm="none")
    np.testing.assert_array_equal(y, x + 0.5)
    assert not kept


@pytest.mark.parametrize(("norm", "groups"), [("instance", 0), ("group", 4), ("batch", 0)])
def test_a_norm_over_one_value_is_refused(norm, groups):
    with pytest.raises(UserError, match=r"model.norm = .* the features are \(1, 1\) voxels"):
        apply(draw(1, 1, 1, 4), True, norm=norm, groups=groups)
