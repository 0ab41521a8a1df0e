"""The lease of a workdir: never two holders, and what a process writes that lost it replaces nothing."""

from __future__ import annotations

import errno
import itertools
import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from jaxseg.buckets import lease, states
from jaxseg.buckets.lease import Lease, LostLeaseError
from jaxseg.buckets.objects import BucketError, Objects
from jaxseg.buckets.snapshot import Folder
from jaxseg.types import UserError
from tests.buckets.faults import ADDRESS, new_bucket, objects_of, put, tree
from tests.buckets.interleaved import held_up, orders, run
from tests.buckets.test_bucket_mirror import on, until
from tests.buckets.test_states import STATES


def take(objects: Objects, token: str, **options) -> Lease:
    return lease.take(
        objects, token, **{"tell": lambda line: None, "stale": 3, "settle": 0, "sleep": lambda _: None, **options}
    )


FOREIGN = f"{lease.FOLDER}/{17:012d}-theirs"


def foreign(place, beat: int | None = None) -> None:
    """A claim of a process of another machine."""
    content = {"host": "node7", "user": "ada", "pid": 12, "machine": "x", "started": "1"}
    objects_of(place).write(FOREIGN, json.dumps(content).encode())
    if beat is not None:
        objects_of(place).write(f"{FOREIGN}.beat", b"%d" % beat)


def beats(place) -> list[bytes | None]:
    objects = objects_of(place)
    return [objects.read(name) for name in sorted(objects.names(lease.FOLDER)) if name.endswith(".beat")]


# --------------------------------------------------------------------------------------------------------------- races


@pytest.fixture(autouse=True)
def empty_memory():
    """What other tests left in memory would be searched by every list."""
    fsspec.filesystem("memory").store.clear()


def elsewhere(monkeypatch: pytest.MonkeyPatch, alive: bool | None = None) -> None:
    """Lets each process run on a machine of its own; or makes known whether those that race are alive."""
    monkeypatch.setattr(lease, "_is_alive", lambda holder: None if holder.get("machine") == "x" else alive)


def holds(one: object) -> bool:
    """Whether a process has the lease, as it finds out before it writes anything."""
    if not isinstance(one, Lease):
        return False
    try:
        one.check()
    except LostLeaseError:
        return False
    return True


@pytest.mark.parametrize("left_behind", [False, True])
@pytest.mark.parametrize("alive", [True, None])
def test_of_two_that_take_it_at_once_in_any_order_of_operations_at_most_one_holds_it(
    left_behind: bool, alive: bool | None, monkeypatch
):
    """Processes are held up between any two operations: known to be alive, or so long that they count as gone."""
    elsewhere(monkeypatch, alive)
    monkeypatch.setattr(lease, "_LOOKS", 3)
    held, count = 0, 0
    for choose in orders(switches=2):
        place = new_bucket()
        if left_behind:
            foreign(place)
        found = run(place, [lambda objects, token=token: take(objects, token, stale=1) for token in "ab"], choose)
        leases = [one for one in found if isinstance(one, Lease)]
        assert len(leases) <= 1 or not alive
        assert sum(map(holds, found)) <= 1
        for one in set(found) - set(leases):
            assert isinstance(one, UserError), one
            assert "is in use by" in str(one)
        held, count = held + sum(map(holds, found)), count + 1
        place[1].store.clear()
    assert count > 60
    assert held > 0.9 * count


def test_one_that_was_watched_and_gave_a_late_sign_of_life_has_lost_it():
    """Whatever operation of its beat it is stopped at, it holds nothing afterwards and takes nothing away."""
    for stopped_at in range(1, 4):
        place = new_bucket()
        found: list[Lease] = []

        def beat(objects, found=found) -> None:
            found.append(take(objects, "a"))
            found[0].renew()

        def take_over(objects) -> Lease:
            return take(objects, "b", stale=1)

        with pytest.MonkeyPatch.context() as patch:
            elsewhere(patch)
            steps = iter(range(1000))

            def choose(left: list[int], found=found, steps=steps, stopped_at=stopped_at) -> int:
                begun = found and next(steps) >= stopped_at
                return left[-1] if begun and 1 in left else left[0]

            _, later = run(place, [beat, take_over], choose)
        assert isinstance(later, Lease), later
        later.check()
        with pytest.raises(LostLeaseError):
            found[0].renew()


