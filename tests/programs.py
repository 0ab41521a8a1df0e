"""Programs of this repository as a user starts them, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def run(module: str, *arguments: object, cwd: Path = ROOT) -> str:
    """What `python -m module arguments` prints; it must end well.

    Args:
        module: Of tools, benchmarks or launch.
        arguments: Of the command line.
        cwd: Folder in which it is started; modules that are there stand in for those of this repository.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout
