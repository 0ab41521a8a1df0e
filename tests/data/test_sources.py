"""Decathlon archives and TFDS datasets as tasks; pictures and tables of what was prepared."""

import hashlib
import io
import shutil
import tarfile

import matplotlib.figure
import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.formats import decathlon
from jaxseg.data.prepared import store
from jaxseg.types import UserError

TASK = "Task04_Hippocampus"


@pytest.fixture
def archive(write_set, tmp_path, monkeypatch):
    """An archive in JAXSEG_DATA that counts as the published one."""
    folder = write_set(tmp_path / "made" / TASK)
    given = tmp_path / "given"
    given.mkdir()
    with tarfile.open(given / f"{TASK}.tar", "w") as tar:
        tar.add(folder, TASK)
        tar.addfile(tarfile.TarInfo(f"{TASK}/imagesTr/._case_0.nii.gz"))
    digest = hashlib.md5((given / f"{TASK}.tar").read_bytes()).hexdigest()
    monkeypatch.setitem(decathlon.MD5, TASK, digest)
    monkeypatch.setenv("JAXSEG_DATA", str(given))
    return given / f"{TASK}.tar"


def test_a_decathlon_task_is_taken_from_an_archive_once(archive, make_task, tmp_path):
    task = make_task(f"msd:{TASK}")
    prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    assert len(prepared.cases) == 4
    archive.unlink()
    assert data.prepare_task(task, ndim=3, store_dir=tmp_path / "store").directory == prepared.directory
    assert not list((tmp_path / "store").rglob("._*"))


def test_a_decathlon_task_is_taken_from_a_folder(archive, write_set, make_task, tmp_path):
    archive.unlink()
    write_set(archive.parent / TASK)
    assert len(data.prepare_task(make_task(f"msd:{TASK}"), ndim=3, store_dir=tmp_path / "store").cases) == 4


def test_another_archive_is_refused_before_it_is_unpacked(archive, make_task, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match="MD5 sum"):
        data.prepare_task(make_task(f"msd:{TASK}"), ndim=3, store_dir=tmp_path / "store")
    assert not (tmp_path / "store" / "msd").exists()


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/jaxseg-out.txt", f"{TASK}/../../out.txt"])
def test_archive_members_cannot_leave_their_folder(tmp_path, name):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"bad"))
    with pytest.raises(UserError, match="outside its folder"):
        decathlon.unpack(tmp_path / "x.tar", TASK, tmp_path / "deep" / "er" / TASK)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.tar"]


def test_of_two_processes_that_unpack_an_archive_the_first_provides_the_folder(archive, tmp_path):
    target = tmp_path / "store" / "msd" / TASK
    for _ in range(2):  # the second finds the folder that it looked for before there was one
        decathlon.unpack(archive, TASK, target)
    assert len(list((target / "imagesTr").iterdir())) == 4
    (target / "dataset.json").unlink()
    with pytest.raises(UserError, match=rf"{target} is in the way of .*Remove {target}"):
        decathlon.unpack(archive, TASK, target)
    shutil.rmtree(target)
    target.write_text("a file")
    with pytest.raises(UserError, match=rf"{target} is in the way of .*Remove {target}"):
        decathlon.unpack(archive, TASK, target)
    assert [path.name for path in target.parent.iterdir()] == [TASK], "nothing half unpacked is left"


