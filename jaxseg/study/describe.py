"""The plan of a study as text, for `--dry_run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxseg import seeds
from jaxseg.study import estimate, preparation
from jaxseg.study.plan import Plan
from jaxseg.study.ready import Ready


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
    lines.append("")
    seed_plan = seeds.make_plan(10**9, strategy=study.runtime.seed_map, devices=study.runtime.devices)
    speed = estimate.measure_speed(seed_plan.devices)
    jobs, total = [], 0.0
    for job in plan.jobs:
        steps, network = job.program.train.steps, plan.networks[job.runs[0].key.arm]
        used = estimate.job_bytes(
            job, network, devices=min(len(seed_plan.devices), len(job.runs)), strategy=seed_plan.strategy
        )
        seconds = estimate.job_seconds(job, speed)
        total += seconds
        jobs.append(
            (job.directory, f"{len(job.runs)}", f"{steps}", f"{len(job.runs) * steps:,}", _size(used), _time(seconds))
        )
    lines += _table(("job", "runs", "steps", "seed-steps", "memory", "training time"), jobs)
    lines += [
        "",
        f"{_programs(plan)} training program(s) to compile, {len(plan.jobs)} job(s); about {_time(total)} of training "
        f"at this machine's speed now ({speed.flops / 1e9:.0f} GFLOP/s), without compiling, validation and evaluation",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _programs(plan: Plan) -> int:
    # The source whose weights runs share is data: programs that differ in it alone are one.
    return len({(dataclasses.replace(job.program, shared=None), job.program.shared is None, len(job.runs))
                for job in plan.jobs})  # fmt: skip
