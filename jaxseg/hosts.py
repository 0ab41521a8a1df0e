"""The hosts of a job: which runs are whose, and the few small things that they tell one another.

Each host trains its own slice of a job's runs, on its own devices, with programs of its own. What passes between hosts
is a loss and a score per run, checksums, and who is ready; and all of them save one checkpoint. With one host, the
common case, nothing here does anything. `jax.distributed` is set up by the launcher.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

BARRIER_SECONDS = 24 * 3600
"""How long hosts wait for one that is alive, such as the first one while it prepares data or draws figures."""


class LostHostError(RuntimeError):
    """Another host does not answer. What is saved is sound; a restart of the whole job goes on from it."""


class Share(NamedTuple):
    """A host's part of a job's runs."""

    rows: tuple[int, ...]
    """Positions on the job's run axis. All hosts have as many; the last run stands in where there are none left."""
    own: int
    """How many of them, from the first, are the host's and not stand-ins."""


def count() -> int:
    """How many hosts work on this job."""
    return jax.process_count()


def index() -> int:
    """The number of this host."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this host writes what is written once."""
    return jax.process_index() == 0


def share(num_runs: int, *, devices: int, index: int, count: int) -> Share:
    """The runs of a host: consecutive ones, as many as fill its devices evenly, the last hosts with fewer.

    Stand-ins come last on the run axis, so that the position of a run does not depend on the hosts.

    Args:
        num_runs: Of the job.
        devices: Of each host.
        index: The host's number.
        count: Hosts.

    >>> [share(5, devices=2, index=i, count=2) for i in (0, 1)]
    [Share(rows=(0, 1, 2, 3), own=4), Share(rows=(4, 4, 4, 4), own=1)]
    """
    if count == 1:
        return Share(tuple(range(num_runs)), num_runs)
    used = min(devices, -(-num_runs // count))
    size = -(-num_runs // (count * used)) * used
    rows = range(index * size, (index + 1) * size)
    return Share(tuple(min(row, num_runs - 1) for row in rows), len([row for row in rows if row < num_runs]))


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
            f"a host of this job is gone ({cause}). Process {index()} of {count()} stops too. Checkpoints are whole: "
            f"start the job again with the same command, and it goes on from the last one"
        )
        warnings.warn(message, stacklevel=3)
        raise LostHostError(message) from error


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all hosts one after another, on every host; they have one shape.

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
    """The first host's number, on every host.

    Raises:
        LostHostError: A host is gone.
    """
    return int(gather(np.array([value], np.int64))[0])


def agree(name: str, value: int) -> int:
    """A number that must be the same on all hosts.

    Raises:
        ValueError: It is not.
        LostHostError: A host is gone.
    """
    values = gather(np.array([value], np.int64))
    if len(set(values.tolist())) > 1:
        raise ValueError(f"hosts differ in {name}: {values.tolist()}; all must have as many")
    return value


def barrier(name: str) -> None:
    """Waits for all hosts, however long one of them works; each name is used once.

    Raises:
        LostHostError: A host is gone.
    """
    if count() > 1:
        wait = ocp.multihost.get_barrier_sync_fn()
        _together(lambda: wait(key=f"jaxseg/{name}", timeout_ms=1000 * BARRIER_SECONDS))


def in_turn(name: str, make: Callable[[], Any]) -> Any:
    """What a function gives, called by the first host and then, when that is done, by the others."""
    if is_first():
        made = make()
        barrier(name)
        return made
    barrier(name)
    return make()
