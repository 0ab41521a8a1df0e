"""Convolutions mapped over runs: joined kernels against XLA's grouped convolution, and what is asked of XLA."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.models import UNet
from jaxseg.models import conv as convs
from jaxseg.models.conv import joined, xla
from jaxseg.settings import Compute, ModelSettings

OPERATIONS = {
    "conv": lambda x, k, form, **how: convs.conv(x, k, form=form, **how),
    "strided": lambda x, k, form, **how: convs.conv(x, k, strides=(2,) * (x.ndim - 2), form=form, **how),
    "transposed": lambda x, k, form, **how: convs.conv_transpose(x, k, strides=(2,) * (x.ndim - 2), form=form, **how),
    "upsampled": lambda x, k, form, **how: convs.conv_upsampled(x, k, factors=(2,) * (x.ndim - 2), form=form, **how),
}


def draw(runs, ndim, channels, features, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(runs, 2, *(6, 5, 4)[:ndim], channels)), jnp.float32)
    return x, jnp.asarray(rng.normal(size=(runs, *(3,) * ndim, channels, features)), jnp.float32)


def value_and_gradients(operation, form, axes, x, k, **how):
    def one(x, k):
        y, pullback = jax.vjp(lambda x, k: OPERATIONS[operation](x, k, form, **how), x, k)
        return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype) + y)

    return jax.jit(jax.vmap(one, in_axes=axes))(x, k)


def assert_close(got, want, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max() + 1e-6))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("runs", "channels", "features"),
    [(4, 2, 3), (5, 16, 8), (9, 1, 16), (3, 80, 4)],
    ids=["one-group", "filled-up", "image", "too-wide"],
)
def test_joined_runs_equal_runs_of_their_own(operation, ndim, runs, channels, features):
    x, k = draw(runs, ndim, channels, features)
    want = value_and_gradients(operation, "native", (0, 0), x, k)
    assert_close(value_and_gradients(operation, "joined", (0, 0), x, k), want)


@pytest.mark.parametrize("axes", [(0, None), (None, 0)], ids=["shared-kernel", "shared-image"])
def test_what_the_runs_share_has_no_run_axis(axes):
    x, k = (part if axis == 0 else part[0] for part, axis in zip(draw(4, 3, 2, 3), axes, strict=True))
    want = value_and_gradients("conv", "native", axes, x, k)
    assert_close(value_and_gradients("conv", "joined", axes, x, k), want)


def test_unmapped_it_is_the_plain_convolution():
    x, k = (part[0] for part in draw(1, 3, 2, 3))
    np.testing.assert_array_equal(convs.conv(x, k, form="joined"), convs.conv(x, k, form="native"))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("form", ["native", "products", "joined"])
def test_a_run_that_diverges_changes_no_other(form, operation):
    @jax.jit
    @jax.vmap
    def results(x, k, g):
        y, pullback = jax.vjp(lambda x, k: OPERATIONS[operation](x, k, form), x, k)
        return y, *pullback(g * (jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) + y))

    operands = [*map(np.asarray, draw(4, 2, 2, 3)), np.ones(4, np.float32)]
    finite = results(*operands)
    for which, value in itertools.product(range(3), (np.nan, np.inf, 3e38)):
        changed = [operand.copy() for operand in operands]
        changed[which].reshape(4, -1)[1, 0] = value
        diverged = results(*changed)
        for got, want in zip(diverged, finite, strict=True):
            np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(want, 1, 0))
        shown = any(not np.isfinite(part[1]).all() for part in diverged)
        assert shown or np.isfinite(value), "the run itself must show it"


def test_products_of_different_runs_may_overflow():
    x, k = draw(4, 2, 2, 3)
    x = x * jnp.asarray([1e8, 1, 1, 1])[:, None, None, None, None]

    def gradient(x, k, g):
        y, pullback = jax.vjp(lambda k: convs.conv(x, k, form="joined"), k)
        return pullback(jnp.full_like(y, g))[0]

    # Every run's own gradient is finite; the image of run 0 times the gradient of run 1 is not.
    assert np.isfinite(jax.jit(jax.vmap(gradient))(x, k, jnp.asarray([1, 1e32, 1, 1]))).all()


@pytest.mark.parametrize("axes", [(0, None), (None, 0)], ids=["shared-kernel", "shared-image"])
@pytest.mark.parametrize("form", ["native", "products", "joined"])
def test_a_run_that_diverges_changes_no_other_with_what_they_share(form, axes):
    x, k = (part if axis == 0 else part[0] for part, axis in zip(draw(4, 2, 2, 3), axes, strict=True))
    finite = value_and_gradients("conv", form, axes, x, k)
    x, k = (part.at[1].set(jnp.nan) if axis == 0 else part for part, axis in zip((x, k), axes, strict=True))
    for got, want in zip(value_and_gradients("conv", form, axes, x, k), finite, strict=True):
        np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(want, 1, 0))


def group_counts(runs, channels, features, dtype="float32", precision=None):
    """Of all convolutions of a mapped forward and backward pass."""
    x, k = jax.eval_shape(functools.partial(draw, runs, 2, channels, features))
    one = functools.partial(value_and_gradients, "conv", "joined", (0, 0), dtype=dtype, precision=precision)
    found = [eqn.params for eqn in products_of(jax.make_jaxpr(one)(x, k).jaxpr)]
    return [max(params["feature_group_count"], params["batch_group_count"]) for params in found]


@pytest.mark.parametrize(
    ("runs", "channels", "precision", "groups"),
    [(16, 16, "default", 2), (16, 16, "highest", 4), (17, 16, "default", 3), (8, 16, None, 1)],
)
def test_groups_fill_a_tile(runs, channels, precision, groups):
    found = group_counts(runs, channels, channels, precision=precision)
    assert found == [groups] * 3  # the output and both gradients


def test_wide_convolutions_stay_apart():
    found = group_counts(3, 80, 80)
    assert found == [1] * 9


def test_half_precision_sums_in_float32_and_keeps_its_dtype():
    x, k = draw(4, 3, 16, 16)
    half, k_half = x.astype(jnp.bfloat16), k.astype(jnp.bfloat16).astype(jnp.float32)
    want = value_and_gradients("conv", "native", (0, 0), half.astype(jnp.float32), k_half)
    got = value_and_gradients("conv", "joined", (0, 0), half, k)
    assert [part.dtype for part in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    assert_close([part.astype(jnp.float32) for part in got], want, tolerance=1.5e-2)


def test_a_network_of_several_runs_has_the_same_gradients():
    settings = ModelSettings(name="unet", ndim=2, widths=(4, 8), norm="instance", strides=(), kernels=(), skips=True)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 8, 8, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(lambda key, image: UNet(settings, 3).init(key, image)["params"])(keys, images)

    def gradients(form):
        def value(params, image):
            return jnp.square(UNet(settings, 3, form).apply({"params": params}, image)).mean()

        return jax.jit(jax.vmap(jax.grad(value)))

    joined_gradients = gradients("joined")
    finite = joined_gradients(params, images)
    assert_close(finite, gradients("native")(params, images), tolerance=1e-4)
    diverged = joined_gradients(params, images.at[1, 0, 0, 0, 0].set(jnp.nan))
    for got, want in zip(jax.tree.leaves(diverged), jax.tree.leaves(finite), strict=True):
        np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(want, 1, 0))
    # Not in every leaf: the slope of an activation at NaN may be 0.
    assert any(np.isnan(leaf[1]).any() for leaf in jax.tree.leaves(diverged))


@pytest.mark.parametrize(
    ("setting", "precision"), [("float32", "HIGHEST"), ("tf32", "DEFAULT"), ("bfloat16", "DEFAULT")]
)
def test_products_are_asked_for_in_the_precision_of_the_settings(setting, precision):
    settings = ModelSettings(name="unet", ndim=2, widths=(4, 8), norm="none", strides=(), kernels=(), skips=True)
    image = jnp.zeros((1, 8, 8, 1))
    for form in ("native", "joined"):
        model = UNet(settings, 3, form, compute=Compute(precision=setting))
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        jaxpr = jax.make_jaxpr(lambda params, model=model: model.apply({"params": params}, image))(params)
        found = {str(eqn.params["precision"]) for eqn in products_of(jaxpr.jaxpr)}
        assert {name.split(".")[-1].strip("),") for names in found for name in names.split()} == {precision}, form


def products_of(jaxpr):
    """Equations of products and convolutions, those inside of others too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive in (lax.dot_general_p, lax.conv_general_dilated_p):
            yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products_of(inner)


def test_geometries_share_their_operation():
    geometry = xla.Geometry((1, 1), "SAME", (1, 1), None)
    assert joined._operation(geometry) is joined._operation(dataclasses.replace(geometry))
