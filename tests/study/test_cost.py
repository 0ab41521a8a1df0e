"""What --dry_run predicts: arithmetic by closed forms, memory and programs from the plan."""

from __future__ import annotations

import dataclasses
import os
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from configs import default, quickstart
from jaxseg import settings
from jaxseg.study.plan import cost, dry_run
from jaxseg.study.plan import planned as readiness
from jaxseg.study.plan.jobs import Plan, make_plan
from jaxseg.study.run import run_stages
from jaxseg.study.train.fit import make_fit
from tests.tiny_study import changed, silent, tiny_config


def flops_of(function, *shapes):
    return cost.count_work(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)).jaxpr).flops


def test_products_and_convolutions_by_closed_form():
    assert flops_of(lambda a, b: a @ b, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert flops_of(lambda a, b: jnp.einsum("nij,njk->nik", a, b), (4, 5, 7), (4, 7, 3)) == 2 * 4 * 5 * 7 * 3

    def convolve(image, kernel):
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops_of(convolve, (2, 8, 6, 3), (3, 3, 3, 5)) == 2 * 2 * 8 * 6 * 9 * 3 * 5

    def transposed(image, kernel):
        return lax.conv_transpose(image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # Each coarse voxel meets each tap once; the zeros between coarse voxels cost nothing.
    assert flops_of(transposed, (2, 8, 6, 3), (2, 2, 3, 5)) == 2 * 2 * 8 * 6 * 4 * 3 * 5

    def looped(a, b):
        return lax.scan(lambda carry, _: (carry @ b, None), a, length=6)[0]

    assert flops_of(looped, (4, 4), (4, 4)) == 6 * 2 * 4**3
    assert flops_of(jax.jit(lambda a: jnp.sin(a) + 1), (4, 4)) == 0
    # The gradient of a product is two.
    assert flops_of(jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), (5, 7), (7, 3)) == 3 * 2 * 5 * 7 * 3


def test_operations_between_products_by_what_they_write():
    def work_of(function, *shapes):
        return cost.count_work(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)).jaxpr)

    assert work_of(lambda a: jnp.sin(a) + 1, (4, 5)) == (0, 0, 2 * 4 * 20)
    assert work_of(lambda a: jnp.transpose(a)[:3], (4, 5)) == (0, 0, 0)
    assert work_of(lambda a, b: jnp.sin(a @ b), (4, 5), (5, 3)) == (2 * 4 * 5 * 3, 2 * 4 * 5, 4 * 12)
    assert work_of(lambda a: lax.scan(lambda x, _: (jnp.sin(x), None), a, length=7)[0], (4, 5)) == (0, 0, 7 * 4 * 20)


def test_the_columns_of_a_product_are_the_smaller_one_of_its_free_dimensions():
    def narrow_of(subscripts, *shapes):
        jaxpr = jax.make_jaxpr(lambda a, b: jnp.einsum(subscripts, a, b))(*map(jnp.zeros, shapes)).jaxpr
        work = cost.count_work(jaxpr)
        return work.flops / work.narrow

    assert narrow_of("ij,jk->ik", (40, 5), (5, 3)) == 3
    assert narrow_of("ij,jk->ik", (3, 5), (5, 40)) == 3
    assert narrow_of("bij,bjk->bik", (7, 40, 5), (7, 5, 4)) == 4
    assert narrow_of("ij,kj->ik", (40, 5), (6, 5)) == 6


def test_time_is_that_of_products_and_of_what_lies_between_them():
    (job,) = plan("scratch").jobs
    work = cost.step_work(job.program)
    seconds = cost.job_seconds(job, cost.Speed(1e9, 1e8, 1e7))
    step = cost.WHOLE * (work.flops / 1e9 + work.narrow / 1e8 + work.written / (cost.ELEMENTS * 1e7))
    assert seconds == pytest.approx(len(job.runs) * job.program.train.steps * step)


def plan(*arms: str, **train: int) -> Plan:
    made = tiny_config()
    made.model.blocks = made.model.decoder_blocks = ()  # of one convolution a level, little is kept that is not trained
    made.arms = default.pick_arms(*arms)
    made.train.update(train)
    study = settings.parse(made)
    sizes = {arm.source: (1, 3) for arm in study.arms}
    return make_plan(study, target_size=(1, 3), source_sizes=sizes, memory_bytes=2**34, devices=2, strategy="loop")


def test_a_frozen_encoder_costs_less_and_accumulated_batches_more():
    whole, frozen, head = (
        job.program for job in plan("scratch", "frozen_random_encoder", "head_only").of_kind("train")
    )
    forward_and_back = [cost.step_work(program).flops for program in (whole, frozen, head)]
    assert forward_and_back == sorted(forward_and_back, reverse=True)
    assert forward_and_back[2] > forward_and_back[0] / 3.5  # the forward pass alone
    (twice,) = (job.program for job in plan("scratch", accumulate=2).of_kind("train"))
    assert cost.step_work(twice).flops == 2 * forward_and_back[0]


def test_memory_follows_the_strategy_and_the_runs():
    made = plan("scratch")
    (job,), network = made.jobs, made.networks["scratch"]
    more = dataclasses.replace(job, runs=job.runs * 4)
    for strategy, copies, running in (("loop", 3, 2), ("vmap", 2, 8)):
        expected = copies * 8 * network.state_bytes + running * (network.activation_bytes + network.state_bytes)
        assert cost.job_bytes(more, network, devices=2, strategy=strategy) == expected
    assert plan("scratch", keep_best=True).networks["scratch"].state_bytes == pytest.approx(
        network.state_bytes + 4 * network.parameters
    )


