"""Makes the starts of a job's runs: initialised weights, and what is loaded over them from source networks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg import optim, train, transfer, trees
from jaxseg.data.names import several
from jaxseg.settings import StudySettings
from jaxseg.streams import jit_draws, stream_key
from jaxseg.study.plan import source_networks
from jaxseg.study.plan.jobs import Job, Plan, load_table
from jaxseg.study.plan.program import Program, image_shape, kernels_of_images, own_labels, training_part
from jaxseg.study.plan.runs import Run
from jaxseg.types import Frozen, Params, TrainState


def load_tables(study: StudySettings, workdir: Path, plan: Plan, job: Job) -> dict[tuple[str, str], transfer.LoadTable]:
    """Makes the load tables by (arm, variant) of the job's arms that start from a source network.

    Raises:
        UserError: If less than `pretrain.min_loaded` of what was asked for is found.
    """
    arms = {arm.name: arm for arm in study.arms}
    tables: dict[tuple[str, str], transfer.LoadTable] = {}
    for run in job.runs:
        where = (run.key.arm, run.key.variant())
        if run.source is None or where in tables:
            continue
        arm = arms[run.key.arm]
        source = source_networks.read_start(workdir, plan, arm, run, overlaps=job.program.regions is not None)
        tables[where] = load_table(arm, job.program, source)
        transfer.check_load(tables[where], min_loaded=arm.pretrain.min_loaded, arm=arm.name)
    return tables


def make_tx(program: Program) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer of a program's runs."""
    return optim.make_optimizer(program.optim, own_labels(program), program.train.steps)


def make_init(
    study: StudySettings, workdir: Path, plan: Plan, job: Job
) -> tuple[TrainState, Callable[[], TrainState], Callable[[], Frozen]]:
    """Returns the shapes of one run's state, a function that makes all starts, and one that makes what runs share.

    Each run is initialised by itself by one small compiled program per kind of start, so that its weights do not
    depend on which other runs the job has. Where a source network of this study diverged, what would be loaded from it
    is not a number: the runs that start from it have diverged before their first step, and are left out as such.
    """
    program = job.program
    arms = {arm.name: arm for arm in study.arms}
    compiled, like = _compiled_init(training_part(program))

    @functools.cache  # which reads the log of the source networks
    def is_lost(run: Run) -> bool:
        arm = arms.get(run.key.arm)
        return arm is not None and source_networks.has_diverged(workdir, plan, arm, run)

    def start_of(run: Run) -> tuple[TrainState, Frozen]:
        arm = arms.get(run.key.arm)  # None: a source network, which is no arm
        adapt = arm is not None and arm.pretrain.adapt_channels
        source = {}
        if arm is not None and run.source is not None:
            source = source_networks.read_start(workdir, plan, arm, run, overlaps=program.regions is not None)
            if is_lost(run):
                source = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), source)
        return compiled(run.init, adapt, np.uint32(run.init_id), np.uint32(run.order_id), source)

    def starts() -> TrainState:
        if lost := [run.name() for run in job.runs if is_lost(run)]:
            warnings.warn(
                f"{several(lost)}: the source network diverged, so that there is no start and the run is left out; "
                "a smaller optim.lr or optim.clip_norm may keep it from that, in a new workdir",
                stacklevel=2,
            )
        return trees.stack([start_of(run)[0] for run in job.runs])

    return (
        like,
        starts,
        lambda: start_of(job.runs[0])[1] if program.shared is not None else {},
    )


@functools.lru_cache(maxsize=8)  # jobs that train alike start alike: traced and compiled once for each kind of start
def _compiled_init(program: Program) -> tuple[Callable[..., tuple[TrainState, Frozen]], TrainState]:
    """The start of one run and what it shares with others, a compiled function; and the shapes of the former."""
    model, tx = program.network, make_tx(program)
    own = trees.flatten(own_labels(program))

    def init(kind: str, adapt: bool, init_id: jax.Array, order_id: jax.Array, source: Params) -> Any:
        start = transfer.make_start(transfer.transfer_rules(kind), adapt=kernels_of_images(program) if adapt else ())
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
            jnp.zeros(image_shape(program), jnp.float32),
            load,
            keep_best=program.train.keep_best,
            averaged=own_labels(program) if program.train.average else None,
        )
        return state, shared[0]

    like, _ = jax.eval_shape(functools.partial(init, "random", False), jnp.uint32(0), jnp.uint32(0), {})
    return jit_draws(init, static_argnums=(0, 1)), like
