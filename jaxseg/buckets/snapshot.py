"""The state of a folder at one moment, while other threads and processes go on writing there.

Files of a workdir are replaced by renames, never changed in place, so a file that is linked elsewhere keeps the content
that it had. The folder is listed, new files are linked, and the folder is listed again. If both listings agree, all
files were as they are linked at every moment in between. A process that was killed at such a moment would have left
just this, which is what a study resumes from.

Logs, which are appended to, change all the time. They are copied as they are and do not count as a change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_LOCKS = (".lock", ".sweep.lock")
_UNFINISHED = (".part", ".partial")
_CHECKPOINT_BEGUN = ".orbax-checkpoint-tmp"
"""Part of the name of a checkpoint's folder until it is whole."""
_LOGS = ("metrics.jsonl", "sweep.log")
_BOARD = "events.out.tfevents."
_TRIES = 20
_TRY_SECONDS = 0.1


class Entry(NamedTuple):
    """What is known of a file's content."""

    size: int
    """In bytes."""
    sha256: str


class Stat(NamedTuple):
    """What changes when a file is replaced; a snapshot's links change none of it."""

    size: int
    modified_ns: int
    inode: int


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A folder at one moment."""

    files: dict[str, Entry]
    """By path below the folder, with slashes."""
    folders: tuple[str, ...]
    """Folders that hold nothing."""
    staged: dict[str, Path]
    """A file with the content of each SHA-256 that was not known before."""
    stats: dict[str, Stat]


def is_log(path: str) -> bool:
    """Return whether a file is appended to, and tells of a study without being needed to resume it."""
    name = path.rpartition("/")[2]
    return name in _LOGS or name.startswith(_BOARD)


class Folder:
    """A folder of which snapshots are taken; it remembers the checksums of files that have not changed."""

    def __init__(self, root: Path, staging: Path) -> None:
        """Keep the paths.

        Args:
            root: The folder.
            staging: Folder on the same disk for the files of a snapshot; what it holds is removed.
        """
        self.root, self._staging = root, staging
        self._kept: Snapshot | None = None

    def has_changed(self) -> bool:
        """Return whether something other than logs has changed since the snapshot that was kept last."""
        return self._kept is None or _decisive(scan(self.root)[0]) != _decisive(self._kept.stats)

    def take(self) -> Snapshot | None:
        """Take a snapshot; None if the folder changed all the time."""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_TRY_SECONDS)
            self.drop()
            self._staging.mkdir(parents=True)
            before, folders = scan(self.root)
            try:
                copies = self._stage(before)
            except FileNotFoundError:  # replaced or removed since it was listed
                continue
            after, folders_after = scan(self.root)
            if _decisive(before) == _decisive(after) and folders == folders_after:
                return self._seal(before, folders, copies)
        return None

    def drop(self) -> None:
        """Remove the files of the last snapshot."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def _stage(self, found: Mapping[str, Stat]) -> dict[str, Path]:
        """Links or copies the files whose content is not known."""
        known = {} if self._kept is None else self._kept.stats
        copies: dict[str, Path] = {}
        for number, (path, stat) in enumerate(found.items()):
            if known.get(path) == stat:
                continue
            copies[path] = self._staging / str(number)
            if is_log(path):
                shutil.copyfile(self.root / path, copies[path])
            else:
                link(self.root / path, copies[path])
        return copies

    def _seal(self, found: dict[str, Stat], folders: tuple[str, ...], copies: Mapping[str, Path]) -> Snapshot:
        """The snapshot of what was listed, once the new files have their checksums."""
        files = {} if self._kept is None else {path: entry for path, entry in self._kept.files.items() if path in found}
        for path, copy in copies.items():
            with open(copy, "rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                files[path] = Entry(os.fstat(handle.fileno()).st_size, digest)
        staged = {files[path].sha256: copy for path, copy in copies.items()}
        return Snapshot(dict(sorted(files.items())), folders, staged, found)

    def keep(self, snapshot: Snapshot) -> None:
        """Remember a snapshot as the one whose files are in the bucket."""
        self._kept = snapshot
        self.drop()

    def forget(self) -> None:
        """Take nothing for known in the next snapshot."""
        self._kept = None


def scan(root: Path) -> tuple[dict[str, Stat], tuple[str, ...]]:
    """List the files of a folder by path, and its empty folders; locks and what is unfinished are left out."""
    files: dict[str, Stat] = {}
    empty: list[str] = []
    waiting = [""]
    while waiting:
        here = waiting.pop()
        entries = list(_entries(root / here))
        if here and not entries:
            empty.append(here)
        for entry in entries:
            path = f"{here}/{entry.name}" if here else entry.name
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    stat = os.stat(entry.path, follow_symlinks=False)
                    files[path] = Stat(stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return dict(sorted(files.items())), tuple(sorted(empty))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        if not (
            entry.name in _LOCKS or entry.name.endswith(_UNFINISHED) or _CHECKPOINT_BEGUN in entry.name
        ):  # fmt: skip
            yield entry


def _decisive(files: Mapping[str, Stat]) -> dict[str, Stat]:
    """The files whose change is a change of the folder."""
    return {path: stat for path, stat in files.items() if not is_log(path)}


def link(path: Path, target: Path) -> None:
    """Link a file, or copy it where the disk knows no links."""
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.EACCES):
            raise
        shutil.copyfile(path, target, follow_symlinks=False)
