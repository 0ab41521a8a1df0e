"""Studies and sweeps on a real Slurm: stopped and queued again, on a node that is lost, cancelled, failed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxseg.study import files, sweep
from launch import slurm_queue, sweep_jobs
from tests.conftest import ROOT
from tests.hosts import study
from tests.slurm import cluster as clusters
from tests.slurm.cluster import Cluster, wait_for

pytestmark = pytest.mark.slurm
SECONDS = 600.0
"""Longer than any job here takes on a busy machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Slurm of two nodes with four cores each; skips where it cannot be started."""
    reason = clusters.why_not()
    if reason is not None:
        pytest.skip(reason)
    with clusters.running() as found:
        yield found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study by one process, without Slurm."""
    workdir = tmp_path_factory.mktemp("alone") / "study"
    study.run_alone(workdir)
    return workdir


def submit(cluster: Cluster, workdir: Path, *options: str) -> tuple[str, Path]:
    """Submits the study by the batch script as it is; gives the job and its log."""
    log = workdir.with_suffix(".log")
    # Nodes without GPUs, by the options that the script's header names.
    options = ("--gpus-per-node=0", "--cpus-per-task=1", f"--output={log}", *options)
    script = ["launch/slurm.sbatch", study.CONFIG, f"--workdir={workdir}"]
    environment = study.environment() | cluster.environment | {"JAXSEG_PYTHON": sys.executable}
    job = cluster.call("sbatch", "--parsable", *options, *script, environment=environment, folder=ROOT).strip()
    return job, log


def wait(cluster: Cluster, job: str, log: Path, what: str, is_so: object) -> None:
    """Waits for something in a job's life, and tells the state and log if it does not come."""

    def said() -> str:
        return f"{cluster.state(job)}\n{log.read_text() if log.exists() else 'no log'}\n{cluster.said()}"

    wait_for(is_so, what, SECONDS, said)  # type: ignore[arg-type]


def finish(cluster: Cluster, job: str, log: Path) -> dict[str, str]:
    """Waits for the end of a job, which must be a good one; gives what Slurm says of it."""
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait(cluster, job, log, "the end", lambda: cluster.state(job)["JobState"] in ends)
    state = cluster.state(job)
    assert state["JobState"] == "COMPLETED", log.read_text()
    return state


