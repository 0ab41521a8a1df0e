"""Rules for the names of other networks: there and back, what they leave out and why, and what they refuse."""

import jax
import numpy as np
import pytest

from jaxseg import trees
from jaxseg.imports import naming
from jaxseg.imports.kinds import Tensors
from jaxseg.imports.rules import nnunet, torch_unet
from jaxseg.settings import ModelSettings
from jaxseg.types import UserError
from tests.networks import draw_params, shapes_of

ANISOTROPIC = {"strides": ((2, 2, 1), (2, 2, 2)), "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3))}
NNUNET = {"name": "nnunet", "ndim": 3, "widths": (2, 4, 4), "norm": "instance", **ANISOTROPIC}
NETWORKS = {
    "plain": (nnunet, nnunet.naming, {**NNUNET, "blocks": (2, 1, 3), "decoder_blocks": (1, 2)}),
    "residual": (
        nnunet, nnunet.naming,
        {**NNUNET, "residual": True, "blocks": (1, 2, 1), "decoder_blocks": (2, 1), "norm": "batch"},
    ),
    "modules": (
        torch_unet, torch_unet.modules_naming,
        {"name": "unet", "ndim": 3, "widths": (3, 4, 5), "norm": "batch", "decoder_widths": (2, 3),
         "decoder_blocks": (1, 2), "up": "depthwise", "pool_padding": (0, 1), "head": "conv_norm", **ANISOTROPIC},
    ),
    "double_convolutions": (
        torch_unet, torch_unet.double_convolutions_naming,
        {"name": "unet", "ndim": 2, "widths": (2, 4, 8), "norm": "batch", "up": "transposed",
         "strides": ((1, 2), (2, 2)), "kernels": ((3, 1), (3, 3), (3, 3))},
    ),
}  # fmt: skip


def state_of(name, classes=2):
    """Random parameters of a network, and its state dict in PyTorch."""
    _, names, model = NETWORKS[name]
    made = ModelSettings(**model)
    params = draw_params(shapes_of(made, (8, 8, 8)[: made.ndim], channels=2, classes=classes))
    axes = tuple(reversed(range(made.ndim)))
    return params, Tensors(naming.give(params, names(made), ndim=made.ndim, axes=axes))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_recognised_by_its_tensors(name):
    rules, _, model = NETWORKS[name]
    params, tensors = state_of(name)
    found = rules.convert(Tensors(tensors | {"extra.num_batches_tracked": np.zeros(())}), metadata={})
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert ModelSettings(**found.model) == ModelSettings(**model)
    assert (found.channels, found.classes) == (2, 2)
    assert set(found.used) == set(trees.flatten(params))
    told = {*found.used.values(), *(part for part, _ in found.ignored)}
    assert told == {*tensors, "extra.num_batches_tracked"}
    assert ("extra.num_batches_tracked", "a count of batches") in found.ignored


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions"),
        ({"background": 0, "whole": (1, 2), "core": (2,)}, "regions"),
        ({"background": 0, "a": 1, "b": [2]}, "classes"),
        ({"0": "background", "1": "a"}, "classes"),
        (None, "classes"),
    ],
)
def test_a_checkpoint_of_nnunet_says_whether_it_was_trained_on_regions(labels, outputs):
    _, tensors = state_of("plain")
    metadata = {"init_args": {"fold": 0} | ({} if labels is None else {"dataset_json": {"labels": labels}})}
    assert nnunet.convert(tensors, metadata=metadata).outputs == outputs


@pytest.mark.parametrize("name", ["residual", "modules"])
def test_a_bias_before_a_batch_norm_is_taken_from_its_running_mean(name):
    rules, names, model = NETWORKS[name]
    params, tensors = state_of(name)
    bias, path = next(iter(names(ModelSettings(**model)).biases.items()))
    tensors[bias] = np.arange(len(tensors[bias]), dtype=np.float32)
    found = trees.flatten(rules.convert(tensors, metadata={}).params)
    want = trees.flatten(params)[f"{path}/running_mean"] - tensors[bias]
    np.testing.assert_array_equal(found[f"{path}/running_mean"], want)


def test_channels_that_come_first_are_put_last():
    names = naming.conv_block("part", "conv", "norm", "none", leading=1)
    tensors = {"conv.weight": np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1), "conv.bias": np.ones(1, np.float32)}
    params, _, _ = naming.take(tensors, names)
    assert params["part"]["kernel"].ravel().tolist() == [1, 2, 0]
    np.testing.assert_array_equal(naming.give(params, names, ndim=2)["conv.weight"], tensors["conv.weight"])


def test_second_names_and_coarser_heads_of_nnunet_have_no_place():
    _, tensors = state_of("plain")
    more = {
        "decoder.encoder.stages.0.0.convs.0.conv.weight": "the same tensor under a second name",
        "encoder.stages.0.0.convs.0.all_modules.0.weight": "the same tensor under a second name",
        "decoder.seg_layers.0.weight": "the head of a coarser level, for deep supervision, which jaxseg has not",
        "encoder.stages.0.0.convs.0.conv.bias": "a bias that the norm behind it subtracts again",
        "scaler": "no part of nnU-Net's networks",
    }
    found = nnunet.convert(Tensors(tensors | {name: np.zeros(2, np.float32) for name in more}), metadata={})
    assert more.items() <= dict(found.ignored).items()


