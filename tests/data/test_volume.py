"""Orientation and grids: what goes in canonical comes out on the input's own grid."""

import concurrent.futures
import contextlib

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxseg import data
from jaxseg.data.formats.files import reading
from jaxseg.data.volumes import resample, volume
from jaxseg.regions import Regions
from jaxseg.types import UserError


def rotation(angles):
    out = np.eye(3)
    for (first, second), angle in zip([(0, 1), (0, 2), (1, 2)], angles, strict=True):
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


@st.composite
def affines(draw):
    """Axes permuted and flipped, tilted by up to 40 degrees, voxels of 0.3 to 4 mm, any origin."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    spacing = draw(st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 1.37, 4.0])] * 3))
    tilt = draw(st.tuples(*[st.floats(-0.4, 0.4)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation(tilt) @ np.eye(3)[:, list(order)] @ np.diag(np.array(signs) * spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


def blob(shape):
    """A smooth shape with two labels, so that resampling has something to keep."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((points**2).sum(axis=0))
    return ((radius < 0.8).astype(np.uint8) + (points[0] > 0.1) * (radius < 0.8)).astype(np.uint8)


def nifti(array, affine, *, codes=(1, 1)):
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1], strip_shears=True)
    return image


@given(affine=affines(), shape=st.tuples(*[st.integers(2, 9)] * 3))
@settings(max_examples=60, deadline=None)
def test_a_label_map_comes_back_voxel_for_voxel_on_any_grid(make_task, affine, shape):
    stored = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16)
    image = nifti(stored, affine)
    prepared, geometry = data.read_image(image, task=make_task("unused", normalization="none"), ndim=3)
    back = data.to_nifti(prepared[..., 0].astype(np.int32), geometry)
    np.testing.assert_array_equal(np.asarray(back.dataobj), stored)
    np.testing.assert_array_equal(back.affine, image.affine)
    for name in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(back.header[name], image.header[name], err_msg=name)
    np.testing.assert_array_equal(back.header.get_sform(), image.header.get_sform())


@given(affine=affines(), shape=st.tuples(*[st.integers(2, 9)] * 3))
@settings(max_examples=60, deadline=None)
def test_canonical_axes_point_right_anterior_superior_and_name_the_same_places(make_task, affine, shape):
    rng = np.random.default_rng(0)
    image = nifti(rng.standard_normal(shape).astype(np.float32), affine)
    expected = nib.as_closest_canonical(image)
    prepared, geometry = data.read_image(image, task=make_task("unused", normalization="none"), ndim=3)
    np.testing.assert_array_equal(prepared[..., 0], np.asarray(expected.dataobj))
    assert nib.aff2axcodes(expected.affine) == ("R", "A", "S")
    np.testing.assert_allclose(geometry.own_spacing_mm, expected.header.get_zooms(), rtol=1e-5)


@given(affine=affines(), factors=st.tuples(*[st.sampled_from([0.6, 0.8, 0.999, 1.0, 1.001, 1.25])] * 3))
@settings(max_examples=40, deadline=None)
def test_resampled_labels_come_back(make_task, affine, factors):
    """A label map taken to a training grid and back: the same where the spacing is, and never moved by over a voxel."""
    shape = (24, 26, 22)
    label = blob(shape)
    image = nifti(label.astype(np.float32), affine)
    own = data.read_image(image, task=make_task("unused", normalization="none"), ndim=3)[1].own_spacing_mm
    spacing = tuple(float(s * f) for s, f in zip(own, factors, strict=True))
    task = make_task("unused", normalization="none", spacing_mm=spacing)
    _, geometry = data.read_image(image, task=task, ndim=3)
    canonical = np.asarray(nib.as_closest_canonical(nifti(label, affine)).dataobj)
    there = resample.resize_labels(canonical, geometry.shape)
    if factors == (1.0, 1.0, 1.0):
        assert geometry.shape == geometry.own_shape
        np.testing.assert_array_equal(there, canonical)
    back = np.asarray(data.to_nifti(there, geometry).dataobj)
    assert back.shape == shape
    surface = scipy.ndimage.maximum_filter(label, 3) != scipy.ndimage.minimum_filter(label, 3)
    np.testing.assert_array_equal(back[~surface], label[~surface])
    # A coarser grid cannot hold a surface better than that; on an equal or finer one next to nothing is lost.
    if max(factors) < 1.25:
        for value in (1, 2):
            both = np.sum((back == value) & (label == value))
            assert 2 * both / (np.sum(back == value) + np.sum(label == value)) > 0.97


