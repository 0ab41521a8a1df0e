"""Seconds per seed and training step, for workloads, strategies and precisions, beside PyTorch's.

    python -m launch.benchmark [--workload=NAME[,NAME]] [--json=FILE] [--seeds=8] [--strategy=loop,vmap]
        [--precision=float32,bfloat16] [--frozen] [--repeats=5] [--trace=DIR]

Every contestant runs in a process of its own and is asked for one sample in turn, so that all see the same machine.
PyTorch trains one seed in eager mode with its default layout; it is left out where torch is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from launch.benchmark_step import convolution_flops

WORKLOADS: dict[str, dict[str, Any]] = {
    "unet3d_32": {"network": "unet", "ndim": 3, "widths": [16, 32, 64], "patch": 32, "batch": 2},
    "unet3d_48": {"network": "unet", "ndim": 3, "widths": [16, 32, 64], "patch": 48, "batch": 2},
    "unet3d_64": {"network": "unet", "ndim": 3, "widths": [16, 32, 64, 128], "patch": 64, "batch": 1},
    "unet3d_96": {"network": "unet", "ndim": 3, "widths": [16, 32, 64, 128], "patch": 96, "batch": 1},
    "unet2d_128": {"network": "unet", "ndim": 2, "widths": [16, 32, 64, 128], "patch": 128, "batch": 8},
    "multiscale3d_32": {"network": "multiscale_fcn", "ndim": 3, "widths": [14, 28, 56, 112], "patch": 32, "batch": 2},
    "multiscale3d_64": {"network": "multiscale_fcn", "ndim": 3, "widths": [14, 28, 56, 112], "patch": 64, "batch": 1},
    "vnet3d_32": {"network": "vnet", "ndim": 3, "widths": [16, 32, 64, 128, 256], "patch": 32, "batch": 2},
}
TARGETS = ("unet3d_32", "unet3d_64", "unet3d_96", "unet2d_128")
CLASSES = 3

_WORKLOAD = flags.DEFINE_list("workload", list(TARGETS), f"Any of {', '.join(WORKLOADS)}.")
_JSON = flags.DEFINE_string("json", None, "File for the rows.")
_SEEDS = flags.DEFINE_integer("seeds", 8, "Seeds trained together.", lower_bound=1)
_STRATEGY = flags.DEFINE_list("strategy", ["auto"], "Any of auto, loop, vmap.")
_PRECISION = flags.DEFINE_list("precision", ["float32"], "Any of float32, bfloat16.")
_FROZEN = flags.DEFINE_bool("frozen", False, "Train with a frozen encoder.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Samples of each contestant; the table holds their median.", lower_bound=1
)
_DEVICES = flags.DEFINE_integer("devices", None, "CPU devices of our process; the number of cores by default.")
_TRACE = flags.DEFINE_string("trace", None, "Folder for a profiler trace of one more sample of each of ours.")


class Contestant:
    """A process that takes one sample for every line it is sent."""

    def __init__(self, module: str, settings: dict[str, Any]):
        self.settings = settings
        command = [sys.executable, "-m", module, json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._read()
        self.samples: list[dict[str, float]] = []

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.settings}: the process ended with status {self.process.wait()}")
        return json.loads(line)

    def sample(self, trace: str = "") -> dict[str, Any]:
        """One sample; its seconds are per seed and step."""
        assert self.process.stdin is not None
        self.process.stdin.write(trace + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def product_ceiling() -> float:
    """Floating-point operations a second of a large float32 product on this machine, all cores."""
    rng = np.random.default_rng(0)
    a = jax.device_put(rng.normal(size=(2048, 2048)).astype(np.float32))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def compare(name: str, precision: str) -> list[dict[str, Any]]:
    """Rows of one workload at one precision: ours by strategy, then PyTorch's."""
    workload = WORKLOADS[name]
    cores, platform = len(os.sched_getaffinity(0)), jax.default_backend()
    common = {**workload, "classes": CLASSES, "precision": precision, "frozen": _FROZEN.value, "platform": platform}
    steps = 1 if workload["patch"] ** workload["ndim"] * workload["batch"] > 10**5 else 3
    devices = _DEVICES.value or (min(cores, _SEEDS.value) if platform == "cpu" else len(jax.local_devices()))
    ours = {"seeds": _SEEDS.value, "devices": devices, "steps": steps}
    contestants = [
        Contestant("launch.benchmark_step", {**common, **ours, "strategy": strategy}) for strategy in _STRATEGY.value
    ]
    if importlib.util.find_spec("torch"):
        peer = {"seeds": 1, "strategy": "eager", "threads": cores, "steps": steps, "channels_last": False}
        contestants.append(Contestant("launch.torch_peer", {**common, **peer, "compiled": False}))
    for _ in range(_REPEATS.value):
        for contestant in contestants:
            contestant.samples.append(contestant.sample())
    rows, flops = [], convolution_flops(common)
    for contestant in contestants:
        settings = contestant.settings
        framework = "torch" if settings["strategy"] == "eager" else "jaxseg"
        if _TRACE.value and framework == "jaxseg":
            contestant.sample(str(Path(_TRACE.value) / f"{name}_{settings['strategy']}_{precision}"))
        contestant.close()
        rows.append(
            {
                "workload": name,
                "framework": framework,
                "version": contestant.ready["version"],
                "strategy": settings["strategy"],
                "seeds": settings["seeds"],
                "precision": precision,
                "frozen": settings["frozen"],
                "seconds_per_seed_step": statistics.median(sample["seconds"] for sample in contestant.samples),
                "fastest": min(sample["seconds"] for sample in contestant.samples),
                "slowest": max(sample["seconds"] for sample in contestant.samples),
                "compile_seconds": contestant.ready["compile_seconds"],
                "peak_bytes": max(sample["peak_bytes"] for sample in contestant.samples),
                "convolution_flops": flops,
            }
        )
    return rows


