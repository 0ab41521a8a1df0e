"""Makes the tables that a page shows beside the claims, by the same rules from the same tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg.study import files, record
from jaxseg.study.claims import drawn, sentences
from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.judging import before_looks, judged_evidence
from jaxseg.study.claims.layers import layer_table, similarity_means
from jaxseg.study.claims.ranking import ranking_table
from jaxseg.study.claims.reuse import encoder_level
from jaxseg.study.claims.rules import EARLY_LEVELS
from jaxseg.study.claims.speed import speed_table
from jaxseg.study.claims.study_tables import StudyTables, read_study
from jaxseg.study.claims.table import fold_of
from jaxseg.study.score import comparisons
from jaxseg.study.score.units import sources_of
from jaxseg.types import UserError

READ = (
    *("cases", "curves", "convergence", "claims", "filters", "rates", "similarity", "layer_similarity"),
    *("filter_controls", "interpolation", "variance", "budget"),
)
REUSE_COLUMNS = (
    *("arm", "train_cases", "fold", "layer", "part", "rho", "ci_low", "ci_high", "similarity", "floor", "n_seeds"),
)


def rule_tables(study: StudyTables, *, confidence: float) -> Mapping[str, pd.DataFrame]:
    """Makes the tables `speed`, `layers` and `similarity_means`, keyed by name.

    Args:
        study: The study's record and tables.
        confidence: Confidence level of the last two tables; `speed` has the seeds and the level of the answer.
    """
    evidence, fold = gather(study), fold_of(study)
    sizes = {int(size) for table in study.tables.values() for size in table["train_cases"].unique()}
    folds = dict.fromkeys(sorted(sizes, key=lambda size: (size == 0, size)), 0 if fold is None else fold)
    described = dataclasses.replace(evidence, level=1 - confidence)
    return {
        "speed": speed_table(judged_evidence(study), folds),
        "layers": layer_table(described, folds),
        "similarity_means": similarity_means(described, folds),
    }


def shown_tables(workdir: Path, *, confidence: float) -> dict[str, pd.DataFrame]:
    """Makes the tables that the page shows beside scores and claims, from those that exist.

    The page itself computes nothing that a reader sees: a number is computed once, here or before.

    Args:
        workdir: A folder with study.json and results/, or its published copy; tables may be compressed.
        confidence: Confidence level of the intervals; `speed` and `ranking` have that of the answer.

    Returns:
        `seed_scores`, `training`, `speed`, `layers`, `reuse` and `similarity_means`; `ranking` of several starts;
        tables of figures (`curve_runs`, `curve_means`, `budget_means`, `excess_loss`) and of sentences (`page`).
    """
    study = record.read(workdir, any_format=True)
    if study is None:
        raise UserError(f"no study in {workdir}: it has no study.json; give the --workdir of a study")
    found = {name: files.find_table(workdir / "results", name) for name in READ}
    read = {name: files.read_table(path) for name, path in found.items() if path is not None}
    tables = read_study(workdir)
    made = {
        "seed_scores": comparisons.seed_scores(read["cases"]),
        "training": comparisons.training(read["curves"], read["convergence"]),
        **rule_tables(tables, confidence=confidence),
    }
    made["reuse"] = reuse_table(made["layers"])
    ranking = ranking_table(judged_evidence(tables), fold_of(tables) or 0, before_looks(tables))
    if len(ranking):
        made["ranking"] = ranking
    lost = {run.key for run in study.diverged if run.kind == "train"}
    described: Any = {"confidence": confidence, "sources": sources_of(study)}
    made["curve_runs"], made["curve_means"] = drawn.drawn_curves(read["curves"], lost, **described)
    if len(read.get("interpolation", ())):
        made["excess_loss"] = drawn.excess_loss(read["interpolation"])
    if len(read.get("budget", ())):
        made["budget_means"] = drawn.budget_means(read["budget"], **described)
    told = {name: table for name, table in read.items() if len(table)}
    return {**made, "page": sentences.page_table({**told, "layers": made["layers"]})}


def reuse_table(layers: pd.DataFrame) -> pd.DataFrame:
    """Tabulates rho by layer as C11 uses it, from the rows of layers.csv on runs and their source networks.

    Returns:
        The columns `REUSE_COLUMNS`; `part` is `early` or `deep` in the encoder, whose levels C11 is about, and empty in
        other layers. `rho` is empty in layers not used by the rule.
    """
    own = layers[layers["comparison"] == "to_source"]
    keys = ["arm", "train_cases", "fold", "layer"]
    value = own.pivot(index=keys, columns="quantity", values="value")
    found = own[own["quantity"] == "rho"].rename(columns={"value": "rho"})
    found = found.join(value[[c for c in ("similarity", "floor") if c in value]], on=keys)
    found["part"] = [_part(layer) for layer in found["layer"]]
    return found.reindex(columns=list(REUSE_COLUMNS))


def _part(layer: str) -> str:
    """The part of the encoder that a layer is in; empty for other layers."""
    level = encoder_level(layer)
    return "" if level is None else "early" if level in EARLY_LEVELS else "deep"


def write_shown(workdir: Path, *, confidence: float) -> None:
    """Writes `shown_tables` into the study's results."""
    for name, table in shown_tables(workdir, confidence=confidence).items():
        files.write_table(workdir / "results" / f"{name}.csv", table)
