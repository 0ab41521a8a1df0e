"""The settings that determine how the cases of a task are stored."""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np

from jaxseg.data import digests
from jaxseg.data.cases import CaseList, Source
from jaxseg.data.volumes import normalize
from jaxseg.settings import TaskSettings
from jaxseg.settings.kinds import check
from jaxseg.types import UserError

FORMAT = 5
"""Format version, raised whenever prepared arrays change their meaning, so that older stores are rebuilt."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that determines the contents of a store, apart from the input voxels."""

    ndim: int
    labels: tuple[tuple[str, int], ...]
    """Segmented labels with their values in the files, in class order."""
    known: tuple[int, ...]
    """Every value that may occur in a label map."""
    ignore: int | None
    modality: tuple[str, ...]
    normalization: tuple[str, ...]
    spacing_mm: tuple[float, ...] | None
    clip: tuple[float, ...]
    noise: float


def make_recipe(task: TaskSettings, source: Source, ndim: int) -> Recipe:
    """Make the recipe of a task.

    Raises:
        UserError: A setting is unknown or does not fit the data.
    """
    listing = source.listing
    check(task)
    return Recipe(
        ndim=ndim,
        labels=_chosen_labels(task, listing),
        known=(0, *(value for _, value in listing.labels), *([] if listing.ignore is None else [listing.ignore])),
        ignore=listing.ignore,
        modality=listing.modality,
        normalization=normalize.per_channel(task.normalization, listing.modality),
        spacing_mm=_wanted_spacing(task.spacing_mm, source, ndim),
        clip=task.clip,
        noise=task.noise,
    )


def _chosen_labels(task: TaskSettings, listing: CaseList) -> tuple[tuple[str, int], ...]:
    if not task.labels:
        return listing.labels
    values = dict(listing.labels)
    for name in task.labels:
        if name not in values:
            near = difflib.get_close_matches(name, values, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"labels: {task.data} has no label {name!r}; it has {', '.join(map(repr, values))}.{hint}")
    if len(set(task.labels)) != len(task.labels):
        raise UserError(f"labels: {task.labels} names a label twice.")
    return tuple((name, values[name]) for name in task.labels)


def _wanted_spacing(wanted: str | tuple[float, ...], source: Source, ndim: int) -> tuple[float, ...] | None:
    if wanted == "native":
        return None
    if wanted == "median":
        found = [grid[1] for case in source.listing.cases if (grid := source.grid_of(case)) is not None]
        if not found:
            return None
        return tuple(float(value) for value in np.round(np.median(np.array(found), axis=0), 6))
    if isinstance(wanted, str) or len(wanted) != ndim or min(wanted) < 0:
        raise UserError(
            f"spacing_mm is {wanted!r}; allowed are native, median, or {ndim} positive numbers (0: as the case has it)."
        )
    return tuple(float(value) for value in wanted)


def fingerprint(recipe: Recipe, identity: str) -> str:
    """Return the name of the store for a recipe and the identity of its inputs."""
    return digests.of_values(FORMAT, identity, dataclasses.asdict(recipe))[:16]
