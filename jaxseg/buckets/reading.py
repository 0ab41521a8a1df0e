"""Local copies of finished or running studies in a bucket, for whatever reads them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from jaxseg import paths
from jaxseg.buckets import address as addresses
from jaxseg.buckets import states
from jaxseg.buckets.address import Address
from jaxseg.buckets.objects import Objects, insist, open_objects
from jaxseg.types import UserError

SECONDS = 60.0
"""How long a reader waits for a bucket that does not answer."""
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
    """Bring the last whole state of a workdir to a folder for readers, and return that folder; see `local_copy`."""
    home = scratch / address.slug / "read"
    folder = home / address.name
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(home / _LOCK, "w", encoding="utf-8") as lock:  # one reader at a time changes the copy
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = insist(lambda: states.pull(objects, folder, wanted=wanted), seconds=SECONDS, tell=tell)
    if found is None:
        raise UserError(f"no study in {address}: it has no {states.NAME}; give the --workdir of a study")
    return folder
