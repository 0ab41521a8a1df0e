"""Random walks of an optimizer, what two runs have in common, and filters against their own weights permuted."""

import jax
import numpy as np
import optax
import pytest

from jaxseg import averaging, optim
from jaxseg.analysis import filters, movement
from jaxseg.settings import OptimSettings

SHAPE = (3, 3, 16, 32)
STEPS = 300


def trained(settings: OptimSettings, start: np.ndarray, drift: float) -> np.ndarray:
    """A kernel after steps of the project's optimizer on gradients of noise, with a share that is always the same."""
    tx = optim.make_optimizer(settings, {"kernel": "train"}, STEPS)
    always = jax.random.normal(jax.random.key(1), start.shape)

    def step(carry, key):
        params, state = carry
        gradient = {"kernel": jax.random.normal(key, start.shape) + drift * always}
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"kernel": jax.numpy.asarray(start, np.float32)}
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(0), STEPS))
    return np.asarray(params["kernel"])


@pytest.mark.parametrize(("schedule", "warmup"), [("constant", 0), ("cosine", 30)])
def test_adam_on_noise_turns_filters_by_the_angle_of_its_walk(schedule, warmup):
    settings = OptimSettings(name="adam", lr=3e-3, schedule=schedule, warmup_steps=warmup)
    start = 0.1 * filters.truncated_normal(np.random.default_rng(0), SHAPE)
    shares = np.asarray(jax.vmap(optim.make_schedule(settings, STEPS))(np.arange(STEPS)))
    expected = movement.walk_angle(start, movement.walk_length(settings.lr * shares))
    assert expected > 15
    angle = np.median(filters.change(start, trained(settings, start, 0.0)).angle_deg)
    np.testing.assert_allclose(angle, expected, rtol=0.06)
    driven = np.median(filters.change(start, trained(settings, start, 0.5)).angle_deg)
    assert driven > 1.5 * expected, "what gradients agree on adds up"


def test_a_walk_has_the_angle_of_two_legs_at_a_right_angle():
    start = np.random.default_rng(0).normal(size=SHAPE)
    assert movement.walk_angle(start, 0.0) == 0
    np.testing.assert_allclose(movement.walk_angle(start, np.sqrt(np.mean(start**2))), 45)
    assert np.isnan(movement.walk_angle(np.zeros(SHAPE), 1.0))


def test_two_walks_have_nothing_in_common_and_two_drives_do():
    rng = np.random.default_rng(0)
    start, a, b, both = rng.normal(size=(4, *SHAPE))
    assert abs(movement.coherence(start, start + a, start + b)) < 0.05
    np.testing.assert_allclose(movement.coherence(start, start + both + a, start + both + b), 0.5, atol=0.05)
    assert movement.coherence(start, start + a, start + 3 * a) == pytest.approx(1)
    assert np.isnan(movement.coherence(start, start, start + b))


def test_permuting_within_filters_keeps_each_filters_weights():
    kernels = np.random.default_rng(0).normal(size=(2, *SHAPE))
    permuted = movement.permuted_within(kernels, np.random.default_rng(1))
    ours, theirs = (np.sort(side.reshape(2, -1, SHAPE[-1]), axis=1) for side in (kernels, permuted))
    np.testing.assert_array_equal(ours, theirs)
    assert (permuted != kernels).mean() > 0.9


def many_runs(rng, noise):
    """Starts of eight runs of a layer, and what noise makes of them."""
    start = np.stack([filters.truncated_normal(rng, (3, 3, 3, 8, 16)) for _ in range(8)])
    return start, start + noise * rng.normal(size=start.shape)


@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_filters_moved_by_noise_are_not_told_from_themselves_permuted(noise):
    rng = np.random.default_rng(0)
    found = [movement.permuted_auc(many_runs(rng, noise)[1], rng).mean() for _ in range(10)]
    np.testing.assert_allclose(np.mean(found), 0.5, atol=0.04)


def test_noise_is_told_from_the_start_and_structure_from_permuted_weights():
    rng = np.random.default_rng(0)
    start, moved = many_runs(rng, 0.8)
    assert filters.start_end_auc(start, moved).mean() > 0.7
    smooth = np.stack([filters.blend(run, filters.smooth(rng, run.shape), 0.3) for run in moved])
    assert movement.permuted_auc(smooth, rng).mean() > 0.8
    assert np.isnan(movement.permuted_auc(moved[:1], rng)).all(), "one run has no others to learn from"


def test_runs_of_one_start_are_not_told_from_permuted_weights_by_each_other():
    rng, origin = np.random.default_rng(0), np.arange(8) // 4
    by_each_other, by_others = [], []
    for _ in range(8):
        starts = np.stack([filters.truncated_normal(rng, (3, 3, 3, 8, 16)) for _ in range(2)])[origin]
        moved = starts + 0.5 * rng.normal(size=starts.shape)
        by_each_other.append(movement.permuted_auc(moved, rng).mean())
        by_others.append(movement.permuted_auc(moved, rng, origin).mean())
    assert np.mean(by_each_other) > 0.75
    np.testing.assert_allclose(np.mean(by_others), 0.5, atol=0.06)


def test_a_walk_is_shorter_where_its_late_weights_are_averaged():
    """The mean of the last fifth of a random walk, by simulation and by the share of each step in it."""
    steps, windows = 200, averaging.make_windows((50, 200), 0.2)
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(steps, 20_000)), axis=0)
    shares = averaging.shares_after(steps, windows)
    length = movement.walk_length(shares)
    np.testing.assert_allclose(length, walk[-40:].mean(0).std(), rtol=0.02)
    np.testing.assert_allclose(length**2, steps * (1 - 0.2 * 2 / 3), rtol=0.01)
    np.testing.assert_array_equal(averaging.shares_after(100, windows), 1)  # outside the windows
