"""The convolution of XLA: the form `native`, and what the form `joined` is made of."""

from __future__ import annotations

import dataclasses

import jax
from jax import lax


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a convolution does, besides its operands; per spatial axis.

    Attributes:
        strides: Steps between outputs.
        padding: Below and above; or `SAME`.
        dilation: Of the input.
        precision: Of `lax.conv_general_dilated`.
    """

    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    precision: str | None


def conv(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int = 1) -> jax.Array:
    """XLA's convolution, channels last, on any number of spatial axes.

    Args:
        x: `[batch, *spatial, channels]`.
        kernel: `[*taps, channels / groups, features]`.
        geometry: Strides, padding and dilation.
        groups: Of channels, each of which makes its own share of the features.
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
