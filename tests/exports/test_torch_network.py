"""The networks in PyTorch compute what jaxseg's do with the same parameters; needs PyTorch."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest

from jaxseg.exports import formats, state_dict
from jaxseg.exports.formats import StateDict
from tests.exports.test_state_dict import NAMES
from tests.networks import CLASSES, draw_params, image_of, native, settings_of, shapes_of
from tests.optional import optional_module

torch = optional_module("torch")
torch_network = importlib.import_module("jaxseg.exports.torch_network")  # needs torch

THICK = {"ndim": 3, "strides": ((1, 2, 2), (2, 2, 3)), "kernels": ((1, 3, 3), (3, 3, 2), (3, 5, 3))}
OPTIONS = {
    "3-D": ({"ndim": 3}, (8, 8, 8)),
    "instance norm": ({"norm": "instance"}, (8, 8)),
    "batch norm": ({"norm": "batch"}, (8, 8)),
    "group norm": ({"norm": "group", "groups": 2}, (8, 8)),
    "no skips": ({"skips": False}, (8, 8)),
    "pooled": ({"encoder": "pooled"}, (8, 8)),
    "thick slices": (THICK, (4, 8, 12)),
    "own kernels": ({"kernels": (), "norm": "instance"}, (8, 8)),
    "one level": ({"widths": (4,)}, (5, 6)),
}


COUNTS = {"norm": "instance", "blocks": (1, 3, 2), "decoder_blocks": (1, 3), "decoder_widths": (3, 5)}
CASES = [
    *(pytest.param(name, *OPTIONS[how], id=f"{name}-{how}") for name in state_dict.NETWORKS for how in OPTIONS),
    pytest.param("unet", COUNTS | {"ndim": 3}, (8, 8, 8), id="unet-counts of convolutions"),
    pytest.param("unet", COUNTS | {"skips": False, "encoder": "pooled"}, (8, 8), id="unet-counts, pooled, no skips"),
]


@pytest.mark.parametrize(("name", "changes", "spatial"), CASES)
def test_logits_are_those_of_jaxseg(name: str, changes: dict, spatial: tuple[int, ...], record_property) -> None:
    settings = settings_of(name, **changes)
    params = draw_params(shapes_of(settings, spatial, channels=2))
    image = image_of(*spatial, channels=2)
    ours = np.asarray(jax.jit(native(settings).apply)({"params": params}, image))
    arguments = state_dict.network_arguments(settings, channels=2, classes=CLASSES)
    theirs = formats.torch_logits(arguments, state_dict.to_state_dict(params, settings), image)
    record_property("difference", float(np.abs(ours - theirs).max()))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    assert np.ptp(ours) > 1


@pytest.mark.parametrize("settings", NAMES, ids=lambda settings: settings.name)
def test_its_names_and_shapes_are_those_written_down(settings) -> None:
    network = torch_network.build(**state_dict.network_arguments(settings, channels=1, classes=CLASSES))
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert {name: shape for name, shape in found.items() if not name.endswith("num_batches_tracked")} == NAMES[settings]


def test_images_have_sizes_of_its_multiple() -> None:
    arguments = state_dict.network_arguments(settings_of("unet", **THICK), channels=1, classes=CLASSES)
    network = torch_network.build(**arguments)
    assert network.multiple == (2, 4, 6)
    assert network(torch.zeros(1, 1, 4, 4, 6)).shape == (1, CLASSES, 4, 4, 6)


def test_training_in_pytorch_moves_every_parameter() -> None:
    settings = settings_of("multiscale_fcn", widths=(2, 4), norm="batch", dropout=0.2)
    network = torch_network.build(**state_dict.network_arguments(settings, channels=1, classes=CLASSES))
    network(torch.rand(2, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_file_of_pytorch_loads_without_unpickling_code() -> None:
    settings = settings_of("unet", widths=(2, 4))
    params = jax.tree.map(np.asarray, draw_params(shapes_of(settings, (8, 8))))
    state = StateDict(state_dict.to_state_dict(params, settings), {"labels": ["background"], "window": [8, 8]})
    found = formats.from_torch(formats.to_torch(state))
    assert found.metadata == state.metadata
    assert state_dict.difference(params, found.tensors, settings) is None
