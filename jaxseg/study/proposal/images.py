"""Chooses what a task's images ask for by themselves: slices, grid, intensities, flips and validation cases."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.settings.kinds import read_spacing
from jaxseg.settings.task_schema import SLICE_AXES
from jaxseg.study.proposal import grid
from jaxseg.study.proposal.choice import Choice
from jaxseg.study.proposal.fingerprint import Fingerprint
from jaxseg.study.proposal.grid import View
from jaxseg.study.proposal.network import NOTHING, Fixed
from jaxseg.types import UserError

FEWEST_SLICES = 5
"""Slices below which a volume has no third dimension to learn from."""
_MASKED = 0.25
"""Share of zeros in MR from which the background may have been masked out; then little else is dark."""
_TINY = 1e-3
"""Share of an image below which a label is hardly met by a patch drawn anywhere."""
_JOINED = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<![A-Z][LR])(?<=[LR])(?=[A-Z][a-z])")
"""Places where a word of a label's name begins without a blank, as in KidneyLeft and LKidney."""
# A mirror confuses pairs of one shape, such as kidneys or parotids: the image of the left one looks like the right one.
# LV and RV are no such pair: the ventricles differ in shape, so that a mirrored one still looks like itself, and LV may
# be a lateral ventricle. A name that spells a side out, or runs on as LVmyo does, is taken to have one all the same:
# that costs an augmentation, and a side that is missed teaches wrong labels.
_SIDED = re.compile(r"(?<![a-z])(?:(?:left|right)|(?:l|r|lh|rh|sin|dex)(?![a-z]))", re.IGNORECASE)
_TURNED = ("micro", "histo", "patho", "stain", "fluor", "rgb")
"""Parts of modalities of which every orientation is as plausible."""


def ndim_of(target: Fingerprint, sources: Mapping[str, Fingerprint], fixed: Fixed = NOTHING) -> tuple[int, str]:
    """Returns the axes of a network for all tasks, and why; as `model.ndim` or an `as_slices` has it where it is fixed.

    Raises:
        UserError: The fixed `model.ndim` is neither 2 nor 3, or 3 where images are 2-D, or an `as_slices` does not go
            with the images.
    """
    tasks = {"target": target, **sources}
    flat = [task for task, found in tasks.items() if found.ndim == 2]
    given = {task: fixed[f"{task}.as_slices"] for task in tasks if f"{task}.as_slices" in fixed}
    for task, name in given.items():
        if name and task in flat:
            raise UserError(f"config.{task}.as_slices = {name!r}; allowed: '', as the {task}'s images are 2-D")
        if not name and task not in flat and (flat or fixed.get("model.ndim") == 2):
            raise UserError(
                f"config.{task}.as_slices = ''; allowed: {', '.join(map(repr, SLICE_AXES))}, as the network has two "
                f"axes and the {task} has volumes"
            )
    if "model.ndim" in fixed:
        ndim = fixed["model.ndim"]
        if ndim not in (2, 3) or (ndim == 3 and flat):
            why = f", as the {flat[0]}'s images are 2-D" if flat else ""
            raise UserError(f"config.model.ndim = {ndim!r}; allowed: {'2' if flat else '2, 3'}{why}")
        return ndim, "as given"
    if flat:
        return 2, f"the {flat[0]}'s images are 2-D"
    sliced = next((task for task, name in given.items() if name), None)
    if sliced:
        return 2, f"volumes of the {sliced} are taken slice by slice, as given"
    if given:
        return 3, f"volumes of the {next(iter(given))} are taken whole, as given"
    slices = target.shape[_across(target)]
    if slices < FEWEST_SLICES:
        return 2, f"the target's volumes have {number(slices)} slices, too few for a third dimension"
    return 3, "the images are volumes"


def slice_axis(found: Fingerprint, ndim: int, given: str = "") -> int | None:
    """Returns the axis that a 2-D network's slices lie across; None where images are taken whole.

    Args:
        found: The images.
        ndim: Axes of the network.
        given: What `as_slices` is fixed to; a name that there is none of is left to the check of the config.
    """
    return SLICE_AXES.get(given, _across(found)) if found.ndim > ndim else None


