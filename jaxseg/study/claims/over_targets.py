"""Judges claims over several targets by the mean of what each study measured, not by a count of verdicts.

A count of verdicts finds support more often the more studies it counts, whatever is true. A claim's quantities are
therefore pooled as random effects, and the claim's own rule is asked about the means. A claim that says `can` needs one
target, at a level that all share. Where targets differ for certain and their mean decides nothing, that they differ is
the answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxseg.analysis.folds import standard_error
from jaxseg.analysis.random_effects import Pooled, pooled
from jaxseg.study.claims import differing
from jaxseg.study.claims.dsc import gain
from jaxseg.study.claims.evidence import Evidence, Pair, doubts_of_rates, gather, seen_by
from jaxseg.study.claims.findings import (
    DEPENDS,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Lacking,
    Measured,
    Quantity,
    Void,
    judge,
)
from jaxseg.study.claims.judging import JUDGES, measure_claim, newer_rules, subject
from jaxseg.study.claims.rest import AT_REST, tag_of
from jaxseg.study.claims.rules import CAN, LEVEL, MIN_TARGETS, RULES
from jaxseg.study.claims.study_tables import StudyTables
from jaxseg.study.claims.table import COLUMNS, INTEGERS, rows_of
from jaxseg.study.claims.targets import by_target, independent_targets, of_one_source
from jaxseg.text import significant, significant_interval

OVER_STUDIES = "over studies"
"""Values of column `role` beside those of one study."""
TARGET_COLUMNS = ("claim", "role", "target", "study", "quantity", "value", "ci_low", "ci_high", "n_seeds", "n_groups")
STUDY, MEAN, PREDICTION, TAU, SLOPE = "study", "mean", "prediction", "tau", "slope"
"""Values of column `role` of over_targets.csv: a study's own value, or what all targets give together."""


class Known(NamedTuple):
    """A quantity as an estimate with its variance, on the scale on which targets are pooled."""

    value: float
    variance: float


def known(found: Quantity) -> Known | None:
    """Returns a quantity on the scale of pooling; None if its limits are unknown or give no variance."""
    if math.isnan(found.low) or math.isnan(found.df) or found.high <= found.low:
        return None
    low, high, value = (math.log(x) if found.log else x for x in (found.low, found.high, found.value))
    return Known(value, standard_error(low, high, found.df, found.confidence) ** 2)


def of_target(studies: Sequence[Quantity]) -> Known | None:
    """Averages studies of one target; the variance stays that of one study, since they share its patients."""
    found = [one for one in map(known, studies) if one is not None]
    if not found:
        return None
    return Known(float(np.mean([one.value for one in found])), float(np.mean([one.variance for one in found])))


def over_mean(key: str, by: Mapping[str, Sequence[Quantity]]) -> tuple[Quantity, Pooled] | None:
    """Pools a quantity over targets; None if fewer than `MIN_TARGETS` know it."""
    found = {target: one for target, own in by.items() if (one := of_target(own)) is not None}
    if len(found) < MIN_TARGETS:
        return None
    first = next(iter(by.values()))[0]
    every = [q for own in by.values() for q in own]
    y, v = (np.array(column) for column in zip(*found.values(), strict=True))
    result = pooled(y, v, confidence=first.confidence)
    mean = result.mean
    limits = [math.exp(x) if first.log else x for x in (mean.estimate, mean.low, mean.high)]
    whole = dataclasses.replace(
        first,
        name=f"{_general(first)}, mean over {len(found)} targets",
        value=limits[0],
        low=limits[1],
        high=limits[2],
        df=mean.df,
        # What studies may change by in another doubling of their steps, on average.
        fall=float(np.mean([q.fall for q in every])),
        rise=float(np.mean([q.rise for q in every])),
        n_seeds=min(q.n_seeds for q in every),
        n_groups=sum(q.n_groups for q in every),
        train_cases=-1,
        spread=None,
        key=key,
    )
    return whole, result


def _general(found: Quantity) -> str:
    """Its name without the number of training cases, which is another for each target."""
    return found.name.partition(", ")[0] if found.name.endswith("training cases") else found.name


