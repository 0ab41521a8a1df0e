"""Everything that a folder says about its cases is heeded, or named where it is passed over."""

import json
import re
import unicodedata

import nibabel as nib
import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.formats import image_files, layouts
from jaxseg.types import UserError

NAMES = [f"case_{index}" for index in range(4)]


def describe(folder, *, drop=(), **fields):
    """Change fields of a set's dataset.json."""
    path = folder / "dataset.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    path.write_text(json.dumps(content | fields))


def names_of(listing):
    return [case.name for case in listing.cases]


def files_of(listing):
    return {case.name: [path.rsplit("/", 1)[1] for path in case.images] for case in listing.cases}


@pytest.fixture
def folder(write_set, tmp_path):
    """A Decathlon folder of four cases that lists none."""
    return write_set(tmp_path / "set", listed=False)


@pytest.fixture
def channel_folder(write_set, tmp_path, volume_of, save_nifti):
    """Writes an nnU-Net folder whose cases have these channel numbers."""

    def write(**numbers):
        folder = write_set(tmp_path / "set", listed=False, channel_names={"0": "T1", "1": "T2"})
        for path in folder.glob("*Tr/*"):
            path.unlink()
        for name, channels in numbers.items():
            save_nifti(folder / "labelsTr" / f"{name}.nii.gz", volume_of(0)[1])
            for channel in channels:
                save_nifti(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", volume_of(channel)[0])
        return folder

    return write


# ----------------------------------------------------------------------------------------------------------- channels


def test_channel_numbers_are_those_of_dataset_json(channel_folder):
    listing = layouts.read_folder(channel_folder(good=(0, 1), gap=(0, 2), high=(1, 2), few=(1,), many=(0, 1, 2)))
    assert names_of(listing) == ["good"]
    reasons = dict(listing.refused)
    assert "gap_0001 is missing: dataset.json names 2 channel(s), 0000, 0001" in reasons["gap"]
    assert "high_0000 is missing" in reasons["high"]
    assert "few_0000 is missing" in reasons["few"]
    assert "many_0002 is too many" in reasons["many"]


def test_one_channel_is_number_zero(channel_folder):
    folder = channel_folder(a=(0,), b=(1,))
    describe(folder, channel_names={"0": "T1"})
    listing = layouts.read_folder(folder)
    assert names_of(listing) == ["a"]
    assert "b_0000 is missing" in dict(listing.refused)["b"]


def test_numbers_that_dataset_json_counts_from_one_are_honoured(channel_folder):
    folder = channel_folder(a=(1, 2), b=(0, 1))
    describe(folder, channel_names={"1": "T1", "2": "T2"})
    listing = layouts.read_folder(folder)
    assert (listing.modality, files_of(listing)) == (("T1", "T2"), {"a": ["a_0001.nii.gz", "a_0002.nii.gz"]})
    assert "b_0002 is missing" in dict(listing.refused)["b"]


def test_an_image_beside_channel_files_of_its_name_is_ambiguous(channel_folder, save_nifti, volume_of):
    folder = channel_folder(a=(0, 1), b=(0, 1))
    save_nifti(folder / "imagesTr" / "a.nii.gz", volume_of(0)[0])
    listing = layouts.read_folder(folder)
    assert names_of(listing) == ["b"]
    assert "a.nii.gz, and channel files beside it, a_0000.nii.gz" in dict(listing.refused)["a"]


@pytest.mark.parametrize(
    ("found", "channels", "expected"),
    [
        (["x_0000", "y_0000"], 1, ["x", "y"]),
        (["nerve_0001", "nerve_0002", "nerve_0007"], 1, ["nerve_0001", "nerve_0002", "nerve_0007"]),
        (["left_0001", "left_0002", "right_0004"], 1, ["left_0001", "left_0002", "right_0004"]),
        (["x_0001"], 1, "x_0000 is missing: the network takes 1 channel"),
        (["x_0000", "x_0001", "y_0000", "y_0001"], 1, "x_0001 is too many"),
        (["x_0000", "x_0001"], 2, ["x"]),
        (["x_0000", "x_0001", "all"], 2, ["all", "x"]),
        (["x_0000", "x_0002"], 2, "x_0001 is missing"),
        (["x_0000", "x_0001", "x_0002"], 2, "x_0002 is too many"),
    ],
)
def test_channels_of_images_to_predict_are_those_of_the_network(tmp_path, save_nifti, found, channels, expected):
    for name in found:
        save_nifti(tmp_path / f"{name}.nii.gz", np.zeros((3, 3, 3), np.float32))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=re.escape(expected)):
            image_files.list_images(tmp_path, channels)
    else:
        assert [case.name for case in image_files.list_images(tmp_path, channels)] == expected
    # Label maps have no channels, so their names are those of their cases.
    assert [case.name for case in image_files.list_label_maps(tmp_path)] == sorted(found)


