"""Judges claims over several targets by the mean of what each study measured, not by a count of verdicts.

A count of verdicts finds support more often the more studies it counts, whatever is true. A claim's quantities are
therefore pooled as random effects, and the claim's own rule is asked about the means. A claim that says `can` needs one
target, at a level that all share. Where targets differ for certain and their mean decides nothing, that they differ is
the answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from jaxseg.analysis.random_effects import Pooled
from jaxseg.study.claims import differing
from jaxseg.study.claims.accuracy import falls_with_size, is_none
from jaxseg.study.claims.evidence import gather, of_one_network
from jaxseg.study.claims.filters import changes_little, look_random
from jaxseg.study.claims.findings import (
    DEPENDS,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Lacking,
    Measured,
    Quantity,
    Ruling,
    Void,
    judge,
)
from jaxseg.study.claims.frozen import is_accurate, need_not_learn
from jaxseg.study.claims.judging import DECIDED, arms_of, subject, why_exploratory
from jaxseg.study.claims.means import Speaking, averages_of, means_of, measurements, speaking
from jaxseg.study.claims.needs import targets_needed
from jaxseg.study.claims.pooling import average, known, of_target, over_mean
from jaxseg.study.claims.representation import differ
from jaxseg.study.claims.rest import AT_REST
from jaxseg.study.claims.reuse import leads, reused_in_depth
from jaxseg.study.claims.rules import CAN, CONFIDENCE, LEVEL, MIN_TARGETS, RULES
from jaxseg.study.claims.study_tables import StudyTables
from jaxseg.study.claims.table import COLUMNS, INTEGERS, rows_of
from jaxseg.study.claims.targets import by_target, independent_targets, of_one_source
from jaxseg.study.claims.told import TargetStudy, task_of
from jaxseg.study.claims.training import is_shorter
from jaxseg.study.claims.variability import JUDGED, as_variable
from jaxseg.text import significant, significant_interval

OVER_STUDIES = "over studies"
"""Values of column `role` beside those of one study."""
TARGET_COLUMNS = ("claim", "role", "target", "study", "quantity", "value", "ci_low", "ci_high", "n_seeds", "n_groups")
STUDY, MEAN, PREDICTION, TAU, SLOPE = "study", "mean", "prediction", "tau", "slope"
"""Values of column `role` of over_targets.csv: a study's own value, or what all targets give together."""


@dataclasses.dataclass(frozen=True)
class Over:
    """The finding on a claim over targets, with its rows of over_targets.csv."""

    finding: Finding
    rows: tuple[dict[str, Any], ...] = ()
    arms: tuple[str, ...] = ()
    """The arm and its baseline in the studies that can speak of it; several names where studies differ."""


def _row(
    claim: str, role: str, target: str, study: str, key: str, values: Sequence[float], counts: Quantity
) -> dict[str, Any]:
    """A row of over_targets.csv; `values` are a value and its limits."""
    named = {"claim": claim, "role": role, "target": target, "study": study, "quantity": key}
    limits = dict(zip(("value", "ci_low", "ci_high"), values, strict=True))
    return {**named, **limits, "n_seeds": counts.n_seeds, "n_groups": counts.n_groups}


def _target_rows(claim: str, key: str, of_studies: Mapping[str, Quantity], targets: Mapping[str, str]) -> list[dict]:
    return [_row(claim, STUDY, targets[name], name, key, (q.value, q.low, q.high), q) for name, q in of_studies.items()]


def _pooled_rows(claim: str, key: str, whole: Quantity, result: Pooled) -> list[dict]:
    turned = math.exp if whole.log else float
    parts = {
        MEAN: (whole.value, whole.low, whole.high),
        PREDICTION: tuple(map(turned, result.prediction[:3])),
        TAU: tuple(result.heterogeneity),
    }
    return [_row(claim, role, role, "", key, values, whole) for role, values in parts.items()]


def _left_out(found: Speaking) -> str:
    left_out = f"; left out: {', '.join(found.left_out)}" if found.left_out else ""
    return "; ".join((left_out, *found.seen))


