"""Finds what part of a pretrained network makes the gain: its weights' statistics, its first levels, or all of it.

The findings are graded without a verdict, since they are not claims of the paper. Transfer less `mean_var` is what
features add to the means and variances of their weights (Raghu et al. 2019); the fewest levels that gain as much as all
of them are where reuse stops paying (Matsoukas et al. 2022).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from jaxseg.study.claims.dsc import dsc_quantity
from jaxseg.study.claims.evidence import OWN_RATES, Evidence, Pair, doubts_of_rates, scope_of, seen_by
from jaxseg.study.claims.findings import OF_DSC, Finding, Lacking, Quantity, Void, unique
from jaxseg.study.claims.judging import newer_rules
from jaxseg.study.claims.needs import of_undecided
from jaxseg.study.claims.rest import tag_of
from jaxseg.study.claims.rules import DELTA

STATISTICS = "mean_var"
PARTS = {
    "mean_var": "what features add to the statistics of their weights",
    "first_k": "how many of the encoder's first levels gain as much as the whole network",
}
"""Names of the findings in column `claim`, with a description of each."""


def first_levels(init: str) -> int | None:
    """Returns how many first levels of the encoder an arm loads, if it loads nothing else; None for other arms.

    >>> [first_levels(init) for init in ("pretrained:encoder/level_[0-1]/", "pretrained:encoder/level_0", "random")]
    [2, 1, None]
    >>> first_levels("pretrained:encoder/level_([0-9]|1[0-2])/")
    13
    """
    found = re.fullmatch(r"pretrained:\^?encoder/level_(?:0|\[0-(\d)\]|\(\[0-9\]\|1\[0-(\d)\]\))/?", init)
    if found is None:
        return None
    return int(found[1] or 0) + 1 if found[2] is None else int(found[2]) + 11


def _less(evidence: Evidence, arm: str, other: str, name: str) -> tuple[Quantity, list[str]]:
    weights = {(arm, evidence.size): 1.0, (other, evidence.size): -1.0}
    found, doubts = dsc_quantity(evidence, name, weights, key=other, scale=OF_DSC, thresholds=(DELTA,))
    return found, [*doubts, *doubts_of_rates(evidence, arm, other)]


def _finding(
    evidence: Evidence,
    part: str,
    found: list[tuple[Quantity, list[str]]],
    arms: tuple[str, ...],
    lost: Sequence[str] = (),
) -> Finding:
    doubts = unique([doubt for _, more in found for doubt in more])
    quantities = tuple(one for one, _ in found)
    needs = "; ".join(doubts) or of_undecided(quantities)
    own_rates = [doubt for doubt in doubts if doubt.startswith(OWN_RATES)]
    exploratory = "; ".join(filter(None, (newer_rules(evidence.record), *own_rates)))
    reason = "; ".join(filter(None, (scope_of(evidence, arms[0]), *doubts, *lost, seen_by(evidence.record, *arms))))
    return Finding(part, "", reason, quantities, tag_of(evidence, arms), exploratory, needs)


def parts_of_transfer(evidence: Evidence, pair: Pair, too_early: str = "") -> list[Finding]:
    """Returns one finding for each of `PARTS` that the study has arms for.

    An arm without scores is left out, and the reason says why.

    Args:
        evidence: The study at the training set size that is judged.
        pair: The arms of the claims on transfer.
        too_early: Why nothing is concluded yet, see `judging.before_looks`.
    """
    if pair.arm not in evidence.record.arms:
        return []
    early = [too_early] if too_early else []
    return [*_of_statistics(evidence, pair, early), *_of_levels(evidence, pair, early)]


def _of_statistics(evidence: Evidence, pair: Pair, early: list[str]) -> Iterator[Finding]:
    if STATISTICS not in evidence.record.arms:
        return
    arms = (pair.arm, STATISTICS)
    try:
        found, doubts = _less(evidence, *arms, f"{pair.arm} - {STATISTICS}")
        yield _finding(evidence, "mean_var", [(found, [*early, *doubts])], arms)
    except Lacking:
        return
    except Void as error:
        yield Finding("mean_var", "", str(error))


def _of_levels(evidence: Evidence, pair: Pair, early: list[str]) -> Iterator[Finding]:
    arms = evidence.record.arms.items()
    by_levels = sorted((k, name) for name, arm in arms if (k := first_levels(arm.init)) is not None)
    found: dict[int, tuple[Quantity, list[str]]] = {}
    lost: list[str] = []
    for k, name in by_levels:
        try:
            less, doubts = _less(evidence, pair.arm, name, f"{pair.arm} - first {k} levels")
            found[k] = less, [*early, *doubts]
        except (Lacking, Void) as error:
            lost.append(str(error))
    if not found:
        return
    as_good = [k for k, (one, doubts) in found.items() if one.high < DELTA and not doubts]
    rows = [*found.values()]
    if as_good:
        enough = Quantity(f"fewest levels within {DELTA} DSC of {pair.arm}", min(as_good), key="enough")
        rows.append((enough, []))
    named = (pair.arm, *(name for k, name in by_levels if k in found))
    yield _finding(evidence, "first_k", rows, named, lost)
