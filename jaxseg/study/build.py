"""A job of the plan becomes something `loop.fit` can train: compiled functions, data on the devices, a start."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg import data, hosts, loop, losses, optim, seeds, train, transfer, trees
from jaxseg.data import residence
from jaxseg.models import make_model
from jaxseg.streams import stream_key
from jaxseg.study import rates, sources
from jaxseg.study.machine import made_with
from jaxseg.study.plan import Job, Plan, chunk_sizes, load_table
from jaxseg.study.predict import make_validate
from jaxseg.study.program import Program, image_shape, own_labels, param_labels
from jaxseg.study.runs import Run
from jaxseg.study.tasks import Tasks, cohort_names, run_inputs
from jaxseg.types import Cohort, Frozen, Params, RunInputs, StudySettings, TrainState


def load_tables(study: StudySettings, workdir: Path, plan: Plan, job: Job) -> dict[tuple[str, str], transfer.LoadTable]:
    """What becomes of each parameter, by (arm, variant), for the job's arms that start from a source.

    Raises:
        UserError: Less than `pretrain.min_loaded` of what was asked for is found.
    """
    arms = {arm.name: arm for arm in study.arms}
    tables: dict[tuple[str, str], transfer.LoadTable] = {}
    for run in job.runs:
        where = (run.key.arm, run.key.variant())
        if run.source is None or where in tables:
            continue
        arm = arms[run.key.arm]
        source = sources.read_source(sources.locate(workdir, plan, arm), run)
        tables[where] = load_table(arm, job.program, source)
        transfer.check_load(tables[where], min_loaded=arm.pretrain.min_loaded, arm=arm.name)
    return tables


def make_init(
    study: StudySettings, workdir: Path, plan: Plan, job: Job, tx: Any
) -> tuple[TrainState, Callable[[], TrainState], Callable[[], Frozen]]:
    """Shapes of one run's state, a function that makes the start of all runs, and one that makes what they share.

    Each run is initialised by itself by one small compiled program per kind of start, so that its weights do not
    depend on which other runs the job has.
    """
    program = job.program
    model = make_model(program.model, classes=program.classes)
    arms = {arm.name: arm for arm in study.arms}
    image = jnp.zeros(image_shape(program), jnp.float32)
    own = trees.flatten(own_labels(program))

    def init(kind: str, adapt: bool, init_id: jax.Array, order_id: jax.Array, source: Params) -> Any:
        start = transfer.make_start(transfer.transfer_rules(kind), adapt_channels=program.channels if adapt else None)
        shared: list[Frozen] = []

        def load(params: Params, key: jax.Array) -> Params:
            loaded = trees.flatten(params if kind == "random" else start(params, source, key))
            shared.append(trees.unflatten({path: leaf for path, leaf in loaded.items() if path not in own}))
            return trees.unflatten({path: leaf for path, leaf in loaded.items() if path in own})

        state = train.init_state(
            stream_key(init_id, "init"),
            stream_key(order_id, "order"),
            model,
            tx,
            image,
            load,
            keep_best=program.train.keep_best,
        )
        return state, shared[0]

    compiled = jax.jit(init, static_argnums=(0, 1))

    def start_of(run: Run) -> tuple[TrainState, Frozen]:
        arm = arms.get(run.key.arm)  # None: a source network, which is no arm
        adapt = arm is not None and arm.pretrain.adapt_channels
        source = {}
        if arm is not None and run.source is not None:
            source = sources.read_source(sources.locate(workdir, plan, arm), run)
        return compiled(run.init, adapt, np.uint32(run.init_id), np.uint32(run.order_id), source)

    like, _ = jax.eval_shape(functools.partial(init, "random", False), jnp.uint32(0), jnp.uint32(0), {})
    return (
        like,
        lambda: trees.stack([start_of(run)[0] for run in job.runs]),
        lambda: start_of(job.runs[0])[1] if program.shared is not None else {},
    )


def make_feed(
    study: StudySettings, tasks: Tasks, job: Job, seed_plan: seeds.SeedPlan, *, device_bytes: int
) -> tuple[Cohort, Callable[[int], Iterator[tuple[int, RunInputs]]]]:
    """The cohort as the devices hold it, and what brings the runs' inputs: see `loop.Fit.feed`."""
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


