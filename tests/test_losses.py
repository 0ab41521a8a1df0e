"""Losses: closed forms, unreduced shapes, finite gradients, and the formulas in NumPy."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import losses
from jaxseg.settings import LossSettings
from jaxseg.settings.schema import Loss
from jaxseg.types import UserError

SHAPES = [(2, 4, 5), (3, 2, 3, 4)]


@functools.cache
def compiled(name, smooth=1.0, gradient=False):
    """A loss of logits and labels, or its value and gradient; compiled once for all tests of one shape."""
    loss = losses.make_loss(LossSettings(name=name, smooth=smooth))
    return jax.jit(jax.value_and_grad(loss) if gradient else loss)


@jax.jit
def pieces(logits, target):
    """Soft Dice and cross-entropy, unreduced."""
    return losses.soft_dice(jax.nn.softmax(logits), target, smooth=1.0), losses.cross_entropy(
        jax.nn.log_softmax(logits), target
    )


def one_hot(label, classes):
    return np.eye(classes, dtype=np.float32)[label]


def case(shape, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(*shape, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, shape)


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def expected(name, logits, label, smooth):
    """The loss in float64, case by case and label by label."""
    probabilities, total = softmax(logits), 0.0
    cases, classes = len(label), logits.shape[-1]
    for p, y in zip(probabilities, label, strict=True):
        for value in range(1, classes if "dice" in name else 1):
            here, mask = p[..., value], y == value
            ratio = (2 * here[mask].sum() + smooth) / (here.sum() + mask.sum() + smooth)
            total += (1 - ratio) / (classes - 1) / cases
        true = np.take_along_axis(p, y[..., None], -1)
        if "ce" in name.split("_"):
            total += -np.log(true).mean() / cases
        if "focal" in name:
            total += -((1 - true) ** 2 * np.log(true)).mean() / cases
    return total


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("name", typing.get_args(Loss))
def test_against_numpy(name, shape):
    logits, label = case(shape)
    value = compiled(name, 0.7)(logits, label)
    assert value.shape == ()
    assert float(value) == pytest.approx(expected(name, logits, label, 0.7), rel=2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_pieces_are_not_reduced_over_cases_or_labels(shape):
    logits, label = case(shape)
    dice, entropy = pieces(logits, one_hot(label, 3))
    assert dice.shape == (shape[0], 3)
    assert entropy.shape == (shape[0],)
    alone = np.repeat(logits[1:2], shape[0], 0), one_hot(np.repeat(label[1:2], shape[0], 0), 3)
    for all_cases, one_case in zip((dice, entropy), pieces(*alone), strict=True):
        np.testing.assert_allclose(one_case[0], all_cases[1], rtol=1e-6)
        assert not np.allclose(all_cases[0], all_cases[1], rtol=1e-3)


def test_a_perfect_prediction_costs_nothing():
    label = np.array([[[0, 1], [2, 1]]])
    logits = 200 * one_hot(label, 3)
    for name in typing.get_args(Loss):
        assert float(compiled(name)(logits, label)) == 0


def test_a_wrong_prediction_costs_everything():
    label = np.ones((1, 4, 4), int)
    # No overlap: 1 - smooth / (0 + 16 + smooth); log-probability -200 everywhere (class 0 is predicted for class 1).
    logits = np.flip(200 * one_hot(label, 2), -1)
    assert float(compiled("dice", 0.5)(logits, label)) == pytest.approx(1 - 0.5 / 16.5)
    assert float(compiled("ce", 0.5)(logits, label)) == pytest.approx(200)


def test_uniform_probabilities():
    label = np.zeros((2, 6), int)
    label[:, :2] = 1  # a third of the voxels
    logits = np.zeros((2, 6, 4), np.float32)
    assert float(compiled("ce")(logits, label)) == pytest.approx(np.log(4))
    per_label, _ = pieces(logits, one_hot(label, 4))
    # p = 1/4 on 6 voxels sums to 1.5; label 1 has 2 voxels, of which 2 * 1/4 overlap; labels 2 and 3 have none.
    absent = 1 - 1 / 2.5
    np.testing.assert_allclose(per_label[0], [1 - 3 / 6.5, 1 - 2 / 4.5, absent, absent], rtol=1e-6)
    # The background's Dice is not in the loss.
    dice = float(compiled("dice")(logits, label))
    assert dice == pytest.approx((1 - 2 / 4.5 + 2 * absent) / 3)


def test_a_label_absent_from_both_costs_nothing():
    label = np.zeros((1, 8), int)
    logits = 200 * one_hot(label, 2)
    assert float(compiled("dice", 1e-5)(logits, label)) == 0


@pytest.mark.parametrize("name", typing.get_args(Loss))
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradients_are_finite_where_probabilities_are_not_between_0_and_1(name, scale):
    label = np.zeros((1, 8), int)
    label[0, :4] = 1
    for true in (label, np.zeros_like(label), np.ones_like(label)):
        logits = np.float32(scale) * (one_hot(label, 3) - np.float32(0.5))
        value, grads = compiled(name, 1e-5, gradient=True)(logits, true)
        assert np.isfinite(value)
        assert np.isfinite(grads).all()


def test_the_gradient_of_cross_entropy_is_the_error():
    logits, label = case((2, 3, 4))
    _, grads = compiled("ce", gradient=True)(logits, label)
    np.testing.assert_allclose(grads, (softmax(logits) - np.eye(3)[label]) / label.size, atol=1e-7)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"loss.name = 'dise'; allowed: 'dice_ce', 'dice', 'ce', 'focal'"):
        losses.make_loss(LossSettings(name="dise"))


def test_focal_loss_of_no_exponent_is_cross_entropy():
    logits, label = case((2, 4, 5))
    target = jax.nn.one_hot(label, logits.shape[-1])
    plain = losses.focal(jax.nn.log_softmax(logits), target, gamma=0.0).mean()
    assert float(plain) == pytest.approx(float(compiled("ce")(logits, label)), rel=1e-6)


@pytest.mark.parametrize("name", ["ce", "focal"])
def test_voxels_of_unknown_label_do_not_dilute_the_mean(name):
    logits, label = case((1, 6))
    known = compiled(name)(logits[:, :4], label[:, :4])
    label[0, 4:] = 3
    assert float(compiled(name)(logits, label)) == pytest.approx(float(known), rel=1e-6)
    everywhere = np.full_like(label, 3)
    assert float(compiled(name)(logits, everywhere)) == 0


@pytest.mark.parametrize("name", typing.get_args(Loss))
def test_voxels_of_unknown_label_have_no_gradient(name):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 3)), jnp.float32)
    label = jnp.zeros((1, 4, 4), jnp.int32).at[0, 0, 0].set(3).at[0, 1, 1].set(2)
    gradient = jax.grad(losses.make_loss(LossSettings(name=name)))(logits, label)
    np.testing.assert_array_equal(gradient[0, 0, 0], 0)
    assert (gradient[0, 1, 1] != 0).any()
