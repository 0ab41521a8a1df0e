"""launch.predict in this process, for tests of what it writes and says."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from absl import flags

from launch import cli
from launch import predict as predict_command

Command = Callable[..., tuple[int, str, str]]
_FLAGS = (
    *("score", "references", "workdir", "arm", "input", "output", "fold", "seeds", "train_cases"),
    *("uncertainty", "ensemble", "unit", "hd_definition", "surface_empty", "tolerance_mm"),
)


def make_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function of the command's arguments; it gives the exit status, stdout and stderr."""
    # JAX is set up by conftest, and pytest needs its own signal handlers.
    monkeypatch.setattr(cli, "setup_jax", lambda: None)
    monkeypatch.setattr(cli.signal, "signal", lambda signum, handler: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        flags.FLAGS.unparse_flags()
        for name in _FLAGS:  # what the command before was given
            flags.FLAGS[name].unparse()
        monkeypatch.setattr(sys, "argv", ["launch.predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.run(predict_command.main)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return stopped.value.code, out, err

    return run
