"""A job of the plan becomes something `loop.fit` can train: compiled functions, data on the devices, a start."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import checkpoint, data, loop, losses, optim, seeds, train, transfer, trees
from jaxseg.data import residence
from jaxseg.models import make_model
from jaxseg.streams import stream_key
from jaxseg.study.plan import Job, Plan, Run, abstract_params, find, image_shape, param_labels
from jaxseg.study.predict import make_validate
from jaxseg.study.tasks import Tasks, cohort_names, run_inputs
from jaxseg.types import ArmSettings, Cohort, Params, RunInputs, RunKey, StudySettings, TrainState, UserError

LocateSource = Callable[[RunKey], tuple[Path, int, int]]
"""Checkpoint directory, last step and position of a source network."""


def locate_source(workdir: Path, plan: Plan, arm: ArmSettings) -> LocateSource:
    """Where an arm's source networks lie: in this workdir, or in the one it names.

    Raises:
        UserError: The other workdir is not a study, or lacks a seed that is asked for.
    """
    if not arm.pretrain.from_workdir:

        def own(key: RunKey) -> tuple[Path, int, int]:
            job, index = find(plan, key)
            return workdir / job.directory / "checkpoints", job.program.train.steps, index

        return own

    other = Path(arm.pretrain.from_workdir)
    path = other / "study.json"
    if not path.exists():
        raise UserError(
            f"pretrain.from_workdir = {str(other)!r} (arm {arm.name!r}): no study.json there; name the workdir of a "
            f"study that has pretrained networks"
        )
    runs = {run["seed"]: run for run in json.loads(path.read_text())["runs"] if run["kind"] == "pretrain"}

    def theirs(key: RunKey) -> tuple[Path, int, int]:
        if key.seed not in runs:
            raise UserError(
                f"pretrain.from_workdir = {str(other)!r} (arm {arm.name!r}) has no source network of seed {key.seed}; "
                f"it has {sorted(runs)}; set seed_ids to some of these, or pretrain.share to 'one'"
            )
        run = runs[key.seed]
        directory = other / run["directory"] / "checkpoints"
        steps = checkpoint.saved_steps(directory)
        if not steps or steps[-1] == 0:
            raise UserError(f"pretrain.from_workdir = {str(other)!r}: its pretraining is not finished; finish it first")
        return directory, steps[-1], run["index"]

    return theirs


def read_source(locate: LocateSource, run: Run) -> Params:
    """Parameters of the source network of a run."""
    if run.source is None:
        raise ValueError(f"run {run.key} has no source network")
    directory, step, index = locate(run.source)
    return checkpoint.read_seed(directory, step, index)


def load_tables(study: StudySettings, workdir: Path, plan: Plan, job: Job) -> dict[tuple[str, str], transfer.LoadTable]:
    """What becomes of each parameter, by (arm, variant), for the job's arms that start from a source.

    Raises:
        UserError: Less than `pretrain.min_loaded` of what was asked for is found.
    """
    arms = {arm.name: arm for arm in study.arms}
    tables: dict[tuple[str, str], transfer.LoadTable] = {}
    start = abstract_params(job.program)
    for run in job.runs:
        where = (run.key.arm, run.key.variant())
        if run.source is None or where in tables:
            continue
        arm = arms[run.key.arm]
        source = read_source(locate_source(workdir, plan, arm), run)
        table = transfer.make_load_table(start, source, transfer.transfer_rules(run.init))
        transfer.check_load(table, min_loaded=arm.pretrain.min_loaded, arm=arm.name)
        tables[where] = table
    return tables


def make_init(
    study: StudySettings, workdir: Path, plan: Plan, job: Job, tx: Any
) -> tuple[TrainState, Callable[[], TrainState]]:
    """Shapes of one run's state, and a function that makes the start of all runs.

    Each run is initialised by itself by one small compiled program per kind of start, so that its weights do not
    depend on which other runs the job has.
    """
    model = make_model(job.program.model, classes=job.program.classes)
    arms = {arm.name: arm for arm in study.arms}
    image = jnp.zeros(image_shape(job.program), jnp.float32)

    def init(kind: str, init_id: jax.Array, order_id: jax.Array, source: Params) -> TrainState:
        start = transfer.make_start(transfer.transfer_rules(kind))
        return train.init_state(
            stream_key(init_id, "init"),
            stream_key(order_id, "order"),
            model,
            tx,
            image,
            None if kind == "random" else lambda params, key: start(params, source, key),
        )

    compiled = jax.jit(init, static_argnums=0)

    def start_of(run: Run) -> TrainState:
        source = {} if run.source is None else read_source(locate_source(workdir, plan, arms[run.key.arm]), run)
        return compiled(run.init, np.uint32(run.init_id), np.uint32(run.order_id), source)

    like = jax.eval_shape(functools.partial(init, "random"), jnp.uint32(0), jnp.uint32(0), {})
    return like, lambda: trees.stack([start_of(run) for run in job.runs])


def make_feed(
    study: StudySettings, tasks: Tasks, job: Job, seed_plan: seeds.SeedPlan, *, device_bytes: int
) -> tuple[Cohort, Callable[[int], Iterator[tuple[int, RunInputs]]]]:
    """The cohort as the devices hold it, and what brings the runs' inputs: see `loop.Fit.feed`."""
    program, prepared, names = job.program, tasks.of(job), cohort_names(tasks, job)
    runs = run_inputs(tasks, job)
    steps, every = program.train.steps, program.train.log_every
    where = residence.choose_residence(study.runtime.data_residence, prepared, names, device_bytes=device_bytes)
    if where == "device":
        cohort, placed = data.build_cohort(prepared, names, seed=study.base_seed), seeds.put(runs, seed_plan)
        return cohort, lambda start: ((end, placed) for end in residence.call_ends(start, steps, every, every))
    cohort = data.load_cohort(prepared, names, seed=study.base_seed)
    roots = jnp.stack([stream_key(jnp.uint32(run.order_id), "order") for run in job.runs])
    send, step_bytes = residence.make_send(
        program.task, batch=program.train.batch, cohort=cohort, roots=roots, runs=runs
    )
    most = max(1, residence.SENT_BYTES // step_bytes)

    def feed(start: int) -> Iterator[tuple[int, RunInputs]]:
        ends = residence.call_ends(start, steps, every, most)
        return residence.ahead(lambda first, last: seeds.put(send(first, last), seed_plan), start, ends)

    return residence.without_voxels(cohort), feed


def make_fit(study: StudySettings, workdir: Path, plan: Plan, tasks: Tasks, job: Job, *, device_bytes: int) -> loop.Fit:
    """Everything `loop.fit` needs for a job; compiles nothing yet.

    Args:
        study: Settings.
        workdir: Folder of the study.
        plan: All jobs.
        tasks: Prepared data.
        job: One of the plan's.
        device_bytes: Memory of one device, which decides where the data stays.
    """
    program = job.program
    seed_plan = seeds.make_plan(len(job.runs), strategy=study.runtime.seed_map, devices=study.runtime.devices)
    labels = param_labels(program)
    tx = optim.make_optimizer(program.optim, labels, program.train.steps)
    model = make_model(program.model, classes=program.classes)
    sample = data.make_sample(program.task, batch=program.train.batch)
    step = train.make_train_step(model, tx, losses.make_loss(program.loss), sample, labels)
    chunk = seeds.map_seeds(train.make_train_chunk(step), plan=seed_plan, shared=(2, 3, 4, 5), donate=(0,))
    cohort, feed = make_feed(study, tasks, job, seed_plan, device_bytes=device_bytes)
    folds = [split.val for split in tasks.splits[program.task]]
    like, init = make_init(study, workdir, plan, job, tx)
    return loop.Fit(
        directory=workdir / job.directory,
        plan=seed_plan,
        names=tuple(f"{run.key.arm}/{run.key.variant()}/seed_{run.key.seed}" for run in job.runs),
        like=like,
        init=init,
        chunk=chunk,
        feed=feed,
        cohort=seeds.replicate(cohort, seed_plan),
        frozen={},
        validate=make_validate(job, tasks.of(job), folds, study.evaluate, seed_plan),
        settings=program.train,
        keep=study.runtime.keep_checkpoints,
        meta={"runs": [run.key._asdict() for run in job.runs]},
    )