def test_probabilities_are_resampled_before_the_largest_wins():
    probabilities = np.zeros((2, 1, 1, 3), np.float32)
    probabilities[0, 0, 0], probabilities[1, 0, 0] = (0.1, 0.9, 0.0), (0.3, 0.2, 0.5)
    # Quarter points between the two voxels: 1, then 1 (0.725 against 0.125), then 2 (0.375 of both ties apart), 2.
    expected = []
    for share in (0.0, 0.25, 0.75, 1.0):
        expected.append(((1 - share) * probabilities[0, 0, 0] + share * probabilities[1, 0, 0]).argmax())
    got = resample.labels_from_probabilities(probabilities, (4, 1, 1))
    np.testing.assert_array_equal(got.ravel(), expected)
    same = resample.labels_from_probabilities(probabilities, (2, 1, 1))
    np.testing.assert_array_equal(same.ravel(), [1, 2])


def test_resampling_keeps_linear_ramps_and_the_range():
    x = np.arange(12, dtype=np.float32)
    ramp = (x[:, None, None] + 0 * x[None, :3, None] + 0 * x[None, None, :4])[..., None]
    finer = resample.resize_image(ramp, (24, 3, 4), (1.0, 1.0, 1.0))
    centres = (np.arange(24) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(finer[6:-6, 1, 1, 0], centres[6:-6], atol=0.02)
    thick = resample.resize_image(ramp, (24, 3, 4), (5.0, 1.0, 1.0))
    np.testing.assert_allclose(thick[1:-1, 1, 1, 0], centres[1:-1], atol=1e-5)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (9, 9, 9, 1)).astype(np.float32)
    cubic = resample.resize_image(image, (17, 17, 17), (1.0, 1.0, 1.0))
    assert image.min() <= cubic.min()
    assert cubic.max() <= image.max()


def test_intensities_are_clipped_first(make_task, write_set, volume_of, tmp_path):
    folder = write_set(tmp_path / "set", {"x": volume_of(0), "y": volume_of(1)})
    spacing = (2.0, 1.0, 0.0)
    stores = {}
    for change in ({}, {"clip": (0.0, 1.0)}):
        task = make_task(folder, spacing_mm=spacing, normalization="none", **change)
        prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
        stores[prepared.directory] = data.load_case(prepared, "x")
    plain, clipped = stores.values()
    assert plain.record.shape == (5, 9, 8)
    assert (clipped.image.min(), clipped.image.max()) == (0.0, 1.0)


def test_labels_that_tie_go_to_the_lower_one():
    label = np.array([0, 0, 1, 1], np.uint8)
    np.testing.assert_array_equal(resample.resize_labels(label, (2,)), [0, 1])
    np.testing.assert_array_equal(resample.resize_labels(np.array([0, 1], np.uint8), (1,)), [0])
    np.testing.assert_array_equal(resample.resize_labels(np.array([3, 5], np.uint8), (3,)), [3, 3, 5])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 4), (0, 0)])
def test_a_written_prediction_keeps_codes_units_and_shape(make_task, tmp_path, codes, suffix):
    affine = np.diag([-1.5, 1.5, 3.0, 1.0])
    affine[:3, 3] = (40, -20, 7)
    image = nifti(np.random.default_rng(0).integers(0, 900, (7, 6, 5)).astype(np.int16), affine, codes=codes)
    image.header.set_xyzt_units("mm", "sec")
    image.header["scl_slope"], image.header["scl_inter"] = 2.0, -1000.0
    image.header["cal_max"] = 77
    path = tmp_path / f"in{suffix}"
    nib.save(image, path)
    read = nib.load(path)
    prepared, geometry = data.read_image(path, task=make_task("unused"), ndim=3)
    labels = np.random.default_rng(1).integers(0, 3, prepared.shape[:-1])
    out = tmp_path / "out" / f"case{suffix}"
    data.write_prediction(labels, geometry, out)
    written = nib.load(out)
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]
    assert (written.shape, written.get_data_dtype()) == ((7, 6, 5), np.uint8)
    np.testing.assert_array_equal(written.affine, read.affine)
    for name in ("sform_code", "qform_code", "xyzt_units", "pixdim"):
        np.testing.assert_array_equal(written.header[name], read.header[name], err_msg=name)
    np.testing.assert_array_equal(np.asarray(nib.as_closest_canonical(written).dataobj), labels)
    assert np.asarray(written.dataobj).dtype == np.uint8


