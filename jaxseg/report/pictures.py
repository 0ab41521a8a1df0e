"""Read the arrays behind the page's pictures: example slices, filters, and where runs disagree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg.study import files


@dataclasses.dataclass(frozen=True)
class Example:
    """One test case's slice: image, reference and one run's prediction for each arm, all uint8 [H, W]."""

    case: str
    label_names: tuple[str, ...]
    place: tuple[int, int] | None
    """The axis that the slice cuts across, and where; None of a 2-D image."""
    image: np.ndarray
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]
    """The predictions by arm; arms without one are left out."""
    runs: Mapping[str, Mapping[str, Any]]
    """Seed, train_cases, fold and dsc of the run that is shown, by arm; arms without such a note are left out."""


@dataclasses.dataclass(frozen=True)
class Montage:
    """Central slices of a layer's kernels in one run: at the start, at the end, and of a control with structure."""

    arm: str
    layer: str
    start: Float[np.ndarray, "rows columns k k"]
    end: Float[np.ndarray, "rows columns k k"]
    control: Float[np.ndarray, "rows columns k k"] | None
    seed: int | None
    relative_change: float | None
    """Length of the difference of start and end over that of the start, of the layer's shown slices together."""
    train_cases: int | None
    """What the run was trained on; None where that is not noted."""
    fold: int | None
    """The fold that the run was tested on; None where that is not noted."""


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """One test case's slice, and for each arm the share of seeds that differ from their majority in each pixel."""

    case: str
    image: np.ndarray
    reference: UInt8[np.ndarray, "h w"]
    shares: Mapping[str, Float[np.ndarray, "h w"]]
    """The shares by arm."""
    differing: Mapping[str, float]
    """The share of the slice's pixels in which some run differs from the majority, by arm."""
    train_cases: int | None
    """What the runs were trained on; None where that is not noted."""
    fold: int | None
    """The fold that the runs were tested on; None where that is not noted."""


def read_examples(results: Path) -> tuple[Example, ...]:
    """Read the example slices of examples.json and examples.npz; none where either is missing."""
    if not (results / "examples.json").is_file():
        return ()
    entries, arrays = files.read_list(results / "examples.json"), _read_arrays(results / "examples.npz")
    return tuple(
        _example(entry, k, arrays)
        for k, entry in enumerate(entries)
        if {f"image_{k}", f"reference_{k}"} <= arrays.keys()
    )


def read_analysis(results: Path) -> tuple[tuple[Montage, ...], tuple[Disagreement, ...]]:
    """Read the pictures of analysis.json and analysis.npz; none where either is missing."""
    index, arrays = files.read_json(results / "analysis.json"), _read_arrays(results / "analysis.npz")
    variant = index.get("train_cases"), index.get("fold")
    return tuple(_montages(index.get("montages", ()), arrays, variant)), tuple(
        _disagreements(index.get("disagreement", ()), arrays, variant)
    )


def _read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    return files.read_arrays(path) if path.is_file() else {}


def _example(entry: Mapping[str, Any], k: int, arrays: Mapping[str, np.ndarray]) -> Example:
    return Example(
        case=str(entry["case"]),
        label_names=tuple(str(name) for name in entry["label_names"]),
        place=(int(entry["slice_axis"]), int(entry["slice_index"])) if "slice_axis" in entry else None,
        image=arrays[f"image_{k}"],
        reference=arrays[f"reference_{k}"],
        predictions={
            str(arm): arrays[f"prediction_{k}_{i}"]
            for i, arm in enumerate(entry["arms"])
            if f"prediction_{k}_{i}" in arrays
        },
        runs={str(arm): run for arm, run in entry.get("runs", {}).items() if run},
    )


_Variant = tuple[int | None, int | None]
"""Training set size and fold; None where they are not noted."""


def _montages(
    entries: Iterable[Mapping[str, Any]], arrays: Mapping[str, np.ndarray], variant: _Variant
) -> Iterator[Montage]:
    for entry in entries:
        start, end, control = (arrays.get(str(entry.get(f"key_{what}"))) for what in ("start", "end", "control"))
        if start is not None and end is not None:
            change = entry.get("relative_change")
            arm, layer, seed = str(entry["arm"]), str(entry["layer"]), entry.get("seed")
            yield Montage(arm, layer, start, end, control, seed, change, *variant)


def _disagreements(
    entries: Iterable[Mapping[str, Any]], arrays: Mapping[str, np.ndarray], variant: _Variant
) -> Iterator[Disagreement]:
    for entry in entries:
        image, reference = arrays.get(str(entry["key_image"])), arrays.get(str(entry["key_reference"]))
        shares = {str(arm): arrays[key] for arm, key in entry["arms"].items() if key in arrays}
        if image is not None and reference is not None:
            differing = entry.get("differing", {})
            yield Disagreement(str(entry["case"]), image, reference, shares, differing, *variant)
