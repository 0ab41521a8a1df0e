"""Sliding-window prediction of a set of cases against the network alone, and what it holds in memory.

    python -m benchmarks.prediction [--cases 8] [--seeds 1 4] [--runs 3]

Shapes are those of hippocampus_mr. The network alone: the same compiled program on the same number of batches, its
input on the device and its output left there. Whole: cutting, prediction, stitching, label maps of all seeds. PyTorch,
where it is installed: one seed, as many windows at a time, in turn with ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.contestants import Contestant
from jaxseg import inference, seeds
from jaxseg.models import make_model
from jaxseg.settings import ModelSettings

PATCH, OVERLAP, BATCH, CLASSES, WIDTHS = (32, 32, 32), 0.5, 8, 3, (16, 32, 64)


def _model(widths: tuple[int, ...], kernels: tuple[tuple[int, ...], ...] = ()) -> ModelSettings:
    return ModelSettings(widths=widths, kernels=kernels)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _mapped(settings: ModelSettings, num_runs: int) -> Callable[[np.ndarray], jax.Array]:
    """Prediction of a batch of windows by all runs, its result still on the devices."""
    plan = seeds.make_plan(num_runs)
    model = make_model(settings, classes=CLASSES)
    one = jax.jit(model.init)(jax.random.key(0), np.zeros((1, *PATCH, 1), np.float32))["params"]
    params = seeds.put(jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * num_runs), one), plan)
    of_windows = inference.make_window_predict(model, one_by_one=plan.strategy == "loop")
    mapped = seeds.map_seeds(of_windows, plan=plan, shared=(1, 2))
    return lambda windows: mapped(params, {}, seeds.replicate(windows, plan))


def time_a_set(num_cases: int, num_runs: int, runs: int) -> str:
    """One row: seconds of the network alone and of the whole, and their ratio."""
    rng = np.random.default_rng(0)
    shapes = rng.integers((31, 40, 24), (44, 60, 48), (num_cases, 3))
    images = [rng.normal(size=(*shape, 1)).astype(np.float32) for shape in shapes]
    mapped = _mapped(_model(WIDTHS), num_runs)
    count = -(-sum(len(inference.window_starts(shape, PATCH, OVERLAP)) for shape in shapes) // BATCH)
    batch = rng.normal(size=(BATCH, *PATCH, 1)).astype(np.float32)
    compiling = _seconds(lambda: jax.block_until_ready(mapped(batch)))

    def alone() -> None:
        for _ in range(count):
            jax.block_until_ready(mapped(batch))

    def whole() -> None:
        options: dict[str, Any] = {"patch": PATCH, "overlap": OVERLAP, "window_batch": BATCH}
        slabs = inference.predict_slabs(lambda windows: np.asarray(mapped(windows)), images, **options)
        for _, of_case in itertools.groupby(slabs, key=lambda slab: slab.case):
            np.concatenate([slab.probabilities.argmax(-1).astype(np.uint8) for slab in of_case], axis=1)

    peers = [_peer(shapes)] if importlib.util.find_spec("torch") else []
    times = []
    for _ in range(runs):
        times.append((_seconds(alone), _seconds(whole)))
        for peer in peers:
            peer.sample()
    for peer in peers:
        peer.close()
    a, b = (float(np.median(column)) for column in zip(*times, strict=True))
    loop = float(np.median([sample["seconds"] for peer in peers for sample in peer.samples] or np.nan))
    return (
        f"| {num_runs} | {num_cases} | {count} | {compiling:.1f} | {a:.2f} | {b:.2f} | {b / a:.2f} | {loop:.2f} | "
        f"{b / num_runs / loop:.2f} |"
    )


def _peer(shapes: np.ndarray) -> Contestant:
    made = {"patch": PATCH, "overlap": OVERLAP, "classes": CLASSES, "widths": WIDTHS, "shapes": shapes.tolist()}
    peer = Contestant(
        "benchmarks.torch_windows", made | {"batch": BATCH, "threads": len(os.sched_getaffinity(0))}, limit=600.0
    )
    peer.start()
    return peer


def memory(side: int) -> str:
    """One row: bytes on the device and of the process at most, while a cube is predicted by a small network."""
    mapped = _mapped(_model((4,), ((1, 1, 1),)), 4)
    held = 0

    def predict(windows: np.ndarray) -> np.ndarray:
        nonlocal held
        result = mapped(windows)
        held = max(held, sum(array.nbytes for array in jax.live_arrays()))
        return np.asarray(result)

    image = np.zeros((side, side, side, 1), np.float32)
    for _ in inference.predict_slabs(predict, [image], patch=PATCH, overlap=0.0, window_batch=BATCH):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = 4 * CLASSES * 4 * side**3 / 2**20
    return f"| {side}^3 | {held / 2**20:.1f} | {peak:.0f} | {whole:.0f} |"


def main() -> None:
    """Prints both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    print(f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}; medians of {options.runs}, seconds\n")
    head = "| side | MiB on the device | MiB of the process | MiB of float probabilities |"
    print(f"{head}\n| --- | --- | --- | --- |")
    for side in (64, 128, 256):
        print(memory(side), flush=True)
    head = "| seeds | cases | batches | compiling | network alone | whole | ratio | PyTorch | of it, ours a seed |"
    print(f"\n{head}\n|{' --- |' * 9}")
    for num_runs in options.seeds:
        print(time_a_set(options.cases, num_runs, options.runs), flush=True)


if __name__ == "__main__":
    main()
