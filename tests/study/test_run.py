"""A study as a whole: what it leaves, what a second run does, what an interruption costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxseg import checkpoint, loop, trees
from jaxseg.study import files, record, versions
from jaxseg.study.probe import stage as probe_stage
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score import tables
from jaxseg.types import UserError
from tests.conftest import ROOT
from tests.tiny_study import silent, tiny_config

TABLES = (
    *("cases", "curves", "pretrain_curves", "summary", "comparisons", "convergence"),
    *("worst_cases", "variance", "planning"),
    *probe_stage.TABLES,
)


def last_params(workdir: Path) -> dict[str, np.ndarray]:
    found = {}
    for directory in sorted(workdir.glob("train/*/chunk_*")):
        steps = checkpoint.saved_steps(directory / "checkpoints")
        entries = json.loads((workdir / "study.json").read_text())["runs"]
        count = sum(entry["directory"] == str(directory.relative_to(workdir)) for entry in entries)
        params = checkpoint.read_params(directory / "checkpoints", steps[-1], range(count))
        found |= {f"{directory.parent.name}:{path}": leaf for path, leaf in trees.flatten(params).items()}
    return found


def assert_same_results(workdir: Path, other: Path) -> None:
    """Equal bits of all final parameters, and equal tables apart from the seconds."""
    ours, theirs = last_params(workdir), last_params(other)
    assert ours.keys() == theirs.keys()
    assert ours
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
    for name in TABLES:
        tables = [files.read_table(place / "results" / f"{name}.csv") for place in (workdir, other)]
        tables = [table.drop(columns="seconds", errors="ignore") for table in tables]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_study_leaves_what_the_contract_names(tiny_study: Path) -> None:
    for name in ("config.json", "study.json", "report.html", "load_tables/transfer/n0_fold0.txt"):
        assert (tiny_study / name).stat().st_size > 0, name
    cases = files.read_table(tiny_study / "results" / "cases.csv")
    assert len(cases) == 3 * 2 * 2 * 2, "arms x seeds x test cases x labels"
    assert cases["dsc"].between(0, 1).all()
    assert cases["calibration_error"].between(0, 1).all()
    shown = tables.format_results(tiny_study)
    assert "scores" in shown
    assert "transfer" in shown
    assert (tiny_study / "results" / "comparisons.tex").read_text().startswith(r"\begin{table}")
    record = json.loads((tiny_study / "study.json").read_text())
    places = {(run["directory"], run["index"]) for run in record["runs"]}
    assert len(places) == len(record["runs"]) == 3 * 2 + 2, "every run, source networks too, has a place of its own"
    for run in record["runs"]:
        directory = tiny_study / run["directory"]
        assert 0 in checkpoint.saved_steps(directory / "checkpoints"), "the start is always kept"
        assert list(directory.glob("events.out.tfevents.*"))
    made = {key: record[key] for key in ("versions", "device", "git_commit")}
    assert record["trained_on"] == [made], "one machine did it all"
    test = set(cases["case"])
    split = record["target"]["splits"][0]
    assert test == set(split["test"])
    assert not test & {*split["train"], *split["val"]}


def test_transferred_runs_start_from_their_own_source_network(tiny_study: Path) -> None:
    record = json.loads((tiny_study / "study.json").read_text())
    for run in (run for run in record["runs"] if run["arm"] == "transfer"):
        source = next(entry for entry in record["runs"] if entry["kind"] == "pretrain" and entry["seed"] == run["seed"])
        start = checkpoint.read_seed(tiny_study / run["directory"] / "checkpoints", 0, run["index"])
        given = checkpoint.read_seed(tiny_study / source["directory"] / "checkpoints", 8, source["index"])
        for path, leaf in trees.flatten(given).items():
            np.testing.assert_array_equal(trees.flatten(start)[path], leaf, err_msg=path)


def test_a_frozen_encoder_stays_as_it_was(tiny_study: Path) -> None:
    record = json.loads((tiny_study / "study.json").read_text())
    frozen = [run for run in record["runs"] if run["arm"] == "frozen_random_encoder"]
    for run in frozen:
        directory = tiny_study / run["directory"] / "checkpoints"
        start, end = (trees.flatten(checkpoint.read_seed(directory, step, run["index"])) for step in (0, 8))
        same = {path for path, leaf in start.items() if (leaf == end[path]).all()}
        assert same == {path for path in start if path.startswith("encoder/")}


def test_arms_that_train_the_same_leaves_are_one_job(tiny_study: Path) -> None:
    record = json.loads((tiny_study / "study.json").read_text())
    directories = {run["arm"]: run["directory"] for run in record["runs"]}
    assert directories["scratch"] == directories["transfer"] != directories["frozen_random_encoder"]


def test_a_finished_study_is_left_alone(tiny_study: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("train/**/*") if path.is_file()}
    run_stages(tiny_config(), workdir, stages=STAGES, progress=silent)
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("train/**/*") if path.is_file()}
    assert before == after
    assert_same_results(workdir, tiny_study)


def test_another_config_is_refused_with_its_differences(tiny_study: Path) -> None:
    config = tiny_config()
    config.train.steps = 10
    config.target.patch = (16, 16)
    before = (tiny_study / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.train\.steps: 8 in the workdir, 10 asked for") as caught:
        run_stages(config, tiny_study, stages=STAGES, progress=silent)
    assert "config.target.patch" in str(caught.value)
    assert (tiny_study / "config.json").read_bytes() == before


def test_a_config_with_unusable_data_does_not_claim_the_workdir(tmp_path: Path) -> None:
    config = tiny_config()
    config.target.data = "synthetic:blob"
    with pytest.raises(UserError, match="blobs"):
        run_stages(config, tmp_path / "study", stages=STAGES, progress=silent)
    assert not (tmp_path / "study" / "config.json").exists()


def test_one_workdir_serves_one_process(tmp_path: Path) -> None:
    with files.locked(tmp_path), pytest.raises(UserError, match="in use by another process"):
        run_stages(tiny_config(), tmp_path, stages=STAGES, progress=silent)


def test_the_page_is_written_while_no_other_process_may_work_there(tiny_study: Path, tmp_path: Path) -> None:
    workdir, found = tmp_path / "study", []
    shutil.copytree(tiny_study, workdir)
    before = record.read(workdir)
    run_stages(
        tiny_config(),
        workdir,
        stages=["report"],
        progress=silent,
        report=lambda: found.append(files.is_locked(workdir)),
    )
    assert found == [True]
    assert not files.is_locked(workdir)
    after = record.read(workdir)
    assert before is not None
    assert after is not None
    assert "report" in after.timing
    assert (after.arms, after.runs) == (before.arms, before.runs)


@pytest.mark.parametrize("stage", ["train", "evaluate", "analyze", "report"])
def test_a_stage_needs_the_one_before(stage: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"stage '{stage}' needs stage"):
        run_stages(tiny_config(), tmp_path / "study", stages=[stage], progress=silent, report=pytest.fail)


class CrashError(Exception):
    """Stands for a process that died."""


def test_a_crash_anywhere_costs_nothing(tiny_study: Path, tmp_path: Path) -> None:
    """A study that dies three times, each time in another stage, and goes on after each."""

    def crashing_in(job: str, step: int):
        def crashing(title: str):
            def progress(what: str, done: int, total: int, note: str = "", runs: object = ()) -> None:
                if job in title and done == step and what in ("training", "scoring"):
                    raise CrashError

            return progress

        return crashing

    workdir = tmp_path / "study"
    for job, step in (("pretrain", 2), ("train_0", 6), ("evaluate", 1)):
        with pytest.raises(CrashError):
            run_stages(tiny_config(), workdir, stages=STAGES, progress=crashing_in(job, step))
    run_stages(tiny_config(), workdir, stages=STAGES, progress=silent)
    assert_same_results(workdir, tiny_study)


def test_a_signal_saves_and_stops_and_other_code_that_goes_on_is_told(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupting(title: str):
        def progress(what: str, done: int, total: int, note: str = "", runs: object = ()) -> None:
            if "train_0" in title and what == "training" and done == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        return progress

    workdir = tmp_path / "study"
    with pytest.raises(loop.Interrupted) as caught:
        run_stages(tiny_config(), workdir, stages=STAGES, progress=interrupting)
    assert caught.value.signum == signal.SIGTERM
    saved = checkpoint.saved_steps(workdir / "train/train_0/chunk_0/checkpoints")
    assert saved[-1] % 4 != 0, "saved where it was stopped, not only at save_every"
    began_with = versions.git_commit()
    monkeypatch.setattr(versions, "git_commit", lambda: "another commit")
    with pytest.warns(
        UserWarning, match=rf"train_0/chunk_0 was trained up to step \d+ otherwise .*code {began_with} -> "
    ):
        run_stages(tiny_config(), workdir, stages=STAGES, progress=silent)
    record = json.loads((workdir / "study.json").read_text())
    assert [made["git_commit"] for made in record["trained_on"]] == [began_with, "another commit"]
    assert_same_results(workdir, tiny_study)


def start(workdir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "launch.study", "--config=tests/tiny_study.py", f"--workdir={workdir}"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla-kill")}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_and_resume(workdir: Path, delay: float) -> None:
    process = start(workdir)
    time.sleep(delay)
    process.kill()
    process.wait()
    assert start(workdir).wait() == 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A study run by the command line, and the seconds it took with its programs compiled before."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert start(folder / "warm").wait() == 0
    began = time.monotonic()
    assert start(folder / "study").wait() == 0
    return folder / "study", time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("point", range(20))
def test_kill_9_at_a_random_moment(point: int, uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    reference, seconds = uninterrupted
    share = np.random.default_rng(point).uniform(0.15, 0.95)
    kill_and_resume(tmp_path / "study", share * seconds)
    assert_same_results(tmp_path / "study", reference)
