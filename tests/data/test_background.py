"""A background that was masked out stays 0 under `zscore_nonzero`, and what is left has mean 0 and deviation 1."""

import dataclasses

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.volumes import normalize, resample

SIZE = 16
CENTRES = np.stack(np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing="ij"))


def head(seed):
    """A ball of bright tissue in a background of zeros, as skull stripping leaves it."""
    inside = np.linalg.norm(CENTRES, axis=0) < 5
    image = np.where(inside, np.random.default_rng(seed).normal(300, 38, inside.shape), 0).astype(np.float32)
    return image, (np.linalg.norm(CENTRES, axis=0) < 2).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(write_set, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "heads", {f"h{i}": head(i) for i in range(3)}, labels=("a",))


SETTINGS = [
    {"spacing_mm": (0.7, 0.7, 0.7)},
    {"spacing_mm": (1.6, 1.6, 1.0)},
    {"noise": 0.5},
    {"clip": (200.0, 400.0)},
    {"spacing_mm": (1.3, 1.3, 1.3), "noise": 0.5, "clip": (200.0, 400.0)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_background_is_what_is_0_in_the_file_on_any_grid(folder, make_task, tmp_path, settings):
    task = make_task(folder, normalization="zscore_nonzero", **settings)
    prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path)
    case = data.load_case(prepared, "h1")
    image, file = case.image[..., 0], head(1)[0]
    inside = resample.resize_mask(file != 0, image.shape)
    # The ball keeps its volume up to the coarseness of the grid; ringing would make it five times as large.
    volume = inside.sum() * np.prod(case.record.spacing_mm)
    assert volume == pytest.approx((file != 0).sum(), rel=0.12)
    assert not image[~inside].any()
    assert abs(image[inside].mean()) < 1e-5
    assert image[inside].std() == pytest.approx(1, abs=1e-5)


def test_an_image_is_read_for_prediction_as_its_case_is_stored(folder, make_task, tmp_path):
    task = make_task(folder, normalization="zscore_nonzero", spacing_mm=(0.8, 0.8, 0.8), clip=(150.0, 450.0))
    prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path)
    path = folder / "imagesTr" / "h2.nii.gz"
    image, _ = data.read_image(path, task=dataclasses.replace(task, data="elsewhere"), ndim=3)
    np.testing.assert_array_equal(image, data.load_case(prepared, "h2").image)


def test_half_of_a_voxel_is_enough_and_each_channel_has_its_own_background():
    mask = np.zeros((8, 4, 4), bool)
    mask[3:6] = True  # in pairs: none, a half, the whole, none
    assert resample.resize_mask(mask, (4, 4, 4))[:, 0, 0].tolist() == [False, True, True, False]
    image = np.stack([mask, ~mask], axis=-1) * np.float32(7)
    first, second = normalize.measured(image, ("zscore_nonzero", "zscore"))
    np.testing.assert_array_equal(first, mask)
    assert second is None
