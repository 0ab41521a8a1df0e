"""Optimizers: what frozen leaves hold, decay, clipping, schedules, rates, and optax's own as oracles."""

import dataclasses
import typing

import jax
import numpy as np
import optax
import pytest

from jaxseg import optim, trees
from jaxseg.settings.schema import Optimizer, Schedule
from jaxseg.types import UserError
from tests import training_parts
from tests.training_parts import OPTIM, STEPS, labels_of, random_params


def settings(**changes):
    return dataclasses.replace(OPTIM, **changes)


def state_elements(name, freeze):
    """Elements of the moments: state leaves that are not counters."""
    tx = optim.make_optimizer(settings(name=name), labels_of(freeze=freeze), STEPS)
    return sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(tx.init, training_parts.abstract_params())) if leaf.ndim
    )


def size_of(*prefixes):
    leaves = trees.flatten(training_parts.abstract_params())
    return sum(leaf.size for path, leaf in leaves.items() if path.startswith(prefixes))


@pytest.mark.parametrize(("name", "moments"), [("adam", 2), ("adamw", 2), ("sgd", 1)])
def test_frozen_leaves_hold_no_state(name, moments):
    everything = trees.count(training_parts.abstract_params())
    assert state_elements(name, "none") == moments * everything
    for freeze, trained in {
        "encoder": size_of("decoder/", "head/"),
        "decoder": size_of("encoder/", "head/"),
        "all_but_head": size_of("head/"),
        "regex:level_0/conv_0": everything - size_of("encoder/level_0/conv_0", "decoder/level_0/conv_0"),
    }.items():
        assert 0 < trained < everything
        assert state_elements(name, freeze) == moments * trained


def test_an_unknown_freeze_and_a_dead_pattern():
    with pytest.raises(UserError, match=r"freeze = 'encodr'; allowed: 'none', .*'regex:PATH_REGEX'"):
        optim.freeze_rules("encodr")
    with pytest.raises(UserError, match=r"'levl_0' decides no parameter"):
        labels_of(freeze="regex:levl_0")
    with pytest.raises(UserError, match=r"'\.\*' decides no parameter"):
        labels_of(freeze="regex:.")  # nothing would be trained


def updates_of(tx, params, grads, **more):
    """Updates of successive steps with these gradients, without changing the parameters."""

    @jax.jit
    def update(grads, state):
        return tx.update(grads, state, params, **more)

    state, result = tx.init(params), []
    for one in grads:
        updates, state = update(one, state)
        result.append(trees.flatten(updates))
    return result


ORACLES = {
    "adam": lambda rate, s: optax.adam(rate),
    "adamw": lambda rate, s: optax.adamw(rate, weight_decay=s.weight_decay, mask=kernels),
    "sgd": lambda rate, s: optax.chain(
        optax.add_decayed_weights(s.weight_decay, mask=kernels), optax.sgd(rate, s.momentum, nesterov=True)
    ),
}


def kernels(params):
    return trees.unflatten({path: path.split("/")[-1] == "kernel" for path in trees.flatten(params)})


@pytest.mark.parametrize("name", typing.get_args(Optimizer))
def test_against_optax_on_a_tree_with_nothing_frozen(name):
    chosen = settings(name=name, lr=0.3, weight_decay=0.0 if name == "adam" else 0.1, schedule="cosine", warmup_steps=3)
    params = random_params()
    grads = [random_params(seed=step + 1) for step in range(6)]

    def rate(step):
        warm = 0.3 * (step + 1) / 3
        return jax.numpy.where(step < 3, warm, 0.15 * (1 + jax.numpy.cos(np.pi * (step - 3) / (STEPS - 3))))

    ours = updates_of(optim.make_optimizer(chosen, labels_of(), STEPS), params, grads)
    theirs = updates_of(ORACLES[name](rate, chosen), params, grads)
    for step in range(6):
        for path, update in theirs[step].items():
            np.testing.assert_allclose(ours[step][path], update, rtol=1e-5, atol=1e-7, err_msg=f"{path} {step}")


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_trained_kernels_decay(name):
    params = random_params()
    tx = optim.make_optimizer(settings(name=name, lr=1.0, weight_decay=0.1, momentum=0.0),
                              labels_of(freeze="encoder"), STEPS)  # fmt: skip
    zeros = jax.tree.map(np.zeros_like, params)
    for path, update in updates_of(tx, params, [zeros])[0].items():
        decays = path.endswith("kernel") and not path.startswith("encoder/")
        expected = -0.1 * trees.flatten(params)[path] if decays else 0.0
        np.testing.assert_allclose(update, expected + np.zeros_like(update), rtol=1e-6, err_msg=path)


