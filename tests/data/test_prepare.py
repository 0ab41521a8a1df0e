"""Folders and synthetic tasks become stores; settings that cannot work are refused before any work."""

import dataclasses
import fcntl
import json
import time

import numpy as np
import pytest

from jaxseg import data, machine
from jaxseg.data.formats.files import reading
from jaxseg.data.prepared import prepare, store
from jaxseg.data.volumes import volume
from jaxseg.types import UserError


def test_a_decathlon_folder_is_prepared_in_name_order_and_read_back(make_task, write_set, tmp_path, volume_of):
    volumes = {name: volume_of(index) for index, name in enumerate(("b", "a", "d", "c"))}
    task = make_task(write_set(tmp_path / "set", volumes), normalization="none")
    steps = []
    prepared = data.prepare_task(
        task, ndim=3, store_dir=tmp_path / "store", progress=lambda what, done, total: steps.append((done, total))
    )
    assert [record.name for record in prepared.cases] == ["a", "b", "c", "d"]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (prepared.labels, prepared.channels, prepared.modality) == (("a", "b"), 1, ("MRI",))
    for name, (image, label) in volumes.items():
        case = data.load_case(prepared, name)
        np.testing.assert_array_equal(case.image[..., 0], image)
        np.testing.assert_array_equal(case.label, label)
        assert case.reference is case.label
        assert case.record.voxels_per_label == tuple(np.bincount(label.ravel(), minlength=3))


def test_a_store_is_built_once_and_again_when_inputs_or_settings_change(make_task, write_set, tmp_path, volume_of):
    folder = write_set(tmp_path / "set")
    task = make_task(folder)
    built = []

    def prepare(task):
        return data.prepare_task(
            task, ndim=3, store_dir=tmp_path / "store", progress=lambda *step: built.append(step[0])
        )

    first = prepare(task)
    assert len(built) == 4
    assert prepare(task).directory == first.directory
    assert prepare(dataclasses.replace(task, patch=(4, 4, 4), foreground=0.1)).directory == first.directory
    assert len(built) == 4
    others = [dataclasses.replace(task, spacing_mm=(2.0, 2.0, 2.0)), dataclasses.replace(task, labels=("b",))]
    directories = {prepare(other).directory for other in others} | {first.directory}
    write_set(folder, {f"case_{index}": volume_of(index + 9) for index in range(4)})
    directories.add(prepare(task).directory)
    assert len(directories) == 4


def test_noise_is_added_to_images_alone_the_same_every_time(make_task, write_set, tmp_path, volume_of):
    volumes = {name: volume_of(0) for name in ("a", "b", "c")}
    task = make_task(write_set(tmp_path / "set", volumes), normalization="none")
    plain, noisy, again = (
        data.prepare_task(dataclasses.replace(task, noise=noise), ndim=3, store_dir=tmp_path / store)
        for noise, store in ((0.0, "one"), (0.5, "one"), (0.5, "two"))
    )
    added = {}
    for name in volumes:
        before, after = data.load_case(plain, name), data.load_case(noisy, name)
        np.testing.assert_array_equal(after.label, before.label)
        np.testing.assert_array_equal(after.image, data.load_case(again, name).image)
        added[name] = after.image - before.image
        np.testing.assert_allclose(added[name].std(), 0.5 * before.image.std(), rtol=0.1)
    assert np.abs(np.corrcoef(added["a"].ravel(), added["b"].ravel())[0, 1]) < 0.2


