"""A study of two processes on two virtual hosts, whose link is cut for a while, or for good."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxseg import hosts
from tests.conftest import ROOT
from tests.hosts import network as networks
from tests.hosts import study
from tests.hosts.network import Network

pytestmark = pytest.mark.hosts
PORT = 61234
SECONDS = 600.0
"""Longer than the study takes on a busy machine."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Two hosts; skips where there can be none."""
    reason = networks.why_not()
    if reason is not None:
        pytest.skip(reason)
    with networks.between_two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study by one process on this machine."""
    workdir = tmp_path_factory.mktemp("alone") / "study"
    study.run_alone(workdir)
    return workdir


def start(network: Network, workdir: Path, lost_after: int) -> list[subprocess.Popen[str]]:
    """The same command on both hosts, but for the process's number."""
    command = [sys.executable, "-m", "launch.study", study.CONFIG, f"--workdir={workdir}", "--num_processes=2"]
    command += [f"--coordinator={network.addresses[0]}:{PORT}", f"--lost_after={lost_after}"]
    environment = study.environment()
    return [network.start(index, [*command, f"--process_id={index}"], cwd=ROOT, env=environment) for index in range(2)]


def wait_until(reached: Callable[[Path], int], step: int, workdir: Path, running: list[subprocess.Popen[str]]) -> None:
    """Until the training has come so far by its log or by its checkpoints, with both at work."""
    deadline = time.monotonic() + SECONDS
    while reached(workdir) < step:
        for process in running:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ends(running: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Exit status and stderr of each process."""
    deadline = time.monotonic() + seconds
    errors = [process.communicate(timeout=max(0.0, deadline - time.monotonic()))[1] for process in running]
    return [(process.returncode, error) for process, error in zip(running, errors, strict=True)]


def test_a_link_that_is_away_for_less_than_a_lost_host_is_waited_for(
    network: Network, uninterrupted: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "study"
    running = start(network, workdir, lost_after=60)
    wait_until(study.trained, 20, workdir, running)
    network.cut()
    time.sleep(1)
    at = study.trained(workdir)
    time.sleep(5)
    assert study.trained(workdir) == at < study.STEPS, "nothing goes on without the other"
    network.mend()
    for status, errors in ends(running, SECONDS):
        assert status == 0, errors
    study.assert_same_results(workdir, uninterrupted)


def test_a_link_that_is_cut_for_good_ends_both_and_the_same_command_goes_on(
    network: Network, uninterrupted: Path, tmp_path: Path
) -> None:
    workdir, lost_after = tmp_path / "study", 10
    running = start(network, workdir, lost_after)
    wait_until(study.saved, 40, workdir, running)  # written beside the steps, so by a slow disk long after its own
    network.cut()
    began = time.monotonic()
    try:
        for index, (status, errors) in enumerate(ends(running, 6 * lost_after)):
            assert status not in (0, 2), errors
            last = errors.splitlines()[-1]
            assert last.startswith("error: "), errors
            assert "start the job again with the same command" in last
            assert f"rocess {index} of 2" in last
            assert len(errors.splitlines()) < 50, errors
    finally:
        network.mend()
    assert time.monotonic() - began < 3 * lost_after
    at = study.saved(workdir)
    assert 40 <= at < study.STEPS
    for status, errors in ends(start(network, workdir, lost_after=60), SECONDS):
        assert status == 0, errors
    study.assert_same_results(workdir, uninterrupted)


def test_a_host_that_is_looked_for_at_home_is_told_what_to_mend() -> None:
    cause = "UNKNOWN: Gloo context initialization failed: timed out: remote=[{}]:30622$1"
    assert "/etc/hosts" in hosts._own_name(cause.format("127.0.1.1"))
    assert hosts._own_name(cause.format("10.0.0.7")) == ""
    assert hosts._own_name("UNAVAILABLE: remote=[127.0.0.1]") == ""
