"""The marginal loss: what a case does not annotate is part of its background, and teaches nothing about itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import losses
from jaxseg.settings import LossSettings
from jaxseg.types import PartialLabel

LOGITS = np.random.default_rng(0).normal(scale=2, size=(3, 4, 5, 4)).astype(np.float32)
ANNOTATED = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 1]], bool)
LABEL = np.where(ANNOTATED[:, None, None], np.arange(4), 0)[
    np.arange(3)[:, None, None], 0, 0, np.random.default_rng(1).integers(0, 4, (3, 4, 5))
]


def loss_of(name):
    return losses.make_loss(LossSettings(name=name))


def test_the_background_takes_the_probabilities_of_what_is_not_annotated():
    merged = np.exp(losses.merge_unannotated(jax.nn.log_softmax(LOGITS), jnp.asarray(ANNOTATED)))
    plain = np.asarray(jax.nn.softmax(LOGITS))
    np.testing.assert_allclose(merged.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(merged[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(merged[1, ..., 0], plain[1][..., [0, 1, 3]].sum(-1), rtol=1e-5)
    np.testing.assert_allclose(merged[1, ..., 2], plain[1, ..., 2], rtol=1e-5)
    assert not merged[1][..., [1, 3]].any()
    np.testing.assert_allclose(merged[2, ..., 0], plain[2][..., [0, 2]].sum(-1), rtol=1e-5)


@pytest.mark.parametrize("name", ["dice_ce", "dice", "ce", "focal", "dice_focal"])
def test_a_case_is_scored_as_by_a_network_that_knows_its_classes_alone(name):
    """The loss of each case is that of the merged probabilities over its own classes, numbered anew."""
    expected = 0.0
    for logits, label, own in zip(LOGITS, LABEL, ANNOTATED, strict=True):
        kept = np.flatnonzero(own)
        chances = np.asarray(jax.nn.softmax(logits), np.float64)
        merged = chances[..., kept]
        merged[..., 0] += chances[..., ~own].sum(-1)
        numbered = np.searchsorted(kept, label)
        expected += float(loss_of(name)(jnp.asarray(np.log(merged), jnp.float32)[None], jnp.asarray(numbered)[None]))
    found = loss_of(name)(jnp.asarray(LOGITS), PartialLabel(jnp.asarray(LABEL), jnp.asarray(ANNOTATED)))
    np.testing.assert_allclose(found, expected / len(LABEL), rtol=1e-5)


@pytest.mark.parametrize("name", ["dice_ce", "focal"])
def test_a_network_is_not_told_which_unannotated_structure_a_voxel_is(name):
    """Gradients leave the shares within the merged background as they are: each logit's is in proportion to its own."""
    label = PartialLabel(jnp.asarray(LABEL[1:2]), jnp.asarray(ANNOTATED[1:2]))
    gradient = np.asarray(jax.jit(jax.grad(loss_of(name)))(jnp.asarray(LOGITS[1:2]), label))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-3
    per_share = (gradient / np.asarray(jax.nn.softmax(LOGITS[1:2])))[..., [0, 1, 3]]
    np.testing.assert_allclose(per_share, per_share[..., :1].repeat(3, -1), rtol=1e-3, atol=1e-5)
    told = np.asarray(jax.grad(loss_of(name))(jnp.asarray(LOGITS[1:2]), jnp.asarray(LABEL[1:2])))
    assert np.abs(told - gradient).max() > 1e-3


def test_where_all_is_annotated_nothing_changes():
    whole = PartialLabel(jnp.asarray(LABEL), jnp.ones_like(ANNOTATED))
    plain = loss_of("dice_ce")(jnp.asarray(LOGITS), jnp.asarray(LABEL))
    np.testing.assert_allclose(loss_of("dice_ce")(jnp.asarray(LOGITS), whole), plain, rtol=1e-6)


def test_voxels_of_unknown_label_count_neither_here():
    unknown, other = LABEL.copy(), LOGITS.copy()
    unknown[:, 0] = 4
    other[:, 0] += 3 * np.arange(4)
    label = PartialLabel(jnp.asarray(unknown), jnp.asarray(ANNOTATED))
    one, two = (loss_of("dice_ce")(jnp.asarray(logits), label) for logits in (LOGITS, other))
    np.testing.assert_allclose(one, two, rtol=1e-6)
