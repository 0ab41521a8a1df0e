"""The objects of a workdir in a bucket: read, write, list and remove, through the drivers of fsspec."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxseg.buckets.address import Address
from jaxseg.types import UserError

EXTRA = "pip install 'jaxseg[buckets]'"


class _Driver(NamedTuple):
    package: str
    checks: dict[str, str]
    """What makes it compare an object with what was sent; S3's driver always does."""


_DRIVERS = {"gs": _Driver("gcsfs", {"consistency": "md5"}), "s3": _Driver("s3fs", {})}
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG)
"""Errors of this machine's disk, which a transfer raises as they are."""
_REFUSALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
"""Names of the drivers' exceptions for credentials that are not there."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0

_Result = TypeVar("_Result")


class BucketError(Exception):
    """The bucket did not do what it was asked.

    Attributes:
        permanent: Whether the same would fail again, since the bucket is missing or does not let this user in.
    """

    def __init__(self, address: str, cause: Exception) -> None:
        text = str(cause).strip() or type(cause).__name__
        super().__init__(f"{address}: {text.splitlines()[0][:300]}")
        self.permanent = _is_permanent(cause)


def _is_permanent(cause: Exception) -> bool:
    status = str(getattr(cause, "code", ""))
    return (
        isinstance(cause, FileNotFoundError | PermissionError)
        or status in ("400", "401", "403", "404")
        or type(cause).__name__ in _REFUSALS
    )


class Objects:
    """The objects below an address. Every method raises `BucketError` if the bucket fails.

    A method may fail although the bucket did what it was asked, if the answer was lost on its way.
    """

    def __init__(self, address: str, root: str, files: Any, checks: Mapping[str, str] | None = None) -> None:
        """Keep the driver.

        Args:
            address: The address as a user knows it.
            root: The path of the address for the driver.
            files: An fsspec file system.
            checks: Arguments of its writing methods that make it compare an object with what was sent.
        """
        self.address, self._root, self._files, self._checks = address, root, files, dict(checks or {})
        self.uploaded_at = time.monotonic()
        """When the last file was uploaded, by the monotonic clock."""

    def _call(self, what: Callable[[], _Result]) -> _Result:
        try:
            return what()
        except OSError as error:
            if error.errno in _LOCAL:
                raise
            raise BucketError(self.address, error) from error
        except Exception as error:  # each driver has its own
            raise BucketError(self.address, error) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if there is no such object."""

        def read() -> bytes | None:
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._call(read)

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all."""
        self._call(lambda: self._files.pipe_file(self._path(name), content, **self._checks))

    def upload(self, path: Path, name: str) -> None:
        """Write an object from a file."""

        def upload() -> None:
            if not _ends_in_return(path):
                self._files.put_file(str(path), self._path(name), **self._checks)
                return
            # Google's driver sends a small file as one part of a message, behind which a line feed begins the delimiter
            # of the next. A carriage return before it reads as part of that (RFC 2046, 5.1.1), and is lost. A handle
            # sends the bytes alone, in one more request.
            with open(path, "rb") as source, self._files.open(self._path(name), "wb") as target:
                shutil.copyfileobj(source, target)

        self._call(upload)
        self.uploaded_at = time.monotonic()

    def download(self, name: str, path: Path) -> bool:
        """Write a file from an object; return whether there is such an object."""

        def download() -> bool:
            try:
                self._files.get_file(self._path(name), str(path))
            except FileNotFoundError:
                return False
            return True

        return self._call(download)

    def remove(self, name: str) -> None:
        """Remove an object; do nothing if there is none of that name."""

        def remove() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._call(remove)

    def names(self, folder: str = "") -> set[str]:
        """Return the names of all objects below a folder."""
        return {*self.sizes(folder)}

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the sizes in bytes of all objects below a folder, by name."""

        def sizes() -> dict[str, int]:
            self._files.invalidate_cache()
            root = self._path(folder).rstrip("/")
            base = self._files._strip_protocol(self._root)
            found = self._files.find(root, detail=True)
            return {name.removeprefix(f"{base}/"): int(entry["size"]) for name, entry in found.items()}

        return self._call(sizes)


def _ends_in_return(path: Path) -> bool:
    with open(path, "rb") as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - 1))
        return handle.read(1) == b"\r"


def open_objects(address: Address) -> Objects:
    """Open the objects of an address, with the credentials and endpoint that the driver takes from the environment.

    Raises:
        UserError: The driver is not installed.
    """
    driver = _DRIVERS[address.scheme]
    try:
        fsspec = importlib.import_module("fsspec")
        importlib.import_module(driver.package)
    except ImportError:
        raise UserError(
            f"{address} needs the package {driver.package}, which the extra 'buckets' installs: {EXTRA}"
        ) from None
    # A driver keeps its instances and their listings, which would show other processes' work late.
    files = fsspec.filesystem(address.scheme, skip_instance_cache=True, use_listings_cache=False)
    return Objects(str(address), address.root, files, driver.checks)


def pause(failures: int) -> float:
    """Return the seconds to wait after some failures in a row.

    >>> [pause(failures) for failures in (1, 2, 3, 20)]
    [1.0, 2.0, 4.0, 60.0]
    """
    return min(_FIRST_PAUSE * 2 ** min(failures - 1, 10), _LONGEST_PAUSE)


def insist(what: Callable[[], _Result], *, seconds: float, tell: Callable[[str], None]) -> _Result:
    """Do something with a bucket, and again after failures that may pass.

    Args:
        what: What to do, which may be done twice.
        seconds: How long to go on.
        tell: Receives a line for each failure.

    Raises:
        UserError: It fails for good, or still fails after that time.
    """
    until, failures = time.monotonic() + seconds, 0
    while True:
        try:
            return what()
        except BucketError as error:
            failures += 1
            wait = pause(failures)
            if error.permanent:
                raise UserError(
                    f"{error}; check the name of the bucket, and the credentials that the driver takes from the "
                    f"environment (docs/buckets.md)"
                ) from error
            if time.monotonic() + wait > until:
                raise UserError(
                    f"{error}; the bucket did not answer for {seconds:.0f} s. Check the network, then give the same "
                    f"command again"
                ) from error
            tell(f"bucket: {error}; trying again in {wait:.0f} s")
            time.sleep(wait)
