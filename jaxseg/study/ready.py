"""A study made ready: config checked, data prepared, jobs planned."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxseg import hosts, seeds
from jaxseg.data import PreparedTask, residence
from jaxseg.study import evaluate, files, sources
from jaxseg.study.plan import Plan, check_networks, make_plan
from jaxseg.study.tasks import Tasks, cohort_names, prepare_tasks
from jaxseg.types import Progress, StudySettings, TaskSettings


@dataclasses.dataclass(frozen=True)
class Ready:
    """A study whose config is checked, whose data is prepared and whose jobs are planned."""

    study: StudySettings
    workdir: Path
    tasks: Tasks
    plan: Plan


def seed_plan(study: StudySettings) -> seeds.SeedPlan:
    """All of this machine's devices that the study trains on, however many runs a job has."""
    return seeds.make_plan(10**9, strategy=study.runtime.seed_map, devices=study.runtime.devices)


def memory_bytes(devices: int) -> int:
    """Memory of so many local devices together; on CPU that of the machine, which they share."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] * devices
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_bytes(study: StudySettings) -> int:
    """Memory of one of the devices that the study trains on."""
    devices = len(seed_plan(study).devices)
    return memory_bytes(devices) // devices


def prepare(study: StudySettings, workdir: Path, progress: Progress) -> Ready:
    """Prepares data and plans the jobs.

    Raises:
        UserError: Data that cannot be used, or settings that do not fit it.
    """
    check_networks(study)
    store_dir = Path(study.runtime.store_dir) if study.runtime.store_dir else workdir / "stores"
    record = files.read_json(workdir / "study.json")
    # The first host writes the stores, the others read them.
    tasks = hosts.in_turn("prepare", lambda: prepare_tasks(study, store_dir, progress, record.get("stores")))
    evaluate.check_labels(study, tasks.prepared[study.target])

    return Ready(study, workdir, tasks, plan_jobs(study, tasks, record.get("chunks")))


def plan_jobs(study: StudySettings, tasks: Tasks, chunk_sizes: Mapping[str, Sequence[int]] | None) -> Plan:
    """The jobs of a study on this machine, or on all hosts together.

    Args:
        study: Settings.
        tasks: Prepared data.
        chunk_sizes: Runs of each job of a group, where they were cut before.

    Raises:
        UserError: Settings that do not fit the data, or source networks that are not where they should be.
    """

    def size(task: PreparedTask) -> tuple[int, int]:
        return task.channels, len(task.labels) + 1

    used = seed_plan(study)
    devices = hosts.agree("devices", len(used.devices))
    return make_plan(
        study,
        target_size=size(tasks.prepared[study.target]),
        source_sizes={task: size(ready) for task, ready in tasks.prepared.items()},
        fold_statistics=tasks.fold_statistics(study.target),
        memory_bytes=hosts.count() * hosts.from_first(memory_bytes(devices)),
        devices=hosts.count() * devices,
        strategy=used.strategy,
        data_bytes=data_bytes(study, tasks, devices=hosts.count() * devices),
        given=sources.given_shapes(study),
        chunk_sizes=chunk_sizes,
    )


def data_bytes(study: StudySettings, tasks: Tasks, *, devices: int) -> dict[TaskSettings, int]:
    """What images of each task take of the devices' memory while networks train on it."""
    on_cpu = jax.local_devices()[0].platform == "cpu"
    held: dict[TaskSettings, int] = {}
    for task, prepared in tasks.prepared.items():
        names, setting = cohort_names(tasks, task), study.runtime.data_residence
        where = residence.choose_residence(setting, prepared, names, device_bytes=device_bytes(study))
        held[task] = residence.held_bytes(where, prepared, names, devices=devices, one_memory=on_cpu)
    return held
