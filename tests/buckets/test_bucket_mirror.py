"""A mirror beside a study: it follows the folder, survives outages, and never works beside another process."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxseg.buckets import address, lease, mirror, reading, states
from jaxseg.buckets.objects import BucketError, insist, open_objects
from jaxseg.types import UserError
from tests.buckets.faults import ADDRESS, QUICK, new_bucket, objects_of, put, tree
from tests.buckets.test_states import STATES, latest


def on(machine: Path, place, said: list[str] | None = None, fault=lambda count, name: None, root=None, **options):
    """A mirror of a bucket on a machine, which is a folder; `root` is the local copy in it, `work` by default."""
    objects = objects_of(place, fault)
    tell = (said if said is not None else []).append
    return mirror.mirrored(objects, root or machine / "work", machine, tell=tell, timing=QUICK, **options)


def until(what, seconds: float = 60) -> None:
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)


def let_go(place) -> None:
    """Removes the claim of a process that ended without doing so."""
    for name in lease.claims(objects_of(place)):
        objects_of(place).remove(name)


def names(place) -> set[str]:
    return objects_of(place).names()


# ------------------------------------------------------------------------------------------------ following a folder


def test_the_bucket_follows_the_folder_and_another_machine_goes_on_from_it(tmp_path: Path):
    place = new_bucket()
    with on(tmp_path / "first", place) as held:
        put(tmp_path / "first/work", STATES[0])
        held.flush()
        assert tree(reading.copy_of(objects_of(place), address.parse(ADDRESS), tmp_path / "cache")) == STATES[0]
        put(tmp_path / "first/work", STATES[1])
        until(lambda: "report.html" in names(place))
    assert not lease.claims(objects_of(place))
    with on(tmp_path / "second", place):
        assert tree(tmp_path / "second/work") == STATES[1]
        put(tmp_path / "second/work", STATES[2])
    said: list[str] = []
    with on(tmp_path / "first", place, said):  # whose copy is the one of long ago
        assert tree(tmp_path / "first/work") == STATES[2]
    assert "bringing what differs" in said[0]


def test_logs_are_brought_although_nothing_else_changes(tmp_path: Path):
    place, log = new_bucket(), tmp_path / "work/train/c/metrics.jsonl"
    with on(tmp_path, place) as held:
        put(tmp_path / "work", STATES[0])
        held.flush()
        before = states.read(objects_of(place))
        log.write_text("{}\n")
        until(lambda: states.read(objects_of(place)) != before)
        with log.open("a") as file:
            file.write("{}\n")
    path = reading.copy_of(objects_of(place), address.parse(ADDRESS), tmp_path / "cache")
    assert (path / "train/c/metrics.jsonl").read_text() == "{}\n{}\n"


def test_nothing_is_written_while_nothing_changes(tmp_path: Path):
    place = new_bucket()
    put(tmp_path / "work", STATES[0])
    with on(tmp_path, place) as held:
        held.flush()
        first = states.read(objects_of(place))
        held.flush()
        time.sleep(0.1)
    assert states.read(objects_of(place)) == first


def test_a_process_that_died_with_work_that_no_bucket_has_goes_on_from_it_unless_another_machine_did(tmp_path: Path):
    place = new_bucket()
    with on(tmp_path / "first", place) as held:
        put(tmp_path / "first/work", STATES[0])
        held.flush()
    put(tmp_path / "first/work", STATES[0] | STATES[1])  # and dies before it is brought
    said: list[str] = []
    with on(tmp_path / "first", place, said):
        assert tree(tmp_path / "first/work") == STATES[0] | STATES[1]
    (line,) = said
    assert "going on in" in line
    put(tmp_path / "first/work", STATES[0])
    with on(tmp_path / "second", place):
        put(tmp_path / "second/work", STATES[2])
    with on(tmp_path / "first", place):
        assert tree(tmp_path / "first/work") == STATES[2]


def test_a_manifest_whose_answer_was_lost_is_known_as_the_own_one(tmp_path: Path):
    place = new_bucket()

    def fault(count, name):
        return "fail" if states.read(objects_of(place)) is not None else None

    put(tmp_path / "work", STATES[0])
    with pytest.raises(UserError, match="nothing could be brought"), on(tmp_path, place, fault=fault):
        pass  # the bucket fails from the manifest on, and nobody knows that it is there
    put(tmp_path / "work", STATES[0] | STATES[1])
    let_go(place)
    with on(tmp_path, place):
        assert tree(tmp_path / "work") == STATES[0] | STATES[1]


def test_a_study_that_was_removed_from_the_bucket_is_not_begun_again_from_a_copy(tmp_path: Path):
    place = new_bucket()
    with on(tmp_path, place):
        put(tmp_path / "work", STATES[0])
    objects_of(place).remove(latest(objects_of(place)))
    with pytest.raises(UserError, match=r"is empty.*remove the folder"), on(tmp_path, place):
        pass
    assert not lease.claims(objects_of(place))


# ------------------------------------------------------------------------------------------- what others do to a copy


def files_of(place) -> dict[str, bytes]:
    """The files of the last state in a bucket."""
    objects = objects_of(place)
    found = states.read(objects)
    assert found is not None
    return {path: objects.read(states._object(entry.sha256)) or b"" for path, entry in found.files.items()}


@pytest.mark.parametrize("died", [False, True])
@pytest.mark.parametrize("path", [*STATES[1], "train/c", "train/d", ""])
def test_what_a_cleaner_of_caches_removed_is_brought_again_and_stays_in_the_bucket(
    tmp_path: Path, path: str, died: bool
):
    place, work = new_bucket(), tmp_path / "work"
    with on(tmp_path, place):
        put(work, STATES[1])
        (work / "train/d/checkpoints").mkdir(parents=True)
    saved = {"results/new.csv": b"not in the bucket"} if died and path else {}
    put(work, STATES[1] | saved)
    shutil.rmtree(work / path) if (work / path).is_dir() else (work / path).unlink()
    work.mkdir(exist_ok=True)
    said: list[str] = []
    with on(tmp_path, place, said):
        assert tree(work) == STATES[1] | saved
        assert (work / "train/d/checkpoints").is_dir()
    assert "is brought again" in said[1]
    assert str(tmp_path / "#removed.txt") in said[1]
    assert files_of(place) == STATES[1] | saved
    assert names(place) >= states.read(objects_of(place)).objects


def test_what_the_study_removed_before_it_died_is_not_brought_again(tmp_path: Path):
    place, work, said, down = new_bucket(), tmp_path / "work", [], []

    def train() -> None:
        with on(tmp_path, place, fault=lambda count, name: "fail" if down else None) as held:
            put(work, STATES[1])
            held.flush()
            down.append(True)
            put(work, STATES[2])
            held.flush()

    with pytest.raises(UserError, match="same command again"):
        train()
    (work / "report.html").unlink()  # which a cleaner removes later on
    let_go(place)
    with on(tmp_path, place, said):
        assert tree(work) == STATES[2] | {"report.html": STATES[1]["report.html"]}
    assert "is brought again: report.html. To remove" in said[1]
    assert not (tmp_path / "#removed.txt").read_text()


def test_what_a_state_had_whose_answer_was_lost_may_be_removed_after_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(mirror, "pause", lambda failures: 0.02)
    place, work = new_bucket(), tmp_path / "work"

    def fault(count: int, name: str) -> str | None:
        return "fail" if states.read(objects_of(place)) is not None else None

    def train() -> None:
        with on(tmp_path, place, fault=fault):
            until(lambda: states.read(objects_of(place)) is not None)
            put(work, STATES[0])
            until(lambda: (tmp_path / "#removed.txt").read_text() == "old\n")

    put(work, STATES[0] | {"old": b"old"})
    with pytest.raises(UserError, match="nothing could be brought"):
        train()
    assert "old" in files_of(place)
    let_go(place)
    with on(tmp_path, place):
        assert tree(work) == STATES[0]


def test_what_was_removed_counts_no_more_once_another_machine_has_worked_on_the_study(tmp_path: Path):
    place, home = new_bucket(), tmp_path / "first"
    with on(home, place):
        put(home / "work", STATES[0])
    with on(tmp_path / "second", place):
        put(tmp_path / "second/work", STATES[1])
    (home / "#removed.txt").write_text("report.html\n")
    for _ in range(2):
        mirror.fetch(objects_of(place), home / "work", home, tell=lambda line: None)
        assert tree(home / "work") == STATES[1]
        (home / "work/report.html").unlink()


def test_a_user_removes_files_on_purpose_by_name(tmp_path: Path):
    place, work = new_bucket(), tmp_path / "work"
    with on(tmp_path, place):
        put(work, STATES[1] | {"analysis/a": b"a", "analysis/b/c": b"c", "analysis2": b"d"})
    for path in ("analysis/a", "analysis/b/c", "analysis2", "report.html", "study.json"):
        (work / path).unlink()
    (tmp_path / "#removed.txt").write_text("analysis/\n\nreport.html\nstudy.json")
    with on(tmp_path, place):
        pass
    left = {path: content for path, content in STATES[1].items() if path != "report.html"} | {"analysis2": b"d"}
    assert tree(work) == files_of(place) == left, "no study is without its record"
    (work / "analysis2").unlink()
    with on(tmp_path, place):
        assert tree(work) == left, "a name counts once"


@pytest.mark.parametrize("path", ["study.json", "points/a/config.json", ""])
def test_a_state_without_what_no_command_removes_is_not_brought(tmp_path: Path, path: str):
    place, work, said = new_bucket(), tmp_path / "work", []
    state = STATES[1] | {"points/a/config.json": b"{}"} if path else {"report.html": b"<p>"}

    def train() -> None:
        objects, patient = objects_of(place), dataclasses.replace(QUICK, patience=600.0)
        with mirror.mirrored(objects, work, tmp_path, tell=said.append, timing=patient) as held:
            put(work, state)
            held.flush()
            (work / path).unlink() if path else shutil.rmtree(work)
            until(lambda: any("no command removes it" in line for line in said))

    begun = time.monotonic()
    with pytest.raises(UserError, match=r"was there and is not any more.*Put the file back"):
        train()
    assert time.monotonic() - begun < 100, "waiting for the bucket does not bring the file back"
    assert files_of(place) == state
    assert not lease.claims(objects_of(place))
    with on(tmp_path, place):
        assert tree(work) == state
    assert files_of(place) == state


def test_a_link_in_the_place_of_a_folder_of_a_state_is_refused(tmp_path: Path):
    place, work = new_bucket(), tmp_path / "work"
    with on(tmp_path, place):
        put(work, STATES[1])
    (work / "train").rename(tmp_path / "elsewhere")
    (work / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"work/train is a link.*put the folder itself there"), on(tmp_path, place):
        pass
    assert files_of(place) == STATES[1]


def test_a_file_that_changes_while_it_is_uploaded_is_brought_from_a_copy_and_no_damaged_state_is_published(
    tmp_path: Path,
):
    place, work, said, writes = new_bucket(), tmp_path / "work", [], []

    def write_on(count: int, name: str) -> None:
        if name == "put_file" and writes:
            with (work / "grows").open("ab") as file:
                file.write(writes.pop())

    with on(tmp_path, place, said, fault=write_on) as held:
        put(work, STATES[0] | {"grows": b"a"})
        held.flush()
        writes += [b"d", b"c", b"b"]
        with (work / "grows").open("ab") as file:
            file.write(b"-")
        held.flush()
        until(lambda: not writes)
    assert [line for line in said if "grows changed while being uploaded" in line] == [said[-1]]
    assert files_of(place) == STATES[0] | {"grows": b"a-bcd"}
    assert tree(reading.copy_of(objects_of(place), address.parse(ADDRESS), tmp_path / "cache")) == tree(work)


# ---------------------------------------------------------------------------------------------------------- outages


def test_an_outage_is_told_and_what_was_done_meanwhile_is_brought_after_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(mirror, "pause", lambda failures: 0.02)
    place, said, down = new_bucket(), [], []
    with on(tmp_path, place, said, fault=lambda count, name: "fail" if down else None) as held:
        put(tmp_path / "work", STATES[0])
        held.flush()
        down.append(True)
        put(tmp_path / "work", STATES[1])
        until(lambda: any("the study goes on, trying again" in line for line in said))
        put(tmp_path / "work", STATES[2])
        down.clear()
        held.flush()
        assert any("answers again" in line for line in said)
        copy = reading.copy_of(objects_of(place), address.parse(ADDRESS), tmp_path / "cache")
        assert tree(copy) == STATES[2]


def test_the_end_of_a_stage_fails_when_the_bucket_is_away_for_too_long_and_says_where_the_study_is(tmp_path: Path):
    place, said, down = new_bucket(), [], []

    def train() -> None:
        with on(tmp_path, place, said, fault=lambda count, name: "fail" if down else None) as held:
            put(tmp_path / "work", STATES[0])
            held.flush()
            down.append(True)
            put(tmp_path / "work", STATES[1])
            held.flush()

    with pytest.raises(UserError, match="same command again on this machine") as caught:
        train()
    assert str(tmp_path / "work") in str(caught.value)
    let_go(place)
    with on(tmp_path, place):
        assert tree(tmp_path / "work") == STATES[1]


def test_what_may_pass_is_tried_again_and_what_will_not_is_said_at_once():
    said: list[str] = []
    failing = iter([BucketError("s3://b", ConnectionError("no route")), BucketError("s3://b", ConnectionError())])

    def what():
        for error in failing:
            raise error
        return 3

    times = SimpleNamespace(slept=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxseg.buckets.objects.time.sleep", times.slept.append)
        assert insist(what, seconds=10, tell=said.append) == 3
    assert times.slept == [1.0, 2.0]
    assert said[0] == "bucket: s3://b: no route; trying again in 1 s"
    for error in (FileNotFoundError("no such bucket"), PermissionError("Forbidden")):

        def refuse(error=error):
            raise BucketError("s3://b", error)

        with pytest.raises(UserError, match="check the name of the bucket, and the credentials"):
            insist(refuse, seconds=10, tell=said.append)
    assert len(said) == 2


# ---------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "text", ["gs://", "gs:///x", "s3://b", "s3://My_Bucket/x", "gs://bkt/a//b", "gs://bkt/../x", "gs://bkt/*"]
)
def test_what_is_no_address_of_a_workdir_is_refused(text: str):
    with pytest.raises(UserError, match=r"cannot name a bucket|cannot be a part"):
        address.parse(text)


def test_other_services_and_addresses_that_pathlib_has_cut_are_refused():
    with pytest.raises(UserError, match=r"or lie in a bucket as gs://BUCKET/PATH and s3://BUCKET/PATH"):
        address.parse("az://bucket/x")
    with pytest.raises(UserError, match="lost a slash"):
        address.parse(Path("gs://bucket/x"))


def test_no_two_addresses_share_a_copy():
    texts = ("s3://bucket/a/b", "s3://bucket/a-b", "gs://bucket/a/b", "s3://bucket")
    found = {address.parse(text).slug for text in texts}
    assert len(found) == len(texts)
    assert address.parse("s3://bucket/").name == "bucket"


def test_without_a_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"needs the package s3fs.*pip install 'jaxseg\[buckets\]'"):
        open_objects(address.parse("s3://bucket/x"))
