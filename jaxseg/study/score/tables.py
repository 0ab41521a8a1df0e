"""Makes the tables of a finished study from its jobs' files; the same files give the same tables, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxseg import logs, manifest
from jaxseg.reserved import MEAN, POOLED
from jaxseg.settings import StudySettings
from jaxseg.streams import host_rng
from jaxseg.study import files, record
from jaxseg.study.plan.jobs import Job, Plan
from jaxseg.study.plan.runs import folds_rotate
from jaxseg.study.plan.tasks import Tasks
from jaxseg.study.score import comparisons, detection, ensemble_tables, examples, formats, power
from jaxseg.study.score import stage as score_stage
from jaxseg.study.score.scoring import CaseSet, case_sets
from jaxseg.study.score.units import EACH_ITS_OWN, Sources, sources_of
from jaxseg.types import UserError

KEYS = ["arm", "seed", "train_cases", "fold"]
WORST = 50
"""The most rows of worst_cases.csv."""

EXTERNAL_CASES, ENSEMBLE_CASES = "external_cases", "ensemble_cases"
SHOWN = {
    "summary": "scores",
    "comparisons": "differences",
    "external_comparisons": "differences on external test sets",
    "ensemble_comparisons": "differences between ensembles of all seeds",
}
"""Tables on the terminal, with their titles."""

VARIANTS = ("train_cases", "label", "unit")
READING = (
    *("test_set", "arm", "arm_a", "arm_b", "train_cases", "label", "metric", "unit", "mean", "mean_diff"),
    *("ci_low", "ci_high"),
    *("p", "p_maxt", "n_seeds", "n_groups", "n_missed", "inference"),
)
"""Columns of the tables on the terminal and in LaTeX, in order; those of `VARIANTS` only if they differ."""


CURVE_COLUMNS = (*KEYS, "step", "seconds", "loss", "val_dsc")
PRETRAIN_COLUMNS = (*CURVE_COLUMNS, "val_restored")


def require_scores(workdir: Path) -> None:
    """Checks that an evaluated study has scores.

    Raises:
        UserError: If every run diverged.
    """
    path = files.find_table(workdir / "results", "cases")
    if path is not None and files.read_table(path).empty:
        raise UserError(
            f"every run diverged, so that there is nothing to score: {workdir / 'study.json'} says at which step each "
            "(diverged_at), and the page shows what there is. Use a smaller config.optim.lr, a longer "
            "config.optim.warmup_steps or config.optim.clip_norm, in a new workdir"
        )


def curves_table(workdir: Path, jobs: tuple[Job, ...], columns: Sequence[str] = CURVE_COLUMNS) -> pd.DataFrame:
    """Tabulates the loss and validation DSC of every run at every logged step.

    Networks that learn without labels have no DSC; the share that they restore is in `val_restored`, if it is among the
    columns.

    `seconds` is steps times the job's median step time, without compiling or downtime: runs of one program have no
    clock of their own.
    """
    return curves_of(((job, logs.read_log(workdir / job.directory, len(job.runs))) for job in jobs), columns)


def curves_of(measured: Iterable[tuple[Job, logs.TrainingLog]], columns: Sequence[str] = CURVE_COLUMNS) -> pd.DataFrame:
    """Makes `curves_table` of jobs, each given with its log."""
    parts = []
    for job, log in measured:
        count, length = log.loss.shape
        nothing = np.full(count * length, math.nan)
        of_job: dict[str, np.ndarray] = {
            "step": np.tile(log.step, count),
            "seconds": np.tile(log.step * log.median_step_seconds, count),
            "loss": log.loss.ravel(),
            "val_dsc": nothing,
            "val_restored": nothing,
            "val_restored" if job.program.restores else "val_dsc": log.val_dsc.ravel(),
        }
        identity = {name: np.repeat([getattr(run.key, name) for run in job.runs], length) for name in KEYS}
        parts.append(pd.DataFrame({**of_job, **identity})[list(columns)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))


CASE_COLUMNS = (*KEYS, "case", "group", "label", *comparisons.METRICS, "unit", "status", "region")
"""Columns of cases.csv that it has even without a row."""


def cases_table(study: StudySettings, workdir: Path, plan: Plan, cases: CaseSet) -> pd.DataFrame:
    """Joins the part tables of all jobs and of the priors in the order of arms, whatever job trained them.

    If every run diverged, it has no rows, so that later stages and the page still work.
    """
    name = cases.part(score_stage.CASES)
    parts = [files.read_table(workdir / job.directory / name) for job in plan.of_kind("train")]
    if plan.priors:
        parts.append(files.read_table(workdir / score_stage.priors_part(cases)))
    return in_order(study, parts, KEYS)


def in_order(study: StudySettings, parts: Sequence[pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """Joins part tables in the order of arms, runs, cases and labels."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=[*keys, *(name for name in CASE_COLUMNS if name not in KEYS)])
    order = {arm.name: index for index, arm in enumerate(study.arms)}
    table = pd.concat(parts, ignore_index=True).sort_values(
        [*keys, "case", "label"],
        key=lambda column: column.map(order) if column.name == "arm" else column,
        kind="stable",
    )
    return table.reset_index(drop=True)


