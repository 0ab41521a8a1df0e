"""Turns evidence into verdicts: each claim alone, then over looks at the data and the family that shares a level."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxseg.study.claims import accuracy, differing, filters, frozen, representation, reuse, training, variability
from jaxseg.study.claims.evidence import ONE_RATE, OWN_RATES, Alone, Evidence, Pair, gather, seen_by
from jaxseg.study.claims.findings import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    VOID,
    Finding,
    Lacking,
    Measured,
    Void,
    judge,
)
from jaxseg.study.claims.frozen import Idle, Trio
from jaxseg.study.claims.needs import of_claim
from jaxseg.study.claims.rest import tag_of
from jaxseg.study.claims.rules import LEVEL, LOOK_LEVELS, ONE_FAMILY, RULE_VERSION, RULES
from jaxseg.study.claims.study_tables import Record, StudyTables

DECIDED = (SUPPORTED, CONTRADICTED)
Arms = Pair | Trio | Idle | Alone


class Judge(NamedTuple):
    """The test of a claim and the arms that it is about."""

    measure: Callable[[Evidence, Any], Measured]
    arms: Arms
    one_size: bool = True
    """Whether the claim is tested at any one training set size, instead of over sizes or at the full one."""


JUDGES: Mapping[str, Judge] = {
    "C1": Judge(training.c1, Pair()),
    "C2": Judge(differing.c2, Pair(), one_size=False),
    "C4": Judge(accuracy.c4, Pair(), one_size=False),
    "C4b": Judge(accuracy.c4b, Pair(), one_size=False),
    "C5": Judge(filters.c5, Alone()),
    "C6": Judge(filters.c6, Alone()),
    "C7": Judge(frozen.c7, Trio()),
    "C8": Judge(frozen.c8, Idle()),
    "C9": Judge(representation.c9, Pair()),
    "C10": Judge(variability.c10, Pair()),
    "C11": Judge(reuse.c11, Pair()),
    "C11b": Judge(reuse.c11b, Pair()),
}
"""The tests of the claims that one study can decide: all but C3."""
CROSSED = "runs of {arms} share ids of crossed random streams: no independent sample; needs arms without cross"
SEVERAL_STUDIES = "needs several studies: 8 targets of one source, with 4 noise levels of one of them beside"


def subject(record: Record) -> Pair:
    """Returns the arms that claims on transfer are about: where a study has no `transfer`, `given` takes its place."""
    own = Pair()
    return own._replace(arm=record.given[0]) if own.arm not in record.arms and record.given else own


def arms_of(claim: str, record: Record, control: Arms | None = None) -> Arms:
    """Returns the arms that a claim is about in a study.

    Args:
        claim: A key of `RULES`.
        record: The study's record.
        control: Arms that take the place of the claim's own.
    """
    own = JUDGES[claim].arms if claim in JUDGES else Pair()
    about = control or (subject(record) if isinstance(own, Pair) else own)
    return variability.nested_pair(record, about) if claim == "C10" and isinstance(about, Pair) else about


# --------------------------------------------------------------------------------------------------------- one claim


def _losses(record: Record, arms: Sequence[str]) -> str:
    """Runs of these arms that diverged and are therefore part of nothing."""
    known = {arm: record.arms[arm] for arm in arms if arm in record.arms}
    return ", ".join(
        f"{found.diverged} of {found.runs} runs of {arm}" for arm, found in known.items() if found.diverged
    )


def measure_claim(claim: str, evidence: Evidence, arms: Arms | None = None) -> Measured | Finding:
    """Measures the quantities of a claim; returns a finding instead if they cannot be measured."""
    if claim not in JUDGES:
        return Finding(claim, "", SEVERAL_STUDIES, lacks=True)
    about = arms_of(claim, evidence.record, arms)
    if crossed := [arm for arm in about if arm in evidence.record.arms and evidence.record.arms[arm].crossed]:
        return Finding(claim, "", CROSSED.format(arms=" and ".join(crossed)), lacks=True)
    try:
        return JUDGES[claim].measure(evidence, about)
    except Lacking as error:
        return Finding(claim, "", str(error), lacks=True)
    except Void as error:
        return Finding(claim, VOID, str(error))


def newer_rules(record: Record) -> str:
    """Returns why these rules were not fixed before a study began; empty if they were."""
    if record.rule_version == RULE_VERSION:
        return record.exploratory
    return f"rules of version {RULE_VERSION} on a study that was begun under version {record.rule_version}"


def why_exploratory(record: Record) -> str:
    """Returns why what all seeds of a study give was not fixed in advance; empty if it was."""
    later = "seeds were added without declared looks" if record.grown_from and not record.looks else ""
    return "; ".join(filter(None, (newer_rules(record), later)))


def judge_claim(claim: str, evidence: Evidence, arms: Arms | None = None, *, sharing: int = 1) -> Finding:
    """Judges a single claim at the level of the evidence.

    Args:
        claim: A key of `RULES`.
        evidence: The study at the training set size to judge.
        arms: Arms of a control, which take the place of the claim's own.
        sharing: Claims that have to share the level with which a larger study would decide this one.
    """
    measured = measure_claim(claim, evidence, arms)
    found = measured if isinstance(measured, Finding) else judge(claim, measured)
    exploratory = newer_rules(evidence.record)
    if not isinstance(measured, Finding):
        found = dataclasses.replace(found, tag=tag_of(evidence, measured.arms))
        if found.verdict == UNDECIDED:
            blocking = dict.fromkeys(ONE_RATE if doubt.startswith(OWN_RATES) else doubt for doubt in measured.doubts)
            needs = "; ".join(blocking) or _needs(claim, evidence, arms, measured, found.needs, sharing)
            found = dataclasses.replace(found, needs=needs)
        own_rates = [doubt for doubt in measured.doubts if doubt.startswith(OWN_RATES)]
        exploratory = "; ".join(filter(None, (exploratory, *own_rates)))
    measured_on = () if isinstance(measured, Finding) else measured.arms
    about = tuple(dict.fromkeys((*arms_of(claim, evidence.record, arms), *measured_on)))
    if lost := _losses(evidence.record, about):
        found = dataclasses.replace(found, reason=f"{found.reason}; left out, as diverged: {lost}")
    if (seen := seen_by(evidence.record, *about)) and not found.lacks:
        found = dataclasses.replace(found, reason=f"{found.reason}; {seen}")
    if found.lacks:
        return dataclasses.replace(found, needs=found.reason)
    return dataclasses.replace(found, exploratory=exploratory)


def _needs(claim: str, evidence: Evidence, arms: Arms | None, measured: Measured, otherwise: str, sharing: int) -> str:
    """What would decide a claim that is undecided without a doubt about it; `otherwise` is what its rule says."""
    later, looks = with_more_seeds(evidence)
    later = dataclasses.replace(later, level=later.level / sharing)
    there = measured if later.level == evidence.level else measure_claim(claim, later, arms)
    return otherwise if isinstance(there, Finding) else of_claim(there, otherwise, looks)


# ------------------------------------------------------------------------------------------------------------- family


def _with_holm(evidence: Evidence, findings: Mapping[str, Finding]) -> dict[str, Finding]:
    """Takes back verdicts of the family that do not hold when its claims share the level.

    Holm (1979): of m claims the first must be decided at the level over m, the next at the level over m - 1, and so on
    until one is not. A claim's p is the smallest level at which its rule decides it, so that the k - 1 claims decided
    at the level over m - k + 2 are the ones that stand where fewer than k are decided at the next.
    """
    family = [claim for claim in ONE_FAMILY if not findings[claim].lacks]
    standing: set[str] = set()
    for k in range(1, len(family) + 1):
        level = evidence.level / (len(family) - k + 1)
        shared = dataclasses.replace(evidence, level=level)
        decided = {
            claim
            for claim in family
            if findings[claim].verdict in DECIDED and judge_claim(claim, shared).verdict == findings[claim].verdict
        }
        if len(decided) < k:
            break
        standing = decided
    changed = dict(findings)
    left = len(family) - len(standing)
    for claim in family:
        if findings[claim].verdict == UNDECIDED and left > 1:
            needs = judge_claim(claim, evidence, sharing=left).needs
            changed[claim] = dataclasses.replace(findings[claim], needs=needs)
        elif findings[claim].verdict in DECIDED and claim not in standing:
            alone = findings[claim]
            others = ", ".join(other for other in family if other != claim)
            reason = f"{alone.verdict} alone, but not where it shares the level with {others} (Holm); {alone.reason}"
            needs = "narrower intervals: more seeds, or test groups"
            changed[claim] = dataclasses.replace(alone, verdict=UNDECIDED, reason=reason, needs=needs)
    return changed


def judge_at(study: StudyTables, level: float) -> dict[str, Finding]:
    """Judges each claim at the study's largest training set size, with all the seeds given."""
    evidence = gather(study, level=level)
    return _with_holm(evidence, {claim: judge_claim(claim, evidence) for claim in RULES})


