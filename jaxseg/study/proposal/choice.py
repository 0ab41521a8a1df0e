"""What a proposal consists of, and how it reads."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from typing import Any


@dataclasses.dataclass(frozen=True)
class Choice:
    """One field of the config, and why it has this value."""

    field: str
    """Dotted, without `config.`."""
    value: Any
    """As a config holds it."""
    reason: str


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Settings for the images of a study."""

    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    """What a person should know or decide before training."""

    def value(self, field: str) -> Any:
        """Returns the value of a field.

        Raises:
            KeyError: The field is not among the choices.
        """
        return {choice.field: choice.value for choice in self.choices}[field]


def as_lines(proposal: Proposal) -> list[str]:
    """Returns options of the command line, each with its reason below, and the notes."""
    lines = []
    for choice in proposal.choices:
        lines.append(f"--config.{choice.field}={shlex.quote(str(choice.value))}")
        lines += textwrap.wrap(choice.reason, 112, initial_indent="    ", subsequent_indent="    ")
    for note in proposal.notes:
        lines += ["", *textwrap.wrap(f"note: {note}", 116, subsequent_indent="    ")]
    return lines
