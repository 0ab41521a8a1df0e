"""Makes the inputs of the analyses: windows of test cases with positions, and windows of validation cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxseg import data
from jaxseg.analysis import sites
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays
from jaxseg.streams import host_rng
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.tasks import spread

WINDOWS = 2
"""Number of windows of each case that is analysed."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """The inputs of the analyses: windows, grouped in batches that fit the memory of a prediction."""

    images: Float[np.ndarray, "batches windows *patch channels"]
    labels: Int[np.ndarray, "batches windows *patch"]
    positions: Int[np.ndarray, "batches windows positions axes"]
    """The voxels of each window at which layers are read."""
    cases: Int[np.ndarray, "batches windows"]
    """The number of the group (patient) that each window is from, as images of one are alike."""
    windows: Int[np.ndarray, "batches windows"]
    """The number of each window; the same where two lie at one place."""

    def points(self) -> tuple[Int[np.ndarray, " points"], Int[np.ndarray, " points"]]:
        """Returns the group and label of each position, in the order in which features are read."""
        shape = self.positions.shape[:3]
        windows = self.labels.reshape(-1, *self.labels.shape[2:])
        where = self.positions.reshape(len(windows), shape[2], -1)
        labels = [label[tuple(own.T)] for label, own in zip(windows, where, strict=True)]
        return np.repeat(self.cases.ravel(), shape[2]), np.concatenate(labels)


def rng_for(planned: PlannedStudy, *names: object) -> np.random.Generator:
    """Returns a generator that depends only on the study's base seed and on its purpose."""
    return host_rng(planned.study.base_seed, "/".join(map(str, names)))


def task_of(planned: PlannedStudy, fold: int) -> PreparedTask:
    """Returns the target as the runs of a fold see it."""
    return planned.tasks.fitted[planned.study.target][fold]


def shown_cases(planned: PlannedStudy, fold: int) -> list[CaseArrays]:
    """Returns the test cases that are analysed."""
    names = planned.tasks.splits[planned.study.target][fold].test
    return data.load_cases(task_of(planned, fold), spread(names, planned.study.analysis.cases))


def judged_cases(planned: PlannedStudy, fold: int) -> list[CaseArrays]:
    """Returns the validation cases on which altered networks are judged."""
    names = planned.tasks.splits[planned.study.target][fold].val
    return data.load_cases(task_of(planned, fold), spread(names, planned.study.analysis.cases))


def make_probes(planned: PlannedStudy, cases: Sequence[CaseArrays], rng: np.random.Generator) -> Probes:
    """Makes windows of cases, with positions that do not depend on any network.

    Args:
        planned: The study.
        cases: The cases on the training grid.
        rng: Generator of the positions; see `rng_for`.
    """
    task = planned.study.target
    classes = planned.tasks.prepared[task].classes  # from which on a label says that nothing is known
    per_window = max(planned.study.analysis.positions // (len(cases) * WINDOWS), 3)
    images, labels, positions, origins, places = [], [], [], [], []
    groups = {
        group: np.array(number) for number, group in enumerate(dict.fromkeys(case.record.group for case in cases))
    }
    known: dict[tuple[Any, ...], int] = {}
    for case in cases:
        label = case.label.astype(np.int32)
        for corner in sites.draw_corners(np.where(label < classes, label, 0), task.window, WINDOWS, rng):
            image = sites.cut(case.image, corner, task.window, fill=0.0)
            inside = sites.cut(label, corner, task.window, fill=sites.OUTSIDE)
            where = np.where(inside < classes, inside, sites.OUTSIDE).reshape(task.patch)
            positions.append(sites.draw_positions(where, per_window, rng))
            images.append(image.reshape(*task.patch, -1))
            labels.append(np.maximum(inside, 0).reshape(task.patch))
            origins.append(groups[case.record.group])
            places.append(np.array(known.setdefault((case.record.name, *corner), len(known))))
    batch = _largest_divisor(len(images), planned.study.evaluate.window_batch)
    parts = (images, labels, positions, origins, places)
    grouped = [np.stack(part).reshape(-1, batch, *part[0].shape) for part in parts]
    return Probes(*grouped)


def _largest_divisor(number: int, limit: int) -> int:
    return max(size for size in range(1, min(number, limit) + 1) if number % size == 0)