# -------------------------------------------------------------------------------------------------------------- looks


def first_seeds(study: StudyTables, count: int) -> StudyTables:
    """Reduces a study to the first `count` seeds of each arm."""
    seeds: dict[str, set[int]] = {}
    for table in study.tables.values():
        for arm, seed in (("arm", "seed"), ("arm_a", "seed_a"), ("arm_b", "seed_b")):
            if {arm, seed} <= set(table):
                for name, own in table.groupby(arm)[seed]:
                    seeds.setdefault(str(name), set()).update(map(int, own.unique()))
    first = {arm: sorted(own)[:count] for arm, own in seeds.items()}

    def kept(table: pd.DataFrame) -> pd.DataFrame:
        keep = np.ones(len(table), bool)
        for arm, seed in (("arm", "seed"), ("arm_a", "seed_a"), ("arm_b", "seed_b")):
            if {arm, seed} <= set(table):
                known = pd.MultiIndex.from_tuples([(a, s) for a, own in first.items() for s in own])
                keep &= pd.MultiIndex.from_frame(table[[arm, seed]]).isin(known)
        return table[keep]

    return study._replace(tables={name: kept(table) for name, table in study.tables.items()})


def number_of_seeds(study: StudyTables) -> int:
    """Returns the largest number of seeds of the arms that claims are about; of all arms if there are none of these.

    An arm that crosses its random streams has as many seeds as it has pairs of them, whatever the study's number is,
    and no claim is about it.
    """
    crossed = {name for name, arm in study.record.arms.items() if arm.crossed}
    about = {arm for claim in JUDGES for arm in arms_of(claim, study.record)} - crossed
    counts: dict[str, int] = {}
    for name in ("cases", "curves", "filters"):
        if name in study.tables:
            for arm, seeds in study.tables[name].groupby("arm")["seed"].nunique().items():
                counts[str(arm)] = max(counts.get(str(arm), 0), int(seeds))
    compared = [count for arm, count in counts.items() if arm in about]
    return max(compared or counts.values(), default=0)


