"""A job of several processes: the same results as one, a lost process, a preemption notice, another number of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxseg import checkpoint, loop
from tests.conftest import ROOT
from tests.study.test_run import assert_same_results

LOST_AFTER = 10
"""Seconds, given on the command line."""


def start(workdir: Path, processes: int, *arguments: str, devices: int = 1) -> list[subprocess.Popen[str]]:
    """The processes of one study; `devices` each."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    argv = [sys.executable, "-m", "launch.study", "--config=tests/tiny.py", f"--workdir={workdir}", *arguments]
    if processes > 1:
        argv += [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--lost_after={LOST_AFTER}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    if "JAX_COMPILATION_CACHE_DIR" not in environment:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "xla")
    return [
        subprocess.Popen(
            [*argv, f"--process_id={index}"] if processes > 1 else argv,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def ends(running: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status and stderr of each process."""
    errors = [process.communicate(timeout=600)[1] for process in running]
    return [(process.returncode, error) for process, error in zip(running, errors, strict=True)]


def finish(workdir: Path, processes: int, *arguments: str, devices: int = 1) -> None:
    for status, errors in ends(start(workdir, processes, *arguments, devices=devices)):
        assert status == 0, errors


def test_two_processes_give_what_one_gives(tiny_study: Path, tmp_path: Path):
    workdir = tmp_path / "study"
    finish(workdir, 2)
    assert_same_results(workdir, tiny_study)
    assert (workdir / "report.html").exists()
    assert not list(workdir.glob("train/*/*/cases_*")), "parts of tables are put together and gone"


def test_mistakes_in_the_flags():
    for given, message in (
        (["--num_processes=2"], "--num_processes needs --coordinator=HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "allowed: 0 to 1"),
    ):
        argv = [sys.executable, "-m", "launch.study", "--config=tests/tiny.py", "--workdir=nowhere", *given]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


# ------------------------------------------------------------------------------------------- five runs, longer


LONGER = ("--config.num_seeds=5", "--config.train.steps=40", "--config.train.save_every=8")


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study by one process on one device."""
    workdir = tmp_path_factory.mktemp("longer") / "study"
    finish(workdir, 1, *LONGER)
    return workdir


def wait_for(workdir: Path, step: int) -> None:
    """Until the arms have been trained this far."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        rows = loop.read_metrics(workdir / "train" / "train_0" / "chunk_0")
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_processes_with_stand_ins_give_what_one_gives(processes: int, devices: int, longer: Path, tmp_path: Path):
    finish(tmp_path / "study", processes, *LONGER, devices=devices)
    assert_same_results(tmp_path / "study", longer)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_process_ends_the_others_and_a_restart_goes_on(lost: int, longer: Path, tmp_path: Path):
    workdir = tmp_path / "study"
    running = start(workdir, 3, *LONGER)
    wait_for(workdir, 16)
    running[lost].kill()
    began = time.monotonic()
    results = ends(running)
    assert time.monotonic() - began < LOST_AFTER + 10
    for index, (status, errors) in enumerate(results):
        if index != lost:
            assert status != 0
            told = "a host of this job is gone" in errors and "with the same command" in errors
            assert told or "another task died" in errors, errors
    assert checkpoint.saved_steps(workdir / "train" / "train_0" / "chunk_0" / "checkpoints")[-1] >= 8
    finish(workdir, 3, *LONGER)
    assert_same_results(workdir, longer)


@pytest.mark.slow
def test_a_preemption_notice_to_one_saves_all(longer: Path, tmp_path: Path):
    workdir = tmp_path / "study"
    running = start(workdir, 2, *LONGER)
    wait_for(workdir, 10)
    running[1].send_signal(signal.SIGTERM)
    results = ends(running)
    assert [status for status, _ in results] == [128 + signal.SIGTERM] * 2
    assert all("stopped by SIGTERM; saved step" in errors for _, errors in results)
    saved = checkpoint.saved_steps(workdir / "train" / "train_0" / "chunk_0" / "checkpoints")[-1]
    assert 10 < saved < 40
    # The rest on other machines: one with four devices, then two with one.
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    finish(workdir, 1, *LONGER, devices=4)
    assert_same_results(workdir, longer)
    finish(copy, 3, *LONGER)
    assert_same_results(copy, longer)