def _by_mean(claim: str, studies: Mapping[str, TargetStudy], targets: Mapping[str, str]) -> Over:
    """The claim's rule, asked about the means of its quantities over targets."""
    found = speaking(claim, studies)
    by = by_target(targets, list(found.told))
    if len(by) < MIN_TARGETS:
        reason = f"needs at least {MIN_TARGETS} targets that can speak of it, has {len(by)}{_left_out(found)}"
        return Over(Finding(claim, UNDECIDED, reason, needs=f"{MIN_TARGETS} targets"), _rows_of(claim, found, targets))
    means = means_of(claim, measurements(found, by))
    differs, rows = "", list(_rows_of(claim, found, targets))
    for place, (mean, result) in enumerate(means.pooled):
        rows += _pooled_rows(claim, mean.key, mean, result)
        if not place and (tau := result.heterogeneity).low > 0:
            differs = f"targets differ: tau {significant(tau.tau)} {significant_interval(tau.low, tau.high)}"
    ruled = Measured(
        means.quantities,
        _rule(claim, found),
        sensitive=lambda: all(one.sensitive for one in found.told.values()),
        shown=shown_keys(claim, [q.key for q in means.quantities]),
    )
    finding = judge(claim, ruled)
    if finding.verdict == UNDECIDED:
        finding = dataclasses.replace(finding, needs=finding.needs or targets_needed(finding.quantities, ruled))
        if means.missing:
            reason = f"fewer than {MIN_TARGETS} targets know {means.missing}; {finding.reason}"
            finding = dataclasses.replace(finding, reason=reason)
    if differs:
        verdict = DEPENDS if finding.verdict == UNDECIDED else finding.verdict
        finding = dataclasses.replace(finding, verdict=verdict, reason=f"{differs}; {finding.reason}")
    tag = AT_REST if all(one.tag == AT_REST for one in found.told.values()) else "not all at rest"
    finding = dataclasses.replace(finding, reason=f"{finding.reason}{_left_out(found)}", tag=tag)
    return Over(finding, tuple(rows))


Rule = Callable[[Mapping[str, Quantity], bool], Ruling]
RULE_OF: Mapping[str, Rule] = {
    **{"C1": is_shorter, "C4": falls_with_size, "C4b": is_none, "C5": changes_little, "C7": is_accurate},
    **{"C8": need_not_learn, "C9": differ(LEVEL), "C10": as_variable, "C11": reused_in_depth, "C11b": leads},
}
_SHOWN: Mapping[str, tuple[str, ...]] = {
    **{"C1": ("ratio",), "C7": ("of scratch", "half way"), "C8": ("nearly", "used"), "C10": JUDGED},
}
"""Keys of the quantities that a claim's reason names; of other claims it names all."""


