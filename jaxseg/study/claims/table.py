"""claims.csv of one study: each claim judged at the largest training set size, with controls and other sizes beside.

Verdicts are drawn at one size, so that several sizes are not several chances; the quantities at other sizes are listed
without. A comparison run on an arm that stands in transfer's place as a control is listed with a verdict of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from jaxseg.reserved import POOLED
from jaxseg.study.claims import accuracy, filters, representation, training, variability
from jaxseg.study.claims.accuracy import Trio
from jaxseg.study.claims.answer import answer_pair, plain_answer
from jaxseg.study.claims.evidence import Alone, Evidence, Pair, gather
from jaxseg.study.claims.findings import SUPPORTED, Finding, Lacking, Quantity, lacking
from jaxseg.study.claims.rules import LEVEL, RULE_VERSION, RULES
from jaxseg.study.claims.study_tables import Record, StudyTables

COLUMNS = (
    *("claim", "statement", "role", "arm", "baseline", "quantity", "value", "ci_low", "ci_high", "verdict", "reason"),
    *("rule_version", "n_seeds", "n_groups", "train_cases", "fold"),
)
CLAIM, CONTROL, OTHER_SIZE, ANSWER = "claim", "control", "other size", "answer"
"""What a row is (column role)."""


class Judge(NamedTuple):
    """How a claim is judged, and the arms that it is about."""

    find: Callable[[Evidence, Any], Finding]
    arms: Pair | Trio | Alone
    one_size: bool = True
    """Whether its quantities belong to one training set size, any; else it spans sizes or is about the full one."""


JUDGES: Mapping[str, Judge] = {
    "C1": Judge(training.c1, Pair()),
    "C2": Judge(accuracy.c2, Pair(), one_size=False),
    "C4": Judge(accuracy.c4, Pair(), one_size=False),
    "C4b": Judge(accuracy.c4b, Pair(), one_size=False),
    "C5": Judge(filters.c5, Alone()),
    "C6": Judge(filters.c6, Alone()),
    "C7": Judge(accuracy.c7, Trio()),
    "C8": Judge(representation.c8, Alone()),
    "C9": Judge(representation.c9, Pair()),
    "C10": Judge(variability.c10, Pair()),
    "C11": Judge(representation.c11, Pair()),
    "C11b": Judge(representation.c11b, Pair()),
}
"""Claims that one study can decide: all but C3."""
SEVERAL_STUDIES = "needs several studies: 4 noise levels of one target, and at least 5 targets of one source"

CONTROLS = {
    "scratch_b": "placebo: only its seeds differ from scratch",
    "shuffled_source": "negative control: its source had nothing to teach",
    "self_transfer": "positive control: its source is the target task itself",
}
"""Arms that stand in transfer's place, and what they are."""
TRIO_CONTROLS = (
    (Trio(frozen="pooled_encoder"), "control: averages of the image in the encoder's place"),
    (
        Trio(frozen="frozen_random_encoder_no_skip", scratch="scratch_no_skip"),
        "control: no skip connections around the encoder",
    ),
)
"""Arms that stand in the place of C7's."""
PLACEBO = "scratch_b"
TRUE_OF_PLACEBO = frozenset({"C4b", "C10"})
"""No gain, and as variable as scratch: what a placebo should be found to be."""


def _with_losses(finding: Finding, record: Record, arms: tuple[str, ...]) -> Finding:
    """The finding, with a word on runs that diverged: they are part of nothing, which may flatter an arm."""
    lost = [
        f"{record.arms[arm].diverged} of {record.arms[arm].runs} runs of {arm}"
        for arm in arms
        if arm in record.arms and record.arms[arm].diverged
    ]
    if not lost:
        return finding
    return dataclasses.replace(finding, reason=f"{finding.reason}; left out, as diverged: {', '.join(lost)}")


def judge_claim(claim: str, evidence: Evidence, arms: Pair | Trio | Alone | None = None) -> Finding:
    """The finding on a claim; inconclusive, with what is lacking, where the study lacks something.

    Args:
        claim: A key of `RULES`.
        evidence: The study, at the size to judge at.
        arms: Others than the claim's own, of the same kind: a control.
    """
    version = evidence.record.rule_version
    if version != RULE_VERSION:
        return lacking(
            claim, f"trained under version {version} of the rules, which this jaxseg (version {RULE_VERSION}) has not"
        )
    if claim not in JUDGES:
        return lacking(claim, SEVERAL_STUDIES)
    judge = JUDGES[claim]
    arms = arms or judge.arms
    try:
        found = judge.find(evidence, arms)
    except Lacking as error:
        found = lacking(claim, str(error))
    return _with_losses(found, evidence.record, arms)


