"""NRRD and MetaImage files, held against SimpleITK on the same voxels."""

import itertools
import sys

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from jaxseg import data
from jaxseg.data import digests
from jaxseg.data.formats.files import reading, table, writing
from jaxseg.data.volumes.volume import BadCaseError
from jaxseg.types import UserError

ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
TURNED = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
"""A rotation by angles that are no multiples of 45 degrees."""
DIRECTIONS = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "oblique": TURNED,
    "oblique and flipped": TURNED @ np.diag([1.0, -1.0, 1.0]),
}
NATIVE = {"normalization": "none"}


def image_of(shape=(5, 4, 3), direction=DIRECTIONS["oblique and flipped"], kind=np.int16, channels=0):
    """An image with a voxel of its own value everywhere; `shape` is x, y, z."""
    size = (*shape[::-1], channels) if channels else shape[::-1]
    image = sitk.GetImageFromArray(np.arange(np.prod(size)).reshape(size).astype(kind), isVector=bool(channels))
    image.SetSpacing((0.7, 1.3, 2.9)[: len(shape)])
    image.SetOrigin((-31.25, 17.1, 1 / 3)[: len(shape)])
    image.SetDirection(direction[: len(shape), : len(shape)].ravel().tolist())
    return image


def save(image, path, *, packed=True):
    sitk.WriteImage(image, str(path), packed)
    return path


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_label_map_comes_back_on_the_grid_that_simpleitk_sees(make_task, tmp_path, ending, direction):
    image = image_of(direction=DIRECTIONS[direction])
    path = save(image, tmp_path / f"a{ending}")
    voxels, geometry = data.read_image(path, task=make_task("unused", **NATIVE), ndim=3)
    affine = geometry.canonical_affine()
    assert (np.linalg.inv(affine)[:3, :3].argmax(1) == np.arange(3)).all()  # closest to right, anterior, superior
    for index in itertools.product(*map(range, image.GetSize())):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        place = np.linalg.solve(affine, [-x, -y, z, 1.0])[:3]
        np.testing.assert_allclose(place, np.rint(place), atol=1e-9)
        assert voxels[(*np.rint(place).astype(int), 0)] == image.GetPixel(index)
    out = tmp_path / f"out{table.prediction_ending(str(path))}"
    data.write_prediction(voxels[..., 0].astype(np.int32), geometry, out)
    back = sitk.ReadImage(str(out))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
    assert back.GetPixelID() == sitk.sitkUInt8
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(back, what)(), getattr(image, what)(), rtol=0, atol=1e-12)


