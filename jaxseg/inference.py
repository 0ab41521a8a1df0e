"""Sliding-window prediction: one program for a fixed batch of windows, whatever the shapes of the cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from jaxseg import trees
from jaxseg.types import Frozen, Params


def make_window_predict(
    model: nn.Module,
) -> Callable[[Params, Frozen, Float[Array, "windows *patch channels"]], Float[Array, "windows *patch classes"]]:
    """Class probabilities of a batch of windows, for one run; dropout off."""

    def predict(
        params: Params, frozen: Frozen, windows: Float[Array, "windows *patch channels"]
    ) -> Float[Array, "windows *patch classes"]:
        logits: Any = model.apply({"params": trees.merge(params, frozen)}, windows, train=False)
        return jax.nn.softmax(logits)

    return predict


def window_starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """Corners of the windows that cover a case, evenly spread, neighbours sharing at least `overlap` of a window.

    An axis shorter than the patch has one window, centred: its start is negative and the outside is padding.
    """
    axes = []
    for length, size in zip(shape, patch, strict=True):
        if length <= size:
            axes.append([-((size - length) // 2)])
            continue
        stride = max(int(size * (1.0 - overlap)), 1)
        count = -(-(length - size) // stride) + 1
        axes.append([round(index * (length - size) / (count - 1)) for index in range(count)])
    return list(itertools.product(*axes))


def window_weight(patch: Sequence[int]) -> Float[np.ndarray, "*patch"]:
    """Weights of a window's voxels: a Gaussian of sd 1/8 of the patch around its centre (as nnU-Net), at least 1e-3."""
    axes = [np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2) for size in patch]
    weight = np.ones(())
    for axis in axes:
        weight = np.multiply.outer(weight, axis)
    return np.maximum(weight, 1e-3).astype(np.float32)


class _Window(NamedTuple):
    case: int
    inside: tuple[slice, ...]
    """The part of the window inside the case, in window coordinates."""
    target: tuple[slice, ...]
    """The same part in case coordinates."""


def _cut(shape: Sequence[int], patch: Sequence[int], start: Sequence[int], case: int) -> _Window:
    low = [max(-begin, 0) for begin in start]
    high = [min(length - begin, size) for length, size, begin in zip(shape, patch, start, strict=True)]
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(begin + a, begin + b) for begin, a, b in zip(start, low, high, strict=True))
    return _Window(case, inside, target)


def predict_cases(
    predict: Callable[[Float[np.ndarray, "windows *patch channels"]], Float[np.ndarray, "run windows *patch classes"]],
    images: Iterable[Float[np.ndarray, "*spatial channels"]],
    *,
    patch: tuple[int, ...],
    overlap: float,
    window_batch: int,
) -> Iterator[Float[np.ndarray, "run *spatial classes"]]:
    """Probabilities of whole cases, for all runs at once, case after case.

    Windows of successive cases share batches, so that the compiled program always sees `window_batch` windows. Where
    a case is smaller than the patch the outside is 0, as in training. Memory beside one batch is one case's
    probabilities per run.

    Args:
        predict: Compiled prediction of a batch of windows for all runs.
        images: Cases on the training grid, read one by one as windows are cut.
        patch: Window size.
        overlap: Least shared part of neighbouring windows, in [0, 1).
        window_batch: Windows in one call.

    Yields:
        One array per case, in order; probabilities sum to 1 over classes.
    """
    weight = window_weight(patch)
    batch: list[tuple[_Window, np.ndarray]] = []
    sums: dict[int, np.ndarray] = {}
    totals: dict[int, np.ndarray] = {}
    left: dict[int, int] = {}
    done = 0

    def flush() -> None:
        windows = np.zeros((window_batch, *patch, batch[0][1].shape[-1]), np.float32)
        for row, (window, voxels) in enumerate(batch):
            windows[row][window.inside] = voxels
        probabilities = np.asarray(predict(windows))
        for row, (window, _) in enumerate(batch):
            part = weight[window.inside]
            case = window.case
            if case not in sums:
                shape = totals[case].shape
                sums[case] = np.zeros((len(probabilities), *shape, probabilities.shape[-1]), np.float32)
            for total, prediction in zip(sums[case], probabilities[:, row], strict=True):
                total[window.target] += prediction[window.inside] * part[..., None]
            totals[case][window.target] += part
            left[case] -= 1
        batch.clear()

    def finished() -> Iterator[np.ndarray]:
        nonlocal done
        while left.get(done) == 0:
            yield sums.pop(done) / totals.pop(done)[..., None]
            del left[done]
            done += 1

    for case, image in enumerate(images):
        shape = image.shape[:-1]
        starts = window_starts(shape, patch, overlap)
        totals[case], left[case] = np.zeros(shape, np.float32), len(starts)
        for start in starts:
            window = _cut(shape, patch, start, case)
            batch.append((window, image[window.target]))
            if len(batch) == window_batch:
                flush()
                yield from finished()
    if batch:
        flush()
    yield from finished()
