"""Makes a study ready: the config is checked, data is prepared and jobs are planned."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxseg import checkpoint, hosts, machine, paths
from jaxseg.data import PreparedTask, Split
from jaxseg.data.patches import residence
from jaxseg.data.patches.cohort import room_of
from jaxseg.manifest import DamagedError
from jaxseg.settings import StudySettings, TaskSettings
from jaxseg.study import record as records
from jaxseg.study.plan import source_networks
from jaxseg.study.plan.binding import (
    RECORD,
    Binding,
    BoundTask,
    Draw,
    new_study,
    read_binding,
    read_trained,
    write_binding,
)
from jaxseg.study.plan.cutting import even_sizes
from jaxseg.study.plan.external import known_stores, with_external_sets
from jaxseg.study.plan.jobs import Plan, check_networks, make_plan, seed_plan
from jaxseg.study.plan.program import TaskSize
from jaxseg.study.plan.runs import Run
from jaxseg.study.plan.seen import Past, past_of
from jaxseg.study.plan.tasks import Tasks, check_labels, check_regions, cohort_names, draw_of, prepare_tasks, recipe_of
from jaxseg.types import Progress, UserError


@dataclasses.dataclass(frozen=True)
class PlannedStudy:
    """A study whose config is checked, whose data is prepared and whose jobs are planned."""

    study: StudySettings
    workdir: Path
    tasks: Tasks
    plan: Plan
    waves: tuple[int, ...]
    """The number of seeds at the start and after each extension; see `Binding.waves`."""
    binding: Binding | None = None
    """What the study is bound to from its first training step on."""

    def bound(self) -> Binding:
        """The binding of a study that has begun to train."""
        if self.binding is None:
            raise ValueError("a study is bound to its data before it trains")
        return self.binding


def memory_bytes(devices: int) -> int:
    """Returns the memory of some local devices together; on CPU that of this process, which they share."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] * devices
    return machine.memory_bytes()


def device_bytes(study: StudySettings) -> int:
    """Returns the memory of one of the devices that the study trains on."""
    devices = len(seed_plan(study).devices)
    return memory_bytes(devices) // devices


def prepare(study: StudySettings, workdir: Path, progress: Progress) -> PlannedStudy:
    """Prepares data and plans the jobs.

    Raises:
        UserError: If data cannot be used, or the settings do not fit it.
    """
    check_networks(study)
    store_dir = store_dir_of(study, workdir)
    try:
        known = read_binding(workdir)
    except DamagedError:
        known = None  # made anew by `bind`, from what the data and the checkpoints say
    chunks, bound = chunks_of(study, workdir), None if known is None else known.tasks
    waves = waves_of(study, workdir, _waves_before(study, workdir, known))

    # The first host writes the stores, the others read them.
    def prepare_all() -> Tasks:
        own = prepare_tasks(study, store_dir, progress, bound)
        stores = known_stores(_recorded_stores(workdir))
        return with_external_sets(study, own, store_dir=store_dir, progress=progress, known=stores)

    tasks = hosts.in_turn("prepare", prepare_all)
    check_labels(study, tasks.prepared[study.target])
    for prepared in tasks.prepared.values():
        check_regions(prepared)
    _check_given_networks(study, tasks)
    if known is not None:
        _check_given_unchanged(study, known)
    plan = plan_jobs(study, tasks, chunks, waves)
    source_networks.warn_of_differences(study)
    source_networks.warn_of_orders(study, tasks.prepared)
    return PlannedStudy(study, workdir, tasks, plan, waves, known)


def _recorded_stores(workdir: Path) -> Mapping[str, str]:
    """The stores that study.json names; none where it is damaged, which `chunks_of` says."""
    try:
        found = records.read(workdir)
    except DamagedError:
        return {}
    return {} if found is None else found.stores


def _waves_before(study: StudySettings, workdir: Path, known: Binding | None) -> tuple[int, ...]:
    """The numbers of seeds that a study had; an extension of which no network was begun can be taken back."""
    if known is not None and (not known.waves or len(study.seeds) >= known.waves[-1]):
        return known.waves
    trained = read_trained(workdir).waves
    return trained if known is None or trained else known.waves


def waves_of(study: StudySettings, workdir: Path, before: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of seeds when a study began and after each extension, including the present one.

    Args:
        study: The settings, with the present seeds.
        workdir: The workdir, for the message.
        before: The numbers so far; empty before the first training step.

    Raises:
        UserError: If the study has fewer seeds than before.
    """
    count = len(study.seeds)
    if before and count < before[-1]:
        raise UserError(
            f"workdir {workdir} has {before[-1]} seeds, and config.num_seeds = {count} asks for fewer; a study can be "
            f"extended, not cut. Ask for at least {before[-1]}, or give another --workdir"
        )
    return tuple(before) if before and count == before[-1] else (*before, count)


def _check_given_networks(study: StudySettings, tasks: Tasks) -> None:
    """Refuses networks of another study that know patients which this one tests, or trained on those it validates on.

    Raises:
        UserError: The arm, and the cases under both names.
    """
    for arm in study.arms:
        given = arm.pretrain.from_workdir
        if not given or arm.init == "random":
            continue
        past = past_of(given, arm.pretrain.from_arm)
        copies, relatives = _cases_known(past, tasks.prepared[study.target], tasks.splits[study.target])
        held = "case(s) that this study validates or tests on, such as"
        known = [f"{len(copies)} {held} {copies[0]}"] if copies else []
        if relatives:
            known.append(f"other images of the patients of {len(relatives)} {held} {relatives[0]}")
        if known:
            raise UserError(
                f"pretrain.from_workdir = {given!r} (arm {arm.name!r}): its networks were trained on "
                f"{', and on '.join(known)}, so that scores would say nothing. Take networks that have not seen them, "
                f"or the split of that study (its base_seed, val_cases, test_cases and folds)"
            )


def _cases_known(past: Past, target: PreparedTask, splits: Sequence[Split]) -> tuple[list[str], list[str]]:
    """Held-out cases that networks know by the image, and those of whose patients they know other images.

    As with a study's own sources (see `apart.apart_from_target`), patients are the same where both sets publish them.
    """
    tested = {name for split in splits for name in split.test}
    validated = {name for split in splits for name in split.val}
    patients = past.patients_in(target)
    copies: list[str] = []
    relatives: list[str] = []
    for name in sorted(tested | validated):
        record = target.record(name)
        image, patient = past.images.get(record.voxels_sha256), patients.get(record.patient)
        for found, seen, who in ((copies, image, ""), (relatives, patient, f", of the patient {record.patient}")):
            if seen is not None and (name in tested or seen[1] == "train"):
                found.append(f"{name} ({seen[0]} there{who})")
                break
    return copies, relatives


def _check_given_unchanged(study: StudySettings, known: Binding) -> None:
    """Refuses source networks that are no longer those which the study began with.

    Raises:
        UserError: The arm and the seeds.
    """
    for arm, networks in source_networks.given_digests(study).items():
        before = known.given.get(arm, {})
        changed = [seed for seed, digest in networks.items() if before.get(seed, digest) != digest]
        if changed:
            raise UserError(
                f"the source networks of arm {arm!r} (pretrain.from_workdir) are no longer those that this study began "
                f"with: seed(s) {', '.join(changed)}. Nothing was changed here. Put them back to go on, or start from "
                f"those that are there now in a new --workdir"
            )


def chunks_of(study: StudySettings, workdir: Path) -> Mapping[str, Sequence[int]]:
    """Returns the runs of each job as an earlier process cut them, from study.json or else from the checkpoints.

    A job that has begun goes on with its runs. One that has not is cut to what `runtime.seeds_per_chunk` asks for: so a
    study goes on that did not fit in memory.
    """
    chunks: Mapping[str, Sequence[int]] = {}
    try:
        found = records.read(workdir)
        chunks = found.chunks if found is not None else {}
    except DamagedError as error:
        warnings.warn(f"{error.path} is damaged ({error.reason}); it is made anew from the checkpoints", stacklevel=2)
    chunks = chunks or read_trained(workdir).chunks
    most = study.runtime.seeds_per_chunk
    if most is None:
        return chunks
    return {group: _recut(sizes, begun=_number_begun(workdir, group), most=most) for group, sizes in chunks.items()}


def _number_begun(workdir: Path, group: str) -> int:
    """How many of a group's jobs, counted from the first, have been begun or stand before one that has."""
    folders = workdir.glob(f"train/{group}/chunk_*")
    begun = [folder for folder in folders if checkpoint.saved_steps(folder / "checkpoints")]
    return max((int(folder.name.removeprefix("chunk_")) + 1 for folder in begun), default=0)


def _recut(sizes: Sequence[int], *, begun: int, most: int) -> tuple[int, ...]:
    """The sizes of a group's jobs, of which those that have not begun are cut into parts of at most `most` runs."""
    return (*sizes[:begun], *(part for size in sizes[begun:] for part in even_sizes(size, most)))


def bind(planned: PlannedStudy, config_digest: str, rule_version: int) -> PlannedStudy:
    """Binds a study to its data before it trains, and records the binding.

    A lost record is made anew if the data is that which the checkpoints were trained on.

    Args:
        planned: The planned study.
        config_digest: Digest of its config.
        rule_version: Version of the rules that judge it, which are fixed before it trains.

    Raises:
        UserError: If the record is lost and the data has changed.
    """
    roles = {planned.tasks.role(task): task for task in planned.tasks.prepared}
    given = source_networks.given_digests(planned.study)
    if planned.binding is not None:
        # Seeds that came later draw subsets of their own; all else stands.
        kept = {
            role: dataclasses.replace(planned.binding.tasks[role], subsets=subsets_of(planned, task))
            for role, task in roles.items()
        }
        given = {arm: planned.binding.given.get(arm, {}) | networks for arm, networks in given.items()}
        made = dataclasses.replace(planned.binding, tasks=kept, given=given, waves=planned.waves)
    else:
        tasks = {role: _bind_task(planned, task) for role, task in roles.items()}
        made = Binding(new_study(), config_digest, rule_version, tasks, given, planned.waves, planned.study.looks)
        trained = read_trained(planned.workdir)
        if trained.marks:
            made = _bind_again(planned.workdir, dataclasses.replace(made, looks=trained.looks), trained.marks)
    if made != planned.binding:
        write_binding(planned.workdir, made)
    return dataclasses.replace(planned, binding=made)


def _bind_again(workdir: Path, made: Binding, marks: set[tuple[str, str]]) -> Binding:
    record = workdir / RECORD
    if {data for _, data in marks} != {made.data}:
        raise DamagedError(
            record,
            "it says which data the networks were trained on, and the data as it is now is not what they name",
            "put the data back as it was, or the file; or train in a new --workdir",
        )
    if len(marks) > 1:
        raise DamagedError(record, "checkpoints of several studies lie here", "remove those that do not belong here")
    warnings.warn(
        f"{record} was lost; it is made anew, as the data is what the checkpoints were trained on", stacklevel=3
    )
    ((study, _),) = marks
    return dataclasses.replace(made, study=study)


def _bind_task(planned: PlannedStudy, task: TaskSettings) -> BoundTask:
    study, tasks = planned.study, planned.tasks
    recipe, prepared = recipe_of(study, task), tasks.prepared[task]
    return BoundTask(
        data=recipe.data,
        store=prepared.directory.name,
        listing=prepared.listing,
        voxels={record.name: record.voxels_sha256 for record in prepared.cases},
        splits=tasks.splits[task],
        windows=tuple(fold.windows for fold in tasks.fitted[task]),
        subsets=subsets_of(planned, task),
    )


def subsets_of(planned: PlannedStudy, task: TaskSettings) -> dict[Draw, tuple[str, ...]]:
    """Returns the training cases of every draw that is smaller than the training set."""
    runs = [run for job in planned.plan.jobs if job.program.task == task for run in job.runs]
    if task == planned.study.target:
        runs += planned.plan.priors
    draws = {draw_of(run) for run in runs}
    apart = planned.tasks.apart.get(task, {})
    smaller = {draw for draw in draws if draw.train_cases or (draw.fold, draw.subset_id) in apart}
    return {draw: planned.tasks.subset(task, draw) for draw in sorted(smaller)}


def store_dir_of(study: StudySettings, workdir: Path) -> Path:
    """Returns the folder of a study's prepared stores."""
    return paths.expand(study.runtime.store_dir or workdir / "stores")


def plan_jobs(
    study: StudySettings, tasks: Tasks, chunk_sizes: Mapping[str, Sequence[int]] | None, waves: Sequence[int] = ()
) -> Plan:
    """Plans the jobs of a study for this machine, or for all hosts together.

    Args:
        study: Settings of the study.
        tasks: Prepared data.
        chunk_sizes: Runs of each job of a group, if they were cut before.
        waves: The number of seeds at the start and after each extension; see `Binding.waves`.

    Raises:
        UserError: If settings do not fit the data, or source networks are not where they should be.
    """

    def size(task: PreparedTask) -> TaskSize:
        return TaskSize(task.channels, task.outputs, task.regions)

    def cases(run: Run) -> tuple[str, ...]:
        return tasks.subset(study.target, draw_of(run))

    def of_one_size(task: TaskSettings) -> bool:
        cohort = tasks.prepared[task], cohort_names(tasks, task)
        return room_of([cohort]).is_small(len(cohort[0].labels))

    target = tasks.prepared[study.target]
    used = seed_plan(study)
    devices = hosts.agree("devices", len(used.devices))
    return make_plan(
        study,
        target_size=size(target),
        source_sizes={task: size(planned) for task, planned in tasks.prepared.items()},
        fold_statistics=[task for task in tasks.prepared if tasks.fold_statistics(task)],
        memory_bytes=hosts.count() * hosts.from_first(memory_bytes(devices)),
        devices=hosts.count() * devices,
        strategy=used.strategy,
        platform=used.platform,
        data_bytes=data_bytes(study, tasks, devices=hosts.count() * devices),
        given=source_networks.given_shapes(study, overlaps=target.regions is not None),
        chunk_sizes=chunk_sizes,
        waves=waves,
        training_cases=cases,
        of_one_size=of_one_size,
    )


def data_bytes(study: StudySettings, tasks: Tasks, *, devices: int) -> dict[TaskSettings, int]:
    """Returns the memory that the images of each task occupy on the devices while networks train on it."""
    on_cpu = jax.local_devices()[0].platform == "cpu"
    held: dict[TaskSettings, int] = {}
    for task, prepared in tasks.prepared.items():
        names, setting = cohort_names(tasks, task), study.runtime.data_residence
        where = residence.choose_residence(setting, prepared, names, device_bytes=device_bytes(study))
        held[task] = residence.held_bytes(where, prepared, names, devices=devices, one_memory=on_cpu)
    return held
