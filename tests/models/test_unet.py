"""The U-Net: parameter and activation names, shapes, options, and equality of the forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxseg.models import blocks, check_batch, check_patch, layer_names, make_model
from jaxseg.models.unet import UNet
from jaxseg.settings import ModelSettings
from jaxseg.types import UserError
from tests.networks import quick

SETTINGS = ModelSettings(name="unet", ndim=2, widths=(2, 3), norm="instance", strides=(), kernels=(), skips=True)


def image_of(*spatial, batch=2, channels=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *spatial, channels)), jnp.float32)


def params_of(settings, image, classes=3):
    return jax.jit(make_model(settings, classes=classes).init)(jax.random.key(0), image)["params"]


def test_activations_come_after_the_nonlinearity_and_are_those_of_prediction():
    image = image_of(8, 12)
    model = make_model(SETTINGS, classes=3)
    params = params_of(SETTINGS, image)

    @jax.jit
    def run(params, image):
        logits, state = model.apply({"params": params}, image, train=True, mutable=["activations"])
        return logits, state["activations"], model.apply({"params": params}, image)

    logits, activations, plain_logits = run(params, image)
    assert all(float(leaf.min()) == 0 for leaf in jax.tree.leaves(activations))
    np.testing.assert_allclose(logits, plain_logits, rtol=1e-5, atol=1e-5)


def shapes_of(settings):
    return jax.eval_shape(make_model(settings, classes=3).init, jax.random.key(0), image_of(8, 8))["params"]


def test_parameter_names_and_shapes():
    settings = dataclasses.replace(SETTINGS, widths=(2, 3, 4))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(shapes_of(settings), sep="/").items()}
    assert set(shapes) == {
        *(f"{level}/conv_{i}/{leaf}" for level in layer_names(settings) for i in range(2)
          for leaf in ("kernel", "scale", "bias")),
        "head/kernel",
        "head/bias",
    }  # fmt: skip
    assert shapes["encoder/level_0/conv_0/kernel"] == (3, 3, 2, 2)
    assert shapes["decoder/level_1/conv_0/kernel"] == (3, 3, 4 + 3, 3)
    assert shapes["head/kernel"] == (2, 3)
    no_norm = flatten_dict(shapes_of(dataclasses.replace(settings, norm="none")), sep="/")
    assert not any(path.endswith("scale") for path in no_norm)
    no_skips = shapes_of(dataclasses.replace(settings, skips=False))
    assert no_skips["decoder"]["level_1"]["conv_0"]["kernel"].shape == (3, 3, 4, 3)


def test_initial_weights_are_he_normal_and_biases_zero():
    settings = dataclasses.replace(SETTINGS, widths=(32,), norm="none")
    params = params_of(settings, image_of(4, 4))
    kernel = params["encoder"]["level_0"]["conv_1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 32)), rtol=0.03)
    assert not params["encoder"]["level_0"]["conv_1"]["bias"].any()
    assert not params["head"]["bias"].any()


def test_products_network_equals_native_in_3d():
    """In 2-D, and for all networks: test_networks.py."""
    settings = dataclasses.replace(SETTINGS, ndim=3, widths=(2, 3))
    image = image_of(4, 8, 4)
    params = params_of(settings, image)

    @functools.partial(quick, static_argnums=2)
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(params, image, form):
        return jnp.square(UNet(settings, 3, form).apply({"params": params}, image)).mean()

    got, want = (gradients(params, image, form) for form in ("products", "native"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.abs(b).max() + 1e-3))


def test_max_pool():
    x = jnp.arange(24.0).reshape(1, 4, 6, 1)
    np.testing.assert_array_equal(blocks.max_pool(x, (2, 3))[0, ..., 0], [[8, 11], [20, 23]])
    gradient = jax.grad(
        lambda x: (blocks.max_pool(x, (2, 3)) * jnp.asarray([[1.0, 2], [3, 4]])[None, ..., None]).sum()
    )(x)
    want = np.zeros((4, 6))
    want[1, 2], want[1, 5], want[3, 2], want[3, 5] = 1, 2, 3, 4
    np.testing.assert_array_equal(gradient[0, ..., 0], want)


def test_a_batch_norm_over_a_single_value_is_refused():
    settings = ModelSettings(ndim=2, widths=(2, 4, 8), norm="batch")
    check_batch(settings, (4, 4), 2)
    check_batch(settings, (4, 8), 1)
    check_batch(dataclasses.replace(settings, norm="none"), (4, 4), 1)
    with pytest.raises(UserError, match=r"patch \(4, 4\): at the coarsest level a batch of one is a single voxel"):
        check_batch(settings, (4, 4), 1)


def test_check_patch():
    settings = dataclasses.replace(SETTINGS, widths=(2, 3, 4))
    check_patch(settings, (8, 12))
    with pytest.raises(UserError, match=r"\(8, 12\) or \(12, 12\)"):
        check_patch(settings, (10, 12))
    with pytest.raises(UserError, match=r"\(4, 4\)"):
        check_patch(settings, (3, 4))
    with pytest.raises(UserError, match="2 axes, the patch has 3"):
        check_patch(settings, (8, 8, 8))
    check_patch(dataclasses.replace(settings, strides=((2, 1), (2, 1))), (4, 7))


def test_unknown_network():
    with pytest.raises(UserError, match=r"model\.name = 'resnet'; allowed: 'unet', 'multiscale_fcn', 'vnet'"):
        make_model(dataclasses.replace(SETTINGS, name="resnet"), classes=2)
