"""A whole study in this process: what `launch.study` does, and what a sweep does with each of its points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxseg import hosts
from jaxseg.report import write_report
from jaxseg.study import run as study_run
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.score import tables
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
    def report() -> None:
        if (workdir / "results" / "comparisons.csv").exists():
            terminal.say(tables.format_results(workdir))
        terminal.say(f"report: {write_report(workdir).absolute()}")

    planned = study_run.run_stages(
        config,
        workdir,
        stages=stages,
        progress=page.watch(terminal.make_progress()),
        tell=terminal.say,
        saved=saved,
        report=report,
    )
    hosts.barrier("end")  # else the first to end would look lost to the others
    return planned
