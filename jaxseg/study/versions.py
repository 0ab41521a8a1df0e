"""With what a study is made: the device, the versions of what matters, the commit of the code."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import jax

VERSIONS = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "scipy")


def made_with() -> dict[str, Any]:
    """The device, versions and commit of this process, as JSON."""
    device = jax.local_devices()[0]
    return {
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "git_commit": git_commit(),
    }


@functools.cache
def git_commit() -> str | None:
    """The commit of the code that runs; None outside a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
