"""More seeds in a finished workdir: only they train, what was there keeps its bits, and a study is never cut."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs import default
from jaxseg import checkpoint, settings
from jaxseg.study import files
from jaxseg.study.plan.binding import RECORD, Draw
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.planned import PlannedStudy, plan_jobs
from jaxseg.study.plan.tasks import prepare_tasks
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score import stage as score_stage
from jaxseg.study.score.scoring import case_sets
from jaxseg.types import UserError
from tests.tiny_study import changed, silent, tiny_config

KEY = ["arm", "seed", "train_cases", "fold", "case", "label"]


def extended(workdir: Path, **fields: object) -> None:
    run_stages(changed(num_seeds=4, **fields), workdir, stages=STAGES, progress=silent)


@pytest.fixture(scope="module")
def grown(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study of two seeds with two more; killed once while these train."""
    workdir = tmp_path_factory.mktemp("grown") / "study"
    shutil.copytree(tiny_study, workdir)

    class CrashError(Exception):
        pass

    def crashing(title: str):
        def progress(what: str, done: int, total: int, note: str = "", runs: object = ()) -> None:
            if "train_0" in title and (what, done) == ("training", 6):
                raise CrashError

        return progress

    with pytest.raises(CrashError):
        run_stages(changed(num_seeds=4), workdir, stages=STAGES, progress=crashing)
    extended(workdir)
    return workdir


