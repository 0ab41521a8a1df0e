"""A command run in the tests' own process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from absl import flags

from launch import cli
from launch import study as study_command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs launch.study in this process; returns the exit status and what it wrote on stderr."""
    # JAX is set up by conftest, and pytest needs its own signal handlers.
    monkeypatch.setattr(cli, "setup_jax", lambda: None)
    monkeypatch.setattr(cli.signal, "signal", lambda signum, handler: None)

    def run(*arguments: str) -> tuple[int, str]:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # overrides of the test before
        flags.FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["launch.study", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.run(study_command.main)
        return stopped.value.code, capsys.readouterr().err

    return run
