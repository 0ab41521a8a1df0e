"""Locks of folders that hold local copies, for the processes of this machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

ALONE, TOGETHER = fcntl.LOCK_EX, fcntl.LOCK_SH


def lock(path: Path, kind: int, *, wait: bool = False) -> int | None:
    """Lock a file, which is created if it is missing, until the returned descriptor is closed or the process ends.

    Args:
        path: The file, in a folder that exists.
        kind: `ALONE`, or `TOGETHER` with others who lock it so.
        wait: Whether to wait for another process.

    Returns:
        The descriptor; None if another process has the lock and it is not waited for.

    Raises:
        OSError: The file system has no locks, or the file cannot be written.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return handle
