"""What a reader is given: one state, which stays as it is while it is read, whatever others do with the bucket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jaxseg.buckets import address, locks, reading
from jaxseg.study.mirror import mirror
from tests.buckets.faults import ADDRESS, new_bucket, objects_of, put, tree
from tests.buckets.test_bucket_mirror import on
from tests.buckets.test_states import STATES
from tests.conftest import ROOT


def read(place, scratch: Path, **options) -> Path:
    return reading.copy_of(objects_of(place), address.parse(ADDRESS), scratch, **options)


def test_a_copy_that_is_read_stays_as_it_is_when_another_reader_brings_a_later_state(tmp_path: Path):
    place = new_bucket()
    copies = []
    for state in STATES:
        with on(tmp_path, place):
            put(tmp_path / "work", state)
        copies.append(read(place, tmp_path / "cache"))
    assert [tree(copy) for copy in copies] == [*STATES]
    assert {copy.name for copy in copies} == {"mine"}
    unchanged = "train/c/checkpoints/4/d/x"
    assert (copies[0] / unchanged).samefile(copies[1] / unchanged), "what two states share is there once"
    assert read(place, tmp_path / "cache") == copies[-1]


def test_states_that_nobody_reads_any_more_are_removed_by_the_next_reader(tmp_path: Path, monkeypatch):
    place = new_bucket()
    monkeypatch.setattr(reading, "_hold", lambda path: None)  # as in a process that has ended
    copies = []
    for number, state in enumerate(STATES):
        with on(tmp_path, place):
            put(tmp_path / "work", state)
        copies.append(read(place, tmp_path / "cache"))
        if number == 1:
            held = locks.lock(copies[1].parent / ".lock", locks.TOGETHER)
            assert held is not None
    assert [copy.exists() for copy in copies] == [False, True, True]


def test_a_reader_of_another_process_keeps_its_state_until_it_ends(tmp_path: Path):
    (tmp_path / "state").mkdir()
    program = (
        "import sys\nfrom pathlib import Path\nfrom jaxseg.buckets import reading\n"
        "reading._hold(Path(sys.argv[1]) / '.lock')\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "state")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    reading._remove_unused(tmp_path, kept="")
    assert (tmp_path / "state").exists()
    process.communicate()
    reading._remove_unused(tmp_path, kept="")
    assert not (tmp_path / "state").exists()


def test_a_damaged_file_of_a_copy_is_brought_again(tmp_path: Path):
    place = new_bucket()
    with on(tmp_path, place):
        put(tmp_path / "work", STATES[0])
    copy = read(place, tmp_path / "cache")
    (copy / "study.json").write_bytes(b"?")
    assert tree(read(place, tmp_path / "cache")) == STATES[0]


@pytest.mark.parametrize("name", ["read", "staged", "note.json", "latest"])
def test_an_address_may_end_in_any_name(tmp_path: Path, name: str):
    """What lies beside a local copy never has its name."""
    place, found = new_bucket(), address.parse(f"s3://bucket/{name}")
    home = tmp_path / found.slug
    for state in STATES:
        with on(home, place, root=home / found.name) as held:
            put(home / found.name, state)
            held.flush()
            copy = reading.copy_of(objects_of(place), found, tmp_path)
        assert tree(copy) == tree(home / found.name) == state


def test_nothing_is_called_finished_while_a_process_works_on_the_bucket(tiny_study: Path, tmp_path: Path, monkeypatch):
    place = new_bucket()
    monkeypatch.setattr(reading, "open_objects", lambda found: objects_of(place))
    assert not reading.is_in_use(ADDRESS)
    assert not reading.is_in_use(str(tmp_path))
    with on(tmp_path, place):
        assert reading.is_in_use(ADDRESS)
    assert not reading.is_in_use(ADDRESS)
    for busy, state in ((False, "finished"), (True, "running")):
        found = mirror(tiny_study, busy=busy)
        assert {run.state for run in found.runs if not run.key.startswith("run:")} == {state}
        assert any("a process works on it" in line for line in found.missing) == busy
