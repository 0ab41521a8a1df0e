"""Layouts of single tensors: PyTorch's, and the one that jaxseg's networks have.

PyTorch keeps a convolution's kernel as `[out, in, *taps]` and a transposed one's as `[in, out, *taps]`; jaxseg keeps
both as `[*taps, in, out]`. Images may have their axes in another order too, such as (z, y, x) where jaxseg has (x, y,
z); the taps are then put in the order of jaxseg's axes. The rules of a network are a list of `Pair`s, which is read in
both directions: `to_ours` imports, `to_theirs` exports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["vector", "kernel", "transposed", "depthwise", "product"]
"""How a tensor is laid out: a value for each channel; the kernel of a convolution, of a transposed convolution, or of a
transposed convolution with one group for each channel; or the product of the head, a kernel of one tap that has no axes
of taps in jaxseg."""


class Pair(NamedTuple):
    """A parameter of jaxseg, the tensor of another network that it is equal to, and how that is laid out."""

    path: str
    """Path in jaxseg, such as `encoder/level_0/conv_0/kernel`."""
    name: str
    """Name in the other network's state dict, such as `encoder.stages.0.0.convs.0.conv.weight`."""
    kind: Kind
    leading: int = 0
    """Number of a kernel's input channels that are first there and last here: those of a skip that is concatenated in
    front of the upsampled channels, where jaxseg puts it behind them."""


def kernel(array: np.ndarray, *, transposed: bool = False, axes: Sequence[int] | None = None) -> np.ndarray:
    """Return a kernel of PyTorch as `[*taps, in, out]`.

    The taps of a transposed convolution are flipped: tap `t` of PyTorch's adds to output `stride * i + t`, whereas
    `lax.conv_transpose` correlates the dilated input with the kernel. A kernel with as many taps as its stride then
    computes the same without any padding.

    Args:
        array: Kernel `[out, in, *taps]`, or `[in, out, *taps]` if it is transposed.
        transposed: Whether it is the kernel of a transposed convolution.
        axes: For each spatial axis of jaxseg, the spatial axis of PyTorch's images that it is; None keeps their order.
    """
    first, second = (1, 0) if not transposed else (0, 1)
    places = range(array.ndim - 2) if axes is None else axes
    moved = array.transpose(*(2 + axis for axis in places), first, second)
    return np.flip(moved, tuple(range(array.ndim - 2))) if transposed else moved


def to_ours(array: np.ndarray, kind: Kind, *, axes: Sequence[int] | None = None) -> np.ndarray:
    """Return a tensor of PyTorch in jaxseg's layout, as a contiguous float32 array; see `kernel` for `axes`.

    A depthwise kernel `[channels, 1, *taps]` becomes `[*taps, 1, channels]`, with the tap that makes output
    `stride * i + t` at place `t`.
    """
    if kind == "vector":
        ours = array
    elif kind == "product":
        ours = array.reshape(array.shape[:2]).T
    elif kind == "depthwise":  # laid out like a convolution's kernel with one input channel; nothing is flipped
        ours = kernel(array, axes=axes)
    else:
        ours = kernel(array, transposed=kind == "transposed", axes=axes)
    return np.ascontiguousarray(ours, np.float32)


def to_theirs(
    array: np.ndarray, kind: Kind, *, axes: Sequence[int] | None = None, ndim: int | None = None
) -> np.ndarray:
    """Return a tensor of jaxseg in PyTorch's layout; the inverse of `to_ours`.

    Args:
        array: Tensor in jaxseg's layout.
        kind: How PyTorch lays it out.
        axes: As in `to_ours`.
        ndim: Spatial axes of the network, which the head's product alone does not show.
    """
    if kind == "vector":
        theirs = array
    elif kind == "product":
        if ndim is None:
            raise ValueError("the product of a head has no tap axes: give the spatial axes of the network as ndim")
        theirs = array.T.reshape(*array.T.shape, *(1,) * ndim)
    else:
        taps = array.ndim - 2
        places = np.argsort(range(taps) if axes is None else axes)
        array = np.flip(array, tuple(range(taps))) if kind == "transposed" else array
        channels = (taps, taps + 1) if kind == "transposed" else (taps + 1, taps)
        theirs = array.transpose(*channels, *places)
    return np.ascontiguousarray(theirs, np.float32)
