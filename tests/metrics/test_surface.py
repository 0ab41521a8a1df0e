"""Surface distances against MedPy, against an all-pairs computation, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric import binary
from scipy.spatial.distance import cdist

from jaxseg import metrics
from jaxseg.metrics import surface
from jaxseg.types import UserError

SPACINGS = ((1.0, 1.0, 1.0), (0.8, 0.8, 0.8), (1.25, 1.25, 8.0), (3.0, 0.5, 1.7))


def _blob(rng, shape):
    """A ball with speckle: surfaces that are neither convex nor connected."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    centre = rng.uniform(0.2, 0.8, len(shape)) * shape
    mask = ((grid - centre) ** 2).sum(-1) < rng.uniform(1.5, 0.6 * min(shape)) ** 2
    mask ^= rng.random(shape) < rng.choice([0.0, 0.01, 0.2])
    mask[tuple(rng.integers(0, n) for n in shape)] = True
    return mask


def _all_pairs(pred, ref, spacing):
    """Directed distances by brute force, borders by definition: some face neighbour is missing or outside."""

    def border_points(mask):
        padded = np.pad(mask, 1)
        kept = []
        for point in np.argwhere(mask):
            neighbours = [
                point + 1 + sign * np.eye(mask.ndim, dtype=int)[a] for a in range(mask.ndim) for sign in (-1, 1)
            ]
            if not all(padded[tuple(n)] for n in neighbours):
                kept.append(point * np.array(spacing))
        return np.array(kept)

    pairs = cdist(border_points(pred), border_points(ref))
    return pairs.min(1), pairs.min(0)


def _check_against_medpy(seed, shape, spacing):
    rng = np.random.default_rng(seed)
    pred, ref = _blob(rng, shape), _blob(rng, shape)
    assert metrics.hd95(pred, ref, spacing_mm=spacing) == pytest.approx(binary.hd95(pred, ref, spacing), abs=1e-9)
    assert metrics.hd(pred, ref, spacing_mm=spacing) == pytest.approx(binary.hd(pred, ref, spacing), abs=1e-9)
    assert metrics.assd(pred, ref, spacing_mm=spacing) == pytest.approx(binary.assd(pred, ref, spacing), abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("block", range(5))
def test_equals_medpy(spacing, block):
    for seed in range(20):
        _check_against_medpy(1000 * block + seed, (17, 14, 11), spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_equals_medpy_2d(spacing):
    for seed in range(30):
        _check_against_medpy(seed, (31, 23), spacing[:2])


COSTS = {
    "near": {},
    "pairs": {"_PAIR_COST": 0.0},
    "tree": {"_TREE_COST": 0.0, "_CROWD_COST": 0.0},
    "transform": {"_TRANSFORM_COST": 0.0},
}


@pytest.mark.parametrize("route", COSTS)
def test_every_route_equals_all_pairs(route, monkeypatch):
    """Looking around, all pairs, the search tree and the feature transform are each exact, whichever costs least."""
    taken = []

    def noted(place, name):
        original = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, **k: taken.append(name) or original(*a, **k))

    noted(surface, "_nearest_of_all")
    noted(surface, "_tree_cost")
    noted(surface.ndimage, "distance_transform_edt")
    for name, value in COSTS[route].items():
        monkeypatch.setattr(surface, name, value)
    if route != "near":
        monkeypatch.setattr(surface, "_NEAR_RADIUS", {3: 0})
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = (24, 22, 26)
        pred, ref = np.zeros((2, *shape), bool)
        for mask in (pred, ref):
            mask[tuple(rng.integers(0, n, 25) for n in shape)] = True
            mask[0, 0, 0] = mask[-1, -1, -1] = True
        if route == "near":
            ref = pred ^ (rng.random(shape) < 0.01)
        spacing = SPACINGS[seed % 4]
        got = metrics.surface_distances(pred, ref, spacing_mm=spacing)
        for ours, expected in zip(got, _all_pairs(pred, ref, spacing), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-12)
    names = {"pairs": "_nearest_of_all", "tree": "_tree_cost", "transform": "distance_transform_edt"}
    if route != "near":
        assert taken == [names[route]] * 40


@pytest.mark.parametrize(("num_points", "num_targets"), [(1, 1), (130, 1030), (300, 5)])
def test_all_pairs_in_blocks_find_the_nearest(num_points, num_targets):
    rng = np.random.default_rng(0)
    points, targets = rng.random((num_points, 3)) * 100, rng.random((num_targets, 3)) * 100
    np.testing.assert_allclose(
        surface._nearest_of_all(points, targets), cdist(points, targets).min(1), rtol=1e-12, atol=1e-12
    )


@given(st.integers(1, 3), st.lists(st.floats(0.3, 4), min_size=3, max_size=3), st.integers(0, 3))
def test_offsets_around_a_voxel_are_all_that_are_as_near(ndim, spacing, radius):
    """No voxel outside the box of offsets, nor one left out of it, is nearer than the last one taken."""
    spacing = np.array(spacing[:ndim])
    shape = (9,) * ndim
    near = surface._near_offsets(radius, shape, spacing)
    every = np.stack(np.meshgrid(*(np.arange(-4, 5),) * ndim, indexing="ij"), -1).reshape(-1, ndim)
    lengths = np.linalg.norm(every * spacing, axis=1)
    expected = sorted(length for length in lengths if 0 < length < (radius + 1) * spacing.min())
    np.testing.assert_allclose(near.distance, expected)
    assert (np.diff(near.distance) >= 0).all()
    steps = every @ np.cumprod([1, *shape[:0:-1]])[::-1]
    assert set(near.flat) <= set(steps)


def test_the_cost_of_a_search_tells_near_surfaces_from_a_ball_s_middle():
    grid = np.indices((64, 64, 64)) - 32
    radius = np.sqrt((grid**2).sum(0))

    def cost(points, targets):
        tree = surface.cKDTree(np.argwhere(surface.border(targets)))
        found = np.argwhere(points) * 1.0
        return surface._tree_cost(tree, found, np.ones(3)) / len(found)

    ball = radius < 28
    assert cost(surface.border(radius < 27) & (grid[0] > 10), ball) < 3
    assert cost(radius < 6, ball) > 10


masks = hnp.array_shapes(min_dims=1, max_dims=3, max_side=7).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


@settings(deadline=None, max_examples=150)
@given(masks, st.sampled_from([(1.0, 1.0, 1.0), (0.5, 3.0, 1.25)]))
def test_any_masks(pair, spacing):
    """Whatever the masks: symmetric where both hold a voxel, ordered, below the diagonal, equal to all pairs."""
    pred, ref = pair
    spacing = spacing[: pred.ndim]
    for mask in pair:
        mask.flat[0] = True
    kept = [a for a, n in enumerate(pred.shape) if n > 1] or [0]
    squeezed = [m.reshape([m.shape[a] for a in kept]) for m in pair]
    forth, back = _all_pairs(*squeezed, [spacing[a] for a in kept])
    pooled, directed = (metrics.hd95(pred, ref, spacing_mm=spacing, definition=d) for d in ("pooled", "directed"))
    assert pooled == pytest.approx(np.percentile(np.concatenate([forth, back]), 95), abs=1e-9)
    assert directed == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), abs=1e-9)
    assert metrics.hd95(ref, pred, spacing_mm=spacing) == pytest.approx(pooled, abs=1e-12)
    distance = metrics.hd(pred, ref, spacing_mm=spacing)
    assert metrics.assd(pred, ref, spacing_mm=spacing) <= distance + 1e-12
    assert max(pooled, directed) <= distance + 1e-12
    assert distance < surface.image_diagonal(pred.shape, spacing)
    assert metrics.nsd(pred, ref, spacing_mm=spacing, tolerance_mm=distance) == 1.0


