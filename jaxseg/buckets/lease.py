"""The lease of a workdir in a bucket: at most one process works there, whatever machine it runs on.

The lease is an object that its holder rewrites every few seconds. Nobody compares clocks: another process watches the
object, refuses to start as soon as it changes, and takes it over once it has not changed for `STALE_SECONDS`. On the
machine of the holder nothing needs to be watched, since the system knows whether the process is still there.

A holder that was cut off for so long that another process took over notices it at its next write, and before each
manifest; it must then stop.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxseg.buckets.objects import Objects
from jaxseg.types import UserError

NAME = "lease.json"
RENEW_SECONDS = 10.0
"""How often the holder rewrites its lease."""
STALE_SECONDS = 60.0
"""After how long without a change, while it is watched, a lease counts as left behind."""
_SETTLE_SECONDS = 1.0
"""After this time the object is read again, for services that accept two creations at once."""


class LostLeaseError(UserError):
    """Another process has taken over the workdir in the bucket."""


class Lease:
    """A lease that this process holds."""

    def __init__(self, objects: Objects, token: str) -> None:
        self._objects, self._token, self._beat = objects, token, 0

    def _content(self) -> bytes:
        return json.dumps({"token": self._token, "beat": self._beat, **_myself()}).encode()

    def check(self) -> None:
        """Make sure that this process still holds the lease.

        Raises:
            LostLeaseError: Another process does.
            BucketError: The bucket does not answer.
        """
        found = _read(self._objects)
        if found is None and self._objects.create(NAME, self._content()):
            return
        found = _read(self._objects)
        if found is None or found.get("token") != self._token:
            raise LostLeaseError(
                f"{self._objects.address} was taken over by {_holder(found or {})}, since this process could not renew "
                f"its lease for {STALE_SECONDS:.0f} s. Nothing more is written to the bucket from here; the other "
                f"process goes on from the last state in it"
            )

    def renew(self) -> None:
        """Rewrite the lease; errors as in `check`."""
        self.check()
        self._beat += 1
        self._objects.write(NAME, self._content())

    def release(self) -> None:
        """Remove the lease, if it is still this process's."""
        found = _read(self._objects)
        if found is not None and found.get("token") == self._token:
            self._objects.remove(NAME)


def take(
    objects: Objects,
    token: str,
    *,
    tell: Callable[[str], None],
    stale: float = STALE_SECONDS,
    settle: float = _SETTLE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Take the lease of a workdir, if need be after the time in which a living holder would have renewed it.

    Args:
        objects: Objects of the workdir.
        token: A text that no other holder has; the same one when a call is repeated after a failure, which may have
            taken the lease without knowing it.
        tell: Receives a line if the lease has to be watched.
        stale: How long a lease is watched.
        settle: Seconds after which the own lease is read again.
        sleep: Waits for some seconds.

    Raises:
        UserError: Another process holds the lease, or takes it at the same moment.
        BucketError: The bucket does not answer.
    """
    lease = Lease(objects, token)
    if not objects.create(NAME, lease._content()):
        left = _read(objects)
        if left is not None and left.get("token") == token:
            return lease
        if left is not None:
            _require_left(objects, left, tell=tell, stale=stale, sleep=sleep)
            if _read(objects) == left:  # as another process that watched may have taken it by now
                objects.remove(NAME)
        if not objects.create(NAME, lease._content()):
            raise _in_use(objects, _read(objects) or {})
    for wait in (0.0, settle):
        sleep(wait)
        found = _read(objects)
        if found is None or found.get("token") != token:
            raise _in_use(objects, found or {})
    return lease


def _require_left(
    objects: Objects, left: dict[str, Any], *, tell: Callable[[str], None], stale: float, sleep: Callable[[float], None]
) -> None:
    """Returns once a lease is known to be left behind by a process that is gone."""
    alive = _is_alive(left)
    if alive:
        raise _in_use(objects, left)
    if alive is not None:
        return
    tell(
        f"bucket: {objects.address} was left in use by {_holder(left)}; it is taken over in {stale:.0f} s unless that "
        f"process gives a sign of life"
    )
    watched = 0.0
    while watched < stale:
        step = min(1.0, stale)
        sleep(step)
        watched += step
        found = _read(objects)
        if found is None:
            return
        if found != left:
            raise _in_use(objects, found)


def _read(objects: Objects) -> dict[str, Any] | None:
    """The lease of a workdir; one that cannot be read is a holder that nobody knows."""
    content = objects.read(NAME)
    if content is None:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {"unreadable": content.hex()}


def _holder(lease: dict[str, Any]) -> str:
    if "host" not in lease:
        return "another process"
    return f"process {lease.get('pid')} of {lease.get('user')} on {lease['host']}"


def _in_use(objects: Objects, lease: dict[str, Any]) -> UserError:
    return UserError(f"workdir {objects.address} is in use by {_holder(lease)}; wait for it, or give another --workdir")


def _myself() -> dict[str, Any]:
    """What others see of this process, and what tells it from a later one of the same number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return {
        "host": socket.gethostname(),
        "user": user,
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "machine": _machine(),
    }


def _machine() -> str:
    """Names this boot of this machine and its process numbers, which a container has for itself; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot; empty if there is none of that number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def _is_alive(lease: dict[str, Any]) -> bool | None:
    """Whether the holder is a running process of this machine; None if that cannot be known from here."""
    machine, pid = _machine(), lease.get("pid")
    if not machine or lease.get("machine") != machine or not isinstance(pid, int) or not lease.get("started"):
        return None
    return _started(pid) == lease["started"]
