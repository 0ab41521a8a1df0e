"""Networks of nnU-Net under the names of nnU-Net's own modules, for whose logits PyTorch and these are needed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxseg.exports import formats, state_dict
from jaxseg.imports.rules import nnunet
from jaxseg.types import UserError
from tests.networks import CLASSES, draw_params, image_of, native, settings_of, shapes_of
from tests.optional import optional_module

THICK = {"ndim": 3, "strides": ((1, 2, 2), (2, 2, 2)), "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3))}
NETWORKS = {
    "plain": ({"norm": "instance", "blocks": (1, 2, 3), "decoder_blocks": (2, 1)}, (8, 16)),
    "batch norm": ({"norm": "batch"}, (8, 8)),
    "residual": ({"norm": "instance", "residual": True, "blocks": (1, 2, 1)}, (8, 16)),
    "thick slices": ({"norm": "instance"} | THICK, (4, 8, 16)),
    "residual, thick slices": ({"norm": "instance", "residual": True} | THICK, (4, 8, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_exported_is_imported_with_every_bit(name: str) -> None:
    changes, spatial = NETWORKS[name]
    settings = settings_of("nnunet", **changes)
    params = draw_params(shapes_of(settings, spatial, channels=2))
    tensors = state_dict.to_state_dict(params, settings)
    assert state_dict.difference(params, tensors, settings) is None
    turned = {  # nnU-Net's files have the axes in the opposite order
        name: tensor.transpose(0, 1, *range(2, tensor.ndim)[::-1]) if tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    found = nnunet.convert(turned, metadata={})
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_jaxseg(name: str) -> None:
    optional_module("torch")
    optional_module("dynamic_network_architectures")
    changes, spatial = NETWORKS[name]
    settings = settings_of("nnunet", **changes)
    params = draw_params(shapes_of(settings, spatial, channels=2))
    image = image_of(*spatial, channels=2)
    ours = np.asarray(jax.jit(native(settings).apply)({"params": params}, image))
    arguments = state_dict.network_arguments(settings, channels=2, classes=CLASSES)
    theirs = formats.torch_logits(arguments, state_dict.to_state_dict(params, settings), image)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    assert np.ptp(ours) > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"skips": False}, r"model.skips = False: nnU-Net has no such network"),
        ({"widths": (4,)}, r"model.widths = \(4,\): nnU-Net has no such network .*, only two levels or more"),
        ({"kernels": ((3, 3), (2, 3), (3, 3))}, r"model.kernels = .*: nnU-Net has no such network .*, only odd sizes"),
    ],
)
def test_what_nnunet_has_not_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        state_dict.network_arguments(settings_of("nnunet", norm="instance", **fields), channels=1, classes=2)
