"""One run's training: what moves, chunks, seeds beside each other, both strategies, divergence."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import losses, optim, seeds, train, trees
from jaxseg.models import make_model
from jaxseg.models.unet import UNet
from jaxseg.streams import fold_in_name, stream_key
from jaxseg.types import Batch, Best, TrainState
from tests import training_parts

TRAINING = training_parts.Training()
RUNS = training_parts.run_inputs(8)
LOOP, LOOP_4, VMAP_4 = (
    training_parts.plan_of("loop"),
    training_parts.plan_of("loop", 4),
    training_parts.plan_of("vmap", 4),
)


@functools.cache
def states():
    """Starts of eight runs."""
    return TRAINING.states(range(8))


# --------------------------------------------------------------------------------------------------- the first state


def test_the_start_is_model_then_weights_then_optimizer():
    model = make_model(dataclasses.replace(training_parts.MODEL, widths=(2,)), classes=2)
    image = jnp.zeros((1, 8, 8, 1))
    # Its state is the parameters it was made for, so it shows whether these were the loaded ones.
    tx = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, state))

    def load(params, key):
        del key
        return jax.tree.map(lambda leaf: 2 * leaf, params)

    @jax.jit
    def starts(seed):
        keys = stream_key(seed, "init"), stream_key(seed, "order")
        return train.init_state(*keys, model, tx, image), train.init_state(*keys, model, tx, image, load)

    plain, loaded = starts(np.uint32(3))
    for one, other in zip(jax.tree.leaves(plain.params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(2 * one, other)
    assert training_parts.bits(loaded.opt_state) == training_parts.bits(loaded.params)
    expected = jax.jit(model.init)(stream_key(3, "init"), image)["params"]
    assert training_parts.bits(plain.params) == training_parts.bits(expected)
    assert (int(loaded.step), bool(loaded.alive)) == (0, True)
    assert loaded.key == stream_key(3, "order")
    other, _ = starts(np.uint32(4))
    assert not np.array_equal(other.params["head"]["kernel"], plain.params["head"]["kernel"])


# -------------------------------------------------------------------------------------------------------- freezing


def fixed_sample(key, cohort, run):
    """The first patch of two cases: nothing is drawn, so that little is compiled."""
    del key, run
    images = cohort.image[:128].reshape(2, 8, 8, 1)
    return Batch(image=images, label=cohort.label[:128].reshape(2, 8, 8).astype(jnp.int32))


FROZEN = {
    "none": r"$^",
    "encoder": r"^encoder/",
    "decoder": r"^decoder/",
    "all_but_head": r"^(encoder|decoder)/",
    "regex:conv_0/(kernel|scale)": r"/conv_0/kernel$|/conv_0/scale$",
}


def step_of(freeze, model=training_parts.MODEL, sample=fixed_sample, *, accumulate=1, **optimizer):
    """A step of the network with XLA's convolution (which compiles faster), and its optimizer."""
    labels = training_parts.labels_of(model, freeze)
    tx = optim.make_optimizer(dataclasses.replace(training_parts.OPTIM, **optimizer), labels, training_parts.STEPS)
    loss = losses.make_loss(training_parts.LOSS)
    network = UNet(model, training_parts.CLASSES, "native")
    return train.make_train_step(network, tx, loss, sample, labels, accumulate=accumulate), tx


@pytest.mark.parametrize("freeze", FROZEN)
def test_frozen_leaves_keep_their_bits_and_all_others_move(freeze):
    # Weight decay, momentum and a clipped norm are what could leak into frozen leaves.
    step, tx = step_of(freeze, name="adamw", weight_decay=0.1, clip_norm=1.0)
    before = training_parts.make_state(training_parts.MODEL, tx, 0)
    compiled, after, run = jax.jit(step), before, trees.take(RUNS, 0)
    for _ in range(3):
        after, metrics = compiled(after, run, TRAINING.cohort, {})
    assert bool(metrics["alive"])
    assert int(after.step) == 3
    old, new = training_parts.bits(before.params), training_parts.bits(after.params)
    moved = {path for path in old if old[path] != new[path]}
    assert moved == {path for path in old if not re.search(FROZEN[freeze], path)}
    assert jax.tree.structure(after) == jax.tree.structure(before)