def test_label_values_above_255_and_fractions_are_written_in_types_that_hold_them(make_task, tmp_path):
    path = save(image_of(), tmp_path / "a.mha")
    voxels, geometry = data.read_image(path, task=make_task("unused", **NATIVE), ndim=3)
    classes = (voxels[..., 0] > 20).astype(np.int32)
    data.write_prediction(classes, geometry, tmp_path / "l.mha", label_values=[300])
    data.write_map(voxels[..., 0] / 7, geometry, tmp_path / "m.nrrd")
    label, fractions = (sitk.ReadImage(str(tmp_path / name)) for name in ("l.mha", "m.nrrd"))
    assert (label.GetPixelIDTypeAsString(), fractions.GetPixelIDTypeAsString()) == (
        "16-bit unsigned integer",
        "32-bit float",
    )
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), 300 * (stored > 20))
    np.testing.assert_allclose(sitk.GetArrayFromImage(fractions), stored / 7, rtol=1e-6)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_vectors_and_a_fourth_axis_are_channels(make_task, tmp_path, ending):
    task = make_task("unused", **NATIVE)
    vectors = save(image_of(channels=3), tmp_path / f"v{ending}")
    parts = [save(sitk.VectorIndexSelectionCast(image_of(channels=3), c), tmp_path / f"{c}.mha") for c in range(3)]
    expected, _ = data.read_image(parts, task=task, ndim=3)
    voxels, geometry = data.read_image(vectors, task=task, ndim=3)
    np.testing.assert_array_equal(voxels, expected)
    assert (*sorted(expected.shape[:3]), expected.shape[3]) == (3, 4, 5, 3)
    series = sitk.JoinSeries([sitk.ReadImage(str(part)) for part in parts])
    voxels, _ = data.read_image(save(series, tmp_path / f"s{ending}"), task=task, ndim=3)
    np.testing.assert_array_equal(voxels, expected)
    data.write_prediction(expected[..., 0].astype(int) // 3, geometry, tmp_path / f"out{ending}")
    back = sitk.ReadImage(str(tmp_path / f"out{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), np.arange(60).reshape(3, 4, 5))


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_an_image_of_two_axes_is_a_picture_and_stays_one(make_task, tmp_path, ending, channels):
    path = save(image_of((5, 4), np.eye(3), np.uint8, channels), tmp_path / f"a{ending}")
    voxels, geometry = data.read_image(path, task=make_task("unused", **NATIVE), ndim=2)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).reshape(4, 5, -1)
    np.testing.assert_array_equal(voxels, stored.transpose(1, 0, 2))
    assert geometry.own_spacing_mm == (0.7, 1.3)
    data.write_prediction(voxels[..., 0].astype(int), geometry, tmp_path / f"out{ending}")
    back = sitk.ReadImage(str(tmp_path / f"out{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), stored[..., 0])
    assert (back.GetSpacing(), back.GetOrigin()) == ((0.7, 1.3), (-31.25, 17.1))


def test_the_same_voxels_have_one_digest_in_every_format(tmp_path):
    image = image_of()
    paths = [save(image, tmp_path / f"a{ending}") for ending in (*ENDINGS, ".nii.gz")]
    arrays = [reading.read_channels([str(path)], 3)[0] for path in paths]
    assert len({digests.of_array(array) for array in arrays}) == 1
    assert [part.rpartition(".")[2] for part in table.with_parts(list(map(str, paths)))] == [
        *("nrrd", "nhdr", "gz", "mha", "mhd", "zraw", "gz")
    ]


@pytest.mark.parametrize("ending", [*ENDINGS, ".seg.nrrd"])
def test_endings_in_capitals_are_read_too(tmp_path, ending):
    path = save(image_of(), tmp_path / f"a{ending}")
    before, _, _ = reading.read_label(str(path))
    other = path.rename(tmp_path / f"B{ending.upper()}")
    np.testing.assert_array_equal(reading.read_label(str(other))[0], before)
    assert table.strip_extension(other.name) == "B"


def test_only_own_files_are_replaced(make_task, tmp_path):
    for ending in (".nrrd", ".mha"):
        path = save(image_of(), tmp_path / f"a{ending}")
        voxels, geometry = data.read_image(path, task=make_task("unused", **NATIVE), ndim=3)
        out = tmp_path / f"out{ending}"
        for shift in (0, 1):
            data.write_prediction(voxels[..., 0].astype(int) + shift, geometry, out)
        assert writing.is_own(out)
        assert not writing.is_own(path)
        changed = sitk.ReadImage(str(out))
        changed[0, 0, 0] = 99
        sitk.WriteImage(changed, str(out), True)
        with pytest.raises(UserError, match="has been changed since"):
            data.write_prediction(voxels[..., 0].astype(int), geometry, out)


def cut(path, keep=-7):
    path.write_bytes(path.read_bytes()[:keep])


def flip(path, at=-12):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x41
    path.write_bytes(content)


def replaced(old, new):
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


DAMAGES = {
    "cut": (True, cut, "truncated|damaged"),
    "cut, not compressed": (False, cut, "truncated"),
    "a byte changed": (True, flip, "damaged"),
    "no header": (True, lambda path: path.write_bytes(b"nothing"), "not a readable|does not begin"),
    "empty": (True, lambda path: path.write_bytes(b""), "is empty"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_damaged_files_are_refused_by_name(tmp_path, ending, damage):
    packed, change, reason = DAMAGES[damage]
    path = save(image_of((9, 8, 7)), tmp_path / f"a{ending}", packed=packed)
    change(path)
    for read in (lambda: reading.read_channels([str(path)], 3), lambda: reading.read_label(str(path))):
        with pytest.raises(BadCaseError, match=f"a{ending}.*({reason})") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_too_short_for_their_headers_are_refused_before_they_are_read(tmp_path, ending):
    path = save(image_of((9, 8, 7)), tmp_path / f"a{ending}", packed=False)
    cut(next((part for part in tmp_path.iterdir() if part != path), path))
    with pytest.raises(BadCaseError, match=f"a{ending} is truncated or .* claims 1,008 bytes of voxels and 1,001 are"):
        reading.open_image(str(path))


def test_parts_that_are_missing_or_damaged_are_named(tmp_path):
    for header, part in (("a.nhdr", "a.raw.gz"), ("a.mhd", "a.zraw")):
        path = save(image_of((9, 8, 7)), tmp_path / header)
        flip(tmp_path / part)
        with pytest.raises(BadCaseError, match=f"{part} is damaged"):
            reading.read_channels([str(path)], 3)
        (tmp_path / part).unlink()
        with pytest.raises(BadCaseError, match=f"{header} names {part}.*does not exist"):
            reading.read_channels([str(path)], 3)


def test_what_is_no_image_of_numbers_is_refused(tmp_path):
    complex_image = sitk.GetImageFromArray(np.ones((3, 4, 5), np.complex64))
    with pytest.raises(BadCaseError, match="complex of 32-bit float voxels"):
        reading.open_image(str(save(complex_image, tmp_path / "c.nrrd")))
    many = sitk.GetImageFromArray(np.ones((2, 2, 3, 4, 5), np.float32), isVector=False)
    with pytest.raises(BadCaseError, match="has 5 axes"):
        reading.open_image(str(save(many, tmp_path / "m.nrrd")))
    path = save(image_of(), tmp_path / "s.mha", packed=False)
    replaced(b"ElementSpacing = 0.69999999999999996", b"ElementSpacing = 0.00000000000000000")(path)
    with pytest.raises(BadCaseError, match=r"s\.mha"):
        reading.open_image(str(path))
    label = sitk.GetImageFromArray(np.full((3, 4, 5), 0.5, np.float32))
    with pytest.raises(BadCaseError, match=r"not whole numbers, such as 0\.5"):
        reading.read_label(str(save(label, tmp_path / "l.nrrd")))
    with pytest.raises(BadCaseError, match="three axes"):
        reading.read_label(str(save(image_of(channels=2), tmp_path / "v.nrrd")))


def test_a_file_with_the_ending_of_another_format_is_named(tmp_path):
    path = save(image_of(), tmp_path / "a.nrrd")
    path.rename(tmp_path / "a.mha")
    with pytest.raises(BadCaseError, match=r"a\.mha is not a readable MetaImage file: it holds NRRD; give it .*\.nrrd"):
        reading.open_image(str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").rename(tmp_path / "a.nii.gz")
    with pytest.raises(BadCaseError, match=r"a\.nii\.gz is not a readable NIfTI file: it holds NRRD"):
        reading.open_image(str(tmp_path / "a.nii.gz"))


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    path = save(image_of(), tmp_path / "a.nrrd")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(BadCaseError, match=r"a\.nrrd needs SimpleITK .*pip install 'jaxseg\[formats\]'"):
        reading.open_image(str(path))
