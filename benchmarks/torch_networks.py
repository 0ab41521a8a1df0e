"""The networks of `jaxseg.models` in PyTorch, as peers of the benchmark: those to which weights are exported."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from jaxseg.exports import torch_network


def make_network(name: str, *, ndim: int, channels: int, widths: Sequence[int], classes: int) -> nn.Module:
    """Builds the network of a workload, with weights drawn by PyTorch; norm and dropout are as in `jaxseg_step`."""
    return torch_network.build(
        name=name,
        ndim=ndim,
        channels=channels,
        classes=classes,
        widths=widths,
        norm="instance" if name == "unet" else "none",
        dropout=0.1 if name == "multiscale_fcn" else 0.0,
    )
