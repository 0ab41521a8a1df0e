"""Whole states of a workdir in a bucket: written so that one is always whole, and brought back to a folder.

A state is a manifest, the list of all files with their sizes and checksums, and the objects that it names. The order of
the operations is what keeps it whole: objects first, then the manifest, then the removal of objects that only the
manifest before named.

A manifest is never rewritten, as not every store can replace an object on the condition that it is still the one that
was read. Its name holds the term of the lease under which it was written and a number, and the last by name counts. A
process that has lost its lease without knowing it may still write a manifest, but only one before its successor's.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxseg import workdirs
from jaxseg.buckets.objects import BucketError, Objects
from jaxseg.buckets.snapshot import Entry, Snapshot, Staged, is_left_out, scan
from jaxseg.types import UserError

FOLDER = "manifests"
TERM_DIGITS = 12
_NUMBER_DIGITS = 8
_MANIFEST = re.compile(rf"{FOLDER}/(\d{{{TERM_DIGITS}}})-\d{{{_NUMBER_DIGITS}}}-\w+\.json")
_BEFORE = "manifest.json"
"""The name of the manifest in buckets of earlier versions."""
FORMAT = 1
_OBJECTS = "objects"
_SHOWN = ("report.html", "results/", "figures/")
"""Files, or beginnings of their paths, that are also copied to the bucket under their own names."""
_SEAL = "sha256"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARALLEL = 8
"""Transfers at once."""
_REMOVALS = 64
"""Removals between two looks at the lease."""
_UNSURE = -1
"""Size of an object whose upload may have failed, or may have sent something else."""
_READS = 3
"""How often a state is read anew while another process replaces it."""
_MEND = "give another --workdir, or put back the objects as they were (from earlier versions, if the bucket keeps them)"

_Name = TypeVar("_Name")


class DamagedStateError(UserError):
    """The bucket does not hold what its manifest names."""

    def __init__(self, objects: Objects, name: str, reason: str) -> None:
        super().__init__(f"{objects.address}/{name} is damaged: {reason}; {_MEND}")


class ChangedFilesError(Exception):
    """Files were written to while they were uploaded, so that the state was not published.

    Attributes:
        paths: Their paths below the folder.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        super().__init__(f"{paths[0]}{others} changed while being uploaded")
        self.paths = paths


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A whole state of a workdir."""

    id: str
    """Chosen at random; no other state has it."""
    files: dict[str, Entry]
    folders: tuple[str, ...] = ()

    @property
    def objects(self) -> set[str]:
        """The names of the objects that the state consists of."""
        return {_object(entry.sha256) for entry in self.files.values()}


def manifest_of(snapshot: Snapshot) -> Manifest:
    """Return the manifest of a snapshot, with an id of its own."""
    return Manifest(secrets.token_hex(16), snapshot.files, snapshot.folders)


def _object(digest: str) -> str:
    return f"{_OBJECTS}/{digest[:2]}/{digest}"


def _seal_of(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps({**tree, _SEAL: None}, sort_keys=True).encode()).hexdigest()


def to_bytes(manifest: Manifest) -> bytes:
    """Return the content of the object that holds a manifest."""
    tree = {"format": FORMAT, "id": manifest.id, "files": manifest.files, "folders": manifest.folders}
    return json.dumps(tree | {_SEAL: _seal_of(tree)}, indent=0).encode()


def read(objects: Objects) -> Manifest | None:
    """Return the last whole state; None if the bucket has none.

    Raises:
        DamagedStateError: The manifest is not as it was written.
        UserError: A later version wrote it.
        BucketError: The bucket does not answer.
    """
    name, content = _latest(objects)
    if content is None:
        return None
    try:
        tree = json.loads(content)
        sound = tree[_SEAL] == _seal_of(tree)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedStateError(objects, name, "it is no list of the files of a workdir, or not as it was written")
    if tree["format"] != FORMAT:
        raise UserError(
            f"{objects.address} was written in form {tree['format']}, and this version of jaxseg reads {FORMAT}; use "
            f"the version that wrote it"
        )
    # Earlier versions also brought data that TFDS was still writing, of which no object need be whole.
    files = {path: Entry(*entry) for path, entry in tree["files"].items() if not is_left_out(path)}
    if any(not _DIGEST.fullmatch(entry.sha256) for entry in files.values()):
        raise DamagedStateError(objects, name, "it names an object that is none")
    return Manifest(tree["id"], files, tuple(path for path in tree["folders"] if not is_left_out(path)))


def _latest(objects: Objects) -> tuple[str, bytes | None]:
    """The name and the content of the last manifest; one may be replaced and removed as it is read."""
    for _ in range(_READS):
        name = max(filter(_MANIFEST.fullmatch, objects.names(FOLDER)), default=_BEFORE)
        content = objects.read(name)
        if content is not None or name == _BEFORE:
            return name, content
    raise DamagedStateError(objects, name, "it is listed, and not there")


def latest_term(objects: Objects) -> int:
    """Return the term of the last manifest; -1 if the bucket has none."""
    return max((int(found[1]) for found in map(_MANIFEST.fullmatch, objects.names(FOLDER)) if found), default=-1)


# ---------------------------------------------------------------------------------------------------------------- push


class Pushed:
    """What this process knows to be in the bucket."""

    def __init__(self, objects: Objects, term: int) -> None:
        """Ask the bucket for the names and sizes of its objects.

        A service may keep the first part of an object whose upload was cut off, under the name of the whole content.
        Only an object of the right size counts as being there.

        Args:
            objects: Objects of the workdir.
            term: Term of the lease, above those of all manifests there.

        Raises:
            BucketError: The bucket does not answer.
        """
        self._objects, self._term, self._number = objects, term, 0
        names = objects.sizes()
        self._replaced = {name for name in names if name == _BEFORE or _MANIFEST.fullmatch(name)}
        self._present = {name: size for name, size in names.items() if name.startswith(f"{_OBJECTS}/")}
        self._shown: dict[str, str] = {name: "" for name in names if _is_shown(name)}

    def lacks(self, manifest: Manifest, staged: Mapping[str, Staged]) -> bool:
        """Return whether content of a state is neither in the bucket nor at hand.

        So it is if a file is there again, just as it was, whose object a call removed meanwhile that failed after that.
        """
        wanted = {_object(entry.sha256): entry.size for entry in manifest.files.values() if entry.sha256 not in staged}
        shown = {path for path, entry in self._to_show(manifest).items() if entry not in staged}
        return not wanted.items() <= self._present.items() or not shown <= self._shown.keys()

    def _to_show(self, manifest: Manifest) -> dict[str, str]:
        return {path: entry.sha256 for path, entry in manifest.files.items() if _is_shown(path)}

    def push(self, manifest: Manifest, staged: Mapping[str, Staged], check: Callable[[], None]) -> None:
        """Bring the bucket to a state; a call that failed may be followed by one with a later state.

        Args:
            manifest: The state.
            staged: Files with the content of the state's objects that may be new.
            check: Called before the manifest is written, and again before anything of an earlier state is replaced or
                removed; raises if this process may not.

        Raises:
            BucketError: The bucket failed; it holds the state before, or this one.
            ChangedFilesError: A file is no longer as it was staged; the bucket holds the state before.
        """
        sizes = {entry.sha256: entry.size for entry in manifest.files.values() if entry.sha256 in staged}
        new = [digest for digest, size in sizes.items() if self._present.get(_object(digest)) != size]
        self._present |= {_object(digest): _UNSURE for digest in new}  # sent again or removed, if this fails
        try:
            _all(lambda digest: self._objects.upload(staged[digest].path, _object(digest)), new)
        except BucketError:
            _check_unchanged(staged.values())  # a driver compares checksums, and may be the first to notice
            raise
        self._present |= {_object(digest): sizes[digest] for digest in new if not staged[digest].has_changed()}
        _check_unchanged(staged.values())
        check()
        self._number += 1
        name = f"{FOLDER}/{self._term:0{TERM_DIGITS}d}-{self._number:0{_NUMBER_DIGITS}d}-{manifest.id}.json"
        replaced, self._replaced = self._replaced, self._replaced | {name}  # before it is there: the answer may be lost
        self._objects.write(name, to_bytes(manifest))
        check()
        self._show(manifest, staged)
        check()
        _all(self._objects.remove, sorted(replaced))
        self._replaced = {name}
        self._remove(self._present.keys() - manifest.objects, check)

    def _show(self, manifest: Manifest, staged: Mapping[str, Staged]) -> None:
        """Copies the files that people open to their own names."""
        wanted = self._to_show(manifest)
        changed = [path for path, digest in wanted.items() if self._shown.get(path) != digest]
        _all(lambda path: self._objects.upload(staged[wanted[path]].path, path), changed)
        self._shown |= {path: wanted[path] for path in changed}
        for path in sorted(self._shown.keys() - wanted.keys()):
            self._objects.remove(path)
            del self._shown[path]

    def _remove(self, names: Iterable[str], check: Callable[[], None]) -> None:
        waiting = sorted(names)
        while waiting:
            # Many take a while, in which another process may have come that needs one of them.
            check()
            some, waiting = waiting[:_REMOVALS], waiting[_REMOVALS:]
            _all(self._objects.remove, some)
            for name in some:
                del self._present[name]


def _check_unchanged(files: Iterable[Staged]) -> None:
    changed = sorted(file.source for file in files if file.has_changed())
    if changed:
        raise ChangedFilesError(changed)


def _is_shown(path: str) -> bool:
    return any(path == shown or (shown.endswith("/") and path.startswith(shown)) for shown in _SHOWN)


def _all(what: Callable[[_Name], Any], names: Iterable[_Name]) -> None:
    """Does something with each name, some at once; what is under way is done before an error is raised.

    The threads are no reason for a process to live on, as those of an executor would be.
    """
    waiting = collections.deque(names)
    errors: list[BaseException] = []

    def work() -> None:
        with contextlib.suppress(IndexError):  # nothing waits any more
            while not errors:
                name = waiting.popleft()
                try:
                    what(name)
                except BaseException as error:
                    errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_PARALLEL, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------------------------------------------------------- pull


def pull(objects: Objects, folder: Path, *, wanted: Callable[[str], bool] = lambda path: True) -> Manifest | None:
    """Bring a folder to the last whole state of a bucket; what it holds already is compared and kept.

    Args:
        objects: The objects.
        folder: The folder, to which no other process writes. Files that the state does not have are removed.
        wanted: Which paths to bring; others are neither brought nor removed.

    Returns:
        The state; None if the bucket has none, and then the folder is not touched.

    Raises:
        DamagedStateError: An object is lost, or differs from its checksum.
        BucketError: The bucket does not answer.
    """
    for attempt in range(_READS):
        manifest = read(objects)
        if manifest is None:
            return None
        try:
            _bring(objects, folder, manifest, wanted)
        except DamagedStateError:
            # The process that works on the study may have replaced the state and removed objects meanwhile.
            if attempt + 1 == _READS or read(objects) == manifest:
                raise
        else:
            return manifest
    return None


def _bring(objects: Objects, folder: Path, manifest: Manifest, wanted: Callable[[str], bool]) -> None:
    places = {path: workdirs.inside(folder, *path.split("/")) for path in manifest.files if wanted(path)}
    found, _ = scan(folder)
    for path in found.keys() - manifest.files.keys():
        (folder / path).unlink()
    differing = [path for path, place in places.items() if not (path in found and _is(place, manifest.files[path]))]
    restore(objects, folder, manifest, [*differing, *(path for path in manifest.folders if wanted(f"{path}/"))])
    _remove_empty(folder, {*manifest.folders})


def missing(folder: Path, manifest: Manifest) -> list[str]:
    """Return the paths of the files of a state that a folder lacks, and of the folders that hold nothing."""
    files = manifest.files.keys() - scan(folder)[0].keys()
    return sorted({*files, *(path for path in manifest.folders if not os.path.lexists(folder / path))})


def restore(objects: Objects, folder: Path, manifest: Manifest, paths: Iterable[str]) -> None:
    """Bring some of a state to a folder, and leave alone what else it holds; errors as in `pull`.

    Args:
        objects: The objects.
        folder: The folder.
        manifest: The state.
        paths: Which of its files to bring, and which of its folders that hold nothing to make.

    Raises:
        UserError: A link is in the way: snapshots do not follow it, so that what lies behind it would count as removed.
    """
    wanted: dict[Entry, list[Path]] = {}
    for path in paths:
        place = workdirs.inside(folder, *path.split("/"))
        for above in place.parents[: path.count("/")]:
            if above.is_symlink():
                raise UserError(
                    f"{above} is a link, and what lies behind a link is not brought to a bucket; put the folder itself "
                    f"there"
                )
        (place.parent if path in manifest.files else place).mkdir(parents=True, exist_ok=True)
        if path in manifest.files:
            wanted.setdefault(manifest.files[path], []).append(place)
    _all(lambda entry: _fetch(objects, entry, wanted[entry]), wanted)


def _is(path: Path, entry: Entry) -> bool:
    """Whether a file has the size and the checksum of an entry."""
    if path.stat().st_size != entry.size:
        return False
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() == entry.sha256


def _fetch(objects: Objects, entry: Entry, places: Sequence[Path]) -> None:
    """Brings an object to the files that have its content, each whole or not at all."""
    path, *others = places
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    name = _object(entry.sha256)
    if not objects.download(name, partial):
        raise DamagedStateError(objects, name, f"it is the content of {path.name}, and not there")
    if not _is(partial, entry):
        partial.unlink()
        raise DamagedStateError(objects, name, f"it is the content of {path.name}, and differs from its checksum")
    for other in others:
        copy = other.with_name(f"{other.name}.partial")
        shutil.copyfile(partial, copy)
        os.replace(copy, other)
    os.replace(partial, path)


def _remove_empty(folder: Path, kept: set[str]) -> None:
    """Removes folders that hold nothing and are not part of the state."""
    left = True
    while left:
        left = False
        for path in scan(folder)[1]:
            if path not in kept:
                with contextlib.suppress(OSError):  # a lock is left in it
                    (folder / path).rmdir()
                    left = True  # the folder above it may be empty now
