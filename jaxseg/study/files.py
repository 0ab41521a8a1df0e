"""Files of a workdir: where they lie, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.types import UserError

_TRIES = 5


def write_text(path: Path, text: str) -> None:
    """Writes a file under a partial name, then renames it: a reader or a crash never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path: Path, tree: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(tree, indent=1) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file without pickles, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)
    os.replace(partial, path)


def copy(source: Path, target: Path) -> None:
    """Copies a file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def read_json(path: Path) -> Any:
    """Reads JSON; an empty dict where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV whose numbers read back to the same bits, whole or not at all."""
    write_text(path, table.to_csv(index=False))


def read_table(path: Path) -> pd.DataFrame:
    """Reads a CSV exactly as it was written: names stay text, and only empty fields are missing."""
    texts = ("arm", "arm_a", "arm_b", "worst_arm", "case", "group", "label", "unit", "hd_definition", "status")
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(texts, str))
    except pd.errors.EmptyDataError:  # written without rows or columns: all runs of a job diverged
        return pd.DataFrame()


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a workdir for one process.

    Raises:
        UserError: Another process works in it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "w") as handle:
        for left in range(_TRIES - 1, -1, -1):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not left:
                    raise UserError(
                        f"workdir {workdir} is in use by another process; wait for it, or give another --workdir"
                    ) from None
            time.sleep(0.1)  # `is_locked` holds the lock for a moment
        yield


def is_locked(workdir: Path) -> bool:
    """Whether another process works in a workdir."""
    try:
        with open(workdir / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
