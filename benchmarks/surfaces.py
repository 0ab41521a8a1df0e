"""All metrics of a 160^3 case against MedPy's hd95 alone: medians of alternating runs, printed as a table.

python -m benchmarks.surfaces [--runs 5]
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from medpy.metric import binary

from jaxseg import metrics

SIDE = 160
SPACING = (1.0, 1.0, 1.25)


def _ball(centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices((SIDE,) * 3).astype(np.float32)
    return np.sum((grid - np.array(centre, np.float32)[:, None, None, None]) ** 2, 0) < radius**2


def _pairs(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Predictions as they come: good, shifted, ragged, far too small, speckled, elsewhere, noise."""
    large = _ball((80, 80, 80), 60)
    shell = _ball((80, 80, 80), 62) & ~_ball((80, 80, 80), 58)
    yield "balls of 60 and 58, 4 voxels apart", _ball((84, 79, 82), 58), large
    yield "the same ball, ragged surface", large ^ (shell & (rng.random(large.shape) < 0.2)), large
    yield "ball of 10 in the middle of one of 60", _ball((80, 80, 80), 10), large
    yield "two balls of 15, far corners", _ball((20, 20, 20), 15), _ball((140, 140, 140), 15)
    yield "ball and 1 % speckle everywhere", large | (rng.random(large.shape) < 0.01), large
    yield "ball against everything", np.ones_like(large), large
    yield "noise", rng.random(large.shape) < 0.5, large


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"{platform.processor() or platform.machine()}, NumPy {np.__version__}; medians of {runs}, seconds\n")
    print("| 160^3 case | MedPy hd95 | all of ours | ratio | DSC alone |\n| --- | --- | --- | --- | --- |")
    options: dict[str, Any] = {"labels": ("a",), "spacing_mm": SPACING, "unit": "mm", "hd_definition": "pooled"}
    options |= {"surface_empty": "nan", "tolerance_mm": 1.0}
    for name, pred, ref in _pairs(np.random.default_rng(0)):
        maps = pred.astype(np.uint8), ref.astype(np.uint8)
        peer, ours, dsc = [], [], []
        for _ in range(runs):
            peer.append(_seconds(functools.partial(binary.hd95, pred, ref, SPACING)))
            ours.append(_seconds(functools.partial(metrics.case_metrics, *maps, **options)))
            dsc.append(_seconds(functools.partial(metrics.dsc, pred, ref)))
        a, b, c = (float(np.median(x)) for x in (peer, ours, dsc))
        print(f"| {name} | {a:.2f} | {b:.3f} | {a / b:.1f} | {c:.4f} |", flush=True)


if __name__ == "__main__":
    main()
