"""Running the points of a sweep: skipped, resumed, failed, retried, stopped, submitted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from jaxseg import loop, settings
from jaxseg.study import files, sweep
from jaxseg.study.plan import binding
from jaxseg.types import UserError
from launch import cli, sweep_jobs
from tests import tiny_study
from tests.conftest import ROOT

CONFIG = "--config=tests/tiny_study.py"


def command(folder: Path, name: str, code: str) -> sweep_jobs.Command:
    """A point whose process runs some Python instead of a study."""
    workdir = folder / "points" / name
    return sweep_jobs.Command(name, workdir, (sys.executable, "-c", f"import os, signal, sys, time\n{code}"))


def record(command: sweep_jobs.Command) -> dict:
    return sweep.read_record(command.workdir)


def test_processes_are_run_and_how_they_ended_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    commands = [
        command(tmp_path, "good", "print('fine')"),
        command(tmp_path, "mistake", "print('error: optim.lr = 0', file=sys.stderr); sys.exit(2)"),
        command(tmp_path, "crash", "raise ZeroDivisionError('x')"),
        command(tmp_path, "killed", "os.kill(os.getpid(), signal.SIGKILL)"),
        command(tmp_path, "preempted", "sys.exit(143)"),
    ]
    sweep_jobs.run_processes(commands, parallel=2)
    states = [record(one)["state"] for one in commands]
    assert states == ["done", "failed", "failed", "failed", "interrupted"]
    messages = [record(one)["message"] for one in commands]
    assert messages[:2] == [None, "optim.lr = 0"]
    assert messages[2] == "exit status 1: ZeroDivisionError: x"
    assert messages[3].startswith("killed by signal 9")
    assert "fine" in (commands[0].workdir / sweep.LOG).read_text()
    assert "[2/5] mistake: failed: optim.lr = 0" in capsys.readouterr().out
    sweep_jobs.run_processes(commands[1:2], parallel=1)
    assert record(commands[1])["attempts"] == 2


def test_a_failed_point_is_named_with_the_end_of_its_log(tmp_path: Path):
    point = sweep.Point("bad", (), {}, command(tmp_path, "bad", "").workdir)
    sweep.write_state(point.workdir, "failed", message="exit status 1: x")
    log = point.workdir / sweep.LOG
    assert sweep_jobs.describe_failure(point) == f"failed: bad: exit status 1: x\n  log: {log}"
    log.write_text("$ before\nother\n$ now\n" + "".join(f"line {index}\n\n" for index in range(7)))
    told = sweep_jobs.describe_failure(point).splitlines()
    assert told[:2] == ["failed: bad: exit status 1: x", f"  log: {log}, which ends"]
    assert told[2:] == [f"    line {index}" for index in range(2, 7)], "the last lines of the last process"


def test_points_at_once_share_the_cores(tmp_path: Path):
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match=f"--parallel={cores + 1}, but this machine has {cores} CPU cores"):
        sweep_jobs.share_devices(cores + 1)
    shares = sweep_jobs.share_devices(2)
    assert set.union(*(cores for _, cores in shares)) == os.sched_getaffinity(0)
    assert not set.intersection(*(cores for _, cores in shares))


def test_gpus_are_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert [share["CUDA_VISIBLE_DEVICES"] for share, _ in sweep_jobs.share_devices(2)] == ["0,5", "2"]
    with pytest.raises(UserError, match="this machine has 3 GPUs"):
        sweep_jobs.share_devices(4)


def test_a_signal_lets_the_running_points_save(tmp_path: Path):
    code = "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143)))\nprint('up', flush=True)\n"
    code += "time.sleep(60)"
    commands = [command(tmp_path, "first", code), command(tmp_path, "second", code)]

    def interrupt(signum, frame):
        raise loop.Interrupted(signum, "")

    def send() -> None:
        log = commands[0].workdir / sweep.LOG
        while not log.exists() or "up\n" not in log.read_text().replace(code, ""):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(loop.Interrupted):
            sweep_jobs.run_processes(commands, parallel=1)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert record(commands[0])["state"] == "interrupted"
    assert "saved" in (commands[0].workdir / sweep.LOG).read_text()
    assert record(commands[1]) == {}


def test_words_of_the_config_are_those_of_the_points():
    argv = [
        "launch.sweep",
        "--grid",
        "a=1;2",
        "--config",
        "f.py",
        "--config.x=1",
        "--noconfig.y",
        "--config.z",
        "--workdir=w",
    ]
    assert cli.config_words(argv) == ["--config=f.py", "--config.x=1", "--noconfig.y", "--config.z"]
    # A value may be a word of its own; without it, its flag would be the next word's.
    argv = ["launch.sweep", "--config.optim.lr", "5e-3", "--config.z", "--config.source.clip", "-1", "--workdir", "w"]
    assert cli.config_words(argv) == ["--config.optim.lr=5e-3", "--config.z", "--config.source.clip=-1"]
    config = cli.parse_config([CONFIG, "--config.optim.lr=1e-4", "--config.target.train_cases=(4, 6)"])
    assert (config.optim.lr, config.target.train_cases) == (1e-4, (4, 6))
    with pytest.raises(UserError, match=r"unknown field config\.optim\.lrr; did you mean config\.optim\.lr"):
        cli.parse_config([CONFIG, "--config.optim.lrr=1"])


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.sweep", CONFIG, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def in_a_sweep(code: str, *words: object) -> str:
    """What some Python prints that stands in the place of a sweep's command; the last argument is its folder."""
    program = (
        "import json, pathlib, sys, types; from absl import flags; from launch import cli, sweep\n"
        f"flags.FLAGS(sys.argv); folder = pathlib.Path(sys.argv[-1])\n{code}"
    )
    given = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def points_of(*words: object) -> list[tuple[dict[str, object], list[str]]]:
    """The points of a sweep: the values of what it varies, and the words."""
    code = "points = sweep.make_points(cli.config_words(sys.argv), folder)\n"
    return json.loads(in_a_sweep(code + "print(json.dumps([(point.values, line) for point, line in points]))", *words))


