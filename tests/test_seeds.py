"""The run axis: plans, padding, both strategies, any number of devices, and programs without communication."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxseg import seeds, trees
from jaxseg.models import conv
from jaxseg.types import StepLoop, UserError
from tests import training_parts
from tests.made_programs import made_programs

COLLECTIVES = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast")
GROUPED = re.compile(r"feature_group_count ?= ?(?!1\b)\d+")


# ------------------------------------------------------------------------------------------------------------- plans


def test_no_more_devices_than_runs():
    assert len(jax.local_devices()) == 4  # conftest
    assert [len(seeds.make_plan(runs).devices) for runs in (1, 3, 4, 9)] == [1, 3, 4, 4]
    assert len(seeds.make_plan(9, devices=2).devices) == 2
    assert seeds.make_plan(9).strategy == "loop"  # on CPU
    assert seeds.make_plan(9, strategy="vmap").strategy == "vmap"


@pytest.mark.parametrize("devices", [0, -1, 5])
def test_devices_that_are_not_there(devices):
    with pytest.raises(
        UserError, match=rf"runtime.devices = {devices}, .* offers 4 cpu device.* from 1 to 4, or 'auto"
    ):
        seeds.make_plan(2, devices=devices)


def test_an_unknown_strategy():
    with pytest.raises(UserError, match=r"runtime.seed_map = 'pmap'; allowed: 'auto', 'vmap', 'loop'"):
        seeds.make_plan(2, strategy="pmap")


@pytest.mark.parametrize(("runs", "devices", "padded"), [(1, 1, 1), (5, 1, 5), (5, 4, 8), (8, 4, 8), (2, 3, 3)])
def test_padding_fills_the_devices_with_the_last_run(runs, devices, padded):
    plan = training_parts.plan_of(devices=devices)
    assert plan.padded(runs) == padded
    tree = {"x": np.arange(runs, dtype=np.float32)[:, None] * np.ones(3), "key": seed_keys(runs)}
    placed = seeds.put(tree, plan)
    assert trees.length(placed) == padded
    assert placed["x"].sharding.spec == PartitionSpec("seed")
    assert {shard.data.shape[0] for shard in placed["x"].addressable_shards} == {padded // devices}
    index = [*range(runs), *[runs - 1] * (padded - runs)]
    np.testing.assert_array_equal(placed["x"], tree["x"][np.array(index)])
    fetched = seeds.fetch(placed, runs)
    assert isinstance(fetched["x"], np.ndarray)
    np.testing.assert_array_equal(fetched["x"], tree["x"])
    np.testing.assert_array_equal(fetched["key"], jax.random.key_data(tree["key"]))


def seed_keys(count):
    return jax.vmap(jax.random.key)(np.arange(count, dtype=np.uint32))


def test_nothing_to_place():
    assert seeds.put({}, training_parts.plan_of(devices=4)) == {}


def test_no_program_is_made_for_a_shape_that_is_stacked_or_placed():
    plan = training_parts.plan_of(devices=4)
    runs = jax.device_put([{"w": np.full((3, 17 + size), size, np.float32)} for size in (5, 5, 5, 5, 5)])
    with made_programs() as names:
        placed = seeds.put(trees.stack(runs), plan)  # five runs on four devices: the last is repeated
        again = seeds.put(jax.device_put(np.ones((8, 23), np.float32)), plan)
    assert names == []
    assert (placed["w"].shape, again.shape) == ((8, 3, 22), (8, 23))
    assert len(placed["w"].addressable_shards) == 4


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_program_that_takes_over_what_was_placed_leaves_the_source_alone(devices):
    """Arrays on processors may share their memory with those that they were placed from."""
    source = jax.device_put(np.ones((4, 1024, 64), np.float32))
    placed = seeds.put(source, training_parts.plan_of(devices=devices))
    jax.jit(lambda x: x * 2 + 1, donate_argnums=0)(placed).block_until_ready()
    assert placed.is_deleted()
    np.testing.assert_array_equal(source, 1)


# -------------------------------------------------------------------------------------------------------- map_seeds


def one_run(key, weight, shared, count):
    """A function of one run with keys, arrays, a shared argument and a traced number."""
    noise = jax.random.normal(jax.random.fold_in(key, count), weight.shape)
    return {"sum": weight * 2 + shared["bias"] * count, "noise": noise, "count": count + jnp.int32(weight[0])}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("strategy", seeds.STRATEGIES)
def test_mapped_equals_a_python_loop(strategy, devices):
    plan = training_parts.plan_of(strategy, devices)
    # Small whole numbers: the sums are exact, so that every way must give the same bits.
    keys, weights = seed_keys(6), np.arange(18, dtype=np.float32).reshape(6, 3)
    shared, count = {"bias": np.float32(3) * np.ones(3, np.float32)}, np.int32(4)
    mapped = seeds.map_seeds(one_run, plan=plan, shared=(2, 3))
    placed = seeds.put(keys, plan), seeds.put(weights, plan), seeds.replicate(shared, plan), count
    got = seeds.fetch(mapped(*placed), 6)
    single = jax.jit(one_run)
    rows = [single(keys[i], weights[i], shared, count) for i in range(6)]
    assert training_parts.bits(got) == training_parts.bits(trees.stack(rows))


def descend(weights, key):
    """A few gradient steps of a small network on numbers drawn from a key."""
    x = jax.random.normal(key, (24, 9))

    def loss(weights):
        hidden = jax.nn.softmax(jnp.tanh(x @ weights))
        return jnp.square(hidden - x).mean() + jnp.log(jnp.square(hidden).sum())

    return jax.lax.fori_loop(0, 20, lambda _, w: w - 0.3 * jax.grad(loss)(w), weights)


def test_under_loop_a_run_has_the_same_bits_whatever_runs_beside_it():
    weights = np.random.default_rng(0).normal(size=(8, 9, 9)).astype(np.float32)

    def descended(runs, devices):
        plan = training_parts.plan_of("loop", devices)
        mapped = seeds.map_seeds(descend, plan=plan)
        return seeds.fetch(mapped(seeds.put(weights[runs], plan), seeds.put(seed_keys(8)[runs], plan)), len(runs))

    eight = descended(np.arange(8), 1)
    assert np.abs(eight - weights).max() > 0.1
    assert descended(np.array([5]), 1).tobytes() == eight[5].tobytes()
    assert descended(np.array([5, 2, 7]), 1).tobytes() == eight[[5, 2, 7]].tobytes()
    # Over several devices XLA arranges this function another way (a division by a constant becomes a product), so
    # that its last bit differs; a training's does not: tests/test_train.py.
    spread = descended(np.arange(8), 4)
    assert descended(np.array([5, 2, 7, 1]), 4).tobytes() == spread[[5, 2, 7, 1]].tobytes()
    np.testing.assert_allclose(spread, eight, atol=2e-6)


@pytest.mark.parametrize("strategy", seeds.STRATEGIES)
def test_arguments_keep_their_places_whichever_are_shared(strategy):
    plan = training_parts.plan_of(strategy)
    mapped = seeds.map_seeds(lambda a, b, c: {"a": a, "b": b, "c": c}, plan=plan, shared=(0, 2))
    got = mapped(jnp.float32(1), jnp.arange(3.0), jnp.float32(5))
    np.testing.assert_array_equal(got["a"], [1, 1, 1])
    np.testing.assert_array_equal(got["b"], [0, 1, 2])
    np.testing.assert_array_equal(got["c"], [5, 5, 5])


def test_donated_arguments_are_given_away():
    plan = training_parts.plan_of(devices=2)
    mapped = seeds.map_seeds(lambda x: x + 1, plan=plan, donate=(0,))
    given = seeds.put(np.arange(8, dtype=np.float32).reshape(4, 2), plan)
    np.testing.assert_array_equal(mapped(given), np.arange(1, 9, dtype=np.float32).reshape(4, 2))
    assert given.is_deleted()


@pytest.mark.parametrize("strategy", seeds.STRATEGIES)
def test_what_steps_begin_with_is_that_of_the_first_run_of_each_device(strategy):
    loop = StepLoop(
        begin=lambda state: (state, jnp.int32(0)),
        common=lambda index, carry, run, cohort, frozen: 100 * index + 10 * run + cohort + frozen,
        own=lambda carry, run, found, cohort, frozen: (carry[0] + run * found, carry[1] + frozen),
        finish=lambda carry, steps: {"state": carry[0], "frozen": carry[1], "steps": steps},
    )
    plan = training_parts.plan_of(strategy, 2)
    mapped = seeds.map_steps(loop, plan=plan, donate=(0,))
    state, run = (seeds.put(np.array(row, np.int32), plan) for row in ([1, 2, 3, 4], [5, 6, 7, 8]))
    got = seeds.fetch(mapped(state, run, *map(jnp.int32, (3, 2)), np.int32(4), np.int32(6)), 4)
    # Two steps of 100 * index + 10 * 5 + 3 + 2 on the first device, 10 * 7 on the second.
    assert got["state"].tolist() == [1 + 5 * 210, 2 + 6 * 210, 3 + 7 * 250, 4 + 8 * 250]
    assert got["frozen"].tolist() == [4] * 4
    assert got["steps"].tolist() == [2] * 4
    assert state.is_deleted()


# ----------------------------------------------------------------------------------------------- the training chunk


@pytest.mark.parametrize(("strategy", "norm"), [("loop", "instance"), ("vmap", "batch")])
def test_the_compiled_training_has_no_communication_and_no_convolution_of_runs(strategy, norm):
    model = dataclasses.replace(training_parts.MODEL, norm=norm)
    training, plan = training_parts.Training(model), training_parts.plan_of(strategy, 4)
    chunk, args = training.lower(plan, training.states(range(8)), training_parts.run_inputs(8), 0, 2)
    lowered = chunk.lower(*args)
    compiled = lowered.compile().as_text()
    assert " while(" in compiled
    assert not COLLECTIVES.search(compiled)
    assert not GROUPED.search(lowered.as_text())
    # On CPU there is no convolution of any kind: all are matrix products.
    assert "stablehlo.convolution" not in lowered.as_text()
    assert " convolution(" not in compiled


def test_the_search_finds_communication_where_there_is_some():
    mesh = training_parts.plan_of(devices=4).mesh
    summed = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, "seed"), mesh=mesh, in_specs=PartitionSpec("seed"), out_specs=PartitionSpec()
        )
    )
    assert COLLECTIVES.search(summed.lower(jnp.ones(4)).compile().as_text())


def test_the_search_finds_the_grouped_convolution_of_weights_mapped_over_runs():
    def native(x, kernel):
        return conv.conv(x, kernel, form="native")

    shapes = jnp.ones((3, 1, 8, 8, 2)), jnp.ones((3, 3, 3, 2, 4))
    mapped = seeds.map_seeds(native, plan=training_parts.plan_of("vmap")).lower(*shapes)
    assert GROUPED.search(mapped.as_text())
