"""The prepared store: a TFDS dataset in ArrayRecord files, written once and never read before it is complete.

TFDS writes into a directory of its own choosing and renames it when it is complete. TensorFlow is not needed: the
builder names its file format, every array has an encoding, and cases are read through a random-access source.

Checksums guarantee that arrays are read as they were written: `manifest` keeps one for every file, and the metadata one
for the arrays of every case, so that reading one case does not require reading all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxseg import manifest
from jaxseg.data import digests
from jaxseg.manifest import DamagedError
from jaxseg.types import UserError

_BUILDER = "prepared_cases"
_VERSION = "1.0.0"
_SPLIT = "cases"
_STALE_SECONDS = 24 * 3600
_DESCRIPTIONS = ("dataset_info.json", "features.json", "metadata.json")
_CHECKSUMS = "arrays_sha256"
_MEND = "remove {directory} and start again where the data is, so that it is prepared anew"


def exists(directory: Path) -> bool:
    """Return whether a complete store exists; `damage` tells whether it is still as it was written."""
    return _finished(directory).is_dir()


def damage(directory: Path) -> tuple[Path, str] | None:
    """Return the first damaged file of a store and what is wrong with it; None for a sound store.

    Large files are read only if they changed since they were last read; see `digests`.

    Raises:
        UserError: Files may not be read for lack of permission, which is not damage.
    """
    folder = _finished(directory)
    try:
        listed = manifest.sealed(folder)
        if not listed:
            return folder / manifest.NAME, "it is not there or empty"
        needed = {*_DESCRIPTIONS, *listed, *(path.name for path in folder.glob("*.array_record*"))}
        found = digests.of_files([folder / name for name in needed], store_dir=directory.parent)
        for name in sorted(needed):
            digest = found[str(folder / name)].sha256
            if not digest and os.path.lexists(folder / name):
                with open(folder / name, "rb"):
                    raise OSError("it could not be read a moment ago")
            reason = manifest.mismatch(folder, name, digest)
            if reason:
                return folder / name, reason
    except OSError as error:
        raise UserError(f"The prepared store {directory} cannot be read: {error}. Make its files readable.") from None
    return None


def remove(directory: Path) -> None:
    """Remove a store, so that it can be rebuilt."""
    shutil.rmtree(_finished(directory))


def _finished(directory: Path) -> Path:
    return directory / _BUILDER / _VERSION


@contextlib.contextmanager
def one_writer(directory: Path, tell: Callable[[], None]) -> Iterator[None]:
    """Wait until no other process writes this store: one process prepares it, and the others then find it.

    `tell` is called before the wait, if there is one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Nothing is written into the lock file, and if a link is in its place, its target is left alone.
    with open(
        os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "rb"
    ) as handle:
        # A file system without locks: two processes may write, and the later store is kept.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write(
    directory: Path,
    cases: Callable[[], Iterator[Mapping[str, np.ndarray]]],
    features: Mapping[str, tuple[int, type]],
    metadata: Callable[[], Mapping[str, Any]],
) -> None:
    """Write a store.

    Args:
        directory: Directory of the store; created.
        cases: Returns an iterator over one mapping of arrays per case, in order; called once.
        features: Number of axes and dtype of each array.
        metadata: Returns the JSON values that `read_metadata` reads back; called after the last case.
    """
    _remove_stale(directory)
    notes = tfds.core.MetadataDict()
    checksums: list[str] = []

    class PreparedCases(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Prepared cases of one task."""

        name = _BUILDER
        VERSION = tfds.core.Version(_VERSION)
        pkg_dir_path = None

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Cases of one task, prepared for training.",
                features=tfds.features.FeaturesDict(
                    {
                        name: tfds.features.Tensor(shape=(None,) * ndim, dtype=kind, encoding="zlib")
                        for name, (ndim, kind) in features.items()
                    }
                ),
                metadata=notes,
                disable_shuffling=True,  # integer keys keep the order of the cases
            )

        def _log_download_bytes(self) -> None:
            """Say nothing on the terminal: progress is reported once, by the caller."""

        _log_download_done = _log_download_bytes

        def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
            return {_SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
            for index, arrays in enumerate(cases()):
                checksums.append(_checksum(arrays))
                yield index, arrays
            notes.update({**metadata(), _CHECKSUMS: checksums})

    builder = PreparedCases(data_dir=str(directory), file_format="array_record")
    with _no_bars():
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=1))
    folder = _finished(directory)
    manifest.seal(folder, [path.name for path in folder.iterdir() if path.is_file()])


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    return digests.of_values({name: digests.of_array(array) for name, array in arrays.items()})


def read_metadata(directory: Path) -> dict[str, Any]:
    """Read the metadata of a finished store.

    Raises:
        DamagedError: The metadata differ from what was written.
    """
    content = manifest.read(_finished(directory) / "metadata.json", _MEND.format(directory=directory))
    return {name: value for name, value in json.loads(content).items() if name != _CHECKSUMS}


def read_cases(directory: Path, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Read the arrays of the cases at these positions, in this order.

    Raises:
        DamagedError: Some of the arrays, or their description, differ from what was written.
    """
    folder = _finished(directory)
    files = (*_DESCRIPTIONS, manifest.NAME)
    mend = _MEND.format(directory=directory)
    builder, checksums = _opened(directory, tuple(digests.stamp_of(folder / name) for name in files))
    read = []
    try:
        source = builder.as_data_source(split=_SPLIT)
        for position in positions:
            arrays = source[int(position)]
            if _checksum(arrays) != checksums[int(position)]:
                raise DamagedError(folder, f"case {position} has other voxels than were written", mend)
            read.append(arrays)
    except Exception as error:  # whatever ArrayRecord, TFDS and zlib raise on damaged bytes
        digests.forget(folder.glob("*"), store_dir=directory.parent)
        found = damage(directory)
        if found is None:
            raise
        raise DamagedError(*found, mend) from error
    return read


@functools.lru_cache(maxsize=16)
def _opened(directory: Path, stamps: tuple[digests.Stamp | None, ...]) -> tuple[Any, list[str]]:
    """The builder of a store, and the checksum of each case's arrays; opened anew when one of its files changes."""
    folder = _finished(directory)
    contents = [manifest.read(folder / name, _MEND.format(directory=directory)) for name in _DESCRIPTIONS]
    return tfds.builder_from_directory(str(folder)), json.loads(contents[-1])[_CHECKSUMS]


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Hide TFDS's own progress bars."""
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()


def _remove_stale(directory: Path) -> None:
    """Remove what crashed builds left behind; a younger leftover may belong to a process that still writes."""
    for leftover in (directory / _BUILDER).glob("*incomplete*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
