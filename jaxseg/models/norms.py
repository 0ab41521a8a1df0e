"""Normalisation of features: none (a bias), instance, group or batch.

Statistics are float32 whatever the dtype of the features, and variances are the biased ones. The running statistics of
batch norms are parameters like others (`running_mean`, `running_variance`), so that transfer, freezing, checkpoints and
evaluation treat them by their path; the difference is that training moves them by the batch and not by a gradient.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.models import conv
from jaxseg.models.layout import Layout
from jaxseg.types import UserError

STATISTICS = "statistics"
"""Name of the collection in which a training pass puts the next running statistics, at the paths of the old."""
MOMENTUM = 0.9
"""Weight of the old running statistics when a batch updates them."""
EPSILON = 1e-5


def normalise(module: nn.Module, layout: Layout, x: jax.Array, bias_init: float) -> jax.Array:
    """Apply the norm of the layout to `x`, or a bias if that is `none`; the parameters belong to the module.

    Raises:
        UserError: A norm would be over a single value, so that it gives the bias whatever the input; or the groups of
            channels are not equal.
    """
    features = x.shape[-1]
    settings = layout.settings
    if settings.norm == "none":
        return add_bias(module, x, bias_init)
    scale = module.param("scale", nn.initializers.ones, (features,))
    bias = module.param("bias", nn.initializers.zeros, (features,))
    if settings.norm != "batch":
        groups = features if settings.norm == "instance" else settings.groups
        _check_groups(groups, features, module)
        _check_count(math.prod(x.shape[1:-1]) * features // groups, module, settings.norm, x)
        if settings.norm == "instance" and conv.resolve_form(layout.form) == "products":
            return instance_norm(x.astype(jnp.float32), scale, bias).astype(x.dtype)
        return group_norm(x, scale, bias, groups)
    mean = module.param("running_mean", nn.initializers.zeros, (features,))
    variance = module.param("running_variance", nn.initializers.ones, (features,))
    if layout.train and not layout.is_frozen(module, "running_mean"):
        _check_count(x.size // features, module, settings.norm, x)
        batch_mean, batch_variance = _moments(x.astype(jnp.float32), tuple(range(x.ndim - 1)))
        if module.is_mutable_collection(STATISTICS):
            for name, old, new in (
                ("running_mean", mean, batch_mean),
                ("running_variance", variance, batch_variance),
            ):
                module.put_variable(STATISTICS, name, MOMENTUM * old + (1 - MOMENTUM) * new.reshape(features))
        mean, variance = batch_mean, batch_variance
    else:
        mean, variance = over_channels(mean, x.ndim), over_channels(variance, x.ndim)
    return _standardise(x.astype(jnp.float32), mean, variance, scale, bias).astype(x.dtype)


def add_bias(module: nn.Module, x: jax.Array, bias_init: float) -> jax.Array:
    """Add a bias per channel, which belongs to the module."""
    bias = module.param("bias", nn.initializers.constant(bias_init), (x.shape[-1],))
    return x + over_channels(bias.astype(x.dtype), x.ndim)


def group_norm(
    x: Float[Array, "batch *spatial channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    groups: int,
) -> Float[Array, "batch *spatial channels"]:
    """Normalise each group of channels of each image to mean 0 and variance 1, then scale and shift every channel.

    Groups consist of consecutive channels. One group is a layer norm; as many groups as channels are an instance norm.

    Sources: Wu and He 2018, arXiv:1803.08494; Ulyanov et al. 2016, arXiv:1607.08022.
    """
    wide = x.astype(jnp.float32)
    if groups == x.shape[-1]:  # no reshape: an instance norm reduces over the spatial axes as they lie
        mean, variance = _moments(wide, tuple(range(1, x.ndim - 1)))
        return _standardise(wide, mean, variance, scale, bias).astype(x.dtype)
    grouped = wide.reshape(*x.shape[:-1], groups, -1)
    mean, variance = _moments(grouped, (*range(1, x.ndim - 1), x.ndim))
    parts = (part.reshape(groups, -1) for part in (scale, bias))
    return _standardise(grouped, mean, variance, *parts).reshape(x.shape).astype(x.dtype)


@jax.custom_vjp
def instance_norm(
    x: Float[Array, "batch *spatial channels"], scale: Float[Array, " channels"], bias: Float[Array, " channels"]
) -> Float[Array, "batch *spatial channels"]:
    """Apply a group norm of as many groups as channels, for CPU: both passes compute means as products.

    XLA's own reductions over all axes but the channels, and the derived gradient with five of them, take two and a half
    times as long there. Like convolutions in the products form, this has no forward-mode derivative.
    """
    return _instance_norm_forward(x, scale, bias)[0]


def _instance_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean = _product_mean(x)
    inverse = lax.rsqrt(_product_mean(jnp.square(x - mean)) + EPSILON)
    y = (x - mean) * (inverse * over_channels(scale, x.ndim)) + over_channels(bias, x.ndim)
    return y, (x, mean, inverse, scale)


def _instance_norm_backward(residuals: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = residuals
    standard = (x - mean) * inverse
    g_mean, slope = _product_mean(g), _product_mean(g * standard)
    d_x = (inverse * over_channels(scale, x.ndim)) * (g - g_mean - standard * slope)
    count = math.prod(x.shape[1:-1])
    axes = tuple(range(x.ndim - 1))
    return d_x, count * slope.sum(axes), count * g_mean.sum(axes)


instance_norm.defvjp(_instance_norm_forward, _instance_norm_backward)


def _product_mean(x: jax.Array) -> jax.Array:
    """Mean over the spatial axes, which stay as ones, as a product with a row of equal weights."""
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    weights = jnp.full(rows.shape[:2], 1 / rows.shape[1], x.dtype)
    mean = lax.dot_general(weights, rows, (((1,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST)
    return mean.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


def over_channels(values: jax.Array, ndim: int) -> jax.Array:
    """Reshape values so that they broadcast along the last axes of an array of `ndim` axes."""
    return lax.expand_dims(values, tuple(range(ndim - values.ndim)))


def _moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axes, keepdims=True)


def _standardise(x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    factor = lax.rsqrt(variance + EPSILON) * over_channels(scale, x.ndim)
    return (x - mean) * factor + over_channels(bias, x.ndim)


def _check_groups(groups: int, features: int, module: nn.Module) -> None:
    # Widths are checked with the settings. The channels of the image are known only here, and vnet's decoder has fewer
    # of its own next to them if the encoder is pooled.
    if features % groups:
        allowed = [number for number in range(1, features + 1) if features % number == 0]
        raise UserError(
            f"model.groups = {groups}: at {'/'.join(module.path)} there are {features} channels, which it does not "
            f"divide; allowed there: {', '.join(map(str, allowed))}. Use model.groups = 1, another model.norm, or, "
            "with a pooled encoder, model.skips = False or another network than vnet"
        )


def _check_count(count: int, module: nn.Module, norm: str, x: jax.Array) -> None:
    if count < 2:
        raise UserError(
            f"model.norm = {norm!r}: at {'/'.join(module.path)} the features are {x.shape[1:-1]} voxels, one value for "
            "each mean, and what is left of it is 0. Use a larger patch, fewer levels (model.widths), smaller "
            "model.strides, or model.norm = 'none'"
        )
