"""Checksums of files, so that every file is read back as it was written, or is reported as damaged.

Every folder in which this module writes has a file `SHA256SUMS` in the format of the program `sha256sum`, so that
`sha256sum --check SHA256SUMS` gives the same result. A file and its checksum cannot be replaced in one atomic step.
While a file is being replaced, the manifest therefore lists two checksums for it, of the old and of the new content:
whenever a process dies, the file is one of the two whole versions, and a concurrent reader never sees damage.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxseg.types import UserError

NAME = "SHA256SUMS"
"""Name of the manifest in each folder."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_READS = 3
"""How often a file is read before a mismatch counts: another process may replace it between two reads."""

Sums = dict[str, tuple[str, ...]]
"""The valid checksums of each file of a folder: one, or two while the file is being replaced."""


class DamagedError(UserError):
    """A file differs from what was written.

    Attributes:
        path: The file.
        reason: What is wrong with the file, without its name.
    """

    def __init__(self, path: Path, reason: str, mend: str = "") -> None:
        super().__init__(f"{path} is damaged: {reason}" + (f"; {mend}" if mend else ""))
        self.path, self.reason = path, reason


def write(path: Path, content: bytes) -> None:
    """Write a file and its checksum durably: after a crash, the file has its old or its new content, whole.

    Missing parent folders are created. A link with the same name is replaced, never followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()
    sums = _read_sums(path.parent) or {}
    before = sums.get(path.name, ())
    if before == (digest,) and _read_plain(path) == content:
        return
    if digest not in before:
        _write_sums(path.parent, sums | {path.name: (*before[-1:], digest)})
    _replace(path, content)
    if before != (digest,):
        _write_sums(path.parent, sums | {path.name: (digest,)})


def read(path: Path, mend: str = "") -> bytes:
    """Read a file and compare it with its checksum.

    A folder without a manifest was not written by this module (it may be a published table); its files are read without
    a check.

    Args:
        path: Path of the file; a link in its place is not followed.
        mend: Advice for the error message if the file is damaged.

    Raises:
        FileNotFoundError: The file does not exist and never did.
        DamagedError: The content differs from what was written, or the file has disappeared.
    """
    reason = ""
    for _ in range(_READS):
        sums = _read_sums(path.parent)
        content = _read_plain(path)
        allowed = None if sums is None else sums.get(path.name, ())
        if content is None:
            if not allowed:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            reason = "it was written and is no longer there"
        elif allowed is None or hashlib.sha256(content).hexdigest() in allowed:
            return content
        else:
            reason = "its content differs from its checksum" if allowed else f"{NAME} beside it does not list it"
    raise DamagedError(path, reason, mend)


def damage(path: Path) -> str | None:
    """Describe what is wrong with a file that should exist; None if it is as it was written."""
    try:
        read(path)
    except FileNotFoundError:
        return "it is not there"
    except DamagedError as error:
        return error.reason
    return None


def mismatch(folder: Path, name: str, digest: str) -> str | None:
    """Describe the mismatch of a listed file that now has this checksum (empty: unreadable); None if there is none."""
    allowed = (_read_sums(folder) or {}).get(name)
    if allowed is None:
        return f"{NAME} does not list it"
    if not digest:
        return "it was written and is no longer there, or cannot be read"
    return None if digest in allowed else "its content differs from its checksum"


def remove(path: Path) -> None:
    """Remove a file and its checksum; does nothing if there is no such file."""
    path.unlink(missing_ok=True)
    sums = _read_sums(path.parent)
    if sums is not None and path.name in sums:
        _write_sums(path.parent, {name: digests for name, digests in sums.items() if name != path.name})


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write the manifest of files that were written by other code, and make them durable.

    Args:
        folder: Folder that holds the files.
        names: Paths below the folder, with slashes. Earlier entries of the manifest are dropped.
    """
    sums: Sums = {}
    for name in sorted(names):
        with open(folder / name, "rb") as handle:
            sums[name] = (hashlib.file_digest(handle, "sha256").hexdigest(),)
            os.fsync(handle.fileno())
    _write_sums(folder, sums)


def sealed(folder: Path) -> tuple[str, ...]:
    """Return the names that the manifest of a folder lists; empty if there is no manifest."""
    return tuple(_read_sums(folder) or {})


def check(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the damaged files among those listed in a folder's manifest, each with what is wrong.

    Unlike `read`, this streams the files, which may be larger than the memory.

    Args:
        folder: Folder that holds the files and the manifest.
        names: Some of the listed files; None for all.

    Raises:
        DamagedError: There is no manifest.
    """
    sums = _read_sums(folder)
    if sums is None:
        raise DamagedError(folder / NAME, "it is not there")
    found: dict[str, str] = {}
    for name in sums if names is None else names:
        try:
            with open(folder / name, "rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            found[name] = "it was written and is no longer there"
            continue
        if digest not in sums.get(name, ()):
            found[name] = "its content differs from its checksum" if name in sums else f"{NAME} does not list it"
    return found


# ------------------------------------------------------------------------------------------------------------- plain


def _read_sums(folder: Path) -> Sums | None:
    """The manifest of a folder. Lines that are no checksums are passed over: their files then count as damaged."""
    content = _read_plain(folder / NAME)
    if content is None:
        return None
    sums: Sums = {}
    for line in content.decode(errors="replace").splitlines():
        if match := _LINE.fullmatch(line):
            digest, name = match.groups()
            sums[name] = (*sums.get(name, ()), digest)
    return sums


def _write_sums(folder: Path, sums: Sums) -> None:
    lines = [f"{digest}  {name}\n" for name in sorted(sums) for digest in sums[name]]
    _replace(folder / NAME, "".join(lines).encode())


def _read_plain(path: Path) -> bytes | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as handle:
            return handle.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError(path, "it is a link, which is not followed", "put the file itself there") from None
        raise


def _replace(path: Path, content: bytes) -> None:
    """Puts a file in place whole and durably; whatever lay under its partial name is removed, not written through."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with _removed_on_error(partial), open(partial, "xb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    """Leaves no half of a file where a disk is full."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; file systems that cannot open or sync folders do it on their own."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
