"""Checksums of files: any damage is seen, a crash between two writes is none, and nothing is written through links."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxseg import manifest
from jaxseg.manifest import DamagedError
from jaxseg.study import files


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    manifest.write(tmp_path / "a" / "one.txt", b"first")
    manifest.write(tmp_path / "a" / "two.txt", b"second")
    manifest.write(tmp_path / "a" / "one.txt", b"third")
    assert manifest.read(tmp_path / "a" / "one.txt") == b"third"
    assert manifest.read(tmp_path / "a" / "two.txt") == b"second"
    assert manifest.sealed(tmp_path / "a") == ("one.txt", "two.txt")
    assert manifest.check(tmp_path / "a") == {}


def test_the_manifest_is_one_that_sha256sum_checks(tmp_path: Path) -> None:
    manifest.write(tmp_path / "one.txt", b"first")
    subprocess.run(["sha256sum", "--check", "--strict", manifest.NAME], cwd=tmp_path, check=True, capture_output=True)


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path, content = tmp_path / "table.csv", b"arm,dsc\nscratch,0.5\n"
    manifest.write(path, content)
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"table\.csv is damaged: its content differs"):
            manifest.read(path)
        assert manifest.check(tmp_path) == {"table.csv": "its content differs from its checksum"}
    path.write_bytes(content)
    assert manifest.read(path) == content


def test_a_damaged_manifest_never_makes_a_file_other(tmp_path: Path) -> None:
    manifest.write(tmp_path / "a.txt", b"content")
    good = (tmp_path / manifest.NAME).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(good)
        changed[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
        (tmp_path / manifest.NAME).write_bytes(changed)
        try:
            assert manifest.read(tmp_path / "a.txt") == b"content"
        except DamagedError:
            continue


def test_a_file_that_is_gone_differs_from_one_that_never_was(tmp_path: Path) -> None:
    manifest.write(tmp_path / "a.txt", b"content")
    with pytest.raises(FileNotFoundError):
        manifest.read(tmp_path / "b.txt")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DamagedError, match="no longer there"):
        manifest.read(tmp_path / "a.txt")


def test_files_without_a_manifest_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text("arm,dsc\nscratch,0.5\n")
    assert files.read_table(tmp_path / "published.csv")["dsc"].tolist() == [0.5]


class DiedError(Exception):
    """Stands for a process that was killed."""


@pytest.mark.parametrize("at", range(3))
def test_a_process_that_dies_while_it_replaces_a_file_damages_nothing(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing takes three renames: the manifest with both checksums, the file, the manifest with the new one."""
    path = tmp_path / "study.json"
    manifest.write(path, b"old")
    real, calls = os.replace, []

    def dying(source: object, target: object) -> None:
        if len(calls) == at:
            raise DiedError
        calls.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(DiedError):
        manifest.write(path, b"new")
    monkeypatch.undo()
    assert manifest.read(path) == (b"new" if at == 2 else b"old")
    manifest.write(path, b"newer")
    assert manifest.read(path) == b"newer"
    assert len((tmp_path / manifest.NAME).read_text().splitlines()) == 1


def test_links_are_neither_written_through_nor_read(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = tmp_path / "workdir"
    folder.mkdir()
    for name in ("a.txt", "a.txt.partial", f"{manifest.NAME}.partial"):
        (folder / name).symlink_to(precious)
    manifest.write(folder / "a.txt", b"content")
    assert precious.read_text() == "precious"
    assert manifest.read(folder / "a.txt") == b"content"
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(precious)
    with pytest.raises(DamagedError, match="it is a link"):
        manifest.read(folder / "a.txt")


def test_the_same_content_is_not_written_again(tmp_path: Path) -> None:
    manifest.write(tmp_path / "a.txt", b"content")
    before = (tmp_path / "a.txt").stat().st_mtime_ns
    manifest.write(tmp_path / "a.txt", b"content")
    assert (tmp_path / "a.txt").stat().st_mtime_ns == before
    (tmp_path / "a.txt").write_bytes(b"damaged")
    manifest.write(tmp_path / "a.txt", b"content")
    assert manifest.read(tmp_path / "a.txt") == b"content"


def test_a_folder_that_something_else_wrote_is_sealed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("one", "deep/two"):
        (tmp_path / name).write_text(name)
    manifest.seal(tmp_path, ["one", "deep/two"])
    assert manifest.check(tmp_path) == {}
    (tmp_path / "deep" / "two").write_text("2")
    (tmp_path / "one").unlink()
    assert manifest.check(tmp_path) == {
        "one": "it was written and is no longer there",
        "deep/two": "its content differs from its checksum",
    }
    assert list(manifest.check(tmp_path, ["one"])) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("a.json", b'{"a": ', files.read_json),
        ("a.json", b"[1, 2]", files.read_json),
        ("a.json", b'{"a": 1}', files.read_list),
        ("a.json", b"[" * 100_000, files.read_json),
        ("a.txt", b"\xff\xfe\xff", files.read_text),
        ("a.npz", b"PK\x03\x04 no archive", files.read_arrays),
        ("a.npz", b"", files.read_arrays),
        ("a.csv", b'a,b\n1,2,3,4\n"', files.read_table),
        ("a.csv.gz", b"\x1f\x8b\x08\x00 cut", files.read_table),
    ],
)
def test_content_that_cannot_be_read_is_a_sentence(name: str, content: bytes, read, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedError, match=rf"{name} is damaged: .*; do this"):
        read(tmp_path / name, "do this")


def test_tables_are_read_from_compressed_files_too(tmp_path: Path) -> None:
    table = pd.DataFrame({"arm": ["1", "nan"], "value": [0.1, float("nan")]})
    table.to_csv(tmp_path / "a.csv.gz", index=False)
    pd.testing.assert_frame_equal(files.read_table(tmp_path / "a.csv.gz"), table)
