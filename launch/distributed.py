"""Joining the processes of a job that runs on several hosts.

srun python -m launch.study --distributed --config=...                                           Slurm, a TPU pod
python -m launch.study --coordinator=HOST:PORT --num_processes=2 --process_id=0 --config=...          anywhere
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import jax
from absl import flags

from jaxseg import hosts
from jaxseg.types import UserError

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of several processes; JAX learns of the others from Slurm or the TPU."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where nothing else tells of the others."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.", 0)
_LOST_AFTER = flags.DEFINE_integer(
    "lost_after", 30, "Seconds of silence after which a process counts as lost, and all others stop.", 5
)
_JOIN_SECONDS = 300
_WATCH = """trap '' HUP INT TERM USR1 USR2; read -r line || printf '%s\\n' "$1" >&2"""
"""A shell script that says its argument if its standard input ends before it holds a line."""


def initialize() -> None:
    """Joins the other processes, if the flags name any.

    Raises:
        UserError: If flags contradict each other, JAX knows no such cluster, or processes do not arrive.
    """
    coordinator, number, own = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if coordinator is None:
        for name, value in (("num_processes", number), ("process_id", own)):
            if value is not None:
                raise UserError(f"--{name} needs --coordinator=HOST:PORT, the address of process 0")
        if not _DISTRIBUTED.value:
            return
    elif number is None or own is None:
        raise UserError("--coordinator needs --num_processes and --process_id")
    elif own >= number:
        raise UserError(f"--process_id={own} with --num_processes={number}; allowed: 0 to {number - 1}")
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=number,
            process_id=own,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_LOST_AFTER.value,
        )
    except (ValueError, RuntimeError) as error:
        how = f"--coordinator={coordinator}" if coordinator else "--distributed"
        raise UserError(
            f"{how}: the processes of this job did not find each other ({str(error).splitlines()[0]}). "
            f"--distributed needs Slurm (srun) or a TPU pod; elsewhere give every process --coordinator=HOST:PORT "
            f"--num_processes=N --process_id=I, as launch/jobset.yaml does on Kubernetes"
        ) from error


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Says how to go on if this process, one of several, is ended while it is in here and cannot say it itself.

    JAX ends a process that has lost the others from a thread of its own, by an abort with a stack trace; and nobody can
    act on a SIGKILL. So a shell waits for the end of a pipe that this process holds open. With one process there is
    nothing to lose.
    """
    if _COORDINATOR.value is None and not _DISTRIBUTED.value:
        yield
        return
    text = (
        f"error: process {hosts.index()} of {hosts.count()} was ended: it heard nothing from the others for "
        f"{_LOST_AFTER.value} seconds (--lost_after), or it was killed. Checkpoints are whole: start the job again "
        f"with the same command, on every host, and it goes on from the last one"
    )
    command = ["/bin/sh", "-c", _WATCH, "sh", text]
    # Its own session keeps Ctrl-C from it. Its standard error is this process's own.
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is gone already
            watch.communicate(b"\n")
