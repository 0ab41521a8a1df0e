"""Read a workdir's tables, checked, as the report needs them. Nothing else of a study is read."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxseg.types import UserError

POOLED = -1
"""Stands in the fold column of rows that take all folds together."""

_TEXT = {
    "arm",
    "case",
    "group",
    "label",
    "metric",
    "arm_a",
    "arm_b",
    "worst_arm",
    "unit",
    "hd_definition",
    "status",
    "inference",
}
_COLUMNS: dict[str, tuple[str, ...]] = {
    "cases": ("arm", "seed", "train_cases", "case", "group", "label", "dsc", "status"),
    "curves": ("arm", "seed", "train_cases", "step", "loss", "val_dsc"),
    "convergence": ("arm", "seed", "train_cases", "target_dsc", "step", "censored"),
    "comparisons": (
        *("metric", "label", "train_cases", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high", "p"),
        *("n_seeds", "n_groups", "n_cases"),
    ),
    "summary": (
        *("arm", "train_cases", "label", "metric", "mean", "ci_low", "ci_high", "sd"),
        *("n_seeds", "n_groups", "n_cases", "n_missed", "n_spurious"),
    ),
    "worst_cases": (
        *("train_cases", "case", "group", "label", "mean", "min", "max"),
        *("worst_arm", "worst_seed", "n_missed", "n_runs"),
    ),
}


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


class Variant(NamedTuple):
    """A training set size; `fold` is POOLED where there are several, which the page shows together."""

    train_cases: int
    fold: int


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a workdir holds for the report; None or empty where a file is missing or has no rows."""

    study: dict[str, Any]
    config: dict[str, Any]
    cases: pd.DataFrame | None
    curves: pd.DataFrame | None
    convergence: pd.DataFrame | None
    comparisons: pd.DataFrame | None
    summary: pd.DataFrame | None
    worst_cases: pd.DataFrame | None
    examples: tuple[Example, ...]
    load_tables: Mapping[tuple[str, str], str]
    """(arm, variant folder) -> text."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names in the study's order."""
        return tuple(self.study.get("arms", {}))

    @property
    def confidence(self) -> float:
        """Of all intervals."""
        return float(self.config.get("analysis", {}).get("confidence", 0.95))


def read_tables(workdir: Path) -> Tables:
    """Read everything that the report shows.

    Args:
        workdir: a study's folder, see the contract of the workdir.

    Returns:
        The tables, with `fold` filled (0 where there is no such column, POOLED where it is empty).

    Raises:
        UserError: there is no readable study.json, or a table lacks a column.
    """
    study = _read_json(workdir / "study.json")
    if not isinstance(study, dict):
        raise UserError(
            f"No study.json in {workdir}: the report is made from a study's tables. "
            "Give the folder that `python -m launch.study --workdir=...` wrote."
        )
    config = _read_json(workdir / "config.json")
    results = workdir / "results"
    return Tables(
        study=study,
        config=config if isinstance(config, dict) else {},
        **{name: read_table(results / f"{name}.csv", columns) for name, columns in _COLUMNS.items()},
        examples=_read_examples(results),
        load_tables={
            (path.parent.name, path.stem): path.read_text(encoding="utf-8", errors="replace")
            for path in sorted((workdir / "load_tables").glob("*/*.txt"))
        },
    )


def variants_of(table: pd.DataFrame) -> list[Variant]:
    """Return the train sizes in a table, small ones first; size 0, all cases, comes last."""
    sizes = sorted((int(size) for size in table["train_cases"].unique()), key=lambda size: (size == 0, size))
    folds = {size: table.loc[table["train_cases"] == size, "fold"].unique() for size in sizes}
    return [Variant(size, int(folds[size][0]) if len(folds[size]) == 1 else POOLED) for size in sizes]


def of_variant(table: pd.DataFrame, variant: Variant) -> pd.DataFrame:
    """Return a train size's rows: those that pool its folds where the table has such rows, else all of them."""
    own = table[table["train_cases"] == variant.train_cases]
    pooled = own["fold"] == POOLED
    return own[pooled] if pooled.any() else own


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples; untyped, as a column's type is known at run time only."""
    return iter(table.itertuples(index=False))


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not readable JSON ({error}). Restore it, or run the study's last stages again."
        ) from error


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    """Read a CSV in which `NA`, `nan` or `007` may be a name; None where it is missing or empty.

    Raises:
        UserError: it lacks one of the columns.
    """
    if not path.is_file() or not path.stat().st_size:
        return None
    header = list(pd.read_csv(path, nrows=0).columns)
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(
            f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(header)}. "
            "Delete it and run `--stages=evaluate,analyze,report` to write it again."
        )
    numbers = [name for name in header if name not in _TEXT]
    table = pd.read_csv(
        path,
        dtype=dict.fromkeys(_TEXT & set(header), str),
        keep_default_na=False,
        na_values={name: ["", "nan", "NaN", "None"] for name in numbers},
    )
    if "fold" not in table:
        table["fold"] = 0
    if "censored" in table:
        table["censored"] = table["censored"].astype(str).str.lower().isin(["true", "1", "1.0"])
    if "region" in table:
        # Regions are unions of labels: a mean over labels would count theirs twice.
        table = table[table["region"].astype(str) != "True"]
    table["fold"] = pd.to_numeric(table["fold"], errors="coerce").fillna(POOLED).astype(int)
    return None if table.empty else table


def _read_examples(results: Path) -> tuple[Example, ...]:
    entries = _read_json(results / "examples.json")
    arrays_path = results / "examples.npz"
    if not entries or not arrays_path.is_file():
        return ()
    try:
        with np.load(arrays_path, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{arrays_path} is not readable ({error}). Delete it and run `--stages=evaluate,report`."
        ) from error
    return tuple(
        _example(entry, k, arrays)
        for k, entry in enumerate(entries)
        if {f"image_{k}", f"reference_{k}"} <= arrays.keys()
    )


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