def judge_claims(study: StudyTables, *, level: float = LEVEL) -> dict[str, Finding]:
    """The finding on each claim at the study's largest training set size.

    Args:
        study: Its record and tables.
        level: 1 minus the confidence of the intervals; smaller where several studies share it.
    """
    evidence = gather(study, level=level)
    return {claim: judge_claim(claim, evidence) for claim in RULES}


def rows_of(finding: Finding, *, size: int | None, fold: int | None, **more: Any) -> list[dict[str, Any]]:
    """Rows of a finding, one a quantity, each with the verdict; a row without a quantity where there is none.

    Args:
        finding: On a claim.
        size: The training set size of quantities that do not say otherwise.
        fold: As in the tables.
        more: Other columns.
    """
    fixed = {"claim": finding.claim, "statement": RULES[finding.claim].statement, **more}
    fixed |= {"verdict": finding.verdict, "reason": finding.reason, "rule_version": RULE_VERSION, "fold": fold}
    return [
        {
            **fixed,
            **{"quantity": q.name, "value": q.value, "ci_low": q.low, "ci_high": q.high},
            **{"n_seeds": q.n_seeds, "n_groups": q.n_groups},
            "train_cases": size if q.train_cases is None else None if q.train_cases < 0 else q.train_cases,
        }
        for q in finding.quantities or (Quantity("", float("nan")),)
    ]


def _controls(evidence: Evidence) -> list[tuple[Finding, Pair | Trio]]:
    """What controls give, where the study has them; those that give no quantity are left out."""
    found: list[tuple[Finding, Pair | Trio]] = []
    places: list[tuple[str, Pair | Trio, str]] = [
        (claim, Pair(arm), why)
        for claim, judge in JUDGES.items()
        if isinstance(judge.arms, Pair)
        for arm, why in CONTROLS.items()
    ]
    places += [("C7", trio, why) for trio, why in TRIO_CONTROLS]
    for claim, arms, why in places:
        if not set(arms) <= evidence.record.arms.keys():
            continue
        finding = judge_claim(claim, evidence, arms)
        if not finding.quantities:
            continue
        if finding.verdict == SUPPORTED and arms[0] == PLACEBO:
            meaning = "as a placebo should be" if claim in TRUE_OF_PLACEBO else "supported by chance or by a flaw"
            why = f"{why}; {meaning}"
        found.append((dataclasses.replace(finding, reason=f"{why}; {finding.reason}"), arms))
    return found


def fold_of(study: StudyTables) -> int | None:
    """The study's fold; all together where there are several."""
    folds = {int(fold) for table in study.tables.values() for fold in table["fold"].unique()}
    return POOLED if len(folds) > 1 else next(iter(folds), None)


def claims(study: StudyTables) -> pd.DataFrame:
    """All claims as rows.

    Args:
        study: Its record and tables; a claim whose tables or arms are not there is inconclusive, and says so.

    Returns:
        The columns `COLUMNS`. `role` is `claim` (the verdict on the claim, the same in each of its rows), `control`
        (the same comparison run on a control arm, with its own verdict), `other size` (quantities at other training
        set sizes, without a verdict) or `answer` (one row, what transfer does here, in words, as `reason`).
    """
    evidence, fold = gather(study), fold_of(study)
    rows: list[dict[str, Any]] = []

    def add(finding: Finding, role: str, arms: tuple[str, ...], size: int = evidence.size) -> None:
        baseline = arms[1] if len(arms) > 1 else ""
        rows.extend(rows_of(finding, size=size, fold=fold, role=role, arm=arms[0], baseline=baseline))

    for claim in RULES:
        add(judge_claim(claim, evidence), CLAIM, JUDGES[claim].arms if claim in JUDGES else Pair())
    for finding, arms in _controls(evidence):
        add(finding, CONTROL, arms)
    sizes = {int(size) for table in study.tables.values() for size in table["train_cases"].unique()}
    for size in sorted(sizes - {evidence.size}, key=evidence.record.number_of_cases):
        at_size = dataclasses.replace(evidence, size=size)
        for claim, judge in JUDGES.items():
            finding = judge_claim(claim, at_size)
            if judge.one_size and finding.quantities:
                add(dataclasses.replace(finding, verdict="", reason=""), OTHER_SIZE, judge.arms, size)
    pair = answer_pair(study.record)
    rows.append(
        {
            **{"claim": "", "statement": f"{pair.arm} on {study.record.target}", "role": ANSWER},
            **{"arm": pair.arm, "baseline": pair.baseline, "reason": plain_answer(evidence, pair)},
            **{"rule_version": RULE_VERSION, "train_cases": evidence.size, "fold": fold},
        }
    )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("n_seeds", "n_groups", "train_cases", "fold"), "Int64"))
