"""Assigns studies to targets: targets with the same patients are one, and noisy versions of a target are set apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from jaxseg.study.claims.dsc import sizes_with
from jaxseg.study.claims.evidence import Evidence, Pair
from jaxseg.study.claims.study_tables import StudyTables


def _patients(study: StudyTables) -> frozenset[str]:
    """Names of the test groups; empty where a case is its own group, since names of cases are no names of patients."""
    cases = study.tables.get("cases", pd.DataFrame(columns=["case", "group"]))
    return frozenset(cases["group"]) if (cases["group"] != cases["case"]).any() else frozenset()


def independent_targets(studies: Mapping[str, StudyTables]) -> dict[str, str]:
    """Returns the target that each study counts for; targets of the same patients are one, named after both.

    Two phases of the same hearts are an example. Such targets share at least half of the smaller one's test groups.
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


def made_noisy(found: Mapping[str, StudyTables]) -> tuple[dict[str, StudyTables], dict[float, StudyTables]]:
    """Separates studies of unaltered targets, keyed by name, from those of one noisy target, keyed by noise level.

    If there are several noisy targets, the one with the most levels is taken.
    """
    as_they_are = {name: study for name, study in found.items() if not study.record.noise}
    by_target: dict[str, dict[float, StudyTables]] = {}
    for study in found.values():
        if study.record.noise:
            by_target.setdefault(study.record.target, {})[study.record.noise] = study
    return as_they_are, max(by_target.values(), key=len, default={})


class AtSize(NamedTuple):
    """A study at one training set size, as that study names it, and the arms whose gain is asked about."""

    evidence: Evidence
    size: int
    pair: Pair


def of_one_source(
    evidences: Mapping[str, Evidence], targets: Mapping[str, str], pairs: Mapping[str, Pair]
) -> dict[str, AtSize]:
    """Returns by target the studies of the source and size that most targets have, and of equals the largest size.

    Of several such studies of a target, the first is taken. A checkpoint of someone else's is another source than
    networks that a study trained, whatever both were trained on.

    Args:
        evidences: The studies by name.
        targets: The target that each study counts for.
        pairs: The arm of each study that starts from its source, and the baseline.
    """
    found: dict[tuple[str, bool, int], dict[str, AtSize]] = {}
    for name, evidence in evidences.items():
        pair, record = pairs[name], evidence.record
        for size in sizes_with(evidence, pair):
            source = record.arms[pair.arm].source or record.source
            shared = source, pair.arm in record.given, record.number_of_cases(size)
            found.setdefault(shared, {}).setdefault(targets[name], AtSize(evidence, size, pair))
    return found[max(found, key=lambda at: (len(found[at]), at[-1]))] if found else {}


def by_target(targets: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    """Groups the names of studies by the target that they count for, in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(targets[name], []).append(name)
    return found
