"""Regions that overlap: masks and label maps, the loss and its gradient in NumPy, training, counts of whole cases."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import inference, losses, regions, seeds, trees, validation
from jaxseg.models import make_model
from jaxseg.regions import Regions
from jaxseg.settings import LossSettings, ModelSettings
from jaxseg.settings.schema import Loss
from tests import training_parts

NESTED = Regions(members=((1, 2, 3), (2, 3), (3,)), written=(1, 2, 3))
CROSSING = Regions(members=((1, 3), (2, 3), (3,)), written=(1, 2, 3))


def membership(label, of):
    """The masks, voxel by voxel."""
    return np.array([[value in group for group in of.members] for value in label.ravel()]).reshape(*label.shape, -1)


@pytest.mark.parametrize("of", [NESTED, CROSSING])
@pytest.mark.parametrize("xp", [np, jnp])
def test_masks_are_the_members_and_are_written_back(of, xp):
    label = np.arange(5).reshape(1, 5)  # the last marks a voxel without a label
    masks = regions.masks(xp.asarray(label), of)
    assert isinstance(masks, type(xp.asarray(label)))
    np.testing.assert_array_equal(masks, membership(label, of))
    np.testing.assert_array_equal(regions.decide(masks.astype(xp.float32), of), [[0, 1, 2, 3, 0]])


@pytest.mark.parametrize("xp", [np, jnp])
def test_later_regions_overwrite_earlier_ones_and_a_tie_is_outside(xp):
    found = xp.asarray([[0.9, 0.9, 0.9], [0.9, 0.1, 0.9], [0.1, 0.9, 0.1], [0.5, 0.5, 0.5], [0.50001, 0.1, 0.5]])
    assert regions.decide(found, NESTED).tolist() == [3, 3, 2, 0, 1]
    backwards = Regions(members=NESTED.members, written=(3, 2, 1))
    assert regions.decide(found, backwards).tolist() == [1, 1, 2, 0, 3]
    assert regions.decide(xp.asarray([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0]]), None).tolist() == [1, 0]


def test_outputs_have_a_background_where_labels_exclude_each_other():
    assert (regions.count_outputs(3, None), regions.count_outputs(3, NESTED), NESTED.classes) == (4, 3, 3)


def test_what_is_left_of_a_map_without_a_region():
    label = np.arange(4)
    assert regions.without(label, 2, NESTED).tolist() == [0, 1, 2, 2]
    assert regions.without(label, 1, NESTED).tolist() == [0, 1, 1, 1]
    assert regions.without(label, 0, NESTED).tolist() == [0, 0, 0, 0]
    assert regions.without(label, 0, CROSSING).tolist() == [0, 0, 2, 2]


def test_of_a_region_the_largest_component_stays_and_leaves_no_hole():
    label = np.array([3, 2, 3, 3, 1, 0, 1, 3, 2])
    kept = functools.partial(inference.largest_of_regions, label, of=NESTED)
    assert kept([2]).tolist() == [2, 2, 3, 3, 1, 0, 1, 2, 2]
    assert kept([1]).tolist() == [3, 2, 3, 3, 1, 0, 1, 1, 1]
    assert kept([0]).tolist() == [3, 2, 3, 3, 1, 0, 0, 0, 0]
    assert kept([]) is label


# --------------------------------------------------------------------------------------------------------------- loss


def expected(name, logits, label, of, smooth):
    """The loss and its gradient in float64, case by case and region by region."""
    value, gradient = 0.0, np.zeros(logits.shape)
    cases, count = len(label), len(of.members)
    for case in range(cases):
        known = label[case] <= of.classes
        number = known.sum() * count
        for index, group in enumerate(of.members):
            y = np.isin(label[case], group)
            p = 1 / (1 + np.exp(-logits[case, ..., index].astype(np.float64)))
            slope = p * (1 - p) * known
            true = np.where(y, p, 1 - p)
            sign = np.where(y, 1, -1)
            if "dice" in name:
                over, under = 2 * (p * y * known).sum() + smooth, (p * known).sum() + y.sum() + smooth
                value += (1 - over / under) / count / cases
                gradient[case, ..., index] += (over / under**2 - 2 * y / under) * slope / count / cases
            if "ce" in name.split("_"):
                value -= (np.log(true) * known).sum() / number / cases
                gradient[case, ..., index] -= sign / true * slope / number / cases
            if "focal" in name:
                gamma = losses.FOCAL_GAMMA
                value -= ((1 - true) ** gamma * np.log(true) * known).sum() / number / cases
                by_true = gamma * (1 - true) ** (gamma - 1) * np.log(true) - (1 - true) ** gamma / true
                gradient[case, ..., index] += by_true * sign * slope / number / cases
    return value, gradient


@pytest.mark.parametrize("name", typing.get_args(Loss))
def test_loss_and_gradient_are_those_of_numpy(name):
    rng = np.random.default_rng(1)
    for of in (NESTED, CROSSING):
        logits = rng.normal(scale=2, size=(2, 5, 6, 3)).astype(np.float32)
        label = rng.integers(0, 5, (2, 5, 6))  # of which 4 is unknown
        loss = losses.make_loss(LossSettings(name=name, smooth=0.7), of)
        found, slopes = jax.jit(jax.value_and_grad(loss))(logits, label)
        value, gradient = expected(name, logits, label, of, 0.7)
        np.testing.assert_allclose(found, value, rtol=2e-6)
        np.testing.assert_allclose(slopes, gradient, rtol=2e-4, atol=2e-8)
        assert not np.asarray(slopes)[label == 4].any()


def test_extreme_logits_have_finite_losses_and_gradients():
    loss = losses.make_loss(LossSettings(name="dice_focal"), NESTED)
    for scale in (-200.0, 200.0):
        value, slopes = jax.value_and_grad(loss)(jnp.full((1, 2, 2, 3), scale), jnp.array([[[0, 1], [2, 3]]]))
        assert np.isfinite(value)
        assert np.isfinite(slopes).all()


def test_two_nested_regions_are_learned():
    """Bright discs in brighter rings: both regions are found where each lies, though one holds the other."""
    nested = Regions(members=((1, 2), (2,)), written=(1, 2))
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"))
    rng = np.random.default_rng(0)
    centres = rng.integers(5, 11, (12, 2))
    far = np.sqrt(((grid[None] - centres[:, :, None, None]) ** 2).sum(1))
    label = (far < 5).astype(np.int32) + (far < 2.5)
    image = (label + 0.3 * rng.standard_normal(label.shape)).astype(np.float32)[..., None]
    model = make_model(ModelSettings(ndim=2, widths=(4, 8)), classes=2, overlapping=True)
    params = model.init(jax.random.key(0), image[:1])["params"]
    tx, loss = optax.adam(2e-2), losses.make_loss(LossSettings(), nested)

    @jax.jit
    def train(params):
        def step(_, carry):
            params, state = carry
            slopes = jax.grad(lambda params: loss(model.apply({"params": params}, image[:8]), label[:8]))(params)
            updates, state = tx.update(slopes, state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 100, step, (params, tx.init(params)))[0]

    found = regions.decide(inference.make_window_predict(model)(train(params), {}, image[8:]), nested)
    said, truth = regions.masks(found, nested), membership(label[8:], nested)
    dsc = 2 * (said & truth).sum((0, 1, 2)) / (said.sum((0, 1, 2)) + truth.sum((0, 1, 2)))
    assert (dsc > 0.9).all(), dsc


def test_probabilities_of_regions_need_not_sum_to_one():
    model = make_model(training_parts.MODEL, classes=3, overlapping=True)
    params = training_parts.random_params(training_parts.MODEL, seed=0)
    windows = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    logits = model.apply({"params": params}, windows)
    found = inference.make_window_predict(model)(params, {}, windows)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.asarray(logits, np.float64))), rtol=1e-5)


def test_counts_on_the_device_are_those_of_stitched_probabilities():
    model, plan = make_model(training_parts.MODEL, classes=3, overlapping=True), training_parts.plan_of("vmap")
    params = trees.stack([training_parts.random_params(training_parts.MODEL, seed=seed) for seed in range(4)])
    params = seeds.put(params, plan)
    rng = np.random.default_rng(2)
    shapes = [(7, 12), (17, 9)]
    images = [rng.normal(size=(*shape, 1)).astype(np.float32) for shape in shapes]
    labels = [rng.integers(0, 5, shape) for shape in shapes]
    predict = seeds.map_seeds(inference.make_window_predict(model), plan=plan, shared=(1, 2))
    slabs = inference.predict_slabs(
        lambda windows: np.asarray(predict(params, {}, windows)), images, patch=(8, 8), overlap=0.5, window_batch=3
    )
    wanted = []
    for label, probabilities in zip(labels, inference.join_slabs(slabs), strict=True):
        said = membership(regions.decide(probabilities, NESTED), NESTED) & (label < 4)[..., None]
        truth = membership(label, NESTED)
        sums = [(said & truth).sum((1, 2)), np.broadcast_to(truth.sum((0, 1)), (4, 3)), said.sum((1, 2))]
        wanted.append(np.stack(sums, -1))
    canvases = validation.lay_out(images, labels, patch=(8, 8), overlap=0.5, classes=4)
    count = validation.make_case_counts(model, patch=(8, 8), window_batch=3, classes=4, regions=NESTED)
    mapped = seeds.map_seeds(count, plan=plan, shared=(1, 2, 3))
    found = np.asarray(mapped(params, {}, canvases, np.arange(len(images))))
    np.testing.assert_allclose(found, np.stack(wanted, 1), atol=1)
    assert (found == np.stack(wanted, 1)).mean() > 0.95
    assert len(np.unique(found[..., 0])) > 5
