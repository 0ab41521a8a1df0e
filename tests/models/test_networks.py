"""What every network promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import trees
from jaxseg.models import MODELS, blocks, check_patch, layer_names, make_model, norms
from jaxseg.settings import Compute
from jaxseg.types import UserError
from tests.networks import BASE, CLASSES, NAMES, VARIANTS, draw_params, image_of, native, quick, settings_of, shapes_of

# ----------------------------------------------------------------------------------------------- parameters and shapes


def test_multiscale_fcn_has_the_published_number_of_parameters():
    settings = dataclasses.replace(BASE, name="multiscale_fcn", ndim=3, widths=(14, 28, 56, 112))
    params = shapes_of(settings, (16, 16, 16), classes=2)
    assert {part: trees.count(tree) for part, tree in params.items()} == {
        "encoder": 1_997_758, "decoder": 2_657_704, "head": 1_514
    }  # fmt: skip
    convolutions = {
        part: sum(path.endswith("/kernel") for path in trees.flatten(tree)) for part, tree in params.items()
    }
    assert (convolutions["encoder"], convolutions["decoder"]) == (33, 18)


def test_vnet_has_the_parameters_of_its_description():
    settings = dataclasses.replace(BASE, name="vnet", ndim=3, widths=(16, 32, 64, 128, 256))
    params = shapes_of(settings, (32, 32, 32), classes=2)

    def count(taps, channels, features):
        return taps * channels * features + 2 * features  # with a bias and a slope a channel

    encoder = count(125, 1, 16)
    for width, number in ((32, 2), (64, 3), (128, 3), (256, 3)):
        encoder += count(8, width // 2, width) + number * count(125, width, width)
    decoder, below = 0, 256
    for width, number in ((128, 3), (64, 3), (32, 2), (16, 1)):
        decoder += count(8, below, width) + number * count(125, 2 * width, 2 * width)
        below = 2 * width
    assert trees.count(params["encoder"]) == encoder == 32_865_968
    assert trees.count(params["decoder"]) == decoder == 32_309_280
    assert trees.count(params["head"]) == 32 * 2 + 2


OPTIONS = {
    "plain": {},
    "3d": {"ndim": 3},
    "two-channels": {},
    "one-level": {"widths": (4,)},
    "two-levels": {"widths": (2, 4)},
    "four-levels": {"widths": (2, 4, 8, 16)},
    "instance": {"norm": "instance"},
    "group": {"norm": "group", "groups": 2},
    "batch": {"norm": "batch"},
    "no-skips": {"skips": False},
    "pooled": {"encoder": "pooled"},
    "pooled-without-skips": {"encoder": "pooled", "skips": False},
    "dropout": {"dropout": 0.2},
    "own-kernels": {"kernels": ()},
    "thick-slices": {
        "ndim": 3,
        "strides": ((2, 2, 1), (2, 2, 2)),
        "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    },
}
COMPUTE = {"bfloat16": Compute(precision="bfloat16"), "remat": Compute(remat=True)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", [*OPTIONS, *COMPUTE])
def test_every_option_gives_logits_and_the_named_activations(name, option):
    settings = settings_of(name, **OPTIONS.get(option, {}))
    channels = 2 if option == "two-channels" else 1
    spatial = {"3d": (8, 16, 8), "thick-slices": (64, 64, 8)}.get(option, (8, 16))
    model = make_model(settings, COMPUTE.get(option, Compute()), classes=CLASSES)

    def run(image):
        params = model.init(jax.random.key(0), image)["params"]
        rngs = {"dropout": jax.random.key(1)}
        collections = ["activations", norms.STATISTICS]
        return params, model.apply({"params": params}, image, train=True, rngs=rngs, mutable=collections)

    params, (logits, state) = jax.eval_shape(run, jax.ShapeDtypeStruct((2, *spatial, channels), jnp.float32))
    assert (logits.shape, logits.dtype) == ((2, *spatial, CLASSES), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    parts = {"encoder": settings.encoder == "learned", "decoder": len(settings.widths) > 1, "head": True}
    assert set(params) == {part for part, there in parts.items() if there}
    activations = trees.flatten(state["activations"])
    assert set(activations) == set(layer_names(settings))
    scale = np.ones(len(spatial), int)
    for i, strides in enumerate((None, *(settings.strides or ((2,) * settings.ndim,) * 9)[: len(settings.widths) - 1])):
        scale = scale if strides is None else scale * strides
        for part in ("encoder", "decoder"):
            if f"{part}/level_{i}" in activations:
                found = activations[f"{part}/level_{i}"]
                assert found.shape[1:-1] == tuple(np.asarray(spatial) // scale)
    kept = {path for path in trees.flatten(params) if trees.is_statistic(path)}
    assert set(trees.flatten(state.get(norms.STATISTICS, {}))) == kept
    assert bool(kept) == (option == "batch")


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_every_parameter_gets_a_gradient(name):
    model = native(settings_of(name, norm="batch", widths=(2, 4)))
    image = image_of(8, 8)
    params = draw_params(jax.eval_shape(model.init, jax.random.key(0), image)["params"])

    @quick
    @jax.grad
    def gradient(params):
        logits, _ = model.apply({"params": params}, image, train=True, mutable=[norms.STATISTICS])
        return jnp.square(jax.nn.softmax(logits)[..., 0]).mean()

    for path, leaf in trees.flatten(gradient(params)).items():
        assert bool(np.any(leaf)) != trees.is_statistic(path), path  # batches set statistics, gradients do not


@pytest.mark.parametrize("name", NAMES)
def test_remat_and_products_change_neither_values_nor_gradients(name):
    settings = settings_of(name, dropout=0.2, norm="batch", widths=(2, 4))
    image = image_of(4, 8)
    params = draw_params(shapes_of(settings, (4, 8)))

    def value(params, image, remat, form):
        model = MODELS[name](settings, CLASSES, form, compute=Compute(remat=remat))
        rngs = {"dropout": jax.random.key(1)}
        logits, state = model.apply({"params": params}, image, train=True, rngs=rngs, mutable=[norms.STATISTICS])
        return jnp.square(logits).mean(), state

    run = quick(jax.value_and_grad(value, (0, 1), has_aux=True), static_argnums=(2, 3))
    plain, other = run(params, image, False, "native"), run(params, image, True, "products")
    assert jax.tree.leaves(plain[0][1])
    assert jax.tree.structure(other) == jax.tree.structure(plain)
    for path, leaf in trees.flatten(other).items():
        want = np.asarray(trees.flatten(plain)[path])
        np.testing.assert_allclose(leaf, want, rtol=0, atol=3e-5 * (np.abs(want).max() + 1e-2), err_msg=path)
    recomputed = str(jax.make_jaxpr(functools.partial(value, remat=True, form="native"))(params, image))
    assert "remat" in recomputed


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_float32_up_to_rounding(name):
    image = image_of(8, 8)
    params = draw_params(shapes_of(settings_of(name), (8, 8)))
    half, full = (
        quick(native(settings_of(name), compute=Compute(precision=precision)).apply)({"params": params}, image)
        for precision in ("bfloat16", "float32")
    )
    assert half.dtype == jnp.float32
    scale = float(jnp.abs(full).max())
    assert 1e-5 * scale < float(jnp.abs(half - full).max()) < 5e-2 * scale


# ------------------------------------------------------------------------------------------------------- equivariance


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_an_image_s_logits_do_not_depend_on_its_batch_and_axes_are_alike(name):
    settings = settings_of(name, norm="instance", strides=((1, 2), (2, 2)), kernels=((1, 3), (3, 3), (3, 2)))
    turned = dataclasses.replace(settings, strides=((2, 1), (2, 2)), kernels=((3, 1), (3, 3), (2, 3)))
    image = image_of(6, 8)
    params = draw_params(shapes_of(settings, (6, 8)))
    logits = quick(native(settings).apply)({"params": params}, image)
    other = jnp.asarray(image).at[1].set(1.0)
    np.testing.assert_allclose(quick(native(settings).apply)({"params": params}, other)[0], logits[0], atol=1e-5)
    swapped = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf, params)
    across = quick(native(turned).apply)({"params": swapped}, image.swapaxes(1, 2))
    np.testing.assert_allclose(across.swapaxes(1, 2), logits, atol=1e-4 * float(jnp.abs(logits).max()))


# -------------------------------------------------------------------------------------------------- encoder and skips


@pytest.mark.parametrize("name", [*NAMES, "unet_depthwise"])
@pytest.mark.parametrize("skips", [True, False])
def test_features_reach_the_decoder_through_skips_where_there_are_any(name, skips):
    settings = settings_of(name, skips=skips)
    model, image = native(settings), image_of(8, 8)
    params = draw_params(shapes_of(settings, (8, 8)))
    features = quick(functools.partial(model.apply, method="encode"))({"params": params}, image)

    @quick
    @jax.grad
    def gradient(features):
        return model.apply({"params": params}, features, method="decode").sum()

    reached = [bool(jnp.any(part)) for part in gradient(features)]
    assert reached == [skips, skips, True]
    whole = quick(model.apply)({"params": params}, image)
    parts = quick(functools.partial(model.apply, method="decode"))({"params": params}, features)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_pooled_encoder_is_the_block_means_of_the_image(name):
    settings = settings_of(name, encoder="pooled", strides=((2, 1), (2, 2)))
    image = image_of(8, 4)
    model = native(settings)
    params = draw_params(shapes_of(settings, (8, 4)))
    levels = model.apply({"params": params}, image, method="encode")
    np.testing.assert_array_equal(levels[0], image)
    np.testing.assert_allclose(levels[1], image.reshape(2, 4, 2, 4, 1).mean(2), rtol=1e-6)
    np.testing.assert_allclose(levels[2][0, 1, 0, 0], image[0, 4:8, :2].mean(), rtol=1e-5)


def test_groups_that_do_not_divide_the_channels_next_to_a_pooled_encoder_are_refused():
    # Twice the width at the finest level, 8, less the channel of the image.
    settings = settings_of("vnet", encoder="pooled", widths=(4, 8), norm="group", groups=2)
    with pytest.raises(UserError, match=r"model.groups = 2: at decoder/level_0/up there are 7 channels.*: 1, 7\. Use"):
        shapes_of(settings, (8, 8))
    shapes_of(settings, (8, 8), channels=2)
    for changes in ({"groups": 1}, {"skips": False}, {"norm": "instance", "groups": 0}):
        shapes_of(dataclasses.replace(settings, **changes), (8, 8))


def count_convolutions(name, frozen):
    """Convolutions in the program of one gradient, the encoder frozen or not."""
    settings = settings_of(name, dropout=0.1)
    image = image_of(8, 8)
    params = shapes_of(settings, (8, 8))
    fixed = {"encoder": params["encoder"]} if frozen else {}
    model = native(settings, frozen=frozenset(trees.flatten(fixed)))

    def value(trained, fixed, key):
        variables = {"params": trees.merge(trained, fixed)}
        return model.apply(variables, image, train=True, rngs={"dropout": key}).sum()

    trained = {part: tree for part, tree in params.items() if part not in fixed}
    program = jax.make_jaxpr(jax.grad(value))(trained, fixed, jax.random.key(0))
    return str(program).count("conv_general_dilated["), params


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_differentiated_below_a_frozen_encoder(name):
    (full, params), (part, _) = count_convolutions(name, False), count_convolutions(name, True)
    kernels = [path for path in trees.flatten(params) if path.endswith("/kernel") and path.startswith("encoder")]
    # Each trained convolution has a gradient in its kernel and one in its input, unless it reads the image; so has
    # the decoder, to which a trained encoder's features are inputs.
    of_image = {"unet": 1, "vnet": 1, "multiscale_fcn": 3, "nnunet": 1}[name]
    reads_features = {"unet": 3, "vnet": 1, "multiscale_fcn": 1, "nnunet": 1}[name]
    assert full - part == 2 * len(kernels) - of_image + reads_features


# ----------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_off_at_prediction_and_beside_frozen_kernels(name):
    settings = settings_of(name, dropout=0.3, widths=(2, 4))
    image, keys = image_of(8, 8), jax.random.split(jax.random.key(0))
    params = draw_params(shapes_of(settings, (8, 8)))
    encoder = frozenset(trees.flatten({"encoder": params["encoder"]}))

    def features(key, frozen):
        model, rngs = native(settings, frozen=frozen), {"dropout": key}
        levels = model.apply({"params": params}, image, train=True, rngs=rngs, method="encode")
        return *levels, model.apply({"params": params}, levels, train=True, rngs=rngs, method="decode")

    run = quick(features, static_argnums=1)
    free, frozen = run(keys[0], frozenset()), run(keys[0], encoder)
    other, again = run(keys[1], encoder), run(keys[0], encoder)
    plain = quick(functools.partial(native(settings).apply, method="encode"))({"params": params}, image)
    for level in range(2):
        np.testing.assert_allclose(frozen[level], plain[level], rtol=1e-4, atol=1e-5)
        assert np.abs(free[level] - plain[level]).max() > 1e-2
    assert np.abs(frozen[-1] - other[-1]).max() > 1e-2  # the decoder is not frozen
    np.testing.assert_array_equal(frozen[-1], again[-1])


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x = np.full((3, 101, 101), 2.0, np.float32)
    y = np.asarray(quick(blocks.dropout, static_argnums=2)(x, jax.random.key(0), 0.1))
    share = (y == 0).mean()
    assert share == pytest.approx(0.1, abs=5 * np.sqrt(0.09 / x.size))
    np.testing.assert_allclose(y[y != 0], 2 / 0.9, rtol=1e-4)
    # Neighbours, which share a random word, are dropped independently.
    dropped = (y == 0).ravel()
    pairs = dropped[: 2 * (dropped.size // 2)].reshape(-1, 2)
    assert pairs.all(1).mean() == pytest.approx(0.01, abs=5 * np.sqrt(0.0099 / len(pairs)))


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "multiscale_fcn", "widths": (14, 28, 57)}, r"they are \(14, 28, 56\)"),
        ({"widths": (4,), "skips": False}, r"model.skips = False needs a decoder"),
        ({"widths": (4,), "encoder": "pooled"}, r"model.encoder = 'pooled' needs a decoder"),
        ({"name": "v-net"}, "allowed: 'unet', 'multiscale_fcn', 'vnet', 'nnunet'"),
    ],
)
def test_networks_that_there_are_not(changes, message):
    with pytest.raises(UserError, match=message):
        make_model(dataclasses.replace(BASE, **changes), classes=2)


def test_a_stack_of_thick_slices_divides_by_its_own_strides():
    settings = settings_of("vnet", **OPTIONS["thick-slices"])
    check_patch(settings, (64, 64, 8))
    with pytest.raises(UserError, match=r"multiple of \(4, 4, 2\).*nearest allowed are \(64, 64, 4\) or \(64, 64, 6\)"):
        check_patch(settings, (64, 64, 5))
