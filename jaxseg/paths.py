"""Paths that a user gives: `~`, characters that mean something to the libraries below, and a place for TensorStore."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxseg.types import UserError

_PATTERN = "*?["
"""Orbax looks for the parts of a checkpoint with a glob over the whole path, so that a folder `a[1]` is never found and
a folder `a?` finds the parts of its sibling `ab` too."""
_BACKSLASH = "\\"
"""TensorStore takes it for a separator and writes into another folder."""
_REMOTE = "gs:"
"""Orbax takes a folder whose name ends so for a bucket."""


def expand(path: str | os.PathLike[str]) -> Path:
    """A path with `~` and `~user` replaced by that user's home.

    Raises:
        UserError: No such user, or nothing that tells where the home is.
    """
    text = os.fspath(path)
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        first = text.split("/", 1)[0]
        raise UserError(
            f"path {text!r}: the home that {first} stands for is not known; write the folder out, or ./{first} where "
            f"it is a folder of that name"
        )
    return Path(expanded)


def real(path: str | os.PathLike[str]) -> Path:
    """The absolute path without links, `..` and doubled slashes, which TensorStore refuses."""
    return Path("/" + os.path.realpath(path).lstrip("/"))


def check_text(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a path that is not UTF-8 text.

    Raises:
        UserError: It is not; the message begins with `what`.
    """
    if not is_text(os.fspath(path)):
        raise UserError(
            f"{what} {os.fspath(path)!r} is not UTF-8 text, which checkpoints, stores and records need; rename the "
            f"folder, or give another"
        )


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8; bytes of a file name that are not Python keeps as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_trainable(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a folder in which checkpoints cannot be written, or not be found again.

    Args:
        path: The folder; those above it count too.
        what: The message begins with it.

    Raises:
        UserError: A folder on the path has a name that Orbax or TensorStore take for something else.
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
    """A folder as TensorStore's key-value store; as a URL `%`, `?`, `#` and `|` would mean something.

    Raises:
        UserError: TensorStore cannot name the folder.
    """
    check_text(folder, "folder")
    path = real(folder)
    if _BACKSLASH in str(path):
        raise UserError(f"folder {folder}: TensorStore cannot read below a name with a backslash; rename the folder")
    return {"driver": "file", "path": f"{path}/"}