def test_many_classes_are_written_as_uint16(make_task, tmp_path):
    image = nifti(np.zeros((3, 3, 3), np.float32), np.eye(4))
    _, geometry = data.read_image(image, task=make_task("unused"), ndim=3)
    data.write_prediction(np.full((3, 3, 3), 300), geometry, tmp_path / "x.nii.gz")
    assert nib.load(tmp_path / "x.nii.gz").get_data_dtype() == np.uint16


@pytest.mark.parametrize("new", [(7, 5, 9), (23, 6, 4), (1, 6, 9), (11, 6, 9), (40, 2, 2)])
@pytest.mark.parametrize("depth", [1, 3, 20])
def test_slabs_resample_as_the_whole_volume_does(new, depth):
    volumes = np.random.default_rng(0).random((2, 11, 6, 9, 3)).astype(np.float32)
    parts = [volumes[:, start : start + depth] for start in range(0, 11, depth)]
    got = list(resample.resize_planes(iter(parts), (11, 6, 9), new))
    expected = np.stack([resample.resize_linear(volume, new) for volume in volumes])
    np.testing.assert_allclose(np.concatenate(got, axis=1), expected, atol=1e-6)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        shared = list(resample.resize_planes(iter(parts), (11, 6, 9), new, pool=pool))
    np.testing.assert_array_equal(np.concatenate(shared, axis=1), np.concatenate(got, axis=1))


def test_a_label_map_carries_the_values_of_dataset_json(make_task, tmp_path):
    image = nifti(np.zeros((2, 2, 1), np.float32), np.eye(4))
    _, geometry = data.read_image(image, task=make_task("unused"), ndim=3)
    classes = np.array([0, 1, 2, 1]).reshape(2, 2, 1)
    data.write_prediction(classes, geometry, tmp_path / "x.nii", label_values=(420, 8))
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "x.nii").dataobj).ravel(), [0, 420, 8, 420])
    probabilities = np.eye(3, dtype=np.float32)[classes]
    written = data.to_nifti(probabilities, geometry, label_values=(5, 8))
    np.testing.assert_array_equal(np.asarray(written.dataobj).ravel(), [0, 5, 8, 5])


def test_probabilities_of_regions_are_written_as_regions(make_task, tmp_path):
    """The whole (classes 1 and 2) and its core (class 2): neither, the whole alone, both, neither."""
    image = nifti(np.zeros((2, 2, 1), np.float32), np.eye(4))
    _, geometry = data.read_image(image, task=make_task("unused"), ndim=3)
    probabilities = np.array([[0.1, 0.2], [0.9, 0.3], [0.8, 0.7], [0.4, 0.3]], np.float32).reshape(2, 2, 1, 2)
    options = {"label_values": (420, 8), "regions": Regions(((1, 2), (2,)), (1, 2))}
    data.write_prediction(probabilities, geometry, tmp_path / "x.nii", **options)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "x.nii").dataobj).ravel(), [0, 420, 8, 0])
    with pytest.raises(ValueError, match="of a network of regions, pass `regions`"):
        data.write_prediction(probabilities, geometry, tmp_path / "y.nii", label_values=(420, 8))
    with pytest.raises(ValueError, match="2 regions were announced, and there are 3"):
        data.to_nifti(np.eye(3, dtype=np.float32)[np.zeros((2, 2, 1), int)], geometry, **options)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 1, 5), (1, 6, 5)])
def test_two_dimensional_images_come_back_in_their_own_shape(make_task, shape):
    array = np.arange(30, dtype=np.float32).reshape(shape)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    prepared, geometry = data.read_image(nifti(array, affine), task=make_task("u", normalization="none"), ndim=2)
    assert prepared.shape == (6, 5, 1)
    back = data.to_nifti(prepared[..., 0].astype(np.uint8), geometry)
    assert back.shape == shape
    np.testing.assert_array_equal(np.asarray(back.dataobj), array)


