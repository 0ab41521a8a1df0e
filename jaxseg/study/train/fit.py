"""Turns a job of the plan into what `loop.fit` trains: compiled functions, data on the devices, and a start."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxseg import averaging, data, hosts, loop, seeds, train, trees
from jaxseg.settings import StudySettings, TaskSettings
from jaxseg.study import restore
from jaxseg.study.plan.jobs import Job, Plan, chunk_sizes, host_share, of_host, seed_plan
from jaxseg.study.plan.program import Program, own_labels, param_labels, program_loss, training_part
from jaxseg.study.plan.tasks import Tasks, spread
from jaxseg.study.train import learning_rates
from jaxseg.study.train.feed import make_feed
from jaxseg.study.train.start import make_init, make_tx
from jaxseg.study.train.validate import make_validate
from jaxseg.study.versions import made_with


def encodes_once(job: Job) -> bool:
    """Returns whether all runs of a job see the same features at every step: one frozen encoder and the same batches.

    Training then computes them once for all runs of a device; against every run for itself a last bit may differ.
    """
    program = job.program
    drawn = {(run.order_id, run.subset_id, run.key.train_cases, run.key.fold) for run in job.runs}
    of_encoder = [path for path in trees.flatten(param_labels(program)) if path.startswith("encoder/")]
    shared = of_encoder and not any(path in trees.flatten(own_labels(program)) for path in of_encoder)
    # Accumulation is asked for where memory is short; the features of all its parts at once would take more of it.
    return bool(shared) and len(drawn) == 1 and program.train.accumulate == 1


def training_calls(
    program: Program, plan: seeds.SeedPlan, once: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Maps `train.make_train_chunk` and `train.make_observe` of a program over runs; compiled on first use.

    With `once` the runs' common encoder is computed once for all runs of a device, see `encodes_once`.
    """
    return _training_calls(training_part(program), plan, once)


@functools.lru_cache(maxsize=8)  # jobs that train alike run the same program: traced and compiled once
def _training_calls(
    program: Program, plan: seeds.SeedPlan, once: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    model, parts = program.network, program.train.accumulate
    sample = data.make_sample(program.task, batch=program.train.batch * parts, objective=program.objective)
    common = model, make_tx(program), program_loss(program), sample, own_labels(program)
    settings = program.train
    windows = averaging.make_windows(settings.scored_at, settings.average) if settings.average else ()
    if once:
        chunk = seeds.map_steps(train.make_encoded_loop(*common, windows=windows), plan=plan, donate=(0,), name="chunk")
    else:
        step = train.make_train_step(*common, accumulate=parts, windows=windows)
        chunk = seeds.map_seeds(train.make_train_chunk(step), plan=plan, shared=(2, 3, 4, 5), donate=(0,))
    return chunk, seeds.map_seeds(train.make_observe(program.optim), plan=plan, donate=(0,))


def make_fit(
    study: StudySettings,
    workdir: Path,
    plan: Plan,
    tasks: Tasks,
    job: Job,
    *,
    device_bytes: int,
    mark: Mapping[str, Any] | None = None,
) -> loop.Fit:
    """Makes everything that `loop.fit` needs for a job's runs on this host; nothing is compiled yet.

    Args:
        study: Settings of the study.
        workdir: Folder of the study.
        plan: The plan of all jobs.
        tasks: Prepared data.
        job: A job of the plan.
        device_bytes: Memory of one device, which decides where the data stays.
        mark: The mark by which checkpoints name their study.
    """
    program, whole = job.program, job
    rows = host_share(study, job, hosts.index()).rows
    job = of_host(job, rows)
    plan_of_runs = seed_plan(study, len(job.runs))
    chunk, observe = training_calls(program, plan_of_runs, encodes_once(job))
    listens = program.optim.schedule == "plateau" or program.train.keep_best
    cohort, feed = make_feed(study, tasks, job, _alike(plan, whole), plan_of_runs, device_bytes=device_bytes)
    like, init, shared = make_init(study, workdir, plan, job)
    return loop.Fit(
        directory=workdir / job.directory,
        plan=plan_of_runs,
        names=tuple(run.name(with_rate=job.kind == "select") for run in whole.runs),
        rows=rows,
        like=like,
        init=init,
        shared=shared,
        chunk=chunk,
        observe=observe if listens else None,
        feed=feed,
        cohort=seeds.replicate(cohort, plan_of_runs),
        validate=_make_validate(study, tasks, job, plan_of_runs, device_bytes=device_bytes),
        measure="restored" if program.restores else "DSC",
        settings=program.train,
        scored_at=program.train.scored_at if job.kind == "train" else (),
        validate_from=learning_rates.validate_from(program) if job.kind == "select" else 0,
        keep=study.runtime.keep_checkpoints,
        meta={
            **(mark or {}),
            "runs": [run.key._asdict() | run.ids for run in whole.runs],
            "chunks": chunk_sizes(plan)[job.group],
            "made_with": made_with(),
        },
    )


def _alike(plan: Plan, job: Job) -> list[TaskSettings]:
    """The tasks of the jobs that could share the compiled program of one, if their arrays had the same shapes."""
    part = training_part(job.program)
    jobs = [one for one in plan.jobs if len(one.runs) == len(job.runs) and training_part(one.program) == part]
    return [*dict.fromkeys(one.program.task for one in jobs)]


def _make_validate(
    study: StudySettings, tasks: Tasks, job: Job, plan: seeds.SeedPlan, *, device_bytes: int
) -> Callable[[Any, Any], Any]:
    """Makes the validation of a job's runs: their DSC, or the share that they restore where they learn no labels."""
    task, every = tasks.of(job), [split.val for split in tasks.splits[job.program.task]]
    folds = [spread(names, study.evaluate.val_limit or len(names)) for names in every]
    if job.program.restores:
        return restore.make_validate(job, task, folds, study.evaluate, plan)
    return make_validate(job, task, folds, study.evaluate, plan, device_bytes=device_bytes)