def host_share(study: StudySettings, job: Job, index: int) -> hosts.Share:
    """A host's part of a job's runs."""
    local = seeds.make_plan(len(job.runs), strategy=study.runtime.seed_map, devices=study.runtime.devices)
    return hosts.share(len(job.runs), devices=len(local.devices), index=index, count=hosts.count())


def own_rows(study: StudySettings, job: Job, index: int) -> tuple[int, ...]:
    """Positions of a host's runs in a job, without those that stand in; none where there are fewer runs than hosts."""
    share = host_share(study, job, index)
    return share.rows[: share.own]


def of_host(job: Job, rows: Sequence[int]) -> Job:
    """A job cut down to some of its runs."""
    return dataclasses.replace(job, runs=tuple(job.runs[row] for row in rows))


def make_tx(program: Program) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a program's runs."""
    return optim.make_optimizer(program.optim, own_labels(program), program.train.steps)


def encodes_once(job: Job) -> bool:
    """Whether all runs of a job see the same features at every step: one frozen encoder, and the same batches.

    Training then computes them once for all runs of a device; against every run for itself a last bit may differ.
    """
    program = job.program
    drawn = {(run.order_id, run.subset_id, run.key.train_cases, run.key.fold) for run in job.runs}
    of_encoder = [path for path in trees.flatten(param_labels(program)) if path.startswith("encoder/")]
    shared = of_encoder and not any(path in trees.flatten(own_labels(program)) for path in of_encoder)
    # Accumulation is asked for where memory is short; the features of all its parts at once would take more of it.
    return bool(shared) and len(drawn) == 1 and program.train.accumulate == 1


@functools.lru_cache(maxsize=4)  # jobs of one group run the same program: traced and compiled once
def training_calls(
    program: Program, seed_plan: seeds.SeedPlan, once: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`train.make_train_chunk` and `train.make_observe` of a program, mapped over runs; compiled on first use.

    With `once` the runs' common encoder is computed once for all runs of a device, see `encodes_once`.
    """
    model, parts = make_model(program.model, classes=program.classes), program.train.accumulate
    sample = data.make_sample(program.task, batch=program.train.batch * parts)
    common = model, make_tx(program), losses.make_loss(program.loss), sample, own_labels(program)
    if once:
        chunk = seeds.map_steps(train.make_encoded_loop(*common), plan=seed_plan, donate=(0,), name="chunk")
    else:
        step = train.make_train_step(*common, accumulate=parts)
        chunk = seeds.map_seeds(train.make_train_chunk(step), plan=seed_plan, shared=(2, 3, 4, 5), donate=(0,))
    return chunk, seeds.map_seeds(train.make_observe(program.optim), plan=seed_plan, donate=(0,))


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
    """Everything `loop.fit` needs for a job's runs on this host; compiles nothing yet.

    Args:
        study: Settings.
        workdir: Folder of the study.
        plan: All jobs.
        tasks: Prepared data.
        job: One of the plan's.
        device_bytes: Memory of one device, which decides where the data stays.
        mark: What checkpoints say of the study that they belong to.
    """
    program, whole = job.program, job
    rows = host_share(study, job, hosts.index()).rows
    job = of_host(job, rows)
    seed_plan = seeds.make_plan(len(job.runs), strategy=study.runtime.seed_map, devices=study.runtime.devices)
    chunk, observe = training_calls(program, seed_plan, encodes_once(job))
    listens = program.optim.schedule == "plateau" or program.train.keep_best
    cohort, feed = make_feed(study, tasks, job, seed_plan, device_bytes=device_bytes)
    folds = [split.val for split in tasks.splits[program.task]]
    like, init, shared = make_init(study, workdir, plan, job, make_tx(program))
    return loop.Fit(
        directory=workdir / job.directory,
        plan=seed_plan,
        names=tuple(run.name(with_rate=job.kind == "select") for run in whole.runs),
        rows=rows,
        like=like,
        init=init,
        shared=shared,
        chunk=chunk,
        observe=observe if listens else None,
        feed=feed,
        cohort=seeds.replicate(cohort, seed_plan),
        validate=make_validate(job, tasks.of(job), folds, study.evaluate, seed_plan, device_bytes=device_bytes),
        settings=program.train,
        validate_from=rates.validate_from(program) if job.kind == "select" else 0,
        keep=study.runtime.keep_checkpoints,
        meta={
            **(mark or {}),
            "runs": [run.key._asdict() | run.ids for run in whole.runs],
            "chunks": chunk_sizes(plan)[job.group],
            "made_with": made_with(),
        },
    )
