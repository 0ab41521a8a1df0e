"""Ranks the starts of a study with several: which one to take, and which cannot be told apart from it.

Starts are arms that load a whole source network and train all of it. Two questions are asked, each at the level of one
claim, which its comparisons share by max-t: which starts are better than the baseline, and which are worse than another
start. If all are equal, the first finds something in at most one of forty studies, since only one side of its intervals
is asked about, and the second in at most one of twenty. The placebo and the other controls stand between the starts,
with the same limits; nothing is concluded from them, so they take no share of the level.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxseg.analysis.simultaneous import joint_level, rank_limits
from jaxseg.streams import host_rng
from jaxseg.study.claims.controls import CONTROLS, PLACEBO
from jaxseg.study.claims.dsc import Blocks, blocks_of, gain, of_blocks, size_name
from jaxseg.study.claims.evidence import Evidence, Pair, doubts_of_rates
from jaxseg.study.claims.findings import OF_DSC, UNDECIDED, Finding, Lacking, Quantity, Void, unique
from jaxseg.study.claims.judging import newer_rules
from jaxseg.study.claims.rest import tag_of
from jaxseg.study.claims.rules import DELTA, MIN_STARTS
from jaxseg.study.claims.study_tables import Record
from jaxseg.study.score.comparisons import baseline_of
from jaxseg.text import interval, listing, signed

RANKING = "ranking"
"""The finding's name in columns `claim` and `role`."""
BASELINE, START, PLACEBO_ROLE, CONTROL = "baseline", "start", "placebo", "control"
"""Values of column `role` of ranking.csv."""
COLUMNS = (
    *("arm", "role", "source", "train_cases", "fold", "rank", "rank_low", "rank_high"),
    *("gain", "ci_low", "ci_high", "joint_low", "joint_high", "grade"),
    *("to_best", "to_best_low", "to_best_high", "may_be_best", "better"),
    *("steps", "pretrain_steps", "pretrain_seconds", "seen", "n_seeds", "n_groups", "confidence", "joint_confidence"),
)
INTEGERS = ("rank", "rank_low", "rank_high", "pretrain_steps")


def roles_of(record: Record) -> dict[str, str]:
    """Returns the arms that are ranked and the role of each; none if there are fewer than two different starts.

    A start is the same as an earlier one if its source networks and its training are.
    """
    names = list(record.arms)
    baseline = baseline_of(names) if names else ""
    roles: dict[str, str] = {}
    known: set[Any] = set()
    for name, arm in record.arms.items():
        if name == baseline:
            roles[name] = BASELINE
        elif name in CONTROLS:
            roles[name] = PLACEBO_ROLE if name == PLACEBO else CONTROL
        elif arm.kind == "network" and (arm.init, arm.freeze) == ("pretrained", "none"):
            what = arm.start, arm.like, tuple(sorted(arm.rates.items()))
            if what not in known:
                roles[name] = START
            known.add(what)
    enough = list(roles.values()).count(START) >= MIN_STARTS and baseline in roles
    return roles if enough else {}


class Ranking(NamedTuple):
    """The arms of a study in the order of their mean DSC, with what is certain about it."""

    roles: Mapping[str, str]
    """The arms, best first."""
    baseline: str
    gains: Mapping[str, Quantity]
    """The gain of each arm but the baseline over it, with the limits that it has alone."""
    joint: Mapping[tuple[str, str], Quantity]
    """The first arm less the second, of every arm and the baseline and of every pair of starts, in both orders, with
    limits that hold for all comparisons of the kind together."""
    doubts: tuple[str, ...]

    def beats(self, arm: str, other: str) -> bool:
        """Returns whether an arm is better than another for certain, which nothing is if there are doubts."""
        return arm != other and not self.doubts and self.joint[arm, other].low > 0

    def grade(self, gained: Quantity) -> str:
        """Returns the grade of a start's gain, which is undecided if there are doubts."""
        return UNDECIDED if self.doubts else gained.grade

    @property
    def starts(self) -> list[str]:
        """The starts, best first."""
        return [arm for arm, role in self.roles.items() if role == START]

    @property
    def better(self) -> list[str]:
        """The starts that are better than the baseline for certain, best first."""
        return [arm for arm in self.starts if self.beats(arm, self.baseline)]

    @property
    def may_be_best(self) -> list[str]:
        """The starts than which no other start is better for certain: the true best is among them."""
        return [arm for arm in self.starts if not any(self.beats(other, arm) for other in self.starts)]

    def ranks(self) -> dict[str, tuple[int, int]]:
        """Returns the limits of each start's rank among the starts."""
        low, high = rank_limits(np.array([[self.beats(arm, other) for other in self.starts] for arm in self.starts]))
        return {arm: (int(low[i]), int(high[i])) for i, arm in enumerate(self.starts)}


