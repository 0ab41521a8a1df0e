"""Small networks with numbers of their own, for the tests of what every network promises."""

import dataclasses
import functools
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import trees
from jaxseg.models import MODELS, check_model, make_model
from jaxseg.settings import ModelSettings
from jaxseg.settings.schema import ModelName

BASE = ModelSettings(name="unet", ndim=2, widths=(2, 4, 8), norm="none", strides=(), kernels=(), skips=True)
NAMES = typing.get_args(ModelName)
CLASSES = 3
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For programs without loops that run once and are compared up to rounding: compiled in half the time. It cannot be the
level of all tests: in a loop of steps a flag that is carried along comes out wrong (jaxlib 0.10.2)."""
VARIANTS = {
    "nnunet_residual": {"name": "nnunet", "residual": True, "blocks": (1, 2, 1), "decoder_blocks": (1, 3)},
    "unet_transposed": {"name": "unet", "up": "transposed"},
    "unet_depthwise": {"name": "unet", "up": "depthwise", "decoder_widths": (3, 2), "head": "conv_norm"},
    "unet_norm_first": {"name": "unet", "order": "act_norm_conv", "activation": "leaky_relu"},
}
"""Networks of other names with settings of their own, for three levels or the finest of them."""


def settings_of(name, **changes):
    # Three taps everywhere: fewer to compute than V-Net's own five.
    depth = len(changes.get("widths", BASE.widths))
    kernels = ((3,) * changes.get("ndim", 2),) * depth
    levels = {"blocks": depth, "decoder_blocks": depth - 1, "decoder_widths": depth - 1}
    own = {
        field: value[: levels[field]] if field in levels else value
        for field, value in VARIANTS.get(name, {"name": name}).items()
    }
    return dataclasses.replace(BASE, **{"kernels": kernels} | own | changes)


def native(settings, **more):
    """The network with XLA's convolution, which compiles faster."""
    check_model(settings)
    return MODELS[settings.name](settings, CLASSES, "native", **more)


def image_of(*spatial, batch=2, channels=1):
    return np.random.default_rng(0).normal(size=(batch, *spatial, channels)).astype(np.float32)


def shapes_of(settings, spatial, channels=1, classes=CLASSES):
    image = jax.ShapeDtypeStruct((1, *spatial, channels), jnp.float32)
    return jax.eval_shape(make_model(settings, classes=classes).init, jax.random.key(0), image)["params"]


def draw_params(shapes, seed=0):
    """Numbers of their own for all parameters: small kernels, positive variances."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1])
        values = (
            rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)
            if path.endswith("kernel")
            else rng.normal(size=leaf.shape) * 0.1 + (1 if re.search("scale|variance", path) else 0.2)
        )
        return values.astype(np.float32)

    return trees.map_with_path(draw, shapes)
