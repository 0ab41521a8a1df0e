"""SHA-256 checksums of files, computed only once for as long as a file is unchanged.

Reading a large data set takes minutes; reading the sizes and times of its files takes a moment. Therefore checksums are
remembered in the store folder together with the file's size, the time of the last change to its content, the time of
the last change to its entry, and its inode. An edit that restores size and time of change is still noticed, because no
program can set the time of the last change to a file's entry.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num

from jaxseg import machine

REMEMBERED = "file_hashes.json"
"""Name of the file of checksums in a store folder. If it is missing or damaged, all files are read again."""
_SETTLED_SECONDS = 3.0
"""Files younger than this are read again next time: file systems count time in steps of up to two seconds."""
_TOLD_SECONDS = 2.0

Stamp = tuple[int, int, int, int]
Progress = Callable[[str, int, int], None]


class FileDigest(NamedTuple):
    """Checksum and stamp of a file."""

    sha256: str
    """SHA-256 of the file's bytes; empty if it cannot be read."""
    stamp: Stamp | None
    """Size, times of change of content and entry, and inode before the file was read; None if there is no file."""


def of_files(
    paths: Iterable[str | Path], *, store_dir: Path, progress: Progress | None = None
) -> dict[str, FileDigest]:
    """Return checksums of files; those that changed since they were remembered are read again, in threads.

    Args:
        paths: Paths of the files, in any spelling; links are followed.
        store_dir: Folder of the remembered checksums. If it is not writable, they are not remembered.
        progress: Called with the files that are read, if this takes long.

    Returns:
        The checksums by path as it was given.
    """
    resolved = {str(path): os.path.realpath(path) for path in paths}
    known = _remembered(store_dir)
    found: dict[str, FileDigest] = {}
    todo: list[tuple[str, Stamp]] = []
    for path in dict.fromkeys(resolved.values()):
        stamp = stamp_of(path)
        if stamp is None:
            found[path] = FileDigest("", None)
        elif path in known and known[path].stamp == stamp:
            found[path] = known[path]
        else:
            todo.append((path, stamp))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
        read = pool.map(_read, [path for path, _ in todo])
        for done, ((path, stamp), digest) in enumerate(zip(todo, read, strict=True), start=1):
            found[path] = FileDigest(digest, stamp)
            if progress and time.monotonic() - began > _TOLD_SECONDS:
                progress("reading files", done, len(todo))
    _remember(store_dir, {path: found[path] for path, stamp in todo if found[path].sha256 and _is_settled(path, stamp)})
    return {path: found[real] for path, real in resolved.items()}


def stamp_of(path: str | Path) -> Stamp | None:
    """Return a value that changes whenever a file does; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def of_values(*values: Any) -> str:
    """Return the checksum of JSON values; the order of mappings does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def of_array(array: Num[np.ndarray, "..."]) -> str:
    """Return the checksum of the shape, dtype and values of an array, whatever its layout in memory."""
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    for part in np.atleast_1d(array):  # a copy of one plane at a time, where they are not contiguous
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _read(path: str) -> str:
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:  # the reader of the case says what is wrong with it
        return ""


def _is_settled(path: str, stamp: Stamp) -> bool:
    """Whether another change could not leave the stamp as it is, and none came while the file was read."""
    return stamp[2] / 1e9 < time.time() - _SETTLED_SECONDS and stamp_of(path) == stamp


def _remembered(store_dir: Path) -> dict[str, FileDigest]:
    """What is remembered by resolved path; nothing where the file is damaged."""
    try:
        return {
            path: FileDigest(digest, (size, changed, entry_changed, inode))
            for path, (size, changed, entry_changed, inode, digest) in remembered_values(store_dir, REMEMBERED).items()
        }
    except (ValueError, TypeError):
        return {}


def _remember(store_dir: Path, fresh: Mapping[str, FileDigest]) -> None:
    """Adds checksums to the remembered ones. Of two processes that do so at once, one may have to read again later."""
    if fresh:
        _write(store_dir, _remembered(store_dir) | dict(fresh))


def forget(paths: Iterable[str | Path], *, store_dir: Path) -> None:
    """Forget the checksums of files that were found to be stale, so that the files are read again next time."""
    gone = {os.path.realpath(path) for path in paths}
    _write(store_dir, {path: found for path, found in _remembered(store_dir).items() if path not in gone})


def _write(store_dir: Path, every: Mapping[str, FileDigest]) -> None:
    _save(store_dir / REMEMBERED, {path: [*(found.stamp or ()), found.sha256] for path, found in every.items()})


def remembered_values(store_dir: Path, name: str) -> dict[str, Any]:
    """Return what `remember_values` kept; nothing where the file is not there or damaged."""
    found = _load(store_dir / name)
    return found if isinstance(found, dict) else {}


def remember_values(store_dir: Path, name: str, values: Mapping[str, Any]) -> None:
    """Add JSON values to those that are remembered in a file of the store folder, if it is writable."""
    _save(store_dir / name, remembered_values(store_dir, name) | dict(values))


def _load(path: Path) -> Any:
    """The values of a remembered file; None where it is damaged, which its own checksum tells."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["files"] if content["sha256"] == of_values(content["files"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _save(path: Path, values: Any) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                json.dump({"sha256": of_values(values), "files": values}, stream)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
