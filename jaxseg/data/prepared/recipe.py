"""The settings that determine how the cases of a task are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxseg.data import digests
from jaxseg.data.cases import CaseList, NamedRegion, Part, Source, of_part
from jaxseg.data.formats import structures
from jaxseg.data.prepared.task import PreparedTask, region_classes
from jaxseg.data.volumes import normalize
from jaxseg.settings import TaskSettings
from jaxseg.settings.kinds import check
from jaxseg.types import UserError

FORMAT = 9
"""Format version, raised whenever prepared arrays change their meaning, so that older stores are rebuilt."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that determines the contents of a store, apart from the input voxels."""

    ndim: int
    labels: tuple[tuple[str, int], ...]
    """Labels of the label maps with their values in the files, in class order: those that are segmented, or those that
    regions are made of."""
    known: tuple[int, ...]
    """Every value that may occur in a label map."""
    ignore: int | None
    modality: tuple[str, ...]
    normalization: tuple[str, ...]
    """Normalisation of each channel; of a pooled source, those of each part, one part after another."""
    spacing_mm: tuple[float, ...] | None
    clip: tuple[float, ...]
    noise: float
    regions: tuple[NamedRegion, ...] = ()
    """Segmented regions, in the order of outputs; empty if labels are segmented."""
    parts: tuple[Part, ...] = ()
    """The parts of a pooled source; empty where there is one source."""

    @property
    def structures(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What is segmented, as pairs of a name and the classes of the label map that it is made of."""
        index = {value: place for place, (_, value) in enumerate(self.labels, start=1)}
        if not self.regions:
            return tuple((name, (index[value],)) for name, value in self.labels)
        return tuple((region.name, tuple(index[value] for value in region.values)) for region in self.regions)

    def normalization_of(self, part: int) -> tuple[str, ...]:
        """Return the normalisation of each channel in a part."""
        return of_part(self.normalization, part, len(self.modality))


def make_recipe(task: TaskSettings, source: Source, ndim: int) -> Recipe:
    """Make the recipe of a task.

    Raises:
        UserError: A setting is unknown or does not fit the data.
    """
    listing = source.listing
    check(task)
    labels, regions = structures.choose(listing, labels=task.labels, regions=task.regions, data=task.data)
    _check_parts(labels, listing, task.data)
    return Recipe(
        ndim=ndim,
        labels=labels,
        regions=regions,
        known=_known(listing),
        ignore=listing.ignore,
        modality=listing.modality,
        normalization=tuple(
            name
            for modality in [part.modality for part in listing.parts] or [listing.modality]
            for name in normalize.per_channel(task.normalization, modality)
        ),
        spacing_mm=_wanted_spacing(task.spacing_mm, source, ndim),
        clip=task.clip,
        noise=task.noise,
        parts=listing.parts,
    )


def recipe_like(task: TaskSettings, source: Source, like: PreparedTask) -> Recipe:
    """Make the recipe of cases that networks of another task are to segment: its labels, grid and normalisation.

    Args:
        task: Settings, of which `regions`, `clip` and `noise` are used.
        source: The cases, whose label files may have other values for the same names.
        like: The other task.

    Raises:
        UserError: A label is not there, regions are made of others, or the images have another number of channels.
    """
    listing = source.listing
    if listing.parts:
        raise UserError(
            f"{task.data} pools {len(listing.parts)} sets, which only a source may; give each of them as a set of its "
            "own"
        )
    labels, regions = _labels_like(task, listing, like)
    if len(listing.modality) != len(like.modality):
        raise UserError(
            f"{task.data} has {len(listing.modality)} channel(s), {', '.join(listing.modality)}; the target has "
            f"{len(like.modality)}, {', '.join(like.modality)}. Give images with the same channels in the same order"
        )
    return Recipe(
        ndim=like.ndim,
        labels=labels,
        regions=regions,
        known=_known(listing),
        ignore=listing.ignore,
        modality=listing.modality,
        normalization=like.normalization,
        spacing_mm=like.spacing_mm,
        clip=task.clip,
        noise=task.noise,
    )


def _labels_like(
    task: TaskSettings, listing: CaseList, like: PreparedTask
) -> tuple[structures.Labels, tuple[NamedRegion, ...]]:
    """The classes and regions of another task, as these cases have them."""
    if like.regions is not None:
        chosen = () if task.regions else like.labels
        labels, regions = structures.choose(listing, labels=chosen, regions=task.regions, data=task.data)
        if region_classes(regions, [value for _, value in labels]) != like.regions:
            raise UserError(
                f"{task.data}: its regions are not made as the target's are, {', '.join(map(repr, like.labels))}. Give "
                "its dataset.json the target's `labels` and `regions_class_order`, and its label files their values"
            )
        return labels, regions
    values = dict(listing.labels)
    if lacking := [name for name in like.labels if name not in values]:
        raise UserError(
            f"{task.data} has no label {', '.join(map(repr, lacking))}, which the target has; its labels are "
            f"{', '.join(map(repr, values))}. Labels go by their names in dataset.json: give them the target's there"
        )
    return tuple((name, values[name]) for name in like.labels), ()


def _known(listing: CaseList) -> tuple[int, ...]:
    return (0, *(value for _, value in listing.labels), *([] if listing.ignore is None else [listing.ignore]))


def _check_parts(labels: Sequence[tuple[str, int]], listing: CaseList, data: str) -> None:
    """Refuse a part of a pooled source from which nothing can be learned, as it annotates none of the labels."""
    wanted = {name for name, _ in labels}
    for part in listing.parts:
        own = [name for name, _ in part.labels]
        if wanted and not wanted & {*own}:
            raise UserError(
                f"labels: the part {part.name} of {data} annotates none of {', '.join(sorted(wanted))}; it has "
                f"{', '.join(own)}. Leave it out, name one of its labels too, or give the structure the same name in "
                "both dataset.json files"
            )


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
    fields = dataclasses.asdict(recipe)
    for name in ("regions", "parts"):  # stores without them keep the names that they had before there were any
        if not fields[name]:
            del fields[name]
    return digests.of_values(FORMAT, identity, fields)[:16]