def test_a_half_built_store_is_never_read(make_task, write_set, tmp_path):
    task = make_task(write_set(tmp_path / "set"))

    def stop(what, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store", progress=stop)
    (directory,) = (tmp_path / "store").iterdir()
    assert not store.exists(directory)
    assert len(data.prepare_task(task, ndim=3, store_dir=tmp_path / "store").cases) == 4


def test_chosen_labels_get_class_indices_in_their_order(make_task, write_set, tmp_path, volume_of):
    image, label = volume_of(0, classes=4)
    folder = write_set(tmp_path / "set", {"x": (image, label), "y": (image, label)}, labels=("a", "b", "c"))
    prepared = data.prepare_task(make_task(folder, labels=("c", "a")), ndim=3, store_dir=tmp_path / "store")
    case = data.load_case(prepared, "x")
    assert prepared.labels == ("c", "a")
    assert prepared.label_values == (3, 1)
    np.testing.assert_array_equal(case.label == 1, label == 3)
    np.testing.assert_array_equal(case.label == 2, label == 1)
    assert not case.label[label == 2].any()


def test_one_slice_volumes_are_two_dimensional(make_task, write_set, tmp_path, volume_of):
    flat = volume_of(1, shape=(12, 1, 11))
    folder = write_set(tmp_path / "set", {"x": flat, "y": flat})
    prepared = data.prepare_task(make_task(folder, patch=(8, 8)), ndim=2, store_dir=tmp_path / "store")
    case = data.load_case(prepared, "x")
    assert case.image.shape == (12, 11, 1)
    np.testing.assert_array_equal(case.label, flat[1][:, 0])
    assert case.record.spacing_mm == (1.0, 1.0)


def test_single_slices_that_are_taken_for_volumes_are_named(make_task, write_set, tmp_path, volume_of):
    flat = volume_of(1, shape=(12, 1, 11))
    folder = write_set(tmp_path / "set", {"x": flat, "y": flat})
    for ndim, patch in ((2, (8, 8)), (3, (8, 1, 8))):
        prepared = data.prepare_task(make_task(folder, patch=patch), ndim=ndim, store_dir=tmp_path / "store")
        told = [text for name, text in prepared.report.warnings if not name]
        assert told == (["every case is a single slice: with model.ndim = 2 they are images of two axes"] * (ndim == 3))


def test_spacing_median_is_that_of_the_cases(make_task, write_set, save_nifti, tmp_path, volume_of):
    folder = write_set(tmp_path / "set", {name: volume_of(0) for name in "xyz"})
    for name, zooms in {"x": (1.0, 1.0, 2.0), "y": (1.0, 1.0, 4.0), "z": (2.0, 1.0, 4.0)}.items():
        for part, array in zip(("imagesTr", "labelsTr"), volume_of(0), strict=True):
            save_nifti(folder / part / f"{name}.nii.gz", array, zooms=zooms)
    prepared = data.prepare_task(make_task(folder, spacing_mm="median"), ndim=3, store_dir=tmp_path / "store")
    assert prepared.spacing_mm == (1.0, 1.0, 4.0)
    assert prepared.record("x").shape == (10, 9, 4)
    assert prepared.record("x").own_shape == (10, 9, 8)
    assert prepared.record("y").shape == (10, 9, 8)
    assert data.load_case(prepared, "x").reference.shape == (10, 9, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere/at/all"}, "does not exist"),
        ({"data": ""}, "is empty"),
        ({"labels": ("hart",)}, "Did you mean 'heart'"),
        ({"spacing_mm": "coarse"}, "native, median, or 3 positive numbers"),
        ({"spacing_mm": (1.0, 1.0)}, "native, median, or 3 positive numbers"),
        ({"spacing_mm": (1.0, 1.0, -1.0)}, "native, median, or 3 positive numbers"),
        ({"normalization": "minmax"}, "zscore"),
        ({"unit": "cm"}, "unit = 'cm'; allowed: 'mm' or 'voxel'"),
        ({"data": "synthetic:blob"}, "there are blobs"),
        ({"data": "synthetic:blobs?m=3"}, "unknown key 'm'"),
        ({"data": "synthetic:blobs?shape=24"}, "at least 8"),
        ({"data": "synthetic:blobs?shape=24x24"}, "set model.ndim to 2"),
        ({"data": "synthetic:blobs?noise=loud"}, "noise is 'loud'"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_task, write_set, tmp_path, change, message):
    folder = write_set(tmp_path / "set", labels=("heart", "lung"))
    task = dataclasses.replace(make_task(folder), **change)
    with pytest.raises(UserError, match=message):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")


def test_a_mistyped_folder_is_answered_with_its_neighbour(make_task, write_set, tmp_path):
    write_set(tmp_path / "hippocampus")
    with pytest.raises(UserError, match=r"Is it .*hippocampus\?"):
        data.prepare_task(make_task(tmp_path / "hipocampus"), ndim=3, store_dir=tmp_path / "store")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no dataset.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "JSON object"),
        ('{"modality": {"0": "MRI"}}', "`labels` must map"),
        ('{"labels": {"0": "background"}, "modality": {"0": "MRI"}}', "nothing but background"),
        (
            '{"labels": {"0": "background", "1": "a", "2": "a"}, "modality": {"0": "M"}}',
            "name a is used more than once",
        ),
        ('{"labels": {"background": 0, "a": [1, 2]}, "channel_names": {"0": "M"}}', "regions_class_order"),
        ('{"labels": {"0": "background", "one": "a"}, "modality": {"0": "M"}}', "not a whole number"),
        ('{"labels": {"0": "background", "1": "a"}}', "`modality`"),
        ('{"labels": {"0": "background", "1": "a"}, "modality": {"0": "M"}, "groups": []}', "`groups` must map"),
        ('{"labels": {"0": "background", "1": "a"}, "modality": {"0": "M"}}', "no training cases"),
    ],
)
def test_an_unusable_dataset_json_is_refused(make_task, tmp_path, content, message):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message):
        data.prepare_task(make_task(tmp_path), ndim=3, store_dir=tmp_path / "store")


def test_statistics_of_the_training_cases_ignore_all_others(make_task, write_set, tmp_path, volume_of):
    volumes = {f"case_{index}": volume_of(index) for index in range(4)}
    prepared = []
    for part, factor in (("one", 1.0), ("two", 50.0)):
        volumes["case_3"] = (volume_of(3)[0] * factor, volume_of(3)[1])
        task = make_task(write_set(tmp_path / part, volumes, modality={"0": "CT"}), normalization="auto")
        ready = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
        with pytest.raises(ValueError, match="fit_intensity"):
            data.load_case(ready, "case_0")
        prepared.append(data.fit_intensity(ready, ("case_0", "case_1", "case_2")))
    assert prepared[0].windows == prepared[1].windows
    for name in ("case_0", "case_1", "case_2"):
        images = [data.load_case(ready, name).image for ready in prepared]
        np.testing.assert_array_equal(images[0], images[1])


