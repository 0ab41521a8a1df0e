"""A whole study in this process: what `launch.study` does, and what a sweep does with each of its points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxseg import hosts
from jaxseg.report import write_report
from jaxseg.study import recording
from jaxseg.study import run as study_run
from jaxseg.study.clock import Clock
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.score import tables
from jaxseg.types import UserError
from launch import live, terminal


def run_study(
    config: Any,
    workdir: Path,
    *,
    stages: Sequence[str] = study_run.STAGES,
    saved: Callable[[], None] = lambda: None,
) -> PlannedStudy:
    """Runs the requested stages, including the report, and prints the results; `saved` is that of `run_stages`.

    Raises:
        UserError: If config, data or workdir have a mistake, or the predecessor of a stage is not done.
    """
    page = live.LivePage(workdir, config.name, stages)
    with page.following():
        planned = _run_stages(config, workdir, stages, page, saved)
    if "report" in stages and hosts.is_first():
        tables.require_scores(workdir)
    return planned


def _run_stages(
    config: Any, workdir: Path, stages: Sequence[str], page: live.LivePage, saved: Callable[[], None]
) -> PlannedStudy:
    planned = study_run.run_stages(
        config,
        workdir,
        stages=stages,
        progress=page.watch(terminal.make_progress()),
        tell=terminal.say,
        saved=saved,
    )
    if "report" in stages and hosts.is_first():
        if not (workdir / "results" / "cases.csv").exists():
            raise UserError(f"stage 'report' needs stage 'evaluate', which is not finished in {workdir}")
        study_run.require_scores_of_all(planned, "report")
        if (workdir / "results" / "comparisons.csv").exists():
            terminal.say(tables.format_results(workdir))
        clock = Clock()
        terminal.say(f"report: {write_report(workdir).absolute()}")
        recording.add_spent(workdir, clock.end("report"))
    hosts.barrier("end")  # else the first to end would look lost to the others
    return planned
