"""Learning without labels: the loss, what it is drawn from, and that networks learn by it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import data, losses, optim, train, transfer, trees
from jaxseg.models import make_model
from jaxseg.settings.task_schema import images_alone
from jaxseg.streams import step_key, stream_key
from jaxseg.types import Batch, Restoration
from tests import training_parts

TASK = images_alone(training_parts.TASK)
MODEL = dataclasses.replace(training_parts.MODEL, widths=(4, 8))
OBJECTIVES = ("restore", "masked")


def test_the_loss_averages_squared_errors_over_the_voxels_that_count():
    wanted = np.zeros((2, 4, 1, 2), np.float32)
    restored = wanted + np.float32([[1], [2], [3], [4]]).reshape(1, 4, 1, 1) * np.float32([1, 0])
    weight = np.zeros((2, 4, 1), np.float32)
    weight[0, 1:3] = 1  # errors 2 and 3 in one of two channels; nothing counts in the second patch
    errors, voxels = losses.restoration_errors(restored, Restoration(wanted, weight))
    np.testing.assert_allclose(errors, [(4 + 9) / 2, 0])
    np.testing.assert_allclose(voxels, [2, 0])
    np.testing.assert_allclose(losses.restoration_loss(restored, Restoration(wanted, weight)), (13 / 2 / 2 + 0) / 2)
    gradient = jax.grad(losses.restoration_loss)(jnp.asarray(restored), Restoration(wanted, weight))
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[1].any()


@functools.cache
def sample_of(objective, batch=16):
    return jax.jit(data.make_sample(TASK, batch=batch, objective=objective))


def smooth_cohort():
    """The cohort with images that can be guessed from what is near: bright ridges on a dark ground."""
    cohort = training_parts.make_cohort()
    shapes = [tuple(shape) for shape in np.asarray(cohort.shapes)]
    waves = [np.exp(2 * np.sin(np.add.outer(0.5 * np.arange(x), 0.3 * np.arange(y)) + x)) for x, y in shapes]
    image = np.concatenate([(wave - wave.mean()).ravel() / wave.std() for wave in waves])
    return dataclasses.replace(cohort, image=jnp.asarray(image[:, None], jnp.float32))


def run():
    return trees.take(training_parts.run_inputs(1), 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_labels_play_no_part_in_a_batch(objective):
    key, cohort = step_key(stream_key(0, "order"), 3, "sample"), training_parts.make_cohort()
    seen = sample_of(objective)(key, cohort, run())
    other = dataclasses.replace(
        cohort,
        label=jnp.zeros_like(cohort.label),
        foreground=cohort.foreground[::-1],
        num_foreground=cohort.num_foreground[::-1],
    )
    same = sample_of(objective)(key, other, run())
    for one, two in zip(jax.tree.leaves(seen), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(one, two)
    # What is to be restored is the patch that a network for labels would see.
    labelled = jax.jit(data.make_sample(TASK, batch=16))(key, cohort, run())
    np.testing.assert_array_equal(seen.label.image, labelled.image)
    # A patch depends on its own place in the batch alone, not on how many there are.
    few = sample_of(objective, batch=2)(key, cohort, run())
    np.testing.assert_array_equal(few.image, seen.image[:2])


def mean_error(output, wanted):
    errors, voxels = losses.restoration_errors(output, wanted)
    return float(errors.sum() / voxels.sum())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_restores_better_than_what_is_seen_and_than_the_mean(objective):
    model = make_model(MODEL, classes=1, restores=True)
    image = jnp.zeros((1, 8, 8, 1))
    labels = optim.freeze_labels(jax.eval_shape(model.init, jax.random.key(0), image)["params"], "none")
    tx = optim.make_optimizer(training_parts.OPTIM, labels, 600)
    sample = data.make_sample(TASK, batch=8, objective=objective)
    chunk = jax.jit(train.make_train_chunk(train.make_train_step(model, tx, losses.restoration_loss, sample, labels)))
    keys = stream_key(0, "init"), stream_key(0, "order")
    state = jax.jit(lambda: train.init_state(*keys, model, tx, image))()
    cohort = smooth_cohort()
    state, metrics = chunk(state, run(), cohort, {}, jnp.int32(0), jnp.int32(600))
    assert int(metrics["steps_alive"]) == 600
    batch: Batch = sample_of(objective)(step_key(stream_key(1, "order"), 0, "sample"), cohort, run())
    restored = jax.jit(model.apply)({"params": state.params}, batch.image)
    wanted = batch.label
    mean = (wanted.image * wanted.weight[..., None]).sum() / wanted.weight.sum()
    baselines = mean_error(batch.image, wanted), mean_error(jnp.full_like(wanted.image, mean), wanted)
    assert mean_error(restored, wanted) < 0.8 * min(baselines)


def test_a_transfer_never_takes_the_head_of_a_network_that_restores():
    """Not even where there are as many image channels as classes."""
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    segments, restores = (
        jax.eval_shape(make_model(MODEL, classes=3, restores=restores).init, key, image)["params"]
        for restores in (False, True)
    )
    table = transfer.make_load_table(segments, restores, transfer.transfer_rules("pretrained"))
    statuses = {row.path: row.status for row in table}
    assert {path for path, status in statuses.items() if status == "re-initialised"} == {"head/kernel", "head/bias"}
    assert statuses["restoration/kernel"] == statuses["restoration/bias"] == "unused"
    assert {status for path, status in statuses.items() if path[:7] in ("encoder", "decoder")} == {"loaded"}
