"""Predicts and scores sets of test cases with the runs of a job, on each case's own grid."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseg import checkpoint, data, inference, logs, machine, metrics, seeds, threads, workdirs
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays, CaseRecord
from jaxseg.reserved import INTERNAL
from jaxseg.settings import StudySettings, TaskSettings
from jaxseg.study.plan.jobs import Job, of_host, seed_plan
from jaxseg.study.plan.runs import Run, target_runs
from jaxseg.study.plan.tasks import Tasks
from jaxseg.study.predict import CaseMaps, case_maps, make_predict_slabs, scoring_options, with_ensembles
from jaxseg.study.score import examples
from jaxseg.types import Progress

Row = dict[str, Any]
"""A row of a table of scores."""
Save = Callable[[Run, np.ndarray], None]
"""A function that writes the label map of a run."""


class Variant(NamedTuple):
    """What all seeds of an arm share, and so the networks of an ensemble."""

    arm: str
    train_cases: int
    fold: int


def variant_of(run: Run) -> Variant:
    """Returns the variant of its arm that a run is."""
    return Variant(run.key.arm, run.key.train_cases, run.key.fold)


@dataclasses.dataclass(frozen=True)
class CaseSet:
    """Cases that the networks of a study are tested on: the target's own of each fold, or an external set."""

    name: str
    task: TaskSettings
    fitted: tuple[PreparedTask, ...]
    """The prepared cases as the networks of each fold see them."""
    by_fold: tuple[tuple[str, ...], ...]
    """Names of the cases that the networks of each fold are tested on."""
    mark: str = ""
    """The fingerprint of an external set, which the files with its scores are named by."""

    @property
    def is_internal(self) -> bool:
        """Whether these are the study's own test cases."""
        return self.name == INTERNAL

    def of(self, job: Job) -> PreparedTask:
        """Returns the prepared cases as the runs of a job see them."""
        return self.fitted[job.program.fold or 0]

    def part(self, what: str) -> str:
        """Returns the name of a job's table about these cases."""
        return f"{what}_{self.mark}.csv" if self.mark else f"{what}.csv"


def case_sets(study: StudySettings, tasks: Tasks) -> tuple[CaseSet, ...]:
    """Returns the test sets of a study, its own first."""
    target, splits = study.target, tasks.splits[study.target]
    own = CaseSet(INTERNAL, target, tasks.fitted[target], tuple(split.test for split in splits))
    return own, *(
        CaseSet(one.name, one.task, one.fitted, (one.cases,) * len(splits), one.mark) for one in tasks.external
    )


def number_of_seeds(study: StudySettings) -> dict[Variant, int]:
    """Returns the number of runs of each variant, whatever jobs and hosts train them."""
    networks = [arm for arm in study.arms if arm.kind == "network"]
    return collections.Counter(variant_of(run) for arm in networks for run in target_runs(study, arm, None))


def died_at(workdir: Path, job: Job) -> list[int | None]:
    """Returns the step at which each run of a job diverged; None for those that did not."""
    return list(logs.read_log(workdir / job.directory, len(job.runs)).diverged_at)


