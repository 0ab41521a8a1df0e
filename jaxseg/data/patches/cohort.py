"""The training cases of a task as one flat buffer of voxels, from which compiled code cuts patches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxseg import streams
from jaxseg.data.prepared.task import PreparedTask, load_case
from jaxseg.data.volumes.resample import resize_labels
from jaxseg.regions import mask
from jaxseg.types import Cohort, UserError

INT32_VOXELS = 2**31 - 1
POINTS = 4096
"""The most foreground voxels that are kept for each case and label."""


SHARED = 2**24
"""The most voxels and foreground positions of a cohort that is given the size of another one, so that both train with
one compiled program. They take up to 100 MB of a device; with larger cohorts, compiling is a small part of the time."""


class Room(NamedTuple):
    """Least sizes of a cohort's arrays; what cases do not fill is never read."""

    voxels: int
    cases: int
    points: int

    def is_small(self, labels: int) -> bool:
        """Return whether cohorts with so many labels may be given this room where they need less."""
        return self.voxels + self.cases * self.points * labels <= SHARED


def room_of(cohorts: Sequence[tuple[PreparedTask, Sequence[str]]], *, points: int = POINTS) -> Room:
    """Return the room in which each of several cohorts has its place, so that one program can train on all of them.

    Args:
        cohorts: The prepared task and the names of the cases of each.
        points: See `build_cohort`.
    """
    sizes = [[math.prod(prepared.record(name).shape) for name in names] for prepared, names in cohorts]
    return Room(max(map(sum, sizes)), max(map(len, sizes)), min(points, max(map(max, sizes))))


def build_cohort(
    prepared: PreparedTask,
    names: Sequence[str],
    *,
    seed: int = 0,
    points: int = POINTS,
    shuffle_labels: bool = False,
    room: Room | None = None,
) -> Cohort:
    """Load cases into a cohort on the default device; the order of names determines the indices in the cohort.

    Args:
        prepared: The prepared task.
        names: Names of the cases.
        seed: Seed of the draw of foreground voxels.
        points: Largest number of foreground voxels that are kept for each case and label.
        shuffle_labels: Whether each image gets the label map of another case, resized to it (`shuffled_donors`).
        room: Least sizes of the arrays; None for those that the cases need.

    Raises:
        UserError: There are more voxels than 32-bit positions can address, or labels of a single case are to be
            shuffled.
    """
    check_size(sum(math.prod(prepared.record(name).shape) for name in names), prepared.name, len(names))
    cohort = load_cohort(prepared, names, seed=seed, points=points, shuffle_labels=shuffle_labels)
    if room is not None:
        cohort = _with_room(cohort, room)
    return jax.device_put(dataclasses.replace(cohort, offsets=cohort.offsets.astype(np.int32)))


def load_cohort(
    prepared: PreparedTask, names: Sequence[str], *, seed: int = 0, points: int = POINTS, shuffle_labels: bool = False
) -> Cohort:
    """Like `build_cohort`, but on the host and of any size: NumPy arrays with 64-bit offsets."""
    donors = shuffled_donors(prepared.name, names, seed) if shuffle_labels else {}
    sizes = [math.prod(prepared.record(name).shape) for name in names]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    image = np.empty((sum(sizes), prepared.channels), dtype=image_kind(prepared))
    label = np.empty(sum(sizes), dtype=label_kind(prepared))
    rows = max(1, len(prepared.labels))  # one, always empty, where there are no labels
    foreground = np.zeros((len(names), rows, max(1, points)), dtype=np.int32)
    counts = np.zeros((len(names), rows), dtype=np.int32)
    for index, name in enumerate(names):
        case = load_case(prepared, name)
        labels = case.label
        if name in donors:
            labels = resize_labels(load_case(prepared, donors[name]).label, case.label.shape)
        here = slice(int(offsets[index]), int(offsets[index]) + sizes[index])
        image[here] = case.image.reshape(-1, prepared.channels)
        label[here] = labels.ravel()
        for row, classes in enumerate(prepared.members):
            chosen = _draw_positions(mask(labels, classes), row + 1, points, seed, name)
            foreground[index, row, : chosen.size] = chosen
            counts[index, row] = chosen.size
    used = max(1, int(counts.max(initial=0)))
    arrays: dict[str, Any] = {
        "image": image,
        "label": label,
        "offsets": offsets,
        "shapes": np.asarray([prepared.record(name).shape for name in names], dtype=np.int32),
        "foreground": foreground[:, :, :used],
        "num_foreground": counts,
        "spacing": np.asarray([prepared.record(name).spacing_mm for name in names], dtype=np.float32),
    }
    if prepared.is_partial:  # a label map that is another case's annotates what that one does
        given = [prepared.record(donors.get(name, name)) for name in names]
        arrays["annotated"] = np.asarray([prepared.annotated(record) for record in given])
    return Cohort(**arrays)


