"""Seconds per seed and training step, for workloads, strategies and precisions, beside PyTorch's.

    python -m launch.benchmark [--workload=NAME[,NAME]] [--seeds=1,2,4,8] [--patch=32,48,64] [--strategy=loop,vmap]
        [--form=native,joined] [--precision=float32,tf32,bfloat16] [--frozen] [--repeats=5] [--jobs=1]
        [--json=FILE] [--plot=FILE.svg] [--trace=DIR]

Every contestant runs in a process of its own and is asked for one sample in turn, so that all see the same machine.
PyTorch trains one seed; it is left out where torch is not installed. On a machine that does other work nothing is
measured: two threads that wait for each other slow PyTorch fourfold. Where the work is an accelerator's, --jobs lets
several contestants compile at the same time; they are still sampled one at a time.
"""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import statistics
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.contestants import Contestant, busy_cores
from benchmarks.jaxseg_step import step_work
from jaxseg.machine import cores as cores_of_process
from jaxseg.models.conv import FORMS
from jaxseg.settings.schema import Precision
from jaxseg.study.plan.cost import measure_speed
from jaxseg.types import UserError
from launch import cli

WORKLOADS: dict[str, dict[str, Any]] = {
    "unet3d_32": {"network": "unet", "ndim": 3, "widths": [16, 32, 64], "patch": 32, "batch": 2},
    "unet3d_48": {"network": "unet", "ndim": 3, "widths": [16, 32, 64], "patch": 48, "batch": 2},
    "unet3d_64": {"network": "unet", "ndim": 3, "widths": [16, 32, 64, 128], "patch": 64, "batch": 1},
    "unet3d_96": {"network": "unet", "ndim": 3, "widths": [16, 32, 64, 128], "patch": 96, "batch": 1},
    "unet2d_128": {"network": "unet", "ndim": 2, "widths": [16, 32, 64, 128], "patch": 128, "batch": 8},
    "multiscale3d_32": {"network": "multiscale_fcn", "ndim": 3, "widths": [14, 28, 56, 112], "patch": 32, "batch": 2},
    "multiscale3d_64": {"network": "multiscale_fcn", "ndim": 3, "widths": [14, 28, 56, 112], "patch": 64, "batch": 1},
    "smallest": {"network": "unet", "ndim": 2, "widths": [2, 4], "patch": 8, "batch": 1},
    "vnet3d_32": {"network": "vnet", "ndim": 3, "widths": [16, 32, 64, 128, 256], "patch": 32, "batch": 2},
}
# `smallest` is there to try the tool.
TARGETS = ("unet3d_32", "unet3d_64", "unet3d_96", "unet2d_128")
CLASSES = 3

_WORKLOAD = flags.DEFINE_list("workload", list(TARGETS), f"Any of {', '.join(WORKLOADS)}.")
_SEEDS = flags.DEFINE_list("seeds", ["8"], "Numbers of seeds trained together.")
_PATCH = flags.DEFINE_list("patch", [], "Patch sizes instead of the workload's own.")
_STRATEGY = flags.DEFINE_list("strategy", ["auto"], "Any of auto, loop, vmap.")
_FORM = flags.DEFINE_list("form", ["auto"], f"Of our convolutions; any of {', '.join(FORMS)}.")
_PRECISION = flags.DEFINE_list("precision", ["float32"], f"Any of {', '.join(typing.get_args(Precision))}.")
_FROZEN = flags.DEFINE_bool("frozen", False, "Train with a frozen encoder.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Samples of each contestant; the table holds their median.", lower_bound=1
)
_DEVICES = flags.DEFINE_integer("devices", None, "CPU devices of our process; the number of cores by default.")
_LIMIT = flags.DEFINE_float(
    "limit", 300.0, "Seconds that compiling or one sample may take before a contestant is ended."
)
_JOBS = flags.DEFINE_integer("jobs", 1, "Contestants that may compile at the same time.", lower_bound=1)
_TORCH = flags.DEFINE_bool("torch", True, "Measure PyTorch too, where it is installed.")
_TORCH_MODE = flags.DEFINE_list("torch_mode", ["eager"], "Any of eager, compiled (torch.compile).")
_TORCH_CHANNELS_LAST = flags.DEFINE_bool("torch_channels_last", False, "Channels-last memory layout for PyTorch.")
_ALLOW_BUSY = flags.DEFINE_bool("allow_busy", False, "Measure although other work uses the machine; the table says so.")
_JSON = cli.path_flag("json", "File for the machine, the rows and all samples.")
_PLOT = cli.path_flag("plot", "File for a figure of time against seeds and patch: .svg, .png or .pdf.")
_TRACE = cli.path_flag("trace", "Folder for a profiler trace of one more sample of each of ours.")

BUSY = 0.15
"""Cores that other processes may use."""


