"""The resources of the machine that this process may use: its cores and its memory.

The numbers of a whole node are misleading where many processes share it: Slurm gives a job some of the cores, a
container has a quota of processor time and a memory limit, and `ulimit -v` bounds the address space. The smallest
bound applies.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import scipy.linalg  # noqa: F401  (its BLAS is a library of its own, which must be loaded to be limited)
from threadpoolctl import threadpool_limits

_ROOT = Path("/")
_UNLIMITED = 2**60
"""Control groups of version 1 report a limit above this number if there is none."""


def cores(root: Path = _ROOT) -> int:
    """Return the number of cores that this process may use, at least 1, by its affinity and its control groups' quota.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    allowed = [_affinity()]
    for folder in _groups("cpu", root):
        quota, period = _numbers(folder, "cpu.max", ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        if quota > 0 and period > 0:
            allowed.append(math.ceil(quota / period))
    return max(1, min(allowed))


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """Limit the BLAS of NumPy and SciPy to one thread, in a `with` block or, without one, from now on.

    It starts a thread for each core, and they wait for each other by spinning. The matrices of the analyses have a few
    hundred rows: one thread is about as fast, and a hundred times faster where other work shares the cores
    (docs/performance.md). Results then do not depend on the number of cores either. XLA has threads of its own.
    """
    return threadpool_limits(limits=1, user_api="blas")


def memory_bytes(root: Path = _ROOT) -> int:
    """Return the most memory, in bytes, that this process may use: the machine's or the limit of its control groups.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    machine = _meminfo(root).get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _memory_groups(root))])


def free_bytes(root: Path = _ROOT) -> int:
    """Return the free memory, in bytes, within the limits of the control groups and of the address space.

    Args:
        root: Folder that holds `proc` and `sys`.
    """
    left = [_meminfo(root).get("MemAvailable", memory_bytes(root))]
    left += [limit - used for limit, used in _memory_groups(root)]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        left.append(address_space - _address_space_used(root))
    return max(0, min(left))


def _affinity() -> int:
    count = getattr(os, "process_cpu_count", None)  # from Python 3.13, where a user may also set it
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of each control group that limits memory. Cached file pages that can be dropped are not used."""
    for folder in _groups("memory", root):
        (limit,) = _numbers(folder, "memory.max", ("memory.limit_in_bytes",))[:1]
        if 0 < limit < _UNLIMITED:
            (used,) = _numbers(folder, "memory.current", ("memory.usage_in_bytes",))[:1]
            pages = _table(folder / "memory.stat")
            yield limit, max(0, used - pages.get("total_inactive_file", pages.get("inactive_file", 0)))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own to the outermost one.

    Inside a container the path of its own group may not exist, because what is mounted begins at that group.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        mounted = root / "sys/fs/cgroup"
        if number == "0" and not names:
            mounted = mounted / "unified" if (mounted / "unified").is_dir() else mounted
        elif controller in names.split(","):
            mounted = mounted / controller
        else:
            continue
        own = mounted / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mounted) and folder.is_dir())


def _numbers(folder: Path, unified: str, separate: tuple[str, ...]) -> list[int]:
    """Numbers of a file of version 2, or of files of version 1; -1 where there is no limit or no file."""
    words = _text(folder / unified).split() or [(_text(folder / name).split() or [""])[0] for name in separate]
    words += [""] * (len(separate) - len(words))
    return [int(word) if word.lstrip("-").isdigit() else -1 for word in words]


def _meminfo(root: Path) -> dict[str, int]:
    return {name.rstrip(":"): 1024 * kib for name, kib in _table(root / "proc/meminfo").items()}


def _table(path: Path) -> dict[str, int]:
    """A file of lines that begin with a name and a number."""
    rows = [line.split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _address_space_used(root: Path) -> int:
    words = _text(root / "proc/self/statm").split()
    return int(words[0]) * os.sysconf("SC_PAGE_SIZE") if words else 0


def _text(path: Path) -> str:
    """A file's text; empty where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
