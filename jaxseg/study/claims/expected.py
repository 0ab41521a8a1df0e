"""The tables that a planned study will write, as far as claims read them: the rows are real, the values are made up.

Rows follow from the plan alone: which runs there are, what each is tested on, at which steps it is validated, and which
networks are compared. The values are those of a study in which nothing stands in the way of a verdict, so that what a
claim says it lacks here is lacking in the plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from jaxseg import trees
from jaxseg.analysis.case_similarity import MIN_CASES
from jaxseg.models import layer_names
from jaxseg.streams import host_rng
from jaxseg.study.claims.rules import CONTROL_SHARE, INDEXES, RANDOM, SHAPES
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.program import Program, abstract_params, feature_grids, param_labels
from jaxseg.study.plan.runs import Run
from jaxseg.study.plan.tasks import spread
from jaxseg.study.probe import representations
from jaxseg.study.probe.filters import CONTROL_LAYERS
from jaxseg.study.probe.networks import Networks, earlier_steps, kernel_layers
from jaxseg.study.probe.probes import WINDOWS
from jaxseg.study.probe.representations import POINTS_PER_NEURON
from jaxseg.study.score.comparisons import baseline_of

GAINS = ("transfer", "self_transfer")
"""Arms that do better than others in these tables, so that a positive control shows what it is there for."""

Rows = list[dict[str, Any]]
Trained = dict[str, tuple[Program, list[Run]]]
"""The program of each arm of a variant, and its runs, seeds ascending."""


def expected_tables(planned: PlannedStudy) -> dict[str, pd.DataFrame]:
    """The tables of `study_tables.TABLES` that the study will have, by name."""
    rng = host_rng(0, "expected")
    tables = {"cases": pd.DataFrame(_case_rows(planned, rng)), "curves": pd.DataFrame(_curve_rows(planned))}
    if planned.study.analysis.cases:
        made: dict[str, Rows] = {name: [] for name in ("filters", "filter_controls", "similarity", "pairs")}
        variants = _variants(planned)
        largest = max((size for size, _ in variants), key=lambda size: size or math.inf, default=0)
        # Networks are judged at the largest training set size alone, and tables of all sizes would take a while.
        for (size, fold), trained in variants.items():
            if size != largest:
                continue
            for name, rows in _looked_at(planned, fold, trained, rng).items():
                made[name] += [{**row, "train_cases": size, "fold": fold} for row in rows]
        tables |= {name: pd.DataFrame(rows) for name, rows in made.items() if rows}
    return tables


def _variants(planned: PlannedStudy) -> dict[tuple[int, int], Trained]:
    """Training set sizes and folds, with what is trained in each, in the order of arms."""
    found: dict[tuple[int, int], Trained] = {}
    names = [arm.name for arm in planned.study.arms]
    every = [(job.program, run) for job in planned.plan.of_kind("train") for run in job.runs]
    for program, run in sorted(every, key=lambda one: (names.index(one[1].key.arm), one[1].key.seed)):
        found.setdefault(run.key[1:3], {}).setdefault(run.key.arm, (program, []))[1].append(run)
    return found


# ---------------------------------------------------------------------------------------------------- scores, curves


def _case_rows(planned: PlannedStudy, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    target = planned.study.target
    group = {case.name: case.group for case in planned.tasks.prepared[target].cases}
    sizes = sorted({size for arm in planned.study.arms for size in arm.train_cases}, key=lambda size: size or math.inf)
    runs = [run for job in planned.plan.of_kind("train") for run in job.runs]
    for run in (*runs, *planned.plan.priors):
        place = sizes.index(run.key.train_cases)
        level = 0.5 + 0.3 * place / len(sizes) + (0.05 / (1 + place) if run.key.arm in GAINS else 0.0)
        if run in planned.plan.priors:
            level = 0.1
        for case in planned.tasks.splits[target][run.key.fold].test:
            dsc = level + 0.001 * rng.normal()
            yield {**run.key._asdict(), "case": case, "group": group[case], "label": "", "status": "ok", "dsc": dsc}


def _curve_rows(planned: PlannedStudy) -> Iterator[dict[str, Any]]:
    """Loss and validation DSC where they are both known: at the steps that the loop validates at."""
    for job in planned.plan.of_kind("train"):
        train = job.program.train
        steps = sorted({*range(0, train.steps, train.eval_every), *train.scored_at, train.steps})
        for run, step in itertools.product(job.runs, steps):
            # Each run a little slower than the one before: nothing may vary by nothing.
            half = train.steps / (40 if run.key.arm in GAINS else 10) * (1 + 0.01 * (run.key.seed % 7))
            yield {**run.key._asdict(), "step": step, "loss": 0.5, "val_dsc": 0.8 * step / (step + half)}


# ------------------------------------------------------------------------------------------------------- the networks


def _looked_at(planned: PlannedStudy, fold: int, trained: Trained, rng: np.random.Generator) -> dict[str, Rows]:
    """Rows of the analyses of one variant."""
    study = planned.study
    baseline = baseline_of([arm.name for arm in study.arms])
    whole = {arm.name: arm.init == "pretrained" for arm in study.arms}
    shown = spread(planned.tasks.splits[study.target][fold].test, study.analysis.cases)
    groups = {planned.tasks.prepared[study.target].record(name).group for name in shown}
    # Different cases are compared where there are enough of them; the rows are there either way.
    known = {index: index != INDEXES[0] or len(groups) >= MIN_CASES for index in (*INDEXES, SHAPES)}
    rows: dict[str, Rows] = {"filters": [], "filter_controls": [], "similarity": [], "pairs": []}
    for name, (program, runs) in trained.items():
        rows["filters"] += _filter_rows(
            name, program, runs, (*earlier_steps(study, program.train), program.train.steps), rng
        )
        if name == baseline:
            rows["filter_controls"] += _control_rows(name, program)
        rows["pairs"] += [
            {"quantity": "disagreement", "arm_a": name, "arm_b": name, "seed_a": a.key.seed, "seed_b": b.key.seed,
             "value": 0.1 + 0.01 * rng.uniform()}
            for a, b in itertools.combinations(runs, 2)
        ]  # fmt: skip
    networks = [_networks(name, program, runs, whole[name]) for name, (program, runs) in trained.items()]
    first, source = representations.references(networks, baseline)
    for arm in networks:
        usable = _usable_layers(arm.program, len(shown), study.analysis.positions)
        steps = [(arm.step, True), *((step, False) for step in earlier_steps(study, arm.program.train))]
        for step, of_starts in steps:
            for a, b, names in representations.compared(arm, first, source, of_starts=of_starts):
                rows["similarity"] += _similarity_rows(a, b, names, step, usable, known, rng)
    return rows


def _filter_rows(arm: str, program: Program, runs: list[Run], steps: tuple[int, ...], rng: np.random.Generator) -> Rows:
    labels = trees.flatten(param_labels(program))
    shapes = trees.flatten(abstract_params(program))
    rows = []
    for step, layer, run in itertools.product(steps, kernel_layers(shapes), runs):
        path = f"{layer}/kernel"
        number = 0.01 * rng.uniform()
        rows.append(
            {
                **{"arm": arm, "seed": run.key.seed, "layer": layer, "step": step},
                **{"filters": shapes[path].shape[-1], "trained": labels[path] == "train"},
                **{"angle_deg": 20 + number, "distribution_start": 0.0, "distribution_end": number},
                **{"moran_end": number, "moran_expected": 0.0, "spectral_start": 0.0, "spectral_end": number},
                "auc_permuted": 0.5 + number,
            }
        )
    return rows


def _control_rows(arm: str, program: Program) -> Rows:
    encoder = [layer for layer in kernel_layers(trees.flatten(abstract_params(program))) if layer.startswith("encoder")]
    return [
        {"arm": arm, "layer": layer, "quantity": quantity, "smallest_share": CONTROL_SHARE}
        for layer in spread(encoder, CONTROL_LAYERS)
        for quantity in RANDOM
    ]


def _networks(arm: str, program: Program, runs: list[Run], whole: bool) -> Networks:
    """Runs as the analyses know them, without parameters."""
    return Networks(
        arm,
        program,
        tuple(run.key.seed for run in runs),
        {},
        {},
        whole,
        tuple(run.source for run in runs),
        tuple(run.init_id for run in runs),
        tuple(run.order_id for run in runs),
        np.zeros((len(runs), program.train.steps)),
    )


def _usable_layers(program: Program, cases: int, most: int) -> dict[str, bool]:
    """Layers whose features are compared, and whether they can be read at enough sites for their channels.

    Sites are counted as if all positions were apart; features are those of windows of the analysed cases.
    """
    grids = feature_grids(program)
    positions = max(most // (cases * WINDOWS), 3)
    found = {}
    for layer in layer_names(program.model):
        width = program.model.widths[int(layer.rpartition("_")[2])]
        sites = cases * WINDOWS * min(positions, math.prod(grids[layer]))
        found[layer] = sites >= POINTS_PER_NEURON * width
    return found


def _similarity_rows(
    a: representations.End,
    b: representations.End,
    names: representations.Names,
    step: int,
    usable: dict[str, bool],
    known: dict[str, bool],
    rng: np.random.Generator,
) -> Rows:
    pairs = [(i, j, name) for i in range(len(a.networks)) for j in range(len(b.networks)) for name in names(i, j)]
    shared = [layer for layer in layer_names(b.networks.program.model) if layer in usable]
    rows = []
    for layer, (i, j, name), measure in itertools.product(shared, pairs, known):
        value = (0.7 if name == "to_source" else 0.4) + 0.01 * rng.uniform()
        rows.append(
            {
                **{"layer": layer, "comparison": name, "index": measure, "step": step},
                **{"arm_a": a.networks.arm, "seed_a": a.networks.seeds[i]},
                **{"arm_b": b.networks.arm, "seed_b": b.networks.seeds[j]},
                "value": value if usable[layer] and known[measure] else math.nan,
            }
        )
    return rows
