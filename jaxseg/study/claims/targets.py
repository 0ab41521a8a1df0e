"""Assigns studies to targets: targets with the same patients are one, and noisy versions of a target are set apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxseg.study.claims.judging import subject
from jaxseg.study.claims.study_tables import Record
from jaxseg.study.claims.told import TargetStudy, Told


def independent_targets(studies: Mapping[str, TargetStudy]) -> dict[str, str]:
    """Returns the target that each study counts for; targets of the same patients are one, named after both.

    Two phases of the same hearts are an example. Such targets share at least half of the smaller one's test groups.
    """
    patients: dict[str, frozenset[str]] = {}
    for study in studies.values():
        patients[study.record.target] = patients.get(study.record.target, frozenset()) | study.patients
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


def made_noisy(records: Mapping[str, Record]) -> tuple[list[str], dict[float, str]]:
    """Separates the names of studies of unaltered targets from those of one noisy target, keyed by noise level.

    They are of one source. If there are several such targets or sources, those with the most levels are taken.
    """
    levels: dict[tuple[str, str], dict[float, str]] = {}
    for name, record in records.items():
        if record.noise:
            levels.setdefault((record.target, _source_of(record)), {})[record.noise] = name
    as_they_are = [name for name, record in records.items() if not record.noise]
    return as_they_are, max(levels.values(), key=len, default={})


def _source_of(record: Record) -> str:
    """What the networks in the place of transfer were trained on."""
    arm = record.arms.get(subject(record).arm)
    return record.source if arm is None else arm.source or record.source


def of_one_source(studies: Mapping[str, TargetStudy], targets: Mapping[str, str]) -> dict[str, Told]:
    """Returns by target what the studies of the source and size that most targets have tell of the task.

    Targets count whose studies can speak. Of equally many, the larger size is taken, and of several such studies of a
    target the first that can speak. A checkpoint
    of someone else's is another source than networks that a study trained, whatever both were trained on.

    Args:
        studies: What each study tells, by name.
        targets: The target that each study counts for.
    """
    found: dict[tuple[str, bool, int], dict[str, Told]] = {}
    for name, study in studies.items():
        record, arm = study.record, subject(study.record).arm
        for size, told in study.tasks.items():
            shared = _source_of(record), arm in record.given, record.number_of_cases(size)
            of_targets = found.setdefault(shared, {})
            known = of_targets.get(targets[name])
            if known is None or (told.quantities and not known.quantities):
                of_targets[targets[name]] = told

    def speaking(shared: tuple[str, bool, int]) -> tuple[int, int, int]:
        told = found[shared].values()
        return sum(bool(one.quantities) for one in told), len(told), shared[-1]

    return found[max(found, key=speaking)] if found else {}


def by_target(targets: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    """Groups the names of studies by the target that they count for, in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(targets[name], []).append(name)
    return found
