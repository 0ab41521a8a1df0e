"""The products form against XLA's convolution: values, gradients, shapes, transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxseg.models import conv as convs
from jaxseg.models.conv import winograd

TOLERANCE = 2e-5  # of the largest value; float32 sums of a few hundred products

OPERATIONS = {
    "conv": lambda x, k, factors, form: convs.conv(x, k, strides=factors, form=form),
    "conv_centred": lambda x, k, factors, form: convs.conv(x, k, strides=factors, form=form, centred=True),
    "conv_transpose": lambda x, k, factors, form: convs.conv_transpose(x, k, strides=factors, form=form),
    "conv_upsampled": lambda x, k, factors, form: convs.conv_upsampled(x, k, factors=factors, form=form),
}


def draw(spatial, taps, batch=2, channels=3, features=4, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(batch, *spatial, channels)), jnp.float32)
    return x, jnp.asarray(rng.normal(size=(*taps, channels, features)), jnp.float32)


def assert_close(got, want, tolerance=TOLERANCE):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max() + 1e-6))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def value_and_gradients(operation, factors, form, x, k):
    y, pullback = jax.vjp(lambda x, k: OPERATIONS[operation](x, k, factors, form), x, k)
    weights = (
        jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
    )  # no symmetry to hide a swap behind
    return y, *pullback(weights)


SHAPES = [
    pytest.param((8, 6, 10), (3, 3, 3), (1, 1, 1), id="3d"),
    pytest.param((8, 8, 8), (3, 3, 3), (2, 2, 2), id="3d-stride-2"),
    pytest.param((5, 6, 4), (1, 3, 3), (1, 2, 2), id="thick-slices"),
    pytest.param((9, 12), (3, 3), (1, 1), id="2d"),
    pytest.param((8, 5, 6), (5, 5, 5), (1, 1, 1), id="3d-five-taps"),
    pytest.param((12, 9), (5, 3), (1, 1), id="2d-five-taps"),
    pytest.param((7, 9), (5, 2), (2, 3), id="2d-odd-sizes-even-taps"),
    pytest.param((2, 3), (3, 3), (1, 1), id="smaller-than-the-kernel"),
    pytest.param((1, 2, 3), (5, 5, 5), (1, 1, 1), id="taps-that-reach-nothing"),
    pytest.param((6, 4, 5), (5, 3, 3), (1, 1, 1), id="few-voxels"),
    pytest.param((10, 12, 4), (3, 5, 3), (1, 1, 1), id="long-middle-axis"),
    pytest.param((3, 9, 10), (3, 1, 3), (1, 1, 1), id="middle-axis-of-one-tap"),
]


@pytest.mark.parametrize("operation", ["conv", "conv_transpose", "conv_upsampled"])
@pytest.mark.parametrize(("spatial", "taps", "factors"), SHAPES)
def test_products_equal_xla(operation, spatial, taps, factors):
    x, k = draw(spatial, taps, channels=8)  # wide enough for blocks
    got = value_and_gradients(operation, factors, "products", x, k)
    assert_close(got, value_and_gradients(operation, factors, "native", x, k))


def test_native_transpose_is_lax_conv_transpose():
    x, k = draw((5, 6), (3, 4))
    want = lax.conv_transpose(x, k, (2, 3), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_close(convs.conv_transpose(x, k, strides=(2, 3), form="native"), want)


def test_a_centred_convolution_reads_around_each_stride():
    x, k = draw((6, 7), (3, 1), channels=2)
    got = value_and_gradients("conv_centred", (2, 3), "products", x, k)
    assert_close(got, value_and_gradients("conv_centred", (2, 3), "native", x, k))
    assert_close(got[0], convs.conv(x, k, form="native")[:, ::2, ::3])


def test_upsampled_is_conv_of_upsampled():
    x, k = draw((3, 4), (3, 3))
    want = convs.conv(jnp.repeat(jnp.repeat(x, 2, 1), 3, 2), k, form="native")
    assert_close(convs.conv_upsampled(x, k, factors=(2, 3), form="native"), want)
    assert_close(convs.conv_upsampled(x, k, factors=(2, 3), form="products"), want)


def test_a_delta_kernel_shifts():
    x, _ = draw((4, 5), (3, 3), channels=1)
    k = jnp.zeros((3, 3, 1, 1)).at[0, 1, 0, 0].set(1.0)  # reads the row above
    want = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    np.testing.assert_allclose(convs.conv(x, k, form="products"), want, atol=1e-6)


@settings(max_examples=4, deadline=None)
@given(
    shape=st.integers(1, 3).flatmap(
        lambda ndim: st.tuples(
            st.tuples(*[st.integers(1, 7)] * ndim),
            st.tuples(*[st.integers(1, 4)] * ndim),
            st.tuples(*[st.integers(1, 3)] * ndim),
        )
    ),
    channels=st.integers(1, 3),
    features=st.integers(1, 3),
)
def test_products_equal_xla_for_any_shape(shape, channels, features):
    spatial, taps, factors = shape
    x, k = draw(spatial, taps, 1, channels, features)
    for operation in OPERATIONS:
        got = value_and_gradients(operation, factors, "products", x, k)
        assert_close(got, value_and_gradients(operation, factors, "native", x, k))


@pytest.mark.parametrize("operation", ["conv", "conv_upsampled"])
def test_gradients_are_the_same_under_every_map(operation):
    factors = (1, 1) if operation == "conv" else (2, 2)
    seeds = [draw((12, 12), (3, 3), channels=8, seed=seed) for seed in range(2)]  # in blocks
    xs, ks = (jnp.stack(part) for part in zip(*seeds, strict=True))
    one = functools.partial(value_and_gradients, operation, factors, "products")
    want = jax.tree.map(lambda *parts: jnp.stack(parts), *[one(x, k) for x, k in seeds])
    assert_close(jax.jit(lambda *args: lax.map(lambda pair: one(*pair), args))(xs, ks), want)
    assert_close(jax.jit(jax.vmap(one))(xs, ks), want)
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("seed")
    sharded = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    assert_close(jax.jit(sharded)(xs, ks), want)


@pytest.mark.parametrize(
    ("spatial", "channels"),
    [((4, 6), 3), ((6, 8), 16), ((12, 12), 16), ((6, 6, 6), 8), ((4, 12, 8), 8)],
    ids=["plain", "few-voxels", "filtered-2d", "filtered-3d", "filtered-3d-scattered"],
)
def test_second_order_reverse(spatial, channels):
    x, k = draw(spatial, (3,) * len(spatial), 1, channels)

    def gradient_norm(k, form):
        def value(k):
            return jnp.sum(jnp.sin(convs.conv(x, k, form=form)))

        return jnp.sum(jnp.square(jax.grad(value)(k)))

    got, want = (jax.grad(functools.partial(gradient_norm, form=form))(k) for form in ("products", "native"))
    assert_close(got, want)


@pytest.mark.parametrize("spatial", [(6, 6, 6), (1, 6, 6)], ids=["filtered", "plain"])
def test_half_precision_keeps_its_dtype_and_sums_in_float32(spatial):
    x, k = draw(spatial, (3, 3, 3), channels=16)
    half, k_half = x.astype(jnp.bfloat16), k.astype(jnp.bfloat16).astype(jnp.float32)
    want = value_and_gradients("conv", (1, 1, 1), "native", half.astype(jnp.float32), k_half)
    got = value_and_gradients("conv", (1, 1, 1), "products", half, k)
    assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    # Results, the cotangent before it is used, and the transformed operands are rounded to 8 bits.
    assert_close([a.astype(jnp.float32) for a in got], want, tolerance=1.2e-2)


def test_operands_alone_may_be_rounded():
    x, k = draw((6, 6, 6), (3, 3, 3), channels=16)
    for operation in (convs.conv, functools.partial(convs.conv_upsampled, factors=(2, 2, 2))):
        exact = operation(x, k, form="products")
        rounded = operation(x, k, form="products", dtype="bfloat16")
        assert rounded.dtype == jnp.float32
        assert_close(rounded, exact, tolerance=1.2e-2)  # XLA may keep more than was asked for
        assert_close(operation(x, k, form="native", dtype="bfloat16"), exact, tolerance=1.2e-2)


def test_form_follows_the_backend(monkeypatch):
    found = {}
    for backend in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        found[backend] = convs.resolve_form("auto")
    assert found == {"cpu": "products", "gpu": "joined", "tpu": "native"}
    with pytest.raises(ValueError, match="allowed are auto, native, products, joined"):
        convs.resolve_form("winograd")


def test_shapes_that_do_not_fit_are_refused():
    x, k = draw((4, 4), (3, 3))
    with pytest.raises(ValueError, match="takes 3, the input has 2"):
        convs.conv(x[..., :2], k)
    with pytest.raises(ValueError, match="2 spatial axes"):
        convs.conv(x, k[0])
    with pytest.raises(ValueError, match="2 spatial axes"):
        convs.conv_upsampled(x, k, factors=(2,))


@pytest.mark.parametrize(("taps", "outputs"), [(3, 1), (3, 2), (3, 4), (5, 1), (5, 2), (5, 4)])
def test_minimal_filtering_is_a_correlation(taps, outputs):
    algorithm = winograd.filtering(taps, outputs)
    rng = np.random.default_rng(0)
    kernel, data = rng.normal(size=taps), rng.normal(size=outputs + taps - 1)
    got = algorithm.back @ ((algorithm.kernel @ kernel) * (algorithm.data @ data))
    np.testing.assert_allclose(got, np.correlate(data, kernel), rtol=1e-5, atol=1e-6)


def test_the_cheapest_filtering_is_chosen():
    assert [winograd.choose_filtering(3, size).outputs for size in (1, 2, 4, 6, 32)] == [1, 2, 4, 2, 4]
    assert [winograd.choose_filtering(5, size).outputs for size in (1, 2, 4, 6, 32)] == [1, 2, 4, 4, 4]
    assert winograd.choose_filtering(1, 32).outputs == 1


def test_tiles_are_put_together_up_to_enough_rows_or_all_of_them():
    assert winograd.block_shape(batch=8, tiles=16, size_b=64, size_c=1, taps_b=3) == (8, 1, 64)
    assert winograd.block_shape(batch=1, tiles=8, size_b=32, size_c=1, taps_b=3) == (1, 8, 32)
    assert winograd.block_shape(batch=2, tiles=16, size_b=64, size_c=1, taps_b=3) == (2, 2, 64)


def test_no_gradient_reaches_taps_that_meet_nothing():
    x, k = draw((2, 2), (5, 5))
    gradient = jax.grad(lambda k: jnp.sum(convs.conv(x, k, form="products") ** 2))(k)
    assert float(jnp.abs(gradient[1:4, 1:4]).min()) > 0
    assert not gradient[jnp.array([0, 4])].any()
    assert not gradient[:, jnp.array([0, 4])].any()


@pytest.mark.parametrize("rows", [1, 12, 40, 60, 150, 10_000])
@pytest.mark.parametrize("spatial", [(8, 8, 6), (8, 12, 6), (16, 12, 1)], ids=["gathered", "scattered", "line"])
def test_blocks_of_any_size_give_the_same(rows, spatial, monkeypatch):
    x, k = draw(spatial, (3, 3, 3), channels=3)
    monkeypatch.setattr(winograd, "ENOUGH", rows)
    want, _ = jax.vjp(lambda k: convs.conv(x, k, form="native"), k)
    monkeypatch.setattr(winograd, "ROWS", rows)
    got, gradient = winograd.sweep(x, k, jnp.ones_like(want))
    assert_close(got, want)
    assert_close(gradient, jax.vjp(lambda k: convs.conv(x, k, form="native"), k)[1](jnp.ones_like(want))[0])
