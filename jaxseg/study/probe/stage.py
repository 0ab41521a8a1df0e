"""Measures for the stage `analyze`: from checkpoints to tables, one variant (train size, fold) after another.

A variant's tables lie in a folder of their own until all are there, so that a crash costs one variant at most, and a
second run measures nothing anew. Nothing here needs the machine that trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxseg import checkpoint
from jaxseg.seeds import SeedPlan
from jaxseg.settings import EvaluateSettings
from jaxseg.study import files, record
from jaxseg.study.plan.jobs import seed_plan
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.program import Program
from jaxseg.study.predict import PredictSlabs
from jaxseg.study.probe import filters, pictures, readout, representations, spread, variation
from jaxseg.study.probe.networks import Networks, forward_program, numbers_of_seeds, read_networks, variants
from jaxseg.study.probe.probes import Probes, judged_cases, make_probes, rng_for, shown_cases
from jaxseg.study.probe.representations import Represented
from jaxseg.study.score.comparisons import baseline_of
from jaxseg.study.score.units import sources_of
from jaxseg.types import Progress

TABLES = {
    "filters": (
        *("arm", "seed", "train_cases", "fold", "layer", "step", "taps", "channels", "filters", "trained"),
        *("angle_deg", "angle_q25", "angle_q75", "angle_of_null", "angle_null_sd", "angle_noise_deg"),
        *("relative_change", "relative_change_of_null", "norm_ratio", "distribution_start", "distribution_end"),
        *("moran_start", "moran_end", "moran_expected", "moran_p", "centre_start", "centre_end", "centre_of_null"),
        *("spectral_start", "spectral_end", "auc", "auc_permuted"),
    ),
    "coherence": ("arm", "train_cases", "fold", "layer", "seed_a", "seed_b", "cosine"),
    "filter_controls": ("arm", "train_cases", "fold", "layer", "quantity", "smallest_share"),
    "rewind": ("arm", "seed", "train_cases", "fold", "layer", "how", "dsc", "dsc_rewound", "drop"),
    "similarity": (
        *("layer", "comparison", "arm_a", "seed_a", "step_a", "arm_b", "seed_b", "step_b", "train_cases", "fold"),
        *("step", "source_a", "source_b", "index", "value", "n_points", "n_neurons"),
    ),
    "layer_similarity": ("arm", "seed", "train_cases", "fold", "layer_a", "layer_b", "index", "value"),
    "probes": ("arm", "seed", "train_cases", "fold", "layer", "site", "score", "n_points"),
    "pairs": (
        *("train_cases", "fold", "quantity", "arm_a", "seed_a", "source_a", "arm_b", "seed_b", "source_b", "value"),
    ),
    "interpolation": ("train_cases", "fold", "arm", "seed_a", "seed_b", "alpha", "loss"),
    "variability": (
        *("arm", "train_cases", "fold", "quantity", "layer", "value", "ci_low", "ci_high", "n_seeds", "n_pairs"),
    ),
}
"""The tables of this stage, by name, with their columns."""
SOURCES = ("source_a", "source_b")
"""Columns of seeds that are empty if a run has no source network."""
PICTURES = "analysis"
"""Name of the file of pictures (.npz) and of the list that says what they are (.json)."""
DONE = "done.json"
"""Name of the file that is written once everything else of a variant is."""
FORMULAS = 2
"""Rises with every change of what the tables hold: what was measured under another number is measured anew."""

Rows = dict[str, list[dict[str, Any]]]


def write_analyses(planned: PlannedStudy, progress: Progress) -> None:
    """Measures what is not yet measured and writes the tables of all variants; none if no arm has a network."""
    todo = variants(planned)
    if not todo:
        return
    folders = [planned.workdir / "analysis" / f"n{train_cases}_fold{fold}" for train_cases, fold in todo]
    for number, ((train_cases, fold), folder) in enumerate(zip(todo, folders, strict=True)):
        whole = _measured_of(planned, train_cases, fold)
        if _is_measured(folder, whole):
            continue

        def tell(what: str, number: int = number, folder: Path = folder) -> None:
            progress("measuring", number, len(todo), f"{folder.name}: {what}")

        rows, (arrays, entries) = measure(planned, train_cases, fold, tell)
        for name, columns in TABLES.items():
            table = pd.DataFrame(rows[name]).assign(train_cases=train_cases, fold=fold)
            table = table.reindex(columns=list(columns))
            table = table.astype({column: "Int64" for column in SOURCES if column in columns})
            files.write_table(folder / f"{name}.csv", table)
        files.write_arrays(folder / f"{PICTURES}.npz", arrays)
        files.write_json(folder / f"{PICTURES}.json", entries)
        files.write_json(folder / DONE, whole)
    results = planned.workdir / "results"
    for name in TABLES:
        parts = [files.read_table(folder / f"{name}.csv") for folder in folders]
        parts = [part for part in parts if len(part)] or parts[:1]
        table = pd.concat(parts, ignore_index=True)
        table = table.astype({column: "Int64" for column in SOURCES if column in table})
        files.write_table(results / f"{name}.csv", table)
    # Pictures of one variant stand for all: of the largest training set, as in the rest of the page, its first fold.
    largest = max(todo, key=lambda variant: (variant[0] == 0, variant[0], -variant[1]))
    for suffix in ("npz", "json"):
        files.copy(folders[todo.index(largest)] / f"{PICTURES}.{suffix}", results / f"{PICTURES}.{suffix}")
    progress("measuring", len(todo), len(todo))


def _measured_of(planned: PlannedStudy, train_cases: int, fold: int) -> dict[str, Any]:
    """What a variant's tables and pictures are made of; a study may be given more runs later, and show more cases."""
    keys = [run.key for job in planned.plan.of_kind("train") for run in job.runs]
    runs = sorted([key.arm, key.seed] for key in keys if (key.train_cases, key.fold) == (train_cases, fold))
    networks = {
        job.directory: checkpoint.networks_of(
            planned.workdir / job.directory / "checkpoints", job.program.train.scored_at
        )
        for job in planned.plan.of_kind("train")
        if any((run.key.train_cases, run.key.fold) == (train_cases, fold) for run in job.runs)
    }
    made = {"tables": list(TABLES), "formulas": FORMULAS, "examples": planned.study.report.examples, "runs": runs}
    numbers = numbers_of_seeds(planned)
    return {**made, "networks": networks, **({"waves": list(numbers)} if len(numbers) > 1 else {})}


