"""Reads and writes files of a workdir: written whole or not at all, with checksums that are compared on reading."""

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

CONFIG = "config.json"
"""The config that a study was started with, in its workdir."""
LOCK = ".lock"
"""Lock file in a workdir, held by the process that works there."""

RERUN = "run the study again with the same command, which writes it anew from what is sound"
"""Advice for messages about a damaged file that a study derived."""

TEXT = frozenset(
    {
        *("arm", "arm_a", "arm_b", "worst_arm", "baseline", "case", "group", "label", "unit", "hd_definition"),
        *("status", "metric", "source", "layer", "layer_a", "layer_b", "comparison", "index", "quantity"),
        *("step_a", "step_b", "how", "site", "inference", "note", "claim", "statement", "role", "verdict", "reason"),
        *("point", "state", "message", "workdir", "target", "study", "test_set"),
        *("grade", "tag", "needs", "key", "scale", "thresholds", "seen", "about"),
    }
)
"""Columns that hold names or words in any table."""

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
    """Copies a file, after a check that it is as it was written, whole or not at all."""
    manifest.write(target, manifest.read(source, RERUN))


# -------------------------------------------------------------------------------------------------------------- read


def read_text(path: Path, mend: str = RERUN) -> str:
    """Reads a text in UTF-8.

    Args:
        path: Path of the file.
        mend: Advice for the message if the file is damaged.

    Raises:
        FileNotFoundError: If the file was never written.
        DamagedError: If it is not as it was written, or is not such a text; every reader here raises this.
    """
    return _decoded(path, mend, lambda content: content.decode())


def read_json(path: Path, mend: str = RERUN) -> dict[str, Any]:
    """Reads a JSON object; returns an empty dict if there is no file."""
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
    """Reads all arrays of an .npz file. Nothing is unpickled."""

    def arrays(content: bytes) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    return _decoded(path, mend, arrays)


def find_table(results: Path, name: str) -> Path | None:
    """Returns the file of a table in a folder of results, compressed or not; None if there is none."""
    return next((path for end in ("", ".gz") if was_written(path := results / f"{name}.csv{end}")), None)


def read_table(path: Path, mend: str = RERUN, *, texts: Iterable[str] = ()) -> pd.DataFrame:
    """Reads a CSV, compressed where its name ends in .gz, exactly as it was written.

    Every table is read here, so that a name is the same everywhere. Columns of `TEXT` and of
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
    """Returns the rows of a table at the end of training, if it also has rows of earlier steps."""
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
    """Returns whether a file exists or should: a missing file that its manifest lists was lost."""
    return path.exists() or path.name in manifest.sealed(path.parent)


def are_sound(paths: Iterable[Path]) -> bool:
    """Returns whether files exist as they were written.

    Each existing file that differs raises a warning, since the caller makes it anew.
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
    """Takes the lock of a file for as long as the returned descriptor is open, also in a process that inherits it.

    On a file system without locks (some NFS, Lustre and FUSE mounts) it warns and returns a descriptor all the same.

    Args:
        path: The file, which is created if it is missing and never changed.
        seconds: How long to wait for another process to release it; `is_locked` holds it for a moment.

    Returns:
        The descriptor; None if another process has the lock.

    Raises:
        UserError: If the file is a link, which is not followed.
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
    """Locks a folder for one process, and creates it if it is missing.

    Raises:
        UserError: If another process works in the folder, and still does after some seconds.
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
    """Returns whether another process works in a folder; always false on a file system without locks."""
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
