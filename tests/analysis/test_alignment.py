"""Which channels may change places, and finding the order that they were put in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import trees
from jaxseg.analysis import alignment, variability, wiring
from jaxseg.models import make_model
from jaxseg.settings import ModelSettings
from tests.networks import quick

BASE = {"ndim": 2, "widths": (4, 8), "norm": "none", "kernels": ((3, 3), (3, 3)), "strides": (), "skips": True}
NETWORKS = {
    "unet": {"name": "unet", "norm": "instance"},
    "unet_of_groups_without_skips": {"name": "unet", "norm": "group", "groups": 2, "skips": False},
    "vnet": {"name": "vnet"},
    "vnet_batch_norm": {"name": "vnet", "norm": "batch"},
    "multiscale_fcn": {"name": "multiscale_fcn"},
    "nnunet_residual": {"name": "nnunet", "residual": True, "norm": "instance"},
    "unet_depthwise": {"name": "unet", "up": "depthwise", "decoder_widths": (6,), "norm": "batch", "head": "conv_norm"},
    "unet_norm_first": {"name": "unet", "order": "act_norm_conv", "activation": "leaky_relu", "norm": "batch"},
    "unet_pooled": {"name": "unet", "encoder": "pooled"},
}


def make(name, channels=2):
    """A network, its wiring, and parameters none of which are equal."""
    settings = ModelSettings(**{**BASE, **NETWORKS[name]})
    model = make_model(settings, classes=3)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, 8, 8, channels)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 4))
        return np.abs(values + 1).astype(np.float32) if path.endswith("variance") else values.astype(np.float32)

    params = [trees.map_with_path(draw, shapes) for _ in range(2)]
    return model, wiring.trace_wiring(settings, 3, channels), image, params


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_permutation_within_groups_leaves_the_function_and_is_found(name, channels):
    model, wired, image, (params, _) = make(name, channels)
    order = np.arange(wired.count)
    for group in wired.groups:
        order[group] = np.roll(group, 1)  # no channel stays where it is
    permuted = alignment.permute(wired, params, order)
    apply = quick(lambda params: model.apply({"params": params}, image, train=False))
    before, after = apply(params), apply(permuted)
    np.testing.assert_allclose(after, before, atol=2e-6 * float(jnp.abs(before).max()))
    kernels = [path for path in trees.flatten(params) if path.endswith("kernel") and "head" not in path]
    moved = [path for path in kernels if not np.array_equal(*(trees.flatten(p)[path] for p in (params, permuted)))]
    assert moved == kernels, "every layer has channels that move"
    back = alignment.permute(wired, permuted, alignment.align(wired, params, permuted))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_units_are_all_output_channels_of_a_plain_network():
    _, wired, _, _ = make("unet")
    assert sorted(map(len, wired.groups)) == [4, 4, 4, 4, 8, 8]
    assert (wired.gives["head"] == wiring.FIXED).all()
    assert (wired.reads["encoder/level_0/conv_0"] == wiring.FIXED).all()
    # The decoder reads the upsampled channels first, then the skip.
    expected = [*wired.gives["encoder/level_1/conv_1"], *wired.gives["encoder/level_0/conv_1"]]
    assert wired.reads["decoder/level_0/conv_0"].tolist() == expected


def test_channels_that_are_added_move_together():
    _, wired, _, _ = make("multiscale_fcn")
    level = "decoder/level_0"
    np.testing.assert_array_equal(wired.gives[f"{level}/merge"], wired.gives[f"{level}/conv_3"])
    np.testing.assert_array_equal(wired.gives[f"{level}/merge"], wired.gives[f"{level}/conv_1"])
    assert set(wired.gives[f"{level}/merge"]).isdisjoint(wired.gives[f"{level}/conv_0"])


@pytest.mark.parametrize("name", ["unet", "vnet", "multiscale_fcn"])
def test_unrelated_networks_come_closer_and_compute_what_they_did(name):
    model, wired, image, (a, b) = make(name)
    aligned = alignment.permute(wired, b, alignment.align(wired, a, b))
    distances = [
        variability.parameter_distance([np.stack(pair) for pair in zip(*map(jax.tree.leaves, (a, other)), strict=True)])
        for other in (b, aligned)
    ]
    assert distances[1][0, 1] < distances[0][0, 1] - 0.01
    apply = quick(lambda params: model.apply({"params": params}, image, train=False))
    np.testing.assert_allclose(apply(aligned), apply(b), atol=1e-5)


def test_a_network_is_aligned_with_itself_as_it_is():
    _, wired, _, (params, _) = make("vnet")
    np.testing.assert_array_equal(alignment.align(wired, params, params), np.arange(wired.count))
