"""What Slurm says of jobs that are in its queue or have just left it.

The queue itself is asked. Many clusters keep no accounts, where `sacct`, which submitit calls, answers nothing but an
error and a job that was cancelled or lost would seem to wait for ever.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Collection

_SECONDS = 60.0


def still_queued(jobs: Collection[str]) -> set[str]:
    """Returns those of the user's jobs that wait, run or are about to end.

    While the queue does not answer, all of them are taken to be there.
    """
    told = _ask("squeue", "--noheader", "--me", "--array", "--format=%i")
    return set(jobs) if told is None else set(jobs) & set(told.split())


def how_it_ended(job: str) -> str:
    """Returns Slurm's word for the end of a job, such as CANCELLED or NODE_FAIL; empty if it has forgotten the job."""
    told = _ask("scontrol", "--oneliner", "show", "job", job) or ""
    known = dict(word.split("=", 1) for word in told.split() if "=" in word)
    return known.get("JobState", "")


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return done.stdout
        reason = " ".join(done.stderr.split())
    # The same text at the same place is shown once a process, however often the queue is asked.
    warnings.warn(f"{command[0]} does not answer, and is asked again: {reason}", stacklevel=2)
    return None
