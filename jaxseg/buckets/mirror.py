"""Keeps a bucket equal to the local folder of a workdir, beside the study that works there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from jaxseg.buckets import lease as leases
from jaxseg.buckets import locks, snapshot, states
from jaxseg.buckets.lease import Lease, LostLeaseError
from jaxseg.buckets.objects import BucketError, Objects, insist, pause
from jaxseg.buckets.snapshot import Folder
from jaxseg.buckets.states import ChangedFilesError, Manifest, Pushed
from jaxseg.types import UserError

Tell = Callable[[str], None]

# Beside the local folder, which is called as the last part of an address: that cannot hold a `#`.
_STAGING = "#staged"
_LOCK = "#lock"
_RECORDS = ("config.json", "study.json")
"""Files that no command removes."""
_CALL_SECONDS = 30.0
"""How long the last call of a thread to a bucket that answers is waited for."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds between the steps of a mirror, and how long it waits."""

    look: float = 5.0
    """Between looks at the folder for something to bring to the bucket."""
    logs: float = 60.0
    """After which logs that grew are brought although nothing else has changed."""
    renew: float = leases.RENEW_SECONDS
    stale: float = leases.STALE_SECONDS
    settle: float = 1.0
    begin: float = 60.0
    """How long the start of a command waits for a bucket that does not answer."""
    patience: float = 600.0
    """How long the end of a stage waits for a bucket that does not answer, since its last answer."""
    give_up: float = 30.0
    """The same for the end of a command that failed or was stopped."""


class _LostFilesError(UserError):
    """Files are gone that no command removes, so that a state of the folder is not brought to the bucket."""