@dataclasses.dataclass(frozen=True)
class Over:
    """The finding on a claim over targets, with its rows of over_targets.csv."""

    finding: Finding
    rows: tuple[dict[str, Any], ...] = ()


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


class Speaking(NamedTuple):
    """The studies that can inform a claim, and the reasons why others cannot."""

    measured: dict[str, Measured]
    left_out: tuple[str, ...]
    tags: tuple[str, ...]
    seen: tuple[str, ...] = ()
    """What the checkpoints of others that studies start from may have seen, by study."""


def speaking(claim: str, evidences: Mapping[str, Evidence]) -> Speaking:
    """Measures a claim in each study; studies that cannot carry a verdict alone are left out and named."""
    measured, left_out, tags, seen = {}, [], [], []
    for name, evidence in evidences.items():
        found = measure_claim(claim, evidence)
        if isinstance(found, Finding):
            left_out.append(f"{name} ({found.reason})")
        elif found.doubts:
            left_out.append(f"{name} ({'; '.join(found.doubts)})")
        else:
            measured[name] = found
            tags.append(tag_of(evidence, found.arms))
            seen += _seen(name, evidence, *found.arms)
    return Speaking(measured, tuple(left_out), tuple(tags), tuple(seen))


def _seen(name: str, evidence: Evidence, *arms: str) -> list[str]:
    words = seen_by(evidence.record, *arms)
    return [f"{name}: {words}"] if words else []


def _left_out(found: Speaking) -> str:
    left_out = f"; left out: {', '.join(found.left_out)}" if found.left_out else ""
    return "; ".join((left_out, *found.seen))


def _by_mean(claim: str, evidences: Mapping[str, Evidence], targets: Mapping[str, str]) -> Over:
    """The claim's rule, asked about the means of its quantities over targets."""
    found = speaking(claim, evidences)
    by = by_target(targets, list(found.measured))
    if len(by) < MIN_TARGETS:
        reason = f"needs at least {MIN_TARGETS} targets that can speak of it, has {len(by)}{_left_out(found)}"
        return Over(Finding(claim, UNDECIDED, reason, needs=f"{MIN_TARGETS} targets"), _rows_of(claim, found, targets))
    keys = list(dict.fromkeys(q.key for one in found.measured.values() for q in one.quantities))
    quantities: list[Quantity] = []
    rows = list(_rows_of(claim, found, targets))
    differs = ""
    for key in keys:
        of_studies = {name: q for name, one in found.measured.items() if (q := one.by_key().get(key)) is not None}
        own = {target: [of_studies[n] for n in names if n in of_studies] for target, names in by.items()}
        result = over_mean(key, {target: studies for target, studies in own.items() if studies})
        if result is None:
            continue
        quantities.append(result[0])
        rows += _pooled_rows(claim, key, *result)
        tau = result[1].heterogeneity
        if len(quantities) == 1 and tau.low > 0:
            differs = f"targets differ: tau {significant(tau.tau)} {significant_interval(tau.low, tau.high)}"
    one = next(iter(found.measured.values()))
    ruled = Measured(
        tuple(quantities),
        one.rule,
        sensitive=lambda: all(study.sensitive() for study in found.measured.values()),
        shown=tuple(q.key for q in quantities if not one.shown or q.key in one.shown),
    )
    try:
        finding = judge(claim, ruled)
    except KeyError as error:
        finding = Finding(claim, UNDECIDED, f"fewer than {MIN_TARGETS} targets know {error.args[0]}", tuple(quantities))
    if differs:
        verdict = DEPENDS if finding.verdict == UNDECIDED else finding.verdict
        finding = dataclasses.replace(finding, verdict=verdict, reason=f"{differs}; {finding.reason}")
    tag = AT_REST if all(tag == AT_REST for tag in found.tags) else "not all at rest"
    finding = dataclasses.replace(finding, reason=f"{finding.reason}{_left_out(found)}", tag=tag)
    return Over(finding, tuple(rows))


