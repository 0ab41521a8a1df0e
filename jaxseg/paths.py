"""Paths that a user gives: `~`, characters that libraries treat specially, and stores for TensorStore."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jaxseg.types import UserError

_PATTERN = "*?["
"""Characters of glob patterns. Orbax looks for the parts of a checkpoint with a glob over the whole path, so that a
folder `a[1]` is never found and a folder `a?` also finds the parts of its sibling `ab`."""
_BACKSLASH = "\\"
"""A character that TensorStore takes for a separator; it would write into another folder."""
_REMOTE = "gs:"
"""An ending by which Orbax takes a folder for a bucket."""

_ADDRESS = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://|(?:gs|gcs|s3|s3a|az|abfss?|adl|hdfs|https?|file|memory):/)")
"""Beginning of an address. `Path` leaves one slash of `gs://`, and would name a folder `gs:` of this machine."""


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether a text is an address elsewhere, such as `gs://BUCKET/PATH`, and no path of this machine."""
    return _ADDRESS.match(os.fspath(path)) is not None


def expand(path: str | os.PathLike[str]) -> Path:
    """Replace `~` and `~user` in a path by that user's home.

    Raises:
        UserError: There is no such user, or the home is unknown; or it is no path of this machine.
    """
    text = os.fspath(path)
    if is_address(path):
        raise UserError(
            f"{text!r} is an address and no path of this machine; only a study's workdir may lie in a bucket "
            f"(docs/buckets.md). Give a local path, to which you copied what is there"
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        first = text.split("/", 1)[0]
        raise UserError(
            f"path {text!r}: the home that {first} stands for is not known; write the folder out, or ./{first} where "
            f"it is a folder of that name"
        )
    return Path(expanded)


def real(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path without links, `..` and doubled slashes, which TensorStore refuses."""
    return Path("/" + os.path.realpath(path).lstrip("/"))


def check_text(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a path that is not UTF-8 text.

    Raises:
        UserError: The path is not UTF-8; the message begins with `what`.
    """
    if not is_text(os.fspath(path)):
        raise UserError(
            f"{what} {os.fspath(path)!r} is not UTF-8 text, which checkpoints, stores and records need; rename the "
            f"folder, or give another"
        )


def is_text(text: str) -> bool:
    """Return whether a text can be written as UTF-8. Python keeps undecodable bytes of names as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_trainable(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a folder in which checkpoints cannot be written, or could not be found again.

    Args:
        path: Path of the folder; the folders above it are checked too.
        what: Beginning of the message.

    Raises:
        UserError: A folder on the path has a name that Orbax or TensorStore misinterprets.
    """
    check_text(path, what)
    for part in real(path).parts[1:]:
        bad = [character for character in _PATTERN + _BACKSLASH if character in part]
        if bad or part.endswith(_REMOTE):
            raise UserError(
                f"{what} {os.fspath(path)}: the folder {part!r} has {' and '.join(map(repr, bad)) or repr(_REMOTE)} in "
                f"its name, which the library that saves checkpoints takes for a pattern or another place; rename the "
                f"folder, or give another. Not allowed are * ? [ \\ and names that end in gs:"
            )


def to_kvstore(folder: Path) -> dict[str, Any]:
    """Return the key-value store of TensorStore for a folder; in a URL, `%`, `?`, `#` and `|` would be special.

    Raises:
        UserError: TensorStore cannot name the folder.
    """
    check_text(folder, "folder")
    path = real(folder)
    if _BACKSLASH in str(path):
        raise UserError(f"folder {folder}: TensorStore cannot read below a name with a backslash; rename the folder")
    return {"driver": "file", "path": f"{path}/"}
