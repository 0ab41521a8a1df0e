"""Which programs JAX makes while something runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

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