def test_by_hand():
    """Two squares in a 2-D image, 2 mm by 1 mm pixels::

    . . . . . . .        P: 3 x 3 at rows 0-2, columns 0-2 (touches the edge): 8 border pixels
    P = prediction       R: the same square two columns on
    R = reference
    """
    pred, ref = np.zeros((2, 6, 8), bool)
    pred[0:3, 0:3] = True
    ref[0:3, 2:5] = True
    got = metrics.surface_distances(pred, ref, spacing_mm=(2.0, 1.0))
    # Rows of the prediction's border: (0,0) (0,1) (0,2); (1,0) (1,2); (2,0) (2,1) (2,2). The reference's border has
    # columns 2-4 in rows 0 and 2, columns 2 and 4 in row 1, so distances run along the row: 2, 1, 0 and 2, 0.
    assert got.pred_to_ref.tolist() == [2, 1, 0, 2, 0, 2, 1, 0]
    assert got.ref_to_pred.tolist() == [0, 1, 2, 0, 2, 0, 1, 2]
    assert metrics.assd(pred, ref, spacing_mm=(2.0, 1.0)) == 1.0
    assert metrics.hd(pred, ref, spacing_mm=(2.0, 1.0)) == 2.0
    assert metrics.nsd(pred, ref, spacing_mm=(2.0, 1.0), tolerance_mm=1.0) == 10 / 16


def test_definitions_of_hd95_differ():
    """One stray voxel far from a large surface: pooled sees it diluted twice as much."""
    ref = np.zeros((40, 40), bool)
    ref[5, :] = True
    pred = ref.copy()
    pred[30, 20:24] = True  # 4 of 44 predicted border pixels, 4 of 84 in all
    options = {"spacing_mm": (1.0, 1.0)}
    assert metrics.hd95(pred, ref, **options) == 0.0
    assert metrics.hd95(pred, ref, definition="directed", **options) == 25.0
    assert metrics.hd(pred, ref, **options) == 25.0