class Found(NamedTuple):
    """Rows of scores."""

    of_runs: list[Row]
    of_ensembles: list[Row]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """A host's runs of a job, to be scored on a set of cases after one number of steps or another."""

    study: StudySettings
    workdir: Path
    cases: CaseSet
    whole: Job
    rows_here: tuple[int, ...]

    def rows(
        self,
        step: int,
        *,
        progress: Progress,
        shown: Sequence[str] = (),
        pictures: dict[str, np.ndarray] | None = None,
        saving: Callable[[CaseRecord], Save] | None = None,
        ensembles: bool = False,
    ) -> Found:
        """Scores all runs that did not diverge, and saves label maps if this is asked for.

        Args:
            step: The step of the networks.
            progress: Told about every case.
            shown: Cases that are pictured.
            pictures: Where the pictures go.
            saving: What writes the label maps of a case.
            ensembles: Whether the seeds of an arm are scored together too, where they are all here.
        """
        study, prepared = self.study, self.cases.of(self.whole)
        groups = self._groups()
        together = self._together() if ensembles else frozenset()
        total, done = sum(map(len, groups)), 0
        what = "scoring" if self.cases.is_internal else f"scoring {self.cases.name}"
        found = Found([], [])
        cores = machine.cores()
        # Scores wait for nothing but a thread: in one pool, the next case would queue behind all of this one's.
        with concurrent.futures.ThreadPoolExecutor(cores) as pool, concurrent.futures.ThreadPoolExecutor(cores) as maps:
            waiting: list[tuple[list[Row], concurrent.futures.Future[list[Row]]]] = []
            predicted = (
                of_case
                for names, rows in groups.items()
                for of_case in self._predict(of_host(self.whole, rows), rows, names, step, together, maps)
            )
            for case, runs, members, made in predicted:
                # The next case is predicted while this one is scored; no more than one case waits.
                _collect(waiting)
                save = None if saving is None else saving(case.record)
                of_networks = list(zip(made.labels, made.calibration_errors, strict=True))
                waiting = [
                    (found.of_runs, pool.submit(score_run, study, prepared, case, run, labels, errors, save))
                    for run, (labels, errors) in zip(runs, of_networks, strict=False)
                ]
                waiting += [
                    (
                        found.of_ensembles,
                        pool.submit(score_ensemble, study, prepared, case, variant, count, *of_variant),
                    )
                    for (variant, count), of_variant in zip(members.items(), of_networks[len(runs) :], strict=True)
                ]
                if pictures is not None and case.record.name in shown:
                    at = shown.index(case.record.name)
                    examples.keep_example(pictures, at, case, runs, made.labels[: len(runs)])
                done += 1
                progress(what, done, total, case.record.name)
            _collect(waiting)
        return found

    def _groups(self) -> dict[tuple[str, ...], list[int]]:
        """The positions of the runs that did not diverge, by the cases that they are tested on."""
        deaths = died_at(self.workdir, self.whole)
        groups: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
        for row in self.rows_here:
            if deaths[row] is None:
                groups[tuple(sorted(self.cases.by_fold[self.whole.runs[row].key.fold]))].append(row)
        return groups

    def _together(self) -> frozenset[Variant]:
        """The variants of which all runs are here, those that diverged among them."""
        number = number_of_seeds(self.study)
        here = collections.Counter(variant_of(self.whole.runs[row]) for row in self.rows_here)
        return frozenset(variant for variant, count in here.items() if count == number[variant])

    def _predict(
        self,
        job: Job,
        rows: Sequence[int],
        names: Sequence[str],
        step: int,
        together: Collection[Variant],
        pool: concurrent.futures.Executor,
    ) -> Iterator[tuple[CaseArrays, Sequence[Run], dict[Variant, int], CaseMaps]]:
        """Cases by name, each with the runs of a job and their ensembles, by number of runs, and what they make of it.

        Args:
            job: The job, reduced to runs that are all tested on these cases.
            rows: Their positions in the whole job.
            names: The cases.
            step: The step of the networks.
            together: Variants whose runs are an ensemble, where there are two.
            pool: Threads that share the runs.
        """
        prepared, settings = self.cases.of(job), self.study.evaluate
        of: dict[Variant, list[int]] = collections.defaultdict(list)
        for index, run in enumerate(job.runs):
            of[variant_of(run)].append(index)
        members = {variant: runs for variant, runs in of.items() if variant in together and len(runs) > 1}
        counts = {variant: len(runs) for variant, runs in members.items()}
        cut: collections.deque[CaseArrays] = collections.deque()

        def images() -> Iterator[np.ndarray]:
            for name in names:
                cut.append(data.load_case(prepared, name))
                yield cut[-1].image

        slabs = make_predict(self.study, self.workdir, job, rows, step, pool)(images())
        for _, of_case in itertools.groupby(slabs, key=lambda slab: slab.case):
            case = cut.popleft()
            shown = (with_ensembles(slab.probabilities, [*members.values()], pool) for slab in of_case)
            yield case, job.runs, counts, case_maps(shown, case, prepared, settings, pool)