def test_whenever_a_writer_is_held_up_and_taken_over_the_state_of_its_successor_stays(tmp_path: Path, monkeypatch):
    """The successor's is the last state, although the first goes on in the middle of writing one of its own."""
    elsewhere(monkeypatch)
    monkeypatch.setattr(states, "_all", lambda what, names: [what(name) for name in names])
    work, other = tmp_path / "first", tmp_path / "second"
    lost = set()
    for after in itertools.count(1):
        place = new_bucket()
        put(work, STATES[0])
        objects = objects_of(place)
        holder = take(objects, "a")
        pushed = states.Pushed(objects, holder.term)
        found = Folder(work, tmp_path / "staged").take()
        pushed.push(states.manifest_of(found), found.staged, holder.check)
        put(work, STATES[1])
        found = Folder(work, tmp_path / "staged").take()

        def go_on(network: Objects, holder=holder, pushed=pushed, found=found) -> None:
            pushed._objects = holder._objects = network
            pushed.push(states.manifest_of(found), found.staged, holder.check)

        def take_over(network: Objects) -> Lease:
            second = take(network, "b", stale=1)
            states.pull(network, other)
            put(other, STATES[2])
            snapshot = Folder(other, tmp_path / "staged2").take()
            states.Pushed(network, second.term).push(states.manifest_of(snapshot), snapshot.staged, second.check)
            return second

        one, second = run(place, [go_on, take_over], held_up(after))
        assert isinstance(second, Lease), second
        assert one is None or isinstance(one, LostLeaseError), one
        assert states.pull(objects_of(place), tmp_path / "reader") is not None
        assert tree(tmp_path / "reader") == STATES[2], after
        if one is None:
            break  # it had written its state by then
        lost.add(len(objects.names(states.FOLDER)))
    assert after > 10
    assert lost == {1, 2}, "it wrote no manifest, or one that is not the last"


def test_the_term_grows_though_another_came_and_went_between_two_looks():
    for after in range(1, 10):
        place = new_bucket()

        def come_and_go(objects: Objects) -> None:
            held = take(objects, "a")
            states.Pushed(objects, held.term).push(states.Manifest("1", {}), {}, held.check)
            held.release()

        second, _ = run(place, [lambda objects: take(objects, "b"), come_and_go], held_up(after))
        assert isinstance(second, Lease), second
        objects = objects_of(place)
        states.Pushed(objects, second.term).push(states.Manifest("2", {}), {}, second.check)
        assert states.read(objects).id == "2", after


def test_the_manifest_of_a_bucket_of_before_is_read_and_replaced(tmp_path: Path):
    place = new_bucket()
    objects = objects_of(place)
    with on(tmp_path / "first", place):
        put(tmp_path / "first/work", STATES[0])
    (name,) = objects.names(states.FOLDER)
    objects.write("manifest.json", objects.read(name))
    objects.remove(name)
    with on(tmp_path / "second", place):
        assert tree(tmp_path / "second/work") == STATES[0]
        put(tmp_path / "second/work", STATES[1])
    assert objects.read("manifest.json") is None
    assert states.pull(objects, tmp_path / "reader").files.keys() == STATES[1].keys()


# ---------------------------------------------------------------------------------------------------- one after another


def test_a_second_process_is_refused_by_name_as_long_as_the_first_lives(tmp_path: Path):
    place = new_bucket()
    with on(tmp_path / "first", place):
        with pytest.raises(UserError, match=r"in use by process \d+ of \w+ on "), on(tmp_path / "second", place):
            pass
        assert not (tmp_path / "second").exists()
        assert len(lease.claims(objects_of(place))) == 1


def test_a_claim_of_another_machine_is_watched_and_taken_over_when_nobody_renews_it(tmp_path: Path):
    place, said = new_bucket(), []
    foreign(place)
    with on(tmp_path, place, said):
        pass
    assert said[0].startswith(f"bucket: {ADDRESS} was left in use by process 12 of ada on node7")
    foreign(place)
    numbers = iter(range(1, 100))
    with pytest.raises(UserError, match="in use by process 12 of ada on node7"):
        take(objects_of(place), "mine", stale=60, sleep=lambda _: foreign(place, next(numbers)))
    assert next(numbers) == 2, "the first sign of life is enough"