def write_cases(
    study: StudySettings, workdir: Path, tasks: Tasks, plan: Plan, ensembles: Mapping[str, pd.DataFrame] | None
) -> None:
    """Writes cases.csv, and beside it the scores on external test sets and those of ensembles, where there are any.

    These are tables of their own, of which no claim knows: whoever reads cases.csv reads the study's own test cases.
    """
    own, *others = case_sets(study, tasks)
    results = workdir / "results"
    files.write_table(results / "cases.csv", cases_table(study, workdir, plan, own))
    tables = {
        EXTERNAL_CASES: [_of_set(other.name, cases_table(study, workdir, plan, other)) for other in others],
        ENSEMBLE_CASES: [
            _of_set(name, in_order(study, [table], ["arm", "train_cases", "fold", "n_members"]))
            for name, table in (ensembles or {}).items()
        ],
    }
    for name, parts in tables.items():
        path = results / f"{name}.csv"
        if parts:
            files.write_table(path, pd.concat(parts, ignore_index=True))
        elif files.was_written(path):
            manifest.remove(path)


def _of_set(name: str, table: pd.DataFrame) -> pd.DataFrame:
    table.insert(0, "test_set", name)
    return table


def merge_examples(
    study: StudySettings, workdir: Path, jobs: tuple[Job, ...], shown: tuple[str, ...], labels: Any
) -> None:
    """Writes one file of example slices from the jobs' files, and a list that describes them.

    Of every arm the run is shown that `examples.shown_first` puts first, and the list says which it is: an arm may
    have seeds of its own, and need not be trained with as many cases as another.
    """
    merged: dict[str, np.ndarray] = {}
    for job in jobs:
        examples.keep_shown(merged, files.read_arrays(workdir / job.directory / score_stage.EXAMPLES))
    table = files.read_table(workdir / "results" / "cases.csv")
    entries: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for index, case in enumerate(shown):
        if f"image_{index}" not in merged:
            continue
        position = len(entries)
        present = [arm.name for arm in study.arms if f"prediction_{index}_{arm.name}" in merged]
        runs = {arm: _shown_run(table, case, arm, merged.get(f"run_{index}_{arm}")) for arm in present}
        at = merged[f"slice_{index}"]
        place = {"slice_axis": int(at[0]), "slice_index": int(at[1])} if np.ndim(at) and len(at) else {}
        entries.append({"case": case, "label_names": list(labels), **place, "arms": present, "runs": runs})
        arrays[f"image_{position}"] = merged[f"image_{index}"]
        arrays[f"reference_{position}"] = merged[f"reference_{index}"]
        for arm_index, arm in enumerate(present):
            arrays[f"prediction_{position}_{arm_index}"] = merged[f"prediction_{index}_{arm}"]
    files.write_arrays(workdir / "results" / "examples.npz", arrays)
    files.write_json(workdir / "results" / "examples.json", entries)


