"""The settings that determine how the cases of a task are stored."""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np

from jaxseg.data import digests
from jaxseg.data.cases import CaseList, Source
from jaxseg.data.prepared.task import PreparedTask
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
        known=_known(listing),
        ignore=listing.ignore,
        modality=listing.modality,
        normalization=normalize.per_channel(task.normalization, listing.modality),
        spacing_mm=_wanted_spacing(task.spacing_mm, source, ndim),
        clip=task.clip,
        noise=task.noise,
    )


def recipe_like(task: TaskSettings, source: Source, like: PreparedTask) -> Recipe:
    """Make the recipe of cases that networks of another task are to segment: its labels, grid and normalisation.

    Args:
        task: Settings, of which `clip` and `noise` are used.
        source: The cases, whose label files may have other values for the same names.
        like: The other task.

    Raises:
        UserError: A label is not there, or the images have another number of channels.
    """
    listing = source.listing
    values = dict(listing.labels)
    if lacking := [name for name in like.labels if name not in values]:
        raise UserError(
            f"{task.data} has no label {', '.join(map(repr, lacking))}, which the target has; its labels are "
            f"{', '.join(map(repr, values))}. Labels go by their names in dataset.json: give them the target's there"
        )
    if len(listing.modality) != len(like.modality):
        raise UserError(
            f"{task.data} has {len(listing.modality)} channel(s), {', '.join(listing.modality)}; the target has "
            f"{len(like.modality)}, {', '.join(like.modality)}. Give images with the same channels in the same order"
        )
    return Recipe(
        ndim=like.ndim,
        labels=tuple((name, values[name]) for name in like.labels),
        known=_known(listing),
        ignore=listing.ignore,
        modality=listing.modality,
        normalization=like.normalization,
        spacing_mm=like.spacing_mm,
        clip=task.clip,
        noise=task.noise,
    )


def _known(listing: CaseList) -> tuple[int, ...]:
    return (0, *(value for _, value in listing.labels), *([] if listing.ignore is None else [listing.ignore]))


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
