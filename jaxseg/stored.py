"""One saved step on disk: the arrays of its items, the description of its job, and the checksums of both.

`jaxseg.checkpoint` builds on this module, which only reads and returns nothing that differs from its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from jaxseg import oserrors, paths, trees
from jaxseg.manifest import DamagedError
from jaxseg.types import UserError

CHECKSUMS = "crc32"
"""Entry of `meta`: checksums of all arrays by `ITEM/PATH`, a list with one per run for arrays with a run axis."""
START = "start"
"""Entry of `meta` of later steps: checksums of step 0, by which a recreated start is recognised as the same."""
_SEAL = "sha256"
"""Entry of `meta`: checksum of all other entries."""
WITHOUT_RUNS = ("shared", "log")
"""Items whose arrays have no run axis or are read as a whole."""


def sum_rows(array: Any) -> list[int]:
    """Return the checksums of an array, one for each entry of its first axis, which devices may share out."""
    return [zlib.crc32(row.tobytes()) for part in _parts(array) for row in part]


def _parts(array: Any) -> Iterator[np.ndarray]:
    """An array as one or, device by device, several NumPy arrays that follow each other along its first axis.

    JAX would put the parts of several devices together in memory of the host, and keep that as long as the array: a
    second copy of the states of all runs.
    """
    if not isinstance(array, jax.Array) or array.is_fully_replicated:
        yield np.asarray(array)
        return
    for shard in sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0):
        yield np.asarray(shard.data)


def sum_whole(array: Any) -> int:
    """Return the checksum of a whole array."""
    return zlib.crc32(np.asarray(array).tobytes())


def _seal_of(meta: dict[str, Any]) -> str:
    content = {key: value for key, value in meta.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a job with a checksum of it, as `read_meta` expects it."""
    plain = json.loads(json.dumps(meta))  # as it will be read
    return plain | {_SEAL: _seal_of(plain)}


