"""Folders of images in other formats than NIfTI, in every layout that is recognised."""

import json
import shutil
import types

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk  # noqa: N813

from jaxseg import data
from jaxseg.data.formats import image_files, layouts, sources
from jaxseg.study import outputs
from jaxseg.study.score import scoring
from jaxseg.types import RunKey, UserError
from tests.image_sets import make_volume, write_set

NAMES = [f"case_{index}" for index in range(4)]
TURNED = np.array([[0.96, -0.28, 0.0, 5.0], [-0.28, -0.96, 0.0, 7.0], [0.0, 0.0, -2.0, 9.0], [0.0, 0.0, 0.0, 1.0]])


def to_itk(path, ending, packed=True):
    """Convert a NIfTI file by SimpleITK's own reader."""
    image = sitk.ReadImage(str(path))
    path.unlink()
    sitk.WriteImage(image, str(path).replace(".nii.gz", ending), packed)


def to_png(path, ending):
    """Convert a NIfTI file of one slice to a picture of columns and rows."""
    voxels = np.asanyarray(nib.load(path).dataobj)[:, :, 0]
    path.unlink()
    PIL.Image.fromarray(voxels.T).save(str(path).replace(".nii.gz", ending))


def converted(folder, copy, convert, ending, **fields):
    """A copy of a folder whose images have another format."""
    shutil.copytree(folder, copy)
    for part in ("imagesTr", "labelsTr"):
        for path in (copy / part).iterdir():
            convert(path, ending)
    where = copy / "dataset.json"
    where.write_text(where.read_text().replace(".nii.gz", ending))
    describe(copy, **fields)
    return copy


def describe(folder, **fields):
    where = folder / "dataset.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | fields))


def flat(seed):
    image, label = make_volume(seed, (12, 10, 1))
    return (image * 20 + 100).clip(0, 255).astype(np.uint8), label


@pytest.fixture
def volumes(tmp_path):
    return write_set(tmp_path / "volumes", affine=TURNED)


@pytest.fixture
def pictures(tmp_path):
    return write_set(tmp_path / "pictures", {name: flat(index) for index, name in enumerate(NAMES)})


def pictures_in(folder, *names, array=None):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6) if array is None else array).save(path)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_a_folder_of_volumes_is_prepared_as_the_same_in_nifti(volumes, make_task, tmp_path, ending):
    copy = converted(volumes, tmp_path / "copy", to_itk, ending, file_ending=ending)
    both = [data.prepare_task(make_task(f), ndim=3, store_dir=tmp_path / f.name / "store") for f in (volumes, copy)]
    assert [case.name for case in both[1].cases] == NAMES
    for before, after in zip(both[0].cases, both[1].cases, strict=True):
        assert before.voxels_sha256 == after.voxels_sha256
        assert before.image_sha256 != after.image_sha256
        np.testing.assert_allclose(before.own_spacing_mm, after.own_spacing_mm, rtol=1e-6)
    for before, after in zip(*(data.load_cases(one, NAMES) for one in both), strict=True):
        np.testing.assert_array_equal(before.image, after.image)
        np.testing.assert_array_equal(before.reference, after.reference)
    assert not [text for _, text in both[1].report.warnings if "passed over" in text]


def test_a_changed_file_of_voxels_beside_its_header_is_new_data(volumes, make_task, tmp_path):
    copy = converted(volumes, tmp_path / "copy", lambda *args: to_itk(*args, packed=False), ".mhd")
    first = data.prepare_task(make_task(copy), ndim=3, store_dir=tmp_path / "store")
    shutil.copy(copy / "imagesTr" / "case_2.raw", copy / "imagesTr" / "case_1.raw")
    second = data.prepare_task(make_task(copy), ndim=3, store_dir=tmp_path / "store")
    assert second.directory != first.directory
    assert second.cases[1].voxels_sha256 == second.cases[2].voxels_sha256 == first.cases[2].voxels_sha256


