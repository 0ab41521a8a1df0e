"""launch.predict on images of every format: what is written is what the input is."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk  # noqa: N813

from launch import predict  # noqa: F401  (its flags)
from tests.commands import Command, make_command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys)


def test_predictions_have_the_format_and_the_grid_of_their_input(
    tiny_study: Path, command: Command, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (16, 16)).astype(np.uint8)  # rows, columns
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(voxels).save(tmp_path / "images" / "png.png")
    nib.save(nib.Nifti1Image(voxels.T, np.eye(4)), tmp_path / "images" / "nifti.nii")
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / "images" / "plane.nrrd"))
    slab = sitk.GetImageFromArray(voxels[None, ::-1, ::-1])  # whose axes point to the left and back in NIfTI's terms
    slab.SetSpacing((0.5, 2.0, 3.0))
    sitk.WriteImage(slab, str(tmp_path / "images" / "slab.mhd"))
    options = (f"--workdir={tiny_study}", "--arm=scratch", f"--input={tmp_path / 'images'}", "--ensemble")
    for _ in range(2):
        status, _, err = command(*options, f"--output={tmp_path / 'out'}", "--uncertainty")
        assert (status, "warning: png: the file gives no voxel size" in err) == (0, True)
    names = ["nifti.nii.gz", "plane.nrrd", "png.png", "slab.mha"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == names
    assert sorted(path.name for path in (tmp_path / "out" / "entropy").iterdir()) == [
        *("nifti.nii.gz", "plane.nrrd", "png.nii.gz", "slab.mha")
    ]
    expected = np.asarray(nib.load(tmp_path / "out" / "nifti.nii.gz").dataobj).T
    assert expected.any()
    with PIL.Image.open(tmp_path / "out" / "png.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)
    plane, back = (sitk.ReadImage(str(tmp_path / "out" / name)) for name in ("plane.nrrd", "slab.mha"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(plane), expected)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back)[0, ::-1, ::-1], expected)
    assert (plane.GetSpacing(), back.GetSpacing()) == (image.GetSpacing(), slab.GetSpacing())
    assert (back.GetOrigin(), back.GetDirection()) == (slab.GetOrigin(), slab.GetDirection())
