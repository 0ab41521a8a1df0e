"""The networks of nnU-Net with the names that `dynamic-network-architectures` gives them.

nnU-Net's modules reach the same tensors on several ways, and a state dict has them under every name; the heads of
coarser levels, for deep supervision, are in it although a network without deep supervision does not use them.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxseg.imports import naming
from jaxseg.imports.rules import nnunet
from jaxseg.settings import ModelSettings
from jaxseg.types import Params, UserError

_PACKAGE = "dynamic_network_architectures.architectures.unet"
_PROJECTION_BIAS = re.compile(r"\.skip\.\d+\.conv\.bias$")
_PART = re.compile(r"(.*)\.(conv|norm)\.(\w+)")


def network_arguments(settings: ModelSettings, *, channels: int, classes: int) -> dict[str, Any]:
    """Return the network as the `architecture` of a nnU-Net plan, with axes in jaxseg's order.

    Raises:
        UserError: nnU-Net has no such network.
    """
    depth, ndim = len(settings.widths), settings.ndim
    kernels = settings.kernels or ((3,) * ndim,) * depth
    # PyTorch pads both ends alike, and an even kernel needs a voxel more at one of them.
    odd = all(taps % 2 for axes in kernels for taps in axes)
    for field, value, sound, allowed in (
        ("norm", settings.norm, settings.norm in ("instance", "batch"), "'instance' or 'batch'"),
        ("encoder", settings.encoder, settings.encoder == "learned", "'learned'"),
        ("skips", settings.skips, settings.skips, "True"),
        ("widths", settings.widths, depth > 1, "two levels or more"),
        ("kernels", kernels, odd, "odd sizes"),
    ):
        if not sound:
            raise UserError(
                f"model.{field} = {value!r}: nnU-Net has no such network to export to, only {allowed}; --format=jax "
                f"exports every network"
            )
    strides = settings.strides or ((2,) * ndim,) * (depth - 1)
    count = "n_blocks_per_stage" if settings.residual else "n_conv_per_stage"
    arguments = {
        "input_channels": channels,
        "num_classes": classes,
        "n_stages": depth,
        "features_per_stage": list(settings.widths),
        "conv_op": f"torch.nn.Conv{ndim}d",
        "kernel_sizes": [list(taps) for taps in kernels],
        "strides": [[1] * ndim, *(list(step) for step in strides)],
        count: list(settings.blocks or (2,) * depth),
        # Here levels are counted from the finest, there stages from the coarsest.
        "n_conv_per_stage_decoder": list(settings.decoder_blocks or (2,) * (depth - 1))[::-1],
        "conv_bias": True,
        "norm_op": f"torch.nn.{settings.norm.capitalize()}Norm{ndim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": False,
    }
    return {
        "network_class_name": f"{_PACKAGE}.{'ResidualEncoderUNet' if settings.residual else 'PlainConvUNet'}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        "channels": channels,
        "classes": classes,
    }


def to_state_dict(params: Params, settings: ModelSettings) -> dict[str, np.ndarray]:
    """Return the parameters under every name; biases before norms, and heads that are not used, are zeros.

    Args:
        params: Parameters of one run, float32.
        settings: The network.
    """
    given = naming.give(params, nnunet.naming(settings), ndim=settings.ndim)
    # The projection beside a residual block has no bias there, whatever `conv_bias` says.
    tensors = {name: tensor for name, tensor in given.items() if not _PROJECTION_BIAS.search(name)}
    depth = len(settings.widths)
    classes = tensors[f"decoder.seg_layers.{depth - 2}.bias"].size
    for stage in range(depth - 2):
        head = f"decoder.seg_layers.{stage}"
        tensors[f"{head}.weight"] = np.zeros(
            (classes, settings.widths[depth - 2 - stage], *(1,) * settings.ndim), np.float32
        )
        tensors[f"{head}.bias"] = np.zeros(classes, np.float32)
    for name in list(tensors):
        if part := _PART.fullmatch(name):
            tensors[f"{part[1]}.all_modules.{int(part[2] == 'norm')}.{part[3]}"] = tensors[name]
    encoder = {f"decoder.{name}": tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    return tensors | encoder
