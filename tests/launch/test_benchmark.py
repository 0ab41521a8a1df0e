"""The benchmark: slow contestants, busy machines, mistakes, and whole runs of the smallest workload and study."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxseg import settings
from jaxseg.settings import StudySettings
from jaxseg.study.plan.jobs import check_networks
from jaxseg.study.run import run_stages
from jaxseg.types import UserError
from launch import cli
from tests.conftest import ROOT
from tests.tiny_study import silent


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.benchmark", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


SMALLEST = ("--workload=smallest", "--seeds=1", "--notorch", "--allow_busy", "--devices=1", "--form=native")


def test_a_contestant_above_the_limit_is_ended_and_asked_no_more() -> None:
    done = run(*SMALLEST, "--limit=0.05", "--repeats=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ended: compiling or one sample took longer than --limit\n")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the system does not tell which processes it runs")
def test_a_contestant_whose_process_ends_says_so() -> None:
    command = [sys.executable, "-m", "launch.benchmark", *SMALLEST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as benchmark:
        children = Path(f"/proc/{benchmark.pid}/task/{benchmark.pid}/children")
        while benchmark.poll() is None:
            contestants = [int(child) for child in children.read_text().split() if is_contestant(child)]
            if contestants:
                os.kill(contestants[0], signal.SIGKILL)
                break
            time.sleep(0.05)
        printed, _ = benchmark.communicate(timeout=300)
    assert benchmark.returncode == 0
    assert printed.endswith("ended: its process ended with status -9\n")


def is_contestant(process: str) -> bool:
    return "benchmarks.jaxseg_step" in Path(f"/proc/{process}/cmdline").read_text()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell who uses its processors")
def test_work_of_other_processes_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        done = run("--workload=smallest")
        other.kill()
    assert done.returncode == 2
    found = re.search(r"other processes use (\d+\.\d) cores", done.stderr)
    assert found
    assert float(found[1]) >= 0.3


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--seeds=8,none", "'none' is not a number from 1"),
        ("--patch=0", "'0' is not a number from 1"),
        ("--workload=unet3d_33", "'unet3d_33' is none of"),
        ("--precision=float16", "'float16' is none of float32, tf32, bfloat16"),
        ("--study --pair=4d", "'4d' is none of 2d, 3d, smallest"),
    ],
)
def test_mistakes(option: str, text: str) -> None:
    done = run(*option.split())
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


def test_what_is_left_beside_busy_processes_is_measured_and_these_are_ended() -> None:
    before = set(busy_processes())
    options = ("--workload=smallest", "--seeds=1", "--burners=1", "--rounds=1", "--sample_seconds=0.01")
    command = [sys.executable, "-m", "benchmarks.contention", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows if row[0] == "jaxseg"] == [["jaxseg", "0"], ["jaxseg", "1"]]
    assert rows[0][4] == "1.00"
    assert float(rows[1][4]) > 0
    assert set(busy_processes()) <= before


def busy_processes() -> list[str]:
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in found.splitlines() if line.endswith("while True: pass")]


def pair(words: str) -> StudySettings:
    """The study that `--study` measures for a pair."""
    return settings.parse(cli.parse_config([f"--config={ROOT / 'benchmarks' / 'pair.py'}:{words}"]))


@pytest.mark.parametrize(
    ("words", "networks", "steps"),
    [("2d", 8, 500), ("3d", 8, 500), ("3d,somewhere,100", 8, 100), ("2d,somewhere", 8, 500), ("smallest", 2, 4)],
)
def test_a_pair_is_a_study_of_transfer_with_a_placebo_and_a_positive_control(
    words: str, networks: int, steps: int
) -> None:
    study = pair(words)
    check_networks(study)
    assert [arm.name for arm in study.arms] == ["scratch", "transfer", "scratch_b", "self_transfer"]
    assert (study.num_seeds, study.target.folds, len(study.target.train_cases)) == (networks, 1, 1)
    for arm in study.arms:
        assert arm.train.steps == arm.pretrain.steps == steps
        assert arm.train.eval_every == max(steps // 50, 1)  # fine enough for the claim about training time
        assert not arm.optim.lr_grid  # trials of rates would be networks that PyTorch does not train
    folders = {"2d": "somewhere/nerve_us", "3d": "somewhere/hippocampus_mr"}
    data = folders[words[:2]] if "somewhere" in words else "synthetic:"
    assert study.target.data.startswith(data)


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_a_pair_of_real_sets_leaves_the_positive_control_patients_to_learn_from(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    made = cli.parse_config([f"--config={ROOT / 'benchmarks' / 'pair.py'}:{name},{shared_data}"])
    planned = run_stages(made, tmp_path, stages=(), progress=silent)
    assert sum(len(job.runs) for job in planned.plan.jobs if job.kind != "select") == 48


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("4d", "no pair '4d'; pairs: 2d, 3d, smallest"),
        ("smallest,somewhere", "the pair 'smallest' has synthetic images alone"),
        ("3d,,0", "'0' is no number of steps from 1"),
    ],
)
def test_a_mistake_in_a_pair_is_told(words: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        pair(words)


@pytest.mark.slow
def test_the_smallest_study(tmp_path: Path) -> None:
    table, text = tmp_path / "rows.json", tmp_path / "rows.md"
    options = ("--study", "--quick", "--allow_busy", f"--workdir={tmp_path}", f"--json={table}", f"--markdown={text}")
    done = run(*options)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(table.read_text())["rows"]
    assert (row["pair"], row["steps"], row["networks"]) == ("smallest", 4, 12)
    stages = row["seconds"]
    assert [*stages] == ["start", "prepare", "compile", "pretrain", "train", "validate", "score", "analyse", "page"]
    assert all(seconds > 0 for seconds in stages.values())
    record = json.loads((tmp_path / "smallest" / "study" / "study.json").read_text())
    parts = sum(record["timing"].values())
    assert sum(stages.values()) - stages["start"] == pytest.approx(parts)
    assert {"chunk", "predict", "record"} <= {program["name"] for program in row["programs"]}
    assert row["answer"].startswith("Transfer on synthetic_blobs")
    assert row["answer"] in text.read_text()
    if importlib.util.find_spec("torch"):
        assert set(row["torch"]["dsc"]) == {"scratch", "transfer", "scratch_b", "self_transfer"}
        assert row["torch"]["seconds"]["train"] > 0
    again = run(*options)
    assert again.returncode == 2
    assert "exists, and a study that goes on says nothing about time" in again.stderr


@pytest.mark.slow
def test_the_smallest_workload_as_on_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--quick", "--repeats=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    ours = [row for row in rows if row["framework"] == "jaxseg"]
    assert [row["seeds"] for row in ours] == [1, 2]
    for row in rows:
        assert not row["ended"]
        assert row["fastest"] <= row["ms_per_seed_step"] <= row["slowest"]
        assert 0 < row["roofline_share"] < 1
    assert (tmp_path / "gpu.md").read_text().count("| `smallest` |") == len(rows)
