"""XLA's convolution: the form `native`, and the building block of the form `joined`."""

from __future__ import annotations

import dataclasses

import jax
from jax import lax


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Parameters of a convolution besides its operands, per spatial axis.

    Attributes:
        strides: Steps between outputs.
        padding: Padding below and above, or `SAME`.
        dilation: Dilation of the input.
        precision: Precision of `lax.conv_general_dilated`.
    """

    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    precision: str | None


def conv(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int = 1) -> jax.Array:
    """Compute XLA's convolution, channels last, on any number of spatial axes.

    Args:
        x: Input `[batch, *spatial, channels]`.
        kernel: Kernel `[*taps, channels / groups, features]`.
        geometry: Strides, padding and dilation.
        groups: Number of groups of channels, each of which makes its own share of the features.
    """
    ndim = x.ndim - 2
    axes = "DHW"[-ndim:] if ndim <= 3 else "".join(chr(ord("0") + i) for i in range(ndim))
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        lhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
        precision=geometry.precision,
    )
