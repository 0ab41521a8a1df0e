"""How often programs are compiled: once for all arms, chunks of runs, and resumed trainings that can share them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.monitoring

from configs import default
from jaxseg import loop
from jaxseg.study.plan import tasks as planned_tasks
from jaxseg.study.run import STAGES, run_stages
from tests.tiny_study import silent, tiny_config

ARMS = ("scratch", "transfer", "transfer_encoder", "transfer_decoder", "first_1", "mean_var")
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
"""Every program that is made passes this event, whether or not the compiler's own cache then has it."""


@contextlib.contextmanager
def made_programs() -> Iterator[list[str]]:
    """Names of the programs that are made inside."""
    names: list[str] = []

    def note(event: str, seconds: float, **about: Any) -> None:
        if event == LOWERED:
            names.append(str(about["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def counted(names: list[str], *, of: Sequence[str] = ("chunk", "predict")) -> dict[str, int]:
    return {name: names.count(f"jit({name})") for name in of}


def test_arms_chunks_and_a_resumed_training_share_their_programs(tmp_path: Path) -> None:
    made = tiny_config()
    made.optim.momentum = 0.8125  # adam has none, but it makes a program that no other test has made in this process
    made.model.widths = (3, 5)
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
    made.model.widths = (2, 5)
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
