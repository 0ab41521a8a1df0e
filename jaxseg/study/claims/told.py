"""What one study tells about its target: what verdicts over several targets take of it, and all that they need.

It is measured from the study's tables, at the rules' level and with all of its seeds, and kept in claims.csv (rows of
role `target`) and test_groups.csv. Verdicts over targets can therefore be drawn from studies whose large tables are not
at hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from jaxseg.manifest import DamagedError
from jaxseg.study import files, record
from jaxseg.study.claims import differing
from jaxseg.study.claims.dsc import gain, sizes_with
from jaxseg.study.claims.evidence import Evidence, doubts_of_rates, gather, seen_by
from jaxseg.study.claims.findings import OF_DSC, OF_STEPS, Finding, Lacking, Quantity, Scale, Void
from jaxseg.study.claims.judging import JUDGES, measure_claim, subject
from jaxseg.study.claims.rest import tag_of
from jaxseg.study.claims.rules import RULE_VERSION
from jaxseg.study.claims.study_tables import Record, StudyTables, read_record, read_study
from jaxseg.types import UserError

TARGET = "target"
"""Value of column `role` in claims.csv of the rows that verdicts over targets read."""
GROUPS = "test_groups"
"""The table of a study's test groups."""
DSC, STEPS, RATIO = "DSC", "steps", "ratio"
"""Values of column `scale`: a difference of DSC or a ratio of steps that is graded, or a ratio that is not."""
_CONTROL = "self_transfer"
"""Key of the row that says whether the positive control shows the effect."""
_DIFFICULTY, _GAIN = "difficulty", "gain"


class Told(NamedTuple):
    """What a study tells of one claim."""

    quantities: tuple[Quantity, ...] = ()
    """Empty if the study cannot speak of the claim."""
    left_out: str = ""
    """Why it cannot."""
    tag: str = ""
    seen: str = ""
    """What the checkpoints of others that it starts from may have seen."""
    unsupported: str = ""
    """What keeps it from supporting the claim whatever its numbers are, such as a control that was not found."""
    sensitive: bool = False
    """Whether the positive control shows the effect."""

    def by_key(self) -> dict[str, Quantity]:
        """The quantities, keyed by their names in rules."""
        return {q.key: q for q in self.quantities}


class TargetStudy(NamedTuple):
    """What a study tells about its target."""

    record: Record
    patients: frozenset[str]
    """Digests of the names of its test groups; empty where a case is its own group."""
    claims: Mapping[str, Told]
    tasks: Mapping[int, Told]
    """Of C3, by training set size: the difficulty of the target, and the gain on other seeds."""


# ------------------------------------------------------------------------------------------------------------ measure


def tell(study: StudyTables) -> TargetStudy:
    """Measures what a study tells about its target, from its tables."""
    evidence = gather(study)
    told = {claim: _gain(evidence) if claim == "C2" else _of_claim(claim, evidence) for claim in JUDGES}
    pair = subject(study.record)
    tasks = {size: _task(evidence, size) for size in sizes_with(evidence, pair)}
    return TargetStudy(study.record, _patients(study), told, tasks)


def _patients(study: StudyTables) -> frozenset[str]:
    """Digests of the test groups; none where a case is its own group, since names of cases are no names of patients."""
    cases = study.tables.get("cases", pd.DataFrame(columns=["case", "group"]))
    if not (cases["group"] != cases["case"]).any():
        return frozenset()
    return frozenset(hashlib.sha256(str(group).encode()).hexdigest()[:16] for group in cases["group"].unique())


def _of_claim(claim: str, evidence: Evidence) -> Told:
    found = measure_claim(claim, evidence)
    if isinstance(found, Finding):
        return Told(left_out=found.reason)
    if found.doubts:
        return Told(left_out="; ".join(found.doubts))
    seen = seen_by(evidence.record, *found.arms)
    return Told(found.quantities, "", tag_of(evidence, found.arms), seen, found.unsupported, found.sensitive())


def _gain(evidence: Evidence) -> Told:
    """The gain at the largest training set, which C2 compares over targets."""
    try:
        pair = subject(evidence.record)
        found, doubts = gain(evidence, pair)
        doubts = [*doubts, *doubts_of_rates(evidence, *pair)]
    except (Lacking, Void) as error:
        return Told(left_out=str(error))
    if doubts:
        return Told(left_out="; ".join(doubts))
    return Told((found,), "", tag_of(evidence, pair), seen_by(evidence.record, *pair))


def _task(evidence: Evidence, size: int) -> Told:
    """How hard the target is at a training set size and, on other seeds, what transfer gains there."""
    pair = subject(evidence.record)
    try:
        task = differing.task_of(evidence, size, pair)
    except (Lacking, Void) as error:
        return Told(left_out=str(error))
    if task.doubts:
        return Told(left_out="; ".join(task.doubts))
    gained = dataclasses.replace(task.gain, key=_GAIN, train_cases=size)
    hard = Quantity("difficulty, 1 less the DSC of the baseline", task.difficulty, key=_DIFFICULTY, train_cases=size)
    hard = dataclasses.replace(hard, n_seeds=gained.n_seeds, n_groups=gained.n_groups)
    return Told((hard, gained), seen=seen_by(evidence.record, *pair))


