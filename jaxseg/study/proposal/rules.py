"""Proposes the settings of a study from the fingerprints of its images: a pure function, with a reason for each value.

The target decides: grid, patch and network are for its structures and for the time a run has. The source takes the same
network and, where its voxels allow, the same grid; intensities and flips are each task's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.study.proposal import grid, images
from jaxseg.study.proposal.choice import Choice, Proposal
from jaxseg.study.proposal.fingerprint import Fingerprint
from jaxseg.study.proposal.grid import View
from jaxseg.study.proposal.images import number, sizes
from jaxseg.study.proposal.machine import Resources
from jaxseg.study.proposal.network import (
    BATCHES,
    COVERED,
    EXACT,
    NOTHING,
    Fixed,
    Meter,
    Network,
    choose,
    fit_memory,
    program_of,
    step_patches,
)

LARGEST_BATCHES = {2: 32, 3: 8}
ENOUGH_STEPS = 4000
"""Steps from which a larger batch is worth more than twice the steps."""
MOST_STEPS = 20_000
LOOKS = 50
"""Points of a learning curve; the claim about training time needs so many."""
OFTEN_SEEN = 50
"""Patches that a run takes from each training case above which augmentation pays (docs/accuracy.md has a set that loses
by it in shorter runs)."""
_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.25
"""Shares of a run's time above which the test's windows overlap less, and validation is rarer."""


@dataclasses.dataclass(frozen=True)
class _Course:
    """How a run spends its time."""

    batch: int
    accumulate: int
    """Batches in a step."""
    steps: int
    looks: int
    """Validations in a run."""
    val_cases: int
    overlap: float
    every: int
    """Steps between two points of a learning curve."""
    step_seconds: float
    possible: int
    """Steps that the time allows."""
    used: float
    """The time that a run takes, over the time that it has."""


def propose(
    target: Fingerprint,
    sources: Mapping[str, Fingerprint],
    resources: Resources,
    *,
    fixed: Fixed = NOTHING,
    meter: Meter = EXACT,
) -> Proposal:
    """Proposes settings.

    Args:
        target: Images that networks are tested on.
        sources: Images that they are pretrained on, by the section of the config that describes them: `source`, or that
            of an arm with a source of its own. Empty for training from scratch alone.
        resources: Time and machine.
        fixed: Fields that stay as they are; what they leave of the time decides the others.
        meter: Finds the work and the size of a training step.

    Returns:
        A choice for every field that the images decide, and notes.

    Raises:
        UserError: If what is fixed does not go with the rest.
    """
    ndim, why = images.ndim_of(target, sources, fixed)
    across = images.slice_axis(target, ndim, fixed.get("target.as_slices", ""))
    seen = grid.view(target, across)
    if "target.spacing_mm" in fixed:
        target = images.resampled(target, across, fixed["target.spacing_mm"], "target")
    size: dict[str, Any] = {"channels": len(target.channels), "classes": target.classes, "fixed": fixed}
    made = choose(seen, _spacings("target", target, seen, fixed), resources, **size)
    made = dataclasses.replace(made, patch=tuple(fixed.get("target.patch", made.patch)))
    made, batch = fit_memory(made, resources, meter, **size, batch=fixed.get("train.batch", BATCHES[ndim]))
    course = _course(target, seen, made, batch, resources, meter, fixed)
    made, batch = fit_memory(made, resources, meter, **size, batch=course.batch)
    if batch != course.batch:
        course = _course(target, seen, made, batch, resources, meter, {**fixed, "train.batch": batch})
    choices = [Choice("model.ndim", ndim, why), *_network_choices(made, fixed)]
    choices += _grid_choices("target", target, seen, made.spacing, _spacing_reason(seen, made, fixed), made.patch, made)
    choices += images.task_choices("target", target, seen, across, val_cases=course.val_cases)
    choices += _augmentation("target", target, seen, course)
    if "source" not in sources:
        choices.append(Choice("source.patch", made.patch, "the target's; nothing is pretrained on this source"))
    for role, source in sources.items():
        choices += _source_choices(role, source, made, course, ndim, fixed)
    choices += _course_choices(course, resources)
    return Proposal(tuple(choices), tuple(_notes(target, sources, course, resources, fixed)))


# -------------------------------------------------------------------------------------------------------------- grid


def _spacings(role: str, found: Fingerprint, seen: View, fixed: Fixed) -> list[tuple[float, ...]]:
    """The grids to choose from; the one that is fixed alone."""
    field = f"{role}.spacing_mm"
    return [images.given_spacing(found, seen, fixed[field], role)] if field in fixed else grid.grids(seen)


def _spacing_reason(seen: View, made: Network, fixed: Fixed) -> str:
    if "target.spacing_mm" in fixed:
        return "as given"
    if made.spacing == seen.spacing:
        told = (
            "the median of cases that differ" if seen.varies else "the images' own grid, so that nothing is resampled"
        )
        return f"{told}; slices stay as they are" if seen.thick and seen.varies else told
    if grid.across(seen, made.spacing) >= grid.MOST_ACROSS:
        why = f"as fine as {seen.thinnest} asks for"
    else:
        why = f"so that a patch that the time allows covers {seen.longest or 'more of the image'}"
    left = (
        f"; {seen.thinnest} is still {number(grid.across(seen, made.spacing))} voxels across" if seen.thinnest else ""
    )
    return f"coarser than the images ({sizes(seen.spacing)}), {why}{left}"


def _grid_choices(
    role: str,
    found: Fingerprint,
    seen: View,
    spacing: Sequence[float],
    reason: str,
    patch: Sequence[int],
    made: Network,
) -> list[Choice]:
    lengths = [size * edge for size, edge in zip(patch, spacing, strict=True)]
    unit = "voxels" if found.in_voxels else "mm"
    of = f"{seen.longest} reaches over {sizes(seen.extent)}" if seen.longest else "no label says what it must hold"
    whole = sizes([length / edge for length, edge in zip(seen.lengths, spacing, strict=True)])
    told = f"{sizes(lengths)} {unit}: {of}, and an image has {whole} voxels on this grid; multiples of the strides"
    if role == "target" and made.covered < COVERED:
        told += f" ({made.covered:.0%} of what the structures ask for, as time or memory allow no more)"
    return [
        Choice(f"{role}.spacing_mm", images.write_spacing(found, seen, spacing), reason),
        Choice(f"{role}.patch", tuple(patch), told),
    ]


def _source_choices(
    role: str, source: Fingerprint, made: Network, course: _Course, ndim: int, fixed: Fixed
) -> list[Choice]:
    across = images.slice_axis(source, ndim, fixed.get(f"{role}.as_slices", ""))
    seen = grid.view(source, across)
    if f"{role}.spacing_mm" in fixed:
        (spacing,), reason = _spacings(role, source, seen, fixed), "as given"
    else:
        spacing, reason = images.source_spacing(seen, made.spacing, made.patch)
    patch = grid.within(seen, spacing, made.patch, made.levels.divisors)
    choices = _grid_choices(role, source, seen, spacing, reason, patch, made)
    choices += images.task_choices(role, source, seen, across, val_cases=course.val_cases)
    return choices + _augmentation(role, source, seen, course)


def _network_choices(made: Network, fixed: Fixed) -> list[Choice]:
    patches = step_patches(fixed, BATCHES[len(made.patch)])
    strides, kernels = made.model.strides, made.model.kernels
    halved = "an axis is halved while it is 8 voxels long and its voxels are shorter than twice the shortest"
    reach = "3 voxels, but not across voxels that are twice as long as the shortest"
    return [
        Choice(
            "model.widths",
            made.widths,
            f"{len(made.widths)} levels, down to a few voxels an axis; {made.widths[0]} channels at the finest, as a "
            f"run has time for about {made.steps:,} steps of {'one patch' if patches == 1 else f'{patches} patches'}",
        ),
        Choice("model.strides", strides, halved if strides else "2 everywhere"),
        Choice("model.kernels", kernels, reach if kernels else "3 everywhere, in vnet 5"),
    ]


# ------------------------------------------------------------------------------------------------------------- course


def windows(found: Fingerprint, seen: View, spacing: Sequence[float], patch: Sequence[int], overlap: float) -> int:
    """Returns the windows that predict a whole case."""
    count = math.prod(
        max(1, math.ceil((length / edge - size) / (size * (1 - overlap))) + 1)
        for length, edge, size in zip(seen.lengths, spacing, patch, strict=True)
    )
    sliced = [round(found.shape[axis]) for axis in range(found.ndim) if axis not in seen.axes]
    return count * math.prod(sliced)


def _tested(target: Fingerprint, fixed: Fixed) -> int:
    """The cases that a run is tested on."""
    folds, cases = fixed.get("target.folds", 1), fixed.get("target.test_cases", 0)
    if target.listed:
        return max(target.listed[:folds])
    return min(cases, target.cases) or math.ceil(target.cases / (folds if folds > 1 else 5))


def _course(
    target: Fingerprint,
    seen: View,
    made: Network,
    batch: int,
    resources: Resources,
    meter: Meter,
    fixed: Fixed,
) -> _Course:
    """Divides a run's time between steps, validation and test."""
    channels, classes, ndim = len(target.channels), target.classes, len(made.patch)
    work = meter.work(program_of(made, batch=batch, channels=channels, classes=classes, fixed=fixed))
    step = resources.step_seconds(work)
    accumulate = fixed.get("train.accumulate", 1)
    forward = step / (accumulate * batch) / 3
    budget = resources.run_seconds
    # Predictions of a window and of its mirror images are averaged, and networks of shorter budgets are tested as well.
    tested = _tested(target, fixed) * 2 ** len(fixed.get("evaluate.flips", ()))
    tested *= 3 if fixed.get("evaluate.budget_tests", False) else 1

    def test(overlap: float) -> float:
        return tested * forward * windows(target, seen, made.spacing, made.patch, overlap)

    overlap = fixed.get("evaluate.overlap", 0.5 if test(0.5) <= _TEST_SHARE * budget else 0.25)
    each = forward * windows(target, seen, made.spacing, made.patch, fixed.get("evaluate.val_overlap", 0.0))
    # Fewer cases before fewer validations: a curve of many points is what the claim about training time needs.
    options = [(LOOKS, 8), (LOOKS, 4), (LOOKS, 2), (25, 2), (10, 2)]
    if "target.val_cases" in fixed:
        options, most = [(looks, fixed["target.val_cases"]) for looks in (LOOKS, 25, 10, 5)], math.inf
    else:
        most = max(1, target.groups // 10)
    affordable = [(looks, min(n, most)) for looks, n in options if looks * n * each <= _VALIDATION_SHARE * budget]
    looks, cases = (affordable or [(5, fixed.get("target.val_cases", 1))])[0]
    spent = test(overlap) + looks * cases * each

    def allowed(step: float) -> int:
        return int((budget - spent) / step - resources.other_steps)

    given = fixed.get("train.steps")
    enough = given or ENOUGH_STEPS
    while "train.batch" not in fixed and allowed(step) >= 2 * enough and 2 * batch <= LARGEST_BATCHES[ndim]:
        batch, step = 2 * batch, 2 * step
    steps = given or min(max(allowed(step), LOOKS), MOST_STEPS) // LOOKS * LOOKS
    every = fixed.get("train.log_every", max(1, steps // LOOKS))
    used = (spent + (steps + resources.other_steps) * step) / budget
    return _Course(batch, accumulate, steps, looks, int(cases), overlap, every, step, allowed(step), used)


def _course_choices(course: _Course, resources: Resources) -> list[Choice]:
    every = course.every
    between = f"{course.looks} validations in a run"
    step = number(1e3 * course.step_seconds)
    time = f"a run has {number(resources.run_seconds)} s of the budget, and a step takes about {step} ms"
    return [
        Choice("train.batch", course.batch, "as many patches as leave enough steps"),
        Choice("train.steps", course.steps, f"{time}; validation and test have their share"),
        Choice("train.log_every", every, f"{LOOKS} points on a learning curve"),
        Choice("train.eval_every", every * (LOOKS // course.looks), between),
        Choice("train.save_every", every * 10, "five checkpoints in a run"),
        Choice("pretrain.steps", course.steps, "as long as on the target"),
        Choice("pretrain.eval_every", every * 10, "five validations in a run"),
        Choice("optim.warmup_steps", min(20, course.steps // 10), "short, beside the steps of a run"),
        Choice("evaluate.overlap", course.overlap, "windows of the test; at 0.5 they may take a fifth of a run's time"),
        Choice("evaluate.val_overlap", 0.0, "validation is for curves alone, and costs time"),
    ]


def _augmentation(role: str, found: Fingerprint, seen: View, course: _Course) -> list[Choice]:
    views = course.steps * course.batch * course.accumulate / max(1.0, 0.8 * found.cases)
    often = views >= OFTEN_SEEN
    told = f"a run takes about {number(views)} patches from each training case"
    why = f"{told}, so that they should differ" if often else f"{told}, too few for augmentation to pay"
    spatial = 0.3 if often and not seen.thick else 0.0
    turned = f"{why}; not across thick slices" if often and seen.thick else why
    return [
        Choice(f"{role}.augment.affine", spatial, turned),
        Choice(f"{role}.augment.gamma", 0.2 if often else 0.0, why),
        Choice(f"{role}.augment.brightness", 0.2 if often else 0.0, why),
    ]


# -------------------------------------------------------------------------------------------------------------- notes


def _notes(
    target: Fingerprint, sources: Mapping[str, Fingerprint], course: _Course, resources: Resources, fixed: Fixed
) -> list[str]:
    notes = []
    for role, found in (("target", target), *sources.items()):
        if found.missing:
            notes.append(
                f"no case of the {role} that was read has {', '.join(found.missing)}; leave labels out that hardly "
                f"occur (--config.{role}.labels)"
            )
        rare = [f"{label.name} ({label.present:.0%})" for label in found.labels if label.present < 0.5]
        if rare:
            notes.append(f"labels that most cases of the {role} lack: {', '.join(rare)}")
    if target.groups < 10:
        notes.append(_few_groups(target, fixed))
    if course.used > 1:
        minutes, needed = (number(seconds / 60) for seconds in (resources.seconds, course.used * resources.seconds))
        notes.append(
            f"the budget of {minutes} minutes cannot be kept: with what is given the study takes about {needed} "
            f"({number(resources.runs)} x {course.steps:,} steps); give more time, or fewer steps, seeds "
            "(--config.num_seeds) or arms"
        )
    given = "train.steps" in fixed
    if course.possible < 300 and not given:
        notes.append(
            f"the budget leaves {max(course.possible, 0)} steps for a run, in which little is learned; give more time, "
            "fewer seeds (--config.num_seeds) or fewer arms"
        )
    if course.possible > MOST_STEPS and not given:
        notes.append(f"the budget would allow {course.possible:,} steps; more than {MOST_STEPS:,} hardly ever pay")
    return notes


def _few_groups(target: Fingerprint, fixed: Fixed) -> str:
    """Says what few groups of cases are tested on, and which folds would test more of them, if any do."""
    folds, held = fixed.get("target.folds", 1), fixed.get("target.test_cases", 0)
    counted = f"the target has {target.groups} groups of cases"
    most = len(target.listed) or target.groups  # a fold tests one group at least
    if not target.listed and most < 3:
        return f"{counted}, too few to split: training, validation and test take at least one each; add cases"
    if folds > most:
        return f"{counted}, which can be split into {most} folds at most; give --config.target.folds={most}"
    advised, tested = min(5, most), "every case is tested once"
    if target.listed:
        told = f"and {folds} of the {most} folds that the data lists {'is' if folds == 1 else 'are'} used"
        advised, tested = most, "all of these are used"
    elif held:
        share = f"{held} of its {target.cases} cases" if folds == 1 else f"{held} cases of each fold"
        told, advised = f"and {share}, or at least one group, are tested on", 1
    else:
        told = f"and {tested}" if folds > 1 else "and about a fifth of its cases, or at least one group, are tested on"
    wide = f"{counted}, {told}: intervals will be wide"
    if folds > 1 or advised == 1:
        return wide
    return f"{wide}. With --config.target.folds={advised} {tested}, at {advised} times the cost"
