"""Files of a workdir: written whole or not at all with their checksums, and compared with these when they are read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from jaxseg import manifest
from jaxseg.manifest import DamagedError
from jaxseg.types import UserError

LOCK = ".lock"
"""In a workdir: held by the process that works in it."""

RERUN = "run the study again with the same command, which writes it anew from what is sound"
"""What helps where a file that a study derived is damaged."""

TEXT = frozenset(
    {
        *("arm", "arm_a", "arm_b", "worst_arm", "baseline", "case", "group", "label", "unit", "hd_definition"),
        *("status", "metric", "source", "layer", "layer_a", "layer_b", "comparison", "index", "quantity"),
        *("step_a", "step_b", "how", "site", "inference", "note", "claim", "statement", "role", "verdict", "reason"),
        *("point", "state", "message", "workdir"),
    }
)
"""Columns that hold names or words, in whatever table."""

_Read = TypeVar("_Read")


# ------------------------------------------------------------------------------------------------------------- write


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, durably, whole or not at all."""
    manifest.write(path, text.encode())


def write_json(path: Path, tree: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(tree, indent=1) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file without pickles, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    manifest.write(path, content.getvalue())


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV whose numbers read back to the same bits, whole or not at all."""
    write_text(path, table.to_csv(index=False))


def copy(source: Path, target: Path) -> None:
    """Copies a file that is as it was written, whole or not at all."""
    manifest.write(target, manifest.read(source, RERUN))


# -------------------------------------------------------------------------------------------------------------- read


def read_text(path: Path, mend: str = RERUN) -> str:
    """Reads a text in UTF-8.

    Args:
        path: Of the file.
        mend: What helps where it is damaged, for the message.

    Raises:
        FileNotFoundError: It was never written.
        DamagedError: It is not as it was written, or is no such text; the same for every reader here.
    """
    return _decoded(path, mend, lambda content: content.decode())


def read_json(path: Path, mend: str = RERUN) -> dict[str, Any]:
    """Reads a JSON object; an empty dict where there is no file."""
    try:
        found = _decoded(path, mend, json.loads)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise DamagedError(path, f"it holds a {type(found).__name__} and not a JSON object", mend)
    return found


def read_list(path: Path, mend: str = RERUN) -> list[Any]:
    """Reads a JSON list."""
    found = _decoded(path, mend, json.loads)
    if not isinstance(found, list):
        raise DamagedError(path, f"it holds a {type(found).__name__} and not a JSON list", mend)
    return found


def read_arrays(path: Path, mend: str = RERUN) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file; nothing is unpickled."""

    def arrays(content: bytes) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    return _decoded(path, mend, arrays)


def find_table(results: Path, name: str) -> Path | None:
    """The file of a table in a folder of results, compressed or not; None where there is none."""
    return next((path for end in ("", ".gz") if was_written(path := results / f"{name}.csv{end}")), None)


def read_table(path: Path, mend: str = RERUN, *, texts: Iterable[str] = ()) -> pd.DataFrame:
    """Reads a CSV, compressed where its name ends in .gz, exactly as it was written.

    Everything that reads a table reads it here, so that a name is the same name everywhere. Columns of `TEXT` and of
    `texts` stay text, whatever stands in them (`NA`, `007`, nothing); in the others an empty field is a missing number.
    """
    compression: Literal["gzip"] | None = "gzip" if path.suffix == ".gz" else None

    def table(content: bytes) -> pd.DataFrame:
        try:
            header = list(pd.read_csv(io.BytesIO(content), nrows=0, compression=compression).columns)
        except pd.errors.EmptyDataError:  # written without rows or columns: all runs of a job diverged
            return pd.DataFrame()
        words = {*TEXT, *texts} & set(header)
        return pd.read_csv(
            io.BytesIO(content),
            keep_default_na=False,
            na_values={name: ["", "nan", "NaN"] for name in header if name not in words},
            dtype=dict.fromkeys(words, str),
            compression=compression,
        )

    return _decoded(path, mend, table)


def at_end(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a table that are of the end of the training, where runs were looked at earlier as well."""
    by = {"filters": ["arm"], "similarity": ["arm_a", "arm_b", "comparison"]}.get(name, [])
    if not by or "step" not in table or table.empty:
        return table
    return table[table["step"] == table.groupby(by)["step"].transform("max")]


def _decoded(path: Path, mend: str, decode: Callable[[bytes], _Read]) -> _Read:
    """What a file holds. Only its content can be at fault here: errors of the disk come before, from reading it."""
    content = manifest.read(path, mend)
    try:
        return decode(content)
    # What damaged bytes make the decoders of text, JSON, ZIP and CSV raise. RecursionError comes of brackets without
    # end, EOFError and OSError of a compressed stream that is cut or altered.
    except (ValueError, KeyError, RecursionError, EOFError, OSError, zipfile.BadZipFile) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(path, f"it cannot be read ({cause})", mend) from None


def was_written(path: Path) -> bool:
    """Whether a file is there or should be: one that its manifest lists and that is gone was lost."""
    return path.exists() or path.name in manifest.sealed(path.parent)


def are_sound(paths: Iterable[Path]) -> bool:
    """Whether files are there as they were written.

    Each one that is there and is not gets a warning, since the caller makes it anew.
    """
    sound = True
    for path in paths:
        reason = manifest.damage(path)
        if reason is None:
            continue
        sound = False
        if was_written(path):
            warnings.warn(f"{path} is damaged ({reason}); it is made anew", stacklevel=2)
    return sound


# -------------------------------------------------------------------------------------------------------------- lock


def hold(path: Path, *, seconds: float = 0.5) -> int | None:
    """Takes the lock of a file for as long as the descriptor that it gives is open, also in a process that inherits it.

    On a file system without locks (some NFS, Lustre and FUSE mounts) it warns and gives a descriptor all the same.

    Args:
        path: The file; created where it is missing, and left alone where it is there.
        seconds: How long another process may go on holding it; `is_locked` does so for a moment.

    Returns:
        The descriptor; None where another process has the lock.

    Raises:
        UserError: The file is a link, which is not followed.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link, which is not followed; remove it") from None
        raise
    until = time.monotonic() + seconds
    try:
        while not _is_taken(handle):
            if time.monotonic() > until:
                os.close(handle)
                return None
            time.sleep(0.1)
    except OSError as error:
        warnings.warn(
            f"{path.parent} lies on a file system without locks ({error.strerror}): nothing keeps a second process "
            f"from working there at the same time, so see to it that there is none",
            stacklevel=2,
        )
    return handle


def _is_taken(handle: int) -> bool:
    """Takes a lock unless another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(workdir: Path, name: str = LOCK, *, seconds: float = 0.5) -> Iterator[None]:
    """Holds a folder for one process; it is created where it is missing.

    Raises:
        UserError: Another process works in it, and still does after some seconds.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    handle = hold(workdir / name, seconds=seconds)
    if handle is None:
        raise UserError(f"workdir {workdir} is in use by another process; wait for it, or give another --workdir")
    try:
        yield
    finally:
        os.close(handle)


def is_locked(workdir: Path, name: str = LOCK) -> bool:
    """Whether another process works in a folder; never where its file system has no locks."""
    try:
        handle = os.open(workdir / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