def test_tensors_that_are_not_of_the_network_are_named():
    _, tensors = state_of("plain")
    del tensors["decoder.transpconvs.0.weight"]
    with pytest.raises(UserError, match=r"no tensor 'decoder.transpconvs.0.weight'"):
        nnunet.convert(tensors, metadata={})
    with pytest.raises(UserError, match=r"no tensor 'encoder.stages.0.0.convs.0.conv.weight'"):
        nnunet.convert(Tensors(a=np.zeros(2)), metadata={})
    with pytest.raises(UserError, match=r"bottleneck blocks"):
        nnunet.convert(Tensors({"encoder.stages.0.blocks.0.conv3.conv.weight": np.zeros(2)}), metadata={})
    with pytest.raises(UserError, match=r"neither 'c0.conv0.weight'.*nor 'inc.double_conv.0.weight'.*begin with a, b"):
        torch_unet.convert(Tensors(a=np.zeros(2), b=np.zeros(2)), metadata={})
    _, tensors = state_of("double_convolutions")
    del tensors["up1.up.weight"]
    with pytest.raises(UserError, match="upsamples bilinearly"):
        torch_unet.convert(tensors, metadata={})


# ------------------------------------------------------------------------------------------------------ nnU-Net plans

OLD = {
    "UNet_class_name": "PlainConvUNet",
    "patch_size": [8, 16, 16],
    "UNet_base_num_features": 2,
    "unet_max_num_features": 4,
    "n_conv_per_stage_encoder": [2, 1, 3],
    "n_conv_per_stage_decoder": [2, 1],
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
    "use_mask_for_norm": [False, False],
}
NEW = {
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [2, 4, 4],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
            "strides": [[1, 1], [2, 2], [2, 1]],
            "n_blocks_per_stage": [1, 3, 4],
            "n_conv_per_stage_decoder": [1, 1],
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    },
    "normalization_schemes": ["CTNormalization"],
}
PLANS = {
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "3d_fullres": OLD,
        "2d": NEW,
        "3d_large": {"inherits_from": "3d_fullres", "patch_size": [16] * 3},
    },
}


def test_plans_describe_the_network_that_their_tensors_are_of():
    _, tensors = state_of("plain")
    assert nnunet.plans_model(PLANS, "3d_fullres") == {**NETWORKS["plain"][2], "residual": False}
    arguments = {"init_args": {"plans": PLANS, "configuration": "3d_large"}}
    found = nnunet.convert(tensors, metadata=arguments)
    assert (found.model, found.normalization) == (nnunet.plans_model(PLANS, "3d_fullres"), "zscore")
    other = {
        "init_args": {
            "plans": {**PLANS, "configurations": {"3d_large": {**OLD, "n_conv_per_stage_encoder": [2, 2, 3]}}}
        }
    }
    other["init_args"]["configuration"] = "3d_large"
    with pytest.raises(UserError, match=r"blocks is \(2, 2, 3\) in the plans and \(2, 1, 3\) in the tensors"):
        nnunet.convert(tensors, metadata=other)


def test_plans_with_an_architecture_and_two_axes():
    assert nnunet.plans_model(PLANS, "2d") == {
        "name": "nnunet", "ndim": 2, "widths": (2, 4, 4), "norm": "instance", "strides": ((2, 2), (1, 2)),
        "kernels": ((3, 3),) * 3, "blocks": (1, 3, 4), "decoder_blocks": (1, 1), "residual": True,
    }  # fmt: skip
    assert nnunet.normalization_of(PLANS, "2d") == "dataset"


@pytest.mark.parametrize(
    ("order", "ndim", "want"),
    [
        (None, 3, (2, 1, 0)),
        ([0, 1, 2], 2, (1, 0)),
        ([2, 0, 1], 3, (0, 2, 1)),
        ([2, 0, 1], 2, (1, 0)),
        ([1, 0, 2], 3, (2, 0, 1)),
    ],
)
def test_axes_are_found_behind_the_order_of_the_plans(order, ndim, want):
    """[2, 0, 1]: the network's axes are x, z, y; so x is the first, y the last and z between them."""
    assert nnunet.axes_of(order, ndim) == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonlin": "torch.nn.ReLU"}, "nonlin = 'ReLU'; allowed: 'LeakyReLU'"),
        ({"dropout_op": "torch.nn.Dropout2d"}, "dropout_op = 'torch.nn.Dropout2d'; allowed: None"),
        ({"norm_op": "torch.nn.GroupNorm"}, "norm_op = 'GroupNorm'; allowed: InstanceNorm, BatchNorm"),
        ({"strides": [[2, 2], [2, 2], [2, 2]]}, "the first stage has strides (2, 2); allowed: 1 everywhere"),
    ],
)
def test_architectures_that_there_are_not(change, message):
    network = {**NEW["architecture"], "arch_kwargs": {**NEW["architecture"]["arch_kwargs"], **change}}
    with pytest.raises(UserError) as error:
        nnunet.plans_model({"configurations": {"2d": {"architecture": network}}}, "2d")
    assert message in str(error.value)


def test_configurations_that_there_are_not():
    with pytest.raises(UserError, match=r"no configuration '3d_fulres'; did you mean '3d_fullres'"):
        nnunet.plans_model(PLANS, "3d_fulres")
    circle = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}
    with pytest.raises(UserError, match="in a circle: a -> b -> a"):
        nnunet.plans_model(circle, "a")
    network = {"network_class_name": "my.Primus", "arch_kwargs": {}}
    with pytest.raises(UserError, match="'Primus'; allowed: 'PlainConvUNet'"):
        nnunet.plans_model({"configurations": {"2d": {"architecture": network}}}, "2d")