def _rows_of(claim: str, found: Speaking, targets: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = []
    for name, one in found.measured.items():
        for q in one.quantities:
            rows += _target_rows(claim, q.key, {name: q}, targets)
    return tuple(rows)


def _by_one(claim: str, evidences: Mapping[str, Evidence], targets: Mapping[str, str]) -> Over:
    """A claim that says `can`: one target that supports it is enough, at the level over the number that can speak."""
    found = speaking(claim, evidences)
    by = by_target(targets, list(found.measured))
    rows = _rows_of(claim, found, targets)
    if not by:
        return Over(Finding(claim, UNDECIDED, f"no target can speak of it{_left_out(found)}"))
    level = LEVEL / len(by)
    shared = speaking(claim, {n: dataclasses.replace(evidences[n], level=level) for n in found.measured})
    verdicts = {name: judge(claim, one).verdict for name, one in shared.measured.items()}
    supporting = [target for target, names in by.items() if any(verdicts.get(n) == SUPPORTED for n in names)]
    quantities = (
        Quantity("targets that can speak", len(by), key="targets"),
        Quantity("targets that support, at the level over their number", len(supporting), key="supporting"),
    )
    names = ", ".join(supporting) or "none"
    reason = f"of {len(by)} targets {len(supporting)} support at level {level:.3g} ({names}){_left_out(found)}"
    verdict = SUPPORTED if supporting else UNDECIDED
    return Over(Finding(claim, verdict, reason, quantities), rows)


# ----------------------------------------------------------------------------------------------------------- C2, C3


def _gains(evidences: Mapping[str, Evidence]) -> tuple[dict[str, Quantity], list[str]]:
    """The gain of each study at its largest size, and the studies that may carry no verdict."""
    found, left_out = {}, []
    for name, evidence in evidences.items():
        try:
            pair = subject(evidence.record)
            one, doubts = gain(evidence, pair)
            doubts = [*doubts, *doubts_of_rates(evidence, *pair)]
        except (Lacking, Void) as error:
            doubts = [str(error)]
        if doubts:
            left_out.append(f"{name} ({'; '.join(doubts)})")
        else:
            found[name] = one
    return found, left_out


def _c2(evidences: Mapping[str, Evidence], targets: Mapping[str, str]) -> Over:
    """C2 over targets: a pilot of few seeds must not take the verdict from the rest."""
    gains, left_out = _gains(evidences)
    aside = f"; left out: {', '.join(left_out)}" if left_out else ""
    told = [words for name in gains for words in _seen(name, evidences[name], *subject(evidences[name].record))]
    aside = "; ".join((aside, *told))
    cells = []
    for target, names in by_target(targets, list(gains)).items():
        one = of_target([gains[name] for name in names])
        first = dataclasses.replace(gains[names[0]], name=f"gain, {target}", key=f"gain {target}")
        if one is not None:
            cells.append(differing.Cell(dataclasses.replace(first, value=one.value), one.variance, first.df))
    rows = _gain_rows(gains, targets)
    try:
        measured = Measured(differing.differences(cells, LEVEL, "targets"), differing.differ(LEVEL), shown=("tau", "p"))
    except Lacking as error:
        return Over(Finding("C2", UNDECIDED, f"{error}{aside}", needs=str(error)), rows)
    found = judge("C2", measured)
    return Over(dataclasses.replace(found, reason=f"{found.reason}{aside}"), rows)


def _gain_rows(gains: Mapping[str, Quantity], targets: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """Gains of the studies, and what targets give together: the rows of the forest plot."""
    rows = _target_rows("C2", "gain", gains, targets)
    by = by_target(targets, list(gains))
    result = over_mean("gain", {target: [gains[name] for name in names] for target, names in by.items()})
    return (*rows, *(_pooled_rows("C2", "gain", *result) if result else ()))


def _c3(evidences: Mapping[str, Evidence], targets: Mapping[str, str], noisy: Mapping[float, Evidence]) -> Over:
    """C3 over targets, about the arm that each study is about, as C2 is."""
    tasks: dict[str, differing.Task] = {}
    left_out, told = [], []
    pairs = {name: subject(evidence.record) for name, evidence in evidences.items()}
    for target, (evidence, size, pair) in of_one_source(evidences, targets, pairs).items():
        told += _seen(target, evidence, *pair)
        try:
            task = differing.task_of(evidence, size, pair)
        except (Lacking, Void) as error:
            left_out.append(f"{target} ({error})")
            continue
        if task.doubts or known(task.gain) is None:
            left_out.append(f"{target} ({'; '.join(task.doubts) or 'no interval'})")
        else:
            tasks[target] = task
    missing, noise = "", None
    try:
        noise = differing.noise_slope(noisy, subject(next(iter(noisy.values())).record)) if noisy else None
    except (Lacking, Void) as error:
        missing = f"; noise levels: {error}"
    aside = "; ".join((missing + (f"; left out: {', '.join(left_out)}" if left_out else ""), *told))
    try:
        found = judge("C3", differing.c3(tasks, noise))
    except Lacking as error:
        return Over(Finding("C3", UNDECIDED, f"{error}{aside}", (noise,) if noise else (), needs=str(error)))
    return Over(dataclasses.replace(found, reason=f"{found.reason}{aside}"), _slope_rows(tasks, found.quantities[0]))


def _slope_rows(tasks: Mapping[str, differing.Task], slope: Quantity) -> tuple[dict[str, Any], ...]:
    """The difficulty of each target of the meta-regression, and its slope."""
    hard = [
        _row("C3", STUDY, target, "", "difficulty", (task.difficulty, math.nan, math.nan), task.gain)
        for target, task in tasks.items()
    ]
    return *hard, _row("C3", SLOPE, SLOPE, "", "gain", (slope.value, slope.low, slope.high), slope)


# ------------------------------------------------------------------------------------------------------------- tables


def judge_over(
    studies: Mapping[str, StudyTables], *, noisy: Mapping[float, StudyTables] | None = None
) -> dict[str, Over]:
    """Judges each claim over the targets of several studies."""
    evidences = {name: gather(study) for name, study in studies.items()}
    targets = independent_targets(studies)
    found: dict[str, Over] = {}
    for claim in RULES:
        if claim == "C2":
            found[claim] = _c2(evidences, targets)
        elif claim == "C3":
            levels = {level: gather(study) for level, study in (noisy or {}).items()}
            found[claim] = _c3(evidences, targets, levels)
        else:
            found[claim] = (_by_one if claim in CAN else _by_mean)(claim, evidences, targets)
    why = next(filter(None, (newer_rules(evidence.record) for evidence in evidences.values())), "")
    return {
        claim: dataclasses.replace(over, finding=dataclasses.replace(over.finding, exploratory=why))
        for claim, over in found.items()
    }


def over_studies(
    studies: Mapping[str, StudyTables],
    *,
    noisy: Mapping[float, StudyTables] | None = None,
) -> pd.DataFrame:
    """Tabulates the verdicts over several studies.

    Args:
        studies: The studies by name. Several may share a target (with other sources or sizes) or its patients: they
            count as one, see `independent_targets`.
        noisy: Studies of one target by the noise added, in standard deviations of each case (`NOISE_LEVELS`); they
            serve only C3.

    Returns:
        The columns of claims.csv; each claim has one verdict, from the mean over targets.
    """
    rows: list[dict[str, Any]] = []
    for claim, over in judge_over(studies, noisy=noisy).items():
        arms = JUDGES[claim].arms if claim in JUDGES else Pair()
        baseline = arms[1] if len(arms) > 1 else ""
        rows += rows_of(over.finding, size=None, fold=None, role=OVER_STUDIES, arm=arms[0], baseline=baseline)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(INTEGERS, "Int64"))


def target_table(
    studies: Mapping[str, StudyTables], *, noisy: Mapping[float, StudyTables] | None = None
) -> pd.DataFrame:
    """Tabulates what each target measured, with the mean, the prediction for another target, and tau.

    Args:
        studies: As `over_studies` takes them.
        noisy: As `over_studies` takes it.

    Returns:
        The columns `TARGET_COLUMNS`. In rows of role `mean`, `prediction`, `tau` and `slope` the target is that word.
        The quantity `gain` of claim C2 is the gain at each study's largest training set size. Claim C3 has the
        `difficulty` of each target (1 less the baseline's DSC) and the slope of the gain on it.
    """
    rows = [row for over in judge_over(studies, noisy=noisy).values() for row in over.rows]
    return pd.DataFrame(rows, columns=list(TARGET_COLUMNS)).astype(dict.fromkeys(("n_seeds", "n_groups"), "Int64"))
