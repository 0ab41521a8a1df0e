"""The state of a folder at one moment, while other threads and processes go on writing there.

Files of a workdir are replaced by renames, not changed in place, so a file that is linked elsewhere keeps the content
that it had. The folder is listed, new files are linked, and the folder is listed again. If both listings agree, all
files were as they are linked at every moment in between. A process that was killed at such a moment would have left
just this, which is what a study resumes from.

A library, or a user, may change a file in place all the same, and the link with it. What becomes of a snapshot is no
state then: whoever uploads its files asks afterwards whether each is still as it was staged (`Staged.has_changed`), and
has later snapshots copy those that are not (`Folder.copy_hereafter`).

Logs, which are appended to, change all the time. They are copied as they are and do not count as a change.

What is known about the states of a folder is noted beside it, in the folder that it lies in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_LOCKS = (".lock", ".sweep.lock")
_UNFINISHED = (".part", ".partial")
_BEGUN = ("incomplete.", ".partial-")
"""How names begin until what they name is whole: prepared data that TFDS writes case by case, and images."""
_CHECKPOINT_BEGUN = ".orbax-checkpoint-tmp"
"""Part of the name of a checkpoint's folder until it is whole."""
_LOGS = ("metrics.jsonl", "sweep.log")
_BOARD = "events.out.tfevents."
# Beside the folder, which is called as the last part of an address: that cannot hold a `#`.
_NOTE = "#note.json"
REMOVED = "#removed.txt"
"""Holds what was removed from the folder on purpose and may be in its last state yet, a path a line."""
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


class Staged(NamedTuple):
    """A file with content of a snapshot: a link to a file of the folder, or a copy of it."""

    path: Path
    source: str
    """Path below the folder of the file that it was made from."""
    stat: Stat
    """As it was when the folder was listed."""

    def has_changed(self) -> bool:
        """Return whether the file has been written to since, so that its content may not be that of its checksum."""
        return _stat_of(self.path) != self.stat


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A folder at one moment."""

    files: dict[str, Entry]
    """By path below the folder, with slashes."""
    folders: tuple[str, ...]
    """Folders that hold nothing."""
    staged: dict[str, Staged]
    """A file with the content of each SHA-256 that was not known before."""
    stats: dict[str, Stat]


def is_log(path: str) -> bool:
    """Return whether a file is appended to, and tells of a study without being needed to resume it."""
    name = path.rpartition("/")[2]
    return name in _LOGS or name.startswith(_BOARD)


def is_left_out(path: str) -> bool:
    """Return whether a file is no part of a state, as a lock or what is unfinished; a folder's name counts too.

    >>> is_left_out("results/cases.csv.partial"), is_left_out("stores/incomplete.X_1.0.0/a"), is_left_out("study.json")
    (True, True, False)
    """
    return any(
        name in _LOCKS or name.startswith(_BEGUN) or name.endswith(_UNFINISHED) or _CHECKPOINT_BEGUN in name
        for name in path.split("/")
    )


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
        self._copied: set[str] = set()

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

    def _stage(self, found: Mapping[str, Stat]) -> dict[str, Staged]:
        """Links or copies the files whose content is not known."""
        known = {} if self._kept is None else self._kept.stats
        copies: dict[str, Staged] = {}
        for number, (path, stat) in enumerate(found.items()):
            if known.get(path) == stat:
                continue
            target = self._staging / str(number)
            if is_log(path) or path in self._copied:
                shutil.copyfile(self.root / path, target)
            else:
                link(self.root / path, target)
            # Before the second listing: if that agrees with the first, a link is as it was at both.
            copies[path] = Staged(target, path, _stat_of(target))
        return copies

    def _seal(self, found: dict[str, Stat], folders: tuple[str, ...], copies: Mapping[str, Staged]) -> Snapshot:
        """The snapshot of what was listed, once the new files have their checksums."""
        files = {} if self._kept is None else {path: entry for path, entry in self._kept.files.items() if path in found}
        for path, copy in copies.items():
            with open(copy.path, "rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            files[path] = Entry(copy.stat.size, digest)
        staged = {files[path].sha256: copy for path, copy in copies.items()}
        return Snapshot(dict(sorted(files.items())), folders, staged, found)

    def keep(self, snapshot: Snapshot) -> None:
        """Remember a snapshot as the one whose files are in the bucket."""
        self._kept = snapshot
        self.drop()

    def forget(self) -> None:
        """Take nothing for known in the next snapshot."""
        self._kept = None

    def copy_hereafter(self, paths: Iterable[str]) -> None:
        """Copy files for later snapshots instead of linking them, since they were seen to be changed in place.

        A copy is not changed any more. It is of one moment too, as all but logs are listed before and after it.
        """
        self._copied.update(paths)


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
                    files[path] = _stat_of(entry.path)
    return dict(sorted(files.items())), tuple(sorted(empty))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        if not is_left_out(entry.name):
            yield entry


def _stat_of(path: str | os.PathLike[str]) -> Stat:
    found = os.stat(path, follow_symlinks=False)
    return Stat(found.st_size, found.st_mtime_ns, found.st_ino)


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


# --------------------------------------------------------------------------------------------- notes beside the folder


def read_note(home: Path) -> tuple[list[str], bool]:
    """Return the states of which one is what the folder came from or was brought to, and whether a bucket held it."""
    try:
        found = json.loads((home / _NOTE).read_text(encoding="utf-8"))
        return [str(one) for one in found["ids"]], bool(found["held"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], False


def write_note(home: Path, ids: list[str], held: bool) -> None:
    """Write what `read_note` returns."""
    _write(home / _NOTE, json.dumps({"ids": ids, "held": held}))


def read_removed(home: Path) -> set[str]:
    """Return the files, and the folders with all below them, that the study or its user removed on purpose."""
    try:
        lines = (home / REMOVED).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return set()
    return {line.strip().strip("/") for line in lines} - {""}


def write_removed(home: Path, paths: Iterable[str]) -> None:
    """Write what `read_removed` returns."""
    _write(home / REMOVED, "".join(f"{path}\n" for path in sorted(paths)))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="surrogateescape")
    partial.replace(path)
