"""Intensities come to one scale, whatever scale they came on."""

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.volumes import normalize


def normalized(image, *names):
    return normalize.normalize_case(image, names, normalize.measured(image, names))


@pytest.fixture(scope="module")
def image():
    image = np.random.default_rng(0).gamma(2.0, 40.0, (12, 11, 10, 1)).astype(np.float32)
    image[:3] = 0
    return image


@pytest.mark.parametrize("name", ["zscore", "zscore_nonzero", "percentile"])
@pytest.mark.parametrize("factor", [1.0, 17_000.0])
def test_results_do_not_depend_on_the_scale(image, name, factor):
    plain, _ = normalized(image, name)
    scaled, _ = normalized(image * np.float32(factor), name)
    np.testing.assert_allclose(plain, scaled, atol=1e-5)


def test_closed_forms(image):
    z, _ = normalized(image, "zscore")
    assert abs(z.mean()) < 1e-5
    assert abs(z.std() - 1) < 1e-5
    nonzero, _ = normalized(image, "zscore_nonzero")
    assert not nonzero[image == 0].any()
    assert abs(nonzero[image != 0].mean()) < 1e-5
    assert abs(nonzero[image != 0].std() - 1) < 1e-5
    share, _ = normalized(image, "percentile")
    assert (share.min(), share.max()) == (0, 1)
    low, high = np.percentile(image, (0.5, 99.5))
    middle = (image > low) & (image < high)
    np.testing.assert_allclose(share[middle], (image[middle] - low) / (high - low), atol=1e-5)
    raw, _ = normalized(image, "none")
    np.testing.assert_array_equal(raw, image)


def test_large_offsets_do_not_cost_precision():
    image = (1e6 + np.random.default_rng(0).integers(0, 50, (20, 20, 20, 1))).astype(np.float32)
    z, _ = normalized(image, "zscore")
    expected = (image.astype(np.float64) - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)
    np.testing.assert_allclose(z, expected, atol=1e-5)


def test_images_without_contrast_become_zero_and_are_named():
    for name in ("zscore", "zscore_nonzero", "percentile"):
        flat, warnings = normalized(np.full((4, 4, 4, 1), 7, np.float32), name)
        assert not flat.any()
        assert "constant (7)" in warnings[0]


def test_windows_are_those_of_the_foreground():
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, (10, 10, 10, 2)).astype(np.float32)
    label = np.zeros((10, 10, 10), np.uint8)
    label[2:8, 2:8, 2:8] = 1
    sample = normalize.sample_foreground(image, label == 1)
    assert len(sample) == 216
    windows = normalize.fit_windows([sample])
    inside = image[label == 1].astype(np.float64)
    low, high = np.percentile(inside, (0.5, 99.5), axis=0)
    clipped = np.clip(inside, low, high)
    np.testing.assert_allclose(windows[0], (low[0], high[0], clipped[:, 0].mean(), clipped[:, 0].std()), rtol=1e-6)
    done = normalize.apply_windows(image, ("dataset", "zscore"), windows)
    np.testing.assert_array_equal(done[..., 1], image[..., 1])
    expected = (np.clip(image[..., 0], low[0], high[0]) - clipped[:, 0].mean()) / clipped[:, 0].std()
    np.testing.assert_allclose(done[..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("regions", [(), (("both", ("a", "b")),)])
def test_windows_are_not_those_of_voxels_to_ignore(make_task, write_set, volume_of, tmp_path, regions):
    """nnU-Net's `ignore` is the last class: nobody knows what such voxels show."""
    volumes = {f"case_{index}": volume_of(index) for index in range(2)}
    plain = write_set(tmp_path / "plain", volumes, modality={"0": "CT"})
    for image, label in volumes.values():
        label[:, :3][label[:, :3] == 0] = 3
        image[label == 3] += 100
    ignoring = write_set(tmp_path / "ignoring", volumes, modality={"0": "CT"}, labels=("a", "b", "ignore"))
    windows = []
    for folder in (plain, ignoring):
        task = make_task(folder, normalization="auto", regions=regions)
        ready = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
        windows.append(data.fit_intensity(ready, [record.name for record in ready.cases]).windows)
    assert ready.ignore_index == 3
    assert windows[0] == windows[1]


def test_auto_goes_by_modality():
    assert normalize.per_channel("auto", ("CT", "MRI", "ct scan")) == ("dataset", "zscore", "dataset")
    assert normalize.per_channel("percentile", ("CT", "MRI")) == ("percentile", "percentile")
