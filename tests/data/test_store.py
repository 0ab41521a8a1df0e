"""Stores are read as they were written: damage is noticed, named, and mended from the data where that is there."""

import dataclasses
import shutil
import subprocess
import warnings

import numpy as np
import pytest

from jaxseg import data, manifest
from jaxseg.data import digests
from jaxseg.data.prepared import store
from jaxseg.data.prepared import task as prepared
from jaxseg.types import UserError
from tests.unprivileged import bound_by_permissions


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_task, write_set):
    """A task, the folder of its one store, and what the store gives."""
    home = tmp_path_factory.mktemp("made")
    task = make_task(write_set(home / "set"), spacing_mm=(1.0, 1.0, 2.0))
    ready = data.prepare_task(task, ndim=3, store_dir=home / "store")
    return task, ready.directory, contents(ready)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the store, which a test may damage."""
    return shutil.copytree(made[1], tmp_path / "store" / made[1].name)


def contents(ready):
    """Everything that a study takes from a store."""
    cases = [data.load_case(ready, case.name) for case in ready.cases]
    voxels = [(case.image.tobytes(), case.label.tobytes(), case.reference.tobytes()) for case in cases]
    return ready.cases, ready.labels, ready.listing, ready.report, voxels


def files_of(directory):
    return sorted(path for path in store._finished(directory).iterdir())


KINDS = ("SHA256SUMS", "dataset_info.json", "features.json", "metadata.json", "array_record")


def file_of(directory, kind):
    (path,) = [path for path in files_of(directory) if kind in path.name]
    return path


def damages(content, rng):
    """Damaged versions of a file; None stands for a file that is gone."""
    yield from (None, b"", content[: len(content) // 2], content[:-1], content + b"\0")
    for bit in rng.choice(8 * len(content), 12, replace=False).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_store_is_prepared_anew_with_a_warning_that_names_the_file(made, copy, kind):
    task, _, expected = made
    rng = np.random.default_rng(KINDS.index(kind))
    for content in damages(file_of(copy, kind).read_bytes(), rng):
        path = file_of(copy, kind)
        path.unlink() if content is None else path.write_bytes(content)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            again = data.prepare_task(task, ndim=3, store_dir=copy.parent)
        assert contents(again) == expected
        (line,) = [str(item.message) for item in told if "is damaged" in str(item.message)] or [""]
        # A checksum that is gone or altered makes the file that it was of the damaged one.
        assert line.endswith("is prepared anew") or (
            kind == "SHA256SUMS" and manifest.check(store._finished(copy)) == {}
        )
        assert path.name in line or kind == "SHA256SUMS"
        assert store.damage(copy) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_store_without_its_data_is_refused_by_name(made, copy, kind, tmp_path):
    task = made[0]
    away = task.__class__(**{**vars(task), "data": str(tmp_path / "nowhere")})
    path = file_of(copy, kind)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"is damaged: .*; put .* back as it was, or remove it and start again"):
        data.prepare_task(away, ndim=3, store_dir=copy.parent, known=copy.name)
    with pytest.raises(UserError, match="is damaged"):
        data.open_prepared(task, store_dir=copy.parent, name=copy.name)


def test_every_flip_that_reading_meets_is_refused(made, copy):
    """The store is opened before it is damaged, as by a study that runs for days."""
    task, _, expected = made
    ready = data.open_prepared(task, store_dir=copy.parent, name=copy.name)
    rng = np.random.default_rng(1)
    refused = []
    for kind in KINDS:
        path = file_of(copy, kind)
        good = path.read_bytes()
        for content in damages(good, rng):
            path.unlink() if content is None else path.write_bytes(content)
            try:
                assert contents(ready)[-1] == expected[-1]
            except manifest.DamagedError as error:
                refused.append(str(error))
            path.write_bytes(good)
    assert len(refused) > 30
    assert all(str(copy) in text and "prepared anew" in text for text in refused)
    assert contents(ready) == expected


def test_one_case_is_checked_without_reading_the_others(made, copy, monkeypatch):
    ready = data.open_prepared(made[0], store_dir=copy.parent, name=copy.name)
    right = store._checksum
    seen = []
    monkeypatch.setattr(store, "_checksum", lambda arrays: seen.append(1) or right(arrays))
    monkeypatch.setattr(store, "damage", None)
    data.load_case(ready, "case_2")
    assert seen == [1]


def test_an_altered_voxel_is_damage_even_where_the_file_was_not_touched(made, copy, monkeypatch):
    ready = data.open_prepared(made[0], store_dir=copy.parent, name=copy.name)
    monkeypatch.setattr(store, "_checksum", lambda arrays: "other")
    with pytest.raises(manifest.DamagedError, match="case 2 has other voxels than were written; remove"):
        prepared.load_case(ready, "case_2")


def test_what_else_lies_in_a_store_is_no_damage(made, copy):
    folder = store._finished(copy)
    for name in (".lock", "metadata.json.partial", ".DS_Store", "prepared_cases.incomplete_x"):
        (folder / name).write_text("left behind")
    (copy / ".lock").unlink(missing_ok=True)
    assert contents(data.prepare_task(made[0], ndim=3, store_dir=copy.parent)) == made[2]


def test_the_checksums_are_those_of_sha256sum(copy):
    subprocess.run(
        ["sha256sum", "--check", "--strict", manifest.NAME], cwd=store._finished(copy), check=True, capture_output=True
    )


def test_a_store_that_was_not_sealed_is_prepared_anew(made, copy):
    """The process died between the last array and the checksums."""
    (store._finished(copy) / manifest.NAME).unlink()
    with pytest.warns(UserWarning, match=r"SHA256SUMS is damaged: it is not there"):
        again = data.prepare_task(made[0], ndim=3, store_dir=copy.parent)
    assert contents(again) == made[2]


def test_large_files_are_read_once_for_their_checksum(made, copy, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -10.0)
    data.prepare_task(made[0], ndim=3, store_dir=copy.parent)
    monkeypatch.setattr(digests, "_read", None)
    data.prepare_task(made[0], ndim=3, store_dir=copy.parent)


def test_files_that_may_not_be_read_are_no_damage(made, copy):
    path = file_of(copy, "array_record")
    path.chmod(0)
    with bound_by_permissions(), pytest.raises(UserError, match=r"cannot be read: .*Permission denied"):
        data.prepare_task(made[0], ndim=3, store_dir=copy.parent)
    path.chmod(0o644)
    assert contents(data.prepare_task(made[0], ndim=3, store_dir=copy.parent)) == made[2]


def test_files_that_cannot_be_read_for_a_moment_are_no_damage(made, copy, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -10.0)
    name, read = file_of(copy, "array_record").name, digests._read
    monkeypatch.setattr(digests, "_read", lambda path: "" if path.endswith(name) else read(path))
    with pytest.raises(UserError, match="cannot be read"):
        data.prepare_task(made[0], ndim=3, store_dir=copy.parent)
    monkeypatch.undo()
    assert contents(data.prepare_task(made[0], ndim=3, store_dir=copy.parent)) == made[2]


def test_a_link_in_place_of_the_lock_is_not_followed(made, copy, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("content")
    (copy / ".lock").unlink(missing_ok=True)
    (copy / ".lock").symlink_to(precious)
    (store._finished(copy) / "metadata.json").write_text("{}")
    with pytest.raises(OSError, match="symbolic links"):
        data.prepare_task(made[0], ndim=3, store_dir=copy.parent)
    assert precious.read_text() == "content"


def test_stores_of_finished_studies_that_name_no_patients_take_groups_for_patients(made):
    """As those versions did: a group that is not just the case's name was published."""
    record = data.open_prepared(made[0], store_dir=made[1].parent, name=made[1].name).cases[0]
    for group in (record.name, "p7"):
        entry = dataclasses.asdict(record) | {"group": group}
        del entry["patient"], entry["published"]
        found = prepared._record(entry)
        assert found == dataclasses.replace(record, group=group, patient=group, published=group != record.name)