def rank(evidence: Evidence, too_early: str = "") -> Ranking | None:
    """Ranks the arms of a study at one training set size; None if there are not several starts with scores there.

    Args:
        evidence: The study at that size.
        too_early: Why nothing is concluded yet, see `judging.before_looks`.
    """
    roles = {
        arm: role
        for arm, role in roles_of(evidence.record).items()
        if all(len(scores.seeds.get(arm, ())) for scores in evidence.scores.get(evidence.size, ()))
    }
    baseline = next((arm for arm, role in roles.items() if role == BASELINE), "")
    if not baseline or list(roles.values()).count(START) < MIN_STARTS or evidence.size not in evidence.scores:
        return None
    starts = [arm for arm, role in roles.items() if role == START]
    try:
        gains, doubts = {}, [too_early] if too_early else []
        for arm in (arm for arm in roles if arm != baseline):
            gains[arm], found = gain(evidence, Pair(arm, baseline))
            doubts += found
        joint = {
            **_together(evidence, [(arm, baseline) for arm in starts], [(arm, baseline) for arm in gains]),
            **_together(evidence, pairs := list(itertools.combinations(starts, 2)), pairs),
        }
    except (Lacking, Void):
        return None
    order = sorted(roles, key=lambda arm: -gains[arm].value if arm in gains else 0.0)
    doubts += doubts_of_rates(evidence, *roles)
    return Ranking({arm: roles[arm] for arm in order}, baseline, gains, joint, unique(doubts))


def _together(
    evidence: Evidence, family: Sequence[tuple[str, str]], shown: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Quantity]:
    """Differences of pairs of arms, in both orders, with limits that hold for all pairs of the family together."""
    blocks = {(a, b): blocks_of(evidence, {(a, evidence.size): 1.0, (b, evidence.size): -1.0}) for a, b in shown}
    level = _level_of_one(evidence, [blocks[pair] for pair in family])
    found: dict[tuple[str, str], Quantity] = {}
    for (a, b), of_pair in blocks.items():
        one = of_blocks(f"{a} - {b}", of_pair, 1 - level, scale=OF_DSC, train_cases=evidence.size)
        found[a, b] = one
        found[b, a] = dataclasses.replace(one, name=f"{b} - {a}", value=-one.value, low=-one.high, high=-one.low)
    return found


def _level_of_one(evidence: Evidence, pairs: Sequence[Blocks]) -> float:
    """The level of one interval of a family; an equal share where pairs differ in their seeds, as with lost runs."""
    dfs = [of_blocks("", blocks, evidence.confidence).df for blocks in pairs]
    seeds = {tuple(tuple(map(int, of_fold)) for of_fold in blocks.seeds) for blocks in pairs}
    shapes = {tuple(block.shape for block in blocks.d) for blocks in pairs}
    if len(seeds) > 1 or len(shapes) > 1 or not np.isfinite(dfs).all():
        return evidence.level / len(pairs)
    folds = [np.stack(of_fold) for of_fold in zip(*(blocks.d for blocks in pairs), strict=True)]
    return joint_level(folds, dfs, level=evidence.level, rng=host_rng(0, RANKING))


# ---------------------------------------------------------------------------------------------------- words and table


def sentence(evidence: Evidence, found: Ranking) -> str:
    """States which start to take, or why none can be named, and what checkpoints among the starts may have seen."""
    seen = (f" {arm}: {words}." for arm in found.starts if (words := evidence.arm(arm).seen))
    return _advice(evidence, found) + "".join(seen)


def _advice(evidence: Evidence, found: Ranking) -> str:
    where = f"{evidence.record.target}, {size_name(evidence, evidence.size)}"
    count, baseline = len(found.starts), found.baseline
    if found.doubts:
        return f"Which of {count} starts to take on {where} is undecided: {'; '.join(found.doubts)}."
    if not found.better:
        return f"On {where}, {_none(found)}{_of_placebo(found)}."
    first = found.better[0] if found.better[0] in found.may_be_best else found.may_be_best[0]
    others = [arm for arm in found.may_be_best if arm != first]
    named = f"On {where}, start from {_source(evidence, first)}: {_words(found, first)} against {baseline}"
    if others:
        listed = listing([f"{_source(evidence, arm)} ({signed(found.gains[arm].value)})" for arm in others])
        rest = f"it cannot be told apart from {listed}"
        worse = count - 1 - len(others)
        rest += f"; {worse} of the {count} starts {'is' if worse == 1 else 'are'} worse" if worse else ""
    else:
        rest = f"it is better than {'the other start' if count == 2 else f'each of the other {count - 1} starts'}"
    if first not in found.better:  # its own limits hold nothing; those of two steps do not
        rest += (
            f"; that it gains is seen by way of {_source(evidence, found.better[0])}, which is better than {baseline}"
        )
    return f"{named}; {rest}{_of_placebo(found)}."