def test_one_slice_volume_is_measured_in_its_plane():
    rng = np.random.default_rng(3)
    pred, ref = _blob(rng, (20, 24)), _blob(rng, (20, 24))
    for score in (metrics.hd95, metrics.assd):
        flat = score(pred, ref, spacing_mm=(0.5, 2.0))
        assert flat > 0
        assert score(pred[..., None], ref[..., None], spacing_mm=(0.5, 2.0, 8.0)) == flat
        assert score(pred[:, None], ref[:, None], spacing_mm=(0.5, 8.0, 2.0)) == flat


def test_full_one_voxel_and_single_voxel_images():
    full, dot = np.ones((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    dot[2, 2, 2] = True
    options = {"spacing_mm": (1.0, 1.0, 1.0)}
    assert metrics.hd(full, full, **options) == 0.0
    assert int(surface.border(full).sum()) == 125 - 27
    # From the centre the full mask's border is 2 away; its farthest border voxel is a corner.
    assert metrics.surface_distances(dot, full, **options).pred_to_ref.tolist() == [2.0]
    assert metrics.hd(dot, full, **options) == pytest.approx(math.sqrt(12))
    single = np.ones((1, 1, 1), bool)
    assert metrics.hd95(single, single, **options) == 0.0


def test_distances_scale_with_spacing_and_ignore_position():
    rng = np.random.default_rng(5)
    pred, ref = _blob(rng, (12, 13, 14)), _blob(rng, (12, 13, 14))
    value = metrics.assd(pred, ref, spacing_mm=(1.0, 2.0, 3.0))
    assert metrics.assd(pred, ref, spacing_mm=(2.5, 5.0, 7.5)) == pytest.approx(2.5 * value)
    moved = [np.pad(m, ((4, 1), (0, 6), (2, 2))) for m in (pred, ref)]
    assert metrics.assd(*moved, spacing_mm=(1.0, 2.0, 3.0)) == pytest.approx(value)
    turned = [m.transpose(2, 0, 1) for m in (pred, ref)]
    assert metrics.assd(*turned, spacing_mm=(3.0, 1.0, 2.0)) == pytest.approx(value)


def test_tolerance_includes_its_own_value():
    """Three steps of 0.1 mm are 0.30000000000000004 mm."""
    pred, ref = np.zeros((2, 8), bool)
    pred[0], ref[3] = True, True
    assert metrics.nsd(pred, ref, spacing_mm=(0.1,), tolerance_mm=0.3) == 1.0
    assert metrics.nsd(pred, ref, spacing_mm=(0.1,), tolerance_mm=0.29) == 0.0


def test_empty_masks():
    none, some = np.zeros((4, 3, 1), bool), np.zeros((4, 3, 1), bool)
    some[1, 1] = True
    options = {"spacing_mm": (1.0, 1.0, 8.0)}
    for score in (metrics.hd95, metrics.hd, metrics.assd):
        assert score(none, some, **options) == 5.0  # the 4 x 3 slice's diagonal, thickness left out
        assert math.isnan(score(none, some, surface_empty="nan", **options))
        assert score(none, some, surface_empty="inf", **options) == math.inf
        assert math.isnan(score(some, none, **options))
        assert math.isnan(score(none, none, **options))
    assert metrics.nsd(none, some, tolerance_mm=1.0, **options) == 0.0
    assert metrics.nsd(some, none, tolerance_mm=1.0, **options) == 0.0
    assert math.isnan(metrics.nsd(none, none, tolerance_mm=1.0, **options))


def test_diagonal_is_that_of_brats():
    assert surface.image_diagonal((240, 240, 155), (1.0, 1.0, 1.0)) == pytest.approx(373.1287, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred": np.ones((3, 3), np.uint8)}, "boolean"),
        ({"ref": np.ones((3, 4), bool)}, r"\(3, 3\) and \(3, 4\)"),
        ({"spacing_mm": (1.0,)}, "each of the 2 axes"),
        ({"spacing_mm": (1.0, 0.0)}, "positive"),
        ({"definition": "monai"}, "pooled, directed"),
        ({"surface_empty": "zero"}, "diagonal, nan, inf"),
    ],
)
def test_mistakes_are_named(change, words):
    given_ = {"pred": np.ones((3, 3), bool), "ref": np.ones((3, 3), bool), "spacing_mm": (1.0, 1.0)} | change
    with pytest.raises(UserError, match=words):
        metrics.hd95(given_.pop("pred"), given_.pop("ref"), **given_)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_is_checked_even_where_it_is_not_needed(tolerance):
    for mask in (np.ones((3, 3), bool), np.zeros((3, 3), bool)):
        with pytest.raises(UserError, match="tolerance_mm"):
            metrics.nsd(mask, mask, spacing_mm=(1.0, 1.0), tolerance_mm=tolerance)


@pytest.mark.slow
def test_equals_medpy_over_hundreds_of_large_pairs():
    for seed in range(500):
        _check_against_medpy(50_000 + seed, (48, 40, 32), SPACINGS[seed % 4])
