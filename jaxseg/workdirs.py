"""The contents of a workdir, names that become paths below it, and links that lead out of it.

A workdir may come from a stranger, unpacked from an archive or downloaded with a paper. Paths in its records are taken
as names below the workdir only, and links in it are not followed to files of this machine, neither for reading nor for
writing. The workdir itself may be reached through a link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from jaxseg.types import UserError

FOLDERS = (
    "analysis",
    "checkpoints",
    "figures",
    "jobs",
    "load_tables",
    "points",
    "predictions",
    "results",
    "stores",
    "train",
)
"""Folders in a workdir, or in the folder of a sweep or an import, that belong to jaxseg."""
FILES = (
    *(".lock", ".sweep.lock", "SHA256SUMS", "config.json", "data.json", "import.json", "live.html", "report.html"),
    *("study.json", "sweep.json", "sweep.log", "sweep_job.json"),
)
"""Files at the top of a workdir, or of the folder of a sweep or an import, that belong to jaxseg."""
_PARTIAL = (".part", ".partial")
"""Endings of files that are still being written."""
_LONGEST = 255
"""Longest file name, in bytes, that file systems accept."""


def inside(folder: Path, *names: str) -> Path:
    """Return the path below a folder for names that come from data, settings or records, one path component each.

    Args:
        folder: Folder to start from, which is not checked; it may be relative or a link.
        names: Names of folders and, last, of a file or folder. None of them may climb or contain a separator.

    Raises:
        UserError: A name is not a single component below the folder.
    """
    for name in names:
        reason = _no_step(name)
        if reason is not None:
            raise UserError(f"{name!r} cannot name a file or folder in {folder}: it {reason}")
    return folder.joinpath(*names)


def _no_step(name: object) -> str | None:
    """Why a name is no single step from a folder to what is in it; None where it is one."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__} and not a name"
    if name in ("", ".", ".."):
        return "leads nowhere, or out of it"
    if "/" in name or "\\" in name or "\0" in name:
        return "holds a character that separates folders or ends a path"
    if len(os.fsencode(name)) > _LONGEST:
        return f"has {len(os.fsencode(name))} bytes, and file systems take {_LONGEST}"
    return None


def check_links(workdir: Path) -> None:
    """Refuse a workdir in which a part is a link that leads out of it, or is not a regular file or folder.

    Only what jaxseg itself reads or writes is checked; a user's own links beside it do not matter.

    Raises:
        UserError: There is such a link, or a pipe, socket or device, whose reading could block for ever.
    """
    root = os.path.realpath(workdir)
    for entry in _own(root):
        shown = os.path.join(workdir, os.path.relpath(entry.path, root))
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not is_below(target, root):
                what = "prepared data may lie elsewhere by runtime.store_dir" if entry.name == "stores" else (
                    "put the file or folder itself there, or remove it"
                )  # fmt: skip
                raise UserError(f"{shown} is a link to {target}, outside the workdir, and is not followed; {what}")
        elif not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
            raise UserError(f"{shown} is a pipe, socket or device and not a file; remove it")


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path lies below a folder or is that folder, both without links (`os.path.realpath`)."""
    return os.path.commonpath([path, folder]) == os.fspath(folder)


def _own(root: str) -> Iterator[os.DirEntry[str]]:
    """Everything of jaxseg's in a folder and below; what vanishes meanwhile is left out."""
    waiting = [root]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as found:
                entries = list(found)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            known = entry.name in FOLDERS or entry.name in FILES or entry.name.endswith(_PARTIAL)
            if here != root or known:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
