"""The hosts of a job: which runs each host trains, and the few small values that hosts exchange.

Each host trains its own slice of the runs of a job, on its own devices, with its own programs. Hosts exchange a loss
and a score per run, checksums, and who is ready; and they save one checkpoint together. With one host, the common case,
these functions do nothing. `jax.distributed` is set up by the launcher.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

BARRIER_SECONDS = 24 * 3600
"""How long hosts wait for a live host, such as the first one while it prepares data or draws figures."""


class LostHostError(RuntimeError):
    """Another host does not answer. What was saved is sound, and a restart of the whole job resumes from it."""


class Share(NamedTuple):
    """The part of a job's runs that one host trains."""

    rows: tuple[int, ...]
    """Positions on the job's run axis. All hosts have equally many; where none are left, the last run is repeated."""
    own: int
    """Number of rows, from the first, that are the host's own and not repetitions."""


def count() -> int:
    """Return the number of hosts that work on this job."""
    return jax.process_count()


def index() -> int:
    """Return the index of this host."""
    return jax.process_index()


def is_first() -> bool:
    """Return whether this host writes the files that are written once per job."""
    return jax.process_index() == 0


def share(num_runs: int, *, devices: int, index: int, count: int) -> Share:
    """Assign runs to a host: consecutive runs, as many as fill its devices evenly; the last hosts may have fewer.

    Repeated runs come last on the run axis, so that the position of a run does not depend on the number of hosts.

    Args:
        num_runs: Number of runs of the job.
        devices: Number of devices of each host.
        index: Index of the host.
        count: Number of hosts.

    >>> [share(5, devices=2, index=i, count=2) for i in (0, 1)]
    [Share(rows=(0, 1, 2, 3), own=4), Share(rows=(4, 4, 4, 4), own=1)]
    """
    if count == 1:
        return Share(tuple(range(num_runs)), num_runs)
    used = min(devices, -(-num_runs // count))
    size = -(-num_runs // (count * used)) * used
    rows = range(index * size, (index + 1) * size)
    return Share(tuple(min(row, num_runs - 1) for row in rows), len([row for row in rows if row < num_runs]))


def _own_name(cause: str) -> str:
    """What to mend where another host was looked for on this one; empty if that is not the cause.

    Without accelerators hosts meet through Gloo, each at the address to which its own name leads on it.
    """
    if "Gloo context initialization failed" not in cause or not re.search(r"remote=\[(127\.|::1\])", cause):
        return ""
    return (
        "It said that it is to be found at a loopback address, which leads nowhere from another host: in /etc/hosts of "
        "every host, let the host's own name lead to the address at which the others reach it. "
    )


def _together(what: Callable[[], Any]) -> Any:
    """Does something that needs every host.

    Raises:
        LostHostError: One of them is gone. It is also told at once, as what a host still has to close may wait longer.
    """
    try:
        return what()
    except JaxRuntimeError as error:
        cause = str(error).splitlines()[0]
        message = (
            f"a host of this job is gone ({cause}). Process {index()} of {count()} stops too. {_own_name(cause)}"
            f"Checkpoints are whole: start the job again with the same command, and it goes on from the last one"
        )
        warnings.warn(message, stacklevel=3)
        raise LostHostError(message) from error


def gather(array: np.ndarray) -> np.ndarray:
    """Return the arrays of all hosts, concatenated, on every host; all have the same shape.

    Raises:
        LostHostError: A host is gone.
    """
    if count() == 1:
        return array
    # As bytes, so that 64-bit values do not lose half of theirs.
    raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    together = _together(lambda: np.asarray(multihost_utils.process_allgather(raw)))
    parts = [np.frombuffer(part.tobytes(), array.dtype).reshape(array.shape) for part in together]
    return np.concatenate(parts)


def from_first(value: int) -> int:
    """Return the first host's number on every host.

    Raises:
        LostHostError: A host is gone.
    """
    return int(gather(np.array([value], np.int64))[0])


def agree(name: str, value: int) -> int:
    """Return a number that must be the same on all hosts.

    Raises:
        ValueError: The hosts have different numbers.
        LostHostError: A host is gone.
    """
    values = gather(np.array([value], np.int64))
    if len(set(values.tolist())) > 1:
        raise ValueError(f"hosts differ in {name}: {values.tolist()}; all must have as many")
    return value


def barrier(name: str) -> None:
    """Wait for all hosts, however long one of them works; each name is used once.

    Raises:
        LostHostError: A host is gone.
    """
    if count() > 1:
        wait = ocp.multihost.get_barrier_sync_fn()
        _together(lambda: wait(key=f"jaxseg/{name}", timeout_ms=1000 * BARRIER_SECONDS))


def in_turn(name: str, make: Callable[[], Any]) -> Any:
    """Call a function on the first host and, when it is done, on the others; return its result."""
    if is_first():
        made = make()
        barrier(name)
        return made
    barrier(name)
    return make()
