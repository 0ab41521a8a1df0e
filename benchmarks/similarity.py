"""All pairs of CKA against a loop of NumPy products, on the same random features.

    python -m benchmarks.similarity

24 runs x 20 layers of 16 to 128 channels x 4,096 voxels. The loop centres both sides and forms the three products of
every pair, as one would write it from the formula. Median of three; compiled before the first.
"""

import functools
import statistics
import time

import jax
import numpy as np

from jaxseg.analysis import similarity

RUNS, VOXELS = 24, 4096
WIDTHS = [16] * 6 + [32] * 6 + [64] * 6 + [128] * 2


def by_loop(features: np.ndarray) -> np.ndarray:
    """The formula, pair by pair."""
    values = np.zeros((len(features), len(features)))
    for i, x in enumerate(features):
        for j, y in enumerate(features):
            a, b = x - x.mean(0), y - y.mean(0)
            values[i, j] = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    return values


def main() -> None:
    """Prints seconds of both and the largest difference."""
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(RUNS, VOXELS, width)).astype(np.float32) for width in WIDTHS]
    at_once = jax.jit(functools.partial(similarity.all_pairs, similarity.cka_measure(debiased=False)))
    for width in set(WIDTHS):
        jax.block_until_ready(at_once(layers[WIDTHS.index(width)]))
    seconds: dict[str, list[float]] = {"at once": [], "loop": []}
    for _ in range(3):
        for name, function in (("at once", at_once), ("loop", by_loop)):
            began = time.perf_counter()
            found = [np.asarray(function(layer)) for layer in layers]
            seconds[name].append(time.perf_counter() - began)
            if name == "at once":
                ours = found
        apart = max(float(np.abs(a - b).max()) for a, b in zip(ours, found, strict=True))
    ours_s, loop_s = (statistics.median(values) for values in seconds.values())
    print(f"at once {ours_s:.2f} s, loop {loop_s:.2f} s: {loop_s / ours_s:.1f} times as fast, {apart:.0e} apart")


if __name__ == "__main__":
    main()
