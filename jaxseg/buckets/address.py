"""Addresses of workdirs in a bucket, `gs://BUCKET/PATH` and `s3://BUCKET/PATH`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from pathlib import Path

from jaxseg import paths
from jaxseg.types import UserError

SCHEMES = ("gs", "s3")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_ENDINGS = re.compile(r"[^A-Za-z0-9._-]+")


@dataclasses.dataclass(frozen=True)
class Address:
    """A place in a bucket."""

    scheme: str
    bucket: str
    path: str
    """Names below the bucket joined by slashes, without a slash at either end; may be empty."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.root}"

    @property
    def root(self) -> str:
        """The bucket and the path, as fsspec takes them."""
        return f"{self.bucket}/{self.path}".rstrip("/")

    @property
    def name(self) -> str:
        """The last name, which a local copy is called by."""
        return self.root.rpartition("/")[2]

    @property
    def slug(self) -> str:
        """A name for a folder of this machine that no other address has."""
        readable = _ENDINGS.sub("-", f"{self.scheme}-{self.root}")[:80]
        return f"{readable}-{hashlib.sha256(str(self).encode()).hexdigest()[:12]}"


def parse(text: str | os.PathLike[str]) -> Address | None:
    """Return the address that a text gives; None if it is a path of this machine.

    Raises:
        UserError: The text is an address of another kind, or names no bucket or a path with empty, `.` or `..` parts.

    >>> parse("gs://scans/runs/mine/")
    Address(scheme='gs', bucket='scans', path='runs/mine')
    >>> parse("runs/mine")
    """
    if not paths.is_address(text):
        return None
    given = os.fspath(text)
    scheme, mark, rest = given.partition("://")
    allowed = " and ".join(f"{known}://BUCKET/PATH" for known in SCHEMES)
    if not mark:
        raise UserError(f"{given!r} lost a slash of its address, as a pathlib.Path does; give the address as text")
    if scheme not in SCHEMES:
        raise UserError(f"{given!r}: a workdir may be a folder, or lie in a bucket as {allowed}")
    bucket, _, path = rest.partition("/")
    names = path.rstrip("/").split("/") if path.strip("/") else []
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{given!r}: {bucket!r} cannot name a bucket; give {allowed}")
    if bad := [name for name in names if name in ("", ".", "..") or set(name) & set("\\*?[]#\0\n\r")]:
        raise UserError(
            f"{given!r}: {bad[0]!r} cannot be a part of the path; no part may be empty, climb or be a pattern"
        )
    paths.check_text(given, "workdir")
    return Address(scheme, bucket, "/".join(names))


def default_scratch() -> Path:
    """Return the folder that local copies lie in unless the user names one.

    Raises:
        UserError: There is no home, or nothing can be written there.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.expanduser(base)) / "jaxseg" / "buckets"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"no local copy of a bucket can lie in {folder} ({error.strerror}); give --scratch=DIR, a folder with room "
            f"for the study"
        ) from None
    return folder