def shown_keys(claim: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Returns those of a claim's quantities that its reason names."""
    return tuple(key for key in keys if key in _SHOWN.get(claim, keys))


def _rule(claim: str, found: Speaking) -> Rule:
    """The rule of a claim; C6 is not supported where the controls of any study were not found."""
    if claim == "C6":
        return look_random("; ".join(dict.fromkeys(one.unsupported for one in found.told.values() if one.unsupported)))
    return RULE_OF[claim]


def _rows_of(claim: str, found: Speaking, targets: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = []
    for name, one in found.told.items():
        for q in one.quantities:
            rows += _target_rows(claim, q.key or q.name, {name: q}, targets)
    return tuple(rows)


def _by_one(claim: str, studies: Mapping[str, TargetStudy], targets: Mapping[str, str]) -> Over:
    """A claim that says `can`: one target that supports it is enough, at the level over the number that can speak.

    A target is asked once, about the average of its studies: each study alone would be another chance.
    """
    found = speaking(claim, studies)
    by = by_target(targets, list(found.told))
    rows = _rows_of(claim, found, targets)
    if not by:
        return Over(Finding(claim, UNDECIDED, f"no target can speak of it{_left_out(found)}"))
    supporting = []
    for target, names in by.items():
        own = averages_of(claim, measurements(found, {target: names}), LEVEL / len(by))
        if judge(claim, Measured(own, _rule(claim, found))).verdict == SUPPORTED:
            supporting.append(target)
    quantities = (
        Quantity("targets that can speak", len(by), key="targets"),
        Quantity("targets that support, at the level over their number", len(supporting), key="supporting"),
    )
    listed = ", ".join(supporting) or "none"
    reason = (
        f"of {len(by)} targets {len(supporting)} support at level {LEVEL / len(by):.3g} ({listed}){_left_out(found)}"
    )
    verdict = SUPPORTED if supporting else UNDECIDED
    return Over(Finding(claim, verdict, reason, quantities), rows)


# ----------------------------------------------------------------------------------------------------------- C2, C3


def _c2(studies: Mapping[str, TargetStudy], targets: Mapping[str, str]) -> Over:
    """C2 over targets: a pilot of few seeds must not take the verdict from the rest."""
    found = speaking("C2", studies)
    gains = {name: one.quantities[0] for name, one in found.told.items()}
    aside = _left_out(found)
    cells = []
    for target, names in by_target(targets, list(gains)).items():
        own = [gains[name] for name in names]
        if (one := of_target(own)) is not None:
            mean = dataclasses.replace(average(own, CONFIDENCE), name=f"gain, {target}", key=f"gain {target}")
            cells.append(differing.Cell(mean, one.variance, mean.df))
    rows = _gain_rows(gains, targets)
    try:
        measured = Measured(differing.differences(cells, LEVEL, "targets"), differing.differ(LEVEL), shown=("tau", "p"))
    except Lacking as error:
        return Over(Finding("C2", UNDECIDED, f"{error}{aside}", needs=str(error).removeprefix("needs ")), rows)
    judged = judge("C2", measured)
    if judged.verdict == UNDECIDED:
        judged = dataclasses.replace(judged, needs=differing.targets_to_differ(cells, LEVEL))
    return Over(dataclasses.replace(judged, reason=f"{judged.reason}{aside}"), rows)


def _gain_rows(gains: Mapping[str, Quantity], targets: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """Gains of the studies, and what targets give together: the rows of the forest plot."""
    rows = _target_rows("C2", "gain", gains, targets)
    by = by_target(targets, list(gains))
    result = over_mean("gain", {target: [gains[name] for name in names] for target, names in by.items()})
    return (*rows, *(_pooled_rows("C2", "gain", *result) if result else ()))


def _c3(studies: Mapping[str, TargetStudy], targets: Mapping[str, str], noisy: Mapping[float, StudyTables]) -> Over:
    """C3 over targets, about the arm that each study is about, as C2 is."""
    tasks: dict[str, differing.Task] = {}
    names: dict[str, str] = {}
    left_out, seen = [], []
    for target, told in of_one_source(studies, targets).items():
        seen += [f"{target}: {told.seen}"] if told.seen else []
        task = task_of(told) if told.quantities else None
        if task is None or known(task.gain) is None:
            left_out.append(f"{target} ({told.left_out or 'no interval'})")
        else:
            tasks[target] = task
            named = (name for name, one in studies.items() if any(own is told for own in one.tasks.values()))
            names[target] = next(named)
    noise, missing = _noise(noisy)
    aside = "; ".join((missing + (f"; left out: {', '.join(left_out)}" if left_out else ""), *seen))
    try:
        found = judge("C3", differing.c3(tasks, noise))
    except Lacking as error:
        missing = str(error).removeprefix("needs ")
        return Over(Finding("C3", UNDECIDED, f"{error}{aside}", (noise,) if noise else (), needs=missing))
    if found.verdict == UNDECIDED:
        found = dataclasses.replace(found, needs=targets_needed(found.quantities[:1]))
    rows = _slope_rows(tasks, names, found.quantities[0])
    return Over(dataclasses.replace(found, reason=f"{found.reason}{aside}"), rows)


def _noise(noisy: Mapping[float, StudyTables]) -> tuple[Quantity | None, str]:
    """The slope of the gain over noise levels, or why there is none."""
    if not noisy:
        return None, ""
    evidences = {level: gather(study) for level, study in noisy.items()}
    try:
        return differing.noise_slope(evidences, subject(next(iter(noisy.values())).record)), ""
    except (Lacking, Void) as error:
        return None, f"; noise levels: {error}"


def _slope_rows(
    tasks: Mapping[str, differing.Task], names: Mapping[str, str], slope: Quantity
) -> tuple[dict[str, Any], ...]:
    """The difficulty of each target of the meta-regression with its gain and the study's name, and the slope."""
    rows = []
    for target, task in tasks.items():
        hard, gain = (task.difficulty, math.nan, math.nan), (task.gain.value, task.gain.low, task.gain.high)
        rows.append(_row("C3", STUDY, target, names[target], "difficulty", hard, task.gain))
        rows.append(_row("C3", STUDY, target, names[target], "gain", gain, task.gain))
    return *rows, _row("C3", SLOPE, SLOPE, "", "gain", (slope.value, slope.low, slope.high), slope)


# ------------------------------------------------------------------------------------------------------------- tables


def judge_over(
    studies: Mapping[str, TargetStudy], *, noisy: Mapping[float, StudyTables] | None = None
) -> dict[str, Over]:
    """Judges each claim over the targets of several studies."""
    targets = independent_targets(studies)
    found: dict[str, Over] = {}
    for claim in RULES:
        if claim == "C2":
            found[claim] = _c2(studies, targets)
        elif claim == "C3":
            found[claim] = _c3(studies, targets, noisy or {})
        else:
            found[claim] = (_by_one if claim in CAN else _by_mean)(claim, studies, targets)
    return {claim: _described(claim, over, _about(claim, studies)) for claim, over in found.items()}


def _about(claim: str, studies: Mapping[str, TargetStudy]) -> dict[str, TargetStudy]:
    """The studies that can speak of a claim; all if none can."""

    def speaks(study: TargetStudy) -> bool:
        told = study.tasks.values() if claim == "C3" else (study.claims[claim],)
        return any(one.quantities for one in told)

    return {name: study for name, study in studies.items() if speaks(study)} or dict(studies)


def _described(claim: str, over: Over, about: Mapping[str, TargetStudy]) -> Over:
    """Adds the arms that the studies are about, what a verdict is limited to, and why it was not fixed in advance."""
    arms = [tuple(arms_of(claim, study.record)) for study in about.values()]
    one = [n for n, own in zip(about, arms, strict=True) if of_one_network(about[n].record, *own)]
    finding = over.finding
    if one and finding.verdict in (*DECIDED, DEPENDS):
        which = "" if len(one) == len(about) else f" in {', '.join(one)}"
        finding = dataclasses.replace(finding, reason=f"of one source network each alone{which}: {finding.reason}")
    why = {name: found for name, study in about.items() if (found := why_exploratory(study.record))}
    finding = dataclasses.replace(finding, exploratory="; ".join(f"{name}: {found}" for name, found in why.items()))
    named = tuple(", ".join(dict.fromkeys(names)) for names in zip(*arms, strict=True))
    return dataclasses.replace(over, finding=finding, arms=named)


def over_studies(
    studies: Mapping[str, TargetStudy],
    *,
    noisy: Mapping[float, StudyTables] | None = None,
) -> pd.DataFrame:
    """Tabulates the verdicts over several studies.

    Args:
        studies: What each study tells, by name: of `tell` or `read_target_study`. Several may share a target (with
            other sources or sizes) or its patients: they count as one, see `independent_targets`.
        noisy: The tables of studies of one target by the noise added, in standard deviations of each case
            (`NOISE_LEVELS`); they serve only C3, and are compared seed by seed.

    Returns:
        The columns of claims.csv; each claim has one verdict, from the mean over targets.
    """
    rows: list[dict[str, Any]] = []
    for over in judge_over(studies, noisy=noisy).values():
        arm, baseline = (*over.arms, "", "")[:2]
        own = {"role": OVER_STUDIES, "arm": arm, "baseline": baseline}
        rows += rows_of(over.finding, size=None, fold=None, **own)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(INTEGERS, "Int64"))


def target_table(
    studies: Mapping[str, TargetStudy], *, noisy: Mapping[float, StudyTables] | None = None
) -> pd.DataFrame:
    """Tabulates what each target measured, with the mean, the prediction for another target, and tau.

    Args:
        studies: As `over_studies` takes them.
        noisy: As `over_studies` takes it.

    Returns:
        The columns `TARGET_COLUMNS`. In rows of role `mean`, `prediction`, `tau` and `slope` the target is that word.
        The quantity `gain` of claim C2 is the gain at each study's largest training set size. Claim C3 has the
        `difficulty` of each target (1 less the baseline's DSC), its `gain`, and the slope of the gain on difficulty.
    """
    rows = [row for over in judge_over(studies, noisy=noisy).values() for row in over.rows]
    return pd.DataFrame(rows, columns=list(TARGET_COLUMNS)).astype(dict.fromkeys(("n_seeds", "n_groups"), "Int64"))
