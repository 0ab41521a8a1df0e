"""Lowers what a study compiles for a platform that this process need not have, from shapes alone.

The programs are those of `fit.training_calls` and `predict.window_predict`, with the convolutions and the mapping over
runs that the platform has by default. Lowering shows that a program can be expressed for the platform; that it runs,
and how fast, only the platform itself shows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from jaxseg import seeds, train, trees
from jaxseg.streams import stream_key
from jaxseg.study.plan.program import Program, abstract_params, image_shape, own_labels, param_labels
from jaxseg.study.predict import window_predict
from jaxseg.study.train.fit import training_calls
from jaxseg.study.train.start import make_tx
from jaxseg.types import Cohort, Frozen, RunInputs, TrainState

_POINTS = 4096
"""Foreground positions that a cohort keeps for each case and label."""


class Sizes(NamedTuple):
    """How many of everything the programs are lowered for."""

    runs: int
    cases: int = 8
    voxels: int = 2**20
    """Voxels of all cases together."""
    windows: int = 8
    """Windows of one call of the prediction."""


def training(program: Program, devices: tuple[jax.Device, ...], platform: str, sizes: Sizes) -> jax.export.Exported:
    """Lowers the loop of training steps of a job's runs.

    Args:
        program: What is trained.
        devices: As many devices of any platform as the mesh has; each gets an equal share of the runs.
        platform: The platform to lower for: `cpu`, `cuda`, `rocm` or `tpu`.
        sizes: Runs and images.
    """
    program, plan = program.for_platform(platform), seeds.SeedPlan(devices, seeds.strategy_for(platform))
    chunk: Any = training_calls(program, plan)[0]
    return jax.export.export(chunk, platforms=[platform])(*training_shapes(program, sizes))


def windows(program: Program, devices: tuple[jax.Device, ...], platform: str, sizes: Sizes) -> jax.export.Exported:
    """Lowers the prediction of a batch of windows by a job's runs; arguments as those of `training`."""
    program, plan = program.for_platform(platform), seeds.SeedPlan(devices, seeds.strategy_for(platform))
    state, _, _, frozen, *_ = training_shapes(program, sizes)
    images = jax.ShapeDtypeStruct((sizes.windows, *image_shape(program)[1:]), jnp.float32)
    predict: Any = window_predict(program.network, plan)
    return jax.export.export(predict, platforms=[platform])(state.params, frozen, images)


def training_shapes(
    program: Program, sizes: Sizes
) -> tuple[TrainState, RunInputs, Cohort, Frozen, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns the shapes of what a training program takes: states, inputs, cohort, shared weights, and two steps."""
    labels = param_labels(program)
    frozen = {} if program.shared is None else trees.partition(abstract_params(program), labels, "frozen")[0]

    def start() -> TrainState:
        return train.init_state(
            stream_key(jnp.uint32(0), "init"),
            stream_key(jnp.uint32(0), "order"),
            program.network,
            make_tx(program),
            jnp.zeros(image_shape(program), jnp.float32),
            lambda params, key: params if program.shared is None else trees.partition(params, labels, "frozen")[1],
            keep_best=program.train.keep_best,
            averaged=own_labels(program) if program.train.average else None,
        )

    def array(kind: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, kind)

    axes, classes = len(program.task.window), max(program.classes - 1, 1)
    state = jax.tree.map(lambda leaf: array(leaf.dtype, sizes.runs, *leaf.shape), jax.eval_shape(start))
    runs = RunInputs(
        cases=array(jnp.int32, sizes.runs, sizes.cases),
        num_cases=array(jnp.int32, sizes.runs),
        rate=array(jnp.float32, sizes.runs),
    )
    cohort = Cohort(
        image=array(jnp.float16, sizes.voxels, program.channels),
        label=array(jnp.uint8, sizes.voxels),
        offsets=array(jnp.int32, sizes.cases),
        shapes=array(jnp.int32, sizes.cases, axes),
        foreground=array(jnp.int32, sizes.cases, classes, _POINTS),
        num_foreground=array(jnp.int32, sizes.cases, classes),
        spacing=array(jnp.float32, sizes.cases, axes),
    )
    return state, runs, cohort, frozen, array(jnp.int32), array(jnp.int32)
