"""Read a workdir's tables, checked, as the report needs them. Nothing else of a study is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from jaxseg.report.pictures import Disagreement, Example, Montage, read_analysis, read_examples
from jaxseg.reserved import POOLED
from jaxseg.study import files, record, typed_json
from jaxseg.study.claims.rules import CONFIDENCE
from jaxseg.study.record import StudyRecord
from jaxseg.types import UserError

_FLAGS = ("censored", "trained", "chosen", "exploratory", "may_be_best", "better")
_FILLED: dict[str, dict[str, float]] = {name: {"confidence": CONFIDENCE} for name in ("speed", "ranking")}
"""What columns hold that tables of earlier versions lack."""
_COLUMNS: dict[str, tuple[str, ...]] = {
    "cases": ("arm", "seed", "train_cases", "case", "group", "label", "dsc", "status"),
    "curve_runs": ("arm", "train_cases", "fold", "seed", "quantity", "step", "value"),
    "curve_means": ("arm", "train_cases", "quantity", "step", "value", "ci_low", "ci_high"),
    "budget_means": ("arm", "train_cases", "metric", "step", "share", "value", "ci_low", "ci_high"),
    "convergence": ("arm", "seed", "train_cases", "target_dsc", "step", "censored"),
    "comparisons": (
        *("metric", "label", "train_cases", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high", "p"),
        *("n_seeds", "n_groups", "n_cases"),
    ),
    "summary": (
        *("arm", "train_cases", "label", "metric", "mean", "ci_low", "ci_high", "sd"),
        *("n_seeds", "n_groups", "n_cases", "n_missed", "n_spurious"),
    ),
    "external_comparisons": (
        *("test_set", "metric", "label", "train_cases", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high"),
        *("n_seeds", "n_groups"),
    ),
    "external_summary": (
        *("test_set", "arm", "train_cases", "label", "metric", "mean", "ci_low", "ci_high", "n_seeds", "n_groups"),
    ),
    "ensemble_comparisons": (
        *("test_set", "metric", "label", "train_cases", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high"),
    ),
    "ensemble_summary": (
        *("test_set", "arm", "train_cases", "label", "metric", "mean", "ci_low", "ci_high", "n_members"),
    ),
    "detection": ("arm", "train_cases", "label", "metric", "mean", "ci_low", "ci_high"),
    "detection_differences": (
        *("metric", "label", "train_cases", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high", "p", "p_maxt"),
        *("n_seeds", "n_groups"),
    ),
    "worst_cases": (
        *("train_cases", "case", "group", "label", "mean", "min", "max"),
        *("worst_arm", "worst_seed", "n_missed", "n_runs"),
    ),
    "rates": ("arm", "train_cases", "lr", "val_dsc", "n_seeds", "n_diverged", "joint", "chosen"),
    "claims": (
        *("claim", "statement", "role", "arm", "quantity", "value", "ci_low", "ci_high", "verdict", "reason"),
        *("grade", "tag", "projected_low", "projected_high", "needs", "look", "exploratory", "rule_version"),
        *("train_cases", "confidence", "key"),
    ),
    "filter_controls": ("train_cases", "arm", "layer", "quantity", "smallest_share"),
    "similarity": (
        *("layer", "comparison", "arm_a", "seed_a", "arm_b", "seed_b", "train_cases", "index", "value"),
        *("n_points", "n_neurons"),
    ),
    "layer_similarity": ("arm", "seed", "train_cases", "layer_a", "layer_b", "index", "value"),
    "excess_loss": ("train_cases", "arm", "seed_a", "seed_b", "alpha", "excess", "mean_excess"),
    "speed": (
        *("arm", "baseline", "train_cases", "ratio", "ci_low", "ci_high", "total_ratio", "total_ci_low"),
        *("total_ci_high", "pretrain_steps", "n_runs", "n_censored", "n_censored_baseline"),
    ),
    "training": ("arm", "train_cases", "n_runs", "n_reached", "median_step", "last_val_dsc"),
    "seed_scores": ("arm", "seed", "train_cases", "label", "metric", "value"),
    "layers": (
        *("arm", "train_cases", "comparison", "index", "layer", "quantity", "value", "ci_low", "ci_high"),
        *("n_seeds", "limit"),
    ),
    "ranking": (
        *("arm", "role", "source", "train_cases", "rank", "rank_low", "rank_high", "gain", "joint_low", "joint_high"),
        *("to_best", "to_best_low", "to_best_high", "may_be_best", "pretrain_steps", "pretrain_seconds", "seen"),
    ),
    "page": ("about", "arm", "train_cases", "layer", "quantity", "value"),
    "similarity_means": ("comparison", "arm_a", "arm_b", "train_cases", "index", "value", "ci_low", "ci_high"),
    "variability": ("arm", "train_cases", "quantity", "layer", "value", "ci_low", "ci_high", "n_seeds"),
}


class Variant(NamedTuple):
    """A training set size; `fold` is POOLED where there are several, which the page shows together."""

    train_cases: int
    fold: int


class AnalysisPart(NamedTuple):
    """How the tables were made."""

    confidence: float = CONFIDENCE
    """The confidence of the intervals of all tables but claims and speed, whose level the rules of the claims fix."""
    target_fraction: float | None = None


class EvaluatePart(NamedTuple):
    """How segmentations were scored."""

    surface_empty: str | None = None


class TaskPart(NamedTuple):
    """Where a task's images come from."""

    data: str = ""


