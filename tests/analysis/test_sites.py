"""Windows and positions at which networks are compared: inside the case, in the right zones, in the right sites."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.analysis import similarity, sites

LABEL = np.zeros((20, 12), np.int32)
LABEL[4:7, 8:11] = 2


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    patch=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    seed=st.integers(0, 99),
)
def test_windows_hold_all_of_a_small_case_and_nothing_else_of_a_large_one(shape, patch, seed):
    rng = np.random.default_rng(seed)
    label = (rng.random(shape) < 0.2).astype(np.int32)
    image = rng.random((*shape, 2))
    for corner in sites.draw_corners(label, patch, 3, rng):
        window = sites.cut(image, corner, patch, fill=np.nan)
        assert window.shape == (*patch, 2)
        inside = np.isfinite(window).all(-1)
        # Along each axis all of the patch, or all of the case.
        assert inside.any(1).sum() == min(shape[0], patch[0])
        assert inside.any(0).sum() == min(shape[1], patch[1])
        first = tuple(np.argwhere(inside)[0])
        assert np.array_equal(window[first], image[tuple(np.add(first, corner))])


def test_windows_are_drawn_around_the_foreground():
    rng = np.random.default_rng(0)
    for corner in sites.draw_corners(LABEL, (6, 6), 20, rng):
        assert sites.cut(LABEL, corner, (6, 6), fill=0).any()


def test_a_third_of_positions_in_each_zone_and_none_outside_the_case():
    label = np.full((30, 30), sites.OUTSIDE)
    label[:26] = 0
    label[10:14, 10:14] = 1
    drawn = sites.draw_positions(label, 300, np.random.default_rng(0))
    at = label[tuple(drawn.T)]
    assert (at == 1).sum() == 100
    assert (at >= 0).all()
    away = np.abs(drawn - np.clip(drawn, 10, 13)).max(1)
    assert ((at == 0) & (away <= sites.BAND)).sum() == 100
    assert sites.draw_positions(np.zeros((4, 4)), 7, np.random.default_rng(0)).shape == (7, 2)


@given(position=st.integers(0, 23), strides=st.sampled_from([1, 2, 4, 8]))
def test_a_site_is_the_nearest_one(position, strides):
    """Sites of a grid of this stride lie at the middles of their voxels."""
    centres = strides * np.arange(24 // strides) + (strides - 1) / 2
    (site,) = sites.nearest_sites(np.array([[position]]), (24,), (24 // strides,))
    assert np.abs(centres[site] - position) == np.abs(centres - position).min()


def test_each_site_counts_once_in_each_window():
    read = np.array([[3, 3, 1], [3, 1, 2]])
    assert sites.first_of_each(read, np.array([0, 1])).tolist() == [0, 2, 3, 4, 5]
    assert sites.first_of_each(read, np.array([0, 0])).tolist() == [0, 2, 5], "one window that was drawn twice"


def test_layers_against_layers_are_pairs_of_cka():
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(50, width)) for width in (3, 5, 1)]
    expected = [[float(similarity.cka(a, b)) for b in layers] for a in layers]
    np.testing.assert_allclose(similarity.between_layers(layers), expected, atol=1e-5)
