"""Scores label maps, made elsewhere or saved by a study, against references: files in, rows out."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxseg import machine, metrics
from jaxseg.analysis import statistics
from jaxseg.data import names
from jaxseg.data.cases import CaseFiles
from jaxseg.data.formats import image_files, references
from jaxseg.data.prepared.task import region_classes
from jaxseg.data.volumes import volume
from jaxseg.study.score.comparisons import DISTANCES, METRICS
from jaxseg.study.score.scores import group_means, read_scores
from jaxseg.types import Progress, UserError


class Scored(NamedTuple):
    """The scores of a folder of predictions."""

    cases: pd.DataFrame
    """Rows as in cases.csv, without the columns that only runs have."""
    missing: tuple[str, ...]
    """Cases with a reference but no prediction. They have no rows, so means leave them out."""
    unmatched: tuple[str, ...]
    """Files that match no reference."""
    unreferenced: tuple[str, ...]
    """Cases that should be scored but have no reference."""
    failed: tuple[str, ...]
    """Label maps that could not be scored, each with the reason. They have no rows either."""


def score_folder(
    folder: Path,
    truth: references.References,
    *,
    wanted: Iterable[str] | None,
    options: Mapping[str, Any],
    progress: Progress,
) -> Scored:
    """Scores the label maps of a folder, each named as its case.

    Args:
        folder: files named `CASE.nii.gz` (or another ending that is read), or folders `seed_<id>` of them.
        truth: references; predictions use the same values for the same labels.
        wanted: cases that are to be scored; None for all references.
        options: of `metrics.case_metrics`: unit, hd_definition, surface_empty, tolerance_mm, regions.
        progress: told about every file.

    Raises:
        UserError: no prediction of any case, or none that can be scored: each lies on another grid than its reference,
            holds values that are no labels, or cannot be read.
    """
    title = folder.absolute().name
    if reason := names.problem(title, file=True):
        raise UserError(
            f"--score={folder}: tables call these predictions by the folder's name, which {reason}; rename it"
        )
    chosen = None if wanted is None else set(wanted)
    cases = {case.name: case for case in truth.cases if chosen is None or case.name in chosen}
    seeds = sorted(
        (p for p in folder.glob("seed_*") if p.name[5:].isdecimal() and p.is_dir()), key=lambda p: int(p.name[5:])
    )
    found = [
        (int(part.name[5:]) if seeds else 0, file)
        for part in seeds or [folder]
        for file in image_files.list_label_maps(part)
    ]
    todo = [(seed, file, cases[file.name]) for seed, file in found if file.name in cases]
    if not todo:
        raise UserError(
            f"--score={folder}: no file is named as a case with a reference. Files: "
            f"{', '.join(sorted({file.name for _, file in found})[:5])}...; cases: {', '.join(sorted(cases)[:5])}..."
        )

    rows, failed = _score_files(title, todo, truth, options, progress)
    if not rows:
        raise UserError(f"--score={folder}: no label map could be scored:\n  " + "\n  ".join(failed))
    have = {(seed, case.name) for seed, _, case in todo}
    ids = sorted({seed for seed, _ in found})
    missing = [f"{n} (seed {s})" if seeds else n for s, n in itertools.product(ids, cases) if (s, n) not in have]
    unmatched = [file.images[0] for _, file in found if file.name not in cases]
    unmatched += [text for part in seeds or [folder] for text in image_files.unread(part, folders=False)]
    if seeds:  # those of an ensemble, or of earlier predictions
        beside = (path for paths in image_files.image_files(folder).values() for path in paths)
        unmatched += [f"{path} beside the folders of seeds" for path in beside]
    known = {case.name for case in truth.cases}
    unreferenced = tuple(sorted((chosen or set()) - known))
    return Scored(pd.DataFrame(rows), tuple(missing), tuple(unmatched), unreferenced, tuple(failed))


def _score_files(
    arm: str,
    todo: Sequence[tuple[int, CaseFiles, CaseFiles]],
    truth: references.References,
    options: Mapping[str, Any],
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the label maps, each given with its seed and its case, and the reasons why others have none."""

    def score(seed: int, file: CaseFiles, case: CaseFiles) -> list[dict[str, Any]] | str:
        try:
            rows = _score_file(file.images[0], case, truth, options)
        except (UserError, volume.BadCaseError) as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or file.images[0]} cannot be read: {error.strerror}"
        identity = {"arm": arm, "seed": seed, "train_cases": 0, "fold": 0, "case": case.name, "group": case.group}
        return [{**identity, **row} for row in rows]

    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with volume.quiet_nibabel(), concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
        for done, (item, part) in enumerate(zip(todo, pool.map(lambda item: score(*item), todo), strict=True), start=1):
            if isinstance(part, str):
                failed.append(part)
            else:
                rows += part
            progress("scoring", done, len(todo), item[1].name)
    return rows, failed


