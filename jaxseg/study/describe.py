"""The plan of a study as text, for `--dry_run`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxseg.study import preparation
from jaxseg.study.plan import Plan
from jaxseg.study.run import Ready


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


def describe(ready: Ready) -> str:
    """Arms, runs, parameters, memory per run, runs per chunk, steps, and programs to compile."""
    study, plan = ready.study, ready.plan
    lines = [f"study {study.name!r} in {ready.workdir}", ""]
    for task, prepared in ready.tasks.prepared.items():
        lines += preparation.summary(ready.tasks.role(task), prepared, ready.tasks.splits[task])
    lines += [
        f"seeds: {', '.join(map(str, study.seeds))}; varied: {', '.join(study.vary) or 'nothing'}",
        f"train sizes: {', '.join('all' if n == 0 else str(n) for n in study.target.train_cases)}; "
        f"folds: {study.target.folds}",
        "",
    ]
    arms = []
    for arm in study.arms:
        network = plan.networks[arm.name]
        share = f"{network.trainable:,} ({network.trainable / network.parameters:.0%})"
        runs = sum(run.key.arm == arm.name for job in plan.jobs for run in job.runs)
        memory = _size(network.state_bytes)
        arms.append((arm.name, arm.init, arm.freeze, f"{network.parameters:,}", share, memory, str(runs)))
    lines += _table(("arm", "init", "freeze", "parameters", "trained", "state per run", "runs"), arms)
    lines.append("")
    jobs = []
    for job in plan.jobs:
        network = plan.networks[job.runs[0].key.arm]
        steps = job.program.train.steps
        activations = _size(network.activation_bytes)
        jobs.append((job.directory, str(len(job.runs)), str(steps), f"{len(job.runs) * steps:,}", activations))
    lines += _table(("job", "runs", "steps", "seed-steps", "activations per running run"), jobs)
    lines += ["", f"{_programs(plan)} training program(s) to compile, {len(plan.jobs)} job(s)"]
    return "\n".join(lines)


def _programs(plan: Plan) -> int:
    return len({(job.program, len(job.runs)) for job in plan.jobs})
