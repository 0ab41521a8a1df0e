"""Makes claims.csv of one study: each claim judged at the largest training set size, with controls and other sizes.

Verdicts are drawn at one size, so that several sizes are not several chances; quantities at other sizes are listed
without one. A comparison whose arm is a control in the place of transfer is listed with its own verdict.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg.reserved import POOLED
from jaxseg.study import files
from jaxseg.study.claims.answer import answer_pair, plain_answer
from jaxseg.study.claims.controls import CONTROLS, PLACEBO, POSITIVE_CONTROL, is_loud
from jaxseg.study.claims.evidence import Evidence, Pair, gather, seen_by
from jaxseg.study.claims.findings import SUPPORTED, UNDECIDED, VOID, Finding, Lacking, Quantity
from jaxseg.study.claims.frozen import Trio
from jaxseg.study.claims.judging import (
    JUDGES,
    Arms,
    arms_of,
    before_looks,
    first_seeds,
    judge_claim,
    judge_claims,
    judged_evidence,
    number_of_seeds,
    subject,
)
from jaxseg.study.claims.parts import PARTS, parts_of_transfer
from jaxseg.study.claims.ranking import RANKING, ranking_finding
from jaxseg.study.claims.rules import LEVEL, RULE_VERSION, RULES
from jaxseg.study.claims.study_tables import Record, StudyTables, read_study
from jaxseg.study.claims.told import GROUPS, TARGET, columns_of, group_table, tell, told_findings
from jaxseg.study.claims.training import size_of_control

COLUMNS = (
    *("claim", "statement", "role", "arm", "baseline", "quantity", "value", "ci_low", "ci_high", "verdict", "reason"),
    *("grade", "tag", "projected_low", "projected_high", "needs", "look", "exploratory"),
    *("rule_version", "n_seeds", "n_groups", "train_cases", "fold"),
    *("key", "scale", "thresholds", "df", "confidence"),
)
INTEGERS = ("look", "n_seeds", "n_groups", "train_cases", "fold")
CLAIM, GRADED, CONTROL, OTHER_SIZE, ALL_SEEDS, LACKING, ANSWER = (
    *("claim", "graded", "control", "other size"),
    *("all seeds", "lacking", "answer"),
)
"""Values of column `role`."""

CHECKPOINT = "a checkpoint of someone else's in the place of transfer"
"""What an arm `given` is, in a study that has `transfer` too."""
OTHER_CONTROLS: tuple[tuple[str, Arms, str], ...] = (
    ("C7", Trio(frozen="pooled_encoder"), "control: averages of the image in the encoder's place"),
    (
        "C7",
        Trio(frozen="frozen_random_encoder_no_skip", scratch="scratch_no_skip"),
        "control: no skip connections around the encoder",
    ),
)
"""Control arms that take the place of those of C7."""


def rows_of(finding: Finding, *, size: int | None, fold: int | None, **more: Any) -> list[dict[str, Any]]:
    """Makes the rows of a finding, one per quantity and each with the verdict; a single row if there is no quantity.

    Args:
        finding: The finding on a claim.
        size: The training set size of quantities that do not say otherwise.
        fold: The fold, as in the tables.
        more: Other columns.
    """
    known = RULES.get(finding.claim)
    statement = PARTS.get(finding.claim, "") if known is None else known.statement
    fixed = {"claim": finding.claim, "statement": statement, **more}
    fixed |= {"verdict": finding.verdict, "reason": finding.reason, "rule_version": RULE_VERSION, "fold": fold}
    fixed |= {"tag": finding.tag, "needs": finding.needs, "look": finding.look}
    fixed |= {"exploratory": bool(finding.exploratory)}
    rows = []
    for q in finding.quantities or (Quantity("", float("nan")),):
        ungraded = VOID if finding.verdict == VOID else q.grade
        rows.append(
            {
                **fixed,
                **{"quantity": q.name, "value": q.value, "ci_low": q.low, "ci_high": q.high, "grade": ungraded},
                **{"projected_low": q.projected_low, "projected_high": q.projected_high},
                **{"n_seeds": q.n_seeds, "n_groups": q.n_groups, **columns_of(q)},
                "train_cases": size if q.train_cases is None else None if q.train_cases < 0 else q.train_cases,
            }
        )
    return rows


def _on_same_seeds(study: StudyTables, judged: Mapping[str, Finding]) -> Callable[[str], Evidence]:
    """Returns the evidence on the seeds that a claim's verdict rests on, at the level that the claim has alone.

    A control at the stricter level of a look, or of a family, would be quiet for that reason.
    """
    found: dict[int | None, Evidence] = {None: dataclasses.replace(judged_evidence(study), level=LEVEL)}

    def of(claim: str) -> Evidence:
        look = judged[claim].look
        if look not in found:
            found[look] = gather(first_seeds(study, look)) if look is not None else found[None]
        return found[look]

    return of


def _controls(record: Record, of: Callable[[str], Evidence]) -> list[tuple[Finding, Arms, int]]:
    """What controls give, where the study has them, on the evidence of each claim; without quantities, left out.

    With each its training set size. The positive control cannot train on all cases, as its source has a part of them:
    it is judged with the most that it has.
    """
    found: list[tuple[Finding, Arms, int]] = []
    places: list[tuple[str, Arms, str]] = [
        (claim, Pair(arm), why)
        for claim, judge in JUDGES.items()
        if isinstance(judge.arms, Pair)
        for arm, why in CONTROLS.items()
    ]
    for claim, arms, why in (*places, *OTHER_CONTROLS):
        if not set(arms) <= record.arms.keys():
            continue
        evidence = of(claim)
        if isinstance(arms, Pair) and arms.arm == POSITIVE_CONTROL:
            with contextlib.suppress(Lacking):
                size = size_of_control(evidence, arms)
                if size != evidence.size:
                    why = f"{why}, with {record.number_of_cases(size)} training cases"
                evidence = evidence.at(size)
        finding = judge_claim(claim, evidence, arms)
        if not finding.quantities:
            continue
        if arms[0] == PLACEBO and is_loud(claim, finding.verdict):
            why = f"{why}; {finding.verdict} by chance or by a flaw"
        elif arms[0] == PLACEBO and finding.verdict == SUPPORTED:
            why = f"{why}; as a placebo should be"
        about = arms_of(claim, record, arms)
        found.append((dataclasses.replace(finding, reason=f"{why}; {finding.reason}"), about, evidence.size))
    return found


def _given_beside(study: StudyTables) -> list[tuple[Finding, Arms]]:
    """What is found of each checkpoint of someone else's beside `transfer`: judged as if it stood in its place.

    It is no control, whose answer is known: it has the levels of the looks, and nothing before the first.
    """
    found: list[tuple[Finding, Arms]] = []
    record, own = study.record, subject(study.record).arm
    for name in (name for name in record.given if name != own):
        others = {own, *record.given} - {name}
        alone = record._replace(arms={arm: of_arm for arm, of_arm in record.arms.items() if arm not in others})
        for claim, finding in judge_claims(study._replace(record=alone)).items():
            about = JUDGES.get(claim)
            if about is not None and isinstance(about.arms, Pair) and finding.quantities:
                reason = f"{CHECKPOINT}; {finding.reason}"
                found.append((dataclasses.replace(finding, reason=reason), arms_of(claim, alone)))
    return found


def fold_of(study: StudyTables) -> int | None:
    """Returns the fold of the study, or the value for all folds together if there are several."""
    folds = {int(fold) for table in study.tables.values() for fold in table["fold"].unique()}
    return POOLED if len(folds) > 1 else next(iter(folds), None)


def _answer_rows(evidence: Evidence, fold: int | None, too_early: str) -> list[dict[str, Any]]:
    """The answer for this target: a row a number in it, each with the sentences as its reason."""
    pair = answer_pair(evidence.record)
    answer = plain_answer(evidence, pair, too_early=too_early)
    finding = Finding("C1", "", answer.text, answer.quantities, answer.tag, answer.exploratory, answer.needs)
    own = {"role": ANSWER, "arm": pair.arm, "baseline": pair.baseline}
    rows = rows_of(finding, size=evidence.size, fold=fold, **own)
    statement = f"{pair.arm} on {evidence.record.target}"
    return [{**row, "claim": ANSWER, "statement": statement, "grade": _grade(row, answer.grade)} for row in rows]


def _ranking_rows(evidence: Evidence, fold: int | None, too_early: str) -> list[dict[str, Any]]:
    """Which start to take: a row a start with its gain, each with the sentence as its reason; none of one start."""
    made = ranking_finding(evidence, too_early)
    if made is None:
        return []
    finding, found = made
    if too_early:
        finding = dataclasses.replace(finding, reason=f"Which start to take is not judged yet: {too_early}.")
    own = {"role": RANKING, "statement": "which start to take", "baseline": found.baseline}
    rows = rows_of(finding, size=evidence.size, fold=fold, **own)
    graded = map(found.grade, finding.quantities)
    return [{**row, "arm": arm, "grade": grade} for row, arm, grade in zip(rows, found.starts, graded, strict=True)]


def _graded_rows(evidence: Evidence, fold: int | None, too_early: str) -> list[dict[str, Any]]:
    """What of a pretrained network makes the gain, without grades before the first look."""
    pair = subject(evidence.record)
    own = {"role": GRADED, "arm": pair.arm, "baseline": pair.baseline}
    rows: list[dict[str, Any]] = []
    for finding in parts_of_transfer(evidence, pair, too_early):
        rows += rows_of(finding, size=evidence.size, fold=fold, **own)
    return [{**row, "grade": row["grade"] and UNDECIDED} for row in rows] if too_early else rows


def _grade(row: dict[str, Any], grade: str) -> str:
    """A gain that may carry no verdict is undecided, whatever its interval."""
    return grade if row["grade"] and str(row["quantity"]).startswith("gain,") else row["grade"]


def claims(study: StudyTables) -> pd.DataFrame:
    """Tabulates all claims.

    Args:
        study: The study's record and tables. A claim without its tables or arms is listed as lacking, with its needs.

    Returns:
        The columns `COLUMNS`. `role` is `claim` (the verdict on the claim, the same in each of its rows), `graded`
        (what of a pretrained network makes the gain, without a verdict), `control` (the same comparison run on a
        control arm, with its own verdict), `other size` (quantities at other training set sizes, without a verdict),
        `all seeds` (the same of a study that was extended without declared looks), `lacking` (a claim that the study
        has no arm, size or table for: no verdict, and what it needs), `answer` (what transfer does here, in words, as
        `reason`), `ranking` (of several starts, which one to take, likewise), or `target` (what verdicts over several
        targets take of this one, which a page does not show).
    """
    evidence, fold = gather(study), fold_of(study)
    record = evidence.record
    rows: list[dict[str, Any]] = []

    def add(finding: Finding, role: str, arms: tuple[str, ...], size: int = evidence.size) -> None:
        baseline = arms[1] if len(arms) > 1 else ""
        rows.extend(rows_of(finding, size=size, fold=fold, role=role, arm=arms[0], baseline=baseline))

    def without_verdict(finding: Finding, why: str = "") -> Finding:
        return dataclasses.replace(finding, verdict="", reason=why, tag="", needs="")

    judged, behind = judge_claims(study), judged_evidence(study)
    too_early = before_looks(study)
    rows += _answer_rows(behind, fold, too_early)
    rows += _ranking_rows(behind, fold, too_early)
    for claim, finding in judged.items():
        if not finding.lacks:
            add(finding, CLAIM, arms_of(claim, record))
    for claim, finding in judged.items():
        if finding.lacks:
            add(finding, LACKING, arms_of(claim, record))
    same_seeds = _on_same_seeds(study, judged)
    described = dataclasses.replace(behind, level=LEVEL)
    rows += _graded_rows(described, fold, too_early)
    for finding, arms, size in _controls(record, same_seeds):
        add(finding, CONTROL, arms, size)
    for finding, arms in _given_beside(study):
        add(finding, CONTROL, arms)
    for claim, finding in _later_seeds(study, evidence).items():
        why = "later seeds were added without declared looks"
        add(dataclasses.replace(without_verdict(finding, why), exploratory=why), ALL_SEEDS, arms_of(claim, record))
    sizes = {int(size) for table in study.tables.values() for size in table["train_cases"].unique()}
    for size in sorted(sizes - {evidence.size}, key=evidence.record.number_of_cases):
        for claim, judge in JUDGES.items():
            if judge.one_size:
                finding = judge_claim(claim, described.at(size))
                if finding.quantities:
                    seen = seen_by(record, *arms_of(claim, record))
                    add(without_verdict(finding, seen), OTHER_SIZE, arms_of(claim, record), size)
    for finding, of_size in told_findings(tell(study)):
        add(finding, TARGET, arms_of(finding.claim, record), evidence.size if of_size is None else of_size)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(INTEGERS, "Int64"))


def _later_seeds(study: StudyTables, evidence: Evidence) -> dict[str, Finding]:
    """What all seeds give of a study that was extended without declared looks; nothing of others."""
    grown = study.record.grown_from
    if study.record.looks or not grown or grown[0] >= number_of_seeds(study):
        return {}
    found = {claim: judge_claim(claim, evidence) for claim in JUDGES}
    return {claim: finding for claim, finding in found.items() if finding.quantities}


def write_claims(workdir: Path) -> None:
    """Judges a study and writes claims.csv and the digests of its test groups into its results."""
    study = read_study(workdir)
    for name, table in (("claims", claims(study)), (GROUPS, group_table(study))):
        files.write_table(workdir / "results" / f"{name}.csv", table)
