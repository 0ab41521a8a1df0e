"""Jobs: which runs train together, in chunks that fit the memory, and which rates are tried before."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import settings
from jaxseg.data.patches import residence
from jaxseg.reserved import SOURCE
from jaxseg.study import files, record
from jaxseg.study.plan import planned, source_networks
from jaxseg.study.plan.cutting import even_sizes
from jaxseg.study.plan.jobs import Plan, check_networks, chunk_sizes, make_plan
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.train import learning_rates
from jaxseg.study.train import stage as train_stage
from jaxseg.types import RunKey, UserError
from tests.tiny_study import changed, put, silent, tiny_config

UNANALYSED = tuple(stage for stage in STAGES if stage != "analyze")


def plan_of(made: ConfigDict, **more: Any) -> Plan:
    study = settings.parse(made)
    sizes = {arm.source: (1, 3) for arm in study.arms}
    given = {"target_size": (1, 3), "memory_bytes": 2**34, "devices": 1, "strategy": "loop"} | more
    return make_plan(study, source_sizes=sizes, **given)


def test_jobs_are_continued_with_the_runs_they_were_started_with() -> None:
    made = tiny_config()
    made.num_seeds = 5
    small_machine = plan_of(made, memory_bytes=30_000)
    assert all(len(sizes) > 1 for group, sizes in chunk_sizes(small_machine).items() if group != "pretrain")
    large = plan_of(made)
    assert chunk_sizes(large) == {"pretrain": (5,), "train_0": (5, 5), "train_1": (5,)}
    assert plan_of(made, chunk_sizes=chunk_sizes(small_machine)).jobs == small_machine.jobs
    # Sizes of another study are not taken.
    assert chunk_sizes(plan_of(made, chunk_sizes={"train_0": (3, 3)})) == chunk_sizes(large)


def test_a_batch_norm_over_a_single_value_is_found_before_data_is_read() -> None:
    made = tiny_config()
    made.model.norm, made.train.batch, made.target.patch = "batch", 1, (2, 2)
    with pytest.raises(UserError, match=r"arm 'scratch', target: patch \(2, 2\): at the coarsest level a batch of one"):
        check_networks(settings.parse(made))


def test_a_study_that_was_only_prepared_is_cut_by_the_machine_that_trains_it(tmp_path: Path) -> None:
    run_stages(tiny_config(), tmp_path, stages=("prepare",), progress=silent)
    found = record.read(tmp_path)
    assert found is not None
    assert found.chunks == {}


def test_a_job_that_has_not_begun_is_cut_as_asked(tiny_study: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    made = settings.from_json((workdir / "config.json").read_text())
    cut = planned.chunks_of(settings.parse(made), workdir)
    (runs,) = cut["train_0"]
    assert runs > 2
    made.runtime.seeds_per_chunk = "2"
    asked = settings.parse(made)
    assert planned.chunks_of(asked, workdir) == cut  # all have begun
    shutil.rmtree(workdir / "train" / "train_0" / "chunk_0" / "checkpoints")
    assert planned.chunks_of(asked, workdir) == cut | {"train_0": even_sizes(runs, 2)}
    (workdir / "train" / "train_0" / "chunk_1" / "checkpoints" / "0").mkdir(parents=True)
    assert planned.chunks_of(asked, workdir) == cut | {"train_0": (runs,)}


def test_an_arm_trains_with_its_own_sizes_and_tries_rates_for_these_alone() -> None:
    made = tiny_config()
    made.target.train_cases = (2, 4)
    made.arms = default.pick_arms("scratch", "frozen_random_encoder")
    made.arms.frozen_random_encoder.train_cases = (4,)
    made.optim.lr_grid, made.optim.lr_seeds = (1e-2, 1e-3), (70,)
    plan = plan_of(made)
    for kind, number in (("train", 2), ("select", 2)):
        keys = [run.key for job in plan.of_kind(kind) for run in job.runs]
        assert len(keys) == 3 * number
        assert {(key.arm, key.train_cases) for key in keys} == {
            ("scratch", 2), ("scratch", 4), ("frozen_random_encoder", 4)
        }  # fmt: skip


def test_rates_are_tried_with_the_largest_training_set_alone_where_that_is_asked_for() -> None:
    made = tiny_config()
    made.target.train_cases = (2, 4)
    made.arms = default.pick_arms("scratch", "frozen_random_encoder", "transfer")
    made.arms.frozen_random_encoder.train_cases = (2,)
    made.optim.lr_grid, made.optim.lr_seeds, made.optim.lr_sizes = (1e-2, 1e-3), (70,), "largest"

    def tried() -> set[tuple[str, int]]:
        return {run.key[:2] for job in plan_of(made).of_kind("select") for run in job.runs}

    assert tried() == {("scratch", 4), ("transfer", 4)}
    made.target.train_cases = (2, 4, 0)
    assert tried() == {("scratch", 0), ("transfer", 0)}
    # Arms that try nothing may alone have the largest size.
    made.arms = default.pick_arms("scratch", "prior", "scratch_fast")
    made.arms.scratch.train_cases, made.arms.prior.train_cases, made.arms.scratch_fast.train_cases = (4,), (0,), (0,)
    assert tried() == {("scratch", 4)}
    made.optim.lr_choice = "per_arm"
    with pytest.raises(UserError, match=r"optim.lr_sizes = 'largest'; allowed: 'every', with optim.lr_choice"):
        settings.parse(made)


def test_a_shared_rate_is_that_of_sizes_and_arms_that_were_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.target.train_cases = (2, 4)
    made.arms = default.pick_arms("scratch", "frozen_random_encoder", "transfer")
    made.arms.transfer.optim = {"lr_grid": (), "lr": 7e-3}
    made.optim.lr_grid, made.optim.lr_seeds, made.optim.lr_sizes = (1e-2, 1e-3), (70,), "largest"
    made.arms.frozen_random_encoder.train_cases = (2,)
    table = pd.DataFrame([("scratch", 4, 0, 1e-2, False), ("scratch", 4, 0, 1e-3, True)])
    table.columns = [*learning_rates.VARIANT, "lr", "chosen"]
    monkeypatch.setattr(learning_rates, "is_done", lambda *_: True)
    monkeypatch.setattr(learning_rates, "rates_table", lambda *_: table)
    found = learning_rates.chosen_rates(Path(), plan_of(made), settings.parse(made).arms)
    assert found == {("scratch", 2, 0): 1e-3, ("scratch", 4, 0): 1e-3, ("frozen_random_encoder", 2, 0): 1e-3}


def test_a_run_that_no_trial_chose_a_rate_for_does_not_train_at_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.target.train_cases, made.arms = (2, 4), default.pick_arms("scratch")
    made.optim.lr_grid, made.optim.lr_seeds, made.optim.lr_choice = (1e-2, 1e-3), (70,), "per_arm"
    table = pd.DataFrame([("scratch", 4, 0, 1e-2, False), ("scratch", 4, 0, 1e-3, True)])
    table.columns = [*learning_rates.VARIANT, "lr", "chosen"]
    monkeypatch.setattr(learning_rates, "is_done", lambda *_: True)
    monkeypatch.setattr(learning_rates, "rates_table", lambda *_: table)
    plan, arms = plan_of(made), settings.parse(made).arms
    with pytest.raises(ValueError, match=r"no trial chose a rate of optim.lr_grid for scratch/n2_fold0"):
        learning_rates.chosen_rates(Path(), plan, arms)
    monkeypatch.undo()
    untried = dataclasses.replace(plan, jobs=plan.of_kind("train"))
    with pytest.raises(ValueError, match=r"for scratch/n2_fold0, scratch/n4_fold0"):
        learning_rates.chosen_rates(Path(), untried, arms)


def test_a_source_network_that_a_trial_lacks_is_that_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.arms, made.pretrain.from_workdir = default.pick_arms("transfer"), "elsewhere"
    made.optim.lr_grid, made.optim.lr_seeds = (1e-2, 1e-3), (70,)
    (arm,) = settings.parse(made).arms
    there = [(RunKey(SOURCE, 0, 0, seed), None) for seed in (0, 1)]
    monkeypatch.setattr(source_networks, "_checkpoint_runs", lambda *_: there)
    where = source_networks.locate_given(arm)
    for seed, mend in ((70, r"set optim.lr_seeds, whose trial"), (5, "set seed_ids to some")):
        with pytest.raises(UserError, match=rf"no source network of seed {seed}; it has \[0, 1\]; {mend}"):
            where(RunKey(SOURCE, 0, 0, seed))


def test_some_arm_tries_the_rates_that_others_take_a_multiple_of() -> None:
    made = tiny_config()
    made.arms = default.pick_arms("scratch", "scratch_fast")
    made.optim.lr_grid, made.optim.lr_seeds = (0.1, 0.3), (70,)
    assert [arm.optim.lr_factor for arm in settings.parse(made).arms] == [1.0, 3.0]
    made.optim.lr_factor = 3.0
    made.arms.prior = default.arm("random", "none", kind="prior", optim={"lr_factor": 1.0})  # which trains nothing
    with pytest.raises(UserError, match=r"optim.lr_factor = 3.0; allowed: 1 with optim.lr_grid, or an arm beside"):
        settings.parse(made)


def test_an_arm_at_a_multiple_of_the_rate_follows_the_one_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.target.train_cases = (4,)
    made.arms = default.pick_arms("scratch", "scratch_slow", "scratch_fast")
    rates = {run.key.arm: run.rate for job in plan_of(made).of_kind("train") for run in job.runs}
    assert rates == pytest.approx(
        {"scratch": made.optim.lr, "scratch_slow": made.optim.lr / 3, "scratch_fast": made.optim.lr * 3}
    )
    made.optim.lr_grid, made.optim.lr_seeds = (1e-2, 3e-3), (70,)
    plan = plan_of(made)
    assert {run.key.arm for job in plan.of_kind("select") for run in job.runs} == {"scratch"}
    assert len({job.program for job in plan.of_kind("train")}) == 1, "rates differ by run, in one program"
    table = pd.DataFrame([("scratch", 4, 0, 1e-2, False), ("scratch", 4, 0, 3e-3, True)])
    table.columns = [*learning_rates.VARIANT, "lr", "chosen"]
    monkeypatch.setattr(learning_rates, "is_done", lambda *_: True)
    monkeypatch.setattr(learning_rates, "rates_table", lambda *_: table)
    found = learning_rates.chosen_rates(Path(), plan, settings.parse(made).arms)
    assert {arm: rate for (arm, _, _), rate in found.items()} == pytest.approx(
        {"scratch": 3e-3, "scratch_slow": 1e-3, "scratch_fast": 9e-3}
    )


def test_images_leave_less_memory_for_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.num_seeds = 5
    small_machine = plan_of(made, memory_bytes=30_000)
    study = settings.parse(made)
    held = dict.fromkeys((study.target, study.arms[1].source), 10**6)
    assert plan_of(made, memory_bytes=30_000 + 10**6, data_bytes=held).jobs == small_machine.jobs

    made.runtime.devices = "2"
    made.runtime.data_residence = "device"
    read = planned.prepare(settings.parse(made), tmp_path, silent(""))
    images, of_source = planned.data_bytes(read.study, read.tasks, devices=2).values()
    assert images == 2 * 6 * 16**2 * 3  # devices, training cases, voxels, float16 and uint8
    held = {read.study.target: images, read.study.arms[1].source: of_source}
    for enough in (0, 10**6):
        monkeypatch.setattr(planned, "memory_bytes", lambda devices, enough=enough: 60_000 + images + enough)
        expected = plan_of(made, memory_bytes=60_000 + images + enough, devices=2, data_bytes=held)
        assert chunk_sizes(planned.plan_jobs(read.study, read.tasks, None)) == chunk_sizes(expected)
    runtime = dataclasses.replace(read.study.runtime, data_residence="host")
    on_host = planned.data_bytes(dataclasses.replace(read.study, runtime=runtime), read.tasks, devices=2)
    assert on_host[read.study.target] == 3 * residence.SENT_BYTES + images // 2


def test_out_of_memory_halves_the_runs_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.arms = default.pick_arms("scratch")
    made.num_seeds = 3
    fit, tried = train_stage.loop.fit, []

    def cramped(job: Any, progress: Any) -> None:
        tried.append(len(job.names))
        if len(job.names) > 2:
            job.directory.mkdir(parents=True)
            raise train_stage.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
        fit(job, progress)

    monkeypatch.setattr(train_stage.loop, "fit", cramped)
    with pytest.warns(UserWarning, match=r"train/train/chunk_0: out of memory with 3 runs at once; going on with 2"):
        run_stages(made, tmp_path / "study", stages=UNANALYSED, progress=silent)
    assert tried == [3, 2, 1]
    recorded = files.read_json(tmp_path / "study" / "study.json")["runs"]
    assert [(run["directory"], run["index"]) for run in recorded] == [
        ("train/train/chunk_0", 0), ("train/train/chunk_0", 1), ("train/train/chunk_1", 0)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_stages(made, tmp_path / "study", stages=UNANALYSED, progress=silent)  # all is there
    assert tried == [3, 2, 1]
    made.runtime.seeds_per_chunk = "3"
    with pytest.raises(UserError, match=r"does not fit in memory with 3 run\(s\) .* lower runtime.seeds_per_chunk"):
        run_stages(made, tmp_path / "fixed", stages=UNANALYSED, progress=silent)


@pytest.mark.parametrize("chunk", ["auto", "2"])
def test_out_of_memory_keeps_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: str) -> None:
    """Of a job that is resumed where memory is short, nor of a later one that is done, nothing is removed."""
    made, workdir = tiny_config(), tmp_path / "study"
    made.arms, made.num_seeds, made.runtime.seeds_per_chunk = default.pick_arms("scratch"), 2, chunk
    planned_study = planned.prepare(settings.parse(made), workdir, silent(""))
    (job,) = planned_study.plan.of_kind("train")
    later = dataclasses.replace(job, chunk=1)
    both = dataclasses.replace(planned_study, plan=dataclasses.replace(planned_study.plan, jobs=(job, later)))
    for trained, other in ((job, later), (later, job)):
        steps = {one.directory: workdir / one.directory / "checkpoints" for one in (job, later)}
        monkeypatch.setattr(
            train_stage.checkpoint,
            "saved_steps",
            lambda folder, done=steps[trained.directory]: (0, 8) if folder == done else (0,),
        )
        for folder in steps.values():
            folder.mkdir(parents=True, exist_ok=True)
        with pytest.raises(UserError, match=rf"chunk_0 does not fit.*as {trained.directory} up to step 8 .*seeds_per"):
            train_stage.back_off(both, job, "RESOURCE_EXHAUSTED: Out of memory")
        assert all(folder.is_dir() for folder in steps.values()), other


def test_seeds_that_would_be_one_run_are_refused() -> None:
    made = tiny_config()
    made.pretrain.share, made.vary = "one", "init"
    with pytest.raises(UserError, match=r"arm 'transfer': seeds 0 and 1 would be the same run: .*Add 'order' to vary"):
        plan_of(made)
    made.vary = "init,order"
    plan_of(made)
    made.vary, made.pretrain.share = "init", "per_seed"
    plan_of(made)
    made.pretrain.share, made.pretrain.min_loaded = "one", 0.1
    plan_of(made, target_size=(1, 4))  # the head begins anew with every seed


NESTED = {"vary": "init", "pretrain__runs_per_source": 2}
ONE = {"vary": "init", "pretrain__share": "one"}
FOLDS = {"vary": "fold", "target__folds": 2}
CROSSED = {"cross_ids": (0, 1), "init": "random", "freeze": "none"}
REPEATED = {
    "nothing varies": ({"vary": ""}, "scratch", "arm 'scratch': seeds 0 and 1 would .* with vary = ''"),
    "a subset of all cases": ({"vary": "subset"}, "scratch", r"vary = 'subset' .* \('subset' draws none where"),
    "a frozen encoder": ({"vary": ""}, "frozen_random_encoder", "seeds 0 and 1 would be the same run"),
    "one of two runs from a source": (NESTED, "transfer", "seeds 0 and 1 would be .* come from one source network"),
    "constants begin anew": (ONE | {"arms__transfer__init": "pretrained:kernel$"}, "transfer", "seeds 0 and 1 would"),
    "fold after fold": (FOLDS | {"num_seeds": 4}, "scratch", "seeds 0 and 2 would be the same run"),
    "a placebo": (
        FOLDS,
        "scratch,scratch_b",
        "scratch_b': seed 1000 would be the same run as seed 0 of arm 'scratch'",
    ),
    "crossed without effect": ({}, {"cross": "init,subset"}, "cross = 'init,subset' .* Cross streams that make a"),
}
DIFFERENT = {
    "training cases": ({"vary": "subset", "target__train_cases": (4,)}, "scratch"),
    "sources": ({"vary": ""}, "transfer"),
    "priors, which have no seed": ({"vary": "", "num_seeds": 1}, "scratch,prior"),
    "folds": (FOLDS, "scratch,prior"),
    "arms without an offset": ({"num_seeds": 1}, "scratch,scratch_no_skip,scratch_slow"),
    "the diagonal of a crossed arm": ({}, {"cross": "init,order"}),
}


def with_arms(fields: dict[str, Any], arms: str | dict[str, Any]) -> ConfigDict:
    made, crossed = tiny_config(), isinstance(arms, dict)
    made.arms = default.pick_arms(*("scratch" if crossed else arms).split(","))
    if crossed:
        made.arms.crossed = default.arm(**CROSSED | arms)
    for path, value in fields.items():
        put(made, path.replace("__", "."), value)
    return made


@pytest.mark.parametrize("name", REPEATED)
def test_no_arm_counts_one_run_twice(name: str) -> None:
    fields, arms, message = REPEATED[name]
    with pytest.raises(UserError, match=message):
        plan_of(with_arms(fields, arms))


@pytest.mark.parametrize("name", DIFFERENT)
def test_runs_that_differ_in_anything_are_planned(name: str) -> None:
    assert plan_of(with_arms(*DIFFERENT[name])).jobs


def test_seeds_whose_draws_are_all_cases_are_one_run() -> None:
    made = changed(vary="subset", target__train_cases=(4,))
    with pytest.raises(UserError, match="seeds 0 and 1 would be the same run"):
        plan_of(made, training_cases=lambda run: ("a", "b", "c", "d"))


def test_crossed_ids_stay_those_of_the_first_seeds() -> None:
    """A trained job would else have other runs than it was trained with."""

    def crossed(num_seeds: int, *ids: int) -> ConfigDict:
        made = changed(num_seeds=num_seeds)
        made.arms.crossed = default.arm("random", "none", cross="init,order", cross_ids=ids)
        return made

    began = crossed(2)
    (line,) = settings.differences(began, crossed(4))
    assert line.startswith("config.arms.crossed.cross_ids: [0, 1] in the workdir, [0, 1, 2, 3] asked for; ")
    assert line.endswith("to add seeds, set config.arms.crossed.cross_ids = (0, 1)")
    named = crossed(4, 0, 1)
    assert settings.differences(began, named) == []
    assert settings.digest(began) == settings.digest(named)
    first = plan_of(began, waves=(2,))
    later = plan_of(named, waves=(2, 4), chunk_sizes=chunk_sizes(first))
    assert {*first.jobs} < {*later.jobs}


def test_a_draw_of_as_many_cases_as_there_are_is_no_draw(tmp_path: Path) -> None:
    """Six cases are all that the seeds may train on: each of them would be the same run."""
    made = changed(vary="subset", target__train_cases=(6,))
    made.arms = default.pick_arms("scratch")
    with pytest.raises(UserError, match="'scratch': seeds 0 and 1 would be the same run"):
        planned.prepare(settings.parse(made), tmp_path / "study", silent("prepare"))
    made.target.train_cases = (3,)
    planned.prepare(settings.parse(made), tmp_path / "other", silent("prepare"))
