"""The padding of TPUs: arrays by hand, a network's states and activations by hand, and the plan that goes by them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import default
from jaxseg import settings
from jaxseg.settings import Compute, LossSettings, ModelSettings, OptimSettings, TaskSettings, TrainSettings
from jaxseg.study.plan import layout
from jaxseg.study.plan.jobs import make_plan
from jaxseg.study.plan.program import NetworkSize, Program, largest_bytes, measure
from tests.tiny_study import tiny_config

# Bytes of arguments in the layouts that libtpu 0.0.42.1 chose for them, such as f32[2,32,32,32,16]{3,4,2,1,0:T(8,128)}.
PADDED = [
    ((), jnp.float32, 512),
    ((3,), jnp.float32, 512),
    ((130,), jnp.float32, 256 * 4),
    ((300,), jnp.float32, 512 * 4),
    ((1500,), jnp.float32, 2 * 1024 * 4),
    ((16,), jnp.bfloat16, 256 * 2),
    ((100_000,), jnp.uint8, 98 * 1024),
    ((1, 3), jnp.float32, 1 * 128 * 4),
    ((3, 3), jnp.float32, 4 * 128 * 4),
    ((5, 3), jnp.float32, 4 * 128 * 4),  # 3 rows of 5 lanes: 4 rows instead of 8
    ((16, 16), jnp.float32, 16 * 128 * 4),
    ((16, 16), jnp.bfloat16, 16 * 128 * 2),
    ((9, 16), jnp.bfloat16, 16 * 128 * 2),
    ((2, 16), jnp.bfloat16, 2 * 128 * 2),
    ((5, 16), jnp.bool_, 8 * 128),
    ((8, 100_000), jnp.uint8, 8 * 782 * 128),
    ((3, 3, 3, 1, 16), jnp.float32, 27 * 128 * 4),
    ((3, 3, 3, 16, 16), jnp.float32, 27 * 16 * 128 * 4),
    ((2, 32, 32, 32, 1), jnp.float32, 2 * 32 * 32 * 128 * 4),
    ((2, 32, 32, 32, 16), jnp.float32, 2 * 32 * 32 * 16 * 128 * 4),  # 16 rows of 32 lanes instead of 32 of 16
    ((4, 128, 128, 128), jnp.float32, 4 * 128**3 * 4),
]


@pytest.mark.parametrize(("shape", "kind", "expected"), PADDED)
def test_an_array_fills_tiles_of_its_last_two_axes(shape: tuple[int, ...], kind: object, expected: int) -> None:
    itemsize = jnp.dtype(kind).itemsize
    assert layout.array_bytes(shape, itemsize, "tpu") == expected
    elements = expected // itemsize
    plain = [layout.array_bytes(shape, itemsize, platform) for platform in ("cpu", "gpu")]
    assert plain[0] == plain[1] <= elements * itemsize
    assert plain[0] == int(jnp.zeros(shape, kind).nbytes)


def test_nothing_takes_nothing() -> None:
    assert layout.array_bytes((0, 3), 4, "tpu") == layout.array_bytes((5, 3), 0, "tpu") == 0


@pytest.fixture(scope="module")
def sizes() -> dict[str, NetworkSize]:
    """A network of one level: two convolutions of two channels, biases, and a head of three classes."""
    model = ModelSettings(name="unet", ndim=2, widths=(2,), norm="none")
    task, train = TaskSettings(patch=(8, 8)), TrainSettings(batch=2)
    optimizer = OptimSettings(name="adam", schedule="constant", clip_norm=0.0)
    program = Program(task, model, Compute(), optimizer, LossSettings(), train, "none", channels=1, classes=3)
    return {platform: measure(program, platform) for platform in ("gpu", "tpu")}


def test_states_by_hand(sizes: dict[str, NetworkSize]) -> None:
    plain = 9 * 1 * 2 + 2 + 9 * 2 * 2 + 2 + 2 * 3 + 3
    assert sizes["gpu"].parameters == sizes["tpu"].parameters == plain
    # Of the last two axes, the smaller is the rows: 1 and 2 of the kernels, 2 of the head, 1 (the runs) of the biases.
    padded = 128 * (9 * 1 + 1 + 9 * 2 + 1 + 2 + 1)
    counters, rest = divmod(sizes["gpu"].state_bytes - 3 * 4 * plain, 4)  # weights and two moments
    assert rest == 0
    assert 0 < counters < 5
    assert sizes["tpu"].state_bytes == 3 * 4 * padded + 512 * counters


def test_activations_by_hand(sizes: dict[str, NetworkSize]) -> None:
    """Features of 2 x 8 x 8 voxels and 3 channels: 3 of 4 rows and 8 of 128 lanes are in use."""
    jaxpr = jax.make_jaxpr(lambda x: jnp.tanh(x * 2).sum())(jnp.zeros((2, 8, 8, 3))).jaxpr
    largest = {platform: largest_bytes(jaxpr, platform) for platform in ("gpu", "tpu")}
    assert largest == {"gpu": 2 * 8 * 8 * 3 * 4, "tpu": 2 * 8 * 4 * 128 * 4}
    gpu, tpu = sizes["gpu"].activation_bytes, sizes["tpu"].activation_bytes
    assert 4 * largest["gpu"] < gpu < 20 * largest["gpu"]
    assert 4 * largest["tpu"] < tpu < 20 * largest["tpu"]
    assert tpu > 10 * gpu


def test_a_plan_for_tpus_packs_fewer_runs_into_a_job() -> None:
    made = tiny_config()
    made.num_seeds, made.arms = 64, default.pick_arms("scratch")
    study = settings.parse(made)
    sizes = {arm.source: (1, 3) for arm in study.arms}
    given = {"target_size": (1, 3), "source_sizes": sizes, "memory_bytes": 2**24, "devices": 1, "strategy": "vmap"}
    plans = {platform: make_plan(study, **given, platform=platform) for platform in ("gpu", "tpu")}  # type: ignore[arg-type]
    runs = {platform: len(plan.jobs[0].runs) for platform, plan in plans.items()}
    assert runs["gpu"] == 64
    assert runs["tpu"] < 16
    (job,), network = plans["tpu"].jobs[:1], plans["tpu"].networks["scratch"]
    assert network == measure(job.program, "tpu") != measure(dataclasses.replace(job.program), "gpu")
