"""Scores the seeds of each arm as one network, whose probabilities are the mean of theirs.

Where all seeds of an arm are runs of one job, `scoring` takes the mean while it has their probabilities at hand. Here
are the others: seeds that were trained in several jobs or by several hosts, or scored before ensembles were asked for.
Their networks predict once more, one job after another, and what is kept is one sum for one case.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxseg import data, machine, manifest
from jaxseg.data import digests
from jaxseg.data.cases import CaseArrays
from jaxseg.settings import StudySettings
from jaxseg.study import files
from jaxseg.study.plan.jobs import Job, Plan, of_host
from jaxseg.study.plan.tasks import Tasks
from jaxseg.study.predict import case_maps
from jaxseg.study.score.scoring import (
    CaseSet,
    Row,
    Variant,
    case_sets,
    died_at,
    make_predict,
    number_of_seeds,
    score_ensemble,
    variant_of,
)
from jaxseg.study.score.stage import ENSEMBLE
from jaxseg.types import Progress


class _Piece(NamedTuple):
    """Members of an ensemble that are runs of one job, by their positions."""

    job: Job
    rows: tuple[int, ...]


Members = Mapping[Variant, Sequence[_Piece]]


def members_of(workdir: Path, plan: Plan) -> Members:
    """Returns the runs of each variant that did not diverge, where there are at least two, by job."""
    found: dict[Variant, list[_Piece]] = collections.defaultdict(list)
    for job in plan.of_kind("train"):
        rows: dict[Variant, list[int]] = collections.defaultdict(list)
        for row, (run, died) in enumerate(zip(job.runs, died_at(workdir, job), strict=True)):
            if died is None:
                rows[variant_of(run)].append(row)
        for variant, own in rows.items():
            found[variant].append(_Piece(job, tuple(own)))
    return {variant: pieces for variant, pieces in found.items() if sum(len(piece.rows) for piece in pieces) > 1}


def ensemble_rows(
    study: StudySettings, workdir: Path, tasks: Tasks, plan: Plan, progress: Progress
) -> dict[str, pd.DataFrame]:
    """Returns the scores of all ensembles by set of cases, and computes those that no job has left.

    Args:
        study: The study's settings.
        workdir: Its workdir.
        tasks: Its tasks.
        plan: Its jobs, all of which are scored.
        progress: Told about every case.
    """
    members = members_of(workdir, plan)
    whole = number_of_seeds(study)
    tables, written = {}, set[Path]()
    for cases in case_sets(study, tasks):
        # Of a variant that has got more seeds than a job knew, the job's rows are of fewer members.
        parts = [
            _rows_of(workdir / job.directory / cases.part(ENSEMBLE), _whole_in(job, whole))
            for job in plan.of_kind("train")
        ]
        done = {Variant(*key) for part in parts for key in part[list(Variant._fields)].itertuples(index=False)}
        rest = {variant: pieces for variant, pieces in members.items() if variant not in done}
        if rest:
            path = workdir / "train" / f"ensembles_{_digest(cases, rest)}.csv"
            written.add(path)
            if not files.are_sound([path]):
                rows = _predicted(study, workdir, cases, rest, progress)
                files.write_table(path, pd.DataFrame(rows))
            parts.append(files.read_table(path))
        parts = [part for part in parts if len(part)]
        tables[cases.name] = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)
    for path in set((workdir / "train").glob("ensembles_*.csv")) - written:  # of fewer seeds, or of a set that is gone
        manifest.remove(path)
    return tables


_COLUMNS = [*Variant._fields, "n_members"]


def _whole_in(job: Job, number: Mapping[Variant, int]) -> set[Variant]:
    """The variants of which all runs are in a job."""
    own = collections.Counter(map(variant_of, job.runs))
    return {variant for variant, count in own.items() if count == number[variant]}


def _rows_of(path: Path, variants: set[Variant]) -> pd.DataFrame:
    """The rows of some variants in a job's table; none where there is no such table, or a damaged one."""
    table = files.read_table(path) if files.are_sound([path]) else pd.DataFrame()
    if table.empty:
        return pd.DataFrame(columns=_COLUMNS)
    kept = [Variant(*key) in variants for key in table[list(Variant._fields)].itertuples(index=False)]
    return table[kept]


def _digest(cases: CaseSet, members: Members) -> str:
    """What the scores of ensembles depend on: the cases and the members, which grow with the study."""
    runs = [
        [*variant, [piece.job.runs[row].key.seed for piece in pieces for row in piece.rows]]
        for variant, pieces in members.items()
    ]
    return digests.of_values(cases.mark, cases.by_fold, runs)[:16]


def _predicted(study: StudySettings, workdir: Path, cases: CaseSet, members: Members, progress: Progress) -> list[Row]:
    """Rows of ensembles, one after another and case by case."""
    rows: list[Row] = []
    total = sum(len(cases.by_fold[variant.fold]) for variant in members)
    done = 0
    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
        for variant, pieces in members.items():
            prepared = cases.fitted[variant.fold]
            count = sum(len(piece.rows) for piece in pieces)
            for case, mean in _means(study, workdir, cases, variant, pieces, pool):
                maps = case_maps([mean[None]], case, prepared, study.evaluate, pool)
                labels, errors = maps.labels[0], maps.calibration_errors[0]
                rows += score_ensemble(study, prepared, case, variant, count, labels, errors)
                done += 1
                progress("scoring ensembles", done, total, case.record.name)
    return rows


def _means(
    study: StudySettings,
    workdir: Path,
    cases: CaseSet,
    variant: Variant,
    pieces: Sequence[_Piece],
    pool: concurrent.futures.Executor,
) -> Iterator[tuple[CaseArrays, np.ndarray]]:
    """Each case with the mean of the members' probabilities on the training grid."""
    predictions = [
        make_predict(study, workdir, of_host(job, rows), rows, job.program.train.steps, pool) for job, rows in pieces
    ]
    count = sum(len(piece.rows) for piece in pieces)
    for name in cases.by_fold[variant.fold]:
        case = data.load_case(cases.fitted[variant.fold], name)
        total: np.ndarray | None = None
        for predict in predictions:
            slabs = [slab.probabilities.sum(0) for slab in predict([case.image])]
            own = np.concatenate(slabs)
            total = own if total is None else total + own
        assert total is not None  # an ensemble has members
        yield case, total / count