def _shown_run(table: pd.DataFrame, case: str, arm: str, key: np.ndarray | None) -> dict[str, Any]:
    """Which run an example shows, and its DSC on the whole case; empty where an earlier version did not note it."""
    if key is None:
        return {}
    size, fold, seed = map(int, key)
    run = (table["arm"] == arm) & (table["train_cases"] == size) & (table["fold"] == fold) & (table["seed"] == seed)
    scored = comparisons.seed_scores(table[run & (table["case"] == case)], metrics=("dsc",))
    of_case = scored.loc[scored["label"] == MEAN, "value"]
    dsc = float(of_case.iloc[0]) if len(of_case) else None
    return {"seed": seed, "train_cases": size, "fold": fold, "dsc": dsc}


def write_curves(workdir: Path, plan: Plan) -> None:
    """Writes curves.csv of the target's runs, and pretrain_curves.csv of the source networks."""
    files.write_table(workdir / "results" / "curves.csv", curves_table(workdir, plan.of_kind("train")))
    if sources := plan.of_kind("pretrain"):
        table = curves_table(workdir, sources, PRETRAIN_COLUMNS)
        files.write_table(workdir / "results" / "pretrain_curves.csv", table)


def budget_table(study: StudySettings, workdir: Path, jobs: tuple[Job, ...]) -> pd.DataFrame:
    """Tabulates the validation DSC (`val_dsc`) of each run at a quarter, at half and at the whole of the steps.

    With `evaluate.budget_tests`, it also has the mean DSC over test cases (`dsc`).
    """
    rows: list[dict[str, Any]] = []
    for job in jobs:
        log, scored_at = logs.read_log(workdir / job.directory, len(job.runs)), job.program.train.scored_at
        place = {int(step): index for index, step in enumerate(log.step)}
        for index, run in enumerate(job.runs):
            identity = {name: getattr(run.key, name) for name in KEYS}
            rows += [
                identity | {"step": step, "metric": "val_dsc", "value": log.val_dsc[index, place[step]]}
                for step in scored_at
                if step in place
            ]
        steps = score_stage.budget_steps(study, workdir, job)
        parts = [(step, workdir / job.directory / score_stage.budget_part(step)) for step in steps]
        for step, path in [*parts, (scored_at[-1], workdir / job.directory / score_stage.PART)] if steps else []:
            table = files.read_table(path)
            if table.empty:  # every run diverged
                continue
            scores = comparisons.seed_scores(table, metrics=("dsc",))
            means = scores[(scores["label"] == MEAN) & (scores["fold"] != POOLED)]
            rows += [
                {**{name: row[name] for name in KEYS}, "step": step, "metric": "dsc", "value": row["value"]}
                for row in means.to_dict("records")
            ]
    return pd.DataFrame(rows, columns=[*KEYS, "step", "metric", "value"])


def write_budget(study: StudySettings, workdir: Path, plan: Plan) -> None:
    """Writes budget.csv."""
    files.write_table(workdir / "results" / "budget.csv", budget_table(study, workdir, plan.of_kind("train")))


def write_comparisons(study: StudySettings, workdir: Path) -> None:
    """Writes all tables made from cases.csv and curves.csv; the first two also as LaTeX."""
    results = workdir / "results"
    cases, curves = files.read_table(results / "cases.csv"), files.read_table(results / "curves.csv")
    arms = [arm.name for arm in study.arms]
    confidence = study.analysis.confidence
    rng, sources = host_rng(study.base_seed), sources_of(record.read(workdir, any_format=True))
    tables = {
        "summary": comparisons.summary(cases, confidence=confidence, sources=sources),
        "comparisons": comparisons.comparisons(cases, arms, confidence=confidence, rng=rng, sources=sources),
        "convergence": comparisons.convergence(curves, arms, fraction=study.analysis.target_fraction),
        "worst_cases": comparisons.worst_cases(cases, limit=WORST),
        "variance": power.variance(cases),
        "planning": power.planning(cases, arms, confidence=confidence, sources=sources),
    }
    if lesions := study.evaluate.lesions:
        rng = host_rng(study.base_seed, "detection")
        tables |= {
            "detection": detection.summary(cases, lesions, confidence=confidence, sources=sources),
            "detection_differences": detection.differences(
                cases, lesions, arms, confidence=confidence, rng=rng, sources=sources
            ),
        }
    for name, table in tables.items():
        files.write_table(results / f"{name}.csv", table)
    for name, made in {**external_tables(study, results, sources), **ensemble_tables_of(study, results)}.items():
        path = results / f"{name}.csv"
        if made is not None:
            files.write_table(path, made)
        elif files.was_written(path):
            manifest.remove(path)
    for name in ("summary", "comparisons"):
        short = for_reading(tables[name])
        caption = f"{study.name}: {name}, {confidence:.0%} intervals"
        files.write_text(results / f"{name}.tex", formats.to_latex(short, caption=caption, label=f"tab:{name}"))


