"""Records what a study is made with: the device, the versions of libraries, and the commit of the code."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

VERSIONS = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "scipy")


def made_with() -> dict[str, Any]:
    """Returns the device, versions and commit of this process, as JSON."""
    device = jax.local_devices()[0]
    return {
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "git_commit": git_commit(),
    }


def ways(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns each `made_with` that a checkpoint's training has seen, in order; empty if it names none."""
    last = meta.get("made_with")
    return [*meta.get("made_with_before", ()), *([last] if last else ())]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describes what differs between two `made_with`; empty if nothing does.

    >>> changes({"versions": {"jax": "0.10.0"}}, {"versions": {"jax": "0.10.1"}})
    'jax 0.10.0 -> 0.10.1'
    """
    devices = before.get("device", {}), now.get("device", {})
    pairs = [
        ("code", before.get("git_commit"), now.get("git_commit")),
        *((f"device {name}", *(device.get(name) for device in devices)) for name in ("kind", "count")),
        *((name, before["versions"].get(name), version) for name, version in now["versions"].items()),
    ]
    return ", ".join(f"{name} {old or 'unknown'} -> {new or 'unknown'}" for name, old, new in pairs if old != new)


@functools.cache
def git_commit() -> str | None:
    """Returns the commit of the running code; None outside a checkout."""
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
