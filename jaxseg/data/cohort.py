"""The training cases of a task as one flat buffer of voxels, from which compiled code cuts patches."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num

from jaxseg.data.prepare import PreparedTask, load_case
from jaxseg.types import Cohort, UserError

INT32_VOXELS = 2**31 - 1


def build_cohort(prepared: PreparedTask, names: Sequence[str], *, seed: int = 0, points: int = 4096) -> Cohort:
    """Load cases into a cohort on the default device; the order of names gives the cohort's indices.

    Args:
        prepared: the task.
        names: of the cases.
        seed: of the draw of foreground voxels.
        points: at most so many foreground voxels are kept for each case and label.

    Raises:
        UserError: more voxels than 32-bit positions can address.
    """
    sizes = [int(np.prod(prepared.record(name).shape, dtype=np.int64)) for name in names]
    check_size(sum(sizes), prepared.name, len(names))
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    kind = np.uint8 if len(prepared.labels) < 256 else np.uint16
    image = np.empty((sum(sizes), prepared.channels), dtype=np.float32)
    label = np.empty(sum(sizes), dtype=kind)
    foreground = np.zeros((len(names), len(prepared.labels), max(1, points)), dtype=np.int32)
    counts = np.zeros((len(names), len(prepared.labels)), dtype=np.int32)
    for index, name in enumerate(names):
        case = load_case(prepared, name)
        here = slice(int(offsets[index]), int(offsets[index]) + sizes[index])
        image[here] = case.image.reshape(-1, prepared.channels)
        label[here] = case.label.ravel()
        for row in range(len(prepared.labels)):
            chosen = _draw_positions(case.label, row + 1, points, seed, name)
            foreground[index, row, : chosen.size] = chosen
            counts[index, row] = chosen.size
    used = max(1, int(counts.max(initial=0)))
    return Cohort(
        image=jnp.asarray(image),
        label=jnp.asarray(label),
        offsets=jnp.asarray(offsets),
        shapes=jnp.asarray([prepared.record(name).shape for name in names], dtype=jnp.int32),
        foreground=jnp.asarray(foreground[:, :, :used]),
        num_foreground=jnp.asarray(counts),
        spacing=jnp.asarray([prepared.record(name).spacing_mm for name in names], dtype=jnp.float32),
    )


def check_size(voxels: int, name: str, cases: int) -> None:
    """Refuse a cohort whose voxels 32-bit positions cannot address.

    Raises:
        UserError: 2^31 voxels or more.
    """
    if voxels > INT32_VOXELS:
        raise UserError(
            f"{name}: {cases} training cases have {voxels:,} voxels together; a cohort holds at most {INT32_VOXELS:,}. "
            "Use a coarser spacing_mm or fewer train_cases."
        )


def _draw_positions(
    label: Num[np.ndarray, " *spatial"], value: int, points: int, seed: int, name: str
) -> Int[np.ndarray, " points"]:
    """Positions of one label, in order; a draw that depends on the case and the seed, not on the other cases."""
    inside = np.flatnonzero(label == value)
    if inside.size <= points:
        return inside
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), value])
    return np.sort(rng.choice(inside, size=points, replace=False, shuffle=False))