def _with_room(cohort: Cohort, room: Room) -> Cohort:
    """The same cohort in larger arrays."""

    def longer(array: Any, length: int) -> Any:
        return np.pad(array, ((0, length - len(array)), *((0, 0),) * (array.ndim - 1)))

    of_voxels, of_cases = ("image", "label"), ("offsets", "shapes", "num_foreground", "spacing", "annotated")
    arrays = {name: longer(getattr(cohort, name), room.voxels) for name in of_voxels}
    known = {name: found for name in of_cases if (found := getattr(cohort, name)) is not None}
    arrays |= {name: longer(found, room.cases) for name, found in known.items()}
    foreground = np.pad(cohort.foreground, ((0, 0), (0, 0), (0, room.points - cohort.foreground.shape[-1])))
    return dataclasses.replace(cohort, **arrays, foreground=longer(foreground, room.cases))


def image_kind(prepared: PreparedTask) -> type[np.float16] | type[np.float32]:
    """Return the dtype in which intensities are kept; patches are float32 again once they are cut.

    Normalised intensities are kept in float16. Its relative rounding error is 2^-11: 0.0003 sd after z-scoring in
    each of nine real sets, and the grey levels of 8-bit and CT images all stay apart (bfloat16: 0.002 sd, and up to
    two fifths of the levels fall together). It cannot overflow at 65,504: no z-score of n voxels exceeds sqrt(n), and
    percentiles and windows are clipped. Intensities that nothing bounds (`none`) stay float32.
    """
    return np.float32 if "none" in prepared.normalization else np.float16


def label_kind(prepared: PreparedTask) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest dtype that holds every class index, including that of unknown voxels."""
    return np.uint8 if len(prepared.label_values) < 255 else np.uint16


def cohort_bytes(prepared: PreparedTask, names: Sequence[str]) -> int:
    """Return the bytes of the voxels of these cases in a cohort."""
    voxels = sum(math.prod(prepared.record(name).shape) for name in names)
    kinds = np.dtype(image_kind(prepared)), np.dtype(label_kind(prepared))
    return voxels * (prepared.channels * kinds[0].itemsize + kinds[1].itemsize)


def shuffled_donors(task: str, names: Sequence[str], seed: int) -> dict[str, str]:
    """Assign to each case another one, each of them once: a seeded cycle through all cases.

    Raises:
        UserError: There are fewer than two cases.
    """
    if len(names) < 2:
        raise UserError(f"{task}: shuffle_labels needs at least two training cases, there is {len(names)}.")
    rng = streams.host_rng(seed, "shuffle_labels")
    cycle = [sorted(names)[position] for position in rng.permutation(len(names))]
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def check_size(voxels: int, name: str, cases: int) -> None:
    """Refuse a cohort with more voxels than 32-bit positions can address.

    Raises:
        UserError: There are 2^31 voxels or more.
    """
    if voxels > INT32_VOXELS:
        raise UserError(
            f"{name}: {cases} training cases have {voxels:,} voxels together; a cohort holds at most {INT32_VOXELS:,}. "
            "Set runtime.data_residence to 'host' (or 'auto'), use a coarser spacing_mm, or fewer train_cases."
        )


def _draw_positions(
    of_label: Bool[np.ndarray, " *spatial"], number: int, points: int, seed: int, name: str
) -> Int[np.ndarray, " points"]:
    """Positions of one label or region, in order; a draw that depends on the case and the seed, not on other cases."""
    inside = np.flatnonzero(of_label)
    if inside.size <= points:
        return inside
    rng = streams.host_rng(seed, name, number)
    return np.sort(rng.choice(inside, size=points, replace=False, shuffle=False))
