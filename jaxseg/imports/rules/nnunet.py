"""Weights of nnU-Net (version 2): its plain U-Net and the one with a residual encoder (ResEnc).

Names, kernels and strides are read from the tensors themselves. The plans inside a checkpoint add the order of axes and
the normalisation. nnU-Net keeps images as [z, y, x], as SimpleITK returns them, and may put another axis first
(`transpose_forward` of the plans); jaxseg keeps them as (x, y, z), so the taps of all kernels are put in this order. An
axis that an image stores in the opposite direction is reversed in jaxseg, which turns all images to RAS, and not in
nnU-Net, which trains with mirrored images instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.imports.kinds import Imported
from jaxseg.imports.naming import Naming, conv_block, plain, take
from jaxseg.settings import ModelSettings
from jaxseg.settings.kinds import nearest
from jaxseg.types import UserError

_CONV = re.compile(r"(encoder|decoder)\.stages\.(\d+)\.(?:0\.convs|convs|blocks)\.(\d+)\.")
_NORMALIZATION = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "dataset",
    "NoNormalization": "none",
    "RescaleTo01Normalization": None,
}
"""nnU-Net's normalisation schemes in jaxseg; the last scales to the extremes of an image, which none here does."""


# ------------------------------------------------------------------------------------------------------ both directions


def naming(model: ModelSettings) -> Naming:
    """Return the names that the parameters of `model.name = "nnunet"` have in nnU-Net's state dict."""
    found = Naming(())
    depth = len(model.widths)
    blocks = model.blocks or (2,) * depth
    decoder_blocks = model.decoder_blocks or (2,) * (depth - 1)

    def add(path: str, name: str) -> None:
        nonlocal found
        found += conv_block(path, f"{name}.conv", f"{name}.norm", model.norm)

    if model.residual:
        add("encoder/level_0/stem", "encoder.stem.convs.0")
    for i, count in enumerate(blocks):
        for j in range(count):
            level = f"encoder/level_{i}"
            if not model.residual:
                add(f"{level}/conv_{j}", f"encoder.stages.{i}.0.convs.{j}")
                continue
            block = f"encoder.stages.{i}.blocks.{j}"
            add(f"{level}/block_{j}/conv_0", f"{block}.conv1")
            add(f"{level}/block_{j}/conv_1", f"{block}.conv2")
            if i and j == 0 and model.widths[i] != model.widths[i - 1]:
                # The average pool before the projection has the number 0 where there is one.
                pooled = not model.strides or max(model.strides[i - 1]) > 1
                add(f"{level}/block_{j}/skip", f"{block}.skip.{int(pooled)}")
    for i in reversed(range(depth - 1)):
        stage = depth - 2 - i
        found += plain(f"decoder/level_{i}/up", f"decoder.transpconvs.{stage}", "transposed")
        for j in range(decoder_blocks[i]):
            add(f"decoder/level_{i}/conv_{j}", f"decoder.stages.{stage}.convs.{j}")
    return found + plain("head", f"decoder.seg_layers.{depth - 2}", "product")


# --------------------------------------------------------------------------------------------------------- from tensors


def convert(tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, Any]) -> Imported:
    """Take the `network_weights` of a checkpoint of nnU-Net to `model.name = "nnunet"`.

    Args:
        tensors: The weights by name.
        metadata: The rest of the checkpoint; of it, `init_args` holds the plans, the name of their configuration and
            the dataset.json.

    Raises:
        UserError: The names or shapes are not of a network that nnU-Net builds from its presets.
    """
    plans, configuration = _plans_of(metadata)
    model = _model_of(tensors)
    ndim = model["ndim"]
    axes = axes_of(plans.get("transpose_forward"), ndim)
    for field in ("strides", "kernels"):
        model[field] = _ordered(model[field], axes)
    if plans and (told := plans_model(plans, configuration)) != model:
        names = [name for name in model if told[name] != model[name]]
        text = "; ".join(f"{name} is {told[name]} in the plans and {model[name]} in the tensors" for name in names)
        raise UserError(f"the checkpoint's plans for {configuration!r} do not describe its tensors: {text}")
    # An entry that is there under two names is one tensor of one module that nnU-Net reaches on two ways.
    own = naming(ModelSettings(**model))
    params, used, ignored = take(tensors, own, axes=axes)
    taken = {*used.values(), *(name for name, _ in ignored)}
    ignored += [(name, _why_not(name, taken)) for name in tensors if name not in taken]
    first = "encoder.stem.convs.0.conv.weight" if model["residual"] else "encoder.stages.0.0.convs.0.conv.weight"
    return Imported(
        params=params,
        model=model,
        channels=tensors[first].shape[1],
        classes=len(tensors[f"decoder.seg_layers.{len(model['widths']) - 2}.bias"]),
        used=used,
        ignored=tuple(ignored),
        normalization=normalization_of(plans, configuration),
        outputs="regions" if has_regions(metadata) else "classes",
    )


