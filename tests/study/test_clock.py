"""The clock of a study: what counts as compiling, what as validating, and which programs it names."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import jax.monitoring
import pytest

from jaxseg.study import clock
from jaxseg.study.clock import Clock, CompiledProgram
from launch import timing

TRACED, LOWERED, COMPILED = (
    f"/jax/core/compile/{step}_duration" for step in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


def say(event: str, program: str, *, ago: float, seconds: float) -> None:
    """Announces, as JAX does, what began some seconds ago."""
    began = time.time() - ago
    jax.monitoring.record_event_time_span(event, began, began + seconds, fun_name=program)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that was made a hundred seconds ago."""
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(clock.time, "time", lambda: now - 100)
        return Clock()


def test_a_program_has_the_seconds_of_what_was_traced_inside_it(begun: Clock) -> None:
    with begun.listening():
        say(TRACED, "earlier", ago=60, seconds=1)
        say(TRACED, "inner", ago=45, seconds=2)
        say(COMPILED, "jit(constant)", ago=43, seconds=1)
        say(TRACED, "outer", ago=50, seconds=10)
        say(LOWERED, "jit(outer)", ago=40, seconds=3)
        say(COMPILED, "jit(outer)", ago=37, seconds=20)
    found = begun.end("train")
    assert found.stage == "train"
    assert found.seconds == pytest.approx(100, abs=5)
    assert found.parts == {"compile": pytest.approx(34, abs=0.01)}
    outer, earlier = found.programs
    assert outer[:4] == ("train", "outer", 1, 0)
    assert outer[4:] == pytest.approx((10, 3, 20), abs=0.01)
    assert earlier[:4] == ("train", "earlier", 0, 0)  # traced for the shapes of its results


def test_programs_from_the_cache_and_small_ones_are_counted(begun: Clock) -> None:
    with begun.listening():
        say(COMPILED, "jit(chunk)", ago=50, seconds=4)
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        say(COMPILED, "jit(chunk)", ago=40, seconds=1)
        for ago in (30, 20, 10):
            say(COMPILED, f"jit(add_{ago})", ago=ago, seconds=0.04)
    large, small = begun.end("train").programs
    assert large[1:4] == ("chunk", 2, 1)
    assert large.compiled == pytest.approx(5, abs=0.01)
    assert small[1:4] == ("", 3, 0)
    assert small.seconds == pytest.approx(0.12, abs=0.01)


def test_a_validation_counts_without_its_compiling(begun: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 10.0, 20.0))
    began = time.time() - 50

    def validate(score: float) -> float:
        jax.monitoring.record_event_time_span(COMPILED, began + 1, began + 5, fun_name="jit(predict)")
        return score

    with begun.listening():
        timed = begun.validation(validate)
        monkeypatch.setattr(clock.time, "time", lambda: began + next(times))
        assert timed(0.5) == 0.5
    assert begun.end("train").parts == {"compile": pytest.approx(4), "validate": pytest.approx(6)}


def test_what_another_thread_compiles_is_named_and_takes_no_time_of_the_stage(begun: Clock) -> None:
    with begun.listening():
        say(COMPILED, "jit(chunk)", ago=50, seconds=10)
        other = threading.Thread(target=say, args=(COMPILED, "jit(send)"), kwargs={"ago": 55, "seconds": 30})
        other.start()
        other.join()
    found = begun.end("train")
    assert {program.name: round(program.seconds) for program in found.programs} == {"send": 30, "chunk": 10}
    assert found.parts == {"compile": pytest.approx(10, abs=0.01)}


def test_nothing_is_heard_afterwards_nor_from_before(begun: Clock) -> None:
    with begun.listening():
        say(COMPILED, "jit(chunk)", ago=50, seconds=10)
        begun.begin()
    say(COMPILED, "jit(chunk)", ago=50, seconds=10)
    assert begun.end("train")[2:] == ({}, ())


def test_programs_of_several_processes_are_joined() -> None:
    one = CompiledProgram("train", "chunk", 1, 0, 1.0, 2.0, 3.0)
    again, other = one._replace(cached=1, compiled=0.25), one._replace(stage="pretrain")
    assert clock.joined((one, other), (again,)) == (
        CompiledProgram("train", "chunk", 2, 1, 2.0, 4.0, 3.25),
        other,
    )


def test_the_time_is_printed_by_stage_and_program(tiny_study: Path) -> None:
    found = json.loads((tiny_study / "study.json").read_text())
    stages, programs = (part.splitlines()[1:] for part in timing.describe(tiny_study).split("\n\n"))
    printed = {name: [float(number) for number in numbers] for name, *numbers in map(str.split, stages)}
    for stage, seconds in found["timing"].items():
        whole, *parts = printed[stage]
        assert whole == pytest.approx(seconds, abs=0.051)
        assert sum(parts) == pytest.approx(seconds, abs=0.151)
    assert printed["total"] == [pytest.approx(sum(found["timing"].values()), abs=0.051)]
    assert len(programs) == len(found["programs"])
    for line, program in zip(programs, found["programs"], strict=True):
        assert line.split()[0] == program["stage"]
        assert (program["name"] or "others, below 0.1 s") in line


def test_a_study_knows_its_programs_and_the_time_of_its_parts(tiny_study: Path) -> None:
    found = json.loads((tiny_study / "study.json").read_text())
    assert set(found["timing"]) == {"prepare", "pretrain", "train", "evaluate", "analyze"}
    for stage, parts in found["parts"].items():
        assert sum(parts.values()) <= found["timing"][stage] + 0.02
    assert {"compile", "validate"} == set(found["parts"]["train"])
    assert "validate" not in found["parts"]["analyze"]
    names = {(program["stage"], program["name"]) for program in found["programs"]}
    assert {("pretrain", "chunk"), ("train", "chunk"), ("analyze", "record")} <= names
