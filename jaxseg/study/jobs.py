"""Training the jobs of a study: source networks, trials of rates, arms."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from jax.errors import JaxRuntimeError

from jaxseg import checkpoint, hosts, logs, loop, transfer, workdirs
from jaxseg.study import binding, build, files, rates
from jaxseg.study.plan import Job, chunk_sizes, halved
from jaxseg.study.ready import Ready, device_bytes, plan_jobs
from jaxseg.types import Progress, UserError

MakeProgress = Callable[[str], Progress]


def require_done(ready: Ready, kind: str, wanted_by: str) -> None:
    """Refuses to go on without an earlier stage; the first host looks for all.

    Raises:
        UserError: Some job of this kind is not at its last step.
    """
    if not hosts.is_first():
        return
    for job in ready.plan.of_kind(kind):
        if not loop.is_done(ready.workdir / job.directory, job.program.train.steps):
            raise UserError(
                f"stage {wanted_by!r} needs stage {kind!r}, which is not finished in {ready.workdir} "
                f"({job.directory}); run without --stages, or with --stages={kind},{wanted_by}"
            )


def train_jobs(ready: Ready, kind: str, progress: MakeProgress) -> Ready:
    """Trains every job of a kind that is not at its last step.

    A last checkpoint that is damaged is set aside, and its job trained again from the one before. A job that runs out
    of memory is cut in two where `runtime.seeds_per_chunk` is automatic.

    Returns:
        The study, whose plan has other jobs where memory ran out.

    Raises:
        UserError: Out of memory where nothing can be cut.
    """
    while True:
        try:
            for job in ready.plan.of_kind(kind):
                _train(ready, job, progress)
        except JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if hosts.count() > 1:
                cause = str(error).splitlines()[0]
                raise UserError(  # the others are in the middle of their part of the job
                    f"{job.directory} does not fit in the memory of host {hosts.index()} ({cause}); "
                    f"set runtime.seeds_per_chunk below {len(job.runs)}"
                ) from error
            ready = back_off(ready, job, str(error))
        else:
            return ready


def _train(ready: Ready, job: Job, progress: MakeProgress) -> None:
    directory = ready.workdir / job.directory
    folder = directory / "checkpoints"
    # All hosts hear whether training is done, and whether its start is as it was saved.
    found = (checkpoint.latest_sound(folder), _start_is_sound(folder)) if hosts.is_first() else (None, True)
    if found[0] is not None:
        binding.check_job(folder, found[0], job, ready.bound())
    trained, started = hosts.from_first(found[0] == job.program.train.steps), hosts.from_first(found[1])
    if trained and started:
        if hosts.is_first():
            logs.mend_lines(directory, len(job.runs))
        return
    if job.kind == "train":
        job = rates.with_rates(job, rates.chosen_rates(ready.workdir, ready.plan))
    fit = build.make_fit(
        ready.study,
        ready.workdir,
        ready.plan,
        ready.tasks,
        job,
        device_bytes=device_bytes(ready.study),
        mark=ready.bound().mark,
    )
    if not trained:
        loop.fit(fit, progress(f"{job.group}/{job.chunk} ({len(job.runs)} runs)"))
    if not started and (why := loop.mend_start(fit)) is not None:
        raise UserError(
            f"checkpoint {folder / '0'} is damaged and cannot be made anew ({why}). What was trained from it is sound, "
            f"but analyses compare it with its start. Either run the study where it was trained, or remove the folder "
            f"{directory}, whose runs are then trained again, or go on without analyses: --stages=evaluate,report"
        )


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
    """Whether a device (or, on CPU, the allocator) had no room."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def back_off(ready: Ready, job: Job, cause: str) -> Ready:
    """The study with the runs of a job, and of the later ones of its group, in halves; says so.

    Raises:
        UserError: The job has one run, or the number of runs was set by the user.
    """
    count = len(job.runs)
    if count == 1 or ready.study.runtime.seeds_per_chunk is not None:
        raise UserError(
            f"{job.directory} does not fit in memory with {count} run(s) at once ({cause.splitlines()[0]}); "
            + ("use a smaller train.batch (with train.accumulate), target.patch or model.widths, or bfloat16"
               if count == 1 else "lower runtime.seeds_per_chunk, or set it to 'auto'")
        )  # fmt: skip
    sizes = chunk_sizes(ready.plan)
    sizes[job.group] = halved(sizes[job.group], job.chunk)
    warnings.warn(
        f"{job.directory}: out of memory with {count} runs at once; going on with {sizes[job.group][job.chunk]}",
        stacklevel=2,
    )
    # Its jobs from this one on are cut anew and start again; those before are kept as they are.
    for later in ready.plan.jobs:
        if later.group == job.group and later.chunk >= job.chunk:
            shutil.rmtree(ready.workdir / later.directory, ignore_errors=True)
    plan = plan_jobs(ready.study, ready.tasks, sizes)
    files.write_json(
        ready.workdir / "study.json",
        files.read_json(ready.workdir / "study.json") | {"chunks": chunk_sizes(plan)},
    )
    return dataclasses.replace(ready, plan=plan)


def train_arms(ready: Ready, progress: MakeProgress) -> Ready:
    """Chooses rates where a grid asks for it, then trains every arm."""
    require_done(ready, "pretrain", "train")
    if hosts.is_first():
        for job in (*ready.plan.of_kind("select"), *ready.plan.of_kind("train")):
            write_load_tables(ready, job)
    ready = train_jobs(ready, "select", progress)
    if hosts.is_first():
        rates.write_rates(ready.workdir, ready.plan)
    hosts.barrier("rates")
    return train_jobs(ready, "train", progress)


def write_load_tables(ready: Ready, job: Job) -> None:
    """Writes what each transferred arm of a job loads; refuses a transfer that finds too little."""
    tables = build.load_tables(ready.study, ready.workdir, ready.plan, job)
    for (arm, variant), table in tables.items():
        path = workdirs.inside(ready.workdir, "load_tables", arm, f"{variant}.txt")
        files.write_text(path, transfer.format_load_table(table))
