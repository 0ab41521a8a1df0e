"""Commands that read a finished study, in this process, for tests of what they write and say."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from absl import flags

from launch import cli
from launch import predict as predict_command

Command = Callable[..., tuple[int, str, str]]


def content(folder: Path) -> dict[str, str]:
    """Checksums of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Callable[[], None] = predict_command.main
) -> Command:
    """A function of the command's arguments; it gives the exit status, stdout and stderr."""
    # JAX is set up by conftest, and pytest needs its own signal handlers.
    monkeypatch.setattr(cli, "setup_jax", lambda: None)
    monkeypatch.setattr(cli.signal, "signal", lambda signum, handler: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # fields of a config that the command before was given
        for module, found in flags.FLAGS.flags_by_module_dict().items():
            if module.startswith("launch."):
                for flag in found:
                    flag.unparse()  # what the command before was given
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.run(main)
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return stopped.value.code, out, err

    return run