def has_regions(metadata: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's network was trained on regions: its dataset.json gives a label several values."""
    given = metadata.get("init_args", metadata)
    described = given.get("dataset_json") if isinstance(given, Mapping) else None
    labels = described.get("labels") if isinstance(described, Mapping) else None
    return isinstance(labels, Mapping) and any(
        isinstance(one, list | tuple) and len(one) > 1 for one in labels.values()
    )


def _plans_of(metadata: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The plans and the configuration of a checkpoint; none in a file of weights alone."""
    given = metadata.get("init_args", metadata)
    if not isinstance(given, Mapping) or not isinstance(given.get("plans"), Mapping):
        return {}, ""
    return given["plans"], str(given.get("configuration", ""))


def _model_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of `config.model`, with spatial axes in nnU-Net's order."""
    residual = "encoder.stem.convs.0.conv.weight" in tensors
    unit = "encoder.stages.{}.blocks.{}.conv1.{}" if residual else "encoder.stages.{}.0.convs.{}.{}"
    counts: dict[tuple[str, int], int] = {}
    for name in tensors:
        if match := _CONV.match(name):
            part, stage, number = match[1], int(match[2]), int(match[3])
            counts[part, stage] = max(counts.get((part, stage), 0), number + 1)
    stages = sum(part == "encoder" for part, _ in counts)
    if any(
        re.search(r"\.blocks\.\d+\.conv3\.|^decoder\.stages\.\d+\.blocks\.|squeeze_excitation", name)
        for name in tensors
    ):
        raise UserError(
            "the network has bottleneck blocks, residual blocks in its decoder or squeeze and excitation: jaxseg has "
            "the networks of nnU-Net's presets, PlainConvUNet and ResidualEncoderUNet with BasicBlockD"
        )
    if stages < 2:
        tensors[unit.format(0, 0, "conv.weight")]  # says by name what is missing
        raise UserError("the encoder has a single stage, and nnU-Net's networks have two or more")
    firsts = [tensors[unit.format(stage, 0, "conv.weight")] for stage in range(stages)]
    up = [tensors[f"decoder.transpconvs.{stages - 2 - level}.weight"] for level in range(stages - 1)]
    batch = unit.format(0, 0, "norm.running_mean") in tensors
    return {
        "name": "nnunet",
        "ndim": firsts[0].ndim - 2,
        "widths": tuple(len(kernel) for kernel in firsts),
        "norm": "batch" if batch else "instance",
        "strides": tuple(kernel.shape[2:] for kernel in up),
        "kernels": tuple(kernel.shape[2:] for kernel in firsts),
        "blocks": tuple(counts["encoder", stage] for stage in range(stages)),
        "decoder_blocks": tuple(counts.get(("decoder", stages - 2 - level), 0) for level in range(stages - 1)),
        "residual": residual,
    }


def _why_not(name: str, taken: set[str]) -> str:
    """Why a tensor has no place."""
    plain_name = re.sub(r"\.all_modules\.\d+\.", ".", name.removeprefix("decoder.encoder.").removeprefix("encoder."))
    if name.startswith("decoder.encoder.") or ".all_modules." in name:
        return "the same tensor under a second name"
    if re.fullmatch(r"decoder\.seg_layers\.\d+\.(weight|bias)", plain_name):
        return "the head of a coarser level, for deep supervision, which jaxseg has not"
    if name.endswith("num_batches_tracked"):
        return "a count of batches"
    return "no part of nnU-Net's networks"


# ----------------------------------------------------------------------------------------------------------- from plans


def plans_model(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return the fields of `config.model` that build the network of a `plans.json` of nnU-Net.

    Args:
        plans: Contents of the file.
        configuration: One of its configurations, such as `3d_fullres`.

    Raises:
        UserError: There is no such configuration, or its network is none that jaxseg has.
    """
    chosen = _configuration(plans, configuration)
    network = chosen.get("architecture")
    if network is None:  # plans of the first releases of version 2
        network = {"network_class_name": chosen.get("UNet_class_name", ""), "arch_kwargs": _old_arguments(chosen)}
    name, given = str(network["network_class_name"]).rpartition(".")[2], network["arch_kwargs"]
    if name not in ("PlainConvUNet", "ResidualEncoderUNet"):
        raise UserError(
            f"configuration {configuration!r} of the plans has the network {name!r}; allowed: 'PlainConvUNet' and "
            "'ResidualEncoderUNet'"
        )
    residual, depth = name == "ResidualEncoderUNet", given["n_stages"]
    norm = _norm_of(given, configuration)

    def each(value: Any, count: int) -> tuple[Any, ...]:
        return (value,) * count if isinstance(value, int) else tuple(value)

    kernels, strides = each(given["kernel_sizes"], depth), each(given["strides"], depth)
    ndim = 3 if "3d" in str(given["conv_op"]).lower() else 2
    kernels, strides = (tuple(each(step, ndim) for step in steps) for steps in (kernels, strides))
    if set(strides[0]) != {1}:
        raise UserError(
            f"configuration {configuration!r}: the first stage has strides {strides[0]}; allowed: 1 everywhere"
        )
    axes = axes_of(plans.get("transpose_forward"), ndim)
    return {
        "name": "nnunet",
        "ndim": ndim,
        "widths": each(given["features_per_stage"], depth),
        "norm": norm,
        "strides": _ordered(strides[1:], axes),
        "kernels": _ordered(kernels, axes),
        "blocks": each(given["n_blocks_per_stage" if residual else "n_conv_per_stage"], depth),
        "decoder_blocks": each(given["n_conv_per_stage_decoder"], depth - 1)[::-1],
        "residual": residual,
    }


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One configuration, with what it inherits from others."""
    every, chain = plans.get("configurations", {}), [name]
    while True:
        if chain[-1] not in every:
            raise UserError(
                f"the plans have no configuration {chain[-1]!r}{nearest(chain[-1], every)} They have {', '.join(every)}"
            )
        parent = every[chain[-1]].get("inherits_from")
        if parent is None:
            break
        if parent in chain:
            raise UserError(
                f"configurations of the plans inherit from each other in a circle: {' -> '.join((*chain, parent))}"
            )
        chain.append(parent)
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged |= every[part]
    return merged


def _old_arguments(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the network, from the fields in which plans had them before they named a class."""
    blocks = chosen["n_conv_per_stage_encoder"]
    widths = [min(chosen["UNet_base_num_features"] * 2**i, chosen["unet_max_num_features"]) for i in range(len(blocks))]
    return {
        "n_stages": len(blocks),
        "features_per_stage": widths,
        "conv_op": f"Conv{len(chosen['patch_size'])}d",
        "kernel_sizes": chosen["conv_kernel_sizes"],
        "strides": chosen["pool_op_kernel_sizes"],
        "n_conv_per_stage": blocks,
        "n_blocks_per_stage": blocks,
        "n_conv_per_stage_decoder": chosen["n_conv_per_stage_decoder"],
        "norm_op": "InstanceNorm",
        "nonlin": "LeakyReLU",
    }


def _norm_of(given: Mapping[str, Any], configuration: str) -> str:
    """The norm of an architecture, once what jaxseg's network fixes is checked."""
    found = {
        "nonlin": str(given.get("nonlin")).rpartition(".")[2],
        "slope": (given.get("nonlin_kwargs") or {}).get("negative_slope", 0.01),
        "dropout_op": given.get("dropout_op"),
        "nonlin_first": bool(given.get("nonlin_first")),
        "eps": (given.get("norm_op_kwargs") or {}).get("eps", 1e-5),
    }
    fixed = {"nonlin": "LeakyReLU", "slope": 0.01, "dropout_op": None, "nonlin_first": False, "eps": 1e-5}
    for name, value in fixed.items():
        if found[name] != value:
            raise UserError(f"configuration {configuration!r}: {name} = {found[name]!r}; allowed: {value!r}")
    norms = {"InstanceNorm": "instance", "BatchNorm": "batch"}
    name = re.sub(r"\dd$", "", str(given.get("norm_op")).rpartition(".")[2])
    if name not in norms:
        raise UserError(f"configuration {configuration!r}: norm_op = {name!r}; allowed: {', '.join(norms)}")
    return norms[name]


def axes_of(transpose_forward: Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return, for each axis of jaxseg, the axis of nnU-Net's images that it is.

    Args:
        transpose_forward: nnU-Net's order of the axes z, y, x; None for this order. A 2-D network has the last two.
        ndim: Spatial axes of the network.
    """
    order = list(range(3)) if transpose_forward is None else [int(axis) for axis in transpose_forward]
    if sorted(order) != [0, 1, 2]:
        raise UserError(f"transpose_forward = {transpose_forward!r} in the plans; allowed: an order of 0, 1 and 2")
    own = [2 - axis for axis in order[3 - ndim :]]  # axis of jaxseg (x is 0) for each of nnU-Net's
    return tuple(sorted(range(ndim), key=lambda axis: own[axis]))


def normalization_of(plans: Mapping[str, Any], configuration: str) -> str | None:
    """Return the `normalization` of jaxseg that images were prepared with; None if there is none or channels differ."""
    if not plans:
        return None
    chosen = _configuration(plans, configuration)
    schemes = set(chosen.get("normalization_schemes", ()))
    found = _NORMALIZATION.get(schemes.pop()) if len(schemes) == 1 else None
    return "zscore_nonzero" if found == "zscore" and any(chosen.get("use_mask_for_norm", ())) else found


def _ordered(steps: Sequence[Sequence[int]], axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(step[axis]) for axis in axes) for step in steps)
