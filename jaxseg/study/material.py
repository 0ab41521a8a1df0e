"""What networks are shown in the analyses: windows of test cases with positions, windows of validation cases."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxseg import data
from jaxseg.analysis import sites
from jaxseg.data import PreparedTask
from jaxseg.study.ready import Ready
from jaxseg.study.tasks import spread
from jaxseg.types import CaseArrays


@dataclasses.dataclass(frozen=True)
class Material:
    """Windows are grouped in batches that the memory of a prediction holds."""

    images: Float[np.ndarray, "batches windows *patch channels"]
    labels: Int[np.ndarray, "batches windows *patch"]
    positions: Int[np.ndarray, "batches windows positions axes"]
    """Voxels of each window at which layers are read."""


def rng_for(ready: Ready, *names: object) -> np.random.Generator:
    """Draws that depend on the study's base seed and on what they are for, on nothing else."""
    return np.random.default_rng([ready.study.base_seed, zlib.crc32("/".join(map(str, names)).encode())])


def task_of(ready: Ready, fold: int) -> PreparedTask:
    """The target as the runs of a fold see it."""
    return ready.tasks.fitted[ready.study.target][fold]


def shown_cases(ready: Ready, fold: int) -> list[CaseArrays]:
    """The test cases that are analysed."""
    names = ready.tasks.splits[ready.study.target][fold].test
    return data.load_cases(task_of(ready, fold), spread(names, ready.study.analysis.cases))


def judged_cases(ready: Ready, fold: int) -> list[CaseArrays]:
    """The validation cases on which altered networks are judged."""
    names = ready.tasks.splits[ready.study.target][fold].val
    return data.load_cases(task_of(ready, fold), spread(names, ready.study.analysis.cases))


def make_material(ready: Ready, cases: Sequence[CaseArrays], rng: np.random.Generator) -> Material:
    """Windows of cases, with positions that do not depend on any network.

    Args:
        ready: The study; its `analysis` says how many windows and positions.
        cases: On the training grid.
        rng: See `rng_for`.
    """
    settings, task = ready.study.analysis, ready.study.target
    classes = len(ready.tasks.prepared[task].labels) + 1  # from which on a label says that nothing is known
    per_window = max(settings.positions // (len(cases) * settings.windows), 3)
    images, labels, positions = [], [], []
    for case in cases:
        label = case.label.astype(np.int32)
        for corner in sites.draw_corners(np.where(label < classes, label, 0), task.window, settings.windows, rng):
            image = sites.cut(case.image, corner, task.window, fill=0.0)
            inside = sites.cut(label, corner, task.window, fill=sites.OUTSIDE)
            where = np.where(inside < classes, inside, sites.OUTSIDE).reshape(task.patch)
            positions.append(sites.draw_positions(where, per_window, rng))
            images.append(image.reshape(*task.patch, -1))
            labels.append(np.maximum(inside, 0).reshape(task.patch))
    batch = _largest_divisor(len(images), ready.study.evaluate.window_batch)
    grouped = [np.stack(part).reshape(-1, batch, *part[0].shape) for part in (images, labels, positions)]
    return Material(*grouped)


def _largest_divisor(number: int, limit: int) -> int:
    return max(size for size in range(1, min(number, limit) + 1) if number % size == 0)
