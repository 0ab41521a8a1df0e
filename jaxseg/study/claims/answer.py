"""States in two sentences what transfer does on a target."""

from __future__ import annotations

from typing import NamedTuple

from jaxseg.analysis.statistics import MIN_SEEDS
from jaxseg.study.claims.controls import CONTROLS
from jaxseg.study.claims.dsc import gain, size_name
from jaxseg.study.claims.evidence import Evidence, Pair, doubts_of_rates, seen_by
from jaxseg.study.claims.findings import GAIN, LOSS, UNDECIDED, Lacking, Quantity, Void, count_of_seeds
from jaxseg.study.claims.judging import newer_rules, with_more_seeds
from jaxseg.study.claims.needs import what_grades
from jaxseg.study.claims.rest import growth, tag_of
from jaxseg.study.claims.rules import SPEED_LEVELS
from jaxseg.study.claims.study_tables import Record
from jaxseg.study.claims.training import speed
from jaxseg.study.score.comparisons import baseline_of
from jaxseg.text import interval, number, signed, significant, significant_interval


def answer_pair(record: Record) -> Pair:
    """Chooses the arms of the answer: `transfer`, else `given`, else the first arm with a source network, else any.

    A control is chosen only where there is nothing else: what it gains is no answer.
    """
    names = list(record.arms)
    baseline = baseline_of(names) if names else Pair().baseline
    others = [name for name in names if name != baseline and record.arms[name].kind == "network"]
    pretrained = [name for name in others if record.arms[name].pretrain_steps != 0]
    first = [name for name in others if name == Pair().arm] or [name for name in record.given if name in others]
    candidates = sorted(first or pretrained or others, key=lambda name: name in CONTROLS)
    return Pair(candidates[0], baseline) if candidates else Pair()


class Answer(NamedTuple):
    """The answer's sentences and the numbers in them."""

    text: str
    quantities: tuple[Quantity, ...]
    grade: str
    tag: str
    needs: str
    exploratory: str


def _steps(found: Quantity) -> str:
    """A ratio of steps, the larger number first, as one says it."""
    if found.value >= 1:
        return f"{significant(found.value)} times fewer steps {significant_interval(found.low, found.high)}"
    return f"{significant(1 / found.value)} times more steps {significant_interval(1 / found.high, 1 / found.low)}"


def _graded(found: Quantity) -> str:
    """The grade of a gain; one that is sure but small is said to be so."""
    least, most = found.scale.limits if found.scale else (0.0, 0.0)
    small = found.grade in (GAIN, LOSS) and least < found.low and found.high < most
    return f"{found.grade}, too small to matter" if small else found.grade


def _to_grade(evidence: Evidence, pair: Pair) -> str:
    """What would give the gain a grade."""
    later, looks = with_more_seeds(evidence)
    return what_grades(gain(later, pair)[0], looks)


def plain_answer(evidence: Evidence, pair: Pair, *, too_early: str = "") -> Answer:
    """States in words what an arm changes on this target at this training set size.

    Accuracy as a difference in DSC with its grade, training time as a ratio of steps to the levels of C1, then the same
    with the steps of pretraining counted, then what the baseline still gains a doubling of its steps. Parts that the
    study has no tables for are left out; with too few seeds the numbers are given and said to be no verdict.

    Args:
        evidence: The study at the training set size to judge.
        pair: The arm and its baseline.
        too_early: Why nothing may be concluded yet, if that is so; see `judging.before_looks`.
    """
    parts: list[str] = []
    quantities: list[Quantity] = []
    grade = needs = ""
    try:
        found, doubts = gain(evidence, pair)
        doubts = [too_early] if too_early else doubts
        quantities.append(found)
        grade = UNDECIDED if doubts else found.grade
        needs = "; ".join(doubts) or (_to_grade(evidence, pair) if grade == UNDECIDED else "")
        words = UNDECIDED if doubts else _graded(found)
        parts.append(f"{signed(found.value)} DSC {interval(found.low, found.high)}, {words}")
    except (Lacking, Void):
        pass
    try:
        by_key = {q.key: q for q in speed(evidence, pair)}
        levels = f"{SPEED_LEVELS[0]:.0%} to {SPEED_LEVELS[-1]:.0%} of {pair.baseline}'s level"
        if by_key["ratio"].low == by_key["ratio"].high:  # all seeds at the same step, the only one or nearly so
            by_key = {}
            parts.append(f"steps to {levels} not known from so few validations")
        else:
            parts.append(f"{_steps(by_key['ratio'])} to {levels}")
        quantities += [by_key[key] for key in ("ratio", "total") if key in by_key]
        if "total" in by_key:
            parts.append(f"{_steps(by_key['total'])} with pretraining counted")
    except (Lacking, Void):
        pass
    where = f"{evidence.record.target}, {size_name(evidence, evidence.size)}"
    if not quantities:
        return Answer(f"{pair.arm} on {where}: nothing to compare with {pair.baseline}.", (), "", "", "", "")
    fewest = min(quantities, key=lambda q: q.n_seeds)
    seeds, counted = fewest.n_seeds, count_of_seeds(fewest.n_seeds, fewest.seeds_each)
    note = "" if seeds >= MIN_SEEDS else f" (fewer than {count_of_seeds(MIN_SEEDS, fewest.seeds_each)}: no verdict)"
    one = "this checkpoint" if evidence.arm(pair.arm).one_source else pair.arm
    text = f"{_at_start(one)} on {where}, {counted}: {'; '.join(parts)}{note}."
    if needs and seeds >= MIN_SEEDS:
        text += f" To decide it: {needs}."
    if seen := seen_by(evidence.record, *pair):
        text += f" {_at_start(seen)}."
    grown = growth(evidence, pair.baseline)
    if grown is not None:
        text += f" {_at_start(pair.baseline)} {_still(grown.mean)} a doubling of its {grown.steps:,} steps."
        name = f"gain of {pair.baseline} in the last doubling, validation DSC"
        quantities.append(Quantity(name, grown.mean, key="doubling"))
    exploratory = "; ".join(filter(None, (newer_rules(evidence.record), *doubts_of_rates(evidence, *pair))))
    return Answer(text, tuple(quantities), grade, tag_of(evidence, pair), needs, exploratory)


def _at_start(words: str) -> str:
    """Words at the start of a sentence; a name with an underscore stays as the study has it."""
    return words if "_" in words else words[0].upper() + words[1:]


def _still(gained: float) -> str:
    return f"still gains {number(gained)} DSC" if gained > 0 else f"no longer gains ({signed(gained)} DSC)"