@pytest.mark.parametrize(("freeze", "still"), [("encoder", "encoder/"), ("regex:conv_1/running", "conv_1/running")])
def test_running_statistics_follow_the_batches_unless_they_are_frozen(freeze, still):
    model = dataclasses.replace(training_parts.MODEL, norm="batch", dropout=0.2)
    step, tx = step_of(freeze, model)
    before = training_parts.make_state(model, tx, 0)
    after, metrics = jax.jit(step)(before, trees.take(RUNS, 0), TRAINING.cohort, {})
    assert bool(metrics["alive"])
    old, new = training_parts.bits(before.params), training_parts.bits(after.params)
    statistics = {path for path in old if trees.is_statistic(path)}
    assert {path for path in statistics if old[path] == new[path]} == {path for path in statistics if still in path}
    assert all(old[path] == new[path] for path in old if still in path)
    assert not any(trees.is_statistic(path) for path in trees.flatten(after.opt_state))
    # A run that has diverged keeps its statistics too.
    dead = dataclasses.replace(before, alive=jnp.asarray(False))
    kept, _ = jax.jit(step)(dead, trees.take(RUNS, 0), TRAINING.cohort, {})
    assert training_parts.bits(kept.params) == old


def test_dropout_follows_the_step_and_the_order_stream():
    model = dataclasses.replace(training_parts.MODEL, dropout=0.5)
    step, tx = step_of("none", model)
    state, run = training_parts.make_state(model, tx, 0), trees.take(RUNS, 0)
    compiled = jax.jit(step)
    later = dataclasses.replace(state, step=jnp.int32(1))
    other = dataclasses.replace(state, key=stream_key(np.uint32(1), "order"))
    found = [float(compiled(one, run, TRAINING.cohort, {})[1]["loss"]) for one in (state, state, later, other)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_shared_frozen_parameters_train_the_rest_as_their_own_would():
    step, tx = step_of("encoder")
    state, run = training_parts.make_state(training_parts.MODEL, tx, 0), trees.take(RUNS, 0)
    own, metrics = jax.jit(step)(state, run, TRAINING.cohort, {})
    rest = {name: state.params[name] for name in ("decoder", "head")}
    labels = trees.label_params(rest, ((".*", "train"),))
    tx = optim.make_optimizer(training_parts.OPTIM, labels, training_parts.STEPS)
    loss = losses.make_loss(training_parts.LOSS)
    shared_step = train.make_train_step(
        UNet(training_parts.MODEL, training_parts.CLASSES, "native"), tx, loss, fixed_sample, labels
    )
    begin = dataclasses.replace(state, params=rest, opt_state=tx.init(rest))
    shared, shared_metrics = jax.jit(shared_step)(begin, run, TRAINING.cohort, {"encoder": state.params["encoder"]})
    assert set(shared.params) == {"decoder", "head"}
    assert float(shared_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    for name in ("decoder", "head"):
        for one, other in zip(jax.tree.leaves(shared.params[name]), jax.tree.leaves(own.params[name]), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("strategy", "devices"), [("loop", 2), ("vmap", 1)])
def test_an_encoder_computed_once_for_all_runs_gives_what_each_would_compute(strategy, devices):
    """Four runs, the first of which has diverged; dropout and batch norm's statistics go on in the decoder alone."""
    model = dataclasses.replace(training_parts.MODEL, norm="batch", dropout=0.3)
    encoder = training_parts.random_params(model, seed=9)["encoder"]
    rest = [
        {name: training_parts.random_params(model, seed=seed)[name] for name in ("decoder", "head")}
        for seed in range(4)
    ]
    labels = optim.freeze_labels(rest[0], "none")
    tx = optim.make_optimizer(training_parts.OPTIM, labels, training_parts.STEPS)
    keys = jax.random.wrap_key_data(jnp.stack([jax.random.key_data(stream_key(np.uint32(3), "order"))] * 4))
    params, alive = trees.stack(rest), jnp.asarray([False, True, True, True])
    state = TrainState(jnp.zeros(4, jnp.int32), params, jax.vmap(tx.init)(params), keys, alive)
    network, loss = UNet(model, training_parts.CLASSES, "native"), losses.make_loss(training_parts.LOSS)
    parts = network, tx, loss, TRAINING.sample, labels
    plan = training_parts.plan_of(strategy, devices)
    ordinary = seeds.map_seeds(train.make_train_chunk(train.make_train_step(*parts)), plan=plan, shared=(2, 3, 4, 5))
    once = seeds.map_steps(train.make_encoded_loop(*parts), plan=plan)
    runs = dataclasses.replace(training_parts.run_inputs(4), rate=jnp.asarray([1e-2, 1e-2, 2e-2, 1e-3]))
    args = seeds.put(state, plan), seeds.put(runs, plan), TRAINING.cohort, {"encoder": encoder}
    expected, got = (seeds.fetch(mapped(*args, np.int32(0), np.int32(3)), 4) for mapped in (ordinary, once))
    assert got[1]["steps_alive"].tolist() == [0, 3, 3, 3]
    assert np.ptp(got[1]["loss"]) > 0.01
    moved, start = trees.flatten(got[0].params), trees.flatten(state.params)
    assert all(np.abs(moved[path] - start[path])[1:].max() > 1e-4 for path in moved if trees.is_statistic(path))
    for path, leaf in trees.flatten(expected).items():
        np.testing.assert_allclose(trees.flatten(got)[path], leaf, rtol=2e-5, atol=2e-6, err_msg=path)


def test_two_halves_of_a_batch_make_the_step_of_the_whole():
    (whole, tx), (halves, _) = step_of("none"), step_of("none", accumulate=2)
    state, run = training_parts.make_state(training_parts.MODEL, tx, 0), trees.take(RUNS, 0)
    for _ in range(2):
        (one, metrics), (two, part) = (jax.jit(step)(state, run, TRAINING.cohort, {}) for step in (whole, halves))
        assert float(part["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
        gradients = [{p: g for p, g in trees.flatten(s.opt_state).items() if "/mu/" in p} for s in (one, two)]
        for path, gradient in gradients[0].items():
            np.testing.assert_allclose(gradients[1][path], gradient, rtol=1e-4, atol=1e-7, err_msg=path)
        state = one


def test_the_best_validation_is_kept_run_by_run():
    one = TRAINING.states([0, 1])
    best = Best(one.params, jnp.full(2, -jnp.inf), jnp.zeros(2, jnp.int32))
    state = dataclasses.replace(one, best=best)
    observe = jax.jit(jax.vmap(train.make_observe(training_parts.OPTIM)))
    for step, dsc in enumerate([(0.5, 0.5), (0.4, 0.6), (np.nan, 0.6), (0.45, 0.1)], start=1):
        moved = jax.tree.map(lambda leaf: leaf + 1, state.params)
        state = observe(dataclasses.replace(state, params=moved, step=state.step + 1), np.array(dsc, np.float32))
        assert state.step.tolist() == [step] * 2
    assert state.best.step.tolist() == [1, 2]
    np.testing.assert_allclose(state.best.dsc, [0.5, 0.6])
    start = one.params["head"]["kernel"]
    np.testing.assert_allclose(state.best.params["head"]["kernel"][0], start[0] + 1, rtol=1e-6)
    np.testing.assert_allclose(state.best.params["head"]["kernel"][1], start[1] + 2, rtol=1e-6)


def test_a_3d_network_learns_one_batch():
    model = dataclasses.replace(training_parts.MODEL, ndim=3)

    def cubes(key, cohort, run):
        del key, run
        label = cohort.label[:512].reshape(1, 8, 8, 8).astype(jnp.int32)
        return Batch(image=cohort.image[:512].reshape(1, 8, 8, 8, 1), label=label)

    step, tx = step_of("none", model, cubes)
    chunk = jax.jit(train.make_train_chunk(step))
    state, cohort, run = (
        training_parts.make_state(model, tx, 0),
        training_parts.make_cohort(ndim=3),
        trees.take(RUNS, 0),
    )
    found = []
    for start in range(0, 60, 20):
        state, metrics = chunk(state, run, cohort, {}, np.int32(start), np.int32(start + 20))
        found.append(float(metrics["loss"]))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.8 * found[0]


# ------------------------------------------------------------------------------------- chunks, seeds and strategies


def test_a_chunk_of_six_steps_has_the_bits_of_one_two_and_three():
    whole, metrics = TRAINING.run(LOOP, states(), RUNS, 0, 6)
    parts, sums, start = states(), 0.0, 0
    chunk, (placed, runs, cohort, frozen, _, _) = TRAINING.lower(LOOP, parts, RUNS, 0, 1)
    for length in (1, 2, 3):
        placed, part = chunk(placed, runs, cohort, frozen, np.int32(start), np.int32(start + length))
        sums += length * np.asarray(part["loss"])
        start += length
    assert training_parts.bits(seeds.fetch(placed, 8)) == training_parts.bits(whole)
    assert whole.step.tolist() == [6] * 8
    assert metrics["steps_alive"].tolist() == [6] * 8
    np.testing.assert_allclose(sums / 6, metrics["loss"], rtol=1e-6)


def test_seed_5_has_the_same_bits_alone_and_among_eight():
    eight, metrics = TRAINING.run(LOOP, states(), RUNS, 0, 50)
    alone, own = TRAINING.run(LOOP, trees.take(states(), slice(5, 6)), trees.take(RUNS, slice(5, 6)), 0, 50)
    assert training_parts.bits(trees.take(alone, 0)) == training_parts.bits(trees.take(eight, 5))
    assert own["loss"][0] == metrics["loss"][5]
    # On four devices, two runs each, the same bits too.
    spread, _ = TRAINING.run(LOOP_4, states(), RUNS, 0, 50)
    assert training_parts.bits(spread) == training_parts.bits(eight)
    first, _ = TRAINING.run(LOOP, states(), RUNS, 0, 1)
    assert np.unique(metrics["loss"]).size == 8
    assert not np.array_equal(first.params["head"]["kernel"], eight.params["head"]["kernel"])


def test_both_strategies_draw_the_same_batches():
    def draw(state, cohort, run):
        return TRAINING.sample(fold_in_name(jax.random.fold_in(state.key, state.step), "sample"), cohort, run)

    args = states(), TRAINING.cohort, RUNS
    found = []
    for plan in (LOOP_4, VMAP_4):
        mapped = seeds.map_seeds(draw, plan=plan, shared=(1,))
        placed = seeds.put(args[0], plan), seeds.replicate(args[1], plan), seeds.put(args[2], plan)
        found.append(seeds.fetch(mapped(*placed), 8))
    assert training_parts.bits(found[0]) == training_parts.bits(found[1])
    assert len({image.tobytes() for image in found[0].image}) == 8  # no two runs have the same batch


def test_one_step_under_vmap_is_that_of_loop_up_to_rounding():
    (loop, loop_metrics), (vmap, vmap_metrics) = (TRAINING.run(plan, states(), RUNS, 0, 1) for plan in (LOOP_4, VMAP_4))
    np.testing.assert_allclose(loop_metrics["loss"], vmap_metrics["loss"], atol=1e-5, rtol=0)
    # Adam's first moment after one step is the gradient, times 1 - 0.9.
    gradients = [
        {path: 10 * leaf for path, leaf in trees.flatten(result.opt_state).items() if "/mu/" in path}
        for result in (loop, vmap)
    ]
    assert len(gradients[0]) == len(jax.tree.leaves(states().params))
    for path, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][path], gradient, atol=1e-5, rtol=0, err_msg=path)
        assert np.abs(gradient).max() > 1e-4


# ------------------------------------------------------------------------------------------------------ divergence

BAD_CASE = 3


@functools.cache
def spoilt():
    """The cohort with a case of NaN, and inputs of which run 2 alone may draw it."""
    cohort = TRAINING.cohort
    first = int(cohort.offsets[BAD_CASE])
    image = cohort.image.at[first:].set(jnp.nan)
    good = training_parts.run_inputs(8, cases=(0, 1, 2, 2))
    good = dataclasses.replace(good, num_cases=jnp.full(8, 3, jnp.int32))
    bad = dataclasses.replace(
        good, cases=good.cases.at[2].set(jnp.arange(4)), num_cases=good.num_cases.at[2].set(4)
    )  # draws the NaN case now and then
    return dataclasses.replace(cohort, image=image), good, bad


def run_on(cohort, plan, start_states, runs, start, stop):
    chunk, args = TRAINING.lower(plan, start_states, runs, start, stop)
    result = chunk(args[0], args[1], seeds.replicate(cohort, plan), *args[3:])
    return seeds.fetch(result, 8)


def first_bad_step(cohort, runs):
    """The first step whose batch, drawn on its own, has a NaN in run 2."""
    key, run = states().key[2], trees.take(runs, 2)
    sample = jax.jit(lambda step: TRAINING.sample(fold_in_name(jax.random.fold_in(key, step), "sample"), cohort, run))
    return next(step for step in range(40) if np.isnan(sample(np.int32(step)).image).any())


@pytest.mark.parametrize("plan", [LOOP_4, VMAP_4], ids=["loop", "vmap"])
def test_a_run_that_diverges_stops_and_leaves_the_others_as_they_were(plan):
    cohort, good, bad = spoilt()
    when = first_bad_step(cohort, bad)
    assert 0 < when < 12  # in the middle of the chunk
    healthy, healthy_metrics = run_on(cohort, plan, states(), good, 0, 14)
    result, metrics = run_on(cohort, plan, states(), bad, 0, 14)
    others = np.array([0, 1, 3, 4, 5, 6, 7])
    assert training_parts.bits(trees.take(result, others)) == training_parts.bits(trees.take(healthy, others))
    np.testing.assert_array_equal(metrics["loss"][others], healthy_metrics["loss"][others])
    assert result.alive.tolist() == [run != 2 for run in range(8)]
    assert healthy.alive.all()
    assert metrics["steps_alive"].tolist() == [when if run == 2 else 14 for run in range(8)]
    assert np.isnan(metrics["loss"]).tolist() == [run == 2 for run in range(8)]
    # Its weights and moments are those before the bad step, though its steps are counted on.
    before, _ = run_on(cohort, plan, states(), bad, 0, when)
    assert before.alive.all()
    for part in ("params", "opt_state"):
        stopped = training_parts.bits(trees.take(getattr(result, part), 2))
        assert stopped == training_parts.bits(trees.take(getattr(before, part), 2))
        assert stopped != training_parts.bits(trees.take(getattr(healthy, part), 2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trees.take(result.params, 2)))
    assert result.step.tolist() == [14] * 8


@pytest.mark.parametrize("plan", [LOOP_4, VMAP_4], ids=["loop", "vmap"])
def test_a_rate_of_nan_ends_its_run_alone(plan):
    spoilt_rate = dataclasses.replace(RUNS, rate=RUNS.rate.at[1].set(jnp.nan))
    healthy, _ = TRAINING.run(plan, states(), RUNS, 0, 4)
    result, metrics = TRAINING.run(plan, states(), spoilt_rate, 0, 4)
    others = np.array([0, 2, 3, 4, 5, 6, 7])
    assert training_parts.bits(trees.take(result, others)) == training_parts.bits(trees.take(healthy, others))
    # The first step's loss is finite; what the rate makes of the weights shows in the second's.
    assert metrics["steps_alive"].tolist() == [4, 1, 4, 4, 4, 4, 4, 4]
    assert result.alive.tolist() == [run != 1 for run in range(8)]


def test_a_gradient_without_bound_ends_a_run_whose_loss_is_finite():
    labels = {"w": "train"}
    tx = optim.make_optimizer(dataclasses.replace(training_parts.OPTIM, name="sgd"), labels, training_parts.STEPS)

    class Root:
        def clone(self, frozen):
            assert not frozen
            return self

        def apply(self, variables, image, train, rngs, mutable, method):
            assert train
            assert set(rngs) == {"dropout"}
            assert mutable == ["statistics"]
            assert method == "__call__"
            return jnp.sqrt(variables["params"]["w"]) * image, {}

    step = train.make_train_step(Root(), tx, lambda logits, label: logits.sum() + label.sum(), fixed_sample, labels)
    params = {"w": jnp.zeros(())}  # the root's slope is infinite here, its value 0
    state = dataclasses.replace(trees.take(states(), 0), params=params, opt_state=tx.init(params))
    after, metrics = jax.jit(step)(state, trees.take(RUNS, 0), TRAINING.cohort, {})
    assert np.isfinite(metrics["loss"])
    assert not metrics["alive"]
    assert not after.alive
    assert float(after.params["w"]) == 0