class Mirror:
    """Brings the folder of a workdir to its bucket, in a thread of its own, while another renews the lease."""

    def __init__(
        self,
        objects: Objects,
        root: Path,
        home: Path,
        lease: Lease,
        *,
        tell: Tell,
        lost: Callable[[], None],
        timing: Timing,
    ) -> None:
        """Prepare; `hold` and `begin` start the threads.

        Args:
            objects: Objects of the workdir.
            root: The local folder.
            home: Folder beside it for what the mirror itself notes.
            lease: The lease of the workdir.
            tell: Receives a line when the bucket stops answering, and when it answers again.
            lost: Called once if another process takes over the workdir.
            timing: How long to wait for what.
        """
        self._objects, self._lease, self._home, self._timing = objects, lease, home, timing
        self._tell, self._on_lost = tell, lost
        self._folder = Folder(root, home / _STAGING)
        self._pushed: Pushed | None = None
        self._last: Manifest | None = None
        self._ids: list[str] = []
        self._held = False
        self._known: set[str] = set()  # paths of files that a state in the bucket had, or may have had
        self._changed = threading.Condition()
        self._wanted = self._done = 0
        self._ended = threading.Event()
        self._lost: LostLeaseError | None = None
        self._failure: Exception | None = None
        self._failed = 0  # the wish that was not fulfilled by it
        self._threads: list[threading.Thread] = []
        self._lock: int | None = None

    def hold(self) -> None:
        """Start to renew the lease."""
        self._start(self._renew_all)

    def lock(self) -> None:
        """Keep the local folder from other processes of this machine, of which one may have lost its lease unnoticed.

        Raises:
            UserError: Another process still works there.
        """
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a file system without locks, where the lease must do
            self._lock = locks.lock(self._home / _LOCK, locks.ALONE)
            if self._lock is None:
                raise UserError(
                    f"{self._folder.root} is in use by another process of this machine, which may not know yet that it "
                    f"lost its lease on {self._objects.address}; wait for it or end it, or give another --scratch"
                )

    def begin(self, last: Manifest | None = None) -> None:
        """Start to bring the folder, which is the last state of the bucket, if it has one, or comes after that."""
        self._ids, self._held = snapshot.read_note(self._home)
        self._known = set() if last is None else {*last.files}
        self._start(self._bring_all)

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work, name=f"bucket {work.__name__}", daemon=True))
        self._threads[-1].start()

    @property
    def lost(self) -> LostLeaseError | None:
        """Tells that another process has taken over the workdir, if one has."""
        return self._lost

    # ------------------------------------------------------------------------------------------------------- waiting

    def flush(self, patience: float | None = None) -> None:
        """Wait until the bucket holds the folder as it is now.

        Args:
            patience: How long to wait for a bucket that does not answer; by default `Timing.patience`.

        Raises:
            LostLeaseError: Another process has taken over the workdir.
            UserError: The bucket did not answer for that long, or files are gone that no command removes.
        """
        patience = self._timing.patience if patience is None else patience
        with self._changed:
            self._wanted += 1
            ticket, asked = self._wanted, time.monotonic()
            self._changed.notify_all()
            while self._done < ticket:
                if self._lost is not None:
                    raise self._lost
                if isinstance(self._failure, _LostFilesError) and self._failed >= ticket:
                    raise self._failure  # time alone does not mend it
                if self._failure is not None and time.monotonic() - max(asked, self._objects.uploaded_at) > patience:
                    raise UserError(
                        f"{self._failure}; nothing could be brought to the bucket for {patience:.0f} s, and it lacks "
                        f"the last of what is in {self._folder.root}. Give the same command again on this machine, "
                        f"with the same --scratch: it goes on from there and brings the rest"
                    )
                self._changed.wait(0.2)

    def close(self, patience: float | None = None) -> None:
        """Bring the rest, and let go; errors as in `flush`."""
        try:
            self.flush(patience)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Stop the threads and give the lease back."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        answers = self._failure is None or isinstance(self._failure, _LostFilesError)
        patience = _CALL_SECONDS if answers else 0.0
        for thread in self._threads:
            thread.join(patience)  # what a driver still waits for ends with the process
        # A thread that still waits for the bucket may yet write there, and one that does not answer would keep this
        # process. Then the lease is left behind, and becomes stale.
        if self._lost is None and answers and not any(thread.is_alive() for thread in self._threads):
            self._folder.drop()
            with contextlib.suppress(BucketError):
                self._lease.release()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -------------------------------------------------------------------------------------------------------- threads

    def _bring_all(self) -> None:
        failures, logs_at = 0, time.monotonic()
        while not self._ended.is_set() and self._lost is None:
            wanted = self._wanted
            try:
                if wanted > self._done or time.monotonic() - logs_at > self._timing.logs or self._folder.has_changed():
                    logs_at = time.monotonic()
                    if not self._bring():
                        continue
            except LostLeaseError as error:
                self._lose(error)
                return
            # A full disk, or whatever a driver raises in a thread, must not end what the study waits for.
            except Exception as error:
                failures += 1
                self._failure, self._failed = error, wanted
                if failures <= 5 or failures % 10 == 0:
                    again = f"trying again in {pause(failures):.0f} s"
                    self._tell(f"bucket: {error}; the study goes on, {again}")
                self._ended.wait(pause(failures))
                continue
            if failures:
                self._tell(f"bucket: {self._objects.address} answers again, and holds all that was done meanwhile")
            failures = 0
            with self._changed:
                self._failure, self._done = None, wanted
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wanted > self._done or self._ended.is_set(), self._timing.look)

    def _bring(self) -> bool:
        """Brings the folder as it is now; returns whether it stood still for a moment."""
        if self._pushed is None:
            self._pushed = Pushed(self._objects, self._lease.term)
        taken = self._folder.take()
        if taken is None:
            return False
        if self._last is None or (taken.files, taken.folders) != (self._last.files, self._last.folders):
            manifest = states.manifest_of(taken)
            if self._pushed.lacks(manifest, taken.staged):
                self._folder.forget()
                return False
            # What is noted as gone is not brought again if this process dies before the bucket knows of it.
            gone = self._known - manifest.files.keys()
            self._check_loss(manifest, gone)
            self._ids = [*self._ids, manifest.id]  # before the bucket has it: the answer may be lost
            self._known |= manifest.files.keys()
            snapshot.write_removed(self._home, gone)
            snapshot.write_note(self._home, self._ids, self._held)
            try:
                self._pushed.push(manifest, taken.staged, self._lease.check)
            except ChangedFilesError as error:
                self._tell(f"bucket: {error}, so that state was not published; the next one is made from a copy")
                self._folder.copy_hereafter(error.paths)
                return False
            self._last, self._ids, self._held = manifest, [manifest.id], True
            snapshot.write_note(self._home, self._ids, self._held)
            snapshot.write_removed(self._home, ())
        self._folder.keep(taken)
        return True

    def _check_loss(self, manifest: Manifest, gone: Collection[str]) -> None:
        """Refuses a state without files that no command removes: something else did, and perhaps removed others too."""
        lost = sorted(path for path in gone if _is_record(path) or not manifest.files)
        if lost:
            raise _LostFilesError(
                f"{self._folder.root / lost[0]} was there and is not any more, though no command removes it, so "
                f"{self._objects.address} is left at its last state. Put the file back, or end this command and give "
                f"it again, which brings what is missing"
            )

    def _renew_all(self) -> None:
        while not self._ended.wait(self._timing.renew):
            try:
                self._lease.renew()
            except LostLeaseError as error:
                self._lose(error)
                return
            except Exception:  # of the bucket, or of a machine that is short of something for a moment
                continue  # the other thread tells of it; without renewals another command would take the study over

    def _lose(self, error: LostLeaseError) -> None:
        with self._changed:
            if self._lost is not None:
                return
            self._lost = error
            self._changed.notify_all()
        if not self._ended.is_set():
            self._on_lost()


