"""Whatever fails, and whenever: a bucket holds one whole state, and a machine without a copy goes on from it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from jaxseg.buckets import snapshot, states
from jaxseg.buckets.objects import BucketError
from jaxseg.buckets.snapshot import Folder
from jaxseg.buckets.states import ChangedFilesError, DamagedStateError, Pushed
from jaxseg.types import UserError
from tests.buckets.faults import KilledError, new_bucket, objects_of, put, tree

STATES = (
    {"study.json": b"1", "results/cases.csv": b"a,b\n", "train/c/checkpoints/4/d/x": b"four"},
    {
        "study.json": b"2",
        "report.html": b"<p>",
        "train/c/checkpoints/4/d/x": b"four",
        "train/c/checkpoints/8/d/x": b"8",
    },
    {"study.json": b"2", "report.html": b"<p>!", "train/c/checkpoints/8/d/x": b"8", "figures/a.svg": b"four"},
)


class Process:
    """A process that brings the states of a study to a bucket, one after the other."""

    def __init__(self, place, folder: Path, fault=lambda count, name: None):
        self.objects = objects_of(place, fault)
        self._folder, self._root = Folder(folder, folder.parent / "staged"), folder
        self._pushed = None

    def push(self) -> None:
        self._pushed = self._pushed or Pushed(self.objects, states.latest_term(self.objects) + 1)
        found = self._folder.take()
        assert found is not None
        self._pushed.push(states.manifest_of(found), found.staged, lambda: None)
        self._folder.keep(found)


def bring(place, folder: Path) -> dict[str, bytes] | None:
    """What another machine gets."""
    found = states.pull(objects_of(place), folder)
    return None if found is None else tree(folder)


def latest(objects) -> str:
    """The name of the only manifest."""
    (name,) = objects.names(states.FOLDER)
    return name


def operations(tmp_path: Path) -> int:
    process = Process(new_bucket(), tmp_path / "count")
    for state in STATES:
        put(tmp_path / "count", state)
        process.push()
    return process.objects._files.count


def test_a_kill_at_any_operation_leaves_the_state_before_or_the_one_that_was_on_its_way(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(states, "_PARALLEL", 1)  # so that the k-th operation is always the same
    total = operations(tmp_path)
    assert total > 15
    kinds, kills = set(), 0
    for k in range(1, total + 1):
        for kind in ("kill", "killed after"):
            place, folder = new_bucket(), tmp_path / f"{k} {kind}" / "work"
            process = Process(place, folder, lambda count, name, k=k, kind=kind: kind if count >= k else None)
            allowed: list[dict[str, bytes] | None] = [None]
            try:
                for state in STATES:
                    allowed = [allowed[-1], put(folder, state)]
                    process.push()
            except KilledError:
                kills += 1
            found = bring(place, folder.parent / "other")
            assert found in allowed, (k, kind)
            kinds.add(found == allowed[-1])
            later = Process(place, folder.parent / "other")
            put(folder.parent / "other", STATES[-1])
            later.push()
            assert bring(place, folder.parent / "third") == STATES[-1]
            manifest = states.read(later.objects)
            shown = {"report.html", "figures/a.svg"}
            assert later.objects.names() == manifest.objects | shown | {latest(later.objects)}, "nothing is left behind"
            assert later.objects.read("report.html") == b"<p>!"
    assert kinds == {True, False}
    assert kills == 2 * total


@pytest.mark.parametrize("kind", ["fail", "lost answer"])
def test_any_operation_may_fail_and_the_next_try_brings_the_rest(tmp_path: Path, monkeypatch, kind: str):
    monkeypatch.setattr(states, "_PARALLEL", 1)
    for k in range(1, operations(tmp_path) + 1):
        place, folder = new_bucket(), tmp_path / str(k) / "work"
        process = Process(place, folder, lambda count, name, k=k: kind if count == k else None)
        failures = 0
        for state in STATES:
            put(folder, state)
            try:
                process.push()
            except BucketError:
                failures += 1
        if failures:
            process.push()
        assert failures == 1
        assert bring(place, folder.parent / "other") == STATES[-1]


def test_a_copy_of_this_machine_is_compared_and_only_what_differs_is_brought(tmp_path: Path):
    place = new_bucket()
    process = Process(place, tmp_path / "work")
    put(tmp_path / "work", STATES[0])
    process.push()
    put(tmp_path / "copy", STATES[0] | {"study.json": b"x", "old/file": b"old"})
    objects = objects_of(place)
    names = []
    objects._files.fault = lambda count, name: names.append(name)
    states.pull(objects, tmp_path / "copy")
    assert names.count("get_file") == 1
    for name in ("cases.csv", "d"):  # as much as is equal is brought once
        put(tmp_path / "work", dict.fromkeys(("a", "b", f"c/{name}"), name.encode()))
        process.push()
        names.clear()
        assert states.pull(objects, tmp_path / "copy") is not None
        assert names.count("get_file") == 1
        assert tree(tmp_path / "copy") == tree(tmp_path / "work")
    put(tmp_path / "work", STATES[0])
    process.push()
    states.pull(objects, tmp_path / "copy")
    assert tree(tmp_path / "copy") == STATES[0]
    assert not (tmp_path / "copy" / "old").exists()


def test_who_may_not_replaces_and_removes_nothing(tmp_path: Path):
    place, work = new_bucket(), tmp_path / "work"
    put(work, STATES[0])
    Process(place, work).push()
    objects = objects_of(place)
    before = {name: objects.read(name) for name in objects.names()}
    put(work, STATES[2])
    found = Folder(work, tmp_path / "staged").take()

    def refuse() -> None:
        raise UserError("it was taken over")

    with pytest.raises(UserError, match="taken over"):
        Pushed(objects, 2).push(states.manifest_of(found), found.staged, refuse)
    assert {name: objects.read(name) for name in before} == before


@pytest.mark.parametrize("path", ["results/cases.csv", "train/c/checkpoints/4/d/x"])
def test_content_that_was_removed_by_a_failed_call_and_is_there_again_is_brought_again(tmp_path: Path, path: str):
    place, work = new_bucket(), tmp_path / "work"
    folder, pushed = Folder(work, tmp_path / "staged"), Pushed(objects_of(place), 1)
    put(work, STATES[0])
    found = folder.take()
    pushed.push(states.manifest_of(found), found.staged, lambda: None)
    folder.keep(found)
    (work / path).rename(tmp_path / "aside")
    without = folder.take()
    pushed.push(states.manifest_of(without), without.staged, lambda: None)  # and its last answer is lost
    (tmp_path / "aside").rename(work / path)
    again = folder.take()
    assert pushed.lacks(states.manifest_of(again), again.staged)
    folder.forget()
    again = folder.take()
    assert not pushed.lacks(states.manifest_of(again), again.staged)
    pushed.push(states.manifest_of(again), again.staged, lambda: None)
    assert bring(place, tmp_path / "other") == STATES[0]


def test_folders_that_hold_nothing_are_kept_and_what_is_unfinished_is_not(tmp_path: Path):
    place, work = new_bucket(), tmp_path / "work"
    put(
        work,
        STATES[0]
        | {".lock": b"", "results/x.csv.partial": b"x", "train/c/checkpoints/12.orbax-checkpoint-tmp/d": b""}
        | {"stores/a/prepared_cases/incomplete.AB12_1.0.0/x.array_record": b"x", "predictions/.partial-x.nii.gz": b"x"},
    )
    (work / "train" / "d" / "checkpoints").mkdir(parents=True)
    Process(place, work).push()
    assert bring(place, tmp_path / "other") == STATES[0]
    assert (tmp_path / "other" / "train" / "d" / "checkpoints").is_dir()


def test_an_altered_or_lost_object_is_named_and_nothing_of_it_is_put_in_place(tmp_path: Path):
    for content in (b"FOUR", b"longer than before", None):
        place, work = new_bucket(), tmp_path / str(content) / "work"
        put(work, STATES[0])
        process = Process(place, work)
        process.push()
        name = states._object(states.read(process.objects).files["train/c/checkpoints/4/d/x"].sha256)
        process.objects.remove(name) if content is None else process.objects.write(name, content)
        with pytest.raises(DamagedStateError, match=name):
            states.pull(process.objects, work.parent / "other")
        assert not (work.parent / "other" / "train/c/checkpoints/4/d/x").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["files"].popitem(),
        lambda tree: tree.pop("sha256"),
        lambda tree: tree["files"].update({"../../outside": [1, "0" * 64]}),
    ],
)
def test_an_altered_manifest_is_refused(tmp_path: Path, change):
    place, work = new_bucket(), tmp_path / "work"
    put(work, STATES[0])
    process = Process(place, work)
    process.push()
    name = latest(process.objects)
    tree = json.loads(process.objects.read(name))
    change(tree)
    process.objects.write(name, json.dumps(tree).encode())
    with pytest.raises(DamagedStateError, match=r"manifests/\S+\.json is damaged"):
        states.pull(process.objects, tmp_path / "other")
    process.objects.write(name, b"\xff{")
    with pytest.raises(DamagedStateError, match=r"manifests/\S+\.json is damaged"):
        states.pull(process.objects, tmp_path / "other")


def test_a_path_that_leads_out_of_the_folder_is_refused_though_its_seal_is_right(tmp_path: Path):
    objects = objects_of(new_bucket())
    evil = states.Manifest("1", {"../outside": states.Entry(1, "0" * 64)})
    objects.write(f"{states.FOLDER}/{1:012d}-{1:08d}-1.json", states.to_bytes(evil))
    with pytest.raises(UserError, match="leads nowhere, or out of it"):
        states.pull(objects, tmp_path / "other")
    assert not (tmp_path / "outside").exists()


def test_a_snapshot_of_a_folder_that_is_written_to_is_one_that_it_was_at_some_moment(tmp_path: Path, monkeypatch):
    work = tmp_path / "work"
    put(work, {"a": b"0", "b": b"0", "metrics.jsonl": b"0"})
    link, writes = snapshot.link, iter(range(1, 4))

    def link_while_it_is_written_to(path: Path, target: Path) -> None:
        link(path, target)
        if path.name == "a" and (number := next(writes, None)):  # between the links of a and b both are replaced
            put(work, {"a": b"%d" % number, "b": b"%d" % number, "metrics.jsonl": b"0"})

    monkeypatch.setattr(snapshot, "link", link_while_it_is_written_to)
    monkeypatch.setattr(snapshot, "_TRY_SECONDS", 0.0)
    found = Folder(work, tmp_path / "staged").take()
    assert found is not None
    assert [found.staged[found.files[name].sha256].path.read_bytes() for name in "ab"] == [b"3", b"3"]

    writes = itertools.count(4)  # and never ends
    assert Folder(work, tmp_path / "staged").take() is None


def write_in_place(path: Path, content: bytes) -> None:
    """Changes a file and whatever is linked to it."""
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before, before + 1))  # as if the clock had gone on


@pytest.mark.parametrize("kind", [None, "fail", "lost answer"])
@pytest.mark.parametrize("content", [b"2 and more", b"3"])
@pytest.mark.parametrize("put_back", [False, True])
def test_a_state_of_which_a_file_changes_before_it_is_uploaded_is_not_published(
    tmp_path: Path, content: bytes, kind: str | None, put_back: bool
):
    place, work = new_bucket(), tmp_path / "work"
    put(work, STATES[0])
    process = Process(place, work)
    process.push()
    put(work, STATES[1])
    taken = process._folder.take()
    write_in_place(work / "study.json", content)
    faults = iter([kind])
    process.objects._files.fault = lambda count, name: next(faults, None) if name == "put_file" else None
    with pytest.raises(ChangedFilesError, match=r"study\.json changed") as caught:
        process._pushed.push(states.manifest_of(taken), taken.staged, lambda: None)
    assert bring(place, tmp_path / "other") == STATES[0]

    process._folder.copy_hereafter(caught.value.paths)
    expected = put(work, STATES[1] | ({} if put_back else {"study.json": content}))  # or named as what was damaged
    again = process._folder.take()
    write_in_place(work / "study.json", b"4")  # of which a copy knows nothing
    process._pushed.push(states.manifest_of(again), again.staged, lambda: None)
    assert bring(place, tmp_path / "other") == expected
    manifest = states.read(process.objects)
    assert process.objects.names() == manifest.objects | {"report.html", latest(process.objects)}


def test_the_folder_in_which_tfds_writes_is_left_out_until_it_is_whole(tmp_path: Path):
    with tfds.core.utils.incomplete_dir(tmp_path / "stores/a/prepared_cases/1.0.0") as begun:
        (Path(begun) / "x.array_record").write_bytes(b"x")
        assert snapshot.scan(tmp_path) == ({}, ("stores/a/prepared_cases",))
    assert list(snapshot.scan(tmp_path)[0]) == ["stores/a/prepared_cases/1.0.0/x.array_record"]


def test_what_tfds_was_writing_when_an_earlier_version_took_a_state_is_not_brought(tmp_path: Path):
    objects = objects_of(new_bucket())
    content, path = b"1", "stores/a/prepared_cases/incomplete.AB12_1.0.0"
    files = {
        "study.json": states.Entry(1, hashlib.sha256(content).hexdigest()),
        f"{path}/x.array_record": states.Entry(1, "0" * 64),
    }
    objects.write(states._object(files["study.json"].sha256), content)
    objects.write(states._object("0" * 64), b"longer, and something else")
    before = states.Manifest("1", files, (f"{path}/empty",))
    objects.write(f"{states.FOLDER}/{1:012d}-{1:08d}-1.json", states.to_bytes(before))
    states.pull(objects, tmp_path / "other")
    assert [entry.name for entry in (tmp_path / "other").iterdir()] == ["study.json"]
    Process((objects._root, objects._files._files), tmp_path / "other").push()
    assert objects.names("objects") == {states._object(files["study.json"].sha256)}


def test_the_first_part_of_an_object_is_not_taken_for_it(tmp_path: Path):
    place, folder = new_bucket(), tmp_path / "work"
    put(folder, STATES[0])
    objects_of(place).write(states._object(hashlib.sha256(b"four").hexdigest()), b"fo")
    Process(place, folder).push()
    assert bring(place, tmp_path / "other") == STATES[0]