def test_two_tasks_that_are_told_to_stop_save_and_are_queued_again(
    cluster: Cluster, uninterrupted: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "study"
    job, log = submit(cluster, workdir, "--ntasks-per-node=2")
    wait(cluster, job, log, "the training", lambda: study.trained(workdir) >= 20)
    # As Slurm does when the time is nearly over (--signal): to the tasks, not to the script.
    cluster.call("scancel", "--signal=TERM", job)
    wait(cluster, job, log, "the end of the first start", lambda: cluster.state(job)["Restarts"] == "1")
    told = log.read_text()
    assert told.count("stopped by SIGTERM; saved step") == 2, told
    assert 20 <= study.saved(workdir) < study.STEPS
    finish(cluster, job, log)
    study.assert_same_results(workdir, uninterrupted)


def test_a_study_whose_node_is_lost_goes_on_on_another(cluster: Cluster, uninterrupted: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "study"
    lost, other = cluster.nodes
    job, log = submit(cluster, workdir)
    wait(cluster, job, log, "a checkpoint", lambda: study.saved(workdir) >= 80)
    assert cluster.state(job)["NodeList"] == lost
    cluster.lose_node(lost)
    assert study.trained(workdir) < study.STEPS
    state = finish(cluster, job, log)
    cluster.start_node(lost)
    assert (state["Restarts"], state["NodeList"]) == ("1", other)
    study.assert_same_results(workdir, uninterrupted)


# -------------------------------------------------------------------------------------- sweeps


def test_a_sweep_of_two_points_is_submitted_and_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "launch.sweep", study.CONFIG, f"--workdir={folder}", "--config.train.steps=8"]
    command += ["--grid=optim.lr=1e-2;1e-3", "--cluster=slurm", "--wait", "--slurm=cpus_per_task=1,timeout_min=30"]
    environment = study.environment() | cluster.environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "2 done" in done.stdout
    assert "sacct" not in done.stderr, "this Slurm keeps no accounts, and none were needed"
    summary = files.read_table(folder / "results" / "summary.csv")
    assert set(summary["optim.lr"]) == {1e-2, 1e-3}
    for name, own in summary.groupby("point"):
        assert len(own) == len(files.read_table(folder / "points" / str(name) / "results" / "summary.csv"))


def command(folder: Path, name: str, code: str) -> sweep_jobs.Command:
    """A point whose process runs some Python instead of a study."""
    return sweep_jobs.Command(name, folder / "points" / name, (sys.executable, "-c", code))


def test_points_that_fail_or_are_cancelled_are_named_with_what_they_said(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    commands = [
        command(tmp_path, "good", "print('fine')"),
        command(tmp_path, "bad", "print('at step 7'); raise SystemExit('the images are gone')"),
        command(tmp_path, "endless", "import time; print('up', flush=True); time.sleep(600)"),
    ]
    endless = commands[2].workdir

    def cancel() -> None:
        wait_for(lambda: sweep.last_lines(endless / sweep.LOG) == ["up"], "the point to run", 300)
        job = str(sweep.read_note(endless / sweep_jobs.JOB)["job"])  # type: ignore[index]
        assert slurm_queue.still_queued([job, "99"]) == {job}
        cluster.kill_tasks("SLURM_ARRAY_TASK_ID=2")

    canceller = threading.Thread(target=cancel)
    canceller.start()
    sweep_jobs.submit(commands, tmp_path, parallel=1, given=["cpus_per_task=1"], local=False, wait=True)
    canceller.join()
    assert [sweep.read_record(one.workdir)["state"] for one in commands] == ["done", "failed", "failed"]
    good, bad, lost = (sweep.read_record(one.workdir)["message"] for one in commands)
    assert good is None
    assert bad == "exit status 1: the images are gone"
    assert sweep.last_lines(commands[1].workdir / sweep.LOG, 5) == ["at step 7", "the images are gone"]
    assert "ended without a word (FAILED)" in lost, lost
    assert "Killed" in lost, lost
    assert not recwarn.list, [str(one.message) for one in recwarn.list]


def test_without_waiting_a_lost_job_has_failed_and_one_that_is_queued_again_goes_on(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    stops = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
    commands = [
        command(tmp_path, name, f"{stops}print('up', flush=True); time.sleep(600)") for name in ("lost", "again")
    ]
    lost, again = (sweep.Point(one.name, (), {}, one.workdir) for one in commands)
    sweep_jobs.submit(commands, tmp_path, parallel=1, given=["cpus_per_task=1"], local=False, wait=False)
    job = str(sweep.read_note(again.workdir / sweep_jobs.JOB)["job"])  # type: ignore[index]
    array = job.removesuffix("_1")
    try:
        for point in (lost, again):
            log = point.workdir / sweep.LOG
            wait_for(lambda log=log: sweep.last_lines(log) == ["up"], f"{log} to begin", 300, cluster.said)
        assert [sweep_jobs.state_of(point) for point in (lost, again)] == ["running", "running"]
        cluster.kill_tasks("SLURM_ARRAY_TASK_ID=0")
        cluster.call("scontrol", "requeue", job)
        wait_for(lambda: not sweep.is_worked_on(again.workdir), "the process to stop", 60, cluster.said)
        assert sweep_jobs.state_of(again) == "submitted"
        wait_for(lambda: sweep_jobs.state_of(lost) != "submitted", "the job to leave the queue", 60, cluster.said)
        assert lost.state == "failed"
        assert "ended without a word (FAILED)" in lost.record["message"], lost.record
        wait_for(lambda: again.record["attempts"] == 2, "the second start", 300, cluster.said)
        assert sweep_jobs.state_of(again) == "running"
        assert slurm_queue.how_it_ended("99999") == slurm_queue.how_it_ended(f"{array}_9") == slurm_queue.FORGOTTEN
    finally:
        cluster.call("scancel", array)
    assert not recwarn.list, [str(one.message) for one in recwarn.list]
