"""Feeds a job's runs: with the cohort on the devices, or with batches that the host sends ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import data, seeds
from jaxseg.data import PreparedTask
from jaxseg.data.patches import residence
from jaxseg.settings import StudySettings, TaskSettings
from jaxseg.streams import stream_key
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.tasks import Tasks, cohort_names, run_inputs
from jaxseg.types import Cohort, RunInputs


def make_feed(
    study: StudySettings,
    tasks: Tasks,
    job: Job,
    alike: Sequence[TaskSettings],
    seed_plan: seeds.SeedPlan,
    *,
    device_bytes: int,
) -> tuple[Cohort, Callable[[int], Iterator[tuple[int, RunInputs]]]]:
    """Makes the cohort as the devices hold it, and the source of the runs' inputs; see `loop.Fit.feed`.

    Args:
        study: The study's settings.
        tasks: Prepared data.
        job: The runs.
        alike: The tasks, that of the job among them, on which the same program trains if arrays have the same shapes.
        seed_plan: Devices and strategy.
        device_bytes: Memory of one device.
    """
    program, prepared, names = job.program, tasks.of(job), cohort_names(tasks, job.program.task)
    runs = run_inputs(tasks, job)
    steps, every = program.train.steps, program.train.log_every

    def is_resident(prepared: PreparedTask, names: Sequence[str]) -> bool:
        setting = study.runtime.data_residence
        return residence.choose_residence(setting, prepared, names, device_bytes=device_bytes) == "device"

    drawn: dict[str, Any] = {"seed": study.base_seed, "shuffle_labels": program.task.shuffle_labels}
    if is_resident(prepared, names):
        others = [(tasks.prepared[task], cohort_names(tasks, task)) for task in alike]
        room = data.room_of([other for other in others if is_resident(*other)])
        small = room.is_small(len(prepared.labels))
        cohort = data.build_cohort(prepared, names, room=room if small else None, **drawn)
        rows = np.pad(runs.cases, ((0, 0), (0, len(cohort.shapes) - len(names))), mode="edge")
        placed = seeds.put(dataclasses.replace(runs, cases=jax.device_put(rows)), seed_plan)
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
