"""How points stand whose jobs left the queue of Slurm, here by programs of its names; tests/slurm asks a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jaxseg.study import sweep
from launch import slurm_queue, sweep_jobs

JOB = "7_0"
Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a program of Slurm's; without more of them the queue is empty and the job forgotten."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    make("squeue", "")
    make("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    return make


def point_in_a_job(folder: Path, state: str, **more: object) -> sweep.Point:
    """A point on which nothing works, as a job or its submission left it."""
    workdir = folder / "points" / "a"
    log = folder / "jobs" / "7_0_0_log.err"
    log.parent.mkdir()
    log.write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    job = {"queue": "slurm", "job": JOB, "log": str(log)}
    sweep.write_state(workdir, state, **({"job": job} if state == "running" else {}), **more)
    sweep.write_note(workdir / sweep_jobs.JOB, job)
    return sweep.Point("a", (), {}, workdir)


@pytest.mark.parametrize("state", ["submitted", "running"])
@pytest.mark.parametrize("word", ["CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "FAILED"])
def test_a_lost_job_that_nobody_waited_for_has_failed(tmp_path: Path, program: Program, state: str, word: str) -> None:
    point = point_in_a_job(tmp_path, state)
    program("scontrol", f"echo JobId=7 JobState={word} Reason=None")
    assert sweep_jobs.state_of(point) == point.state == "failed"
    message = point.record["message"]
    assert f"job 7_0 ended without a word ({word}); what it said is in {tmp_path}/jobs/7_0_0_log.err" in message
    assert message.endswith(": slurmstepd: error: Detected 1 oom_kill event")


@pytest.mark.parametrize("state", ["submitted", "running"])
@pytest.mark.parametrize("word", ["PREEMPTED", "TIMEOUT"])
def test_a_preempted_job_is_continued(tmp_path: Path, program: Program, state: str, word: str) -> None:
    point = point_in_a_job(tmp_path, state)
    program("scontrol", f"echo JobId=7 JobState={word}")
    assert sweep_jobs.state_of(point) == "interrupted"


def test_a_job_that_saved_and_was_not_queued_again_is_continued(tmp_path: Path, program: Program) -> None:
    """As by submitit, once a job has run out of time too often."""
    program("scontrol", "echo JobId=7 JobState=FAILED")
    assert sweep_jobs.state_of(point_in_a_job(tmp_path, "submitted", saved=True)) == "interrupted"


@pytest.mark.parametrize("state", ["submitted", "running"])
def test_a_job_that_was_queued_again_is_waited_for(tmp_path: Path, program: Program, state: str) -> None:
    point = point_in_a_job(tmp_path, state)
    program("squeue", "printf '6\\n7_0\\n'")
    assert sweep_jobs.state_of(point) == "submitted"
    program("squeue", "echo down >&2; exit 1")
    with pytest.warns(UserWarning, match="squeue does not answer"):
        assert sweep_jobs.state_of(point) == "submitted", "nobody knows that it ended"


def test_a_job_that_slurm_has_forgotten_is_looked_up_in_its_accounts(tmp_path: Path, program: Program) -> None:
    assert slurm_queue.how_it_ended(JOB) == slurm_queue.FORGOTTEN
    program("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm_queue.how_it_ended(JOB) == slurm_queue.FORGOTTEN
    program("sacct", "echo 'CANCELLED by 1000'")
    assert slurm_queue.how_it_ended(JOB) == "CANCELLED"
    point = point_in_a_job(tmp_path, "running")
    assert sweep_jobs.state_of(point) == "failed"


def test_a_process_of_this_machine_does_not_stand_for_an_earlier_job(tmp_path: Path, program: Program) -> None:
    point = point_in_a_job(tmp_path, "running")
    process = sweep_jobs.start(sweep_jobs.Command("a", point.workdir, ("/bin/sh", "-c", "kill -9 $$")))
    assert process is not None
    process.wait()
    assert sweep_jobs.state_of(point) == "interrupted"
