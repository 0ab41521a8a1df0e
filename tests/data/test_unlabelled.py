"""Folders of images as sources without labels, and what of a labelled folder then plays no part."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.formats.layouts import read_unlabelled
from jaxseg.settings.task_schema import images_alone
from jaxseg.types import UserError


def prepared(task, where):
    return data.prepare_task(images_alone(task), ndim=3, store_dir=where)


def test_images_count_whether_they_are_listed_labelled_or_neither(
    tmp_path, make_task, write_set, save_nifti, volume_of
):
    folder = write_set(tmp_path / "set", groups={"case_0": "p", "case_1": "p"})
    save_nifti(folder / "imagesTr" / "more.nii.gz", volume_of(9)[0])
    (folder / "labelsTr" / "case_2.nii.gz").unlink()
    (folder / "labelsTr" / "case_3.nii.gz").write_bytes(b"no label map")
    task = prepared(make_task(folder), tmp_path / "stores")
    assert [case.name for case in task.cases] == ["case_0", "case_1", "case_2", "case_3", "more"]
    assert [case.group for case in task.cases] == ["p", "p", "case_2", "case_3", "more"]
    alone = "`groups` does not name case_2, case_3, more: each counts as a group of its own"
    assert (task.labels, task.report.warnings, task.splits) == ((), (("", alone),), None)
    cohort = data.build_cohort(task, [case.name for case in task.cases])
    assert not cohort.label.any()
    assert not cohort.num_foreground.any()


@pytest.mark.parametrize("change", ["gone", "zero"])
def test_labels_change_nothing_of_a_task_without_labels(tmp_path, make_task, write_set, volume_of, change):
    volumes = {f"case_{index}": volume_of(index) for index in range(3)}
    before = write_set(tmp_path / "before", volumes)
    after = write_set(tmp_path / "after", {name: (image, 0 * label) for name, (image, label) in volumes.items()})
    if change == "gone":
        shutil.rmtree(after / "labelsTr")
        (after / "dataset.json").unlink()
    made = [
        prepared(make_task(folder, normalization="dataset"), tmp_path / folder.name / "store")
        for folder in (before, after)
    ]
    fitted = [data.fit_intensity(task, ["case_0", "case_1"]) for task in made]
    assert fitted[0].windows == fitted[1].windows
    for one, other in zip(*(data.load_cases(task, ["case_0", "case_2"]) for task in fitted), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert not one.label.any()
    with_labels = data.prepare_task(make_task(before), ndim=3, store_dir=tmp_path / "before" / "store")
    assert with_labels.directory != made[0].directory


@pytest.mark.parametrize(
    ("names", "channels", "cases"),
    [
        (["b", "a"], 1, ["a", "b"]),
        (["a_0000", "b_0000"], 1, ["a", "b"]),
        (["a_0000", "a_0001", "b_0000", "b_0001"], 2, ["a", "b"]),
        (["nerve_0001", "nerve_0002", "nerve_0003"], 1, ["nerve_0001", "nerve_0002", "nerve_0003"]),
    ],
)
@pytest.mark.parametrize("part", ["", "imagesTr"])
def test_a_folder_of_images_alone(tmp_path, save_nifti, volume_of, names, channels, cases, part):
    for index, name in enumerate(names):
        save_nifti(tmp_path / part / f"{name}.nii.gz", volume_of(index)[0])
    listing = read_unlabelled(tmp_path)
    assert [case.name for case in listing.cases] == cases
    assert [case.group for case in listing.cases] == cases
    assert (len(listing.modality), {len(case.images) for case in listing.cases}) == (channels, {channels})


@pytest.mark.parametrize("beside", [(), ("extra",), ("extra_0001",)])
def test_what_lies_beside_numbered_images_changes_no_name_and_no_patient(
    tmp_path, write_set, save_nifti, volume_of, beside
):
    groups = {f"visit_{index}": f"p{index}" for index in range(3)}
    folder = write_set(tmp_path / "set", groups=groups)
    shutil.rmtree(folder / "imagesTr")
    for name in (*(f"{case}_0000" for case in groups), *beside):
        save_nifti(folder / "imagesTr" / f"{name}.nii.gz", volume_of(1)[0])
    listing = read_unlabelled(folder)
    assert {case.name: case.patient for case in listing.cases} == groups | {name: name for name in beside}
    assert all(case.published for case in listing.cases if case.name in groups)


@pytest.mark.parametrize("known", ["labels", "groups"])
def test_numbers_that_are_part_of_names_stay_there(tmp_path, write_set, volume_of, known):
    cases = [f"p{index}_2019" for index in range(3)] + ["p3_0000"]
    groups = {"groups": dict.fromkeys(cases, "one")} if known == "groups" else {}
    folder = write_set(tmp_path / "set", {name: volume_of(1) for name in cases}, **groups)
    if known == "groups":
        shutil.rmtree(folder / "labelsTr")
    listing = read_unlabelled(folder)
    assert ([case.name for case in listing.cases], listing.refused) == (cases, ())


def test_patients_of_cases_that_are_not_there_are_named(described):
    where = described / "dataset.json"
    where.write_text(where.read_text().replace('"case_0"', '"cas_0"'))
    (told,) = read_unlabelled(described / "imagesTs").warnings[1:]
    assert told == "`groups` names cases that are not there: cas_0"


@pytest.fixture
def described(tmp_path, write_set, save_nifti, volume_of):
    """A set whose patients p0 and p1 were imaged again for its test images, of which it has no labels."""
    groups = {f"case_{index}": f"p{index}" for index in range(4)} | {"again_0": "p0", "again_1": "p1 "}
    folder = write_set(tmp_path / "set", groups=groups, name="Hearts", modality={"0": "CT"})
    for index in range(3):
        save_nifti(folder / "imagesTs" / f"again_{index}.nii.gz", volume_of(index + 9)[0])
    return folder


@pytest.mark.parametrize("spelled", ["path", "link", "."])
@pytest.mark.parametrize(
    ("part", "patients"), [("imagesTs", ["p0", "p1", "again_2"]), ("imagesTr", ["p0", "p1", "p2", "p3"])]
)
def test_the_images_of_a_set_are_described_by_the_file_beside_them(
    described, tmp_path, monkeypatch, part, patients, spelled
):
    monkeypatch.chdir(described / part)
    (tmp_path / "link").symlink_to(described / part)
    listing = read_unlabelled({"path": described / part, "link": tmp_path / "link", ".": Path()}[spelled])
    assert [case.patient for case in listing.cases] == patients
    assert [case.published for case in listing.cases] == [patient.startswith("p") for patient in patients]
    assert (listing.name, listing.modality) == (f"Hearts {part}", ("CT",))
    assert [path.resolve() for path in listing.sources] == [described / "dataset.json"]


def test_a_source_of_test_images_leaves_out_the_patients_that_the_target_is_tested_on(described, tmp_path, make_task):
    target = data.prepare_task(make_task(described), ndim=3, store_dir=tmp_path / "stores")
    split = data.split_cases(target, val_cases=1, test_cases=1, folds=1, fold=0, seed=0)
    tested = data.held_out_groups(target, split)
    source = prepared(make_task(described / "imagesTs"), tmp_path / "stores")
    assert tested & {case.group for case in source.cases}
    own = data.split_cases(source, val_cases=0, test_cases=0, folds=1, fold=0, seed=0, exclude_groups=tested)
    used = {source.record(name).group for name in (*own.train, *own.val, *own.test)}
    assert used == {"p0", "p1", "again_2"} - tested


def test_other_groups_in_the_file_beside_the_images_make_other_data(described, tmp_path, make_task):
    before = prepared(make_task(described / "imagesTs"), tmp_path / "stores")
    where = described / "dataset.json"
    where.write_text(where.read_text().replace('"p0"', '"p2"'))
    after = prepared(make_task(described / "imagesTs"), tmp_path / "stores")
    assert after.directory != before.directory
    assert [case.group for case in after.cases] == ["p2", "p1", "again_2"]


def test_an_own_description_of_a_folder_comes_before_that_beside_it(described):
    (described / "imagesTs" / "dataset.json").write_text(json.dumps({"modality": ["US"], "name": "Own"}))
    listing = read_unlabelled(described / "imagesTs")
    assert (listing.name, listing.modality, listing.sources) == (
        *("Own", ("US",)),
        (described / "imagesTs" / "dataset.json",),
    )


def test_channels_of_one_file_are_counted(tmp_path, make_task, save_nifti):
    for name in "ab":
        save_nifti(tmp_path / "set" / f"{name}.nii.gz", np.random.default_rng(0).random((8, 8, 8, 3), np.float32))
    assert prepared(make_task(tmp_path / "set"), tmp_path / "stores").channels == 3


def test_what_cannot_be_used_is_named(tmp_path, make_task, save_nifti, volume_of):
    folder = tmp_path / "set"
    with pytest.raises(UserError, match="does not exist"):
        read_unlabelled(folder)
    folder.mkdir()
    with pytest.raises(UserError, match=r"holds no image that is read .*; it is empty"):
        read_unlabelled(folder)
    (folder / "a.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read, from which the number of channels"):
        read_unlabelled(folder)
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
    save_nifti(folder / "b.nii.gz", volume_of(0)[0])
    (folder / "c.mgz").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 case\(s\) of .* cannot be used:\n  a: "):
        prepared(make_task(folder), tmp_path / "stores")
    task = prepared(dataclasses.replace(make_task(folder), bad_cases="skip"), tmp_path / "stores")
    assert [case.name for case in task.cases] == ["b"]
    assert any("c.mgz" in text for _, text in task.report.warnings)


def test_a_folder_that_lacks_labels_is_refused_with_the_objectives_that_need_none(tmp_path, make_task, write_set):
    folder = write_set(tmp_path / "set", listed=False)
    shutil.rmtree(folder / "labelsTr")
    hint = "needs no labels where its arms set pretrain.objective to 'restore' or 'masked'"
    with pytest.raises(UserError, match=f"label labelsTr/case_0.nii.gz does not exist[^$]*{hint}"):
        data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "stores")
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match=f"has no dataset.json.*{hint}"):
        data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "stores")