def _across(found: Fingerprint) -> int:
    """The axis with the longest voxels; of equal ones the last, so that isotropic volumes are cut into axial slices."""
    longest = max(found.spacing_mm)
    return max(axis for axis, size in enumerate(found.spacing_mm) if size >= 0.99 * longest)


def slices_name(axis: int | None) -> str:
    """Returns how `as_slices` names an axis."""
    return "" if axis is None else {value: name for name, value in SLICE_AXES.items()}[axis]


# -------------------------------------------------------------------------------------------------------------- grid


def write_spacing(found: Fingerprint, seen: View, spacing: Sequence[float]) -> str:
    """Returns voxel sizes as a config has them: `native`, or a number for each axis and 0 where it stays as it is."""
    if not seen.varies and tuple(spacing) == seen.spacing:
        return "native"
    edges = dict.fromkeys(range(found.ndim), 0.0)
    for place, axis in enumerate(seen.axes):
        kept = place in seen.thick and spacing[place] == seen.spacing[place]
        edges[axis] = 0.0 if kept else spacing[place]
    return ", ".join(number(edges[axis]) for axis in range(found.ndim))


def given_spacing(found: Fingerprint, seen: View, value: Any, role: str) -> tuple[float, ...]:
    """Returns the voxel sizes that a fixed `spacing_mm` gives the images as a network sees them.

    Raises:
        UserError: The value is no spacing, or has a number of axes that the images do not have.
    """
    whole = _given_edges(found, value, role)
    return tuple(whole[axis] for axis in seen.axes)


def resampled(found: Fingerprint, across: int | None, value: Any, role: str) -> Fingerprint:
    """Returns the images with as many slices as a fixed `spacing_mm` leaves across the axis that is cut.

    Raises:
        UserError: As `given_spacing`.
    """
    if across is None:
        return found
    slices = found.shape[across] * found.spacing_mm[across] / _given_edges(found, value, role)[across]
    shape = tuple(slices if axis == across else size for axis, size in enumerate(found.shape))
    return dataclasses.replace(found, shape=shape)


def _given_edges(found: Fingerprint, value: Any, role: str) -> tuple[float, ...]:
    """The voxel sizes along all axes of a fixed `spacing_mm`."""
    given = read_spacing(value, f"{role}.spacing_mm")
    if isinstance(given, str):
        return found.spacing_mm
    if len(given) != found.ndim:
        numbers = f"'native', 'median', or {found.ndim} numbers, one for each axis of its images"
        raise UserError(f"config.{role}.spacing_mm = {value!r}; allowed: {numbers}")
    return tuple(size or own for size, own in zip(given, found.spacing_mm, strict=True))


def source_spacing(seen: View, target: Sequence[float], patch: Sequence[int]) -> tuple[tuple[float, ...], str]:
    """Returns the source's voxel sizes, and why.

    They are the target's, so that a structure of some size looks the same to the network, unless that would invent
    images between thick slices or leave too little of the source's own structures. Then the source keeps its own grid,
    made coarser until its longest structure fits the patch.
    """
    edges = tuple(zip(seen.spacing, target, strict=True))
    near = all(max(own, there) <= SAME_SIZE * min(own, there) for own, there in edges)
    if near and seen.thickness >= grid.LEAST_ACROSS * min(target):
        if all(max(own, there) <= grid.SAME * min(own, there) for own, there in edges):
            return seen.spacing, "the target's grid, as the images have it"
        return tuple(target), "the target's grid, so that lengths look the same to the network"
    reason = f"its own grid, {sizes(seen.spacing)}, which differs too much from the target's, {sizes(target)}"
    options = grid.grids(seen)
    for spacing in options:
        lengths = [extent / edge for extent, edge in zip(seen.extent, spacing, strict=True)]
        if all(length <= size for length, size in zip(lengths, patch, strict=True)) or spacing == options[-1]:
            break
    if spacing != seen.spacing:
        reason += f"; coarser, so that {seen.longest or 'more of the image'} fits the patch"
    return spacing, reason


