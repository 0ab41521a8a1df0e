"""How often programs are compiled: once for all arms, chunks of runs, and resumed trainings that can share them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from configs import default
from jaxseg import loop
from jaxseg.study.plan import tasks as planned_tasks
from jaxseg.study.run import STAGES, run_stages
from tests.made_programs import made_programs
from tests.tiny_study import set_widths, silent, tiny_config

ARMS = ("scratch", "transfer", "transfer_encoder", "transfer_decoder", "first_1", "mean_var")


def counted(names: list[str], *, of: Sequence[str] = ("chunk", "predict")) -> dict[str, int]:
    return {name: names.count(f"jit({name})") for name in of}


def test_arms_chunks_and_a_resumed_training_share_their_programs(tmp_path: Path) -> None:
    made = tiny_config()
    made.optim.momentum = 0.8125  # adam has none, but it makes a program that no other test has made in this process
    set_widths(made, 3, 5)
    made.arms = default.pick_arms(*ARMS)
    made.runtime.seeds_per_chunk = "4"
    workdir = tmp_path / "study"
    run_stages(made, workdir, stages=("pretrain",), progress=silent)
    with made_programs() as names:
        ready = run_stages(made, workdir, stages=("train", "evaluate"), progress=silent)
    jobs = ready.plan.of_kind("train")
    assert [len(job.runs) for job in jobs] == [4, 4, 4]
    assert counted(names) == {"chunk": 1, "predict": 1}

    shutil.rmtree(workdir / jobs[1].directory / "checkpoints" / "8")
    with made_programs() as names:
        run_stages(made, workdir, stages=("train",), progress=silent)
    assert loop.is_done(workdir / jobs[1].directory, 8)
    assert counted(names) == {"chunk": 0, "predict": 0}


def test_source_networks_and_arms_share_their_programs_where_shapes_agree(tmp_path: Path) -> None:
    made = tiny_config()
    made.optim.momentum = 0.6875  # as above
    set_widths(made, 2, 5)
    made.arms = default.pick_arms("scratch", "transfer", "self_transfer")
    made.target.train_cases = (2,)
    made.train.average = 0.25
    made.runtime.seeds_per_chunk = "2"
    with made_programs() as names:
        ready = run_stages(made, tmp_path / "study", stages=STAGES[:4], progress=silent)
    assert [(job.kind, len(job.runs)) for job in ready.plan.jobs] == [("pretrain", 2)] * 2 + [("train", 2)] * 3
    assert len({len(planned_tasks.cohort_names(ready.tasks, job.program.task)) for job in ready.plan.jobs}) > 1
    # One start of random and one of pretrained weights; the loop of steps; windows of validations and of test cases.
    assert counted(names, of=("init", "chunk", "predict")) == {"init": 2, "chunk": 1, "predict": 1}