def test_what_lies_in_the_store_is_described_beside_it(make_task, tmp_path):
    prepared = data.prepare_task(make_task("synthetic:blobs?n=2&shape=8x8x8"), ndim=3, store_dir=tmp_path)
    notes = json.loads(next(prepared.directory.rglob("metadata.json")).read_text())
    assert [case["name"] for case in notes["cases"]] == ["blobs_0000", "blobs_0001"]


def test_a_store_that_another_process_writes_is_waited_for_and_this_is_said(make_task, tmp_path):
    task = make_task("synthetic:blobs?n=2&shape=8x8x8")
    directory = data.prepare_task(task, ndim=3, store_dir=tmp_path / "here").directory
    elsewhere = tmp_path / "there" / directory.name
    elsewhere.mkdir(parents=True)
    told = []
    with open(elsewhere / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def progress(what, done, total):
            told.append(what)
            fcntl.flock(other, fcntl.LOCK_UN)  # the other process is done as soon as it is waited for

        prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "there", progress=progress)
    assert prepared.directory == elsewhere
    assert told[0] == "waiting for another process that prepares synthetic_blobs"
    assert told.count(told[0]) == 1


def failing(monkeypatch, name, error, times):
    """Reading the image of a case fails so many times; what is left of them."""
    left = [times]
    read = reading.read_channels

    def read_channels(paths, ndim):
        if name in paths[0] and left[0]:
            left[0] -= 1
            with volume.reading(paths[0]):  # which makes most errors those of the case
                raise error
        return read(paths, ndim)

    monkeypatch.setattr(reading, "read_channels", read_channels)
    return left


def test_a_case_that_cannot_be_read_for_a_moment_does_not_stay_refused(make_task, write_set, tmp_path, monkeypatch):
    task = make_task(write_set(tmp_path / "set"))
    failing(monkeypatch, "case_2", volume.BadCaseError("input/output error"), 1)
    with pytest.raises(UserError, match="case_2: input/output error"):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    with pytest.warns(UserWarning, match=r"case_2 can be read, which it could not .* is prepared anew"):
        prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    assert [case.name for case in prepared.cases] == [f"case_{index}" for index in range(4)]


def test_a_case_is_refused_for_what_is_wrong_now(make_task, write_set, tmp_path, monkeypatch):
    task = make_task(write_set(tmp_path / "set"))
    failing(monkeypatch, "case_2", volume.BadCaseError("needs tifffile"), 2)
    with pytest.raises(UserError, match="case_2: needs tifffile"):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    failing(monkeypatch, "case_2", volume.BadCaseError("label value 255"), 2)
    with pytest.raises(UserError, match="case_2: label value 255"):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")


def test_a_case_that_runs_out_of_memory_is_prepared_when_there_is_some(make_task, write_set, tmp_path, monkeypatch):
    task = make_task(write_set(tmp_path / "set"))
    left = failing(monkeypatch, "case_1", MemoryError("16 GiB wanted"), 1)
    assert len(data.prepare_task(task, ndim=3, store_dir=tmp_path / "store").cases) == 4
    assert left == [0]


def test_a_case_for_which_memory_never_suffices_leaves_no_store_without_it(make_task, write_set, tmp_path, monkeypatch):
    task = make_task(write_set(tmp_path / "set"), bad_cases="skip")
    failing(monkeypatch, "case_1", MemoryError("16 GiB wanted"), 10)
    with pytest.raises(UserError, match=r"case_1 of set does not fit into memory .*coarser spacing_mm"):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    monkeypatch.undo()
    assert len(data.prepare_task(task, ndim=3, store_dir=tmp_path / "store").cases) == 4


def test_large_cases_are_prepared_one_at_a_time_where_memory_is_small(make_task, write_set, tmp_path, monkeypatch):
    task = make_task(write_set(tmp_path / "set"))
    together, most = [], []
    prepare_case = prepare._prepare_case

    def counted(source, files, recipe):
        together.append(files.name)
        most.append(len(together))
        time.sleep(0.02)
        made = prepare_case(source, files, recipe)
        together.remove(files.name)
        return made

    monkeypatch.setattr(prepare, "_prepare_case", counted)
    monkeypatch.setattr(machine, "cores", lambda: 4)
    one_case = 10 * 9 * 8 * sum(prepare._WORKING)
    for folder, cases in (("small", 1.5), ("large", 100)):
        monkeypatch.setattr(machine, "free_bytes", lambda cases=cases: int(cases * one_case / prepare._MEMORY_SHARE))
        most.clear()
        assert len(data.prepare_task(task, ndim=3, store_dir=tmp_path / folder).cases) == 4
        assert (max(most) > 1) == (folder == "large")
