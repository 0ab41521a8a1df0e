"""A mirror beside a study: it follows the folder, survives outages, and never works beside another process."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxseg.buckets import address, lease, mirror, reading, states
from jaxseg.buckets.lease import LostLeaseError
from jaxseg.buckets.objects import BucketError, insist, open_objects
from jaxseg.types import UserError
from tests.buckets.faults import ADDRESS, QUICK, new_bucket, objects_of, put, tree
from tests.buckets.test_states import STATES


def on(machine: Path, place, said: list[str] | None = None, fault=lambda count, name: None, **options):
    """A mirror of a bucket on a machine, which is a folder."""
    objects = objects_of(place, fault)
    tell = (said if said is not None else []).append
    return mirror.mirrored(objects, machine / "work", machine, tell=tell, timing=QUICK, **options)


def until(what, seconds: float = 60) -> None:
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)


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
    assert lease.NAME not in names(place)
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
    put(tmp_path / "first/work", STATES[1])  # and dies before it is brought
    said: list[str] = []
    with on(tmp_path / "first", place, said):
        assert tree(tmp_path / "first/work") == STATES[1]
    assert "going on in" in said[0]
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
    put(tmp_path / "work", STATES[1])
    objects_of(place).remove(lease.NAME)
    with on(tmp_path, place):
        assert tree(tmp_path / "work") == STATES[1]


def test_a_study_that_was_removed_from_the_bucket_is_not_begun_again_from_a_copy(tmp_path: Path):
    place = new_bucket()
    with on(tmp_path, place):
        put(tmp_path / "work", STATES[0])
    objects_of(place).remove(states.NAME)
    with pytest.raises(UserError, match=r"is empty.*remove the folder"), on(tmp_path, place):
        pass
    assert lease.NAME not in names(place)


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
    objects_of(place).remove(lease.NAME)
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


# ------------------------------------------------------------------------------------------------------------- leases


def test_a_second_process_is_refused_by_name_as_long_as_the_first_lives(tmp_path: Path):
    place = new_bucket()
    with on(tmp_path / "first", place):
        with pytest.raises(UserError, match=r"in use by process \d+ of \w+ on "), on(tmp_path / "second", place):
            pass
        assert not (tmp_path / "second").exists()


def foreign(place, beat: int = 0) -> None:
    """A lease of a process of another machine."""
    content = {
        "token": "theirs",
        "beat": beat,
        "host": "node7",
        "user": "ada",
        "pid": 12,
        "machine": "x",
        "started": "1",
    }
    objects_of(place).write(lease.NAME, json.dumps(content).encode())


def test_a_lease_of_another_machine_is_watched_and_taken_over_when_nobody_renews_it(tmp_path: Path):
    place, said = new_bucket(), []
    foreign(place)
    with on(tmp_path, place, said):
        pass
    assert said[0].startswith(f"bucket: {ADDRESS} was left in use by process 12 of ada on node7")
    foreign(place)
    beats = iter(range(1, 100))
    with pytest.raises(UserError, match="in use by process 12 of ada on node7"):
        lease.take(
            objects_of(place), "mine", tell=said.append, stale=60, settle=0, sleep=lambda _: foreign(place, next(beats))
        )
    assert next(beats) == 2, "the first sign of life is enough"


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path):
    place = new_bucket()
    program = (
        "import fsspec, os, sys\n"
        "from jaxseg.buckets import lease\n"
        "from jaxseg.buckets.objects import Objects\n"
        "objects = Objects('x', sys.argv[1], fsspec.filesystem('file', auto_mkdir=True))\n"
        "lease.take(objects, 'theirs', tell=print, settle=0)\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    objects_of(place).write(lease.NAME, (tmp_path / lease.NAME).read_bytes())

    def sleep(seconds: float) -> None:
        assert not seconds, "it is not watched"

    assert lease.take(objects_of(place), "mine", tell=print, settle=0, sleep=sleep).check() is None


def test_a_lease_is_renewed_while_a_study_is_brought(tmp_path: Path, monkeypatch):
    place, beats = new_bucket(), []
    with on(tmp_path / "first", place):
        put(tmp_path / "first/work", STATES[0])
    fetch = states._fetch

    def slow(objects, entry, places):
        begun = objects_of(place).read(lease.NAME)
        until(lambda: objects_of(place).read(lease.NAME) != begun)
        beats.append(places)
        fetch(objects, entry, places)

    monkeypatch.setattr(states, "_fetch", slow)
    with on(tmp_path / "second", place):
        assert tree(tmp_path / "second/work") == STATES[0]
    assert len(beats) == len(STATES[0])


def test_a_lease_is_renewed_after_a_moment_without_a_free_file(tmp_path: Path, monkeypatch):
    place, renew, failed = new_bucket(), lease.Lease.renew, []

    def short_of_files(self):
        if not failed:
            failed.append(self)
            raise OSError(errno.EMFILE, "too many open files")
        renew(self)

    monkeypatch.setattr(lease.Lease, "renew", short_of_files)
    with on(tmp_path, place):
        until(lambda: failed)
        begun = objects_of(place).read(lease.NAME)
        until(lambda: objects_of(place).read(lease.NAME) != begun)


def test_of_two_that_take_over_at_once_where_creation_is_not_exclusive_one_is_refused():
    """The service lets both create the lease; the second overwrites the first, who finds out when it reads again."""
    place = new_bucket()
    with pytest.raises(UserError, match="in use by process 12 of ada"):
        lease.take(objects_of(place), "mine", tell=print, settle=1, sleep=lambda wait: foreign(place) if wait else None)


def test_a_take_that_failed_after_it_had_taken_the_lease_holds_it_when_repeated():
    place = new_bucket()
    with pytest.raises(BucketError):
        lease.take(
            objects_of(place, lambda c, name: "lost answer" if name == "pipe_file" else None), "mine", tell=print
        )
    assert lease.take(objects_of(place), "mine", tell=print, settle=0).check() is None
    with pytest.raises(UserError, match="in use"):
        lease.take(objects_of(place), "another", tell=print, settle=0)


def test_a_holder_that_was_taken_over_stops_and_writes_nothing_more(tmp_path: Path):
    place, stopped, before = new_bucket(), [], []

    def train() -> None:
        with on(tmp_path, place, lost=lambda: stopped.append(True)) as held:
            put(tmp_path / "work", STATES[0])
            held.flush()
            before.append(states.read(objects_of(place)))
            foreign(place)
            put(tmp_path / "work", STATES[1])
            until(lambda: stopped)
            raise KeyboardInterrupt  # as a signal that `lost` sends would

    with pytest.raises(LostLeaseError, match="taken over by process 12 of ada on node7"):
        train()
    assert stopped == [True]
    assert states.read(objects_of(place)) == before[0]
    assert b"theirs" in objects_of(place).read(lease.NAME)


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
