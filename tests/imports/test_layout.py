"""Layouts of single tensors: against the definition of what PyTorch computes, and there and back."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.imports import layout

SHAPES = {
    "kernel": (5, 4, 1, 2, 3),
    "transposed": (5, 4, 1, 2, 3),
    "depthwise": (5, 1, 1, 2, 3),
    "product": (5, 4, 1, 1, 1),
    "vector": (5,),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("axes", [None, (2, 1, 0), (1, 2, 0)])
def test_what_is_imported_is_exported_as_it_was(kind, axes):
    theirs = np.random.default_rng(0).normal(size=SHAPES[kind]).astype(np.float32)
    ours = layout.to_ours(theirs, kind, axes=axes)
    assert (ours.dtype, ours.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(layout.to_theirs(ours, kind, axes=axes, ndim=3), theirs)


def test_axes_are_put_in_the_order_of_ours():
    theirs = np.zeros((2, 3, 4, 5, 6))
    theirs[1, 2, 3, 0, 1] = 1  # taps z, y, x
    ours = layout.kernel(theirs, axes=(2, 1, 0))
    assert ours.shape == (6, 5, 4, 3, 2)
    assert ours[1, 0, 3, 2, 1] == 1


def test_a_transposed_kernel_adds_its_taps_where_pytorch_does():
    rng = np.random.default_rng(0)
    x, theirs = rng.normal(size=(3, 4, 2)), rng.normal(size=(2, 5, 2, 3))  # [in, out, *taps], strides (2, 3)
    want = np.zeros((6, 12, 5))
    for i, j, a, b in itertools.product(range(3), range(4), range(2), range(3)):
        want[2 * i + a, 3 * j + b] += x[i, j] @ theirs[:, :, a, b]
    ours = jnp.asarray(layout.to_ours(theirs, "transposed"))
    image = jnp.asarray(x, jnp.float32)[None]
    got = lax.conv_transpose(image, ours, (2, 3), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_the_product_of_a_head_needs_the_number_of_axes_to_go_back():
    with pytest.raises(ValueError, match="as ndim"):
        layout.to_theirs(np.zeros((4, 5), np.float32), "product")
