"""What a GPU makes of a seed's step: every network, one seed and many, beside PyTorch's ways to train them.

    python -m benchmarks.gpu FOLDER [--limit=150] [--jobs=32] [--only=unet3d_32] [--quick]

Contestants compile at the same time, `--jobs` of them, and are then sampled in turn, alone on the GPU. FOLDER gets
`gpu.json` (the machine, every row, all samples) and `gpu.md` (the table). A contestant that has not compiled after
`--limit` seconds is left out, and its row says so. `--quick` tries the tool on any machine with the smallest workload.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.contestants import Contestant
from benchmarks.jaxseg_step import step_work
from benchmarks.training import CLASSES, WORKLOADS, device_and_versions, product_ceiling
from jaxseg.machine import cores
from launch import terminal

NHWC = "--xla_gpu_force_conv_nhwc=true"
MANY = {"unet3d_96": 8}
"""Seeds of a workload in one job; 16 of the others."""


class Entry(NamedTuple):
    """One contestant: what it trains, how many seeds of it, in which precision, and how."""

    workload: str
    seeds: int
    precision: str
    framework: str = "jaxseg"
    way: str = "auto"
    xla_flags: str = ""


def entries() -> Iterator[Entry]:
    """Returns the contestants, those that are asked for most first."""
    for precision in ("bfloat16", "tf32"):
        for seeds in (1, 16):
            yield Entry("unet3d_32", seeds, precision)
        yield Entry("unet3d_32", 16, precision, xla_flags=NHWC)
    yield Entry("unet3d_32", 32, "bfloat16")
    for way in ("eager", "compiled", "graphs"):
        yield Entry("unet3d_32", 1, "bfloat16", "torch", way)
    for way in ("stacked", "stacked_compiled"):
        yield Entry("unet3d_32", 16, "bfloat16", "torch", way)
    for workload in ("unet3d_64", "unet2d_128", "unet3d_96", "vnet3d_32", "multiscale3d_32"):
        for seeds in (1, MANY.get(workload, 16)):
            yield Entry(workload, seeds, "bfloat16")
        yield Entry(workload, 1, "bfloat16", "torch", "graphs")


def quick_entries() -> Iterator[Entry]:
    """Returns contestants that any machine has compiled in a moment."""
    for seeds in (1, 2):
        yield Entry("smallest", seeds, "float32")
    for seeds, way in ((1, "eager"), (2, "stacked")):
        yield Entry("smallest", seeds, "float32", "torch", way)


def make_contestant(entry: Entry, limit: float) -> Contestant:
    """Starts a contestant, which compiles from now on."""
    platform = jax.default_backend()
    workload = WORKLOADS[entry.workload]
    large = workload["patch"] ** workload["ndim"] * workload["batch"] * entry.seeds > 10**6
    common = {**workload, "classes": CLASSES, "precision": entry.precision, "frozen": False, "platform": platform}
    common |= {"seeds": entry.seeds, "strategy": entry.way, "steps": 10 if large else 40, "sample_seconds": 0.3}
    if entry.framework == "torch":
        peer = {"threads": cores(), "channels_last": True, "form": ""}
        return Contestant("benchmarks.torch_step", common | peer, limit)
    ours = {"devices": 1, "form": "auto"}
    return Contestant("benchmarks.jaxseg_step", common | ours, limit, entry.xla_flags)


def row_of(entry: Entry, contestant: Contestant, ceilings: dict[str, float]) -> dict[str, Any]:
    """Times of a contestant, and the share of the GPU's products that they are."""
    samples = [] if contestant.ended else [sample["seconds"] for sample in contestant.samples]
    median = statistics.median(samples) if samples else math.nan
    flops = step_work(contestant.settings).flops
    return {
        **entry._asdict(),
        "ms_per_seed_step": 1e3 * median,
        "fastest": 1e3 * min(samples, default=math.nan),
        "slowest": 1e3 * max(samples, default=math.nan),
        "ended": contestant.ended,
        "compile_seconds": contestant.ready.get("compile_seconds", math.nan),
        "peak_bytes": max((sample["peak_bytes"] for sample in contestant.samples), default=math.nan),
        "convolution_flops": flops,
        "roofline_share": flops / median / ceilings[entry.precision],
        "samples": samples,
    }


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a table, with each row's speed against one seed alone and against the fastest PyTorch."""
    lines = [
        "| workload | seeds | precision | how | ms a seed-step (range) | one seed alone | fastest PyTorch "
        "| of the product ceiling | memory, GB | compiling, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        how = " ".join(filter(None, ("PyTorch," if row["framework"] == "torch" else "", row["way"], row["xla_flags"])))
        begin = f"| `{row['workload']}` | {row['seeds']} | {row['precision']} | {how} |"
        if row["ended"]:
            lines.append(f"{begin} {row['ended']} | | | | | |")
            continue
        lines.append(
            f"{begin} {row['ms_per_seed_step']:.3f} ({row['fastest']:.3f}-{row['slowest']:.3f}) "
            f"| {times(row, rows, 'jaxseg', alone=True)} | {times(row, rows, 'torch')} | {row['roofline_share']:.3f} "
            f"| {row['peak_bytes'] / 1e9:.2f} | {row['compile_seconds']:.0f} |"
        )
    return "\n".join(lines)


def times(row: dict[str, Any], rows: Sequence[dict[str, Any]], framework: str, alone: bool = False) -> str:
    """Returns how many times faster a row is than the fastest of a framework, on one workload and in one precision."""
    same = [
        other["ms_per_seed_step"]
        for other in rows
        if other["framework"] == framework
        and (other["workload"], other["precision"]) == (row["workload"], row["precision"])
        and (other["seeds"] == 1 or not alone)
        and not other["ended"]
    ]
    return f"{min(same) / row['ms_per_seed_step']:.2f}" if same and row["framework"] == "jaxseg" else ""


def measure(chosen: Sequence[Entry], limit: float, repeats: int, jobs: int) -> list[dict[str, Any]]:
    """Lets contestants compile, `jobs` at a time, and samples those that did in turn."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    contestants: list[Contestant] = []
    for i, entry in enumerate(chosen):
        if i >= jobs:
            contestants[i - jobs].start()
        contestants.append(make_contestant(entry, limit))
    for entry, contestant in zip(chosen, contestants, strict=True):
        contestant.start()
        terminal.say(f"{entry}: {contestant.ended or contestant.ready['compile_seconds']}")
    for _ in range(repeats):
        for contestant in contestants:
            contestant.sample()
    ceilings = {precision: product_ceiling(precision, side) for precision in sorted({e.precision for e in chosen})}
    for contestant in contestants:
        contestant.close()
    return [row_of(*both, ceilings) for both in zip(chosen, contestants, strict=True)]


def main() -> None:
    """Measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=float, default=150, help="seconds to start and compile, and for a sample")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each")
    parser.add_argument("--jobs", type=int, default=32, help="contestants that compile at the same time")
    parser.add_argument("--only", default="", help="workloads, joined by commas")
    parser.add_argument("--quick", action="store_true", help="the smallest workload, on any machine")
    asked = parser.parse_args()
    # All share the GPU, so each may hold only what it uses.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    only = tuple(filter(None, asked.only.split(",")))
    chosen = [
        entry
        for entry in (quick_entries() if asked.quick else entries())
        if (not only or entry.workload in only) and (entry.framework != "torch" or importlib.util.find_spec("torch"))
    ]
    rows = measure(chosen, asked.limit, asked.repeats, asked.jobs)
    about = device_and_versions() | {"limit": asked.limit, "jobs": asked.jobs, "repeats": asked.repeats}
    asked.folder.mkdir(parents=True, exist_ok=True)
    known = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # without NaN
    text = json.dumps({"machine": about, "rows": known}, indent=1)
    (asked.folder / "gpu.json").write_text(f"{text}\n", encoding="utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    table = f"{about['device']}, {about['cores']} cores; {versions}\n\n{as_table(rows)}\n"
    (asked.folder / "gpu.md").write_text(table, encoding="utf-8")
    terminal.say(table)


if __name__ == "__main__":
    main()
