"""Checksums of files are remembered for as long as the files stay as they are, and never longer."""

import hashlib
import json
import os

import numpy as np
import pytest

from jaxseg.data import digests


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read; every file counts as settled, however young."""
    seen = []
    read = digests._read

    def counted(path):
        seen.append(os.path.basename(path))
        return read(path)

    monkeypatch.setattr(digests, "_read", counted)
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -10.0)
    return seen


def of(path, store_dir):
    return digests.of_files([path], store_dir=store_dir)[str(path)].sha256


def test_files_are_read_once(tmp_path, reads):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name * 5)
    first = digests.of_files(paths, store_dir=tmp_path / "store")
    assert [first[str(path)].sha256 for path in paths] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    ]
    assert sorted(reads) == ["a", "b", "c"]
    assert digests.of_files(paths, store_dir=tmp_path / "store") == first
    assert len(reads) == 3


def test_an_edit_that_puts_size_and_time_back_is_seen(tmp_path, reads):
    path = tmp_path / "image.nii"
    path.write_text("first")
    before, status = of(path, tmp_path), path.stat()
    path.write_text("other")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert of(path, tmp_path) != before


def test_a_file_that_may_change_again_within_its_time_step_is_not_remembered(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 3.0)
    (tmp_path / "young").write_text("x")
    of(tmp_path / "young", tmp_path)
    of(tmp_path / "young", tmp_path)
    assert reads == ["young", "young"]


def test_a_link_and_another_spelling_are_the_file_itself(tmp_path, reads):
    path = tmp_path / "a"
    path.write_text("x")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "b").mkdir()
    digests.of_files([path, tmp_path / "link", tmp_path / "b" / ".." / "a"], store_dir=tmp_path / "store")
    assert reads == ["a"]


def test_what_is_missing_or_unreadable_has_no_checksum_and_is_asked_for_again(tmp_path, reads):
    (tmp_path / "folder").mkdir()
    assert of(tmp_path / "absent", tmp_path) == ""
    assert of(tmp_path / "folder", tmp_path) == ""
    (tmp_path / "absent").write_text("x")
    assert of(tmp_path / "absent", tmp_path) == hashlib.sha256(b"x").hexdigest()


def test_damage_of_what_is_remembered_only_means_reading_again(tmp_path, reads):
    path, store_dir = tmp_path / "a", tmp_path / "store"
    path.write_text("x")
    right = of(path, store_dir)
    remembered = store_dir / digests.REMEMBERED
    good = remembered.read_bytes()
    rng = np.random.default_rng(0)
    contents = [b"", b"{}", b"[]", b"null", good[: len(good) // 2], json.dumps({"sha256": "", "files": []}).encode()]
    for bit in rng.choice(8 * len(good), 60, replace=False).tolist():
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        contents.append(bytes(flipped))
    for content in contents:
        remembered.write_bytes(content)
        assert of(path, store_dir) == right
    remembered.unlink()
    remembered.mkdir()
    assert of(path, store_dir) == right


def test_checksums_of_arrays_are_of_values_and_shape_not_of_layout():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert digests.of_array(array) == digests.of_array(np.asfortranarray(array))
    assert digests.of_array(array[:, ::-1]) == digests.of_array(array[:, ::-1].copy())
    others = [array.reshape(4, 3, 2), array.astype(np.int32), array + 1, array[:, ::-1]]
    assert len({digests.of_array(other) for other in [array, *others]}) == 5
