"""Names, shapes and layouts of parameters in PyTorch, which need no PyTorch to be right."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxseg import trees
from jaxseg.exports import formats, state_dict
from jaxseg.exports.formats import StateDict
from jaxseg.settings import ModelSettings
from jaxseg.types import UserError
from tests.networks import draw_params, settings_of, shapes_of

UNET = settings_of("unet", widths=(2, 4), norm="batch", kernels=((3, 3), (1, 3)))
VNET = settings_of("vnet", widths=(2, 4), kernels=((3, 3), (1, 3)), strides=((1, 2),))


def norm(place: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.norm.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}


def prelu(place: str, *kernel: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.conv.weight": kernel, f"{place}.conv.bias": (out,), f"{place}.act.weight": (out,)}


NAMES = {
    UNET: {
        "encoder.level_0.conv_0.conv.weight": (2, 1, 3, 3),
        "encoder.level_0.conv_1.conv.weight": (2, 2, 3, 3),
        "encoder.level_1.conv_0.conv.weight": (4, 2, 1, 3),
        "encoder.level_1.conv_1.conv.weight": (4, 4, 1, 3),
        "decoder.level_0.conv_0.conv.weight": (2, 6, 3, 3),
        "decoder.level_0.conv_1.conv.weight": (2, 2, 3, 3),
        "head.conv.weight": (3, 2, 1, 1),
        "head.conv.bias": (3,),
        **{
            name: shape
            for place, width in (("encoder.level_0", 2), ("encoder.level_1", 4), ("decoder.level_0", 2))
            for conv in ("conv_0", "conv_1")
            for name, shape in norm(f"{place}.{conv}", width).items()
        },
    },
    VNET: {
        **prelu("encoder.level_0.conv_0", 2, 1, 3, 3, out=2),
        **prelu("encoder.level_1.down", 4, 2, 1, 2, out=4),
        **prelu("encoder.level_1.conv_0", 4, 4, 1, 3, out=4),
        **prelu("encoder.level_1.conv_1", 4, 4, 1, 3, out=4),
        **prelu("decoder.level_0.up", 4, 2, 1, 2, out=2),  # transposed: [in, out, *taps]
        **prelu("decoder.level_0.conv_0", 4, 4, 3, 3, out=4),
        "head.conv.weight": (3, 4, 1, 1),
        "head.conv.bias": (3,),
    },
}
"""Written down by hand; test_torch_network.py holds them against PyTorch's own."""


@pytest.mark.parametrize("settings", NAMES, ids=lambda settings: settings.name)
def test_names_and_shapes_are_those_of_the_network_in_pytorch(settings: ModelSettings) -> None:
    params = draw_params(shapes_of(settings, (8, 8)))
    made = state_dict.to_state_dict(params, settings)
    assert {name: tensor.shape for name, tensor in made.items()} == NAMES[settings]


def test_a_file_gives_back_every_bit_and_the_metadata() -> None:
    params = draw_params(shapes_of(VNET, (8, 8)))
    about = {"labels": ["background", "Größe"], "window": [8, 8], "spacing_mm": None}
    state = StateDict(state_dict.to_state_dict(params, VNET), about)
    found = formats.from_safetensors(formats.to_safetensors(state))
    assert found.metadata == about
    assert state_dict.difference(params, found.tensors, VNET) is None


def nothing(tensors: dict[str, np.ndarray]) -> None:
    """As it was."""


def one_bit(tensors: dict[str, np.ndarray]) -> None:
    tensors["decoder.level_0.up.conv.weight"].view(np.uint32)[1, 1, 0, 1] ^= 1


def fewer(tensors: dict[str, np.ndarray]) -> None:
    del tensors["head.conv.bias"]


def half(tensors: dict[str, np.ndarray]) -> None:
    tensors["head.conv.bias"] = tensors["head.conv.bias"].astype(np.float16)


def flipped(tensors: dict[str, np.ndarray]) -> None:
    tensors["head.conv.weight"] = tensors["head.conv.weight"].reshape(4, 3, 1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nothing, None),
        (one_bit, "decoder.level_0.up.conv.weight has other values"),
        (fewer, "the names differ: head.conv.bias"),
        (half, "head.conv.bias is float16"),
        (flipped, "head.conv.weight has other values"),
    ],
)
def test_a_tensor_that_is_not_the_parameter_is_named(change, said) -> None:
    params = draw_params(shapes_of(VNET, (8, 8)))
    tensors = {name: tensor.copy() for name, tensor in state_dict.to_state_dict(params, VNET).items()}
    change(tensors)
    found = state_dict.difference(params, tensors, VNET)
    assert found == said if said is None else said in found


def test_transposed_kernels_are_flipped() -> None:
    kernel = np.arange(6, dtype=np.float32).reshape(3, 1, 2)  # [taps, in, out]
    params = trees.unflatten({"decoder/level_0/up/kernel": kernel, "decoder/level_0/conv_0/kernel": kernel})
    made = state_dict.to_state_dict(params, dataclasses.replace(VNET, ndim=1))
    np.testing.assert_array_equal(made["decoder.level_0.up.conv.weight"], [[[4, 2, 0], [5, 3, 1]]])
    np.testing.assert_array_equal(made["decoder.level_0.conv_0.conv.weight"], [[[0, 2, 4]], [[1, 3, 5]]])


@dataclasses.dataclass(frozen=True)
class Later(ModelSettings):
    """Settings with an option that PyTorch's networks do not know."""

    gate: str = "none"


def test_a_network_without_a_counterpart_is_refused_by_name() -> None:
    how = {"channels": 1, "classes": 3}
    plain = Later(**dataclasses.asdict(UNET))
    assert state_dict.network_arguments(plain, **how) == state_dict.network_arguments(UNET, **how)
    with pytest.raises(UserError, match=r"model.gate = 'sum': unet in PyTorch has no such option"):
        state_dict.network_arguments(dataclasses.replace(plain, gate="sum"), **how)
    with pytest.raises(UserError, match=r"model.name = 'other' has no network in PyTorch"):
        state_dict.network_arguments(dataclasses.replace(UNET, name="other"), **how)
