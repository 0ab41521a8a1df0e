"""A study whose workdir lies in a bucket of a service on this machine: killed, cut off, and begun again elsewhere."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxseg.buckets import address, lease, states
from jaxseg.buckets.objects import open_objects
from jaxseg.buckets.reading import local_copy
from tests.buckets.emulators import BUCKET, Service, emulated, free_of_proxies
from tests.buckets.faults import results
from tests.conftest import ROOT

KILLS = {"s3": 2, "gs": 1}


@pytest.fixture(params=KILLS)
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Service]]:
    with emulated(request.param) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield request.param, found


def start(place: str, scratch: Path) -> subprocess.Popen[str]:
    """`launch.study` on a machine of its own, as far as its files go."""
    argv = [sys.executable, "-m", "launch.study", "--config=tests/tiny_study.py", f"--workdir={place}"]
    return subprocess.Popen(
        [*argv, f"--scratch={scratch}"],
        cwd=ROOT,
        env=free_of_proxies(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def follow(process: subprocess.Popen[str], lines: int) -> list[str]:
    """Reads some lines of what it says of its progress, less if it ends before."""
    assert process.stdout is not None
    read: list[str] = []
    while len([line for line in read if not line.startswith("bucket:")]) < lines and (
        line := process.stdout.readline()
    ):
        read.append(line)
    return read


def test_a_study_killed_and_cut_off_ends_with_the_tables_of_one_on_a_disk(service, tiny_study: Path, tmp_path: Path):
    scheme, emulator = service
    place = f"{scheme}://{BUCKET}/runs/tiny"
    seed = time.time_ns()
    draw = random.Random(seed)
    for number in range(KILLS[scheme]):
        process = start(place, tmp_path / f"machine{number}")
        follow(process, draw.randrange(3, 14))
        time.sleep(draw.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(place, tmp_path / "last")
    said = follow(process, draw.randrange(3, 10))
    emulator.connection.cut()
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "the study goes on, trying again" not in line:
        said.append(line)
    emulator.connection.mend()
    rest, errors = process.communicate(timeout=600)
    assert process.returncode == 0, (seed, errors)
    assert line, ("the connection was cut and nothing was said of it", seed, said)
    assert f"bucket: {place} holds all of it" in rest
    copy = local_copy(place, scratch=tmp_path / "reader")
    assert results(copy) == results(tiny_study), seed
    assert results(tmp_path / "last" / address.parse(place).slug / "tiny") == results(tiny_study)
    objects = open_objects(address.parse(place))
    assert not lease.claims(objects)
    assert objects.read("report.html") == (copy / "report.html").read_bytes()
    assert objects.names("objects") == states.read(objects).objects