def look_levels(looks: tuple[int, ...]) -> tuple[float, ...]:
    """Returns the significance level of each declared look: an equal share, unless there are two looks."""
    return LOOK_LEVELS if len(looks) == len(LOOK_LEVELS) else (LEVEL / len(looks),) * len(looks)


def with_more_seeds(evidence: Evidence) -> tuple[Evidence, tuple[int, ...]]:
    """Returns the evidence at the level at which more seeds would be judged, and the looks at which they would be.

    It is the level of the last look, if the evidence has that of any; looks before the last are stricter.
    """
    looks = evidence.record.looks
    levels = look_levels(looks) if looks else ()
    if evidence.level not in levels:
        return evidence, ()
    return dataclasses.replace(evidence, level=levels[-1]), looks[levels.index(evidence.level) + 1 :]


def judge_claims(study: StudyTables) -> dict[str, Finding]:
    """Judges each claim at the first declared look that decides it, else at the last look so far.

    A study that was extended without declared looks is judged on its first seeds; later seeds are exploratory.
    """
    record, count = study.record, number_of_seeds(study)
    if record.looks:
        return _at_looks(study, count)
    if record.grown_from and record.grown_from[0] < count:
        first = record.grown_from[0]
        why = f"looks were not declared: judged at the first {first} seeds, of {count}"
        found = judge_at(first_seeds(study, first), LEVEL)
        return {
            claim: one if one.lacks else dataclasses.replace(one, reason=f"{one.reason}; {why}", look=first)
            for claim, one in found.items()
        }
    return judge_at(study, LEVEL)


def before_looks(study: StudyTables) -> str:
    """Returns why nothing is concluded yet from a study with declared looks; empty once the first was reached."""
    looks, count = study.record.looks, number_of_seeds(study)
    return f"the first look is at {looks[0]} seeds, has {count}" if looks and count < looks[0] else ""


def judged_evidence(study: StudyTables) -> Evidence:
    """Returns the evidence behind the verdicts: all seeds, or those of the last look that was reached."""
    record, count = study.record, number_of_seeds(study)
    if record.looks:
        reached = [place for place, look in enumerate(record.looks) if look <= count]
        place = reached[-1] if reached else 0
        return gather(first_seeds(study, record.looks[place]), level=look_levels(record.looks)[place])
    if record.grown_from and record.grown_from[0] < count:
        return gather(first_seeds(study, record.grown_from[0]))
    return gather(study)


def _at_looks(study: StudyTables, count: int) -> dict[str, Finding]:
    looks = study.record.looks
    reached = [(look, level) for look, level in zip(looks, look_levels(looks), strict=True) if look <= count]
    if why := before_looks(study):
        found = judge_at(study, look_levels(looks)[0])
        return {
            claim: one
            if one.lacks or one.verdict == VOID
            else dataclasses.replace(one, verdict=UNDECIDED, reason=why, needs=f"{looks[0]} seeds")
            for claim, one in found.items()
        }
    findings: dict[str, Finding] = {}
    for look, level in reached:
        for claim, one in judge_at(first_seeds(study, look), level).items():
            if claim not in findings or findings[claim].verdict not in DECIDED:
                findings[claim] = dataclasses.replace(one, look=None if one.lacks else look)
    return findings