def _none(found: Ranking) -> str:
    best, baseline = found.starts[0], found.baseline
    small = all(found.joint[arm, baseline].high < DELTA for arm in found.starts)
    meaning = f"better than {baseline} by {DELTA} DSC" if small else f"shown to be better than {baseline}"
    return f"none of {len(found.starts)} starts is {meaning}: the best, {best}, {_words(found, best)}"


def _words(found: Ranking, arm: str) -> str:
    one = found.joint[arm, found.baseline]
    return f"{signed(one.value)} DSC {interval(one.low, one.high)}"


def _source(evidence: Evidence, arm: str) -> str:
    return f"{arm} (this checkpoint)" if evidence.arm(arm).one_source else arm


def _of_placebo(found: Ranking) -> str:
    if PLACEBO in found.roles and found.beats(PLACEBO, found.baseline):
        return f"; but {PLACEBO}, a placebo, is ranked above {found.baseline} too, by chance or by a flaw"
    return ""


def ranking_finding(evidence: Evidence, too_early: str = "") -> tuple[Finding, Ranking] | None:
    """Returns the ranking as a finding with a quantity for each start, and as it is; None if there is none."""
    found = rank(evidence, too_early)
    if found is None:
        return None
    exploratory = "; ".join(filter(None, (newer_rules(evidence.record), *doubts_of_rates(evidence, *found.roles))))
    quantities = tuple(found.joint[arm, found.baseline] for arm in found.starts)
    tag = tag_of(evidence, tuple(found.roles))
    return Finding(RANKING, "", sentence(evidence, found), quantities, tag, exploratory), found


def ranking_table(evidence: Evidence, fold: int, too_early: str = "") -> pd.DataFrame:
    """Tabulates the ranking, best first; without rows if there is none.

    Args:
        evidence: The study at the training set size that is judged.
        fold: The value of column `fold`.
        too_early: See `rank`.

    Returns:
        The columns `COLUMNS`. `gain` is the difference to the baseline with its own interval, as claims have it, and
        with limits that hold for all starts together; `to_best` is the difference of a start to the best one, with
        limits that hold for all pairs of starts. `rank_low` and `rank_high` are the limits of a start's rank among
        the starts. `better` and `may_be_best` say of starts what is certain. `pretrain_steps` and
        `pretrain_seconds` are those of one source network, empty for networks that were trained elsewhere. `seen` is
        what a checkpoint of someone else's may have seen, in words. `confidence` is that of an interval of its own and
        that of all joint limits together, each of which alone has `joint_confidence`.
    """
    found = rank(evidence, too_early)
    if found is None:
        return pd.DataFrame(columns=list(COLUMNS))
    ranks, rows = found.ranks(), list[dict[str, Any]]()
    best = found.starts[0]
    for place, (arm, role) in enumerate(found.roles.items(), start=1):
        own, gained = evidence.arm(arm), found.gains.get(arm)
        joint, to_best = found.joint.get((arm, found.baseline)), found.joint.get((arm, best)) if role == START else None
        compared = joint or found.joint[best, arm]
        rows.append(
            {
                **{"arm": arm, "role": role, "source": own.source, "train_cases": evidence.size, "fold": fold},
                **dict(zip(("rank", "rank_low", "rank_high"), (place, *ranks.get(arm, ())), strict=False)),
                **_limits("gain", "ci", gained),
                **_limits("", "joint", joint),
                "grade": "" if joint is None else found.grade(joint),
                **_limits("to_best", "to_best", to_best),
                "may_be_best": role == START and arm in found.may_be_best,
                "better": role == START and arm in found.better,
                **{"steps": own.steps, "pretrain_steps": own.pretrain_steps, "pretrain_seconds": own.pretrain_seconds},
                **{"seen": own.seen, "n_seeds": compared.n_seeds, "n_groups": compared.n_groups},
                **{"confidence": evidence.confidence, "joint_confidence": compared.confidence},
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(INTEGERS, "Int64"))


def _limits(value: str, limits: str, found: Quantity | None) -> dict[str, float]:
    if found is None:
        return {}
    estimate = {value: found.value} if value else {}
    return {**estimate, f"{limits}_low": found.low, f"{limits}_high": found.high}