def task_of(told: Told) -> differing.Task:
    """Returns the difficulty and gain that a study tells of at one training set size."""
    found = told.by_key()
    return differing.Task(found[_DIFFICULTY].value, found[_GAIN], ())


# -------------------------------------------------------------------------------------------------------------- write


def told_findings(study: TargetStudy) -> Iterator[tuple[Finding, int | None]]:
    """Yields what a study tells as findings without a verdict, each with its training set size if it has one.

    The reason says why the study cannot speak of the claim, if there is no quantity; else what checkpoints may have
    seen.
    """
    for claim, told in study.claims.items():
        yield _finding(claim, told), None
    for size, told in study.tasks.items():
        yield _finding("C3", told), size


def _finding(claim: str, told: Told) -> Finding:
    quantities = told.quantities
    if told.sensitive:
        quantities += (Quantity("the positive control shows the effect", 1.0, key=_CONTROL),)
    return Finding(claim, "", told.left_out or told.seen, quantities, told.tag, needs=told.unsupported)


def group_table(study: StudyTables) -> pd.DataFrame:
    """Tabulates the test groups by digest, so that studies of the same patients are known without their names."""
    return pd.DataFrame({"group": sorted(_patients(study))}, dtype=object)


def columns_of(found: Quantity) -> dict[str, Any]:
    """Returns the columns of claims.csv that let a quantity be pooled."""
    scale = DSC if found.scale is not None and not found.log else STEPS if found.scale is not None else ""
    thresholds = " ".join(map(str, found.thresholds))
    return {
        **{"key": found.key, "scale": scale or (RATIO if found.log else ""), "thresholds": thresholds},
        **{"df": found.df, "confidence": found.confidence},
    }


# --------------------------------------------------------------------------------------------------------------- read


def read_target_study(folder: Path) -> TargetStudy:
    """Reads what a study tells about its target, from a workdir or from what was published of one.

    A workdir that was judged by an earlier version is measured anew from its tables.

    Raises:
        UserError: If the folder holds no study, or one that was not judged, or was by an earlier version and has no
            tables.
    """
    found = record.read(folder, any_format=True)
    if found is None:
        raise UserError(f"no study in {folder}: it has no study.json; give the --workdir of a study")
    results = folder / "results"
    kept = _kept(results, read_record(found))
    if kept is not None:
        return kept
    if files.find_table(results, "cases") is not None:
        return tell(read_study(folder))
    path = files.find_table(results, "claims")
    if path is None:
        raise UserError(f"no claims.csv in {results}: not judged yet; the command that began a study goes on")
    raise UserError(
        f"{path} was written by an earlier version, and the tables to judge the study anew are not beside it; run "
        f"stage `analyze` in its workdir (python -m launch.study --stages=analyze,report) and publish it again"
    )


def _kept(results: Path, found: Record) -> TargetStudy | None:
    """What the study wrote down when it was judged; None if it was by other rules, or before this was kept."""
    path, groups = (files.find_table(results, name) for name in ("claims", GROUPS))
    if path is None or groups is None:
        return None
    rows = files.read_table(path)
    rows = rows[rows["role"] == TARGET]
    if not set(JUDGES) <= set(rows["claim"]) or {*rows["rule_version"]} != {RULE_VERSION}:
        return None
    patients = frozenset(files.read_table(groups)["group"])
    try:
        return _from_rows(found, rows, patients)
    except (KeyError, ValueError) as error:
        raise DamagedError(path, f"a row of role {TARGET} makes no sense ({error})", files.RERUN) from None


def _from_rows(found: Record, rows: pd.DataFrame, patients: frozenset[str]) -> TargetStudy:
    claims = {str(claim): _told(own) for claim, own in rows[rows["claim"] != "C3"].groupby("claim", sort=False)}
    tasks = rows[rows["claim"] == "C3"]
    sizes = map(int, tasks["train_cases"].unique())
    return TargetStudy(found, patients, claims, {size: _told(tasks[tasks["train_cases"] == size]) for size in sizes})


def _told(rows: pd.DataFrame) -> Told:
    first = rows.iloc[0]
    found = [q for q in map(_quantity, rows.to_dict("records")) if q.key or q.name]
    quantities = tuple(q for q in found if q.key != _CONTROL)
    if not quantities:
        return Told(left_out=first["reason"])
    return Told(
        quantities,
        tag=first["tag"],
        seen=first["reason"],
        unsupported=first["needs"],
        sensitive=len(found) > len(quantities),
    )


def _quantity(row: Mapping[Hashable, Any]) -> Quantity:
    scale: Scale | None = {DSC: OF_DSC, STEPS: OF_STEPS}.get(row["scale"])
    return Quantity(
        row["quantity"],
        row["value"],
        row["ci_low"],
        row["ci_high"],
        df=row["df"],
        confidence=row["confidence"],
        n_seeds=int(row["n_seeds"]),
        n_groups=int(row["n_groups"]),
        train_cases=None if pd.isna(row["train_cases"]) else int(row["train_cases"]),
        key=row["key"],
        scale=scale,
        log=row["scale"] in (STEPS, RATIO),
        thresholds=tuple(map(float, row["thresholds"].split())),
        fall=row["ci_low"] - row["projected_low"],
        rise=row["projected_high"] - row["ci_high"],
    )
