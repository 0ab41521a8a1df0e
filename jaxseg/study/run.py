"""Runs the stages of a study, each of which continues where an earlier process stopped."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg import hosts, machine, settings
from jaxseg.settings.kinds import nearest
from jaxseg.study import claims, files
from jaxseg.study.clock import Clock
from jaxseg.study.plan import preparation
from jaxseg.study.plan.binding import read_binding, read_trained
from jaxseg.study.plan.planned import PlannedStudy, bind, prepare
from jaxseg.study.probe import stage as probe_stage
from jaxseg.study.recording import write_study
from jaxseg.study.score import ensembles, examples, tables
from jaxseg.study.score import stage as score_stage
from jaxseg.study.train.stage import require_done, train_arms, train_jobs
from jaxseg.study.workdir import check_workdir
from jaxseg.types import Progress, UserError

STAGES = ("prepare", "pretrain", "train", "evaluate", "analyze", "report")


def run_stages(
    config: ConfigDict,
    workdir: Path,
    *,
    stages: Sequence[str],
    progress: Callable[[str], Progress],
    tell: Callable[[str], None] = lambda line: None,
    saved: Callable[[], None] = lambda: None,
    report: Callable[[], None] | None = None,
) -> PlannedStudy:
    """Runs the requested stages in order, while no other process works in the workdir; each skips what is done.

    Args:
        config: A config as made by a file in configs/.
        workdir: Folder of the study; created when new.
        stages: Some of `STAGES`; with none of them the study is only planned and the workdir is not claimed.
        progress: Makes the progress of a stage or job from its title.
        tell: Receives lines that a person should see at once, such as warnings about cases.
        saved: Called on the first host when a stage from `pretrain` on has ended and all of it is in the workdir.
        report: Writes the page of the workdir's tables; without it the stage `report` does nothing.

    Returns:
        The study as planned.

    Raises:
        UserError: If config, data or workdir have a mistake, or the predecessor of a stage is not done.
        loop.Interrupted: If a signal arrives; what was done is saved.
    """
    _check_stages(stages)
    study = check_workdir(config, workdir)
    clock = Clock()
    with (
        machine.one_blas_thread(),
        files.locked(workdir) if hosts.is_first() else contextlib.nullcontext(),
        clock.listening(),
    ):
        planned = prepare(study, workdir, progress("prepare"))
        if not stages:
            return planned
        planned = _claim(planned, config, stages)
        if hosts.is_first():
            if "prepare" in stages:
                for line in preparation.write_preparation(planned.tasks, workdir, progress("prepare")):
                    tell(line)
            write_study(planned, clock.end("prepare"), claims.RULE_VERSION)
        for stage, do in _work(progress, clock, report).items():
            if stage in stages:
                clock.begin()
                planned = do(planned) or planned
                hosts.barrier(stage)
                if hosts.is_first():
                    write_study(planned, clock.end(stage), claims.RULE_VERSION)
                    saved()
    return planned


def _work(
    progress: Callable[[str], Progress], clock: Clock, report: Callable[[], None] | None
) -> Mapping[str, Callable[[PlannedStudy], PlannedStudy | None]]:
    """What each stage after `prepare` does, in order."""
    work: dict[str, Callable[[PlannedStudy], PlannedStudy | None]] = {
        "pretrain": lambda planned: train_jobs(planned, "pretrain", progress, clock),
        "train": lambda planned: train_arms(planned, progress, clock),
        "evaluate": lambda planned: evaluate_jobs(planned, progress),
        "analyze": lambda planned: analyze(planned, progress("analyze")),
    }
    return work if report is None else work | {"report": lambda planned: write_page(planned, report)}


def _claim(planned: PlannedStudy, config: ConfigDict, stages: Sequence[str]) -> PlannedStudy:
    """Binds a study that trains to its data, and writes the config: from now on the workdir is this study's."""
    workdir = planned.workdir
    if hosts.is_first() and (planned.binding or {"pretrain", "train"} & {*stages} or read_trained(workdir).marks):
        planned = bind(planned, settings.digest(config), claims.RULE_VERSION)
    hosts.barrier("bind")
    if hosts.is_first():
        # Only now: a config whose data turned out unusable must not claim the workdir.
        files.write_text(workdir / files.CONFIG, settings.to_json(config))
    return dataclasses.replace(planned, binding=read_binding(workdir))


