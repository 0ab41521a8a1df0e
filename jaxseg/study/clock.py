"""What the stages of a study spend their time on: compiling, validating and the rest, and which programs they compile.

JAX announces when it has traced, lowered or compiled a program (`jax.monitoring`). To hear one announcement costs
microseconds, so that a study always listens.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.monitoring

COMPILE, VALIDATE = "compile", "validate"
"""The parts of a stage that are told apart: tracing, lowering and compiling; and validation without its compiling."""
SMALL_SECONDS = 0.1
"""Programs that take less are counted together, under an empty name."""

_STEPS = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


class CompiledProgram(NamedTuple):
    """All programs of one name that a stage compiled; without a name, all its small ones."""

    stage: str
    name: str
    number: int
    """How many there were: one function is compiled anew for arguments of other shapes. A function that is only traced,
    for the shapes of its results, counts as none."""
    cached: int
    """How many of them were read from the compilation cache on disk."""
    traced: float
    """Seconds from Python to a jaxpr, those of inner functions included."""
    lowered: float
    """Seconds from there to StableHLO."""
    compiled: float
    """Seconds in XLA, or of reading what it compiled before."""

    @property
    def seconds(self) -> float:
        """The seconds of all three."""
        return self.traced + self.lowered + self.compiled


class Spent(NamedTuple):
    """What one stage took in one process."""

    stage: str
    seconds: float
    parts: Mapping[str, float]
    """Seconds of `COMPILE` and `VALIDATE`, which are among those of the stage."""
    programs: tuple[CompiledProgram, ...]


class _Span(NamedTuple):
    step: str
    program: str
    began: float
    ended: float
    cached: bool


class Clock:
    """Measures one stage after another. Times are those of `time.time`, which JAX gives its own in."""

    def __init__(self) -> None:
        # Of each thread, as one compiles while another does: spans lie in each other within a thread alone.
        self._spans: dict[int, list[_Span]] = collections.defaultdict(list)
        self._cached: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """Begins a stage: what came before is forgotten."""
        self._began, self._validated = time.time(), 0.0
        self._spans.clear()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hears meanwhile of every program that this process compiles."""
        jax.monitoring.register_event_time_span_listener(self._heard)
        jax.monitoring.register_event_listener(self._heard_of_cache)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_time_span_listener(self._heard)
            jax.monitoring.unregister_event_listener(self._heard_of_cache)

    def validation(self, validate: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a validation so that its seconds are counted, without those of compiling."""

        @functools.wraps(validate)
        def timed(*args: Any) -> Any:
            began = time.time()
            try:
                return validate(*args)
            finally:
                self._validated += time.time() - began - self._compiling(began)

        return timed

    def end(self, stage: str) -> Spent:
        """Returns what was spent since `begin`, or since the clock was made, as that of a stage."""
        now = time.time()
        parts = {COMPILE: self._compiling(self._began), VALIDATE: self._validated}
        programs = _programs(stage, (span for spans in self._spans.values() for span in spans))
        return Spent(stage, now - self._began, {name: spent for name, spent in parts.items() if spent}, programs)

    def _heard(self, event: str, start_time: float, end_time: float, **about: Any) -> None:
        if (step := _STEPS.get(event)) is None:
            return
        thread = threading.get_ident()
        spans = self._spans[thread]
        # Inner functions are traced, and constants computed, while an outer program is: their seconds are its own.
        while spans and spans[-1].began >= start_time:
            spans.pop()
        cached = step == "compiled" and thread in self._cached
        if step == "compiled":
            self._cached.discard(thread)
        name = str(about.get("fun_name", ""))
        spans.append(_Span(step, name.removeprefix("jit(").removesuffix(")"), start_time, end_time, cached))

    def _heard_of_cache(self, event: str, **about: Any) -> None:
        if event == _FROM_CACHE:
            self._cached.add(threading.get_ident())

    def _compiling(self, since: float) -> float:
        """The seconds since a time in which this thread traced, lowered or compiled."""
        return sum(span.ended - span.began for span in self._spans[threading.get_ident()] if span.began >= since)


def _programs(stage: str, spans: Iterable[_Span]) -> tuple[CompiledProgram, ...]:
    """The programs of some spans by name, the longest first, and the small ones together at the end."""
    by_name: dict[str, list[_Span]] = collections.defaultdict(list)
    for span in spans:
        by_name[span.program].append(span)
    large: list[CompiledProgram] = []
    small = CompiledProgram(stage, "", 0, 0, 0.0, 0.0, 0.0)
    for name, own in by_name.items():
        number, cached = sum(span.step == "compiled" for span in own), sum(span.cached for span in own)
        traced, lowered, compiled = (
            sum(span.ended - span.began for span in own if span.step == step) for step in _STEPS.values()
        )
        made = CompiledProgram(stage, name, number, cached, traced, lowered, compiled)
        if made.seconds < SMALL_SECONDS:
            small = _plus(small, made)
        else:
            large.append(made)
    ordered = sorted(large, key=lambda program: -program.seconds)
    return (*ordered, *([small] if small.seconds else []))


def _plus(one: CompiledProgram, other: CompiledProgram) -> CompiledProgram:
    """The numbers of two programs together, under the name of the first."""
    return CompiledProgram(
        one.stage,
        one.name,
        one.number + other.number,
        one.cached + other.cached,
        one.traced + other.traced,
        one.lowered + other.lowered,
        one.compiled + other.compiled,
    )


def joined(*parts: Iterable[CompiledProgram]) -> tuple[CompiledProgram, ...]:
    """Joins the programs of several processes: those of one stage and name are one entry, seconds rounded."""
    found: dict[tuple[str, str], CompiledProgram] = {}
    for program in (program for of_process in parts for program in of_process):
        at = program.stage, program.name
        found[at] = _plus(found[at], program) if at in found else program
    return tuple(
        program._replace(**{name: round(getattr(program, name), 3) for name in _STEPS.values()})
        for program in found.values()
    )