def saved_steps(directory: Path) -> tuple[int, ...]:
    """Return the steps saved in a directory in ascending order; empty if there are none."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):  # one that may not be read is no empty one
        return ()
    return tuple(sorted(int(name) for name in names if name.isdigit()))


def read_meta(directory: Path, step: int) -> dict[str, Any]:
    """Read the description of a saved step, with the checksums of its arrays.

    Raises:
        UserError: The step is not saved.
        DamagedError: The description differs from what was written.
    """
    _require_step(directory, step)
    path = directory / str(step) / "meta" / "metadata"
    try:
        meta = json.loads(path.read_bytes())
        if _seal_of(meta) == meta[_SEAL]:
            return meta
        reason = "its content differs from its checksum"
    except FileNotFoundError:
        reason = "it is not there"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it cannot be read ({first_line(error)})"
    raise DamagedError(path, reason, _mend(directory, step))


def open_arrays(directory: Path, step: int, prefix: str = "", item: str = "state") -> dict[str, ts.TensorStore]:
    """Open the arrays at or below a name of a saved item (all for an empty name), by slash-joined path."""
    _require_step(directory, step)
    base = paths.to_kvstore(directory / str(step) / item)
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    names = sorted(key.decode().removesuffix("/.zarray") for key in store.list().result() if key.endswith(b"/.zarray"))
    opening = {
        name: ts.open(
            {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}, open=True, read=True
        )
        for name in names
        if not prefix or f"{name}.".startswith(f"{prefix}.")
    }
    return {name.replace(".", "/"): array.result() for name, array in opening.items()}


def _require_step(directory: Path, step: int) -> None:
    if step not in saved_steps(directory):
        raise UserError(
            f"no checkpoint of step {step} in {directory}; saved steps: {', '.join(map(str, saved_steps(directory)))}"
        )


def read_checked(
    directory: Path, step: int, arrays: Mapping[str, ts.TensorStore], runs: Sequence[int] | None, item: str = "state"
) -> dict[str, np.ndarray]:
    """Read arrays of an item and compare them with their checksums.

    Args:
        directory: The `checkpoints` directory of a job.
        step: Step that is saved.
        arrays: Handles on some of the item's arrays.
        runs: Positions on the run axis; None for an item without one.
        item: Name of the item.

    Raises:
        DamagedError: An array differs, is missing, or cannot be read.
    """
    sums = read_meta(directory, step)[CHECKSUMS]

    def damaged(reason: str) -> DamagedError:
        return DamagedError(directory / str(step), reason, _mend(directory, step))

    reads = {path: (array if runs is None else array[list(runs)]).read() for path, array in arrays.items()}
    found: dict[str, np.ndarray] = {}
    for path, read in reads.items():
        try:
            found[path] = array = np.asarray(read.result())
        except Exception as error:
            let_the_machine_speak(error, directory / str(step))
            raise damaged(f"{item}/{path} cannot be read ({first_line(error)})") from None
        known = sums.get(f"{item}/{path}")
        if known is None or (
            sum_whole(array) != known if runs is None else sum_rows(array) != [known[run] for run in runs]
        ):
            raise damaged(f"{item}/{path} differs from its checksum")
    return found


def read_whole(directory: Path, step: int, item: str) -> Any:
    """Read a whole item without a run axis; `{}` if the step has no such item."""
    sums = read_meta(directory, step)[CHECKSUMS]
    expected = {path.removeprefix(f"{item}/") for path in sums if path.startswith(f"{item}/")}
    if not expected:
        return {}
    found = read_checked(directory, step, open_item(directory, step, item), None, item)
    if missing := sorted(expected - found.keys()):
        raise DamagedError(directory / str(step), f"{item}/{missing[0]} is not there", _mend(directory, step))
    return trees.unflatten(found)


def open_item(directory: Path, step: int, item: str, prefix: str = "") -> dict[str, ts.TensorStore]:
    """Open the arrays of an item that the step is known to have; see `open_arrays`.

    Raises:
        DamagedError: The files of the item do not open.
    """
    try:
        return open_arrays(directory, step, prefix, item)
    except UserError:
        raise
    except Exception as error:
        let_the_machine_speak(error, directory / str(step))
        reason = f"its arrays do not open ({first_line(error)})"
        raise DamagedError(directory / str(step), reason, _mend(directory, step)) from None


def read_below(directory: Path, step: int, name: str, runs: Sequence[int]) -> Any:
    """Read the part of the state below a name for some runs; None if the state has no such part.

    Raises:
        DamagedError: An array is missing or differs.
    """
    expected = {
        path.removeprefix("state/")
        for path in read_meta(directory, step)[CHECKSUMS]
        if path.startswith(f"state/{name}/")
    }
    if not expected:
        return None
    found = read_checked(directory, step, open_item(directory, step, "state", name), runs)
    if missing := sorted(expected - found.keys()):
        raise DamagedError(directory / str(step), f"state/{missing[0]} is not there", _mend(directory, step))
    return trees.unflatten(found)[name]


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return str(error).splitlines()[0] if str(error) else "unreadable"


def let_the_machine_speak(error: Exception, folder: Path) -> None:
    """Raise the operating system error that kept a reader from its files, if the files are not at fault.

    The error itself tells of a lack of memory, threads or descriptors, which may have passed by now. Otherwise every
    file is read again, since some errors hide their cause.

    Raises:
        OSError: A file could not or cannot be read, though it may be whole: there is no permission, or a disk or server
            does not answer.
    """
    passing = oserrors.of_machine(error)
    if passing is not None:
        raise passing
    for path, folders, names in os.walk(folder, onerror=_raise):
        for name in names:
            with open(os.path.join(path, name), "rb") as handle:
                while handle.read(1 << 24):
                    pass
        del folders


def _raise(error: OSError) -> None:
    raise error


def _mend(directory: Path, step: int) -> str:
    """What helps where a step is damaged."""
    steps = saved_steps(directory)
    if step == 0:
        return "run the study again, whose stage 'train' makes the start anew"
    if not steps or step == steps[-1]:
        return "run the study again, whose stage 'train' goes on from the checkpoint before"
    return f"the other steps are not touched by it; delete the folder {directory / str(step)} to go without this one"