def product_ceiling(precision: str = "float32", side: int = 2048) -> float:
    """Floating-point operations a second of a large product on this machine, all cores.

    Args:
        precision: As `train.precision`.
        side: Rows and columns of its operands, random numbers.
    """
    rng = np.random.default_rng(0)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    a = jax.device_put(rng.normal(size=(side, side)).astype(np.float32)).astype(dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="default" if precision != "float32" else "highest"))
    jax.block_until_ready(product(a))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def make_contestants(name: str, patch: int, seeds: int, precision: str) -> list[Contestant]:
    """Processes of one workload, which compile from now on: ours by strategy and form, then PyTorch's."""
    workload = WORKLOADS[name] | {"patch": patch}
    cores, platform = cores_of_process(), jax.default_backend()
    common = {**workload, "classes": CLASSES, "precision": precision, "frozen": _FROZEN.value, "platform": platform}
    common["sample_seconds"] = None if platform == "cpu" else 0.5
    large = patch ** workload["ndim"] * workload["batch"] > 10**5
    steps = (1 if large else 3) if platform == "cpu" else (10 if large else 40)
    devices = _DEVICES.value or (min(cores, seeds) if platform == "cpu" else len(jax.local_devices()))
    made = []

    def add(module: str, settings: dict[str, Any]) -> None:
        made.append(Contestant(module, common | settings | {"steps": steps}, _LIMIT.value))
        if _JOBS.value == 1:
            made[-1].start()

    for strategy, form in itertools.product(_STRATEGY.value, _FORM.value):
        ours = {"seeds": seeds, "devices": devices, "strategy": strategy, "form": form}
        add("benchmarks.jaxseg_step", ours)
    if _TORCH.value and importlib.util.find_spec("torch"):
        for mode in _TORCH_MODE.value:
            peer = {"seeds": 1, "strategy": mode, "form": "", "threads": cores}
            add("benchmarks.torch_step", common | peer | {"channels_last": _TORCH_CHANNELS_LAST.value})
    return made


def compare(contestants: Sequence[Contestant], name: str) -> list[dict[str, Any]]:
    """Rows of the contestants of one workload, which have started."""
    for _ in range(_REPEATS.value):
        for contestant in contestants:
            contestant.sample()
    rows, work = [], step_work(contestants[0].settings)
    for contestant in contestants:
        settings = contestant.settings
        framework = "torch" if "threads" in settings else "jaxseg"
        if _TRACE.value and framework == "jaxseg":
            about = "_".join(str(settings[key]) for key in ("patch", "seeds", "strategy", "form", "precision"))
            contestant.sample(str(Path(_TRACE.value) / f"{name}_{about}"))
        contestant.close()
        samples = [] if contestant.ended else [sample["seconds"] for sample in contestant.samples]
        rows.append(
            {
                **{"workload": name, "framework": framework, "version": contestant.ready.get("version", "")},
                **{
                    key: settings[key] for key in ("patch", "batch", "strategy", "form", "seeds", "precision", "frozen")
                },
                "seconds_per_seed_step": statistics.median(samples) if samples else math.nan,
                "fastest": min(samples, default=math.nan),
                "slowest": max(samples, default=math.nan),
                "ended": contestant.ended,
                "compile_seconds": contestant.ready.get("compile_seconds", math.nan),
                "peak_bytes": max((sample["peak_bytes"] for sample in contestant.samples), default=math.nan),
                "convolution_flops": work.flops,
                "written_bytes": work.written,
                "samples": samples,
            }
        )
    return rows


def with_ratios(rows: list[dict[str, Any]], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one comparison with `ratio_to_torch` (its fastest), `roofline_share` and `written_share`.

    The shares are the time that the products of a plain convolution, and the bytes written between them, would take at
    the machine's ceilings, each of the time measured. Together they may exceed 1: where fewer operations are done than
    a plain convolution needs, and where operations are fused.
    """
    peers = [row["seconds_per_seed_step"] for row in rows if row["framework"] == "torch" and not row["ended"]]
    peer = min(peers, default=math.nan)
    for row in rows:
        seconds = row["seconds_per_seed_step"]
        row["ratio_to_torch"] = seconds / peer
        row["roofline_share"] = row["convolution_flops"] / seconds / about["product_flops_per_second"][row["precision"]]
        row["written_share"] = row["written_bytes"] / seconds / about["written_bytes_per_second"]
    return rows


def format_row(row: dict[str, Any]) -> str:
    """A line of the table."""
    about = (
        f"{row['workload']:16}{row['patch']:6}{row['framework']:>9}{row['strategy']:>9}{row['form']:>9}{row['seeds']:6}"
        f"{row['precision']:>10}"
    )
    if row["ended"]:
        return f"{about}   ended: {row['ended']}"
    return (
        f"{about}{row['seconds_per_seed_step']:13.5f}{row['fastest']:10.5f}-{row['slowest']:9.5f}"
        f"{row['ratio_to_torch']:9.2f}{row['compile_seconds']:10.1f}{row['peak_bytes'] / 1e9:8.2f}"
        f"{row['roofline_share']:9.2f}{row['written_share']:9.2f}"
    )


def device_and_versions() -> dict[str, Any]:
    """What the figures belong to: device, cores and versions."""
    packages = ("jaxseg", "jax", "jaxlib", "numpy", *(["torch"] if importlib.util.find_spec("torch") else []))
    return {
        "device": jax.devices()[0].device_kind,
        "cores": cores_of_process(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def machine(busy: float) -> dict[str, Any]:
    """What the figures belong to, and the ceilings of products and of one pass over memory."""
    return {
        **device_and_versions(),
        "product_flops_per_second": {name: product_ceiling(name) for name in dict.fromkeys(_PRECISION.value)},
        "written_bytes_per_second": measure_speed(tuple(jax.local_devices())).written,
        "busy_cores": busy,
    }


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Time of a seed's step against the number of seeds and against the patch, whichever varies; both logarithmic."""
    from matplotlib.figure import Figure

    varied = [x for x in ("seeds", "patch") if len({row[x] for row in rows if row["framework"] == "jaxseg"}) > 1]
    panels = varied or ["seeds"]
    figure = Figure((4.2 * len(panels), 3.2), layout="constrained")
    for axes, x in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        other = "patch" if x == "seeds" else "seeds"
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["framework"] == "jaxseg" or x == "patch":
                name = f"{row['workload']}, {row['framework']}, {row['strategy']}, {other} {row[other]}"
                lines.setdefault(name, []).append((row[x], row["seconds_per_seed_step"]))
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        ticks = sorted({row[x] for row in rows})
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel="seconds per seed and step")
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.legend(fontsize=6)
    figure.savefig(path)


