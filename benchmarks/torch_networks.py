"""What PyTorch's side of several benchmarks shares: the networks to which weights are exported, and their windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


@torch.inference_mode()
def segment(
    network: nn.Module,
    image: torch.Tensor,
    starts: Sequence[Sequence[int]],
    *,
    patch: Sequence[int],
    classes: int,
    batch: int = 1,
) -> torch.Tensor:
    """Returns the label map of an image `[1, channels, *spatial]`: the mean of the probabilities of its windows.

    Args:
        network: Maps windows to logits.
        image: At least as large as a window.
        starts: Corners of the windows.
        patch: Size of a window.
        classes: Number of classes, background included.
        batch: Windows that go through the network at once.
    """
    total = torch.zeros(classes, *image.shape[2:])
    windows = [tuple(slice(a, a + side) for a, side in zip(start, patch, strict=True)) for start in starts]
    for begin in range(0, len(windows), batch):
        some = windows[begin : begin + batch]
        found = torch.softmax(network(torch.cat([image[(..., *window)] for window in some])), 1)
        for window, probabilities in zip(some, found, strict=True):
            total[(..., *window)] += probabilities
    return total.argmax(0).to(torch.uint8)