def test_two_files_for_one_image_to_predict_are_ambiguous(tmp_path, save_nifti):
    for suffix in (".nii", ".nii.gz"):
        save_nifti(tmp_path / f"x{suffix}", np.zeros((3, 3, 3), np.float32))
    with pytest.raises(UserError, match=r"two files claim one image: x\.nii, x\.nii\.gz"):
        image_files.list_images(tmp_path, 1)


# -------------------------------------------------------------------------------------------------------------- lists


def test_training_may_be_a_list_of_paths(folder):
    describe(folder, training=[f"./imagesTr/{name}.nii.gz" for name in NAMES[:3]], numTraining=3)
    listing = layouts.read_folder(folder)
    assert names_of(listing) == NAMES[:3]
    assert listing.refused == ()
    assert sum("passed over: case_3.nii.gz" in text for text in listing.warnings) == 2  # the image and its label


def test_channel_files_listed_one_by_one_are_one_case(channel_folder):
    folder = channel_folder(a=(0, 1), b=(0, 1))
    describe(folder, training=[f"imagesTr/{name}_{channel:04d}.nii.gz" for name in "ab" for channel in (0, 1)])
    assert files_of(layouts.read_folder(folder)) == {
        name: [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"] for name in "ab"
    }


@pytest.mark.parametrize("several", [True, False])
def test_an_entry_may_list_its_channel_files_or_the_first(channel_folder, several):
    folder = channel_folder(a=(0, 1), b=(0, 1), c=(0,))
    paths = {name: [f"imagesTr/{name}_{channel:04d}.nii.gz" for channel in (0, 1)] for name in "abc"}
    training = [
        {"image": paths[name] if several else paths[name][0], "label": f"labelsTr/{name}.nii.gz"} for name in "abc"
    ]
    describe(folder, training=training)
    listing = layouts.read_folder(folder)
    assert files_of(listing) == {name: [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"] for name in "ab"}
    assert re.search("c_0001.* (does not exist|is missing)", dict(listing.refused)["c"])


def test_channels_in_another_order_than_their_numbers_are_named(channel_folder):
    folder = channel_folder(a=(0, 1))
    images = ["imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz"]
    describe(folder, training=[{"image": images, "label": "labelsTr/a.nii.gz"}])
    listing = layouts.read_folder(folder)
    assert files_of(listing) == {"a": ["a_0001.nii.gz", "a_0000.nii.gz"]}
    assert any("in the order of the list: a_0001.nii.gz, a_0000.nii.gz" in text for text in listing.warnings)


def test_a_mapping_of_cases_to_files_is_honoured(folder):
    (folder / "labelsTr").rename(folder / "other")
    for path in (folder / "imagesTr").iterdir():
        path.rename(folder / "other" / path.name.replace("case", "scan"))
    (folder / "imagesTr").rmdir()
    describe(
        folder,
        dataset={f"c{i}": {"images": [f"other/scan_{i}.nii.gz"], "label": f"other/case_{i}.nii.gz"} for i in range(3)},
    )
    assert files_of(layouts.read_folder(folder)) == {f"c{i}": [f"scan_{i}.nii.gz"] for i in range(3)}
    describe(folder, training=["imagesTr/case_0.nii.gz"])
    with pytest.raises(UserError, match="under `dataset` and under `training`"):
        layouts.read_folder(folder)


def entries(indices, **more):
    return [{"image": f"imagesTr/case_{i}.nii.gz", "label": f"labelsTr/case_{i}.nii.gz", **more} for i in indices]


def test_a_validation_list_is_held_out(folder, make_task, tmp_path):
    describe(folder, training=entries([0, 1]), validation=entries([2, 3]))
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    split = data.split_cases(prepared, val_cases=0, test_cases=1, folds=1, fold=0, seed=0)
    assert (split.train, split.test) == (("case_0", "case_1"), ("case_2", "case_3"))


def test_fold_numbers_of_entries_are_folds(folder, make_task, tmp_path):
    describe(folder, training=[*entries([0], fold=1), *entries([1], fold=2), *entries([2], fold=2), *entries([3])])
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    tests = [
        data.split_cases(prepared, val_cases=0, test_cases=0, folds=2, fold=fold, seed=0).test for fold in range(2)
    ]
    assert tests == [("case_0",), ("case_1", "case_2")]
    assert any("the folds 1, 2 of dataset.json are folds 0 to 1 here" in text for _, text in prepared.report.warnings)


def test_two_lists_that_hold_out_different_cases_are_refused(folder):
    describe(folder, training=entries([0, 1]), validation=entries([2, 3]))
    (folder / "splits_final.json").write_text(json.dumps([{"train": NAMES[:2], "val": NAMES[2:]}]))
    assert layouts.read_folder(folder).splits == ((tuple(NAMES[:2]), tuple(NAMES[2:])),)
    (folder / "splits_final.json").write_text(json.dumps([{"train": NAMES[1:], "val": NAMES[:1]}]))
    with pytest.raises(UserError, match="hold out different cases"):
        layouts.read_folder(folder)


def test_cases_that_a_listed_fold_leaves_out_take_no_part(folder, make_task, tmp_path):
    (folder / "splits_final.json").write_text(json.dumps([{"train": NAMES[:2], "val": NAMES[2:3]}]))
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    split = data.split_cases(prepared, val_cases=0, test_cases=0, folds=1, fold=0, seed=0)
    assert (split.train, split.test) == (("case_0", "case_1"), ("case_2",))
    assert any("leaves out case_3" in text for _, text in prepared.report.warnings)


@pytest.mark.parametrize("count", [3, "5", 4.5, None, True])
def test_another_number_of_cases_than_dataset_json_says_is_named(folder, count):
    describe(folder, numTraining=count)
    told = [text for text in layouts.read_folder(folder).warnings if "numTraining" in text]
    assert len(told) == (count is not None)
    describe(folder, numTraining=4)
    assert not [text for text in layouts.read_folder(folder).warnings if "numTraining" in text]


def test_lists_that_are_not_used_are_named(folder):
    describe(folder, training=[], testing=entries([0, 1]), test=["imagesTs/x.nii.gz"])
    listing = layouts.read_folder(folder)
    assert names_of(listing) == NAMES
    assert any("`training` of dataset.json is empty" in text for text in listing.warnings)
    assert [text for text in listing.warnings if "test" in text] == [
        "`testing` of dataset.json lists 2 case(s) with labels, which are not used"
    ]


# -------------------------------------------------------------------------------------------------------------- files


def in_both(folder, change):
    for part in ("imagesTr", "labelsTr"):
        change(folder / part)


def test_endings_in_capitals_and_pairs_are_read(folder, make_task, tmp_path):
    plain = data.prepare_task(make_task(folder, normalization="none"), ndim=3, store_dir=tmp_path / "store")

    def change(part):
        (part / "case_0.nii.gz").rename(part / "case_0.NII.GZ")
        image = nib.load(part / "case_1.nii.gz")
        nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine, image.header), part / "case_1.img")
        if part.name == "labelsTr":
            (part / "case_1.img").rename(part / "case_1.IMG")
        (part / "case_1.nii.gz").unlink()
        (part / "case_2.nii.gz").rename(part / "case_2.Nii.Gz")

    in_both(folder, change)
    task = make_task(folder, normalization="none")
    prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    assert [record.name for record in prepared.cases] == NAMES
    assert not [text for _, text in prepared.report.warnings if "passed over" in text]
    for before, after in zip(data.load_cases(plain, NAMES), data.load_cases(prepared, NAMES), strict=True):
        np.testing.assert_array_equal(after.image, before.image)
        np.testing.assert_array_equal(after.label, before.label)
    path = folder / "imagesTr" / "case_1.img"
    _, geometry = data.read_image(path, task=task, ndim=3)
    data.write_prediction(data.load_case(prepared, "case_1").label, geometry, tmp_path / "out.nii.gz")
    assert isinstance(nib.load(tmp_path / "out.nii.gz"), nib.Nifti1Image)
    (case, *_) = [case for case in image_files.list_images(folder / "imagesTr", 1) if case.name == "case_1"]
    assert case.images == (str(path),)
    # The header lies in another file, and what the preparation depends on includes it.
    header = bytearray(path.with_suffix(".hdr").read_bytes())
    header[148:152] = b"text"
    path.with_suffix(".hdr").write_bytes(header)
    again = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    assert again.directory != prepared.directory
    path.with_suffix(".hdr").unlink()
    with pytest.raises(UserError, match=r"case_1: .*has no \.hdr file beside it"):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")


def test_cases_that_cannot_be_read_are_refused_by_name(folder):
    def change(part):
        (part / "case_0.nii.gz").rename(part / "case_0.mgz")
        (part / "case_1.nii.gz").rename(part / "case_1.dcm")
        (part / "sub-01").mkdir()
        (part / "case_2.nii.gz").rename(part / "sub-01" / "case_2.nii.gz")

    in_both(folder, change)
    listing = layouts.read_folder(folder)
    assert names_of(listing) == ["case_3"]
    reasons = dict(listing.refused)
    assert sorted(reasons) == ["case_0", "case_1", "sub-01/"]
    assert "imagesTr/case_0.mgz is in no format that is read" in reasons["case_0"]
    assert "imagesTr/case_1.dcm is a DICOM file; DICOM is not read: convert each" in reasons["case_1"]
    assert "imagesTr/sub-01/ is a folder (1 file(s), such as imagesTr/sub-01/case_2.nii.gz)" in reasons["sub-01/"]
    assert len(image_files.unread(folder / "imagesTr")) == 3
    assert len(image_files.unread(folder / "imagesTr", folders=False)) == 2


def test_a_missing_file_that_is_there_in_another_format_is_named_so(folder):
    (folder / "imagesTr" / "case_0.nii.gz").rename(folder / "imagesTr" / "case_0.mgz")
    (folder / "labelsTr" / "case_1.nii.gz").rename(folder / "labelsTr" / "case_1.mnc")
    reasons = dict(layouts.read_folder(folder).refused)
    assert "does not exist; imagesTr/case_0.mgz is in no format" in reasons["case_0"]
    assert "does not exist; labelsTr/case_1.mnc is in no format" in reasons["case_1"]


def test_other_files_are_named_and_stop_nothing(folder):
    for name in ("notes.txt", "case_0.json", "case_1.nrrd", ".hidden", "._case_2.nii.gz"):
        (folder / "imagesTr" / name).write_bytes(b"x")
    (folder / "imagesTr" / "empty").mkdir()
    listing = layouts.read_folder(folder)
    assert (names_of(listing), listing.refused) == (NAMES, ())
    assert listing.warnings == (
        "3 file(s) or folder(s) in imagesTr/ are passed over: case_0.json, case_1.nrrd, notes.txt",
    )


def test_images_in_other_folders_are_named(folder):
    for part in ("imagesTs", "labelsTs"):
        (folder / part).mkdir()
        (folder / part / "test_1.nii.gz").write_bytes(b"x")
    (folder / "stray.nii.gz").write_bytes(b"x")
    (folder / "notes").mkdir()
    assert layouts.read_folder(folder).warnings == (
        "1 image(s) in labelsTs/ are not used: test_1.nii.gz",
        "1 image(s) beside dataset.json are not used: stray.nii.gz",
    )


def test_what_is_passed_over_is_told_although_the_store_is_there(folder, make_task, tmp_path):
    task = make_task(folder)
    first = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    (folder / "labelsTr" / "readme").write_bytes(b"x")
    second = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    assert second.directory == first.directory
    assert any("passed over: readme" in text for _, text in second.report.warnings)


def test_an_accent_coded_in_two_ways_is_one_name(folder, make_task, tmp_path):
    composed = "M\u00fcller"
    apart = unicodedata.normalize("NFD", composed)
    in_both(folder, lambda part: (part / "case_0.nii.gz").rename(part / f"{apart}.nii.gz"))
    training = entries([1, 2, 3])
    training += [{"image": f"imagesTr/{composed}.nii.gz", "label": f"labelsTr/{composed}.nii.gz"}]
    describe(folder, training=training, groups={apart: "p1", "case_1": "p1", "case_2": "p2", "case_3": "p3"})
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    assert prepared.record(composed).group == "p1"
    assert apart.encode() != composed.encode()


def test_a_label_that_no_case_has_is_named(make_task, write_set, tmp_path):
    prepared = data.prepare_task(
        make_task(write_set(tmp_path / "set", labels=("a", "b", "rare"))), ndim=3, store_dir=tmp_path / "store"
    )
    told = [text for case, text in prepared.report.warnings if "no case holds" in text]
    assert len(told) == 1
    assert "the label 'rare'" in told[0]


def test_a_label_that_no_training_or_test_case_has_is_named(make_task, write_set, tmp_path, volume_of):
    volumes = {name: volume_of(0, classes=3 if name == "case_0" else 2) for name in NAMES}
    prepared = data.prepare_task(make_task(write_set(tmp_path / "set", volumes)), ndim=3, store_dir=tmp_path / "store")
    parts = [data.Split(("case_1",), (), ("case_0",)), data.Split(("case_0", "case_1"), (), ("case_2",))]
    told = [text for _, text in data.with_split_warnings(prepared, parts).report.warnings]
    assert told == [
        "the label 'b': in fold 0 no training case holds it: it is not learned",
        "the label 'b': in fold 1 no test case holds it",
    ]
    assert data.with_split_warnings(prepared, parts[:1]).report.warnings[0][1].startswith("the label 'b': no training")