def lines_of_points(*words: object) -> list[str]:
    """The words of all points of a sweep."""
    return [word for _, line in points_of(*words) for word in line]


def test_a_field_given_as_two_words_gives_way_to_the_grid(tmp_path: Path):
    words = [CONFIG, "--config.optim.lr", "5e-3", "--config.base_seed", "7", "--grid=optim.lr=1e-3;1e-4", tmp_path]
    common = [CONFIG, "--config.base_seed=7", f"--config.runtime.store_dir={tmp_path}/stores"]
    # launch.study refuses any other word.
    assert lines_of_points(*words) == [*common, "--config.optim.lr=1e-3", *common, "--config.optim.lr=1e-4"]


def test_a_field_keeps_its_value_at_points_that_do_not_set_it(tmp_path: Path):
    words = [CONFIG, "--config.optim.lr=5e-3", "--point=optim.lr=1e-4", "--point=train.steps=2000", tmp_path]
    stores = f"--config.runtime.store_dir={tmp_path}/stores"
    assert points_of(*words) == [
        [{"optim.lr": 1e-4, "train.steps": 8}, [CONFIG, stores, "--config.optim.lr=1e-4"]],
        [
            {"optim.lr": 5e-3, "train.steps": 2000},
            [CONFIG, "--config.optim.lr=5e-3", stores, "--config.train.steps=2000"],
        ],
    ]


def test_points_share_the_stores_that_their_config_file_names(tmp_path: Path):
    config = tmp_path / "shared.py"
    config.write_text(
        "from tests import tiny_study\n\n"
        "def get_config():\n    made = tiny_study.tiny_config()\n    made.runtime.store_dir = '/shared/stores'\n"
        "    return made\n"
    )
    found = lines_of_points(f"--config={config}", "--grid=optim.lr=1e-3;1e-4", tmp_path)
    assert found == [f"--config={config}", "--config.optim.lr=1e-3", f"--config={config}", "--config.optim.lr=1e-4"]


def test_flags_of_a_cluster_are_for_a_cluster(tmp_path: Path):
    done = launch(f"--workdir={tmp_path / 'sweep'}", "--grid=optim.lr=1e-3;1e-4", "--wait", "--slurm=partition=x")
    assert done.returncode == 2
    assert "--wait and --slurm would have no effect here: they are for --cluster=slurm" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_mistakes_are_found_before_anything_runs(tmp_path: Path):
    done = launch(f"--workdir={tmp_path / 'sweep'}", "--grid=optim.lr=1e-3;0")
    assert done.returncode == 2
    assert "error: point optim.lr=0: config.optim.lr = 0.0" in done.stderr
    assert not (tmp_path / "sweep").exists()


GROWN = ({"num_seeds": 1}, {"looks": (4, 8)}, {"target__test_data": ()}, {"evaluate__ensemble": False})
"""What finished studies may have had that are asked for the tiny one."""


def finished(folder: Path, seed: int, **fields: object) -> Path:
    """The workdir of a point that a sweep over base_seed finished, with other fields; nothing was trained."""
    workdir = folder / "points" / f"base_seed={seed}"
    made = tiny_study.changed(base_seed=seed, **fields)
    files.write_text(workdir / files.CONFIG, settings.to_json(made))
    sweep.write_state(workdir, "done")
    return workdir


@pytest.mark.parametrize(("cluster", "grown"), [("local", GROWN), ("slurm_local", GROWN[:1])])
def test_finished_points_go_on_where_more_is_asked_for(tmp_path: Path, cluster: str, grown: tuple[dict, ...]):
    points = [finished(tmp_path, seed, **fields) for seed, fields in enumerate((*grown, {}))]
    words = [CONFIG, f"--grid=base_seed={';'.join(map(str, range(len(points))))}", f"--cluster={cluster}", tmp_path]
    # Each point's process would be a study; this one does nothing.
    idle = f"sweep.sys = types.SimpleNamespace(argv=sys.argv, executable={shutil.which('true')!r})\n"
    said = in_a_sweep(f"{idle}sweep.run_points(folder)", *words)
    assert f"{len(points)} points, {len(grown)} to run" in said
    assert [sweep.read_record(point).get("attempts", 0) for point in points] == [1] * len(grown) + [0]
    assert {sweep.read_record(point)["state"] for point in points} == {"done"}