def test_a_claim_that_cannot_be_read_is_watched_too():
    place = new_bucket()
    objects_of(place).write(FOREIGN, b"\xff{")
    slept: list[float] = []
    assert take(objects_of(place), "mine", stale=5, sleep=slept.append).check() is None
    assert sum(slept) == 5


def test_a_holder_that_ends_while_it_is_watched_is_followed_at_once():
    place = new_bucket()
    foreign(place, beat=1)
    slept: list[float] = []

    def release(seconds: float) -> None:
        slept.append(seconds)
        objects_of(place).remove(FOREIGN)
        objects_of(place).remove(f"{FOREIGN}.beat")

    assert take(objects_of(place), "mine", stale=60, sleep=release).check() is None
    assert sum(slept) == 1


def test_a_claim_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path):
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
    there = Objects("x", str(tmp_path), fsspec.filesystem("file", auto_mkdir=True))
    (claim,) = lease.claims(there)
    objects_of(place).write(claim, there.read(claim))

    def sleep(seconds: float) -> None:
        assert not seconds, "it is not watched"

    assert take(objects_of(place), "mine", sleep=sleep).check() is None


def test_a_lease_is_renewed_while_a_study_is_brought(tmp_path: Path, monkeypatch):
    place, brought = new_bucket(), []
    with on(tmp_path / "first", place):
        put(tmp_path / "first/work", STATES[0])
    fetch = states._fetch

    def slow(objects, entry, paths):
        begun = beats(place)
        until(lambda: beats(place) != begun)
        brought.append(paths)
        fetch(objects, entry, paths)

    monkeypatch.setattr(states, "_fetch", slow)
    with on(tmp_path / "second", place):
        assert tree(tmp_path / "second/work") == STATES[0]
    assert len(brought) == len(STATES[0])
    assert not objects_of(place).names(lease.FOLDER)


def test_a_lease_is_renewed_after_a_moment_without_a_free_file(tmp_path: Path, monkeypatch):
    place, renew, failed = new_bucket(), Lease.renew, []

    def short_of_files(self):
        if not failed:
            failed.append(self)
            raise OSError(errno.EMFILE, "too many open files")
        renew(self)

    monkeypatch.setattr(Lease, "renew", short_of_files)
    with on(tmp_path, place):
        until(lambda: failed)
        until(lambda: beats(place))


def test_a_take_that_failed_after_its_claim_was_written_holds_it_when_repeated():
    place = new_bucket()
    with pytest.raises(BucketError):
        take(objects_of(place, lambda c, name: "lost answer" if name == "pipe_file" else None), "mine")
    held = take(objects_of(place), "mine")
    held.check()
    with pytest.raises(UserError, match="in use"):
        take(objects_of(place), "another")
    held.release()
    assert not objects_of(place).names()


def test_a_holder_that_was_taken_over_stops_and_writes_nothing_more(tmp_path: Path):
    place, stopped, before = new_bucket(), [], []

    def train() -> None:
        with on(tmp_path, place, lost=lambda: stopped.append(True)) as held:
            put(tmp_path / "work", STATES[0])
            held.flush()
            before.append(states.read(objects_of(place)))
            foreign(place)
            for name in lease.claims(objects_of(place)):
                if name != FOREIGN:
                    objects_of(place).remove(name)
            put(tmp_path / "work", STATES[1])
            until(lambda: stopped)
            raise KeyboardInterrupt  # as a signal that `lost` sends would

    with pytest.raises(LostLeaseError, match="taken over by process 12 of ada on node7"):
        train()
    assert stopped == [True]
    assert states.read(objects_of(place)) == before[0]
    assert lease.claims(objects_of(place)) == [FOREIGN]


def test_the_folder_of_a_process_that_does_not_know_yet_that_it_was_taken_over_is_left_alone(tmp_path: Path):
    place = new_bucket()

    def train() -> None:
        with on(tmp_path, place) as held:
            put(tmp_path / "work", STATES[0])
            held.flush()
            for name in lease.claims(objects_of(place)):
                objects_of(place).remove(name)
            with pytest.raises(UserError, match="in use by another process of this machine"), on(tmp_path, place):
                pass
            assert not lease.claims(objects_of(place)), "it lets go of what it cannot use"
            assert tree(tmp_path / "work") == STATES[0]
            until(lambda: held.lost)

    with pytest.raises(LostLeaseError):
        train()
