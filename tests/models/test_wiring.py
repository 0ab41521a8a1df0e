"""The wiring of two networks against descriptions written out anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg import trees
from jaxseg.models import make_model
from tests.networks import BASE, draw_params, image_of, native, quick, settings_of, shapes_of


def convolve(params, x, strides=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, params["kernel"], (strides,) * 2, "SAME", dimension_numbers=numbers)
    return y + params["bias"][None, None, None]


def convolve_up(params, x):
    y = lax.conv_transpose(x, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + params["bias"][None, None, None]


def multiscale_fcn(p, image):
    """Three levels, each line as the description has it."""
    relu = jax.nn.relu

    def units(level, h0):
        h1 = relu(convolve(level["conv_1"], relu(convolve(level["conv_0"], h0)))) + h0
        return relu(convolve(level["conv_3"], relu(convolve(level["conv_2"], h1)))) + h1 + h0

    def down(level, name, x):
        return relu(convolve(level[name], x, 2))

    e0, e1, e2 = (p["encoder"][f"level_{i}"] for i in range(3))
    f0 = units(e0, relu(convolve(e0["image_0"], image)))
    f1 = units(e1, jnp.concatenate([down(e1, "image_1", image), down(e1, "from_0_1", f0)], -1))
    image_2 = down(e2, "image_2", down(e2, "image_1", image))
    from_0 = down(e2, "from_0_2", down(e2, "from_0_1", f0))
    f2 = units(e2, jnp.concatenate([image_2, from_0, down(e2, "from_1_2", f1)], -1))
    x = f2
    for i, skip in ((1, f1), (0, f0)):
        level = p["decoder"][f"level_{i}"]
        x = jnp.concatenate([skip, relu(convolve_up(level["up"], x))], -1)
        x = units(level, relu(convolve(level["merge"], x)))
    return convolve(p["head"], x)


def vnet(p, image):
    """Three levels, each line as the description has it."""

    def act(params, x):
        return jnp.where(x > 0, x, params["slope"][None, None, None] * x)

    def stage(level, x, residual, count):
        for i in range(count):
            y = convolve(level[f"conv_{i}"], x)
            x = act(level[f"conv_{i}"], y + residual if i == count - 1 else y)
        return x

    e0, e1, e2 = (p["encoder"][f"level_{i}"] for i in range(3))
    f0 = stage(e0, image, jnp.concatenate([image] * 2, -1), 1)  # one channel, twice
    down = act(e1["down"], convolve(e1["down"], f0, 2))
    f1 = stage(e1, down, down, 2)
    down = act(e2["down"], convolve(e2["down"], f1, 2))
    x = stage(e2, down, down, 3)
    for i, skip, count in ((1, f1, 2), (0, f0, 1)):
        level = p["decoder"][f"level_{i}"]
        x = jnp.concatenate([act(level["up"], convolve_up(level["up"], x)), skip], -1)
        x = stage(level, x, x, count)
    return jnp.einsum("bxyc,cd->bxyd", x, p["head"]["kernel"]) + p["head"]["bias"][None, None, None]


@pytest.mark.parametrize(("name", "reference"), [("multiscale_fcn", multiscale_fcn), ("vnet", vnet)])
def test_the_wiring_is_that_of_the_description(name, reference):
    settings = settings_of(name)
    image = image_of(8, 12)
    params = draw_params(shapes_of(settings, (8, 12)))
    got, want = quick(native(settings).apply)({"params": params}, image), quick(reference)(params, image)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(jnp.abs(want).max()))


def test_multiscale_fcn_starts_at_truncated_normal_weights_and_small_biases():
    model = make_model(dataclasses.replace(BASE, name="multiscale_fcn", widths=(48,)), classes=2)
    params = quick(model.init)(jax.random.key(0), image_of(4, 4))["params"]
    kernel = np.asarray(params["encoder"]["level_0"]["conv_0"]["kernel"])
    sd = np.sqrt(2 / (9 * 48))
    assert np.abs(kernel).max() == pytest.approx(2 * sd, rel=0.01)
    # A normal truncated at two sd keeps 0.8796 of its own.
    assert kernel.std() == pytest.approx(0.8796 * sd, rel=0.02)
    biases = {float(value) for path, leaf in trees.flatten(params).items() if path.endswith("bias") for value in leaf}
    assert biases == {float(np.float32(0.001))}
