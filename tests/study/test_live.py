"""What is known of a study while it trains: the rows of its jobs, whole or not, and nothing of test cases."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxseg import logs
from jaxseg.study import files, live, record
from jaxseg.study.record import StudyRecord

KEYS = ["arm", "train_cases", "fold", "seed"]


@pytest.fixture
def half(tiny_study: Path, tmp_path: Path) -> tuple[Path, StudyRecord]:
    """The tiny study as if it had stopped in its first job of arms: no results, and no checkpoint of that job."""
    found = record.read(tiny_study)
    assert found is not None
    for folder in (tiny_study / "train").glob("*/*"):
        place = tmp_path / folder.relative_to(tiny_study)
        place.mkdir(parents=True)
        if "pretrain" in str(place):
            shutil.copytree(folder, place, dirs_exist_ok=True)
        elif "train_0" in str(place):
            lines = (folder / logs.METRICS_FILE).read_text().splitlines()
            (place / logs.METRICS_FILE).write_text("\n".join([*lines[:3], lines[3][:20]]))
    return tmp_path, found


def test_curves_of_a_finished_study_are_those_of_its_page(tiny_study: Path) -> None:
    study = record.read(tiny_study)
    assert study is not None
    made = live.curve_tables(live.read_jobs(tiny_study, study))
    for name, order in (("curve_runs", [*KEYS, "quantity", "step"]), ("curve_means", ["arm", "quantity", "step"])):
        ours, theirs = made[name], files.read_table(tiny_study / "results" / f"{name}.csv")
        ours = ours[ours["kind"] == "train"][theirs.columns].sort_values(order, ignore_index=True)
        theirs = theirs.sort_values(order, ignore_index=True)
        shown = [column for column in theirs if not column.startswith("ci_")]
        pd.testing.assert_frame_equal(ours[shown], theirs[shown], check_dtype=False)
    assert made["curve_means"]["ci_low"].isna().all()
    assert set(made["curve_runs"]["kind"]) == {"train", "pretrain"}
    networks = live.progress_tables(live.read_jobs(tiny_study, study))["networks"]
    curves = files.read_table(tiny_study / "results" / "curves.csv")
    last = curves[curves["step"] == 8].set_index(KEYS)["val_dsc"]
    values = networks[networks["kind"] == "train"].set_index(KEYS)["value"]
    pd.testing.assert_series_equal(values.sort_index(), last.sort_index(), check_names=False)


def test_a_study_in_the_middle_is_read_up_to_the_last_whole_line(half: tuple[Path, StudyRecord]) -> None:
    workdir, study = half
    jobs = live.progress_tables(live.read_jobs(workdir, study))["jobs"]
    found = {row.directory: (row.n_runs, row.step, row.steps) for row in jobs.itertuples()}
    assert found == {
        "train/pretrain/chunk_0": (2, 8, 8),
        "train/train_0/chunk_0": (4, 4, 8),
        "train/train_1/chunk_0": (2, 0, 8),
    }
    assert jobs["saved"].tolist()[0] == 8
    assert jobs["saved"].isna().tolist() == [False, True, True]
    assert live.run_steps_left(jobs) == 4 * 4 + 2 * 8
    job = live.current_job(jobs)
    assert job is not None
    assert job.directory == "train/train_0/chunk_0"
    assert live.current_job(jobs.assign(step=jobs["steps"])) is None


def test_a_job_that_was_cut_for_want_of_memory_is_read_as_it_was_cut(half: tuple[Path, StudyRecord]) -> None:
    workdir, study = half
    cut = dataclasses.replace(study, chunks={**study.chunks, "train_0": (2, 2)})
    jobs = live.read_jobs(workdir, cut)
    assert [(job.directory, [run.arm for run in job.runs]) for job in jobs[1:3]] == [
        ("train/train_0/chunk_0", ["scratch", "scratch"]),
        ("train/train_0/chunk_1", ["transfer", "transfer"]),
    ]
    assert [len(job.log.step) for job in jobs] == [5, 0, 0, 0], "rows of four runs are none of two"


def test_a_diverged_run_is_named_and_in_no_mean(half: tuple[Path, StudyRecord]) -> None:
    workdir, study = half
    path = workdir / "train" / "train_0" / "chunk_0" / logs.METRICS_FILE
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    rows[2]["steps_alive"][1], rows[2]["loss"][1] = 1, float("nan")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs = live.read_jobs(workdir, study)
    networks = live.progress_tables(jobs)["networks"]
    own = networks[networks["kind"] == "train"]
    assert own["diverged_at"].dropna().to_dict() == {own.index[1]: 3}
    assert (own["arm"].iloc[1], own["seed"].iloc[1]) == ("scratch", 1)
    means = live.curve_tables(jobs)["curve_means"]
    of_arm = means[(means["arm"] == "scratch") & (means["quantity"] == "loss")]
    np.testing.assert_allclose(of_arm["value"].astype(float), [rows[1]["loss"][0], rows[2]["loss"][0]])
    assert of_arm["n_runs"].tolist() == [1, 1]


def test_source_networks_without_labels_have_curves_of_their_own(half: tuple[Path, StudyRecord]) -> None:
    workdir, study = half
    arm = study.arms["transfer"]
    assert arm.pretrain is not None
    without = dataclasses.replace(arm, pretrain=arm.pretrain._replace(objective="restore"))
    study = dataclasses.replace(study, arms={**study.arms, "transfer": without})
    assert set(live.curve_tables(live.read_jobs(workdir, study))["curve_runs"]["kind"]) == {"train", "restore"}


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": 2', "nonsense", '{"step": 2, "loss": [1], "val_dsc": 3}'])
def test_a_line_that_is_no_row_ends_what_is_read(half: tuple[Path, StudyRecord], line: str) -> None:
    folder = half[0] / "train" / "train_0" / "chunk_0"
    path = folder / logs.METRICS_FILE
    first, *rest = path.read_text().split("\n")
    path.write_text("\n".join([first, line, *rest]))
    assert [row.step for row in logs.read_lines(folder, 4)] == [0]
