"""Programs of this repository as a user starts them, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def start(module: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments`, ended; modules that are in `cwd` stand in for those of this repository."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run(module: str, *arguments: object, cwd: Path = ROOT) -> str:
    """What a program prints that must end well."""
    done = start(module, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout
