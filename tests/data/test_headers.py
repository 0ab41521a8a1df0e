"""Lengths are mm whatever the header's unit, a broken sform gives way to the qform, and axes that tie are shared."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.formats import references
from jaxseg.data.formats.files import reading
from jaxseg.data.volumes import headers
from jaxseg.types import UserError


def turned(degrees, spacing=(1.0, 1.0, 2.0)):
    """An affine turned in its first plane."""
    angle, out = np.radians(degrees), np.eye(4)
    out[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return out @ np.diag([*spacing, 1.0])


def rewrite(folder, change):
    """Change the header of every file of a set."""
    for path in sorted(folder.glob("*Tr/*")):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        image = nib.Nifti1Image(voxels, image.affine, image.header)
        change(image)
        nib.save(image, path)


def patch(folder, **fields):
    """Write header fields that nibabel would mend, into files that are compressed."""
    for path in sorted(folder.glob("*Tr/*")):
        content = bytearray(gzip.decompress(path.read_bytes()))
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        content[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(content)))


def prepare(make_task, folder, tmp_path, **more):
    return data.prepare_task(make_task(folder, **more), ndim=3, store_dir=tmp_path / "store")


def texts(prepared, case=""):
    return [text for name, text in prepared.report.warnings if name == case]


# ------------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(("unit", "length"), [("meter", 1e-3), ("mm", 1.0), ("micron", 1e3)])
def test_lengths_are_in_mm_whatever_the_unit_of_the_header(make_task, write_set, tmp_path, unit, length):
    spacing = (0.05, 0.05, 0.2)
    folder = write_set(tmp_path / "set", affine=np.diag([*(s * length for s in spacing), 1.0]))
    rewrite(folder, lambda image: image.header.set_xyzt_units(unit, "sec"))
    prepared = prepare(make_task, folder, tmp_path, spacing_mm="median")
    assert prepared.spacing_mm == pytest.approx(spacing, rel=1e-6)
    for record in prepared.cases:
        assert record.own_spacing_mm == pytest.approx(spacing, rel=1e-6)
        assert record.warnings == ()
    told = [text for text in texts(prepared) if "all cases (case_0, case_1, case_2 and 1 more)" in text]
    assert [("metres" in text, "micrometres" in text) for text in told] == {
        "meter": [(True, False)],
        "mm": [],
        "micron": [(True, True)],
    }[unit]


def test_a_prediction_keeps_the_unit_and_the_affine_of_its_input(make_task, tmp_path):
    affine = np.diag([-50.0, 50.0, 100.0, 1.0])
    image = nib.Nifti1Image(np.zeros((5, 4, 3), np.float32), affine)
    image.header.set_xyzt_units("micron", "sec")
    nib.save(image, tmp_path / "in.nii.gz")
    _, geometry = data.read_image(tmp_path / "in.nii.gz", task=make_task("unused"), ndim=3)
    assert geometry.own_spacing_mm == pytest.approx((0.05, 0.05, 0.1))
    data.write_prediction(np.ones((5, 4, 3), int), geometry, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.header.get_xyzt_units() == ("micron", "sec")
    np.testing.assert_array_equal(written.affine, affine)


def test_distances_of_label_maps_are_in_mm(tmp_path):
    for name, unit, size in (("a", "micron", 50.0), ("b", "mm", 0.05), ("c", "unknown", 0.05)):
        image = nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.diag([size, size, size, 1]))
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    maps = [references.read_label_map(tmp_path / f"{name}.nii.gz") for name in "abc"]
    assert {found.spacing_mm for found in maps} == {(0.05, 0.05, 0.05)}
    np.testing.assert_allclose(maps[0].affine, maps[1].affine, rtol=1e-6)


def test_a_missing_unit_is_said_once_for_the_task(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set")
    image = nib.load(folder / "imagesTr" / "case_1.nii.gz")
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header.set_xyzt_units("unknown")
    nib.save(image, folder / "imagesTr" / "case_1.nii.gz")
    prepared = prepare(make_task, folder, tmp_path)
    assert prepared.report.warnings == (
        ("", "1 of 4 cases (case_1): the header gives no unit of length; mm is assumed"),
    )
    assert prepare(make_task, folder, tmp_path, unit="voxel").report.warnings == ()


def test_a_unit_that_nifti_does_not_define_counts_as_none(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4))
    image.header["xyzt_units"] = 5
    assert headers.length_unit(image.header) == "unknown"
    assert "no unit of length" in headers.header_warnings(image.header)[0]


def test_image_and_label_in_different_units_do_not_lie_on_one_grid(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set", affine=np.diag([50.0, 50, 50, 1]))
    path = folder / "imagesTr" / "case_0.nii.gz"
    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header.set_xyzt_units("micron")
    nib.save(image, path)
    with pytest.raises(UserError, match=r"case_0: its label lies up to .* voxels away"):
        prepare(make_task, folder, tmp_path)


# ------------------------------------------------------------------------------------------------------------ affines


@pytest.mark.parametrize("rows", [np.zeros(4), np.full(4, np.nan)])
def test_an_sform_of_nothing_gives_way_to_a_good_qform(make_task, write_set, tmp_path, rows):
    affine = np.diag([-1.0, 1.2, 2.0, 1.0])
    folder = write_set(tmp_path / "set", affine=affine)
    sound = prepare(make_task, folder, tmp_path)
    patch(folder, srow_x=rows, srow_y=rows, srow_z=rows)
    prepared = prepare(make_task, folder, tmp_path)
    assert [record.own_spacing_mm for record in prepared.cases] == [(1.0, 1.2, 2.0)] * 4
    assert any("all cases" in text and "the qform is used" in text for text in texts(prepared))
    for name in ("case_0", "case_3"):
        assert any("the qform is used" in text for text in prepared.record(name).warnings)
        np.testing.assert_array_equal(data.load_case(prepared, name).label, data.load_case(sound, name).label)
    path = folder / "imagesTr" / "case_0.nii.gz"
    image, geometry = data.read_image(path, task=make_task("unused", normalization="none"), ndim=3)
    data.write_prediction(image[..., 0].astype(int), geometry, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (0, 1)


def test_voxel_sizes_that_pixdim_and_the_sform_give_differently_are_named(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set", affine=np.diag([1.0, 1.2, 2.0, 1.0]))
    patch(folder, pixdim=np.ones(8, np.float32), qform_code=0)
    prepared = prepare(make_task, folder, tmp_path)
    assert prepared.cases[0].own_spacing_mm == (1.0, 1.2, 2.0)
    (text,) = [text for text in texts(prepared) if "pixdim" in text and "label" not in text]
    assert "pixdim gives voxels of 1 x 1 x 1 and the sform 1 x 1.2 x 2" in text


def test_rounded_headers_are_not_in_doubt():
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.diag([0.7, 0.7, 1.3, 1]))
    image.header.set_xyzt_units("mm")
    image.header["pixdim"][1:4] = 0.70003, 0.7, 1.2999
    assert headers.header_warnings(image.header) == ()


def test_a_scaling_that_breaks_label_values_is_named(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set")
    patch(folder, scl_slope=0.97, scl_inter=0.0)
    with pytest.raises(UserError, match=r"case_0: .*not whole numbers.*scl_slope 0\.97"):
        prepare(make_task, folder, tmp_path)


def test_damage_behind_the_voxels_of_a_compressed_file_is_seen(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set")
    path = folder / "imagesTr" / "case_1.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # in the checksum of the stream
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"case_1: .*truncated or damaged.*CRC"):
        prepare(make_task, folder, tmp_path)


# --------------------------------------------------------------------------------------------------------------- axes


TIE_ENDS = np.degrees(np.arcsin(headers.TIED / np.sqrt(2)))
"""Distance from 45 degrees at which the closest direction is the closest again."""


@pytest.mark.parametrize("degrees", [45, 135, -45, 225, 45 - TIE_ENDS, 45 + TIE_ENDS])
@pytest.mark.parametrize("jitter", [1e-5, -1e-5])
def test_image_label_channels_and_prediction_share_axes_at_any_angle(
    make_task, write_set, volume_of, save_nifti, tmp_path, degrees, jitter
):
    image, label = volume_of(0)
    folder = write_set(
        tmp_path / "set", {"x": (image, label), "y": (image, label)}, affine=turned(degrees), listed=False
    )
    save_nifti(folder / "labelsTr" / "x.nii.gz", label, turned(degrees + jitter))
    prepared = prepare(make_task, folder, tmp_path, normalization="none")
    turned_case, straight_case = data.load_cases(prepared, ("x", "y"))
    np.testing.assert_array_equal(turned_case.label, straight_case.label)
    np.testing.assert_array_equal(turned_case.image, straight_case.image)
    geometry = data.case_geometries(str(folder), ndim=3, cache=tmp_path)(prepared.record("x"))
    data.write_prediction(turned_case.label, geometry, tmp_path / "predicted.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "predicted.nii.gz").dataobj), label)
    reference = references.read_label_map(folder / "labelsTr" / "x.nii.gz")
    predicted = references.read_label_map(tmp_path / "predicted.nii.gz", reference.affine)
    np.testing.assert_array_equal(predicted.values, reference.values)
    paths = [str(save_nifti(tmp_path / f"c{i}.nii.gz", image + i, turned(degrees + i * jitter))) for i in range(2)]
    voxels, _, _ = reading.read_channels(paths, 3)
    np.testing.assert_allclose(voxels[..., 1], voxels[..., 0] + 1, atol=1e-5)


def test_scans_around_45_degrees_get_one_orientation():
    found = [headers.closest_axes(turned(45 + jitter)).tolist() for jitter in (-1e-6, 0, 1e-6)]
    assert found == [[[0, 1], [1, 1], [2, 1]]] * 3


def test_axes_that_do_not_tie_are_those_of_nibabel():
    rng = np.random.default_rng(0)
    for _ in range(500):
        affine = np.eye(4)
        affine[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0] @ np.diag(rng.uniform(0.3, 4, 3))
        np.testing.assert_array_equal(headers.closest_axes(affine), nib.orientations.io_orientation(affine))
