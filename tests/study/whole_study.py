"""A whole simulated study in which transfer helps, and what claims tests ask of studies."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.findings import Finding
from jaxseg.study.claims.judging import judge_claim
from jaxseg.study.claims.rules import RULES
from jaxseg.study.claims.study_tables import StudyTables
from simulated import tables as sim

ARMS = ("scratch", "transfer", "scratch_b", "frozen_random_encoder", "pooled_encoder", "prior")
RATES = {"scratch": 1e-3, "scratch_low": 3e-4, "scratch_high": 3e-3}
B = {"scratch_b": 1000}


def whole_study(seeds=16, sizes=(8, 16, 32, 48, 0), **arms) -> StudyTables:
    """Every table of a study in which transfer helps, with a placebo, from eight source networks."""
    gains = dict(zip((8, 16, 32, 48, 0), (0.06, 0.04, 0.02, 0.01, 0.0), strict=True))
    lost = dict(zip((8, 16, 32, 48, 0), (0.2, 0.1, 0.05, 0.02, 0.0), strict=True))
    levels = {arm: {size: 0.8 - lost[size] for size in sizes} for arm in ("scratch", "scratch_b")}
    levels["transfer"] = {size: 0.8 - lost[size] + gains[size] for size in sizes}
    levels |= {name: {0: 0.8} for name in ("scratch_low", "scratch_high")}
    levels |= {"frozen_random_encoder": dict.fromkeys(sizes, 0.79), "prior": dict.fromkeys(sizes, 0.4)}
    levels["pooled_encoder"] = dict.fromkeys(sizes, 0.7)
    known = {name: sim.arm(rates=dict.fromkeys(sizes, (rate,)), like="scratch") for name, rate in RATES.items()}
    sources = {seed: seed // 2 for seed in range(seeds)}
    known["transfer"] = sim.arm(pretrain_steps=1500, sources=sources)
    speeds = {arm: 1.8 if arm == "transfer" else 1.0 for arm in ARMS if arm != "prior"}
    draw = rng(5)
    of = sim.nested_points(draw, sources=seeds // 2, ratio=1.2, k=200)
    of["transfer"] = of["transfer"] + np.sqrt(2 * 0.5 / 200)
    of["scratch_b"] = sim.points(draw, seeds=seeds, k=200)["scratch"]
    similarity = [
        sim.between_runs(of, first_seed=B),
        sim.to_source(draw, (0.6, 0.6, 0.5, 0.5, 0.5), seeds=seeds),
        sim.own_starts(draw, ("scratch",), {"cka_cases": 0.8, "procrustes": 0.8}, seeds=seeds),
    ]
    kinds = ("disagreement", "parameter_distance_aligned", "barrier_aligned")
    curves = sim.curves(draw, speeds, seeds=seeds, gain=0.005, noise=0.002, first_seed=B)
    return sim.study(
        sim.record(*ARMS, **{**known, **arms}),
        cases=sim.cases(draw, levels, seeds=seeds, first_seed=B, spread=(0.002, 0.002, 0.004)),
        curves=sim.at_sizes(curves, sizes),
        filters=sim.filters(draw, tuple(RATES), seeds=seeds),
        filter_controls=sim.filter_controls(),
        similarity=pd.concat(similarity),
        pairs=sim.pairs({kind: sim.nested_points(draw, sources=seeds // 2, ratio=1.5, k=60) for kind in kinds}),
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def judged(study: StudyTables, claim: str) -> Finding:
    return judge_claim(claim, gather(study))


def reasons(study: StudyTables) -> dict[str, Finding]:
    evidence = gather(study)
    return {claim: judge_claim(claim, evidence) for claim in RULES}


def changed(study: StudyTables, name: str, **columns) -> StudyTables:
    """The study with other columns in one table."""
    return study._replace(tables={**study.tables, name: study.tables[name].assign(**columns)})


def without(study: StudyTables, arm: str) -> StudyTables:
    """The study as if it had never had an arm."""
    record = study.record._replace(arms={name: one for name, one in study.record.arms.items() if name != arm})
    tables = dict(study.tables)
    for name, rows in tables.items():
        for column in {"arm", "arm_a", "arm_b"} & set(rows.columns):
            rows = rows[rows[column] != arm]
        tables[name] = rows
    return StudyTables(record, tables)


def altered(study, change):
    """The study with something missing."""
    if name := change.get("without"):
        study = without(study, name)
    tables = {name: rows for name, rows in study.tables.items() if name != change.get("drop")}
    if comparison := change.get("comparison"):
        tables["similarity"] = tables["similarity"][tables["similarity"]["comparison"] != comparison]
    if sizes := change.get("sizes"):
        tables = {"cases": tables["cases"][tables["cases"]["train_cases"].isin(sizes)]}
    if groups := change.get("groups"):
        names = tables["cases"]["group"].unique()[:groups]
        tables["cases"] = tables["cases"][tables["cases"]["group"].isin(names)]
    arms = {**study.record.arms, **change.get("arms", {})}
    return StudyTables(study.record._replace(arms=arms, **change.get("record", {})), tables)


def verdict(table: pd.DataFrame, claim: str, role: str = "claim") -> pd.Series:
    """The first row of a claim, whose rows all say the same."""
    rows = table[(table["claim"] == claim) & (table["role"] == role)]
    assert rows["verdict"].nunique() == rows["reason"].nunique() == 1
    return rows.iloc[0]