def test_clipping_uses_the_norm_of_trained_leaves():
    params = random_params()
    tx = optim.make_optimizer(
        settings(name="sgd", lr=1.0, momentum=0.0, clip_norm=0.5),
        labels_of(freeze="encoder"),
        STEPS,
    )
    grads = trees.flatten(random_params(seed=1))
    huge = {path: 1e6 * leaf if path.startswith("encoder/") else leaf for path, leaf in grads.items()}
    quiet = {path: 0 * leaf if path.startswith("encoder/") else leaf for path, leaf in grads.items()}
    trained = [leaf for path, leaf in grads.items() if not path.startswith("encoder/")]
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in trained))
    assert norm > 0.5
    for given in (huge, quiet):
        updates = updates_of(tx, params, [trees.unflatten(given)])[0]
        for path, update in updates.items():
            expected = 0 * update if path.startswith("encoder/") else -0.5 / norm * grads[path]
            np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=path)
    small_grads = jax.tree.map(lambda leaf: leaf * np.float32(0.1 / norm), trees.unflatten(quiet))
    unclipped = updates_of(tx, params, [small_grads])[0]
    np.testing.assert_allclose(unclipped["head/kernel"], -0.1 / norm * grads["head/kernel"], rtol=1e-5)


def test_rate_scales_updates_and_replaces_the_default():
    params, grads = random_params(), [random_params(seed=1)]
    tx = optim.make_optimizer(settings(lr=0.01), labels_of(), STEPS)
    default = updates_of(tx, params, grads)[0]
    for rate in (0.01, 0.04):
        scaled = updates_of(tx, params, grads, rate=np.float32(rate))[0]
        for path, update in scaled.items():
            np.testing.assert_allclose(update, rate / 0.01 * default[path], rtol=1e-5)
    assert all(np.all(update == 0) for update in updates_of(tx, params, grads, rate=np.float32(0))[0].values())


def test_a_plateau_lowers_the_rate_where_validation_falls():
    chosen = settings(schedule="plateau", lr=0.1)
    tx = optim.make_optimizer(chosen, labels_of(freeze="encoder"), STEPS)
    params, grads = random_params(), random_params(seed=1)
    state = tx.init(params)
    update, observe = jax.jit(tx.update), jax.jit(lambda state, dsc: optim.observe(state, dsc, chosen))
    constant = optim.make_optimizer(settings(lr=0.1), labels_of(freeze="encoder"), STEPS)
    plain, scales = constant.init(params), []
    # Falls by 1 % (twice in a row), then by 0.4 %, then rises; NaN says nothing.
    for dsc in (0.5, 0.495, 0.49, 0.4881, 0.9, np.nan):
        state = observe(state, np.float32(dsc))
        updates, state = update(grads, state, params)
        expected, plain = update_plain(constant, grads, plain, params)
        scales.append(float(np.median(updates["head"]["kernel"] / expected["head"]["kernel"])))
        assert not np.any(updates["encoder"]["level_0"]["conv_0"]["kernel"])
    np.testing.assert_allclose(scales, [1, 0.9, 0.81, 0.81, 0.81, 0.81], rtol=1e-5)


def update_plain(tx, grads, state, params):
    return jax.jit(tx.update)(grads, state, params)


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("name", typing.get_args(Schedule))
def test_schedules_by_formula(name, warmup):
    total = 20
    schedule = optim.make_schedule(settings(schedule=name, warmup_steps=warmup), total)
    got = np.array([float(schedule(step)) for step in range(total + 1)])
    steps = np.arange(total + 1)
    done = np.clip((steps - warmup) / (total - warmup), 0, 1)
    flat = 1 + 0 * done
    cosine = (1 + np.cos(np.pi * done)) / 2
    after = {"constant": flat, "plateau": flat, "cosine": cosine, "polynomial": (1 - done) ** 0.9}[name]
    expected = np.where(steps < warmup, (steps + 1) / max(warmup, 1), after)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "adm"}, r"optim.name = 'adm'; allowed: 'adam', 'adamw', 'sgd'"),
        ({"schedule": "cos"}, r"optim.schedule = 'cos'; allowed: 'constant', 'cosine', 'polynomial'"),
        (
            {"warmup_steps": STEPS},
            rf"optim.warmup_steps = {STEPS} is not below the {STEPS} steps",
        ),
    ],
)
def test_mistakes_are_named(changes, text):
    with pytest.raises(UserError, match=text):
        optim.make_optimizer(settings(**changes), labels_of(), STEPS)