def test_a_folder_of_pictures_is_prepared_as_the_same_in_nifti(pictures, make_task, tmp_path):
    copy = converted(pictures, tmp_path / "copy", to_png, ".png", training=None)
    both = [data.prepare_task(make_task(f), ndim=2, store_dir=tmp_path / f.name / "store") for f in (pictures, copy)]
    for before, after in zip(both[0].cases, both[1].cases, strict=True):
        assert (before.name, before.voxels_sha256) == (after.name, after.voxels_sha256)
    for before, after in zip(*(data.load_cases(one, NAMES) for one in both), strict=True):
        np.testing.assert_array_equal(before.image, after.image)
        np.testing.assert_array_equal(before.label, after.label)
    (warning,) = [text for _, text in both[1].report.warnings]
    assert "all cases" in warning
    assert "the file gives no voxel size; 1 mm is assumed" in warning
    voxel = data.prepare_task(make_task(copy, unit="voxel"), ndim=2, store_dir=tmp_path / "store")
    assert voxel.report.warnings == ()


def test_colours_of_nnunet_lie_in_the_file_of_the_first_channel(make_task, tmp_path):
    folder = write_set(tmp_path / "set", {"unused": flat(0)}, listed=False)
    shutil.rmtree(folder / "imagesTr")
    shutil.rmtree(folder / "labelsTr")
    rng = np.random.default_rng(0)
    colours = {name: rng.integers(0, 255, (5, 6, 3)).astype(np.uint8) for name in ("a", "b")}
    for name, array in colours.items():
        pictures_in(folder / "imagesTr", f"{name}_0000.png", array=array)
        pictures_in(folder / "labelsTr", f"{name}.png", array=(array[..., 0] > 100).astype(np.uint8))
    channels = {str(index): name for index, name in enumerate("RGB")}
    describe(folder, channel_names=channels, file_ending=".png", overwrite_image_reader_writer="NaturalImage2DIO")
    prepared = data.prepare_task(make_task(folder, normalization="none"), ndim=2, store_dir=tmp_path / "store")
    assert [(case.name, case.own_shape) for case in prepared.cases] == [("a", (6, 5)), ("b", (6, 5))]
    np.testing.assert_array_equal(data.load_case(prepared, "a").image, colours["a"].transpose(1, 0, 2))
    found = image_files.find_images(folder / "imagesTr", 3)
    assert ([case.name for case in found.cases], found.refused) == (["a", "b"], ())
    (folder / "imagesTr" / "a_0000.png").unlink()
    pictures_in(folder / "imagesTr", "a_0000.png")
    assert "a_0001, a_0002 are missing" in dict(layouts.read_folder(folder).refused)["a"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"file_ending": ".jpg"}, r"`file_ending` is '.jpg', which is not read. Allowed are .nii.gz, .nii, "),
        (
            {"overwrite_image_reader_writer": "ZarrIO"},
            "`overwrite_image_reader_writer` is 'ZarrIO', which is not known. Allowed are SimpleITKIO, ",
        ),
        ({"overwrite_image_reader_writer": ["SimpleITKIO"]}, "is ['SimpleITKIO'], which is not known"),
        (
            {"overwrite_image_reader_writer": "NaturalImage2DIO", "file_ending": ".nii.gz"},
            "does not read the `file_ending` '.nii.gz'; NIfTI files are read by SimpleITKIO, ",
        ),
    ],
)
def test_formats_of_nnunet_that_are_not_read_are_named(volumes, fields, message):
    describe(volumes, **fields)
    with pytest.raises(UserError) as caught:
        layouts.read_folder(volumes)
    assert message in str(caught.value)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient", None])
def test_formats_of_nnunet_that_are_read_change_nothing(volumes, reader):
    before = layouts.read_folder(volumes)
    describe(volumes, overwrite_image_reader_writer=reader, file_ending=".nii.gz")
    assert layouts.read_folder(volumes) == before


def test_of_one_name_in_two_formats_that_of_the_folder_counts(volumes):
    describe(volumes, training=None)
    pictures_in(volumes / "imagesTr", "case_1.png", "case_2.png")
    listing = layouts.read_folder(volumes)
    assert [case.images[0].rpartition("/")[2] for case in listing.cases] == [f"{name}.nii.gz" for name in NAMES]
    assert "2 file(s) or folder(s) in imagesTr/ are passed over: case_1.png, case_2.png" in listing.warnings
    (text, _) = image_files.unread(volumes / "imagesTr")
    assert "case_1.png is not read, because most files of the folder have another format" in text
    describe(volumes, file_ending=".png")
    images = {case.name: case.images[0].rpartition(".")[2] for case in layouts.read_folder(volumes).cases}
    assert images == {"case_0": "gz", "case_1": "png", "case_2": "png", "case_3": "gz"}


