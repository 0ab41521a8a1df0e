"""Verdicts over several studies: on targets, on noise levels of one target, and C3, which one study cannot decide.

A claim is supported over studies if at least two independent targets support it and none contradicts; a claim that
says `can` needs one, at a level shared by all studies (Bonferroni). Anything else is inconclusive: one study more could
always have contradicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.analysis.permutation import rank_correlation
from jaxseg.streams import host_rng
from jaxseg.study.claims.accuracy import (
    Cell,
    c2_cells,
    common_rows,
    doubts_of_cell,
    of_dsc,
    size_name,
    sizes_with,
    slope,
)
from jaxseg.study.claims.evidence import (
    Evidence,
    Pair,
    doubts_of_arms,
    doubts_of_groups,
    dsc_contrast,
    gain,
    gather,
)
from jaxseg.study.claims.findings import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    Finding,
    Lacking,
    Quantity,
    few_seeds,
    judge,
    lacking,
)
from jaxseg.study.claims.rules import EXISTENTIAL, LEVEL, MIN_TARGETS, NOISE_LEVELS, P_LIMIT, RULES
from jaxseg.study.claims.study_tables import StudyTables
from jaxseg.study.claims.table import COLUMNS, judge_claims, rows_of

PLACEBO = "scratch_b"
OVER_STUDIES = "over studies"
"""What a row is (column role), beside those of one study."""


# ------------------------------------------------------------------------------------------------- C3, harder tasks


def _noise_slope(noisy: Mapping[float, Evidence], pair: Pair) -> tuple[Quantity, list[str]]:
    """Slope of the gain over noise levels, one level twice the noise of the one below."""
    missing = [level for level in NOISE_LEVELS if level not in noisy]
    if missing:
        raise Lacking(f"needs noise levels {', '.join(map(str, NOISE_LEVELS))}; lacks {', '.join(map(str, missing))}")
    evidences = [noisy[level] for level in NOISE_LEVELS]
    if len({(e.record.target, e.record.number_of_cases(e.size)) for e in evidences}) > 1:
        raise Lacking("the noise levels are of different targets or training set sizes")
    if len({frozenset(evidence.tables["cases"]["case"]) for evidence in evidences}) > 1:
        raise Lacking("the noise levels have different test cases")
    gains = [gain(evidence, pair) for evidence in evidences]
    d = common_rows([(found.seeds, found.d) for found in gains], "noise levels")
    found = of_dsc("slope of the gain a noise level", slope(np.log2(NOISE_LEVELS), d), LEVEL, -1)
    doubts = [*few_seeds(d.shape[1]), *doubts_of_groups(d.shape[2])]
    for evidence in evidences:
        doubts += doubts_of_arms(evidence, pair.arm)
    return found, doubts


def _difficulty_and_gain(evidence: Evidence, size: int, pair: Pair) -> tuple[float, float, int]:
    """How far the baseline is from perfect, on other seeds than those of the gain; the gain; seeds in all.

    Both on the same seeds would correlate by themselves: a seed unlucky for the baseline is hard, and gains much.
    """
    found = gain(evidence, pair, size)
    if PLACEBO in evidence.record.arms and PLACEBO in evidence.scores[size].seeds:
        other = dsc_contrast(evidence, {PLACEBO: 1.0}, size).d
        return 1 - float(other.mean()), float(found.d.mean()), len(found.d)
    own = dsc_contrast(evidence, {pair.baseline: 1.0}, size)
    halved = found.seeds[1::2]
    if len(found.seeds) < 2:
        raise Lacking(f"needs other seeds for the difficulty of {evidence.record.target}")
    difficulty = 1 - float(own.d[np.isin(own.seeds, halved)].mean())
    return difficulty, float(found.d[~np.isin(found.seeds, halved)].mean()), len(found.d)


def _common_size(evidences: Sequence[Evidence], pair: Pair) -> list[int]:
    """The sizes, as each study names them, of the largest number of training cases that all have."""
    named = [{e.record.number_of_cases(size): size for size in sizes_with(e, pair)} for e in evidences]
    shared = set.intersection(*(set(sizes) for sizes in named))
    if not shared:
        raise Lacking("the targets have no training set size in common")
    return [sizes[max(shared)] for sizes in named]


def _correlation(by_target: Mapping[str, Evidence], pair: Pair) -> tuple[list[Quantity], list[str], float, float]:
    """Rank correlation over targets of difficulty and gain: quantities, doubts, and both one-sided p."""
    if len(by_target) < MIN_TARGETS:
        raise Lacking(f"needs at least {MIN_TARGETS} targets of one source and training set size, has {len(by_target)}")
    evidences = list(by_target.values())
    sizes = _common_size(evidences, pair)
    numbers = [_difficulty_and_gain(e, size, pair) for e, size in zip(evidences, sizes, strict=True)]
    difficulty, gains, seeds = (np.array(column) for column in zip(*numbers, strict=True))
    found = rank_correlation(difficulty, gains, rng=host_rng(0))
    doubts = few_seeds(int(seeds.min()))
    for evidence in evidences:
        doubts += doubts_of_arms(evidence, pair.arm)
    quantities = [
        Quantity(f"rank correlation of difficulty and gain, {len(by_target)} targets", found.rho),
        Quantity("one-sided p, positive", found.p_positive),
        Quantity("one-sided p, negative", found.p_negative),
    ]
    return [q._replace(n_seeds=int(seeds.min())) for q in quantities], doubts, found.p_positive, found.p_negative


def of_one_source(evidences: Mapping[str, Evidence], targets: Mapping[str, str], pair: Pair) -> dict[str, Evidence]:
    """By target, the studies of the source and training set size that most targets have; the largest size of equals.

    Of several such studies of a target the first is taken.
    """
    found: dict[tuple[str, int], dict[str, Evidence]] = {}
    for name, evidence in evidences.items():
        for size in sizes_with(evidence, pair):
            shared = evidence.record.source, evidence.record.number_of_cases(size)
            found.setdefault(shared, {}).setdefault(targets[name], evidence)
    return found[max(found, key=lambda at: (len(found[at]), at[1]))] if found else {}


def c3(by_target: Mapping[str, Evidence], noisy: Mapping[float, Evidence], pair: Pair) -> Finding:
    """The gain is larger when the task is harder: over noise levels of one target, and over targets.

    Each part can contradict alone; both are needed to support.
    """
    quantities: list[Quantity] = []
    doubts: list[str] = []
    missing: list[str] = []
    rises = falls = follows = opposes = False
    try:
        slope_found, doubts = _noise_slope(noisy, pair)
        quantities.append(slope_found)
        rises, falls = slope_found.low > 0, slope_found.high < 0
    except Lacking as error:
        missing.append(str(error))
    try:
        found, more, p_positive, p_negative = _correlation(by_target, pair)
        quantities += found
        doubts = [*doubts, *more]
        follows, opposes = p_positive <= P_LIMIT, p_negative <= P_LIMIT
    except Lacking as error:
        missing.append(str(error))
    contradicted = (falls or opposes) and not doubts
    return judge(
        "C3",
        quantities,
        supported=rises and follows,
        contradicted=contradicted,
        doubts=list(dict.fromkeys([*doubts, *([] if contradicted else missing)])),
    )


# ---------------------------------------------------------------------------------------- over independent targets


def _patients(study: StudyTables) -> frozenset[str]:
    """Names of the test groups; empty where a case is its own group, since names of cases are no names of patients."""
    cases = study.tables.get("cases", pd.DataFrame(columns=["case", "group"]))
    return frozenset(cases["group"]) if (cases["group"] != cases["case"]).any() else frozenset()


def independent_targets(studies: Mapping[str, StudyTables]) -> dict[str, str]:
    """The target that each study counts for; targets of the same patients are one, named after both.

    Two phases of the same hearts, for instance: they share at least half of the test groups that the smaller one has.
    """
    patients: dict[str, frozenset[str]] = {}
    for study in studies.values():
        patients[study.record.target] = patients.get(study.record.target, frozenset()) | _patients(study)
    named: dict[str, str] = {}
    for target, own in patients.items():
        alike = [
            other
            for other in named
            if own and patients[other] and len(own & patients[other]) >= min(len(own), len(patients[other])) / 2
        ]
        together = list(dict.fromkeys([*(named[other] for other in alike), target]))
        for member in [target, *(other for other, name in named.items() if name in together)]:
            named[member] = " + ".join(together)
    return {name: named[study.record.target] for name, study in studies.items()}


def _over_targets(claim: str, verdicts: Mapping[str, Sequence[str]]) -> Finding:
    """The verdict from those on each target, of which one may have several studies.

    A target contradicts if one of its studies does, and supports if one does and none contradicts.
    """
    contradicting = [target for target, own in verdicts.items() if CONTRADICTED in own]
    supporting = [target for target, own in verdicts.items() if SUPPORTED in own and CONTRADICTED not in own]
    needed = 1 if claim in EXISTENTIAL else 2
    mixed = "mixed: " if supporting and contradicting else ""
    counts = (
        f"of {len(verdicts)} independent targets {len(supporting)} support ({', '.join(supporting) or 'none'}) and "
        f"{len(contradicting)} contradict ({', '.join(contradicting) or 'none'})"
    )
    quantities = (
        Quantity("targets that support", len(supporting)),
        Quantity("targets that contradict", len(contradicting)),
    )
    if len(supporting) >= needed and not contradicting:
        return Finding(claim, SUPPORTED, counts, quantities)
    return Finding(
        claim, INCONCLUSIVE, f"{mixed}{counts}; needs {needed} that support and none that contradicts", quantities
    )


def _c2(evidences: Mapping[str, Evidence], pair: Pair) -> Finding:
    """C2 over the cells of studies that may carry a verdict: a pilot of few seeds must not take it from the rest."""
    cells, left_out = [], []
    for name, evidence in evidences.items():
        own = [Cell(f"{name}, {size_name(evidence, size)}", evidence, size) for size in sizes_with(evidence, pair)]
        doubts = list(dict.fromkeys(doubt for cell in own for doubt in doubts_of_cell(cell, pair)))
        if doubts:
            left_out.append(f"{name} ({'; '.join(doubts)})")
        else:
            cells += own
    aside = f"left out: {', '.join(left_out)}" if left_out else ""
    try:
        found = c2_cells(cells, pair, LEVEL)
    except Lacking as error:
        found = lacking("C2", str(error))
    return dataclasses.replace(found, reason="; ".join(filter(None, (found.reason, aside))))


def made_noisy(found: Mapping[str, StudyTables]) -> tuple[dict[str, StudyTables], dict[float, StudyTables]]:
    """Tells studies of targets as they are, by name, from those of one target with noise, by level.

    Of several targets that were made noisy the one at most levels is taken.
    """
    as_they_are = {name: study for name, study in found.items() if not study.record.noise}
    by_target: dict[str, dict[float, StudyTables]] = {}
    for study in found.values():
        if study.record.noise:
            by_target.setdefault(study.record.target, {})[study.record.noise] = study
    return as_they_are, max(by_target.values(), key=len, default={})


def over_studies(
    studies: Mapping[str, StudyTables],
    *,
    noisy: Mapping[float, StudyTables] | None = None,
) -> pd.DataFrame:
    """Verdicts over several studies.

    Args:
        studies: By name. Several may have one target (other sources, sizes), or targets of the same patients: they
            count as one, see `independent_targets`.
        noisy: One target with noise added, by its standard deviation in those of the cases (`NOISE_LEVELS`); they
            serve C3 alone.

    Returns:
        The columns of claims.csv; `reason` says which targets support and contradict. Each claim has one verdict.
    """
    pair = Pair()
    evidences = {name: gather(study) for name, study in studies.items()}
    targets = independent_targets(studies)
    findings: dict[str, Finding] = {}
    alone = {name: judge_claims(study) for name, study in studies.items()}
    shared = {name: judge_claims(study, level=LEVEL / len(studies)) for name, study in studies.items()}
    for claim in RULES:
        verdicts: dict[str, list[str]] = {target: [] for target in targets.values()}
        for name, target in targets.items():
            verdicts[target].append((shared if claim in EXISTENTIAL else alone)[name][claim].verdict)
        findings[claim] = _over_targets(claim, verdicts)
    findings["C2"] = _c2(evidences, pair)
    findings["C3"] = c3(
        of_one_source(evidences, targets, pair),
        {level: gather(study) for level, study in (noisy or {}).items()},
        pair,
    )
    rows: list[dict[str, Any]] = []
    for finding in findings.values():
        rows += rows_of(finding, size=None, fold=None, role=OVER_STUDIES, arm=pair.arm, baseline=pair.baseline)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("n_seeds", "n_groups", "train_cases", "fold"), "Int64"))
