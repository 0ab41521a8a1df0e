"""A bucket in memory whose operations can fail, be cut off after they took effect, or end the process."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd

from jaxseg.buckets.mirror import Timing
from jaxseg.buckets.objects import Objects

ADDRESS = "s3://bucket/runs/mine"
QUICK = Timing(look=0.01, logs=0.01, renew=0.05, stale=0.2, settle=0.0, begin=0.2, patience=0.3, give_up=0.1)
_numbers = itertools.count()

OPERATIONS = ("cat_file", "pipe_file", "exists", "put_file", "get_file", "rm_file", "find")


class KilledError(BaseException):
    """The process ended here."""


class Network:
    """A file system whose operations are counted, and fail when `fault` says so."""

    def __init__(self, files: Any, fault: Callable[[int, str], str | None] = lambda count, name: None) -> None:
        self._files, self.fault = files, fault
        self.count = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._files, name)
        if name not in OPERATIONS:
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.count += 1
                kind = self.fault(self.count, name)
            if kind in ("fail", "kill"):
                raise ConnectionError("the network is down") if kind == "fail" else KilledError
            found = attribute(*arguments, **options)
            if kind in ("lost answer", "killed after"):
                raise ConnectionError("the answer was lost") if kind == "lost answer" else KilledError
            return found

        return call


def new_bucket() -> tuple[str, Any]:
    """An empty place in memory: its path and its file system."""
    return f"/bucket{next(_numbers)}", fsspec.filesystem("memory")


def objects_of(place: tuple[str, Any], fault: Callable[[int, str], str | None] = lambda count, name: None) -> Objects:
    """The objects of a bucket, behind a network."""
    root, files = place
    return Objects(ADDRESS, root, Network(files, fault))


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """Makes a folder hold just these files, each replaced as `jaxseg.manifest` does; returns them."""
    for path in tree(folder).keys() - files.keys():
        (folder / path).unlink()
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / path).exists() or (folder / path).read_bytes() != content:
            (folder / f"{path}.partial").write_bytes(content)
            (folder / f"{path}.partial").replace(folder / path)
    return files


def results(folder: Path) -> dict[str, object]:
    """The tables of a study: every field as it is written, but for the seconds that something took."""
    found: dict[str, object] = {}
    for name, content in tree(folder / "results").items():
        if name.endswith(".csv") and name != "speed.csv" and content.strip():
            table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
            found[name] = table.drop(columns="seconds", errors="ignore").to_csv(index=False)
        elif name not in ("speed.csv", "SHA256SUMS"):
            found[name] = content
    return found
