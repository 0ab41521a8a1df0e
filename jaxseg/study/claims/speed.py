"""Makes speed.csv: how many times fewer steps each arm takes than the baseline at every size, by the rule of C1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from jaxseg.study.claims.evidence import Evidence, Pair
from jaxseg.study.claims.findings import Lacking, Void
from jaxseg.study.claims.training import times
from jaxseg.study.score.comparisons import baseline_of

COLUMNS = (
    *("arm", "baseline", "train_cases", "fold", "ratio", "ci_low", "ci_high"),
    *("total_ratio", "total_ci_low", "total_ci_high", "pretrain_steps"),
    *("confidence", "n_seeds", "n_runs", "n_censored", "n_censored_baseline"),
)


def speed_table(evidence: Evidence, sizes: Mapping[int, int]) -> pd.DataFrame:
    """Tabulates the speed of each arm and training set size whose runs, and the baseline's, were validated in training.

    Args:
        evidence: The study with the seeds, and at the level, of the answer; see `judged_evidence`.
        sizes: The fold of each training set size, as in the tables.

    Returns:
        The columns `COLUMNS`. `ratio` and its limits are C1's `times fewer steps`, `total_ratio` the same with the
        arm's `pretrain_steps` counted; empty where it has none, or where its source networks were trained elsewhere.
        Of `n_runs` runs of the arm, and as many of the baseline, `n_censored` and `n_censored_baseline` never reached
        the highest of C1's levels. `confidence` is that of the limits.
    """
    arms = evidence.record.arms
    baseline = baseline_of(list(arms)) if arms else ""
    rows: list[dict[str, Any]] = []
    for size, fold in sizes.items():
        at_size = dataclasses.replace(evidence, size=size)
        for arm in arms:
            if arm == baseline:
                continue
            try:
                found = times(at_size, Pair(arm, baseline))
            except (Lacking, Void):
                continue
            total = found.total
            rows.append(
                {
                    **{"arm": arm, "baseline": baseline, "train_cases": size, "fold": fold},
                    **{"ratio": found.ratio.estimate, "ci_low": found.ratio.low, "ci_high": found.ratio.high},
                    "total_ratio": math.nan if total is None else total.estimate,
                    "total_ci_low": math.nan if total is None else total.low,
                    "total_ci_high": math.nan if total is None else total.high,
                    "pretrain_steps": math.nan if total is None else arms[arm].pretrain_steps,
                    **{"confidence": evidence.confidence, "n_seeds": found.n_seeds, "n_runs": found.n_runs},
                    **{"n_censored": found.n_censored[1], "n_censored_baseline": found.n_censored[0]},
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))