def _is_measured(folder: Path, whole: dict[str, Any]) -> bool:
    """Whether all runs of a variant were measured and all of its files are there as they were written."""
    names = (*(f"{name}.csv" for name in TABLES), f"{PICTURES}.npz", f"{PICTURES}.json")
    # An earlier version did not note which networks it measured.
    done = (
        files.are_sound([folder / DONE]) and {"networks": whole["networks"], **files.read_json(folder / DONE)} == whole
    )
    return done and files.are_sound(folder / name for name in names)


class Tools(NamedTuple):
    """Functions compiled for one network, which arms that differ only in their parameters share."""

    record: Callable[..., Any]
    judge: variation.Judge
    predict: PredictSlabs


@functools.lru_cache(maxsize=8)  # arms, variants and studies of one network: traced and compiled once
def make_tools(program: Program, plan: SeedPlan, num_runs: int, settings: EvaluateSettings) -> Tools:
    """Makes the functions that analyse networks of a program (see `forward_program`), `num_runs` at once."""
    return Tools(
        representations.make_recorder(program, plan),
        variation.make_judge(program, plan),
        variation.make_predict(program, plan, num_runs, settings),
    )


def measure(
    planned: PlannedStudy, train_cases: int, fold: int, tell: Callable[[str], None]
) -> tuple[Rows, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Makes the rows of all tables of one variant, and its pictures with the list that describes them."""
    study, settings = planned.study, planned.study.analysis
    shown, judged = shown_cases(planned, fold), judged_cases(planned, fold)
    probes = make_probes(planned, shown, rng_for(planned, "positions", fold))
    windows = make_probes(planned, judged, rng_for(planned, "windows", fold))
    baseline = baseline_of([arm.name for arm in study.arms])
    rows: Rows = {name: [] for name in TABLES}
    represented: list[Represented] = []
    halfway: list[Represented] = []
    predicted: list[variation.Predicted] = []
    montages: list[tuple[dict[str, np.ndarray], list[dict[str, Any]]]] = []
    for networks in read_networks(planned, train_cases, fold):
        arm, plan = networks.arm, seed_plan(planned.study, len(networks))
        own = make_tools(forward_program(study, networks.program), plan, len(networks), study.evaluate)
        tell(f"{arm}, filters")
        montages.append(_measure_filters(planned, networks, rows, (train_cases, fold), arm == baseline))
        tell(f"{arm}, layers set back, and lines between runs")
        _measure_altered(networks, windows, own.judge, plan, rows, settings.barrier_pairs)
        tell(f"{arm}, features")
        represented.append(representations.represent(networks, probes, own.record, plan))
        halfway += [
            representations.represent(seen, probes, own.record, plan, represented[-1])
            for seen in networks.seen_earlier()
        ]
        rows["layer_similarity"] += representations.layer_rows(represented[-1])
        if settings.probes:
            rows["probes"] += readout.probe_rows(represented[-1], probes)
        tell(f"{arm}, predictions")
        predicted.append(variation.predict_cases(networks, shown, own.predict, plan))
    if not represented:  # every run diverged
        return rows, pictures.merge([], ({}, []), train_cases, fold)
    tell("similarity of all pairs")
    ends = representations.similarity_rows(represented, baseline)
    rows["similarity"] = ends + representations.similarity_rows(halfway, baseline, of_starts=False)
    tell("agreement of all pairs")
    target = planned.tasks.prepared[study.target]
    shared = sources_of(record.read(planned.workdir))
    found = variation.agreement(predicted, shown, baseline, target, shared)
    rows["pairs"] += variation.agreement_rows(predicted, found)
    for row in rows["pairs"]:
        row |= {f"source_{side}": shared.of.get(row[f"arm_{side}"], {}).get(row[f"seed_{side}"]) for side in "ab"}
    cases = files.read_table(planned.workdir / "results" / "cases.csv")
    cases = cases[(cases["train_cases"] == train_cases) & (cases["fold"] == fold)]
    rows["variability"] = spread.variability_rows(
        represented, found, rows["pairs"], ends, cases, confidence=settings.confidence, sources=shared
    )
    overlays = pictures.overlays(predicted, shown, study.report.examples, target.classes)
    return rows, pictures.merge(montages, overlays, train_cases, fold)


def _measure_filters(
    planned: PlannedStudy, networks: Networks, rows: Rows, variant: tuple[int, int], controlled: bool
) -> pictures.Pictures:
    """Adds the rows of what became of an arm's filters; gives their pictures."""
    draws = functools.partial(rng_for, planned, "filters", networks.arm, *variant)
    rows["filters"] += filters.filter_rows(networks, draws)
    rows["coherence"] += filters.coherence_rows(networks)
    if controlled:
        rows["filter_controls"] += filters.control_rows(networks, draws("controls"))
    shown = pictures.montages(networks, draws("montages"))
    for seen in networks.seen_earlier():
        rows["filters"] += filters.filter_rows(seen, draws)
    return shown


def _measure_altered(
    networks: Networks, windows: Probes, judge: variation.Judge, plan: SeedPlan, rows: Rows, most: int
) -> None:
    """Adds the rows of an arm's runs with layers set back, and of what lies between about `most` pairs of them.

    Pairs are taken as they are, and with their channels aligned.
    """
    pairs = variation.pairs_of(len(networks), most)
    rows["pairs"] += variation.parameter_rows(networks)
    partners = variation.aligned_partners(networks, judge.wiring, pairs) if pairs else None
    if partners is not None:
        rows["pairs"] += variation.aligned_parameter_rows(networks, pairs, partners)
    # Running statistics of batch norms belong to no network in between, and to none with a layer of another.
    if networks.program.model.norm == "batch":
        return
    rewound, own = variation.rewind_rows(networks, windows, judge, plan)
    rows["rewind"] += rewound
    if partners is None:
        return
    lines, aligned = variation.path_rows(networks, windows, judge, plan, pairs, partners, own)
    rows["interpolation"] += lines
    rows["pairs"] += variation.barrier_rows(lines) + variation.barrier_rows(aligned, "barrier_aligned")