def test_finished_points_with_damaged_or_lost_tables_go_on(tmp_path: Path):
    points = [finished(tmp_path, seed) for seed in range(4)]
    for point in points:
        files.write_json(point / "study.json", {})
        for table in ("cases", "summary"):
            files.write_text(point / "results" / f"{table}.csv", "arm\n")
    (points[0] / "results" / "summary.csv").write_text("other")
    (points[1] / "results" / "summary.csv").unlink()
    shutil.rmtree(points[2] / "results")
    said = in_a_sweep("sweep.run_points(folder)", CONFIG, "--grid=base_seed=0;1;2;3", "--dry_run", tmp_path)
    lost = "done before, writes anew what is damaged or gone:"
    assert f"base_seed=0: {lost} results/summary.csv\nbase_seed=1: {lost} results/summary.csv\n" in said
    assert f"base_seed=2: {lost} results/\nbase_seed=3: done\n4 points, 3 to run" in said


def test_fewer_seeds_than_a_point_has_are_refused_before_anything_runs(tmp_path: Path):
    workdir = finished(tmp_path, 1, num_seeds=4)
    binding.write_binding(workdir, binding.Binding("id", "digest", 1, {}, {}, waves=(4,)))
    done = launch(f"--workdir={tmp_path}", "--grid=base_seed=0;1", "--dry_run")
    assert done.returncode == 2
    assert "error: point base_seed=1: workdir" in done.stderr
    assert "has 4 seeds, and config.num_seeds = 2 asks for fewer" in done.stderr
    assert sweep.read_record(workdir)["state"] == "done"


def test_jobs_are_submitted_and_a_lost_one_is_noticed(tmp_path: Path):
    commands = [command(tmp_path, "good", "print('fine')"), command(tmp_path, "bad", "sys.exit(3)")]
    sweep_jobs.submit(commands, tmp_path, parallel=2, given=["cpus_per_task=1", "partition=x"], local=True, wait=True)
    assert [record(one)["state"] for one in commands] == ["done", "failed"]
    assert record(commands[1])["message"].startswith("exit status 3")
    point = sweep.Point("good", (), {}, commands[0].workdir)
    sweep.write_state(point.workdir, "submitted")
    assert sweep_jobs.state_of(point) == "interrupted", "its job is gone"
    sweep.write_note(point.workdir / sweep_jobs.JOB, {"queue": "local", "job": str(os.getpid())})
    assert sweep_jobs.state_of(point) == "submitted"
    with pytest.raises(UserError, match="which Slurm replaces in the names of logs"):
        sweep_jobs.submit(commands, tmp_path / "50%", parallel=1, given=[], local=False, wait=True)
    with pytest.raises(UserError, match=r"--slurm='gpu' is not NAME=VALUE"):
        sweep_jobs.submit(commands, tmp_path, parallel=1, given=["gpu"], local=True, wait=True)


@pytest.mark.slow
def test_a_grid_of_jobs_killed_half_way_and_resumed(tmp_path: Path):
    folder = tmp_path / "sweep"
    arguments = [CONFIG, f"--workdir={folder}", "--cluster=slurm_local", "--parallel=2"]
    arguments += ["--grid=optim.lr=1e-2;1e-3;1e-4", "--grid=target.train_cases=(2,);(4,)"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.sweep", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    )

    def of_state(state: str) -> set[str]:
        found = folder.glob(f"points/*/{sweep.RECORD}")
        return {path.parent.name for path in found if sweep.read_record(path.parent).get("state") == state}

    deadline = time.monotonic() + 600
    while len(of_state("done")) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    running = of_state("running")
    os.killpg(process.pid, signal.SIGKILL)  # the command, submitit's processes
    process.wait()
    for name in running:  # and the points' own, which have sessions of their own
        subprocess.run(["fuser", "-s", "-k", str(folder / "points" / name / ".lock")], check=False)
    done = of_state("done")
    assert 3 <= len(done) < 6
    before = {name: (folder / "points" / name / "report.html").stat().st_mtime_ns for name in done}
    again = launch(*arguments[1:])
    assert again.returncode == 0, again.stderr
    assert len(of_state("done")) == 6
    for place in (folder, *(folder / "points" / name for name in of_state("done"))):
        assert 'content="0; url=report.html"' in (place / "live.html").read_text()
    assert {name: (folder / "points" / name / "report.html").stat().st_mtime_ns for name in done} == before
    summary = files.read_table(folder / "results" / "summary.csv")
    assert len(summary.groupby(["optim.lr", "target.train_cases"])) == 6
    for (name, size), own in summary.groupby(["point", "target.train_cases"]):
        alone = files.read_table(folder / "points" / str(name) / "results" / "summary.csv")
        assert set(own["train_cases"]) == {int(str(size).strip("(),"))}
        pd.testing.assert_frame_equal(
            own[alone.columns].reset_index(drop=True), alone, check_exact=True, check_dtype=False
        )
