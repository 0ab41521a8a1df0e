"""The memory that an array takes as a platform lays it out.

CPUs and GPUs keep an array as it is. TPUs keep it in tiles of its last two axes, 8 rows of 128 lanes of 32 bits each,
and pad an axis that fills no whole number of tiles: with channels last, 16 channels would take as much as 128. XLA
therefore lets the two axes change places where that pads less. Few rows have smaller tiles, of 1, 2 or 4 rows. Narrower
numbers share the words of a lane, two rows of bfloat16 or four of bytes in one. These are the layouts that libtpu
0.0.42.1 gives to the arguments of programs for v4, v5e and v6e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax

LANES = 128
ROWS = 8
_LEAST_BYTES = 512
"""Size of the smallest tile of an array of one axis."""
_MOST_ELEMENTS = 1024
"""Size of the largest tile of an array of one axis."""


def array_bytes(shape: Sequence[int], itemsize: int, platform: str) -> int:
    """Returns the bytes of an array on a platform.

    >>> array_bytes((2, 32, 32, 32, 16), 4, "cpu"), array_bytes((2, 32, 32, 32, 16), 4, "tpu")
    (4194304, 16777216)
    """
    size = math.prod(shape)
    if platform != "tpu" or not size * itemsize:
        return size * itemsize
    if len(shape) < 2:
        tile = min(max(_power_of_two(size), _LEAST_BYTES // itemsize), _MOST_ELEMENTS)
        return _padded(size, tile) * itemsize
    *outer, first, second = shape
    return math.prod(outer) * min(_tiled(first, second, itemsize), _tiled(second, first, itemsize)) * itemsize


def tree_bytes(tree: Any, platform: str) -> int:
    """Returns the bytes of the arrays of a tree, of which shapes and dtypes are enough."""
    return sum(array_bytes(leaf.shape, leaf.dtype.itemsize, platform) for leaf in jax.tree.leaves(tree))


def _tiled(rows: int, lanes: int, itemsize: int) -> int:
    """The elements of two axes, with the padding of their tiles."""
    tile = min(max(_power_of_two(rows), 4 // itemsize), ROWS)
    return _padded(rows, tile) * _padded(lanes, LANES)


def _padded(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _power_of_two(size: int) -> int:
    """The smallest power of two that is not below a size."""
    return 1 << (size - 1).bit_length()
