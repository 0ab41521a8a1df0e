"""What Slurm says of jobs, here by programs of its names; tests/slurm asks a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import slurm_queue


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a program of Slurm's that prints something."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def test_jobs_that_left_the_queue_are_told_from_those_in_it(program) -> None:
    program("squeue", "printf '7_0\\n7_1\\n12\\n'")
    assert slurm_queue.still_queued(["7_1", "7_2", "12", "1"]) == {"7_1", "12"}
    program("scontrol", "echo JobId=7 JobState=NODE_FAIL Reason=NodeDown Dependency='(null)'")
    assert slurm_queue.how_it_ended("7_2") == "NODE_FAIL"


def test_a_queue_that_does_not_answer_is_asked_again(program) -> None:
    program("squeue", "echo 'error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.warns(UserWarning, match="squeue does not answer, and is asked again: error: Unable to contact"):
        assert slurm_queue.still_queued(["7_1", "12"]) == {"7_1", "12"}, "nobody knows that they ended"
    with pytest.warns(UserWarning, match="scontrol does not answer"):
        assert slurm_queue.how_it_ended("7_2") == ""
