"""Trains the jobs of a study: source networks, trials of rates, and arms."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.errors import JaxRuntimeError

from jaxseg import checkpoint, hosts, logs, loop, transfer, workdirs
from jaxseg.study import files
from jaxseg.study.clock import Clock
from jaxseg.study.plan import binding
from jaxseg.study.plan.cutting import halved
from jaxseg.study.plan.jobs import Job, chunk_sizes
from jaxseg.study.plan.planned import PlannedStudy, device_bytes, plan_jobs
from jaxseg.study.train import learning_rates
from jaxseg.study.train.fit import make_fit
from jaxseg.study.train.start import load_tables
from jaxseg.study.versions import changes, made_with, ways
from jaxseg.types import Progress, UserError

MakeProgress = Callable[[str], Progress]


def require_done(planned: PlannedStudy, kind: str, wanted_by: str) -> None:
    """Refuses to continue without an earlier stage; the first host checks for all hosts.

    Raises:
        UserError: If some job of this kind is not at its last step.
    """
    if not hosts.is_first():
        return
    for job in planned.plan.of_kind(kind):
        if not loop.is_done(planned.workdir / job.directory, job.program.train.steps):
            raise UserError(
                f"stage {wanted_by!r} needs stage {kind!r}, which is not finished in {planned.workdir} "
                f"({job.directory}); run without --stages, or with --stages={kind},{wanted_by}"
            )


def train_jobs(planned: PlannedStudy, kind: str, progress: MakeProgress, clock: Clock) -> PlannedStudy:
    """Trains every job of a kind that is not at its last step.

    A damaged last checkpoint is set aside, and its job trained again from the one before. A job that runs out
    of memory is halved if `runtime.seeds_per_chunk` is automatic.

    Returns:
        The study, whose plan has other jobs if memory ran out.

    Raises:
        UserError: If memory runs out and nothing can be halved.
    """
    while True:
        try:
            for job in planned.plan.of_kind(kind):
                _train(planned, job, progress, clock)
        except JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if hosts.count() > 1:
                cause = str(error).splitlines()[0]
                raise UserError(  # the others are in the middle of their part of the job
                    f"{job.directory} does not fit in the memory of host {hosts.index()} ({cause}); "
                    f"set runtime.seeds_per_chunk below {len(job.runs)}"
                ) from error
            planned = back_off(planned, job, str(error))
        else:
            return planned


def _train(planned: PlannedStudy, job: Job, progress: MakeProgress, clock: Clock) -> None:
    directory = planned.workdir / job.directory
    folder = directory / "checkpoints"
    # All hosts hear whether training is done, and whether its start is as it was saved.
    found = (checkpoint.latest_sound(folder), _start_is_sound(folder)) if hosts.is_first() else (None, True)
    if found[0] is not None:
        binding.check_job(folder, found[0], job, planned.bound())
    trained, started = hosts.from_first(found[0] == job.program.train.steps), hosts.from_first(found[1])
    if trained and started:
        if hosts.is_first():
            logs.mend_lines(directory, len(job.runs))
        return
    # The first host writes what a checkpoint says of itself.
    before = [] if found[0] is None or trained else _ways_before(folder, found[0])
    if job.kind == "train":
        chosen = learning_rates.chosen_rates(planned.workdir, planned.plan, planned.study.arms)
        job = learning_rates.with_rates(job, chosen)
    fit = make_fit(
        planned.study,
        planned.workdir,
        planned.plan,
        planned.tasks,
        job,
        device_bytes=device_bytes(planned.study),
        mark=planned.bound().mark | {"made_with_before": before},
    )
    if not trained:
        fit = dataclasses.replace(fit, validate=clock.validation(fit.validate))
        loop.fit(fit, progress(f"{job.group}/{job.chunk} ({len(job.runs)} runs)"))
    if not started and (why := loop.mend_start(fit)) is not None:
        raise UserError(
            f"checkpoint {folder / '0'} is damaged and cannot be made anew ({why}). What was trained from it is sound, "
            f"but analyses compare it with its start. Either run the study where it was trained, or remove the folder "
            f"{directory}, whose runs are then trained again, or go on without analyses: --stages=evaluate,report"
        )


def _ways_before(folder: Path, step: int) -> list[dict[str, Any]]:
    """With what a job was trained up to a step, without the way of this process; says so where that differs."""
    now = made_with()
    known = ways(checkpoint.read_meta(folder, step))
    if known and known[-1] != now:
        warnings.warn(
            f"{folder.parent} was trained up to step {step} otherwise than it goes on now: {changes(known[-1], now)}; "
            f"study.json keeps both",
            stacklevel=2,
        )
    return [made for made in known if made != now]


def _start_is_sound(folder: Path) -> bool:
    """Whether step 0 of a job is as it was saved; says so where it is not. A job without checkpoints has no start."""
    steps = checkpoint.saved_steps(folder)
    if not steps:
        return True
    reason = checkpoint.damage(folder, 0) if 0 in steps else "it is not there"
    if reason is not None:
        warnings.warn(f"checkpoint {folder / '0'} is damaged ({reason}); it is made anew", stacklevel=2)
    return reason is None


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether a device (or, on CPU, the allocator) ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def back_off(planned: PlannedStudy, job: Job, cause: str) -> PlannedStudy:
    """Halves the runs of a job and of the later ones of its group, and says so.

    Raises:
        UserError: If one of them has been trained, the job has one run, or the user set the number of runs.
    """
    count = len(job.runs)
    affected = [other for other in planned.plan.jobs if other.group == job.group and other.chunk >= job.chunk]
    _check_untrained(planned, affected, job, cause)
    # A start alone is made again. It may not stay, since a job that has one goes on with its runs.
    for other in affected:
        shutil.rmtree(planned.workdir / other.directory, ignore_errors=True)
    if count == 1 or planned.study.runtime.seeds_per_chunk is not None:
        raise UserError(
            f"{job.directory} does not fit in memory with {count} run(s) at once ({cause.splitlines()[0]}); "
            + ("use a smaller train.batch (with train.accumulate), target.patch or model.widths, or bfloat16"
               if count == 1 else "lower runtime.seeds_per_chunk, or set it to 'auto'")
        )  # fmt: skip
    sizes = chunk_sizes(planned.plan)
    sizes[job.group] = halved(sizes[job.group], job.chunk)
    warnings.warn(
        f"{job.directory}: out of memory with {count} runs at once; going on with {sizes[job.group][job.chunk]}",
        stacklevel=2,
    )
    plan = plan_jobs(planned.study, planned.tasks, sizes, planned.waves)
    files.write_json(
        planned.workdir / "study.json",
        files.read_json(planned.workdir / "study.json") | {"chunks": chunk_sizes(plan)},
    )
    return dataclasses.replace(planned, plan=plan)


def _check_untrained(planned: PlannedStudy, affected: Sequence[Job], job: Job, cause: str) -> None:
    """Refuses to cut jobs anew of which one has been trained: its networks would be lost.

    Raises:
        UserError: If one has, with what else can be done.
    """
    steps = {
        other.directory: max(checkpoint.saved_steps(planned.workdir / other.directory / "checkpoints"), default=0)
        for other in affected
    }
    if any(steps.values()):
        trained = ", ".join(f"{directory} up to step {step}" for directory, step in steps.items() if step)
        raise UserError(
            f"{job.directory} does not fit in memory with {len(job.runs)} run(s) at once ({cause.splitlines()[0]}) "
            f"and cannot be cut into smaller jobs, as {trained} is trained and would be lost. Nothing was removed. "
            f"Free memory on the device, or go on with a larger one; or train anew in another --workdir with "
            f"runtime.seeds_per_chunk below {len(job.runs)}"
        )


def train_arms(planned: PlannedStudy, progress: MakeProgress, clock: Clock) -> PlannedStudy:
    """Chooses learning rates if a grid asks for it, then trains every arm."""
    require_done(planned, "pretrain", "train")
    if hosts.is_first():
        for job in (*planned.plan.of_kind("select"), *planned.plan.of_kind("train")):
            write_load_tables(planned, job)
    planned = train_jobs(planned, "select", progress, clock)
    if hosts.is_first():
        learning_rates.write_rates(planned.workdir, planned.plan, planned.study.arms)
    hosts.barrier("rates")
    return train_jobs(planned, "train", progress, clock)


def write_load_tables(planned: PlannedStudy, job: Job) -> None:
    """Writes what each transferred arm of a job loads; refuses a transfer that finds too little."""
    tables = load_tables(planned.study, planned.workdir, planned.plan, job)
    for (arm, variant), table in tables.items():
        path = workdirs.inside(planned.workdir, "load_tables", arm, f"{variant}.txt")
        files.write_text(path, transfer.format_load_table(table))
