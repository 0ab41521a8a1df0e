"""nnU-Net's networks, and what U-Nets in PyTorch do differently, against NumPy with PyTorch's conventions."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxseg import trees
from jaxseg.models import blocks, check_patch, make_model
from jaxseg.types import UserError
from tests.networks import BASE, draw_params, image_of, native, quick, settings_of, shapes_of


def pairs(size):
    return size if isinstance(size, tuple) else (size, size)


def conv(layer, x, stride=1):
    """`[*spatial, channels]`, padded by (taps - 1) // 2 as in PyTorch."""
    kernel, (a, b) = layer["kernel"], pairs(stride)
    rows, columns = kernel.shape[:2]
    x = np.pad(x, [((n - 1) // 2, n // 2) for n in (rows, columns)] + [(0, 0)])
    height, width = x.shape[0] - rows + 1, x.shape[1] - columns + 1
    taps = itertools.product(range(rows), range(columns))
    return sum(x[i : i + height : a, j : j + width : b] @ kernel[i, j] for i, j in taps)


def norm(layer, x):
    """Instance norm, or batch norm with its running statistics, or a bias."""
    if "scale" not in layer:
        return x + layer["bias"]
    mean, variance = layer.get("running_mean", x.mean((0, 1))), layer.get("running_variance", x.var((0, 1)))
    return (x - mean) / np.sqrt(variance + 1e-5) * layer["scale"] + layer["bias"]


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def up(layer, x, stride):
    """A transposed convolution without padding: tap t adds to output `stride * i + t`, and kernels lie flipped here."""
    a, b = pairs(stride)
    y = np.zeros((a * x.shape[0], b * x.shape[1], layer["kernel"].shape[-1]))
    for i, j in itertools.product(range(a), range(b)):
        y[i::a, j::b] = x @ layer["kernel"][a - 1 - i, b - 1 - j]
    return y + layer["bias"]


def mean_pool(x, stride):
    a, b = pairs(stride)
    return x.reshape(x.shape[0] // a, a, x.shape[1] // b, b, -1).mean((1, 3))


def nnunet(p, image, strides):
    """Three levels of nnU-Net with residual blocks, each line as the description has it."""

    def part(layer, x, stride=1):
        return norm(layer, conv(layer, x, stride))

    def block(layer, x, stride=1):
        y = part(layer["conv_1"], leaky(part(layer["conv_0"], x, stride)))
        x = mean_pool(x, stride)
        return leaky(y + (part(layer["skip"], x) if "skip" in layer else x))

    e0, e1, e2 = (p["encoder"][f"level_{i}"] for i in range(3))
    f0 = block(e0["block_0"], leaky(part(e0["stem"], image)))
    f1 = block(e1["block_1"], block(e1["block_0"], f0, strides[0]))
    x = block(e2["block_0"], f1, strides[1])
    d1, d0 = p["decoder"]["level_1"], p["decoder"]["level_0"]
    x = np.concatenate([up(d1["up"], x, strides[1]), f1], -1)
    x = leaky(part(d1["conv_2"], leaky(part(d1["conv_1"], leaky(part(d1["conv_0"], x))))))
    x = np.concatenate([up(d0["up"], x, strides[0]), f0], -1)
    x = leaky(part(d0["conv_0"], x))
    return x @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("widths", [(2, 4, 8), (3, 4, 4)], ids=["projected", "as wide as the level above"])
def test_the_residual_nnunet_is_that_of_its_description(widths):
    strides = ((1, 2), (2, 2))
    settings = settings_of("nnunet_residual", norm="instance", strides=strides, widths=widths)
    image, params = image_of(6, 12, batch=1), draw_params(shapes_of(settings, (6, 12)))
    got = quick(native(settings).apply)({"params": params}, image)
    assert ("skip" in params["encoder"]["level_2"]["block_0"]) == (widths[1] != widths[2])
    np.testing.assert_allclose(got[0], nnunet(params, image[0], strides), rtol=0, atol=1e-4)


def padded_pool(x):
    """Windows of two that begin at -1, as `MaxPool(2, 2, padding=1)` has them."""
    outputs = [size // 2 + 1 for size in x.shape[:2]]
    y = np.empty((*outputs, x.shape[-1]))
    for i, j in itertools.product(*map(range, outputs)):
        y[i, j] = x[max(2 * i - 1, 0) : 2 * i + 1, max(2 * j - 1, 0) : 2 * j + 1].max((0, 1))
    return y


def depthwise_unet(p, image):
    """Two levels with batch norm and padded pooling."""

    def part(layer, x):
        return np.maximum(norm(layer, conv(layer, x)), 0)

    e0, e1, d0 = p["encoder"]["level_0"], p["encoder"]["level_1"], p["decoder"]["level_0"]
    f0 = part(e0["conv_1"], part(e0["conv_0"], image))
    f1 = part(e1["conv_1"], part(e1["conv_0"], padded_pool(f0)))
    x = np.repeat(np.repeat(f1, 2, 0), 2, 1)
    x = x * np.tile(d0["up"]["kernel"][..., 0, :], (*f1.shape[:2], 1)) + d0["up"]["bias"]
    surplus = [a - b for a, b in zip(x.shape[:2], f0.shape[:2], strict=True)]
    assert sorted(surplus) == [1, 2]  # of an odd size, whose last voxel goes, and of an even one
    x = x[surplus[0] // 2 :, surplus[1] // 2 :][: f0.shape[0], : f0.shape[1]]
    x = part(d0["conv_0"], np.concatenate([x, f0], -1))
    return norm(p["head"]["conv"], conv(p["head"]["conv"], x))


def test_a_unet_with_padded_pooling_and_running_statistics_is_that_of_its_description():
    settings = settings_of(
        "unet_depthwise", widths=(2, 4), norm="batch", pool_padding=(0, 1), decoder_widths=(3,), decoder_blocks=(1,)
    )
    image, params = image_of(7, 10, batch=1), draw_params(shapes_of(settings, (7, 10)))
    got = quick(native(settings).apply)({"params": params}, image)
    np.testing.assert_allclose(got[0], depthwise_unet(params, image[0]), rtol=0, atol=1e-4)


def test_only_axes_with_a_stride_are_padded():
    x = np.arange(24.0, dtype=np.float32).reshape(1, 4, 6, 1)
    np.testing.assert_array_equal(blocks.max_pool(x, (1, 2), (0, 1))[0, :, :, 0], x[0, :, [0, 2, 4, 5], 0].T)
    np.testing.assert_array_equal(blocks.max_pool(x, (2, 2), (1,))[0, :, :, 0], x[0, 1::2, [0, 2, 4, 5], 0].T)


def test_padded_axes_take_any_patch():
    settings = settings_of("unet_depthwise", pool_padding=(1,))
    check_patch(settings, (8, 7))
    with pytest.raises(UserError, match=r"multiple of \(4, 1\).*nearest allowed are \(4, 8\) or \(8, 8\)"):
        check_patch(settings, (7, 8))


@pytest.mark.parametrize(
    ("residual", "blocks_per_level", "original", "without"),
    [(False, (2, 2, 2, 2, 2, 2), 31_195_594, 3_840), (True, (1, 3, 4, 6, 6, 6), 102_349_770, 13_056)],
    ids=["plain", "residual"],
)
def test_nnunet_has_the_parameters_of_the_original(residual, blocks_per_level, original, without):
    """Counted in PyTorch; `without` are biases that norms subtract, and coarser heads have 1,544 more."""
    settings = dataclasses.replace(
        BASE, name="nnunet", ndim=3, widths=(32, 64, 128, 256, 320, 320), norm="instance", residual=residual,
        blocks=blocks_per_level, decoder_blocks=(1,) * 5 if residual else (),
    )  # fmt: skip
    model = make_model(settings, classes=2)
    image = jax.ShapeDtypeStruct((1, 64, 64, 64, 1), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert trees.count(params) == original - without - 1_544
