"""The benchmark: slow contestants, busy machines, mistakes, and a whole run of the smallest workload."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.contestants import Contestant, busy_cores

FAKE = "tests.launch.fake_contestant"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.benchmark", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_samples_are_those_of_the_process_and_traces_are_none() -> None:
    quick = Contestant(FAKE, {"seconds": 0.0}, limit=60)
    quick.start()
    quick.sample()
    quick.sample("folder")
    quick.sample()
    quick.close()
    assert quick.ready == {"ready": True}
    assert [sample["seconds"] for sample in quick.samples] == [0.0, 2.0]
    assert not quick.ended


def test_a_contestant_above_the_limit_is_ended_and_asked_no_more() -> None:
    slow = Contestant(FAKE, {"seconds": 60.0}, limit=20)
    slow.start()
    slow.limit = 0.5
    slow.sample()
    slow.sample()
    slow.close()
    assert "longer than --limit" in slow.ended
    assert slow.samples == []
    assert slow.process.returncode != 0


def test_a_contestant_whose_process_ends_says_so() -> None:
    dead = Contestant(FAKE, {}, limit=60)
    dead.start()
    dead.sample()
    dead.close()
    assert "process ended with status 1" in dead.ended
    assert dead.samples == []


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell who uses its processors")
def test_work_of_other_processes_is_seen() -> None:
    before = busy_cores(0.5)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        found = busy_cores(1.0)
        other.kill()
    free = len(os.sched_getaffinity(0)) - before
    assert found > min(0.5, before + 0.3 * free)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--seeds=8,none", "'none' is not a number from 1"),
        ("--patch=0", "'0' is not a number from 1"),
        ("--workload=unet3d_33", "'unet3d_33' is none of"),
        ("--precision=float16", "'float16' is none of float32, tf32, bfloat16"),
    ],
)
def test_mistakes(option: str, text: str) -> None:
    done = run(option)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_smallest_workload(tmp_path: Path) -> None:
    table, figure, trace = tmp_path / "rows.json", tmp_path / "rows.svg", tmp_path / "trace"
    options = ("--workload=smallest", "--seeds=1,2", "--repeats=2", "--notorch", "--allow_busy", "--devices=1")
    done = run(*options, "--jobs=2", "--form=native", f"--json={table}", f"--plot={figure}", f"--trace={trace}")
    assert done.returncode == 0, done.stderr
    found = json.loads(table.read_text())
    assert [(row["workload"], row["framework"], row["seeds"]) for row in found["rows"]] == [
        ("smallest", "jaxseg", 1), ("smallest", "jaxseg", 2)
    ]  # fmt: skip
    for row in found["rows"]:
        assert len(row["samples"]) == 2
        assert row["form"] == "native"
        assert row["fastest"] <= row["seconds_per_seed_step"] <= row["slowest"]
        assert row["convolution_flops"] > 0
        assert row["written_bytes"] > 0
        assert math.isnan(row["ratio_to_torch"])
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert {"jax", "jaxlib", "numpy"} <= set(found["machine"]["versions"])
    assert figure.read_text().count("seconds per seed and step")
    assert list(trace.rglob("*.xplane.pb"))
