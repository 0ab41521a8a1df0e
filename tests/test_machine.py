"""Cores and memory of a process are what it is given, whatever the machine has."""

import os
import resource

import pytest

from jaxseg import machine

GIB = 2**30


@pytest.fixture
def root(tmp_path):
    """A machine of 64 GiB of which 40 are available, without control groups."""
    write(tmp_path, "proc/meminfo", "MemTotal:  67108864 kB\nMemFree: 1 kB\nMemAvailable: 41943040 kB\n")
    write(tmp_path, "proc/self/statm", "1000 100 10 1 0 100 0\n")
    return tmp_path


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_process_has_the_cores_of_its_affinity(root, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert machine.cores(root) == 6
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert machine.cores(root) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/not/mounted/here\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        ({"proc/self/cgroup": "nonsense\n0::/\n", "sys/fs/cgroup/cpu.max": "many few\n"}, 16),
    ],
)
def test_a_quota_of_processor_time_bounds_the_cores(root, monkeypatch, files, expected):
    monkeypatch.setattr(machine, "_affinity", lambda: 16)
    for name, text in files.items():
        write(root, name, text)
    assert machine.cores(root) == expected


def test_memory_is_the_machines_where_nothing_limits_it(root):
    assert machine.memory_bytes(root) == 64 * GIB
    assert machine.free_bytes(root) == 40 * GIB


def test_a_control_group_limits_memory_and_its_cached_files_do_not_count(root):
    write(root, "proc/self/cgroup", "0::/job/step\n")
    write(root, "sys/fs/cgroup/job/memory.max", f"{8 * GIB}\n")
    write(root, "sys/fs/cgroup/job/memory.current", f"{7 * GIB}\n")
    write(root, "sys/fs/cgroup/job/memory.stat", f"anon 5\ninactive_file {2 * GIB}\n")
    write(root, "sys/fs/cgroup/job/step/memory.max", "max\n")
    assert machine.memory_bytes(root) == 8 * GIB
    assert machine.free_bytes(root) == 3 * GIB


def test_control_groups_of_version_1(root):
    write(root, "proc/self/cgroup", "9:memory:/job\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{4 * GIB}\n")
    write(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", f"{3 * GIB}\n")
    write(root, "sys/fs/cgroup/memory/job/memory.stat", f"cache 1\ntotal_inactive_file {GIB}\n")
    assert machine.memory_bytes(root) == 4 * GIB
    assert machine.free_bytes(root) == 2 * GIB


def test_the_address_space_bounds_what_is_free(root, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (GIB, GIB))
    assert machine.free_bytes(root) == GIB - 1000 * os.sysconf("SC_PAGE_SIZE")


def test_this_machine_has_cores_and_memory():
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.free_bytes() <= machine.memory_bytes()