class ShownSettings(NamedTuple):
    """What the page says of config.json, whatever the version that wrote it."""

    analysis: AnalysisPart = AnalysisPart()
    evaluate: EvaluatePart = EvaluatePart()
    source: TaskPart = TaskPart()
    target: TaskPart = TaskPart()


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a workdir holds for the report; None or empty where a file is missing or has no rows."""

    study: StudyRecord
    settings: ShownSettings
    config: str
    """The text of config.json."""
    cases: pd.DataFrame | None
    curve_runs: pd.DataFrame | None
    curve_means: pd.DataFrame | None
    convergence: pd.DataFrame | None
    comparisons: pd.DataFrame | None
    summary: pd.DataFrame | None
    worst_cases: pd.DataFrame | None
    examples: tuple[Example, ...]
    load_tables: Mapping[tuple[str, str], str]
    """The text of each load table, by arm and folder of the variant."""
    rates: pd.DataFrame | None = None
    claims: pd.DataFrame | None = None
    filter_controls: pd.DataFrame | None = None
    similarity: pd.DataFrame | None = None
    layer_similarity: pd.DataFrame | None = None
    budget_means: pd.DataFrame | None = None
    excess_loss: pd.DataFrame | None = None
    variability: pd.DataFrame | None = None
    speed: pd.DataFrame | None = None
    training: pd.DataFrame | None = None
    seed_scores: pd.DataFrame | None = None
    layers: pd.DataFrame | None = None
    similarity_means: pd.DataFrame | None = None
    ranking: pd.DataFrame | None = None
    detection: pd.DataFrame | None = None
    detection_differences: pd.DataFrame | None = None
    page: pd.DataFrame | None = None
    external_comparisons: pd.DataFrame | None = None
    external_summary: pd.DataFrame | None = None
    ensemble_comparisons: pd.DataFrame | None = None
    ensemble_summary: pd.DataFrame | None = None
    montages: tuple[Montage, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names in the study's order."""
        return tuple(self.study.arms)

    @property
    def confidence(self) -> float:
        """See `AnalysisPart.confidence`."""
        return self.settings.analysis.confidence


def read_tables(workdir: Path) -> Tables:
    """Read everything that the report shows.

    Args:
        workdir: The folder of a study.

    Returns:
        The tables, with `fold` filled (0 where there is no such column, POOLED where it is empty).

    Raises:
        UserError: There is no readable study.json, or a table lacks a column.
    """
    study = record.read(workdir, any_format=True)
    if study is None:
        raise UserError(
            f"No study.json in {workdir}: the report is made from a study's tables. "
            "Give the folder that `python -m launch.study --workdir=...` wrote."
        )
    config = files.read_json(workdir / "config.json")
    try:
        settings: ShownSettings = typed_json.from_tree(ShownSettings, config)
    except typed_json.MismatchError as error:
        raise UserError(f"{workdir / 'config.json'} is no config of a study: {error}") from None
    results = workdir / "results"
    montages, disagreements = read_analysis(results)
    return Tables(
        study=study,
        settings=settings,
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
        **{name: read_table(results, name, columns) for name, columns in _COLUMNS.items()},
        examples=read_examples(results),
        montages=montages,
        disagreements=disagreements,
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


def of_several_sizes(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the rows of arms that were trained with more than one number of cases; `column` names the arm."""
    return table[table.groupby(column)["train_cases"].transform("nunique") > 1]


def first_fold(table: pd.DataFrame, train_cases: int) -> pd.DataFrame:
    """Return a train size's rows of its first fold: runs of different folds are not compared with each other."""
    own = table[table["train_cases"] == train_cases]
    return own[own["fold"] == own["fold"].min()]


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples; untyped, as a column's type is known at run time only."""
    return iter(table.itertuples(index=False))


def read_table(results: Path, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    """Read a table, compressed or not; None where it is missing or has no rows.

    Raises:
        UserError: It lacks one of the columns.
    """
    path = files.find_table(results, name)
    table = pd.DataFrame() if path is None else files.at_end(files.read_table(path), name)
    if path is None or not len(table.columns):
        return None
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(
            f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(table.columns)}. "
            "Delete it and give the study's command again, with all stages, to write it; nothing is trained anew."
        )
    for column, value in {"fold": 0, **_FILLED.get(name, {})}.items():
        if column not in table:
            table[column] = value
    for flag in [column for column in _FLAGS if column in table]:
        table[flag] = table[flag].astype(str).str.lower().isin(["true", "1", "1.0"])
    if "region" in table:
        # Regions are unions of labels: a mean over labels would count theirs twice.
        table = table[table["region"].astype(str) != "True"]
    table["fold"] = pd.to_numeric(table["fold"], errors="coerce").fillna(POOLED).astype(int)
    return None if table.empty else table
