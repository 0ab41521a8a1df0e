"""Weights of U-Nets in PyTorch with batch norm, max pooling and transposed convolutions, of two families of names.

| names | network |
| --- | --- |
| `c0.conv0.weight`, `c0.batch0.weight`, `up0.weight`, `c5_0.conv0.weight` | the 3-D U-Net of platelet-unet-watershed |
| `inc.double_conv.0.weight`, `down1.maxpool_conv.1...`, `up1.conv...`, `outc.conv.weight` | the U-Net of milesial's
  Pytorch-UNet, in the many repositories that took it over |

Both read images with their axes reversed, [z, y, x] or [y, x], as libraries for images return them, so the taps of all
kernels are put in jaxseg's order, (x, y, z).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.imports.kinds import Imported
from jaxseg.imports.layout import Pair
from jaxseg.imports.naming import Naming, conv_block, plain, take
from jaxseg.settings import ModelSettings
from jaxseg.types import UserError


def convert(tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, Any]) -> Imported:
    """Take the state dict of a U-Net of either family to `model.name = "unet"`.

    Args:
        tensors: The state dict.
        metadata: Not used; a state dict has all that is needed.

    Raises:
        UserError: The names are of neither family, or of a network of the family that jaxseg has not.
    """
    del metadata
    if "c0.conv0.weight" in tensors:
        model, naming, first, last = _of_modules(tensors)
    elif "inc.double_conv.0.weight" in tensors:
        model, naming, first, last = _of_double_convolutions(tensors)
    else:
        raise UserError(
            "the file has neither 'c0.conv0.weight' (the U-Net of platelet-unet-watershed) nor "
            f"'inc.double_conv.0.weight' (that of Pytorch-UNet); its names begin with {', '.join(list(tensors)[:3])}. "
            "For another network write rules of your own, and give their file as --rules"
        )
    axes = tuple(reversed(range(model["ndim"])))
    params, used, ignored = take(tensors, naming, axes=axes)
    taken = {*used.values(), *(name for name, _ in ignored)}
    ignored += [(name, _why_not(name)) for name in tensors if name not in taken]
    return Imported(
        params=params,
        model=model,
        channels=tensors[first].shape[1],
        classes=tensors[last].shape[0],
        used=used,
        ignored=tuple(ignored),
    )


def _why_not(name: str) -> str:
    if name.endswith("num_batches_tracked"):
        return "a count of batches"
    if re.match(r"c\d+_[1-9]\d*\.", name):
        return "a second decoder of the same encoder"
    return "no part of the network"


def _steps(up: np.ndarray) -> tuple[int, ...]:
    """The strides of a transposed convolution with as many taps, in jaxseg's order of axes."""
    return tuple(reversed(up.shape[2:]))


# ------------------------------------------------------------------------------------------- platelet-unet-watershed


def modules_naming(model: ModelSettings) -> Naming:
    """Return the names of a `unet` with depthwise upsampling and a normed head in platelet-unet-watershed."""
    depth, found = len(model.widths), Naming(())

    def add(path: str, name: str, number: int) -> None:
        nonlocal found
        found += conv_block(path, f"{name}.conv{number}", f"{name}.batch{number}", "batch")

    for i in range(depth):
        for j in range(2):
            add(f"encoder/level_{i}/conv_{j}", f"c{i}", j)
    for i in reversed(range(depth - 1)):
        stage = depth - 2 - i
        up = f"decoder/level_{i}/up"
        pairs = Pair(f"{up}/kernel", f"up{stage}.weight", "depthwise"), Pair(f"{up}/bias", f"up{stage}.bias", "vector")
        found += Naming(pairs)
        name = f"c{depth + stage}_0"
        add(f"decoder/level_{i}/conv_0", name, 0)
        add(f"decoder/level_{i}/conv_1" if i else "head/conv", name, 1)
    return found


def _of_modules(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Naming, str, str]:
    """Model, names, the first kernel and the last."""
    depth = sum(re.fullmatch(r"c\d+\.conv0\.weight", name) is not None for name in tensors)
    if depth < 2:
        raise UserError("the encoder has a single level (c0), and two or more are needed")
    first = [tensors[f"c{i}.conv0.weight"] for i in range(depth)]
    decoder = [tensors[f"c{2 * depth - 2 - i}_0.conv0.weight"] for i in range(depth - 1)]
    strides = tuple(_steps(tensors[f"up{depth - 2 - i}.weight"]) for i in range(depth - 1))
    ndim = first[0].ndim - 2
    # Its pooling pads the axes y and x; depth is halved at the coarsest level alone, without padding.
    model: dict[str, Any] = {
        "name": "unet",
        "ndim": ndim,
        "widths": tuple(len(kernel) for kernel in first),
        "norm": "batch",
        "strides": strides,
        "kernels": tuple(tuple(reversed(kernel.shape[2:])) for kernel in first),
        "decoder_widths": tuple(len(kernel) for kernel in decoder),
        "decoder_blocks": (1, *(2,) * (depth - 2)),
        "up": "depthwise",
        "pool_padding": (0, 1),
        "head": "conv_norm",
    }
    naming = modules_naming(ModelSettings(**model))
    return model, naming, "c0.conv0.weight", f"c{2 * depth - 2}_0.conv1.weight"


# ------------------------------------------------------------------------------------------------------ Pytorch-UNet


def double_convolutions_naming(model: ModelSettings) -> Naming:
    """Return the names of a `unet` with transposed upsampling and batch norm in Pytorch-UNet."""
    depth, found = len(model.widths), Naming(())

    def add(path: str, name: str, leading: int = 0) -> None:
        nonlocal found
        for j, place in enumerate((0, 3)):
            names = f"{name}.double_conv.{place}", f"{name}.double_conv.{place + 1}"
            found += conv_block(f"{path}/conv_{j}", *names, "batch", leading=0 if j else leading)

    for i in range(depth):
        add(f"encoder/level_{i}", f"down{i}.maxpool_conv.1" if i else "inc")
    for i in reversed(range(depth - 1)):
        stage = depth - 1 - i
        found += plain(f"decoder/level_{i}/up", f"up{stage}.up", "transposed")
        add(f"decoder/level_{i}", f"up{stage}.conv", model.widths[i])  # it concatenates [skip, upsampled]
    return found + plain("head", "outc.conv", "product")


def _of_double_convolutions(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Naming, str, str]:
    """Model, names, the first kernel and the last."""
    downs = sum(name.endswith(".maxpool_conv.1.double_conv.0.weight") for name in tensors)
    if "up1.conv.double_conv.0.weight" in tensors and "up1.up.weight" not in tensors:
        raise UserError("the network upsamples bilinearly (up1.up has no weights), which the unet of jaxseg does not")
    first = [tensors["inc.double_conv.0.weight"]]
    first += [tensors[f"down{i}.maxpool_conv.1.double_conv.0.weight"] for i in range(1, downs + 1)]
    if downs < 1:
        raise UserError("the encoder has a single level (inc), and two or more are needed")
    model: dict[str, Any] = {
        "name": "unet",
        "ndim": first[0].ndim - 2,
        "widths": tuple(len(kernel) for kernel in first),
        "norm": "batch",
        "strides": tuple(_steps(tensors[f"up{downs - i}.up.weight"]) for i in range(downs)),
        "kernels": tuple(tuple(reversed(kernel.shape[2:])) for kernel in first),
        "up": "transposed",
    }
    naming = double_convolutions_naming(ModelSettings(**model))
    return model, naming, "inc.double_conv.0.weight", "outc.conv.weight"
