"""Keeps slices of test cases with the predictions of some runs, which the page shows as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxseg.data.cases import CaseArrays
from jaxseg.data.volumes.resample import resize_image
from jaxseg.settings import StudySettings
from jaxseg.study.plan.runs import Run
from jaxseg.study.plan.tasks import Tasks, spread
from jaxseg.study.score import slices


def example_cases(study: StudySettings, tasks: Tasks) -> tuple[str, ...]:
    """Returns the test cases shown as pictures, evenly spread in name order over those of the first fold."""
    return spread(tasks.splits[study.target][0].test, study.report.examples)


def are_of(examples: Mapping[str, np.ndarray], shown: Sequence[str]) -> bool:
    """Returns whether pictures are of these cases; an earlier version kept how many they are, and not which."""
    kept = sum(name.startswith("image_") for name in examples)
    known = [str(examples[f"case_{index}"]) for index in range(kept) if f"case_{index}" in examples]
    return kept == len(shown) if len(known) < kept else known == [*shown]


def keep_example(
    examples: dict[str, np.ndarray], index: int, case: CaseArrays, runs: Sequence[Run], maps: Iterable[np.ndarray]
) -> None:
    """Keeps one slice of the image, the reference, and for each arm the prediction of the run that is shown."""
    where = slices.example_slice(case.reference)
    image = resize_image(case.image, case.record.own_shape, case.record.spacing_mm)[..., 0]
    examples[f"image_{index}"] = slices.upright(slices.grey(image[where]), image.ndim)
    examples[f"case_{index}"] = np.array(case.record.name)
    examples[f"reference_{index}"] = slices.upright(case.reference[where].astype(np.uint8), image.ndim)
    examples[f"slice_{index}"] = np.array(slices.place_of(where), np.int64)
    for run, labels in sorted(zip(runs, maps, strict=True), key=lambda pair: shown_first(*pair[0].key[1:])):
        prediction = slices.upright(labels[where].astype(np.uint8), image.ndim)
        examples.setdefault(f"prediction_{index}_{run.key.arm}", prediction)
        examples.setdefault(f"run_{index}_{run.key.arm}", np.array(run.key[1:], np.int64))


def shown_first(train_cases: int, fold: int, seed: int) -> tuple[bool, int, int, int]:
    """Sorts an arm's runs by which of them a picture shows: the largest training set, its first fold and seed."""
    return train_cases != 0, -train_cases, fold, seed


def keep_shown(kept: dict[str, np.ndarray], more: Mapping[str, np.ndarray]) -> None:
    """Adds examples of other runs to those that are kept; of each arm, the run that is shown first stays."""
    first = {
        name.removeprefix("run_")
        for name, run in more.items()
        if name.startswith("run_")
        and (name not in kept or shown_first(*map(int, run)) < shown_first(*map(int, kept[name])))
    }
    for name, array in more.items():
        if name not in kept or name.partition("_")[2] in first:
            kept[name] = array
