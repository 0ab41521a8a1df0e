"""Read the arrays behind the page's pictures: example slices, filters, and where runs disagree."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg.types import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    """One test case's slice: image, reference and one run's prediction for each arm, all uint8 [H, W]."""

    case: str
    label_names: tuple[str, ...]
    slice_axis: int
    slice_index: int
    seed: int
    image: np.ndarray
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]
    """By arm; arms without a prediction are left out."""
    train_cases: int | None
    fold: int | None


@dataclasses.dataclass(frozen=True)
class Montage:
    """Central slices of a layer's kernels in one run: at the start, at the end, and of a control with structure."""

    arm: str
    layer: str
    start: Float[np.ndarray, "rows columns k k"]
    end: Float[np.ndarray, "rows columns k k"]
    control: Float[np.ndarray, "rows columns k k"] | None


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """One test case's slice, and for each arm the share of seeds that differ from their majority in each pixel."""

    case: str
    image: np.ndarray
    reference: UInt8[np.ndarray, "h w"]
    shares: Mapping[str, Float[np.ndarray, "h w"]]
    """By arm."""


def read_json(path: Path) -> Any:
    """Return a file's content, None where there is no file.

    Raises:
        UserError: it is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not readable JSON ({error}). Restore it, or run the study's last stages again."
        ) from error


def read_examples(results: Path) -> tuple[Example, ...]:
    """Read the example slices of examples.json and examples.npz; none where either is missing."""
    entries, arrays = _read_pair(results, "examples", "evaluate")
    return tuple(
        _example(entry, k, arrays)
        for k, entry in enumerate(entries or ())
        if {f"image_{k}", f"reference_{k}"} <= arrays.keys()
    )


def read_analysis(results: Path) -> tuple[tuple[Montage, ...], tuple[Disagreement, ...]]:
    """Read the pictures of analysis.json and analysis.npz; none where either is missing."""
    index, arrays = _read_pair(results, "analysis", "analyze")
    if not index:
        return (), ()
    return tuple(_montages(index.get("montages", ()), arrays)), tuple(
        _disagreements(index.get("disagreement", ()), arrays)
    )


def _read_pair(results: Path, stem: str, stage: str) -> tuple[Any, dict[str, np.ndarray]]:
    """What the arrays are, and the arrays."""
    index = read_json(results / f"{stem}.json")
    path = results / f"{stem}.npz"
    if not index or not path.is_file():
        return None, {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return index, {name: np.asarray(stored[name]) for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not readable ({error}). Delete it and run `--stages={stage},report`.") from error


def _example(entry: Mapping[str, Any], k: int, arrays: Mapping[str, np.ndarray]) -> Example:
    return Example(
        case=str(entry["case"]),
        label_names=tuple(str(name) for name in entry["label_names"]),
        slice_axis=int(entry["slice_axis"]),
        slice_index=int(entry["slice_index"]),
        seed=int(entry["seed"]),
        image=arrays[f"image_{k}"],
        reference=arrays[f"reference_{k}"],
        predictions={
            str(arm): arrays[f"prediction_{k}_{i}"]
            for i, arm in enumerate(entry["arms"])
            if f"prediction_{k}_{i}" in arrays
        },
        train_cases=entry.get("train_cases"),
        fold=entry.get("fold"),
    )


def _montages(entries: Iterable[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> Iterator[Montage]:
    for entry in entries:
        start, end, control = (arrays.get(str(entry.get(f"key_{what}"))) for what in ("start", "end", "control"))
        if start is not None and end is not None:
            yield Montage(str(entry["arm"]), str(entry["layer"]), start, end, control)


def _disagreements(entries: Iterable[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> Iterator[Disagreement]:
    for entry in entries:
        image, reference = arrays.get(str(entry["key_image"])), arrays.get(str(entry["key_reference"]))
        shares = {str(arm): arrays[key] for arm, key in entry["arms"].items() if key in arrays}
        if image is not None and reference is not None:
            yield Disagreement(str(entry["case"]), image, reference, shares)