def test_an_image_to_predict_is_prepared_as_the_store_would(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set", affine=np.diag([-1.0, 2.0, -1.5, 1.0]), modality={"0": "CT"})
    for change in (
        {"normalization": "zscore", "spacing_mm": (1.3, 1.3, 1.3)},
        {"normalization": "auto", "spacing_mm": "median"},
        {"normalization": "percentile"},
        {"normalization": "none", "clip": (-0.5, 1.0), "spacing_mm": (0.9, 0.0, 1.6)},
    ):
        task = make_task(folder, **change)
        prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
        prepared = data.fit_intensity(prepared, ("case_0", "case_2"))
        image, geometry = data.read_image(
            folder / "imagesTr" / "case_1.nii.gz",
            task=task,
            ndim=3,
            spacing_mm=prepared.spacing_mm,
            normalization=prepared.normalization,
            windows=prepared.windows,
        )
        case = data.load_case(prepared, "case_1")
        np.testing.assert_array_equal(image, case.image)
        # And a label map on the training grid goes back to where the case's own label lies.
        probabilities = np.eye(3, dtype=np.float32)[case.label]
        slabs = (probabilities[None, start : start + 3] for start in range(0, len(probabilities), 3))
        own = np.concatenate(list(data.to_own_grid(slabs, case.record)), axis=1)[0].argmax(-1)
        stored = np.asarray(nib.load(folder / "labelsTr" / "case_1.nii.gz").dataobj)
        written = np.asarray(data.to_nifti(probabilities, geometry).dataobj)
        np.testing.assert_array_equal(
            np.asarray(nib.as_closest_canonical(nifti(written, geometry.affine)).dataobj), own
        )
        if "clip" in change:
            assert (image.min(), image.max()) == (-0.5, 1.0)
        if change.get("spacing_mm") in (None, "median"):
            np.testing.assert_array_equal(written, stored)


def test_unusable_images_to_predict_are_the_users_mistake(make_task, tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        data.read_image(tmp_path / "x.nii.gz", task=make_task("unused"), ndim=3)
    image = nifti(np.zeros((4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(UserError, match="several slices"):
        data.read_image(image, task=make_task("unused"), ndim=2)
    _, geometry = data.read_image(image, task=make_task("unused"), ndim=3)
    with pytest.raises(ValueError, match="neither on the prepared grid"):
        data.to_nifti(np.zeros((4, 4, 5), int), geometry)
    with pytest.raises(ValueError, match=r"ends in one of \.nii\.gz"):
        data.write_prediction(np.zeros((4, 4, 4), int), geometry, tmp_path / "x.mhd")


def test_grids_close_together_are_told_apart_from_grids_that_differ():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    moved = affine.copy()
    moved[0, 3] = 0.1
    assert volume.compare_grids((5, 5, 5), affine, (5, 5, 5), affine + 1e-6, "label") == ()
    assert "0.05 voxels" in volume.compare_grids((5, 5, 5), affine, (5, 5, 5), moved, "label")[0]
    moved[0, 3] = 0.5
    with pytest.raises(volume.BadCaseError, match=r"0\.25 voxels"):
        volume.compare_grids((5, 5, 5), affine, (5, 5, 5), moved, "label")


@given(
    changes=st.lists(st.tuples(st.integers(0, 355), st.sampled_from([0, 1, 7, 127, 128, 255])), min_size=1, max_size=6),
    length=st.integers(0, 600),
)
@example(changes=[(40, 0)], length=600)  # no axes
@example(changes=[(83, 127), (254, 0)], length=348)  # a voxel size that is no number, and no sform
@settings(max_examples=300, deadline=None)
def test_any_damage_to_a_file_is_read_or_refused(tmp_path_factory, changes, length):
    content = bytearray(nifti(np.ones((6, 5, 4), np.int16), np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes())
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.nii"
    path.write_bytes(content[:length] if length < 590 else content)
    with volume.quiet_nibabel():
        for read in (lambda: reading.read_channels((str(path),), 3), lambda: reading.read_label(str(path))):
            with contextlib.suppress(volume.BadCaseError):
                read()