def _collect(waiting: Iterable[tuple[list[Row], concurrent.futures.Future[list[Row]]]]) -> None:
    for rows, scored in waiting:
        rows += scored.result()


def make_predict(
    study: StudySettings, workdir: Path, job: Job, rows: Sequence[int], step: int, pool: threads.Pool = None
) -> Callable[[Iterable[np.ndarray]], Iterator[inference.Slab]]:
    """Makes the prediction of images by trained runs of a job, whose parameters are on the devices while it works.

    Args:
        study: The study's settings.
        workdir: Its workdir.
        job: The job, reduced to these runs.
        rows: Their positions in the whole job.
        step: The step of the networks.
        pool: Threads that share the runs.
    """
    plan = seed_plan(study, len(job.runs))
    directory = workdir / job.directory / "checkpoints"
    params, shared = checkpoint.read_own_params(directory, step, rows), checkpoint.read_shared(directory, step)
    predict = make_predict_slabs(
        job.program,
        plan=plan,
        num_runs=len(job.runs),
        overlap=study.evaluate.overlap,
        window_batch=study.evaluate.window_batch,
        flips=study.evaluate.flips,
        pool=pool,
    )
    return lambda images: predict(seeds.put(params, plan), seeds.replicate(shared, plan), images)


def make_save(study: StudySettings, workdir: Path, cases: CaseSet, job: Job) -> Callable[[CaseRecord], Save]:
    """For each case, what writes a run's label map: the reference's label values, on the grid of the case's image.

    Label maps of an external set are in a folder of its name beside those of the study's own cases.
    """
    prepared = cases.of(job)
    geometry_of = data.case_geometries(cases.task.data, ndim=prepared.ndim, cache=prepared.directory.parent)
    below = () if cases.is_internal else (cases.name,)

    def of_case(record: CaseRecord) -> Save:
        geometry = geometry_of(record)

        def save(run: Run, predicted: np.ndarray) -> None:
            key, name = run.key, f"{record.name}{geometry.ending}"
            path = workdirs.inside(workdir, "predictions", key.arm, key.variant(), f"seed_{key.seed}", *below, name)
            data.write_prediction(predicted, geometry, path, label_values=prepared.label_values, replace=True)

        return save

    return of_case


def score_run(
    study: StudySettings,
    prepared: PreparedTask,
    case: CaseArrays,
    run: Run,
    labels: np.ndarray,
    calibration_errors: Mapping[str, float],
    save: Save | None,
) -> list[Row]:
    """Returns the rows of one run and case; the label map is saved where that is asked for."""
    if save is not None:
        save(run, labels)
    key = run.key
    identity = {"arm": key.arm, "seed": key.seed, "train_cases": key.train_cases, "fold": key.fold}
    return [{**row, **run.ids} for row in _score(study, prepared, case, identity, labels, calibration_errors)]


def score_ensemble(
    study: StudySettings,
    prepared: PreparedTask,
    case: CaseArrays,
    variant: Variant,
    members: int,
    labels: np.ndarray,
    calibration_errors: Mapping[str, float],
) -> list[Row]:
    """Returns the rows of an ensemble and case."""
    identity = variant._asdict() | {"n_members": members}
    return _score(study, prepared, case, identity, labels, calibration_errors)


def _score(
    study: StudySettings,
    prepared: PreparedTask,
    case: CaseArrays,
    identity: Mapping[str, Any],
    labels: np.ndarray,
    calibration_errors: Mapping[str, float],
) -> list[Row]:
    record = case.record
    rows = metrics.case_metrics(
        labels,
        case.reference,
        labels=prepared.labels,
        members=prepared.members,
        spacing_mm=record.own_spacing_mm,
        ignore_index=prepared.ignore_index,
        **scoring_options(study.target, study.evaluate),
    )
    of_case = {**identity, "case": record.name, "group": record.group}
    return [{**of_case, **row, "calibration_error": calibration_errors[str(row["label"])]} for row in rows]
