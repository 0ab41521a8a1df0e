"""Sliding-window prediction: one program for a fixed batch of windows, whatever the shapes of the cases."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.ndimage
from jax import lax
from jaxtyping import Array, Float, Integer

from jaxseg import regions, threads, trees
from jaxseg.models import Network
from jaxseg.types import Frozen, Params


def make_window_predict(
    model: Network, *, one_by_one: bool = False
) -> Callable[[Params, Frozen, Float[Array, "windows *patch channels"]], Float[Array, "windows *patch classes"]]:
    """Make a function that returns the class probabilities of a batch of windows for one run, without dropout.

    Those of a network of overlapping regions are one probability per region, which need not sum to 1.

    Args:
        model: The network.
        one_by_one: Whether windows go through the network one after another, so that the features of one window stay
            in the processor's cache; otherwise all go through at once.
    """

    def predict(
        params: Params, frozen: Frozen, windows: Float[Array, "windows *patch channels"]
    ) -> Float[Array, "windows *patch classes"]:
        variables = {"params": trees.merge(params, frozen)}

        def probabilities(some: Float[Array, "some *patch channels"]) -> Float[Array, "some *patch classes"]:
            logits: Any = model.apply(variables, some, train=False)
            return jax.nn.sigmoid(logits) if model.overlapping else jax.nn.softmax(logits)

        if one_by_one:
            return lax.map(lambda window: probabilities(window[None])[0], windows)
        return probabilities(windows)

    return predict


def by_slices(
    predict: Callable[[np.ndarray], np.ndarray], slice_axis: int | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Wrap a network for slices so that it predicts windows `[windows, x, y, z, channels]` that are one voxel thick.

    Args:
        predict: Takes windows without the slice axis and returns `[run, windows, *patch, classes]` without it.
        slice_axis: Spatial axis across the slices; None returns `predict` unchanged.
    """
    if slice_axis is None:
        return predict
    axis = slice_axis
    return lambda windows: np.expand_dims(predict(windows.squeeze(1 + axis)), 2 + axis)


def window_starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """Return the corners of windows that cover a case, evenly spread; neighbours share at least `overlap` of a window.

    The corners are in ascending order, the first axis slowest. An axis shorter than the patch has one centred window:
    its start is negative, and voxels outside the case are padding.
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
    """Return the weights of a window's voxels where windows overlap; voxels near the border of a window count little.

    The weights are a Gaussian around the centre with a standard deviation of 1/8 of the patch (as in nnU-Net), but at
    least 1e-3.
    """
    axes = [np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2) for size in patch]
    weight = np.ones(())
    for axis in axes:
        weight = np.multiply.outer(weight, axis)
    return np.maximum(weight, 1e-3).astype(np.float32)


class Slab(NamedTuple):
    """Finished planes of one case for all runs, from plane `start` on along its first axis."""

    case: int
    """Position of the case in the given order."""
    start: int
    last: bool
    """Whether these are the last planes of the case."""
    probabilities: Float[np.ndarray, "run planes *rest classes"]


class _Window(NamedTuple):
    case: int
    inside: tuple[slice, ...]
    """The part of the window inside the case, in window coordinates."""
    target: tuple[slice, ...]
    """The same part in case coordinates."""
    mirrored: tuple[int, ...]
    """Axes along which it is shown to the network mirrored."""


def window_slices(
    shape: Sequence[int], patch: Sequence[int], start: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of a window that lies inside a case, in coordinates of the window and of the case."""
    low = [max(-begin, 0) for begin in start]
    high = [min(length - begin, size) for length, size, begin in zip(shape, patch, start, strict=True)]
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return inside, tuple(slice(begin + a, begin + b) for begin, a, b in zip(start, low, high, strict=True))


class _Stitch:
    """Weighted sums of one case's windows over the planes that later windows may still reach.

    A voxel's probability is the weighted mean over the windows that hold it: `sums` has the weighted probabilities,
    `totals` the weights. Both are a buffer that slides along the first axis, from plane `begin` on. Windows come in
    ascending order along that axis, so all planes before the next window are finished: they are divided, handed out,
    and the rest moves to the front. A window's depth of planes is all that is ever held.
    """

    def __init__(self, shape: tuple[int, ...], weight: np.ndarray, starts: Iterable[int], pool: threads.Pool) -> None:
        self.length, self.weight, self.pool = shape[0], weight, pool
        self.begin = 0
        self.to_come = collections.deque(starts)
        """First plane of every window, and of every mirrored copy, that is still to come."""
        self.sums: np.ndarray = np.zeros(0, np.float32)
        self.totals = np.zeros((min(len(weight), self.length), *shape[1:]), np.float32)

    def add(self, window: _Window, probabilities: Float[np.ndarray, "run *patch classes"]) -> Slab | None:
        """Adds a window; returns the planes that it finishes, if any."""
        if not self.sums.size:
            self.sums = np.zeros((len(probabilities), *self.totals.shape, probabilities.shape[-1]), np.float32)
        part = self.weight[window.inside]
        planes, *rest = window.target
        where = (slice(planes.start - self.begin, planes.stop - self.begin), *rest)

        def add_run(run: int) -> None:
            prediction = np.flip(probabilities[run], window.mirrored)[window.inside]
            self.sums[run][where] += prediction * part[..., None]

        threads.share(self.pool, add_run, len(probabilities))
        self.totals[where] += part
        self.to_come.popleft()
        count = (self.to_come[0] if self.to_come else self.length) - self.begin
        return self._finish(window.case, count) if count > 0 else None

    def _finish(self, case: int, count: int) -> Slab:
        last = not self.to_come
        runs, _, *rest = self.sums.shape
        made = np.empty((runs, count, *rest), np.float32)

        def finish_run(run: int) -> None:
            np.divide(self.sums[run, :count], self.totals[:count, ..., None], out=made[run])
            if not last:
                _slide(self.sums[run], count)

        threads.share(self.pool, finish_run, runs)
        if not last:
            _slide(self.totals, count)
        self.begin += count
        return Slab(case, self.begin - count, last, made)


