"""Feeds a job's runs: with the cohort on the devices, or with batches that the host sends ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

from jaxseg import data, seeds
from jaxseg.data.patches import residence
from jaxseg.settings import StudySettings
from jaxseg.streams import stream_key
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.tasks import Tasks, cohort_names, run_inputs
from jaxseg.types import Cohort, RunInputs


def make_feed(
    study: StudySettings, tasks: Tasks, job: Job, seed_plan: seeds.SeedPlan, *, device_bytes: int
) -> tuple[Cohort, Callable[[int], Iterator[tuple[int, RunInputs]]]]:
    """Makes the cohort as the devices hold it, and the source of the runs' inputs; see `loop.Fit.feed`."""
    program, prepared, names = job.program, tasks.of(job), cohort_names(tasks, job.program.task)
    runs = run_inputs(tasks, job)
    steps, every = program.train.steps, program.train.log_every
    where = residence.choose_residence(study.runtime.data_residence, prepared, names, device_bytes=device_bytes)
    drawn: dict[str, Any] = {"seed": study.base_seed, "shuffle_labels": program.task.shuffle_labels}
    if where == "device":
        cohort, placed = data.build_cohort(prepared, names, **drawn), seeds.put(runs, seed_plan)
        return cohort, lambda start: ((end, placed) for end in residence.call_ends(start, steps, every, every))
    cohort = data.load_cohort(prepared, names, **drawn)
    roots = jnp.stack([stream_key(jnp.uint32(run.order_id), "order") for run in job.runs])
    send, step_bytes = residence.make_send(
        program.task, batch=program.train.batch * program.train.accumulate, cohort=cohort, roots=roots, runs=runs
    )
    most = max(1, residence.SENT_BYTES // step_bytes)

    def feed(start: int) -> Iterator[tuple[int, RunInputs]]:
        ends = residence.call_ends(start, steps, every, most)
        return residence.ahead(lambda first, last: seeds.put(send(first, last), seed_plan), start, ends)

    return residence.without_voxels(cohort), feed
