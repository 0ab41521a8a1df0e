"""Ways of fine-tuning: the head first, and rates by path."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxseg import losses, optim, seeds, train, trees
from jaxseg.models import make_model
from jaxseg.settings.kinds import read_factors
from jaxseg.types import UserError
from tests import training_parts
from tests.test_optim import kernels, settings, updates_of
from tests.training_parts import CLASSES, LOSS, STEPS, Training, labels_of, random_params, run_inputs

WAIT, WARMUP, DECAY = 3, 2, 0.1


def test_the_rest_begins_at_the_switch_as_a_second_program_would():
    """Adam's moments, its bias correction, weight decay, clipping and the warm-up, against optax's own pieces."""
    chosen = settings(name="adamw", lr=0.3, weight_decay=DECAY, clip_norm=0.5, warmup_steps=WARMUP,
                      head_first=WAIT / STEPS)  # fmt: skip
    params, grads = random_params(), [random_params(seed=step + 1) for step in range(7)]
    ours = updates_of(optim.make_optimizer(chosen, labels_of(), STEPS), params, grads)
    still = [trees.map_with_path(lambda path, g: g if path.startswith("head/") else 0 * g, one) for one in grads[:WAIT]]

    def plain(rate):
        adam = optax.adamw(rate, weight_decay=DECAY, mask=kernels)
        return optax.chain(optax.clip_by_global_norm(0.5), adam)

    def rise(step):
        return jax.numpy.minimum((step + 1) / WARMUP, 1.0)

    # The head: clipped alone until the switch, with the others from then on; its moments run through.
    head = updates_of(plain(lambda step: 0.3 * rise(step)), params, [*still, *grads[WAIT:]])
    rest = updates_of(plain(lambda step: 0.3 * rise(step)), params, grads[WAIT:])
    for step, updates in enumerate(ours):
        for path, update in updates.items():
            if path.startswith("head/"):
                expected = head[step][path]
            else:
                expected = 0 * update if step < WAIT else rest[step - WAIT][path]
            np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7, err_msg=f"{path} {step}")


def test_rates_by_path_scale_the_first_rule_s_parameters():
    rules = read_factors("^encoder/level_0/=0.01 ^encoder/=0.1", "optim.rate_factors")
    params, grads = random_params(), [random_params(seed=1)]
    plain, scaled = (
        updates_of(optim.make_optimizer(settings(rate_factors=given), labels_of(), STEPS), params, grads)[0]
        for given in ((), rules)
    )
    for path, update in plain.items():
        factor = 0.01 if path.startswith("encoder/level_0/") else 0.1 if path.startswith("encoder/") else 1.0
        np.testing.assert_allclose(scaled[path], factor * update, rtol=1e-6, err_msg=path)


def test_the_walk_of_a_layer_follows_its_own_rates():
    """What `relative_rates` says is what the optimizer does: a gradient of ones moves by the rate under Adam."""
    chosen = settings(lr=1.0, head_first=WAIT / STEPS, warmup_steps=WARMUP, rate_factors=(("^encoder/", 0.1),))
    ones = jax.tree.map(np.ones_like, random_params())
    moved = updates_of(optim.make_optimizer(chosen, labels_of(), STEPS), ones, [ones] * 7)
    common = np.array([float(optim.make_schedule(chosen, STEPS)(step)) for step in range(7)])
    for path in ("encoder/level_1/conv_0/kernel", "decoder/level_0/conv_0/kernel", "head/kernel"):
        shares = optim.relative_rates(chosen, labels_of(), path, STEPS)
        taken = [-float(np.ravel(updates[path])[0]) for updates in moved]
        np.testing.assert_allclose(common * shares[:7], taken, rtol=1e-4, err_msg=path)


def test_a_run_trains_its_head_and_then_everything_however_it_is_cut():
    chosen = settings(head_first=2 / STEPS)
    tx = optim.make_optimizer(chosen, labels_of(), STEPS)
    network = make_model(training_parts.MODEL, classes=CLASSES)
    step = train.make_train_step(network, tx, losses.make_loss(LOSS), Training().sample, labels_of())
    plan, cohort = training_parts.plan_of(), training_parts.make_cohort()
    chunk = seeds.map_seeds(train.make_train_chunk(step), plan=plan, shared=(2, 3, 4, 5))
    start = training_parts.make_state(training_parts.MODEL, tx, 0)
    states = [trees.stack([start])]
    for first, last in ((0, 2), (2, 4)):
        state, _ = chunk(states[-1], run_inputs(1), cohort, {}, np.int32(first), np.int32(last))
        states.append(state)
    whole, _ = chunk(states[0], run_inputs(1), cohort, {}, np.int32(0), np.int32(4))
    assert training_parts.bits(whole.params) == training_parts.bits(states[2].params)
    begun, switched, ended = (training_parts.bits(state.params) for state in states)
    assert {path for path in begun if begun[path] != switched[path]} == {p for p in begun if p.startswith("head/")}
    assert all(switched[path] != ended[path] for path in begun)


@pytest.mark.parametrize(
    ("changes", "freeze", "text"),
    [
        ({"rate_factors": (("^encodr/", 0.1),)}, "none", r"optim.rate_factors: .*'\^encodr/' decides no parameter"),
        ({"rate_factors": (("^encoder/", 0.1),)}, "encoder", r"'\^encoder/' decides no parameter"),
        ({"head_first": 0.2}, "all_but_head", r"optim.head_first = 0.2 with .* nothing but its head is trained"),
        ({"head_first": 0.2}, "regex:^head/", r"optim.head_first = 0.2 with .* its head is not trained"),
    ],
)
def test_mistakes_are_named(changes, freeze, text):
    with pytest.raises(UserError, match=text):
        optim.make_optimizer(settings(**changes), labels_of(freeze=freeze), STEPS)


@pytest.mark.parametrize("text", ["^encoder/", "^encoder/=fast", "=0.1", "^encoder/=0", "^encoder/=-1"])
def test_a_factor_is_written_behind_its_rule(text):
    with pytest.raises(UserError, match=r"config.optim.rate_factors = .*; allowed: rules such as"):
        read_factors(text, "optim.rate_factors")


def test_every_parameter_may_have_a_rule():
    rules = (("^encoder/", 0.1), (".", 0.5))
    factors = trees.flatten(optim.rate_factors(dataclasses.replace(settings(), rate_factors=rules), labels_of()))
    assert set(factors.values()) == {0.1, 0.5}


def test_networks_that_restore_images_have_no_head_to_train_first() -> None:
    labels = {"encoder": {"kernel": "train"}, "restoration": {"kernel": "train"}}
    with pytest.raises(UserError, match=r"have no head; set it for arms alone, as in config\.arms\.transfer"):
        optim.make_optimizer(settings(head_first=0.2), labels, 10)