def test_links_in_an_archive_are_not_made(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo(f"{TASK}/dataset.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"holds no Task04_Hippocampus/dataset\.json"):
        decathlon.unpack(tmp_path / "x.tar", TASK, tmp_path / TASK)


def test_unknown_decathlon_tasks_and_failed_downloads_are_answered(make_task, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXSEG_DATA", raising=False)
    with pytest.raises(UserError, match="Did you mean msd:Task04_Hippocampus"):
        data.prepare_task(make_task("msd:Task4_Hipocampus"), ndim=3, store_dir=tmp_path)

    def offline(manager, address):  # TFDS itself would try again for minutes
        raise ConnectionError("no route to host")

    monkeypatch.setattr(decathlon.tfds.download.DownloadManager, "download", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded[\s\S]*JAXSEG_DATA"):
        data.prepare_task(make_task(f"msd:{TASK}"), ndim=3, store_dir=tmp_path)


@pytest.fixture
def dataset(tmp_path):
    """A TFDS dataset in ArrayRecord files and its arrays."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 9, 8, 7)).astype(np.float32)
    labels = (images > 1).astype(np.uint8)

    def cases():
        for image, label in zip(images, labels, strict=True):
            yield {"picture": image, "mask": label}

    features = {"picture": (3, np.float32), "mask": (3, np.uint8)}
    store.write(tmp_path / "tfds", cases, features, dict)
    return store._finished(tmp_path / "tfds"), images, labels


def test_a_tfds_dataset_is_a_task(dataset, make_task, tmp_path):
    folder, images, labels = dataset
    text = f"tfds:{folder}?labels=bright&image=picture&label=mask&split=cases&spacing=1x1x2&modality=MR"
    prepared = data.prepare_task(make_task(text, normalization="none"), ndim=3, store_dir=tmp_path / "store")
    assert (prepared.labels, prepared.modality) == (("bright",), ("MR",))
    for index, record in enumerate(prepared.cases):
        case = data.load_case(prepared, record.name)
        np.testing.assert_array_equal(case.image[..., 0], images[index])
        np.testing.assert_array_equal(case.label, labels[index])
        assert record.spacing_mm == (1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "labels=NAME"),
        ("?labels=a&imag=x", "unknown key 'imag'"),
        ("?labels=a", "no split 'train'; it has cases"),
        ("?labels=a&split=cases", "no feature 'image'; it has"),
        ("?labels=a&split=cases&image=picture&label=mask&spacing=2", "3 positive numbers"),
        ("/nowhere?labels=a", "no prepared TFDS dataset"),
    ],
)
def test_tfds_strings_that_cannot_work_are_refused(dataset, make_task, tmp_path, query, message):
    with pytest.raises(UserError, match=message):
        data.prepare_task(make_task(f"tfds:{dataset[0]}{query}"), ndim=3, store_dir=tmp_path / "store")


def test_a_contact_sheet_that_cannot_be_written_leaves_the_earlier_one(make_task, write_set, tmp_path, monkeypatch):
    prepared = data.prepare_task(make_task(write_set(tmp_path / "set")), ndim=3, store_dir=tmp_path / "store")
    sheet = data.write_contact_sheet(prepared, tmp_path / "set.png")
    before = sheet.read_bytes()

    def fill_the_disk(self, place, **how):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        data.write_contact_sheet(prepared, sheet)
    assert sheet.read_bytes() == before


def test_a_contact_sheet_names_the_store_that_it_shows(make_task, write_set, tmp_path):
    one, other = (
        data.prepare_task(make_task(write_set(tmp_path / name)), ndim=3, store_dir=tmp_path / name / "store")
        for name in ("one", "other")
    )
    sheet = tmp_path / "sheet.png"
    assert not data.is_shown_by(sheet, one)
    data.write_contact_sheet(one, sheet)
    assert (data.is_shown_by(sheet, one), data.is_shown_by(sheet, other)) == (True, False)
    sheet.write_bytes(b"no picture")
    assert not data.is_shown_by(sheet, one)


def test_contact_sheet_and_case_table(make_task, write_set, volume_of, tmp_path):
    volumes = {"a $x_1$": volume_of(0), "b": volume_of(1), "broken": volume_of(2)}
    folder = write_set(tmp_path / "set", volumes, labels=("one", "t$wo"))
    (folder / "imagesTr" / "broken.nii.gz").write_bytes(b"")
    task = make_task(folder, bad_cases="skip")
    prepared = data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    picture = data.write_contact_sheet(prepared, tmp_path / "figures" / "set.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = data.case_table(prepared)
    assert [row["case"] for row in rows] == ["a $x_1$", "b", "broken"]
    assert rows[0]["voxels one"] == int((volumes["a $x_1$"][1] == 1).sum())
    assert rows[0]["shape"] == "10x9x8"
    assert rows[2]["status"].startswith("refused: ")
