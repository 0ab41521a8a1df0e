"""A task is known by the content of its data: not by where it lies, how it is spelled or when it was touched."""

import gzip
import json
import os
import shutil

import pytest

from jaxseg import data
from jaxseg.data.prepared import listing
from jaxseg.data.prepared import prepare as preparation
from jaxseg.types import UserError


@pytest.fixture
def folder(write_set, tmp_path):
    return write_set(tmp_path / "set")


@pytest.fixture
def prepare(make_task, tmp_path):
    def prepare(folder, **changes):
        return data.prepare_task(make_task(folder, **changes), ndim=3, store_dir=tmp_path / "store")

    return prepare


@pytest.fixture
def cases_of(make_task, tmp_path):
    def cases_of(folder):
        return data.list_cases(make_task(folder), ndim=3, store_dir=tmp_path / "store")

    return cases_of


def test_the_same_content_is_the_same_store_wherever_it_lies(folder, prepare, tmp_path, monkeypatch):
    first = prepare(folder).directory
    os.utime(folder / "imagesTr" / "case_0.nii.gz", (1, 1))
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(folder)
    shutil.copytree(folder, tmp_path / "links")
    for path in (tmp_path / "links").rglob("*.nii.gz"):
        path.unlink()
        path.symlink_to(folder / path.relative_to(tmp_path / "links"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    spellings = ["~/set", ".", f"{tmp_path}/link/", f"{tmp_path}/copy/../set", tmp_path / "copy", tmp_path / "links"]
    assert {prepare(spelling).directory for spelling in spellings} == {first}


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_an_edit_that_keeps_size_and_time_makes_another_store(folder, prepare, part):
    path = folder / part / "case_0.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    path = path.rename(path.with_name("case_0.nii"))
    path.write_bytes(content)
    before, status = prepare(folder), path.stat()
    content[-1] = 1 if content[-1] != 1 else 2
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = prepare(folder)
    assert after.directory != before.directory
    changed = [
        [name for name in ("image_sha256", "label_sha256", "voxels_sha256") if getattr(a, name) != getattr(b, name)]
        for a, b in zip(before.cases, after.cases, strict=True)
    ]
    image = ["image_sha256", "voxels_sha256"]
    assert changed == [image if part == "imagesTr" else ["label_sha256"], [], [], []]


def test_voxels_are_recognised_under_another_name_compression_and_preparation(write_set, prepare, volume_of, tmp_path):
    names = ("a", "b", "c")
    volumes = {name: volume_of(index) for index, name in enumerate(names)}
    one = prepare(write_set(tmp_path / "one", volumes))
    renamed = {f"patient {name}": volume for name, volume in volumes.items()}
    two = prepare(write_set(tmp_path / "two", renamed, suffix=".nii"), spacing_mm=(2.0, 2.0, 2.0), clip=(5, 95))
    assert [case.voxels_sha256 for case in one.cases] == [case.voxels_sha256 for case in two.cases]
    assert not {case.image_sha256 for case in one.cases} & {case.image_sha256 for case in two.cases}
    assert len({case.voxels_sha256 for case in one.cases}) == 3


@pytest.mark.parametrize("axis", [0, 2])
def test_a_single_slice_is_recognised_as_an_image_and_as_a_volume(
    write_set, make_task, volume_of, save_nifti, tmp_path, axis
):
    shape = [9, 8]
    shape.insert(axis, 1)
    folder = write_set(
        tmp_path / "set", {name: volume_of(index, shape=tuple(shape)) for index, name in enumerate("ab")}
    )
    cut = {"as_slices": ("sagittal", "coronal", "axial")[axis], "patch": (8, 8)}
    image, volume = (
        data.prepare_task(make_task(folder, **more), ndim=2, store_dir=tmp_path / "store")
        for more in ({"patch": (8, 8)}, cut)
    )
    assert image.directory != volume.directory
    assert [case.voxels_sha256 for case in image.cases] == [case.voxels_sha256 for case in volume.cases]


def test_a_listing_tells_what_changed_of_which_case(folder, write_set, cases_of, volume_of):
    before = cases_of(folder)
    assert [case.name for case in before.cases] == ["case_0", "case_1", "case_2", "case_3"]
    assert cases_of(folder) == before
    volumes = {f"case_{index}": volume_of(index) for index in range(1, 5)}
    volumes["case_1"] = (volumes["case_1"][0] + 1, volumes["case_1"][1])
    volumes["case_2"] = (volumes["case_2"][0], 2 - volumes["case_2"][1])
    shutil.rmtree(folder)
    write_set(folder, volumes, groups={"case_3": "patient"}, labels=("a", "c"))
    after = cases_of(folder)
    old, new = ({case.name: case for case in found.cases} for found in (before, after))
    assert (set(old) - set(new), set(new) - set(old)) == ({"case_0"}, {"case_4"})
    assert [name for name in old if name in new and old[name].image_sha256 != new[name].image_sha256] == ["case_1"]
    assert [name for name in old if name in new and old[name].label_sha256 != new[name].label_sha256] == ["case_2"]
    assert [name for name in old if name in new and old[name].group != new[name].group] == ["case_3"]
    assert (before.labels, after.labels) == ((("a", 1), ("b", 2)), (("a", 1), ("c", 2)))


def test_listing_prepares_nothing_and_the_store_keeps_it(folder, prepare, cases_of, tmp_path):
    (folder / "imagesTr" / "case_3.nii.gz").write_bytes(b"no image")
    (folder / "imagesTr" / "alone.nii.gz").write_bytes(b"")
    found = cases_of(folder)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_dir()]
    prepared = prepare(folder, bad_cases="skip")
    assert prepared.listing == found
    assert [name for name, _ in found.refused] == ["alone"]
    assert [case.name for case in found.cases][-1] == "case_3"
    assert prepared.cases[-1].name == "case_2"
    assert listing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_synthetic_cases_are_known_by_what_makes_them(cases_of):
    text = "synthetic:blobs?shape=8x8x8&n="
    few, many, others = (cases_of(text + more).cases for more in ("2", "3", "3&seed=1"))
    assert many[:2] == few
    assert not {case.image_sha256 for case in others} & {case.image_sha256 for case in many}


def test_a_store_is_opened_by_its_name_whatever_the_data_is_now(folder, prepare, make_task, write_set, tmp_path):
    prepared = prepare(folder)
    write_set(folder)
    shutil.rmtree(folder / "imagesTr")
    again = data.open_prepared(make_task(folder), store_dir=tmp_path / "store", name=prepared.directory.name)
    assert again == prepared
    for name in ("set-0123456789abcdef", f"../store/{prepared.directory.name}", "..", ""):
        with pytest.raises(UserError, match="holds no prepared store"):
            data.open_prepared(make_task(folder), store_dir=tmp_path / "store", name=name)


def test_a_file_that_changes_while_it_is_prepared_stops_the_preparation(folder, prepare, monkeypatch, tmp_path):
    build = preparation._build

    def build_late(*arguments):
        os.utime(folder / "labelsTr" / "case_3.nii.gz")  # after its content was read, before its voxels are
        build(*arguments)

    monkeypatch.setattr(preparation, "_build", build_late)
    with pytest.raises(UserError, match=r"case_3\.nii\.gz changed while it was being prepared"):
        prepare(folder)
    monkeypatch.undo()
    assert len(prepare(folder).cases) == 4


def test_paths_resolve_to_one_spelling(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = {str(tmp_path / "set"), f"{tmp_path}/set/", "~/set", str(tmp_path / "link"), f"{tmp_path}/x/../set"}
    assert {data.resolved(spelling) for spelling in spellings} == {os.path.realpath(tmp_path / "set")}
    assert data.resolved("synthetic:blobs?n=3") == "synthetic:blobs?n=3"
