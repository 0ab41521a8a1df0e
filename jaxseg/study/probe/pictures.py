"""Makes the analyses' pictures from arrays: filters, and where runs disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg.analysis import filters, variability
from jaxseg.data.cases import CaseArrays
from jaxseg.study.probe.networks import Networks
from jaxseg.study.probe.variation import Predicted
from jaxseg.study.score.slices import example_slice, grey, upright

MONTAGE_FILTERS = 8
"""The most input channels, and the most filters, that are shown of a layer."""


Pictures = tuple[dict[str, np.ndarray], list[dict[str, Any]]]
"""Arrays by key, and entries that describe them."""


def montages(networks: Networks, rng: np.random.Generator) -> Pictures:
    """Central slices of some filters of the first and last encoder layers: of the first run's start and end, and a
    control, the start with smooth patterns blended in to three tenths of the variance.
    """
    kernels = networks.layers()
    layers = [layer for layer, (start, *_) in kernels.items() if layer.startswith("encoder") and start.ndim > 4]
    arrays: dict[str, np.ndarray] = {}
    entries: list[dict[str, Any]] = []
    for layer in dict.fromkeys((layers[0], layers[-1]) if layers else ()):
        start, end, _ = kernels[layer]
        control = filters.blend(start[0], filters.smooth(rng, start.shape[1:]), 0.3)
        entry: dict[str, Any] = {"arm": networks.arm, "layer": layer, "seed": networks.seeds[0]}
        for which, kernel in (("start", start[0]), ("end", end[0]), ("control", control)):
            key = f"filters_{networks.arm}_{layer.replace('/', '_')}_{which}"
            # Of 3-D kernels the central slice along the last axis.
            flat = kernel[:, :, kernel.shape[2] // 2] if kernel.ndim == 5 else kernel
            arrays[key] = np.moveaxis(flat[..., :MONTAGE_FILTERS, :MONTAGE_FILTERS], (0, 1), (-2, -1)).astype(
                np.float32
            )
            entry[f"key_{which}"] = key
        before, after = (arrays[entry[f"key_{which}"]].astype(np.float64) for which in ("start", "end"))
        entry["relative_change"] = float(np.linalg.norm(after - before) / (np.linalg.norm(before) or 1.0))
        entries.append(entry)
    return arrays, entries


def overlays(arms: Sequence[Predicted], cases: Sequence[CaseArrays], count: int, classes: int) -> Pictures:
    """Shows where the runs of each arm disagree, on one slice of each of the first cases (training grid).

    An arm with a single run is left out, and so are all pictures if there is no other.
    """
    if not (several := [arm for arm in arms if len(arm.seeds) > 1]):
        return {}, []
    arrays: dict[str, np.ndarray] = {}
    entries: list[dict[str, Any]] = []
    for index, case in enumerate(cases[:count]):
        where, ndim = example_slice(case.label), case.label.ndim
        entry: dict[str, Any] = {"case": case.record.name, "arms": {}, "differing": {}}
        for name, array in (("image", grey(case.image[..., 0][where])), ("reference", case.label[where])):
            key = entry[f"key_{name}"] = f"disagreement_{index}_{name}"
            arrays[key] = upright(array.astype(np.uint8), ndim)
        for number, arm in enumerate(several):
            # By number: an arm may be called `image` or `reference`.
            key = entry["arms"][arm.arm] = f"disagreement_{index}_arm_{number}"
            maps = arm.of(index, case.label.shape)[(slice(None), *where)]
            arrays[key] = upright(variability.minority_share(maps, classes).astype(np.float32), ndim)
            entry["differing"][arm.arm] = float((arrays[key] > 0).mean())
        entries.append(entry)
    return arrays, entries


def merge(
    of_arms: Sequence[Pictures], of_cases: Pictures, train_cases: int, fold: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Merges all pictures of a variant and the list that describes them."""
    arrays = {key: array for arrays, _ in (*of_arms, of_cases) for key, array in arrays.items()}
    variant = {"train_cases": train_cases, "fold": fold}
    return arrays, variant | {
        "montages": [entry for _, entries in of_arms for entry in entries],
        "disagreement": of_cases[1],
    }