def external_tables(
    study: StudySettings, results: Path, sources: Sources = EACH_ITS_OWN
) -> dict[str, pd.DataFrame | None]:
    """Makes external_summary.csv and external_comparisons.csv: the rows of summary.csv and comparisons.csv of each set.

    The estimators are those of the study's own test cases. `p_maxt` is adjusted within a set. Where folds rotate over
    seeds, every seed is tested on the same external cases, so that folds play no part.

    Args:
        study: The study's settings.
        results: The folder of its tables.
        sources: The source networks of its runs.

    Returns:
        The tables by name; None where the study has no external set.
    """
    path = files.find_table(results, EXTERNAL_CASES)
    names = ("external_summary", "external_comparisons")
    if path is None:
        return dict.fromkeys(names)
    arms, confidence = [arm.name for arm in study.arms], study.analysis.confidence
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    for name, cases in files.read_table(path).groupby("test_set", sort=False):
        own = cases.assign(fold=0) if folds_rotate(study) else cases
        rng = host_rng(study.base_seed, "external", str(name))
        made = (
            comparisons.summary(own, confidence=confidence, sources=sources),
            comparisons.comparisons(own, arms, confidence=confidence, rng=rng, sources=sources),
        )
        for table, parts in zip(made, found.values(), strict=True):
            parts.append(_of_set(str(name), table))
    return {name: pd.concat(parts, ignore_index=True) if parts else None for name, parts in found.items()}


def ensemble_tables_of(study: StudySettings, results: Path) -> dict[str, pd.DataFrame | None]:
    """Makes ensemble_summary.csv and ensemble_comparisons.csv, of the study's own test cases and of each external set.

    Returns:
        The tables by name; None where the study scores no ensembles.
    """
    path = files.find_table(results, ENSEMBLE_CASES)
    names = ("ensemble_summary", "ensemble_comparisons")
    table = pd.DataFrame() if path is None else files.read_table(path)
    if table.empty:
        return dict.fromkeys(names)
    arms, confidence = [arm.name for arm in study.arms], study.analysis.confidence
    sets = [(str(name), cases) for name, cases in table.groupby("test_set", sort=False)]
    summaries = [ensemble_tables.summary(cases, test_set=name, confidence=confidence) for name, cases in sets]
    differences = [ensemble_tables.comparisons(own, arms, test_set=name, confidence=confidence) for name, own in sets]
    return dict(zip(names, (pd.concat(parts, ignore_index=True) for parts in (summaries, differences)), strict=True))


def for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """Reduces a summary or comparison to the rows and columns that a reader wants first.

    Several folds of a training set size are shown together, and columns that are constant are left out.
    """
    together = table["fold"] == POOLED
    several = together.groupby([table[name] for name in ("test_set", "train_cases") if name in table]).transform("any")
    table = table[together | ~several]
    columns = [c for c in READING if c in table and (c not in VARIANTS or table[c].nunique() > 1)]
    return table[columns].reset_index(drop=True)


def format_results(workdir: Path) -> str:
    """Formats what each arm reaches and how arms differ, averaged over labels, as text for a terminal."""
    parts = []
    for name, title in SHOWN.items():
        path = files.find_table(workdir / "results", name)
        table = pd.DataFrame() if path is None else files.read_table(path)
        table = table if table.empty else for_reading(table[table["label"] == MEAN])
        if len(table):
            parts.append(f"{title} (all of them: {workdir / 'results' / name}.csv)\n{formats.to_text(table)}\n")
    return "\n".join(parts)
