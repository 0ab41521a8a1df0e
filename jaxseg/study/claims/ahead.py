"""Before training: which claims a config can decide, and what it lacks for the others.

Nothing is asked here that the claims do not ask themselves. Each is measured on the tables that the planned study will
write (`expected`), with made-up values; what it then lacks, or doubts, the study will lack. The values are replaced by
extreme ones of every kind, to see which verdicts the claim's rule can come to at all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxseg.study import recording
from jaxseg.study.claims.evidence import Evidence
from jaxseg.study.claims.expected import expected_tables
from jaxseg.study.claims.findings import NO_GROWTH, Finding, Measured, Quantity
from jaxseg.study.claims.judging import judged_evidence, measure_claim, number_of_seeds
from jaxseg.study.claims.rules import RULE_VERSION, RULES
from jaxseg.study.claims.study_tables import Record, StudyTables, read_record
from jaxseg.study.plan.planned import PlannedStudy

BEYOND = 1e6
"""Further from anything than every limit of every rule."""
NO_CONTROL = "that there is no effect needs self_transfer"


class Prospect(NamedTuple):
    """What a study can come to on a claim, if its results are clear enough."""

    claim: str
    supported: bool = False
    contradicted: bool = False
    needs: str = ""
    """What it lacks for a verdict, or for one of the two."""
    lacks: bool = False
    """It has no arm, size or table for the claim, which claims.csv will list as lacking."""

    @property
    def decidable(self) -> bool:
        """Whether there can be a verdict."""
        return self.supported or self.contradicted


def planned_tables(planned: PlannedStudy) -> StudyTables:
    """The study as claims will see it, with made-up values; no run has diverged."""
    record = read_record(recording.planned_record(planned, RULE_VERSION))
    return StudyTables(_with_shared_rates(planned, record), expected_tables(planned))


def _with_shared_rates(planned: PlannedStudy, record: Record) -> Record:
    """One rate for arms that will choose theirs jointly, whichever it may be."""
    arms = dict(record.arms)
    for arm in planned.study.arms:
        if arm.optim.lr_grid and arm.optim.lr_choice == "joint":
            rates = dict.fromkeys(arms[arm.name].rates, (arm.optim.lr_grid[0] * arm.optim.lr_factor,))
            arms[arm.name] = arms[arm.name]._replace(rates=rates)
    return record._replace(arms=arms)


def prospects(planned: PlannedStudy) -> tuple[Prospect, ...]:
    """What the study can come to on each claim."""
    study = planned_tables(planned)
    evidence, looks, count = judged_evidence(study), study.record.looks, number_of_seeds(study)
    found = []
    for claim in RULES:
        one = prospect(claim, evidence)
        if one.decidable and looks and count < looks[0]:
            one = Prospect(claim, needs=f"the first look is at {looks[0]} seeds, has {count}")
        found.append(one)
    return tuple(found)


def prospect(claim: str, evidence: Evidence) -> Prospect:
    """What a claim can come to.

    Args:
        claim: A key of `RULES`.
        evidence: Of planned tables.
    """
    measured = measure_claim(claim, evidence)
    if isinstance(measured, Finding):
        return Prospect(claim, needs=measured.reason, lacks=measured.lacks)
    if measured.doubts:
        return Prospect(claim, needs="; ".join(measured.doubts))
    return _reachable(claim, measured)


def _reachable(claim: str, measured: Measured) -> Prospect:
    """Which verdicts the rule gives for any values of the quantities, and why not the others."""
    sensitive = measured.sensitive()
    supported = contradicted = blocked = False
    notes = []
    for values in _extremes(measured):
        shown, blind = measured.rule(values, True), measured.rule(values, False)
        if shown.supported != shown.contradicted:
            supported |= shown.supported
            absent = shown.contradicted and not blind.contradicted
            blocked |= absent and not sensitive
            contradicted |= shown.contradicted and (sensitive or not absent)
        elif not shown.supported and shown.note:
            notes.append(shown.note)
    needs = [] if supported else [next((note for note in notes if "needs" in note), NO_GROWTH)]
    needs += [NO_CONTROL] if blocked else []
    return Prospect(claim, supported, contradicted, "; ".join(needs))


def _extremes(measured: Measured) -> Iterator[Mapping[str, Quantity]]:
    """The quantities without any uncertainty: all far below, at nothing, or far above, but for up to two of them."""
    known = measured.by_key()
    levels = (-BEYOND, 0.0, BEYOND)
    for base in levels:
        others = [level for level in levels if level != base]
        for count in range(3):
            for keys in itertools.combinations(known, count):
                for values in itertools.product(others, repeat=count):
                    placed = dict.fromkeys(known, base) | dict(zip(keys, values, strict=True))
                    yield {key: _placed(q, placed[key]) for key, q in known.items()}


def _placed(found: Quantity, level: float) -> Quantity:
    value = max(level + (found.scale.nothing if found.scale is not None else 0.0), found.least)
    return dataclasses.replace(found, value=value, low=value, high=value)


# ---------------------------------------------------------------------------------------------------------------- text

_SIDES = {(True, True): "either way", (True, False): "supported at most", (False, True): "contradicted at most"}


def describe(found: tuple[Prospect, ...]) -> str:
    """A table of the claims that can be decided, and below it those that cannot, with what they need."""
    can = [one for one in found if one.decidable]
    cannot = [one for one in found if not one.decidable]
    width = max(len(one.claim) for one in found)
    statements = max(len(RULES[one.claim].statement) for one in found)

    def line(one: Prospect, words: str) -> str:
        return f"  {one.claim.ljust(width)}  {RULES[one.claim].statement.ljust(statements)}  {words}"

    lines = ["this study can decide" + ("" if can else " none of the claims")]
    lines += [line(one, "; ".join(filter(None, (_SIDES[one[1:3]], one.needs)))) for one in can]
    if cannot:
        lines += ["it cannot decide", *(line(one, one.needs) for one in cannot)]
    return "\n".join(lines)