def numbers(option: str, words: Sequence[str]) -> list[int]:
    """Positive whole numbers of a list option.

    Raises:
        UserError: One is none.
    """
    for word in words:
        if not word.isdigit() or not int(word):
            raise UserError(f"--{option}={','.join(words)}: {word!r} is not a number from 1")
    return [int(word) for word in words]


def allowed_busy() -> float:
    """Returns the cores that other processes use now.

    Raises:
        UserError: They use more than `BUSY`, and --allow_busy is not given.
    """
    busy = busy_cores()
    if busy > BUSY and not _ALLOW_BUSY.value:
        raise UserError(
            f"other processes use {busy:.1f} cores, so times would mean nothing; wait for them, or use --allow_busy"
        )
    return busy


def main() -> None:
    """Prints the table; writes the rows."""
    for option, values, allowed in (
        ("workload", _WORKLOAD.value, tuple(WORKLOADS)),
        ("strategy", _STRATEGY.value, ("auto", "loop", "vmap")),
        ("form", _FORM.value, FORMS),
        ("precision", _PRECISION.value, typing.get_args(Precision)),
        ("torch_mode", _TORCH_MODE.value, ("eager", "compiled")),
    ):
        unknown = [value for value in values if value not in allowed]
        if unknown:
            raise UserError(f"--{option}={','.join(values)}: {unknown[0]!r} is none of {', '.join(allowed)}")
    # This process and the contestants share an accelerator, so each may hold only what it uses at the time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    seeds, patches = numbers("seeds", _SEEDS.value), numbers("patch", _PATCH.value)
    busy = allowed_busy()
    about = machine(busy)
    products = ", ".join(f"{name} {speed / 1e9:.0f}" for name, speed in about["product_flops_per_second"].items())
    print(f"{about['device']}, {about['cores']} cores; large products, GFLOP/s: {products}; "
          f"passes over memory {about['written_bytes_per_second'] / 1e9:.1f} GB/s"
          + (f"; BUSY: other processes used {busy:.1f} cores" if busy > BUSY else ""))  # fmt: skip
    print(
        f"{'workload':16}{'patch':>6}{'':>9}{'strategy':>9}{'form':>9}{'seeds':>6}{'precision':>10}{'s/seed-step':>13}"
        f"{'range':>20}{'of torch':>9}{'compile s':>10}{'peak GB':>8}{'products':>9}{'written':>9}",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    cells = [
        (name, patch, count, precision)
        for name, count, precision in itertools.product(_WORKLOAD.value, seeds, _PRECISION.value)
        for patch in patches or [WORKLOADS[name]["patch"]]
    ]
    waiting: collections.deque[tuple[str, list[Contestant]]] = collections.deque()
    while cells or waiting:
        while cells and sum(len(made) for _, made in waiting) < _JOBS.value:
            waiting.append((cells[0][0], make_contestants(*cells.pop(0))))
        for _, made in waiting:  # nothing is measured while another compiles
            for contestant in made:
                contestant.start()
        name, made = waiting.popleft()
        new = with_ratios(compare(made, name), about)
        print("\n".join(map(format_row, new)), flush=True)
        rows += new
        if _JSON.value:
            Path(_JSON.value).write_text(
                json.dumps({"machine": about, "rows": rows}, indent=2) + "\n", encoding="utf-8"
            )
    if _PLOT.value:
        draw(rows, _PLOT.value)
