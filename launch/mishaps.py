"""What ends a command, in one sentence and an exit status: the user's mistakes, the machine's refusals, signals."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

import jax
from absl import flags

from jaxseg import hosts, oserrors
from jaxseg.loop import Interrupted
from jaxseg.types import UserError

MISTAKE, FAULT = 2, 1
"""Exit statuses of what the user can mend with another command line, config or folder, and of all other faults."""

_GOES_ON = "what is saved is sound, and the same command goes on from it"
_NO_ROOM = f"make room, or raise the quota or limit: {_GOES_ON}"
_AWAY = f"the disk or the network did not deliver; nothing was set aside or replaced for it, and {_GOES_ON}"
_SYSTEM: dict[int, tuple[int, str]] = {
    errno.ENOSPC: (FAULT, _NO_ROOM),
    errno.EDQUOT: (FAULT, _NO_ROOM),
    errno.EFBIG: (FAULT, _NO_ROOM),
    errno.EROFS: (MISTAKE, "give a place that can be written to"),
    errno.EACCES: (MISTAKE, "change its permissions or those of the folders above it, or give another place"),
    errno.EPERM: (MISTAKE, "change its permissions or those of the folders above it, or give another place"),
    errno.ENOTDIR: (MISTAKE, "a file stands where a folder is needed; give another place"),
    errno.EEXIST: (MISTAKE, "something else has this name already; remove it, or give another place"),
    errno.EISDIR: (MISTAKE, "a folder stands where a file is needed; give another place"),
    errno.ENAMETOOLONG: (MISTAKE, "give a shorter name or a place nearer to the root"),
    errno.ELOOP: (MISTAKE, "links lead in a circle or are not followed here; give the folder itself"),
    errno.EMFILE: (FAULT, f"raise the limit (ulimit -n 4096): {_GOES_ON}"),
    errno.ENFILE: (FAULT, f"the whole machine has too many; {_GOES_ON}"),
    errno.EIO: (FAULT, _AWAY),
    errno.ESTALE: (FAULT, _AWAY),
    errno.ENODEV: (FAULT, _AWAY),
    errno.ENXIO: (FAULT, _AWAY),
    errno.ETIMEDOUT: (FAULT, _AWAY),
    errno.EHOSTDOWN: (FAULT, _AWAY),
    errno.ENOTCONN: (FAULT, _AWAY),
    errno.EBUSY: (FAULT, _AWAY),
    errno.ENOMEM: (FAULT, f"free memory, or give the job more of it: {_GOES_ON}"),
    errno.EAGAIN: (FAULT, f"free memory, or give the job more of it: {_GOES_ON}"),
}
_LESS_MEMORY = (
    "train fewer runs at once (config.runtime.seeds_per_chunk), or use a smaller patch or batch, or give the job more "
    f"memory: {_GOES_ON}"
)


def explain(error: BaseException) -> tuple[str, int] | None:
    """Explains an exception that ends a command, with the exit status; None if only a traceback helps."""
    if isinstance(error, UserError):
        return f"error: {error}", MISTAKE
    if isinstance(error, Interrupted):
        return str(error), 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT; the same command goes on from what is saved", 130
    if isinstance(error, hosts.LostHostError):
        return f"error: {error}", FAULT
    refused = oserrors.behind(error)
    if refused is not None:
        return _refusal(refused, error)
    first = str(error).split("\n", 1)[0]
    if isinstance(error, MemoryError) or first.startswith("RESOURCE_EXHAUSTED") or "Out of memory" in first:
        return f"error: memory ran out ({first or 'no memory for an array'}); {_LESS_MEMORY}", FAULT
    if isinstance(error, RuntimeError) and "can't start new thread" in first:
        return f"error: the system starts no more threads (see ulimit -u and -v); {_GOES_ON}", FAULT
    missing = missing_device()
    return None if missing is None else (f"error: {missing}", MISTAKE)


def _refusal(refused: OSError, error: BaseException) -> tuple[str, int]:
    number = refused.errno or 0
    status, help_ = _SYSTEM.get(number, (FAULT, ""))
    where = [os.fsdecode(name) for name in (refused.filename, refused.filename2) if isinstance(name, str | bytes)]
    text = " -> ".join(where) or _given_place()
    text = f"{text}: {refused.strerror or os.strerror(number)}" if text else refused.strerror or os.strerror(number)
    if not help_:
        # Nothing that we know to be a mood of the machine, so perhaps a fault of ours: say where.
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent.parent)]
        help_ = f"in {Path(ours[-1].filename).name}, line {ours[-1].lineno}; {_GOES_ON}" if ours else _GOES_ON
    return f"error: {text}; {help_}", status


def _given_place() -> str:
    """Where the command writes, for refusals that name no file."""
    for name in ("output", "workdir"):
        if name in flags.FLAGS and flags.FLAGS[name].value:
            return f"--{name}={flags.FLAGS[name].value}"
    return ""


def missing_device() -> str | None:
    """Explains that JAX has no device to work on; None if it has one."""
    try:
        jax.local_devices()
    except Exception as error:  # JAX raises AssertionError, RuntimeError or its own, whatever the back end found
        asked = os.environ.get("JAX_PLATFORMS", "")
        cause = str(error).split("\n", 1)[0] or type(error).__name__
        return (
            f"JAX finds no device{f' for JAX_PLATFORMS={asked}' if asked else ''} ({cause}); unset JAX_PLATFORMS or "
            f"set it to cpu, or install what the device needs, e.g. pip install 'jaxseg[cuda]' for an NVIDIA GPU"
        )
    return None
