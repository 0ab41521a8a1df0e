"""The prepared store: a TFDS dataset in ArrayRecord files, written once, never read half-written.

TFDS writes into a directory of its own choosing and renames it when everything is there. TensorFlow is not needed:
the builder names its file format, every array has an encoding, and cases are read through a random-access source.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_BUILDER = "prepared_cases"
_VERSION = "1.0.0"
_SPLIT = "cases"
_STALE_SECONDS = 24 * 3600


def exists(directory: Path) -> bool:
    """Whether a finished store lies there."""
    return (_finished(directory) / "dataset_info.json").exists()


def _finished(directory: Path) -> Path:
    return directory / _BUILDER / _VERSION


@contextlib.contextmanager
def one_writer(directory: Path, tell: Callable[[], None]) -> Iterator[None]:
    """Waits until no other process writes this store: of several that need it, one prepares and the others find it.

    `tell` is called before the wait, where there is one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as handle:
        # A file system without locks: then two may write, and the later one's is kept.
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
        directory: of the store; created.
        cases: yields one mapping of arrays a case, in order; called once.
        features: number of axes and dtype of each array.
        metadata: called after the last case; JSON values, read back by `read_metadata`.
    """
    _remove_stale(directory)
    notes = tfds.core.MetadataDict()

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
            yield from enumerate(cases())
            notes.update(metadata())

    builder = PreparedCases(data_dir=str(directory), file_format="array_record")
    with _no_bars():
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=1))


def read_metadata(directory: Path) -> dict[str, Any]:
    """The metadata of a finished store."""
    return dict(_builder(directory).info.metadata)


def read_cases(directory: Path, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Arrays of the cases at these positions, in this order."""
    source = _builder(directory).as_data_source(split=_SPLIT)
    return [source[int(position)] for position in positions]


def _builder(directory: Path) -> Any:
    return tfds.builder_from_directory(str(_finished(directory)))


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
