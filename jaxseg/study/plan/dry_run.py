"""Describes the plan of a study as text, for `--dry_run`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxseg.settings import StudySettings
from jaxseg.study.plan import cost, preparation
from jaxseg.study.plan.jobs import Plan, seed_plan
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.program import training_part
from jaxseg.study.plan.source_networks import pretraining_of
from jaxseg.study.record import Checkpoint


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


def describe(planned: PlannedStudy) -> str:
    """Describes arms, runs, parameters, memory per run, runs per chunk, steps, and programs to compile."""
    study, plan = planned.study, planned.plan
    lines = [f"study {study.name!r} in {planned.workdir}", ""]
    for task, prepared in planned.tasks.prepared.items():
        lines += preparation.summary(planned.tasks.role(task), prepared, planned.tasks.splits[task])
    for external in planned.tasks.external:
        lines += preparation.external_summary(external)
    lines += [
        f"seeds: {', '.join(map(str, study.seeds))}; varied: {', '.join(study.vary) or 'nothing'}",
        f"train sizes: {', '.join('all' if n == 0 else str(n) for n in study.target.train_cases)}; "
        f"folds: {study.target.folds}",
        "",
    ]
    arms = []
    for arm in study.arms:
        if arm.kind == "prior":
            count = sum(run.key.arm == arm.name for run in plan.priors)
            arms.append((arm.name, "-", "-", "0", "-", "-", f"{count}"))
            continue
        network = plan.networks[arm.name]
        share = f"{network.trainable:,} ({network.trainable / network.parameters:.0%})"
        runs = sum(run.key.arm == arm.name for job in plan.of_kind("train") for run in job.runs)
        memory = _size(network.state_bytes)
        arms.append((arm.name, arm.init, arm.freeze, f"{network.parameters:,}", share, memory, str(runs)))
    lines += _table(("arm", "init", "freeze", "parameters", "trained", "state per run", "runs"), arms)
    lines += _checkpoints(study)
    lines.append("")
    spread_over = seed_plan(study)
    speed = cost.measure_speed(spread_over.devices)
    jobs, total = [], 0.0
    for job in plan.jobs:
        steps, network = job.program.train.steps, plan.networks[job.runs[0].key.arm]
        used = cost.job_bytes(
            job, network, devices=min(len(spread_over.devices), len(job.runs)), strategy=spread_over.strategy
        )
        seconds = cost.job_seconds(job, speed)
        total += seconds
        jobs.append(
            (job.directory, f"{len(job.runs)}", f"{steps}", f"{len(job.runs) * steps:,}", _size(used), _time(seconds))
        )
    lines += _table(("job", "runs", "steps", "seed-steps", "memory", "training time"), jobs)
    lines += [
        "",
        f"{_programs(plan)} training program(s) to compile, {len(plan.jobs)} job(s); about {_time(total)} of training "
        f"at this machine's speed now ({speed.flops / 1e9:.0f} GFLOP/s in wide products), without compiling, "
        "validation and evaluation",
    ]
    return "\n".join(lines)


def _checkpoints(study: StudySettings) -> list[str]:
    """A line for each network of someone else's, with the arms that start from it."""
    arms: dict[Checkpoint, list[str]] = {}
    for arm in study.arms:
        made = pretraining_of(arm)
        if made is not None and made.checkpoint is not None:
            arms.setdefault(made.checkpoint, []).append(arm.name)
    return [
        f"checkpoint {one.file}, trained on {one.trained_on or 'unknown images'}: {', '.join(names)}"
        for one, names in arms.items()
    ]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _programs(plan: Plan) -> int:
    return len({(training_part(job.program), len(job.runs)) for job in plan.jobs})
