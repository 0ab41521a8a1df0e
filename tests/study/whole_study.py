"""A whole simulated study in which transfer helps, and what claims tests ask of studies."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.findings import Finding
from jaxseg.study.claims.rules import RULES
from jaxseg.study.claims.study_tables import StudyTables
from jaxseg.study.claims.table import judge_claim
from simulated import tables as sim

ARMS = ("scratch", "scratch_double", "transfer", "scratch_b", "frozen_random_encoder", "prior")
B = {"scratch_b": 1000}


def whole_study(seeds=8, sizes=(8, 16, 32, 0), **arms) -> StudyTables:
    """Every table of a study in which transfer helps, with a placebo."""
    gains = dict(zip((8, 16, 32, 0), (0.06, 0.04, 0.02, 0.0), strict=True))
    levels = {arm: dict.fromkeys(sizes, 0.8) for arm in ("scratch", "scratch_double", "scratch_b")}
    levels["transfer"] = {size: 0.8 + gains[size] for size in sizes}
    levels |= {"frozen_random_encoder": dict.fromkeys(sizes, 0.78), "prior": dict.fromkeys(sizes, 0.4)}
    speeds = dict.fromkeys(ARMS[:-1], 1.0) | {"transfer": 1.8}
    draw = rng(5)
    of = sim.points(draw, seeds=seeds, shift=1.0)
    of["scratch_b"] = sim.points(draw, seeds=seeds)["scratch"]
    similarity = [
        sim.between_runs(of, first_seed=B),
        sim.to_source(draw, (0.6, 0.6, 0.5, 0.5, 0.5), seeds=seeds),
        sim.own_starts(draw, ("scratch", "scratch_double"), {"cka_debiased": 0.8, "procrustes": 0.8}, seeds=seeds),
    ]
    kinds = ("disagreement", "parameter_distance", "barrier")
    return sim.study(
        sim.record(*ARMS, **arms),
        cases=sim.cases(draw, levels, seeds=seeds, first_seed=B, spread=(0.002, 0.002, 0.004)),
        curves=sim.curves(draw, speeds, seeds=seeds, first_seed=B),
        filters=sim.filters(draw, ("scratch", "scratch_double"), seeds=seeds),
        filter_controls=sim.filter_controls(),
        similarity=pd.concat(similarity),
        pairs=sim.pairs({kind: sim.points(draw, seeds=seeds, k=60, scale=1.5) for kind in kinds}),
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


def verdict(table: pd.DataFrame, claim: str, role: str = "claim") -> pd.Series:
    """The first row of a claim, whose rows all say the same."""
    rows = table[(table["claim"] == claim) & (table["role"] == role)]
    assert rows["verdict"].nunique() == rows["reason"].nunique() == 1
    return rows.iloc[0]