def test_only_the_new_seeds_train_and_the_old_keep_their_bits(tiny_study: Path, grown: Path) -> None:
    for path in tiny_study.rglob("train/**/*"):
        if path.is_file():
            assert (grown / path.relative_to(tiny_study)).read_bytes() == path.read_bytes(), path
    record = files.read_json(grown / "study.json")
    seeds = Counter((run["directory"], run["seed"] // 2) for run in record["runs"])
    assert {(directory.endswith("chunk_1"), wave) for directory, wave in seeds} == {(False, 0), (True, 1)}
    was, now = (files.read_table(place / "results" / "cases.csv") for place in (tiny_study, grown))
    assert set(now["seed"]) == {0, 1, 2, 3}
    old = now[now["seed"] < 2].set_index(KEY).sort_index()
    assert old.equals(was.set_index(KEY).sort_index()[old.columns])
    assert json.loads((grown / RECORD).read_text())["waves"] == [2, 4]


def test_tables_analyses_and_page_are_those_of_all_seeds(grown: Path) -> None:
    for name in ("cases", "curves", "filters", "similarity", "pairs", "summary"):
        table = files.read_table(grown / "results" / f"{name}.csv")
        if "seed" in table:
            assert set(table["seed"]) == {0, 1, 2, 3}, name
        elif "n_seeds" in table:
            assert set(table["n_seeds"]) == {4}, name
        else:
            assert {*table["seed_a"], *table["seed_b"]} >= {0, 1, 2, 3}, name
    ensembles = files.read_table(grown / "results" / "ensemble_cases.csv")
    assert set(ensembles["n_members"]) == {4}, "which no job has the seeds of"
    assert set(ensembles["arm"]) == {"scratch", "transfer", "frozen_random_encoder"}


def test_later_seeds_do_not_help_to_tell_the_filters_of_the_first(tiny_study: Path, grown: Path) -> None:
    was, now = (files.read_table(place / "results" / "filters.csv") for place in (tiny_study, grown))
    keys = ["arm", "seed", "layer", "step"]
    first = now[now["seed"] < 2].set_index(keys).sort_index()["auc"]
    assert first.notna().any()
    pd.testing.assert_series_equal(first, was.set_index(keys).sort_index()["auc"])


def test_seeds_that_came_later_train_as_if_they_had_been_there_from_the_start(grown: Path, tmp_path: Path) -> None:
    config = changed(seed_ids=(2, 3))
    run_stages(config, tmp_path, stages=("prepare", "pretrain", "train"), progress=silent)
    for run in files.read_json(tmp_path / "study.json")["runs"]:
        (other,) = [
            entry
            for entry in files.read_json(grown / "study.json")["runs"]
            if all(entry[name] == run[name] for name in ("kind", "arm", "seed", "train_cases", "fold"))
        ]
        mine, theirs = (
            checkpoint.read_seed(place / entry["directory"] / "checkpoints", 8, entry["index"])
            for place, entry in ((tmp_path, run), (grown, other))
        )
        np.testing.assert_array_equal(mine["head"]["kernel"], theirs["head"]["kernel"])


def test_a_study_is_not_cut(grown: Path) -> None:
    with pytest.raises(UserError, match=r"has 4 seeds, and config.num_seeds = 2 asks for fewer"):
        run_stages(tiny_config(), grown, stages=STAGES, progress=silent)


def test_an_extension_of_which_nothing_is_trained_is_taken_back(tiny_study: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    run_stages(changed(num_seeds=20), workdir, stages=("prepare",), progress=silent)
    assert json.loads((workdir / RECORD).read_text())["waves"] == [2, 20]
    with pytest.raises(UserError, match=r"stage 'analyze' needs stage 'evaluate', .* \(train/train_\d/chunk_\d\)"):
        run_stages(changed(num_seeds=20), workdir, stages=("analyze",), progress=silent)
    run_stages(tiny_config(), workdir, stages=STAGES, progress=silent)
    assert json.loads((workdir / RECORD).read_text())["waves"] == [2]
    was, now = ((place / "results" / "cases.csv").read_bytes() for place in (tiny_study, workdir))
    assert was == now


def test_an_extended_study_is_left_alone_and_goes_on_without_its_records(grown: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "study"
    shutil.copytree(grown, workdir)
    (workdir / "study.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("train/**/*") if path.is_file()}
    extended(workdir)
    (workdir / RECORD).unlink()
    with pytest.warns(UserWarning, match=f"{RECORD} was lost"):
        extended(workdir)
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("train/**/*") if path.is_file()}
    assert json.loads((workdir / RECORD).read_text())["waves"] == [2, 4]


def test_jobs_that_are_trained_stay_where_crossed_ids_name_a_seed_that_comes_later(tmp_path: Path) -> None:
    """Source network 3 belongs to the beginning, though seed 3 joins with the extension."""

    def jobs_of(num_seeds: int, waves: tuple[int, ...]) -> list[Job]:
        made = changed(num_seeds=num_seeds)
        made.arms.crossed = default.arm("pretrained", "none", cross="init,order", cross_ids=(0, 3))
        study = settings.parse(made)
        tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
        return [job for job in plan_jobs(study, tasks, None, waves).jobs if job.kind == "pretrain"]

    (began,), (first, later) = jobs_of(2, (2,)), jobs_of(4, (2, 4))
    assert [run.key.seed for run in began.runs] == [0, 1, 3]
    assert first == began
    assert [run.key.seed for run in later.runs] == [2]


def of_the_target(num_seeds: int, workdir: Path, **fields: object) -> PlannedStudy:
    """A study of a start from other cases of the target; each seed draws its training cases."""
    fixed = {"num_seeds": num_seeds, "vary": "init,order,subset", "target__train_cases": (2,)}
    made = changed(**fixed | fields)
    made.target.data = "synthetic:blobs?n=20&shape=16x16"
    made.arms = default.pick_arms("self_transfer")
    return run_stages(made, workdir, stages=("pretrain",), progress=silent)


def test_new_seeds_bring_networks_of_the_target_that_have_not_seen_their_cases(tmp_path: Path) -> None:
    of_the_target(2, tmp_path)
    planned = of_the_target(5, tmp_path)
    target, source = planned.tasks.splits
    (fold,) = planned.tasks.splits[source]
    for seed in range(5):
        used = planned.tasks.subset(target, Draw(2, 0, seed))
        assert {*planned.tasks.subset(source, Draw(0, 0, seed))} == {*fold.train} - {*used}


@pytest.mark.parametrize(
    ("first", "then", "fields"),
    [(2, 5, {"pretrain__share": "one"}), (3, 4, {"pretrain__runs_per_source": 2})],
    ids=["one network", "a network of a seed that was there"],
)
def test_seeds_are_refused_that_train_on_what_their_network_of_the_target_has_seen(
    tmp_path: Path, first: int, then: int, fields: dict[str, object]
) -> None:
    of_the_target(first, tmp_path, **fields)
    message = rf"num_seeds = {then}: seeds .* source networks of self_transfer were trained on"
    with pytest.raises(UserError, match=message):
        of_the_target(then, tmp_path, **fields)


def test_one_network_of_the_target_leaves_out_what_declared_seeds_will_train_on(tmp_path: Path) -> None:
    fields = {"pretrain__share": "one", "looks": (2, 5)}
    of_the_target(2, tmp_path, **fields)
    tasks = of_the_target(5, tmp_path, **fields).tasks
    target, source = tasks.splits
    drawn = {name for seed in range(5) for name in tasks.subset(target, Draw(2, 0, seed))}
    (split,) = tasks.splits[source]
    assert len(drawn) > 4
    assert not drawn & {*split.train, *split.val}


def test_the_prior_is_scored_for_the_new_seeds_alone(tmp_path: Path) -> None:
    made = changed(num_seeds=4, vary="init,order,subset", target__train_cases=(2,))
    made.arms = default.pick_arms("scratch", "prior")
    study = settings.parse(made)
    tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
    runs = plan_jobs(study, tasks, None, (4,)).priors
    (path,) = (tmp_path / score_stage.priors_part(cases) for cases in case_sets(study, tasks))
    tables = []
    for asked in (runs[:2], runs, runs):
        score_stage.evaluate_priors(study, tmp_path, tasks, asked, silent("evaluate priors"))
        tables.append((files.read_table(path), path.stat().st_mtime_ns))
    (first, _), (all_of_them, written), (again, left_alone) = tables
    assert [set(table["seed"]) for table in (first, all_of_them)] == [{0, 1}, {0, 1, 2, 3}]
    assert all_of_them[: len(first)].equals(first)
    assert again.equals(all_of_them)
    assert left_alone == written
