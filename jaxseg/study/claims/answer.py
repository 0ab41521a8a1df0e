"""What transfer does on a target, in one sentence for a reader in a hurry."""

from __future__ import annotations

from jaxseg.analysis.statistics import MIN_SEEDS, Interval
from jaxseg.study.claims.accuracy import of_dsc, size_name
from jaxseg.study.claims.evidence import Evidence, Pair, gain
from jaxseg.study.claims.findings import Lacking
from jaxseg.study.claims.study_tables import Record
from jaxseg.study.claims.training import times
from jaxseg.study.score.comparisons import baseline_of


def answer_pair(record: Record) -> Pair:
    """The arms that the answer is about: `transfer`, else the first arm that starts from a source network, or any."""
    names = list(record.arms)
    baseline = baseline_of(names) if names else Pair().baseline
    others = [name for name in names if name != baseline and record.arms[name].kind == "network"]
    pretrained = [name for name in others if record.arms[name].pretrain_steps != 0]
    candidates = [name for name in others if name == Pair().arm] or pretrained or others
    return Pair(candidates[0], baseline) if candidates else Pair()


def _steps(ratio: Interval) -> str:
    """A ratio of steps, the larger number first, as one says it."""
    if ratio.estimate >= 1:
        return f"{ratio.estimate:.3g} times fewer steps [{ratio.low:.3g}, {ratio.high:.3g}]"
    return f"{1 / ratio.estimate:.3g} times more steps [{1 / ratio.high:.3g}, {1 / ratio.low:.3g}]"


def plain_answer(evidence: Evidence, pair: Pair) -> str:
    """What an arm changes on this target at this training set size, with 95 % intervals, in words.

    Accuracy as a difference in DSC, training time as a ratio of steps to the level that counts as converged, then the
    same with the steps of pretraining counted. Parts that the study has no tables for are left out; with too few seeds
    the numbers are given and said to be no verdict.
    """
    parts, seeds = [], []
    try:
        d = gain(evidence, pair).d
        change = of_dsc("gain", d, evidence.level)
        seeds.append(len(d))
        parts.append(f"{change.value:+.3f} DSC [{change.low:+.3f}, {change.high:+.3f}]")
    except Lacking:
        pass
    try:
        found = times(evidence, pair)
        seeds.append(found.n_seeds)
        parts.append(f"{_steps(found.ratio)} to {pair.baseline}'s level")
        if found.total is not None:
            parts.append(f"{_steps(found.total)} with pretraining counted")
    except Lacking:
        pass
    where = f"{evidence.record.target}, {size_name(evidence, evidence.size)}"
    if not parts:
        return f"{pair.arm} on {where}: nothing to compare with {pair.baseline}"
    note = "" if min(seeds) >= MIN_SEEDS else f" (fewer than {MIN_SEEDS} seeds: no verdict)"
    return f"{pair.arm} on {where}, {min(seeds)} seeds: {', '.join(parts)}{note}"