def main(argv: Sequence[str]) -> None:
    """Print the table; write the rows."""
    del argv
    for option, values, allowed in (
        ("workload", _WORKLOAD.value, tuple(WORKLOADS)),
        ("strategy", _STRATEGY.value, ("auto", "loop", "vmap")),
        ("precision", _PRECISION.value, ("float32", "bfloat16")),
    ):
        unknown = [value for value in values if value not in allowed]
        if unknown:
            print(f"--{option}={','.join(values)}: {unknown[0]!r} is none of {', '.join(allowed)}", file=sys.stderr)
            sys.exit(2)
    ceiling = product_ceiling()
    device = jax.devices()[0].device_kind
    print(f"{device}, {len(os.sched_getaffinity(0))} cores; large float32 products: {ceiling / 1e9:.0f} GFLOP/s")
    print(f"{'workload':16}{'framework':10}{'strategy':9}{'seeds':>6}{'precision':>10}{'s/seed-step':>13}"
          f"{'range':>18}{'of torch':>9}{'compile s':>10}{'peak GB':>8}{'roofline':>9}")  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name in _WORKLOAD.value:
        for precision in _PRECISION.value:
            new = compare(name, precision)
            peer = {row["framework"]: row["seconds_per_seed_step"] for row in new}.get("torch", float("nan"))
            for row in new:
                seconds = row["seconds_per_seed_step"]
                row["ratio_to_torch"] = seconds / peer
                # Above 1 where fewer operations were done than a plain convolution needs.
                row["roofline_share"] = row["convolution_flops"] / seconds / ceiling
                print(f"{name:16}{row['framework']:10}{row['strategy']:9}{row['seeds']:6}{precision:>10}"
                      f"{seconds:13.4f}{row['fastest']:9.4f}-{row['slowest']:8.4f}{row['ratio_to_torch']:9.2f}"
                      f"{row['compile_seconds']:10.1f}{row['peak_bytes'] / 1e9:8.2f}{row['roofline_share']:9.2f}",
                      flush=True)  # fmt: skip
            rows += new
            if _JSON.value:
                Path(_JSON.value).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
