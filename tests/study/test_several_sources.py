"""Several sources in one study: tasks, programs and records of each are its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configs import default
from jaxseg.settings import ArmSettings
from jaxseg.study import recording
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.run import run_stages
from jaxseg.types import UserError
from tests.tiny_study import silent, tiny_config

LARGER = {"data": "synthetic:blobs?n=8&shape=24x24&seed=2&labels=1", "patch": (16, 16), "normalization": "dataset"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> PlannedStudy:
    """A study with three sources and two ways of fine-tuning, that has not trained."""
    made = tiny_config()
    made.target.data = "synthetic:blobs?n=14&shape=16x16"
    made.target.train_cases = (2,)
    names = ("scratch", "transfer", "self_transfer", "transfer_head_first", "transfer_slow_encoder")
    made.arms = default.pick_arms(*names, config=made)
    made.arms.transfer_larger = default.arm("pretrained", "none", source=LARGER)
    return run_stages(made, tmp_path_factory.mktemp("sources") / "study", stages=[], progress=silent)


def test_each_source_has_a_task_and_a_split_of_its_own(planned: PlannedStudy) -> None:
    arms = {arm.name: arm for arm in planned.study.arms}
    tasks = planned.tasks
    larger = arms["transfer_larger"].source
    assert [tasks.role(arms[name].source) for name in ("transfer", "self_transfer", "transfer_larger")] == [
        "source",
        "source_2",
        "source_3",
    ]
    assert (tasks.prepared[larger].normalization, len(tasks.prepared[larger].labels)) == (("dataset",), 1)
    assert len(tasks.fitted[larger][0].windows) == 1
    (own,) = tasks.splits[arms["self_transfer"].source]
    held = {*tasks.splits[planned.study.target][0].test}
    assert not held & {*own.train, *own.val}
    assert len(tasks.splits[larger][0].train) == 4


def test_each_source_is_a_program_and_ways_of_fine_tuning_are_too(planned: PlannedStudy) -> None:
    pretraining = {job.runs[0].key.arm: job.program for job in planned.plan.of_kind("pretrain")}
    sources = {run.key.arm: run.source.arm for job in planned.plan.of_kind("train") for run in job.runs if run.source}
    assert sources["transfer"] == sources["transfer_head_first"] == sources["transfer_slow_encoder"]
    assert len({sources[name] for name in ("transfer", "self_transfer", "transfer_larger")}) == 3
    larger = pretraining[sources["transfer_larger"]]
    assert (larger.task.patch, larger.classes) == ((16, 16), 2)
    assert pretraining[sources["transfer"]].optim.head_first == 0
    groups = [{run.key.arm for run in job.runs} for job in planned.plan.of_kind("train")]
    assert sorted(groups, key=len)[-1] == {"scratch", "transfer", "self_transfer", "transfer_larger"}
    assert {"transfer_head_first"} in groups
    assert {"transfer_slow_encoder"} in groups


def test_the_record_says_what_each_arm_started_from(planned: PlannedStudy) -> None:
    arms = recording.planned_record(planned, 2).arms
    transferred = [arm for arm in planned.study.arms if arm.name != "scratch"]
    prepared = {arm.name: planned.tasks.prepared[arm.source].name for arm in transferred}
    assert {name: arm.source for name, arm in arms.items()} == {"scratch": "", **prepared}
    words = {name: arm.fine_tuning for name, arm in arms.items() if arm.fine_tuning}
    assert words == {
        "transfer_head_first": "the head alone for 20 % of the steps",
        "transfer_slow_encoder": "0.1 times the rate where ^encoder/ matches",
    }


def test_the_record_tells_arms_apart_that_differ_in_more_than_start_and_rate(planned: PlannedStudy) -> None:
    def digest(arm: ArmSettings, **optim: object) -> str:
        changed = dataclasses.replace(arm, optim=dataclasses.replace(arm.optim, **optim))
        made = dataclasses.replace(planned, study=dataclasses.replace(planned.study, arms=(changed,)))
        return recording.planned_record(made, 2).arms[arm.name].settings

    arms = {arm.name: arm for arm in planned.study.arms}
    scratch = arms["scratch"]
    same = digest(scratch)
    assert digest(arms["transfer"]) == digest(scratch, lr=1e-2) == digest(scratch, lr_factor=3.0) == same
    loss = dataclasses.replace(scratch, loss=dataclasses.replace(scratch.loss, name="ce"))
    others = [
        digest(scratch, name="sgd"),
        digest(scratch, weight_decay=0.1),
        digest(scratch, warmup_steps=3),
        digest(loss),
    ]
    assert len({same, *others}) == 5


def test_of_several_sources_the_one_that_is_meant_must_be_named(planned: PlannedStudy, tmp_path: Path) -> None:
    recording.write_study(planned, None, 2)
    made = tiny_config()
    made.arms = default.pick_arms("transfer")
    made.pretrain.from_workdir = str(planned.workdir)
    message = (
        r"networks of several sources: source \(of transfer, .*source_2 \(of self_transfer\).*set pretrain.from_arm"
    )
    with pytest.raises(UserError, match=message):
        run_stages(made, tmp_path / "study", stages=[], progress=silent)