def test_a_frozen_encoder_keeps_less_for_the_backward_pass():
    networks = plan("scratch", "frozen_random_encoder", "head_only").networks
    kept = [networks[arm].activation_bytes for arm in ("scratch", "frozen_random_encoder", "head_only")]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < 0.6 * kept[0]
    two, four, six = (plan("scratch", batch=n).networks["scratch"].activation_bytes for n in (2, 4, 6))
    assert four - two == six - four > 0.9 * two, (
        "what is kept once, such as weights, is small beside what each case adds"
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("arm", ["scratch", "frozen_random_encoder"])
def test_memory_is_that_of_the_compiled_program(strategy: str, arm: str, tmp_path: Path):
    made = quickstart.get_config()
    made.arms = default.pick_arms(arm)
    made.runtime.seed_map, made.runtime.devices = strategy, "1"
    ready = run_stages(made, tmp_path / "study", stages=[], progress=silent)
    (job,) = ready.plan.of_kind("train")
    fit = make_fit(ready.study, ready.workdir, ready.plan, ready.tasks, job, device_bytes=2**34)
    _, runs = next(fit.feed(0))
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(job.runs), *leaf.shape), leaf.dtype), fit.like)
    bounds = np.int32(0), np.int32(10)
    used = fit.chunk.lower(state, runs, fit.cohort, fit.shared(), *bounds).compile().memory_analysis()
    images = sum(leaf.nbytes for leaf in jax.tree.leaves((fit.cohort, runs)))
    measured = used.temp_size_in_bytes + used.argument_size_in_bytes - images
    network = ready.plan.networks[arm]
    predicted = cost.job_bytes(job, network, devices=1, strategy=strategy)
    assert predicted == pytest.approx(measured, rel=0.2)


def test_the_plan_as_text_has_programs_memory_and_time(tmp_path):
    made = tiny_config()
    made.arms = default.pick_arms("scratch", "transfer", "transfer_encoder", "frozen_random_encoder", "prior")
    text = dry_run.describe(run_stages(made, tmp_path / "study", stages=[], progress=silent))
    assert "3 training program(s) to compile, 3 job(s); about" in text
    assert "GFLOP/s" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["transfer"][1:3] == ["pretrained", "none"]
    assert lines["prior"][-1] == "2"
    assert lines["train/train_0/chunk_0"][1:4] == ["6", "8", "48"]
    assert lines["train/train_0/chunk_0"][5] == "KiB"
    assert not (tmp_path / "study" / "config.json").exists()


@pytest.mark.parametrize(("devices", "used"), [("auto", 4), ("3", 3)])
def test_memory_is_that_of_the_devices_in_use(
    devices: str, used: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four accelerators of 10 GB each, of which the study uses some."""
    study = settings.parse(changed(runtime__devices=devices))
    tasks = readiness.prepare(study, tmp_path, silent("")).tasks
    accelerator = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 10 * 10**9})
    monkeypatch.setattr(readiness, "jax", types.SimpleNamespace(local_devices=lambda: [accelerator] * 4))
    asked: dict[str, object] = {}
    monkeypatch.setattr(readiness, "make_plan", lambda *args, **kwargs: asked.update(kwargs))
    readiness.plan_jobs(study, tasks, None)
    assert (asked["devices"], asked["memory_bytes"]) == (used, used * 10 * 10**9)
    assert readiness.device_bytes(study) == 10 * 10**9
    # On CPU all devices share the machine's memory: fewer of them have more each.
    accelerator.platform = "cpu"
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (readiness.memory_bytes(used), readiness.device_bytes(study)) == (machine, machine // used)


def test_a_trial_s_speed_gives_the_time_of_its_own_products():
    rate = {8: 2e10, 64: 9e10}  # operations a second, by columns
    seconds = {columns: 1 / speed for columns, speed in rate.items()}
    speed = cost.speed_of(seconds[8], seconds[64], written=1e9)
    for columns, each in seconds.items():
        assert 1 / speed.flops + 1 / (columns * speed.narrow) == pytest.approx(each)
    # A device on which columns cost nothing extra, and a trial that noise has turned around.
    for few in (seconds[64], seconds[64] / 2):
        assert cost.speed_of(few, seconds[64], written=1e9).flops == pytest.approx(rate[64], rel=0.01)


def test_on_a_cpu_the_speed_is_what_two_layers_reach(monkeypatch):
    # A clock by which every program takes a second: the two layers then take one on every device.
    monkeypatch.setattr(cost, "_fastest", lambda function, operands, devices: 1.0)
    devices = tuple(jax.local_devices()[:1])
    layers = (jnp.zeros((1, 32, 32, 32, 16)), jnp.zeros((3, 3, 3, 16, 16)))
    work = cost.count_work(jax.make_jaxpr(cost._two_layers)(*layers).jaxpr)
    assert cost.measure_speed(devices).seconds(work) == pytest.approx(cost.WHOLE)
    assert cost.measure_speed(devices * 2).seconds(work) == pytest.approx(cost.WHOLE / 2)