def dicom(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + bytes(100))
    return path


def test_dicom_is_named_with_what_converts_it(volumes, tmp_path, make_task):
    hint = "dcm2niix or dicom2nifti"
    for place in ("flat/IM0001", "flat/1.2.840.113", "series/case_1/slice.dcm"):
        dicom(tmp_path / place)
    for folder in ("flat", "series"):
        with pytest.raises(UserError, match=f"has no dataset.json.*{hint}"):
            layouts.read_folder(tmp_path / folder)
        with pytest.raises(UserError, match=f"holds no image.*{hint}"):
            image_files.find_images(tmp_path / folder, 1)
    describe(volumes, training=None)
    for name in ("case_0", "case_1"):
        (volumes / "imagesTr" / f"{name}.nii.gz").unlink()
    dicom(volumes / "imagesTr" / "case_0")
    dicom(volumes / "imagesTr" / "case_1" / "IM1")
    reasons = dict(layouts.read_folder(volumes).refused)
    assert "case_0 is a DICOM file" in reasons["case_0"]
    assert hint in reasons["case_0"]
    assert any(
        "is a folder (1 file(s), such as imagesTr/case_1/IM1)" in text and hint in text for text in reasons.values()
    )
    (case,) = image_files.find_images(dicom(tmp_path / "one.dcm"), 1).cases
    with pytest.raises(UserError, match=rf"one\.dcm is a DICOM file.*{hint}"):
        data.read_image(case.images[0], task=make_task("unused"), ndim=3)


def test_a_study_saves_its_predictions_in_the_format_of_the_images(pictures, make_task, tmp_path):
    copy = converted(pictures, tmp_path / "copy", to_png, ".png")
    task = make_task(copy)
    prepared = data.prepare_task(task, ndim=2, store_dir=tmp_path / "store")
    cases = scoring.CaseSet(scoring.INTERNAL, task, (prepared,), (("case_1",),))
    job = types.SimpleNamespace(program=types.SimpleNamespace(fold=None))
    save = scoring.make_save(types.SimpleNamespace(), tmp_path / "work", cases, job)
    key = RunKey(arm="scratch", train_cases=0, fold=0, seed=7)
    save(prepared.cases[1])(types.SimpleNamespace(key=key), data.load_case(prepared, "case_1").reference)
    (path,) = (tmp_path / "work").rglob("*.*")
    assert path.parts[-2:] == ("seed_7", "case_1.png")
    with PIL.Image.open(path) as saved, PIL.Image.open(copy / "labelsTr" / "case_1.png") as label:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(label))


def test_predictions_are_named_by_the_format_of_their_input(tmp_path):
    endings = {".nii": ".nii.gz", ".NRRD": ".nrrd", ".nhdr": ".nrrd", ".mhd": ".mha", ".tiff": ".tif", ".png": ".png"}
    for index, ending in enumerate(endings):
        (tmp_path / f"x{index}{ending}").write_bytes(b"")
    cases = image_files.find_images(tmp_path, 1).cases
    planned = outputs.plan(cases, tmp_path / "out", seeds=(0,), ensemble=False, uncertainty=True)
    for index, ending in enumerate(endings.values()):
        files = {key: path.name for key, path in planned[f"x{index}"].items()}
        fractions = ".nii.gz" if ending == ".png" else ending
        assert files == {"seed_0": f"x{index}{ending}", "entropy": f"x{index}{fractions}"}


def test_pictures_without_labels_are_a_source_as_volumes_are(tmp_path):
    pictures_in(tmp_path / "set", "a.png", "b.png")
    listing = layouts.read_unlabelled(tmp_path / "set")
    assert ([case.name for case in listing.cases], listing.modality) == (["a", "b"], ("image",))
    raw = sources.open_source(str(tmp_path / "set"), ndim=2, cache=tmp_path, labelled=False).read(listing.cases[0])
    np.testing.assert_array_equal(raw.image[..., 0], np.arange(30).reshape(5, 6).T)
    assert not raw.label.any()