def _score_file(
    path: str, case: CaseFiles, truth: references.References, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    ref = truth.read(case)
    pred = references.read_label_map(path, ref.affine)
    if pred.values.shape != ref.values.shape:
        raise UserError(
            f"{path} has {pred.values.shape} voxels and the reference of {case.name} {ref.values.shape} (canonical "
            "axes). Resample the prediction to the grid of the case's own image."
        )
    if pred.affine is not None and ref.affine is not None:
        try:
            volume.compare_grids(ref.values.shape, ref.affine, pred.values.shape, pred.affine, path)
        except volume.BadCaseError as error:
            raise UserError(f"{error}. Resample the prediction to the grid of the case's own image.") from None
    labels = [region.name for region in truth.regions] or [name for name, _ in truth.labels]
    regions = region_classes(truth.regions, [value for _, value in truth.labels])
    ignore = None if truth.ignore is None else len(truth.labels) + 1
    # A slice has an area, as in the study's own scores, whatever thickness the header gives it.
    (predicted, _), (wanted, spacing) = pred.on_own_axes(truth.ndim, path), ref.on_own_axes(truth.ndim, case.name)
    return metrics.case_metrics(
        _class_indices(predicted, truth, path),
        _class_indices(wanted, truth, case.name, ignore),
        labels=labels,
        members=None if regions is None else regions.members,
        spacing_mm=spacing,
        ignore_index=ignore,
        **options,
    )


def _class_indices(
    values: np.ndarray, truth: references.References, where: str, ignore: int | None = None
) -> np.ndarray:
    """File values to class indices; known labels that are not asked for become background."""
    allowed = truth.known | ({truth.ignore} if ignore is not None and truth.ignore is not None else set())
    unknown = sorted(set(np.unique(values).tolist()) - allowed)
    if unknown:
        raise UserError(
            f"{where} holds the value(s) {', '.join(map(str, unknown[:10]))}; the references know "
            f"{', '.join(map(str, sorted(allowed)))}. Give predictions the references' values."
        )
    table = np.zeros(max(allowed) + 1, np.uint8 if len(truth.labels) < 254 else np.uint16)
    for index, (_, value) in enumerate(truth.labels, start=1):
        table[value] = index
    if ignore is not None and truth.ignore is not None:
        table[truth.ignore] = ignore
    return table[values]


def summarise(cases: pd.DataFrame, *, confidence: float, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Tabulates means over groups by label and metric, with seeds averaged first.

    Returns:
        Columns label, metric, unit, mean, ci_low, ci_high, n_seeds, n_groups, n_cases, n_missed, n_spurious. The
        interval is over groups: new patients, these networks. A case that some seed has no label map of is in no mean.
    """
    whole = cases.groupby("case")["seed"].transform("nunique") == cases["seed"].nunique()
    if whole.any():  # otherwise seeds have other cases each, and there is no mean
        cases = cases[whole]
    rows = []
    unit = str(cases["unit"].iloc[0])
    for scores in read_scores(cases, metrics):
        for arm, counts in scores.counts.items():
            for metric in scores.metrics:
                groups = group_means(scores.of(arm, metric), scores.groups)
                by_group = groups[:, ~np.isnan(groups).any(0)].mean(0)
                interval = statistics.t_interval(by_group, confidence=confidence)
                rows.append(
                    {
                        **{"label": scores.label, "metric": metric, "unit": unit if metric in DISTANCES else ""},
                        **{"mean": interval.estimate, "ci_low": interval.low, "ci_high": interval.high},
                        **{"n_seeds": len(groups), "n_groups": len(by_group), "n_cases": scores.num_cases},
                        **{"n_missed": counts.missed, "n_spurious": counts.spurious},
                    }
                )
    return pd.DataFrame(rows)
