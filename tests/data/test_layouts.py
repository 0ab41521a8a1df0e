"""Folder layouts are recognised from what they hold; what is wrong with a case is said by its name."""

import gzip
import json
import re

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.formats import case_search, image_files, layouts
from jaxseg.types import UserError
from tests.unprivileged import bound_by_permissions


def write_json(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))


# ---------------------------------------------------------------------------------------------------------- layouts


@pytest.fixture
def two_channels(tmp_path, save_nifti, volume_of):
    """An nnU-Net folder with two channels a case, without dataset.json, and its arrays."""
    folder = tmp_path / "Dataset007_Two"
    arrays = {}
    for index, name in enumerate(("case_b", "case_a")):
        first, label = volume_of(index)
        second = first[::-1] * 2
        for channel, image in enumerate((first, second)):
            save_nifti(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", image)
        save_nifti(folder / "labelsTr" / f"{name}.nii.gz", label)
        arrays[name] = np.stack([first, second], axis=-1), label
    return folder, arrays


def check(folder, arrays, make_task, tmp_path):
    prepared = data.prepare_task(make_task(folder, normalization="none"), ndim=3, store_dir=tmp_path / "store")
    assert [record.name for record in prepared.cases] == sorted(arrays)
    for name, (image, label) in arrays.items():
        case = data.load_case(prepared, name)
        np.testing.assert_array_equal(case.image, image)
        np.testing.assert_array_equal(case.label, label)
    return prepared


def test_nnunet_v2(two_channels, make_task, tmp_path):
    folder, arrays = two_channels
    labels = {"background": 0, "a": 1, "b": 2}
    write_json(folder, channel_names={"0": "T1", "1": "T2"}, labels=labels, numTraining=2, file_ending=".nii.gz")
    assert check(folder, arrays, make_task, tmp_path).modality == ("T1", "T2")


def test_nnunet_v1(two_channels, make_task, tmp_path):
    folder, arrays = two_channels
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in arrays]
    labels = {"0": "background", "1": "a", "2": "b"}
    write_json(folder, modality={"0": "T1", "1": "T2"}, labels=labels, training=training)
    check(folder, arrays, make_task, tmp_path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_decathlon_with_channels_in_one_file(make_task, write_set, volume_of, tmp_path, suffix):
    arrays = {}
    for index, name in enumerate("xy"):
        image, label = volume_of(index)
        arrays[name] = np.stack([image, -image, image**2], axis=-1), label
    folder = write_set(tmp_path / "set", arrays, suffix=suffix, modality={"0": "T1", "1": "T2", "2": "FLAIR"})
    check(folder, arrays, make_task, tmp_path)


def test_a_listed_name_with_the_other_ending_is_found(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set", suffix=".nii")
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace(".nii", ".nii.gz"))
    assert len(data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store").cases) == 4


def test_names_that_look_like_channels_are_cases_when_labels_have_them(make_task, write_set, volume_of, tmp_path):
    arrays = {f"nerve_{index:04d}": volume_of(index) for index in range(2)}
    for listed in (True, False):
        folder = write_set(tmp_path / f"set_{listed}", arrays, listed=listed)
        prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
        assert [record.name for record in prepared.cases] == sorted(arrays)


def test_macos_leftovers_and_hidden_files_are_not_cases(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set", listed=False)
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "._case_0.nii.gz").write_bytes(b"\0")
        (folder / part / ".hidden.nii.gz").write_bytes(b"\0")
    assert len(data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store").cases) == 4


def test_groups_and_splits_are_read(make_task, write_set, tmp_path):
    groups = {"case_0": "p1", "case_1": "p1", "case_9": "p9"}
    folder = write_set(tmp_path / "set", groups=groups)
    splits = [{"train": ["case_0", "case_1", "case_2"], "val": ["case_3"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    assert [record.group for record in prepared.cases] == ["p1", "p1", "case_2", "case_3"]
    assert prepared.splits == ((("case_0", "case_1", "case_2"), ("case_3",)),)
    texts = [text for _, text in prepared.report.warnings]
    assert any("does not name case_2, case_3" in text for text in texts)
    assert any("not there: case_9" in text for text in texts)


def test_ignored_voxels_get_an_index_of_their_own(make_task, write_set, volume_of, tmp_path):
    image, label = volume_of(0, classes=4)
    labels = {"background": 0, "a": 1, "b": 2, "ignore": 3}
    folder = write_set(tmp_path / "set", {"x": (image, label), "y": (image, label)}, listed=False)
    write_json(folder, channel_names={"0": "MRI"}, labels=labels)
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    assert (prepared.labels, prepared.ignore_index) == (("a", "b"), 3)
    np.testing.assert_array_equal(data.load_case(prepared, "x").label, label)
    assert prepared.record("x").voxels_per_label == tuple(np.bincount(label.ravel())[:3])
    cohort = data.build_cohort(prepared, ("x", "y"))
    assert cohort.num_foreground.shape == (2, 2)


def test_inputs_to_predict_are_listed(two_channels, write_set, tmp_path):
    folder, _ = two_channels
    cases = image_files.list_images(folder / "imagesTr", 2)
    assert [case.name for case in cases] == ["case_a", "case_b"]
    assert [len(case.images) for case in cases] == [2, 2]
    (folder / "imagesTr" / "case_a_0001.nii.gz").unlink()
    with pytest.raises(UserError, match="case_a_0001 is missing"):
        image_files.list_images(folder / "imagesTr", 2)
    single = write_set(tmp_path / "single")
    assert [case.name for case in image_files.list_images(single / "imagesTr", 1)] == [f"case_{i}" for i in range(4)]
    assert image_files.list_images(single / "imagesTr" / "case_2.nii.gz", 1)[0].name == "case_2"
    with pytest.raises(UserError, match="does not exist"):
        image_files.list_images(tmp_path / "nowhere", 1)


# ----------------------------------------------------------------------------------------------------- broken inputs


def image_of(folder):
    return folder / "imagesTr" / "case_1.nii.gz"


def label_of(folder):
    return folder / "labelsTr" / "case_1.nii.gz"


def damage(path, start, values):
    """Overwrite header bytes of a .nii.gz file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    raw = np.asarray(values).tobytes()
    content[start : start + len(raw)] = raw
    path.write_bytes(gzip.compress(bytes(content)))


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def relabel(path, save, change):
    array = np.zeros((10, 9, 8), np.float32)
    array[2:5, 2:5, 2:5] = 1
    save(path, change(array))


def spoil(path, share, value):
    def write(save, volume_of):
        image = volume_of(1)[0]
        image.ravel()[: int(share * image.size)] = value
        save(path, image)

    return write


BROKEN = {
    "image missing": (lambda f, s, v: image_of(f).unlink(), "does not exist"),
    "label missing": (lambda f, s, v: label_of(f).unlink(), "does not exist"),
    "empty file": (lambda f, s, v: image_of(f).write_bytes(b""), "is empty"),
    "truncated": (lambda f, s, v: image_of(f).write_bytes(image_of(f).read_bytes()[:-700]), "truncated|damaged"),
    "truncated header": (lambda f, s, v: image_of(f).write_bytes(image_of(f).read_bytes()[:60]), "."),
    "not gzip": (lambda f, s, v: image_of(f).write_bytes(b"not an image, just text " * 50), "cannot be read|readable"),
    "wrong magic": (lambda f, s, v: damage(image_of(f), 344, b"XXXX"), "readable NIfTI"),
    "flipped bits": (lambda f, s, v: image_of(f).write_bytes(
        image_of(f).read_bytes()[:900] + b"\xff" * 50 + image_of(f).read_bytes()[950:]), "truncated|damaged|cannot"),
    "NaN voxels": (lambda f, s, v: spoil(image_of(f), 0.6, np.nan)(s, v), "NaN or infinite"),
    "other label value": (lambda f, s, v: relabel(label_of(f), s, lambda a: a * 7), "holds the value.* 7"),
    "fractional labels": (lambda f, s, v: relabel(label_of(f), s, lambda a: a * 0.5), "not whole numbers, such as 0.5"),
    "negative labels": (lambda f, s, v: relabel(label_of(f), s, lambda a: -a), "from -1"),
    "NaN labels": (lambda f, s, v: relabel(label_of(f), s, lambda a: np.where(a > 0, np.nan, a)), "NaN or infinite"),
    "other shape": (lambda f, s, v: s(label_of(f), np.zeros((10, 9, 7), np.uint8)), r"\(10, 9, 7\) voxels and the im"),
    "shifted label": (lambda f, s, v: s(
        label_of(f), v(1)[1], np.array([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])), "3 voxels away"),
    "negative zooms": (lambda f, s, v: damage(image_of(f), 80, np.float32([-1, 1, 1])), "must be positive"),
    "zero zooms": (lambda f, s, v: damage(image_of(f), 80, np.float32([0, 0, 0])), "must be positive"),
    "singular affine": (lambda f, s, v: (
        damage(image_of(f), 280, np.float32([0] * 12)), damage(image_of(f), 252, np.int16(0))), "maps the volume to"),
    "huge dims": (lambda f, s, v: damage(image_of(f), 42, np.int16([30000, 30000, 30000])), "it claims"),
    "zero dims": (lambda f, s, v: damage(image_of(f), 42, np.int16([0, 9, 8])), "."),
    "symlink loop": (lambda f, s, v: loop(image_of(f)), "cannot be read"),
    "a folder": (lambda f, s, v: (image_of(f).unlink(), image_of(f).mkdir()), "not a readable"),
    "more channels": (lambda f, s, v: s(image_of(f), np.zeros((10, 9, 8, 3), np.float32)), "3 channel"),
    "label channels": (lambda f, s, v: s(label_of(f), np.zeros((10, 9, 8, 2), np.uint8)), "three axes at most"),
    "complex voxels": (lambda f, s, v: s(image_of(f), np.zeros((10, 9, 8), np.complex64)), "one real number"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_case_is_named_and_stops_no_other(make_task, write_set, save_nifti, volume_of, tmp_path, kind):
    folder = write_set(tmp_path / "set")
    breaks, message = BROKEN[kind]
    breaks(folder, save_nifti, volume_of)
    task = make_task(folder, bad_cases="skip")
    prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    assert [record.name for record in prepared.cases] == ["case_0", "case_2", "case_3"]
    ((name, reason),) = prepared.report.refused
    assert name == "case_1"
    assert re.search(message, reason)
    with pytest.raises(UserError, match="case_1: ") as error:
        data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    assert "bad_cases" in str(error.value)
    assert "case_0" not in str(error.value)


@pytest.mark.parametrize("bad_cases", ["skip", "error"])
def test_a_file_that_may_not_be_read_is_no_bad_case(make_task, write_set, tmp_path, bad_cases):
    """It may be sound: a set without it would be another set, and none once the file may be read."""
    folder = write_set(tmp_path / "set")
    image_of(folder).chmod(0)
    task = make_task(folder, bad_cases=bad_cases)
    with bound_by_permissions(), pytest.raises(PermissionError, match="case_1"):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    image_of(folder).chmod(0o644)
    assert len(data.prepare_task(task, ndim=3, store_dir=tmp_path / "store").cases) == 4


def test_all_bad_cases_are_named_together(make_task, write_set, tmp_path):
    folder = write_set(tmp_path / "set")
    image_of(folder).write_bytes(b"")
    (folder / "labelsTr" / "case_3.nii.gz").unlink()
    with pytest.raises(UserError, match=r"2 case.*\n  case_1: .*empty\n  case_3: .*label"):
        data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")


def test_a_set_without_a_good_case_is_refused_even_when_skipping(make_task, write_set, volume_of, tmp_path):
    folder = write_set(tmp_path / "set", {"case_1": volume_of(0)})
    image_of(folder).write_bytes(b"")
    with pytest.raises(UserError, match="case_1: "):
        data.prepare_task(make_task(folder, bad_cases="skip"), ndim=3, store_dir=tmp_path / "store")


def test_name_clashes_and_stray_images_are_named(make_task, write_set, save_nifti, volume_of, tmp_path):
    folder = write_set(tmp_path / "set", listed=False)
    save_nifti(folder / "imagesTr" / "case_0.nii", volume_of(0)[0])
    save_nifti(folder / "labelsTr" / "case_2.nii", volume_of(0)[1])
    save_nifti(folder / "imagesTr" / "stray.nii.gz", volume_of(0)[0])
    prepared = data.prepare_task(make_task(folder, bad_cases="skip"), ndim=3, store_dir=tmp_path / "store")
    assert [record.name for record in prepared.cases] == ["case_1", "case_3"]
    reasons = dict(prepared.report.refused)
    assert "two files claim one image" in reasons["case_0"]
    assert "two files claim its label" in reasons["case_2"]
    assert "label labelsTr/stray.nii.gz does not exist" in reasons["stray"]


def test_doubtful_cases_are_kept_and_named(make_task, write_set, save_nifti, volume_of, tmp_path):
    folder = write_set(
        tmp_path / "set", {name: volume_of(0) for name in ("codes", "close", "empty", "flat", "nan", "x")}
    )
    image, label = volume_of(0)
    for part, array in (("imagesTr", image), ("labelsTr", label)):
        save_nifti(folder / part / "codes.nii.gz", array, code=0)
    save_nifti(folder / "labelsTr" / "close.nii.gz", label, np.diag([1, 1, 1 + 3e-4, 1]))
    save_nifti(folder / "labelsTr" / "empty.nii.gz", np.zeros_like(label))
    save_nifti(folder / "imagesTr" / "flat.nii.gz", np.full_like(image, 3))
    image[0, 0, :3] = (np.nan, np.inf, -np.inf)
    save_nifti(folder / "imagesTr" / "nan.nii.gz", image)
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    found = dict(prepared.report.warnings)
    assert sorted(found) == ["close", "codes", "empty", "flat", "nan"]
    assert "codes are 0" in found["codes"]
    assert "voxels away" in found["close"]
    assert "none of the labels" in found["empty"]
    assert "constant" in found["flat"]
    assert "3 voxels are NaN or infinite" in found["nan"]
    assert np.isfinite(data.load_case(prepared, "nan").image).all()
    assert not data.load_case(prepared, "flat").image.any()


def test_a_voxel_without_a_value_gets_the_smallest_of_its_own_channel(make_task, write_set, save_nifti, tmp_path):
    folder = write_set(tmp_path / "set", modality={"0": "CT", "1": "PET"})
    rng = np.random.default_rng(0)
    for index in range(4):
        channels = [rng.normal(-1000, 5, (10, 9, 8)), rng.uniform(2, 18, (10, 9, 8))]
        channels[1][:2] = np.nan
        (folder / "imagesTr" / f"case_{index}.nii.gz").unlink()
        for number, voxels in enumerate(channels):
            save_nifti(folder / "imagesTr" / f"case_{index}_{number:04d}.nii.gz", voxels.astype(np.float32))
    prepared = data.prepare_task(make_task(folder, normalization="none"), ndim=3, store_dir=tmp_path / "store")
    assert (data.load_case(prepared, "case_0").image.min(axis=(0, 1, 2)) // 1).tolist()[1] == 2
    told = dict(prepared.report.warnings)["case_1"]
    assert "144 voxels of channel 1 are NaN or infinite; the smallest finite value, 2" in told
    channels[1][:] = np.nan  # half of all voxels, and all of this channel
    save_nifti(folder / "imagesTr" / "case_3_0001.nii.gz", channels[1].astype(np.float32))
    with pytest.raises(UserError, match="has 720 of 720 voxels of channel 1 that are NaN"):
        data.prepare_task(make_task(folder, normalization="none"), ndim=3, store_dir=tmp_path / "store")


def test_unicode_and_spaces_in_names(make_task, write_set, volume_of, tmp_path):
    names = ("Пациент 1", "ß — scan #2", "a b.c")
    folder = write_set(tmp_path / "mein Ordner ü", {name: volume_of(0) for name in names}, labels=("å", "b"))
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "störe x")
    assert [record.name for record in prepared.cases] == sorted(names)
    assert data.load_case(prepared, names[0]).label.any()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_each_file_name_of_a_large_folder_is_looked_at_a_few_times(tmp_path, monkeypatch, listed, channels):
    """Whether a name is that of a channel was asked for every pair of cases: minutes where there are thousands."""
    cases = [f"case_{index}" for index in range(300)]
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for case in cases:
        (tmp_path / "labelsTr" / f"{case}.nii").touch()
        for channel in range(channels):
            ending = f"_{channel:04d}" if channels > 1 else ""
            (tmp_path / "imagesTr" / f"{case}{ending}.nii").touch()
    description = {
        "labels": {"0": "background", "1": "a"},
        "modality": {str(channel): "MR" for channel in range(channels)},
    }
    if listed:
        description["training"] = [{"image": f"imagesTr/{case}.nii", "label": f"labelsTr/{case}.nii"} for case in cases]
    (tmp_path / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    looks = []

    class Counted:
        def match(self, name):
            looks.append(name)
            return channel.match(name)

    channel = image_files.CHANNEL
    for module in (image_files, case_search):
        monkeypatch.setattr(module, "CHANNEL", Counted())
    assert len(layouts.read_folder(tmp_path).cases) == 300
    assert len(looks) <= 10 * channels * len(cases)
