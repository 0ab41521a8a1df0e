"""A job of several processes: the same results as one, a lost process, a preemption notice, another number of them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxseg import checkpoint, hosts, loop, manifest, settings
from jaxseg.study import files
from jaxseg.study.plan.jobs import own_rows
from jaxseg.study.plan.planned import prepare
from jaxseg.study.score import stage as score_stage
from jaxseg.types import UserError
from launch import distributed
from tests import training_parts
from tests.conftest import ROOT
from tests.launch import walk as walks
from tests.study.test_run import assert_same_results
from tests.tiny_study import silent, tiny_config

LOST_AFTER = 10
"""Seconds, given on the command line."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(workdir: Path, processes: int, *arguments: str, devices: int = 1) -> list[subprocess.Popen[str]]:
    """The processes of one study; `devices` each."""
    port = free_port()
    argv = [sys.executable, "-m", "launch.study", "--config=tests/tiny_study.py", f"--workdir={workdir}", *arguments]
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


# -------------------------------------------------------------------------------- the loop, on runs that are walks


def walk(folder: Path) -> list[subprocess.Popen[str]]:
    """Five walks on two processes, which wait to be told to go on."""
    port = free_port()
    argv = [sys.executable, "-m", "tests.launch.walk", str(folder), "5", str(port), "2"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return [subprocess.Popen([*argv, str(index)], cwd=ROOT, env=environment, text=True, **pipes) for index in range(2)]


def go_on(process: subprocess.Popen[str], rows: int) -> None:
    """Lets the job write some more rows of its log; `ends` lets it write all."""
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(rows):
        for line in process.stdout:
            if line.startswith("training"):
                break
        process.stdin.write("\n")
        process.stdin.flush()


def assert_same_walks(folder: Path, other: Path) -> None:
    assert checkpoint.damage(folder / "checkpoints", walks.SETTINGS.steps) is None
    ours, theirs = (checkpoint.read_params(d / "checkpoints", walks.SETTINGS.steps, range(5)) for d in (folder, other))
    np.testing.assert_array_equal(ours["w"], theirs["w"])
    rows = [[row | {"step_seconds": 0} for row in training_parts.metric_lines(place)] for place in (folder, other)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1 + walks.SETTINGS.steps // walks.SETTINGS.log_every


def test_a_job_of_two_processes_lost_one_was_preempted_and_went_on_alone(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    loop.fit(walks.job(one, 5), silent(""))
    first, second = walk(two)
    go_on(first, 8)
    second.kill()
    began = time.monotonic()
    (status, errors), _ = ends([first, second])
    assert status == 3
    assert "a host of this job is gone" in errors
    assert "start the job again with the same command" in errors
    assert time.monotonic() - began < LOST_AFTER + 10
    saved = checkpoint.saved_steps(two / "checkpoints")[-1]

    first, second = walk(two)
    go_on(first, 3)
    second.send_signal(signal.SIGTERM)
    time.sleep(1)  # for the notice to get around
    for status, errors in ends([first, second]):
        assert status == 128 + signal.SIGTERM, errors
        assert "stopped by SIGTERM; saved step" in errors
    assert saved < checkpoint.saved_steps(two / "checkpoints")[-1] < walks.SETTINGS.steps

    loop.fit(walks.job(two, 5), silent(""))  # one process and four devices
    assert_same_walks(two, one)


def test_hosts_score_their_own_runs_and_the_first_puts_them_together(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    ready = prepare(settings.parse(tiny_config()), workdir, silent(""))
    monkeypatch.setattr(hosts, "count", lambda: 3)
    for job in ready.plan.of_kind("train"):
        directory = workdir / job.directory
        manifest.remove(directory / score_stage.PART)
        files.write_text(directory / "part_0-9" / score_stage.PART, "from another number of hosts\n")
        for index in range(3):
            monkeypatch.setattr(hosts, "index", lambda index=index: index)
            score_stage.evaluate_job(ready.study, workdir, ready.tasks, job, silent(""))
        rows = [own_rows(ready.study, job, index) for index in range(3)]
        assert sorted(itertools.chain(*rows)) == list(range(len(job.runs)))
        score_stage.merge_parts(ready.study, workdir, ready.tasks, job)
        assert [path.name for path in directory.rglob("cases*")] == [score_stage.PART]
        ours, theirs = (
            files.read_table(place / job.directory / score_stage.PART).sort_values(["arm", "seed", "case", "label"])
            for place in (workdir, tiny_study)
        )
        pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("runs", [1, 2, 5, 8, 9])
def test_every_run_has_one_host_and_hosts_have_equally_many_rows(runs: int, devices: int, count: int):
    shares = [hosts.share(runs, devices=devices, index=index, count=count) for index in range(count)]
    assert [row for share in shares for row in share.rows[: share.own]] == list(range(runs))
    assert len({len(share.rows) for share in shares}) == 1
    per_device = -(-len(shares[0].rows) // devices)
    assert per_device == -(-runs // (count * devices)), "no slower than runs spread evenly"
    every = [row for share in shares for row in share.rows]
    assert every[:runs] == list(range(runs)), "a run's position does not depend on the hosts"
    assert set(every[runs:]) <= {runs - 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "--num_processes needs --coordinator=HOST:PORT"),
        ({"coordinator": "a:1"}, "--coordinator needs --num_processes and --process_id"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2 .* allowed: 0 to 1"),
    ],
)
def test_mistakes_in_the_flags(given: dict, message: str):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**given), pytest.raises(UserError, match=message):
        distributed.initialize()


ONE_OF_TWO = {"coordinator": "a:1", "num_processes": 2, "process_id": 1}
"""Flags."""


def test_a_process_that_is_killed_has_last_words(tmp_path: Path):
    code = "import os, sys; from absl import flags; from launch import distributed; flags.FLAGS(sys.argv)\n"
    code += "with distributed.last_words(): os.kill(os.getpid(), 9)"
    given = [f"--{name}={value}" for name, value in ONE_OF_TWO.items()]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: process 0 of 1 was ended: it heard nothing from the others for 30 seconds")
    assert "start the job again with the same command" in line


def test_a_process_that_ends_in_order_has_none(capfd: pytest.CaptureFixture[str]):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**ONE_OF_TWO):
        with distributed.last_words():
            pass
        with pytest.raises(KeyError), distributed.last_words():
            raise KeyError  # which the command line explains
    assert capfd.readouterr().err == ""


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
        rows = training_parts.metric_lines(workdir / "train" / "train_0" / "chunk_0")
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.02)
    raise TimeoutError


def wait_for_checkpoint(workdir: Path, step: int) -> None:
    """Until a checkpoint of the arms is whole that is this far: saving goes on beside the training."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        saved = checkpoint.saved_steps(workdir / "train" / "train_0" / "chunk_0" / "checkpoints")
        if saved and saved[-1] >= step:
            return
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (2, 2), (4, 1)])
def test_processes_give_what_one_gives(processes: int, devices: int, longer: Path, tmp_path: Path):
    finish(tmp_path / "study", processes, *LONGER, devices=devices)
    assert_same_results(tmp_path / "study", longer)
    assert 'content="0; url=report.html"' in (tmp_path / "study" / "live.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_process_ends_the_others_and_a_restart_goes_on(lost: int, longer: Path, tmp_path: Path):
    workdir = tmp_path / "study"
    running = start(workdir, 3, *LONGER)
    wait_for_checkpoint(workdir, 8)
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


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_with_one_and_with_four(longer: Path, tmp_path: Path):
    workdir = tmp_path / "study"
    for devices, step in ((8, 10), (1, 20), (4, 30), (8, None)):
        (running,) = start(workdir, 1, *LONGER, devices=devices)
        if step is not None:
            wait_for(workdir, step)
            running.send_signal(signal.SIGTERM)
        ((status, errors),) = ends([running])
        assert status == (0 if step is None else 143), errors
    assert_same_results(workdir, longer)
