"""What a job is built from: which jobs may compute their encoder once for all runs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from configs import default
from jaxseg import settings
from jaxseg.study.plan.jobs import Job, make_plan
from jaxseg.study.train import fit
from jaxseg.study.train.fit import encodes_once
from tests.tiny_study import changed, put, tiny_config


def job_of(share: str = "one", vary: str = "init", freeze: str = "encoder", **fields: object) -> Job:
    made = tiny_config()
    made.arms = {"one": default.arm("pretrained", freeze, pretrain={"share": share})}
    for path, value in {"vary": vary, **fields}.items():
        put(made, path.replace("__", "."), value)
    study = settings.parse(made)
    # A head of other classes, so that runs of one source and one order differ in something.
    sizes = {"target_size": (1, 3), "source_sizes": {arm.source: (1, 2) for arm in study.arms}}
    (job,) = make_plan(study, **sizes, memory_bytes=10**9, devices=1, strategy="loop").of_kind("train")
    return job


@pytest.mark.parametrize("freeze", ["encoder", "all_but_head"])
def test_one_frozen_encoder_and_one_order_of_batches_are_encoded_once(freeze: str) -> None:
    assert encodes_once(job_of(freeze=freeze))


@pytest.mark.parametrize(
    "differs",
    [
        {"share": "per_seed"},
        {"vary": "init,order"},
        {"vary": "init,subset"},
        {"target__train_cases": (2, 3)},
        {"target__folds": 2},
        {"freeze": "decoder"},
        {"freeze": "regex:encoder/level_0"},
        {"train__accumulate": 2},
    ],
    ids=str,
)
def test_everything_else_is_encoded_run_by_run(differs: dict[str, object]) -> None:
    assert not encodes_once(job_of(**differs))


def test_rates_and_seeds_may_differ() -> None:
    job = job_of(num_seeds=3)
    assert len({run.init_id for run in job.runs}) == 3
    runs = tuple(dataclasses.replace(run, rate=0.1 * index) for index, run in enumerate(job.runs))
    assert encodes_once(dataclasses.replace(job, runs=runs))


@pytest.mark.parametrize(("limit", "expected"), [(0, "abcdef"), (3, "bdf"), (9, "abcdef")])
def test_validation_looks_at_as_many_cases_as_are_asked_for(
    limit: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = settings.parse(changed(evaluate__val_limit=limit))
    job, seen = job_of(), []
    splits = [SimpleNamespace(val=tuple("abcdef")), SimpleNamespace(val=("g",))]
    tasks: Any = SimpleNamespace(of=lambda job: None, splits={job.program.task: splits})
    monkeypatch.setattr(fit, "make_validate", lambda job, task, folds, *rest, **more: seen.append(folds))
    plan: Any = None
    fit._make_validate(study, tasks, job, plan, device_bytes=0)
    assert seen == [[tuple(expected), ("g",)]]
