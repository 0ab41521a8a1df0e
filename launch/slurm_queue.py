"""What Slurm says of jobs that are in its queue or have just left it.

The queue itself is asked. Many clusters keep no accounts, where `sacct`, which submitit calls, answers nothing but an
error and a job that was cancelled or lost would seem to wait for ever.
"""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Collection

CONTINUED = ("PREEMPTED", "TIMEOUT", "COMPLETED", "")
"""Words for ends after which a point goes on. A job that is COMPLETED left its point to another command, and without a
word Slurm is asked again."""
FORGOTTEN = "forgotten by Slurm"
_UNKNOWN = re.compile("Invalid job id specified|Job [0-9_]+ not found")
"""What scontrol says of a job that Slurm has forgotten, which is an answer."""
_SECONDS = 60.0


def still_queued(jobs: Collection[str]) -> set[str]:
    """Returns those of the user's jobs that wait, run or are about to end.

    While the queue does not answer, all of them are taken to be there.
    """
    told = _ask("squeue", "--noheader", "--me", "--array", "--format=%i")
    return set(jobs) if told is None else set(jobs) & set(told.split())


def how_it_ended(job: str) -> str:
    """Returns Slurm's word for the end of a job, such as CANCELLED or NODE_FAIL.

    Slurm forgets a job minutes after its end (MinJobAge); then its accounts are asked, which not every cluster keeps.

    Returns:
        The word; `FORGOTTEN` if nobody knows the job any more; empty if Slurm does not answer.
    """
    told = _ask("scontrol", "--oneliner", "show", "job", job)
    if told is None:
        return ""
    known = dict(word.split("=", 1) for word in told.split() if "=" in word)
    if "JobState" in known:
        return known["JobState"]
    accounts = _ask("sacct", "--noheader", "--allocations", "--format=State%30", f"--jobs={job}", is_optional=True)
    return next(iter((accounts or "").split()), FORGOTTEN)  # of "CANCELLED by 1000", the first


def _ask(*command: str, is_optional: bool = False) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if done.returncode == 0 or _UNKNOWN.search(done.stdout + done.stderr):
            return done.stdout
        reason = " ".join(done.stderr.split())
    if is_optional:
        return None
    # The same text at the same place is shown once a process, however often the queue is asked.
    warnings.warn(f"{command[0]} does not answer, and is asked again: {reason}", stacklevel=2)
    return None