SAME_SIZE = 2.5
"""Ratio of voxel sizes up to which a source is put on the target's grid."""


# ------------------------------------------------------------------------------------------------------- intensities


def normalization(found: Fingerprint) -> tuple[str, str]:
    """Returns the normalisation of a task, and why."""
    # A channel of a pooled source has the modalities of all parts.
    names = [name for channel in found.channels for name in (channel.modality or "unnamed").split(" / ")]
    computed = [name.strip().upper().startswith("CT") for name in names]
    shown = ", ".join(dict.fromkeys(names))
    if all(computed):
        return "dataset", "CT numbers mean the same in every scan: one window for all, from the training cases' labels"
    if any(computed):
        return "auto", f"by channel ({shown}): one window for all CT, each case's own mean and deviation for the others"
    resonance = all(name.strip().upper().startswith(("MR", "T1", "T2", "FLAIR", "PD")) for name in names)
    zeros = min(channel.zeros for channel in found.channels)
    masked = all(channel.dark < 0.1 * channel.zeros for channel in found.channels)
    if resonance and zeros >= _MASKED and masked:
        return "zscore_nonzero", f"{zeros:.0%} of the voxels are exactly 0: the background was masked out"
    scales = max(channel.scales for channel in found.channels)
    told = f", and here intensities of cases differ {number(scales)} times" if scales > 1.5 else ""
    return "zscore", f"intensities of {shown} have no scale of their own{told}: each case by its own mean and deviation"


def flips(found: Fingerprint, seen: View) -> tuple[tuple[int, ...], str]:
    """Returns the axes of a patch that may be flipped, and why."""
    sided = [label.name for label in found.labels if _SIDED.search(_JOINED.sub(" ", label.name))]
    if sided:
        return (), f"a label has a side ({sided[0]}): mirrored, other structures would look like it"
    if all(any(part in channel.modality.lower() for part in _TURNED) for channel in found.channels):
        return tuple(range(len(seen.axes))), "these images have no upright direction"
    if 0 not in [found.axes[axis] for axis in seen.axes]:
        return (), "slices do not hold the axis from left to right, and no other mirror image is plausible"
    return (0,), "an image mirrored from left to right is as plausible"


def foreground(found: Fingerprint) -> tuple[float, str]:
    """Returns the share of patches that hold a labelled voxel, and why."""
    if not found.labels and not found.missing:
        return 0.0, "nothing is labelled: patches lie anywhere"
    if found.labels:
        rarest = min(found.labels, key=lambda label: label.share)
        if rarest.share < _TINY:
            return 0.75, f"{rarest.name} takes {rarest.share:.1e} of an image: patches drawn anywhere rarely meet it"
    return 0.5, "half of the patches hold a label drawn at random, the others lie anywhere"


def task_choices(role: str, found: Fingerprint, seen: View, across: int | None, *, val_cases: int) -> list[Choice]:
    """Returns the fields of a task that follow from its own images."""
    name = slices_name(across)
    taken = (
        f"slices across the {'longest' if name != 'axial' else 'last'} voxel edge" if name else "images are taken whole"
    )
    unit = "voxel" if found.in_voxels else "mm"
    said = (
        "the voxel size is exactly 1 everywhere, as where it is unknown" if found.in_voxels else "headers give lengths"
    )
    values = max(found.parts, min(val_cases, max(1, found.groups // 10)))
    return [
        Choice(f"{role}.as_slices", name, taken),
        Choice(f"{role}.unit", unit, said),
        Choice(
            f"{role}.val_cases", values, f"at most a tenth of {found.groups} groups, as every validation takes time"
        ),
        Choice(f"{role}.normalization", *normalization(found)),
        Choice(f"{role}.foreground", *foreground(found)),
        Choice(f"{role}.augment.flip", *flips(found, seen)),
    ]


# -------------------------------------------------------------------------------------------------------------- words


def number(value: float) -> str:
    """Returns a number with three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def sizes(values: Sequence[float]) -> str:
    """Returns lengths as `1 x 1 x 3`."""
    return " x ".join(number(value) for value in values)