def _check_stages(stages: Sequence[str]) -> None:
    for stage in stages:
        if stage not in STAGES:
            raise UserError(f"--stages names {stage!r}{nearest(stage, STAGES)} Stages: {', '.join(STAGES)}")


def evaluate_jobs(planned: PlannedStudy, progress: Callable[[str], Progress]) -> None:
    """Scores every job's runs on all test cases and writes cases.csv, the curves and the example pictures.

    Each host scores its own runs; the first one puts the parts together.
    """
    require_done(planned, "train", "evaluate")
    study, workdir, jobs = planned.study, planned.workdir, planned.plan.of_kind("train")
    for job in jobs:
        score_stage.evaluate_job(study, workdir, planned.tasks, job, progress(f"evaluate {job.group}/{job.chunk}"))
    hosts.barrier("scores")
    if not hosts.is_first():
        return
    for job in jobs:
        score_stage.merge_parts(study, workdir, planned.tasks, job)
    if planned.plan.priors:
        score_stage.evaluate_priors(study, workdir, planned.tasks, planned.plan.priors, progress("evaluate priors"))
    made = None
    if study.evaluate.ensemble:
        made = ensembles.ensemble_rows(study, workdir, planned.tasks, planned.plan, progress("evaluate ensembles"))
    tables.write_cases(study, workdir, planned.tasks, planned.plan, made)
    tables.write_curves(workdir, planned.plan)
    tables.write_budget(study, workdir, planned.plan)
    shown = examples.example_cases(study, planned.tasks)
    tables.merge_examples(study, workdir, jobs, shown, planned.tasks.prepared[study.target].class_names)


def _require_scores_of_all(planned: PlannedStudy, wanted_by: str) -> None:
    """Refuses to go on with the scores of a part of the seeds, as where a study was given more that are not scored.

    Raises:
        UserError: If some jobs are scored and others are not.
    """
    jobs = planned.plan.of_kind("train")
    left = [job for job in jobs if not files.was_written(planned.workdir / job.directory / score_stage.PART)]
    if 0 < len(left) < len(jobs):
        raise UserError(
            f"stage {wanted_by!r} needs stage 'evaluate', which is not finished in {planned.workdir} "
            f"({left[0].directory}); run without --stages, which trains and scores what is new"
        )


def analyze(planned: PlannedStudy, progress: Progress) -> None:
    """Analyses the networks themselves, compares arms from the tables of the evaluation, and judges the claims.

    The first host does this while the others wait.
    """
    if not hosts.is_first():
        return
    if not (planned.workdir / "results" / "cases.csv").exists():
        raise UserError(
            f"stage 'analyze' needs stage 'evaluate', which is not finished in {planned.workdir}; "
            f"run without --stages, or with --stages=evaluate,analyze"
        )
    _require_scores_of_all(planned, "analyze")
    if planned.study.analysis.cases:
        probe_stage.write_analyses(planned, progress)
    tables.write_comparisons(planned.study, planned.workdir)
    claims.write_claims(planned.workdir)
    claims.write_shown(planned.workdir, confidence=planned.study.analysis.confidence)


def write_page(planned: PlannedStudy, report: Callable[[], None]) -> None:
    """Lets `report` write the page of a study whose networks are all scored, on the first host."""
    if not hosts.is_first():
        return
    if not (planned.workdir / "results" / "cases.csv").exists():
        raise UserError(f"stage 'report' needs stage 'evaluate', which is not finished in {planned.workdir}")
    _require_scores_of_all(planned, "report")
    report()