# ------------------------------------------------------------------------------------------------------- local folders


def _is_record(path: str) -> bool:
    return path.rpartition("/")[2] in _RECORDS


def fetch(objects: Objects, root: Path, home: Path, *, tell: Tell) -> Manifest | None:
    """Bring a workdir's local folder to the state in the bucket, unless the folder is that state, worked on further.

    A process that died may have done more than it brought to the bucket. Its folder is used if nobody else has worked
    on the study since. A program that cleans caches may have removed files there meanwhile. So what the folder lacks of
    the last state is brought again, as it would be removed from the bucket otherwise.

    Args:
        objects: Objects of the workdir.
        root: The local folder.
        home: Folder beside it for what the mirror itself notes.
        tell: Receives a line about what is done.

    Returns:
        The state in the bucket; None if there is none yet.
    """
    manifest, (known, held) = states.read(objects), snapshot.read_note(home)
    if manifest is None:
        if held:
            raise UserError(
                f"{objects.address} is empty, and {root} holds a study that was there. If it was removed from the "
                f"bucket on purpose, remove the folder {home} too; else put back the objects"
            )
        return None  # a new study, or one that died before anything of it was in the bucket
    if manifest.id in known and root.is_dir():
        tell(f"bucket: going on in {root}, which holds the last state of {objects.address} or what came after it")
        _mend(objects, root, home, manifest, tell)
        return manifest
    tell(f"bucket: bringing what differs of {len(manifest.files)} files of {objects.address} to {root}")
    snapshot.write_note(home, [], True)  # no state, until all is there
    snapshot.write_removed(home, ())
    brought = states.pull(objects, root)
    assert brought is not None  # the lease keeps others from removing it
    snapshot.write_note(home, [brought.id], True)
    return brought


def _mend(objects: Objects, root: Path, home: Path, last: Manifest, tell: Tell) -> None:
    """Brings what a folder lacks of the last state, but for what was removed on purpose."""
    removed = snapshot.read_removed(home)

    def is_lost(path: str) -> bool:
        steps = path.split("/")
        above = {"/".join(steps[:count]) for count in range(1, len(steps) + 1)}
        return _is_record(path) or removed.isdisjoint(above)

    lost = [path for path in states.missing(root, last) if is_lost(path)]
    if lost:
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        tell(
            f"bucket: what is missing there of that state is brought again: {lost[0]}{others}. To remove files from "
            f"the bucket too, also name them in {home / snapshot.REMOVED}, a path a line"
        )
        states.restore(objects, root, last, lost)


@contextlib.contextmanager
def mirrored(
    objects: Objects,
    root: Path,
    home: Path,
    *,
    tell: Tell,
    lost: Callable[[], None] = lambda: None,
    timing: Timing | None = None,
) -> Iterator[Mirror]:
    """Hold a workdir in a bucket: its local folder is brought up to date, and the bucket follows it until the end.

    Args:
        objects: Objects of the workdir.
        root: The local folder.
        home: Folder beside it, on the same disk, for what the mirror itself notes.
        tell: Receives lines for a person.
        lost: Called from another thread if another process takes over the workdir.
        timing: How long to wait for what.

    Yields:
        The mirror, whose `flush` waits for the bucket.

    Raises:
        UserError: The workdir is in use by another process, or the bucket cannot be reached or used.
    """
    timing = timing or Timing()
    token = secrets.token_hex(16)

    def take() -> Lease:
        return leases.take(objects, token, tell=tell, stale=timing.stale, settle=timing.settle)

    lease = insist(take, seconds=timing.begin, tell=tell)
    mirror = Mirror(objects, root, home, lease, tell=tell, lost=lost, timing=timing)
    mirror.hold()
    try:
        mirror.lock()
        last = insist(lambda: fetch(objects, root, home, tell=tell), seconds=timing.begin, tell=tell)
        root.mkdir(exist_ok=True)
    except BaseException as error:
        mirror.let_go()
        raise (mirror.lost or error) from None
    mirror.begin(last)
    try:
        yield mirror
    except BaseException as error:
        try:
            mirror.close(timing.give_up)
        except LostLeaseError as cause:
            raise cause from error
        except UserError as cause:
            tell(f"bucket: {cause}")
        raise
    else:
        mirror.close()
