"""The lease of a workdir in a bucket: at most one process works there, whatever machine it runs on.

What every store promises is that an object which was written is in every later list. Conditional writes differ between
services, and their drivers offer them for creating an object but not for replacing or removing one. The lease therefore
uses names alone. A process writes a claim, `lease/TERM-TOKEN`, under a name that no other process has, and only then
lists all claims. It holds the lease if its own claim is the only one. Two processes cannot both see that, since the one
whose claim was written later lists both. Of several that claim at once the first by name waits for the others, which
withdraw.

A claim is written once. Its holder gives signs of life by rewriting another object, the beat. Nobody compares clocks:
another process refuses to start as soon as the beat changes, and removes the claim once the beat has not changed for
`STALE_SECONDS`. On the machine of the holder nothing needs to be watched, since the system knows whether the process is
still there. As a removed claim never comes back, a holder that was cut off for so long finds it gone at its next beat,
and before and after each manifest; it must then stop.

Terms grow from holder to holder and order their manifests (see `states`). What a holder writes although its claim is
gone thus never replaces what a later one wrote.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxseg.buckets import states
from jaxseg.buckets.objects import Objects
from jaxseg.types import UserError

FOLDER = "lease"
RENEW_SECONDS = 10.0
"""How often the holder rewrites its beat."""
STALE_SECONDS = 60.0
"""After how long without a beat, while it is watched, a claim counts as left behind."""
_SETTLE_SECONDS = 1.0
"""How long the first of several claims waits for the others to withdraw."""
_LOOKS = 5
"""How often it looks in that time."""
_CLAIM = re.compile(rf"{FOLDER}/(\d{{{states.TERM_DIGITS}}})-(\w+)")
_BEAT = ".beat"


class LostLeaseError(UserError):
    """Another process has taken over the workdir in the bucket."""


class Lease:
    """A lease that this process holds."""

    def __init__(self, objects: Objects, claim: str) -> None:
        self._objects, self._claim, self._beat = objects, claim, 0

    @property
    def term(self) -> int:
        """Number that is greater than those of all earlier holders."""
        return _term_of(self._claim)

    def check(self) -> None:
        """Make sure that this process still holds the lease.

        Raises:
            LostLeaseError: Another process does.
            BucketError: The bucket does not answer.
        """
        if self._objects.read(self._claim) is None:
            others = claims(self._objects)
            raise LostLeaseError(
                f"{self._objects.address} was taken over by {_holder(self._objects, others)}, since this process could "
                f"not renew its lease for {STALE_SECONDS:.0f} s. Nothing more is written to the bucket from here; the "
                f"other process goes on from the last state in it"
            )

    def renew(self) -> None:
        """Give a sign of life; errors as in `check`."""
        self.check()
        self._beat += 1
        self._objects.write(self._claim + _BEAT, str(self._beat).encode())

    def release(self) -> None:
        """Remove the claim."""
        _remove(self._objects, self._claim)


def claims(objects: Objects) -> list[str]:
    """Return the names of the claims on a workdir, in their order: of its holder, and of processes that want it."""
    return sorted(filter(_CLAIM.fullmatch, objects.names(FOLDER)))


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
            left its claim.
        tell: Receives a line if a claim has to be watched.
        stale: How long a claim is watched.
        settle: Seconds in which processes that claim the lease at the same moment withdraw.
        sleep: Waits for some seconds.

    Raises:
        UserError: Another process holds the lease, or takes it at the same moment.
        BucketError: The bucket does not answer.
    """
    while True:
        found = claims(objects)
        mine = [name for name in found if name.endswith(f"-{token}")]
        _clear(objects, [name for name in found if name not in mine], tell=tell, stale=stale, sleep=sleep)
        own = mine[0] if mine else _claim(objects, token, found)
        if others := _rivals(objects, own, settle=settle, sleep=sleep):
            _remove(objects, own)
            raise _in_use(objects, others)
        # Since the first list, another process may have come, written a manifest and gone, or may have taken a claim of
        # an earlier try for left behind. Either way a new claim is needed.
        if states.latest_term(objects) < _term_of(own) and objects.read(own) is not None:
            return Lease(objects, own)
        _remove(objects, own)


def _claim(objects: Objects, token: str, found: Iterable[str]) -> str:
    """Writes a claim with a term above all that are known."""
    known = max([states.latest_term(objects), *map(_term_of, found)])
    # A holder may have left no trace of its term. The time stands in for it, and need not be exact.
    claim = f"{FOLDER}/{max(known + 1, int(time.time())):0{states.TERM_DIGITS}d}-{token}"
    objects.write(claim, json.dumps(_myself()).encode())
    return claim


def _term_of(claim: str) -> int:
    found = _CLAIM.fullmatch(claim)
    assert found is not None  # as `_claim` named it
    return int(found[1])


def _rivals(objects: Objects, own: str, *, settle: float, sleep: Callable[[float], None]) -> list[str]:
    """The other claims, none once they have withdrawn. Those that come after the own one are given time to do so."""
    others: list[str] = []
    for look in range(_LOOKS):
        sleep(settle / _LOOKS if look else 0.0)
        others = [name for name in claims(objects) if name != own]
        if not others or others[0] < own:
            break
    return others


def _clear(
    objects: Objects, found: Iterable[str], *, tell: Callable[[str], None], stale: float, sleep: Callable[[float], None]
) -> None:
    """Removes claims that are known to be left behind by processes that are gone."""
    alive = {name: _is_alive(holder) for name in found if (holder := _read(objects, name)) is not None}
    if living := [name for name in alive if alive[name]]:
        raise _in_use(objects, living)
    doubtful = [name for name in alive if alive[name] is None]
    if doubtful:
        tell(
            f"bucket: {objects.address} was left in use by {_holder(objects, doubtful)}; it is taken over in "
            f"{stale:.0f} s unless that process gives a sign of life"
        )
        _watch(objects, doubtful, stale=stale, sleep=sleep)
    for name in alive:
        _remove(objects, name)
    # Beats that a holder wrote as its claim was removed. A holder that has begun since writes another.
    names = objects.names(FOLDER)
    for name in names:
        if name.endswith(_BEAT) and name.removesuffix(_BEAT) not in names:
            objects.remove(name)


def _watch(objects: Objects, names: list[str], *, stale: float, sleep: Callable[[float], None]) -> None:
    """Returns once no process has given a sign of life for some seconds, or all claims are gone."""
    beats = {name: objects.read(name + _BEAT) for name in names}
    watched = 0.0
    while watched < stale and beats:
        step = min(1.0, stale)
        sleep(step)
        watched += step
        for name in list(beats):
            changed = objects.read(name + _BEAT) != beats[name]
            if objects.read(name) is None:
                del beats[name]
            elif changed:
                raise _in_use(objects, [name])


def _remove(objects: Objects, claim: str) -> None:
    objects.remove(claim)
    objects.remove(claim + _BEAT)


def _read(objects: Objects, claim: str) -> dict[str, Any] | None:
    """Who made a claim, None if it is gone; of one that cannot be read nothing is known."""
    content = objects.read(claim)
    if content is None:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {}


def _holder(objects: Objects, names: Iterable[str]) -> str:
    """Who made the first of some claims that is still there."""
    for name in names:
        if (found := _read(objects, name)) is not None and "host" in found:
            return f"process {found.get('pid')} of {found.get('user')} on {found['host']}"
    return "another process"


def _in_use(objects: Objects, names: Iterable[str]) -> UserError:
    holder = _holder(objects, names)
    return UserError(f"workdir {objects.address} is in use by {holder}; wait for it, or give another --workdir")


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
