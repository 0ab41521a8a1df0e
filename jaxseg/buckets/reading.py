"""Local copies of finished or running studies in a bucket, for whatever reads them.

What a process reads must not change under it, although another one may bring a later state meanwhile. All readers
together keep one copy, `latest`, which is brought to the last state. What a process is given is another folder, one for
each state, whose files are links to those of the copy. A later state replaces files of the copy and never changes them,
so the links keep what they had. The folder is locked until the process ends; of states that nobody has locked, the next
reader removes the folders.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from jaxseg import paths, workdirs
from jaxseg.buckets import address as addresses
from jaxseg.buckets import lease, locks, snapshot, states
from jaxseg.buckets.address import Address
from jaxseg.buckets.objects import Objects, insist, open_objects
from jaxseg.buckets.states import Manifest
from jaxseg.types import UserError

SECONDS = 60.0
"""How long a reader waits for a bucket that does not answer."""
_HOME = "#read"
_LATEST = "latest"
_LOCK = ".lock"


def all_paths(path: str) -> bool:
    """Choose every file."""
    return True


def without_stores(path: str) -> bool:
    """Choose every file but the prepared data, which networks and tables are read without."""
    return not path.startswith("stores/")


def local_copy(
    place: str | os.PathLike[str],
    *,
    scratch: Path | None = None,
    wanted: Callable[[str], bool] = all_paths,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the local folder of a workdir; one in a bucket is brought to this machine, as far as it has changed.

    Args:
        place: A folder of this machine, or an address.
        scratch: Folder for local copies; `address.default_scratch()` if None.
        wanted: Which files to bring.
        tell: Receives lines for a person.

    Raises:
        UserError: The address is wrong, the bucket cannot be reached, or it holds no study there.
    """
    address = addresses.parse(place)
    if address is None:
        return paths.expand(place)
    return copy_of(open_objects(address), address, scratch or addresses.default_scratch(), wanted=wanted, tell=tell)


def copy_of(
    objects: Objects,
    address: Address,
    scratch: Path,
    *,
    wanted: Callable[[str], bool] = all_paths,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Bring the last whole state of a workdir to a folder that stays as it is while this process runs; return it.

    Args:
        objects: Objects of the workdir.
        address: Its address.
        scratch: As in `local_copy`, whose other arguments and errors these are too.
        wanted: See there.
        tell: See there.
    """
    home = scratch / address.slug / _HOME
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = locks.lock(home / _LOCK, locks.ALONE, wait=True)  # one reader at a time changes the copy
    except OSError as error:
        raise UserError(
            f"{home} cannot be locked ({error.strerror}), so that another command could change what this one reads; "
            f"let --scratch, or XDG_CACHE_HOME, name a folder of a local disk"
        ) from None
    assert lock is not None
    try:
        latest = home / _LATEST
        found = insist(lambda: states.pull(objects, latest, wanted=wanted), seconds=SECONDS, tell=tell)
        if found is None:
            raise UserError(f"no study in {address}: {states.FOLDER}/ is empty; give the --workdir of a study")
        _remove_unused(home, found.id)
        (home / found.id).mkdir(exist_ok=True)
        _hold(home / found.id / _LOCK)
        folder = home / found.id / address.name
        _link_state(latest, folder, found, wanted)
    finally:
        os.close(lock)
    return folder


def is_in_use(place: str | os.PathLike[str]) -> bool:
    """Return whether a process works on a workdir in a bucket, or died there; false for a folder of this machine.

    Raises:
        UserError: The address is wrong, or the bucket cannot be reached.
    """
    address = addresses.parse(place)
    if address is None:
        return False
    objects = open_objects(address)
    return bool(insist(lambda: lease.claims(objects), seconds=SECONDS, tell=lambda line: None))


@functools.cache  # one descriptor for each state, however often a process reads it
def _hold(path: Path) -> None:
    """Locks the folder of a state until the process ends."""
    locks.lock(path, locks.TOGETHER, wait=True)


def _remove_unused(home: Path, kept: str) -> None:
    """Removes the folders of states that no process reads."""
    for entry in sorted(home.iterdir()):
        if entry.name in (_LATEST, kept) or not entry.is_dir():
            continue
        handle = locks.lock(entry / _LOCK, locks.ALONE)
        if handle is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(handle)


def _link_state(latest: Path, folder: Path, state: Manifest, wanted: Callable[[str], bool]) -> None:
    """Makes a folder hold the wanted files of a state; those that are there already stay."""
    folder.mkdir(exist_ok=True)
    for path in filter(wanted, state.files):
        source, target = latest / path, workdirs.inside(folder, *path.split("/"))
        if target.exists() and os.path.samefile(source, target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        partial.unlink(missing_ok=True)
        snapshot.link(source, partial)
        os.replace(partial, target)
    for path in state.folders:
        if wanted(f"{path}/"):
            workdirs.inside(folder, *path.split("/")).mkdir(parents=True, exist_ok=True)