def _slide(planes: np.ndarray, count: int) -> None:
    """Moves planes to the front over the first ones, and puts zeros behind them."""
    planes[:-count] = planes[count:].copy()
    planes[-count:] = 0


def predict_slabs(
    predict: Callable[[Float[np.ndarray, "windows *patch channels"]], Float[np.ndarray, "run windows *patch classes"]],
    images: Iterable[Float[np.ndarray, "*spatial channels"]],
    *,
    patch: tuple[int, ...],
    overlap: float,
    window_batch: int,
    flips: Sequence[int] = (),
    pool: threads.Pool = None,
) -> Iterator[Slab]:
    """Yield the probabilities of cases for all runs at once, in slabs along the first axis, case after case.

    Windows of successive cases share batches, so that the compiled program always sees `window_batch` windows. Where a
    case is smaller than the patch, the outside is 0, as in training. Beside one batch, two with a pool, `patch[0]`
    planes of each case in progress are in memory, however many planes the case has.

    Args:
        predict: Compiled prediction of a batch of windows for all runs.
        images: Cases on the training grid, read one by one as windows are cut.
        patch: Window size.
        overlap: Smallest shared part of neighbouring windows, in [0, 1).
        window_batch: Number of windows per call.
        flips: Axes to mirror at test time. Every window is predicted once for each subset of them, and the predictions
            are mirrored back and averaged. k axes cost 2^k times as much.
        pool: Threads that share the runs when windows are stitched, while the next batch is predicted. Every value is
            the same with and without.

    Yields:
        Slabs, which ascend and cover each case. Probabilities sum to 1 over classes; those of regions do not.
    """
    weight = window_weight(patch)
    copies = [axes for count in range(len(flips) + 1) for axes in itertools.combinations(flips, count)]
    stitches: dict[int, _Stitch] = {}

    def cut() -> Iterator[tuple[_Window, np.ndarray]]:
        for case, image in enumerate(images):
            shape = image.shape[:-1]
            starts = window_starts(shape, patch, overlap)
            stitches[case] = _Stitch(shape, weight, (start[0] for start in starts for _ in copies), pool)
            for start in starts:
                inside, target = window_slices(shape, patch, start)
                yield from ((_Window(case, inside, target, axes), image[target]) for axes in copies)

    def answer(batch: Sequence[tuple[_Window, np.ndarray]]) -> Float[np.ndarray, "run windows *patch classes"]:
        shown = np.zeros((window_batch, *patch, batch[0][1].shape[-1]), np.float32)
        for one, (window, voxels) in zip(shown, batch, strict=False):
            # Into a mirrored view: the window lands in the batch mirrored.
            np.flip(one, window.mirrored)[window.inside] = voxels
        return np.asarray(predict(shown))

    windows = cut()
    batches = iter(lambda: list(itertools.islice(windows, window_batch)), [])
    for batch, probabilities in threads.ahead(answer, batches, threaded=pool is not None):
        for row, (window, _) in enumerate(batch):
            slab = stitches[window.case].add(window, probabilities[:, row])
            if slab is not None:
                if slab.last:
                    del stitches[window.case]
                yield slab


def join_slabs(slabs: Iterable[Slab]) -> Iterator[Float[np.ndarray, "run *spatial classes"]]:
    """Yield the probabilities of whole cases, one after another, from their slabs."""
    for _, of_case in itertools.groupby(slabs, key=lambda slab: slab.case):
        yield np.concatenate([slab.probabilities for slab in of_case], axis=1)


def largest_component(
    labels: Integer[np.ndarray, "*spatial"], values: Iterable[int]
) -> Integer[np.ndarray, "*spatial"]:
    """Keep only the largest connected component of some labels; the rest of these labels becomes background.

    Voxels that share a face are connected. Among components of equal size, the first in C order stays.

    >>> largest_component(np.array([1, 1, 0, 1, 2]), [1]).tolist()
    [1, 1, 0, 0, 2]
    """
    # `label` numbers the components of one label from 1, in C order of their first voxels; entry 0 of `sizes` counts
    # everything else, and argmax takes the first of equal ones.
    cleaned = labels.copy()
    for value in values:
        components, count = scipy.ndimage.label(labels == value)
        if count > 1:
            sizes = np.bincount(components.ravel())
            cleaned[(components > 0) & (components != 1 + np.argmax(sizes[1:]))] = 0
    return cleaned


def largest_of_regions(
    labels: Integer[np.ndarray, "*spatial"], chosen: Iterable[int], of: regions.Regions
) -> Integer[np.ndarray, "*spatial"]:
    """Keep only the largest connected component of some regions, one after another.

    The rest of a region becomes what the other regions around it make of these voxels (`regions.without`), so that a
    spurious part inside a larger region leaves no hole in it.

    Args:
        labels: A label map.
        chosen: Positions of the regions.
        of: The regions.

    >>> nested = regions.Regions(members=((1, 2), (2,)), written=(1, 2))
    >>> largest_of_regions(np.array([1, 2, 2, 1, 2, 1]), [1], nested).tolist()
    [1, 2, 2, 1, 1, 1]
    """
    for index in chosen:
        inside = regions.mask(labels, of.members[index])
        kept = largest_component(inside.astype(np.uint8), [1]) > 0
        labels = np.where(inside & ~kept, regions.without(labels, index, of), labels)
    return labels
