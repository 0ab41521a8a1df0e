"""What `launch.study --timing` prints: where the time of a study went, by stage and by compiled program."""

from __future__ import annotations

from pathlib import Path

from jaxseg.study import record
from jaxseg.study.clock import COMPILE, SMALL_SECONDS, VALIDATE
from jaxseg.study.record import StudyRecord


def describe(workdir: Path) -> str:
    """Returns two tables: seconds of each stage, and of each program that a stage compiled."""
    study = record.read(workdir)
    return "" if study is None else "\n".join([*_stages(study), "", *_programs(study)])


def _stages(study: StudyRecord) -> list[str]:
    lines = [f"{'stage':12}{'seconds':>10}{'compiling':>12}{'validating':>12}{'the rest':>12}"]
    for stage, seconds in study.timing.items():
        parts = study.parts.get(stage, {})
        compiling, validating = parts.get(COMPILE, 0.0), parts.get(VALIDATE, 0.0)
        rest = seconds - compiling - validating
        lines.append(f"{stage:12}{seconds:10.1f}{compiling:12.1f}{validating:12.1f}{rest:12.1f}")
    return [*lines, f"{'total':12}{study.seconds:10.1f}"]


def _programs(study: StudyRecord) -> list[str]:
    head = f"{'stage':12}{'program':28}{'number':>8}{'cached':>8}{'traced':>9}{'lowered':>9}{'compiled':>10}"
    lines = []
    for program in study.programs:
        name = program.name or f"others, below {SMALL_SECONDS:g} s"
        times = f"{program.traced:9.2f}{program.lowered:9.2f}{program.compiled:10.2f}"
        lines.append(f"{program.stage:12}{name:28}{program.number:8}{program.cached:8}{times}")
    return [head, *lines]
