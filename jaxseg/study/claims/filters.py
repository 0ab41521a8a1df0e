"""C5, C6: what training from scratch does to the encoder's filters.

A number of a run is over the encoder's filters: each layer counts with as many filters as it has. Intervals are t over
seeds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxseg.analysis.statistics import t_interval
from jaxseg.study.claims.evidence import Alone, Evidence, run_values
from jaxseg.study.claims.findings import Finding, Lacking, few_seeds, judge, quantity
from jaxseg.study.claims.gate import gated
from jaxseg.study.claims.rules import CONTROL_SHARE, CONTROLLED, LITTLE_DEG, MUCH_DEG, RANDOM, STRUCTURED


def _encoder_rows(evidence: Evidence, arm: str) -> pd.DataFrame:
    rows = evidence.table("filters", arm)
    rows = rows[(rows["arm"] == arm) & rows["layer"].str.startswith("encoder/") & rows["trained"]]
    if rows.empty:
        raise Lacking(f"no trained encoder filters of {arm}")
    return rows


def weighted_median(values: Float[np.ndarray, " layers"], weights: Float[np.ndarray, " layers"]) -> float:
    """The value below which half of the weight lies, between the two middle layers linearly.

    >>> weighted_median(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 1.0]))
    2.0
    """
    order = np.argsort(values, kind="stable")
    weights = weights[order]
    centres = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(0.5, centres, values[order]))


def _angles(rows: pd.DataFrame) -> pd.DataFrame:
    """The median angle of each run's filters, from the layers' medians."""
    known = rows.dropna(subset=["angle_deg"])
    parts = [
        (seed, fold, weighted_median(run["angle_deg"].to_numpy(), run["filters"].to_numpy(np.float64)))
        for (seed, fold), run in known.groupby(["seed", "fold"])
    ]
    return pd.DataFrame(parts, columns=["seed", "fold", "value"])


def _change_little(evidence: Evidence, arm: str) -> Finding:
    seeds, angles = run_values(_angles(_encoder_rows(evidence, arm)), "value")
    found = t_interval(angles, confidence=evidence.confidence)
    return judge(
        "C5",
        [quantity("median angle, degrees", found, len(seeds))],
        supported=found.high <= LITTLE_DEG,
        contradicted=found.low > MUCH_DEG,
        doubts=few_seeds(len(seeds)),
    )


def c5(evidence: Evidence, alone: Alone) -> Finding:
    """Filters change little: median angle between a filter's start and end."""
    return gated(evidence, lambda scratch: _change_little(evidence, scratch), alone, alone.arm)


def randomness(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """The four quantities of each row of filters.csv; NaN where a test does not apply to a layer.

    Each has a limit in `RANDOM` and one in `STRUCTURED`; all are one-sided, as an excess below zero is no structure.
    """
    return {
        # Against the run's own start, so that what an initialiser brings with it does not count.
        "distribution": rows["distribution_end"] - rows["distribution_start"],
        # Absolute in each layer: arrangements of opposite kinds must not cancel.
        "arrangement": (rows["moran_end"] - rows["moran_expected"]).abs(),
        "spectrum": rows["spectral_end"] - rows["spectral_start"],
        "auc": rows["auc"],
    }


_NAMES = {
    "distribution": "Kolmogorov-Smirnov excess",
    "arrangement": "Moran's I, distance from chance",
    "spectrum": "excess spectral energy",
    "auc": "AUC, start against end",
}


def _over_layers(rows: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Mean over the filters of each run, in the layers where the test applies."""
    known = rows.assign(value=values, weight=rows["filters"].astype(float)).dropna(subset=["value"])
    known["value"] *= known["weight"]
    sums = known.groupby(["seed", "fold"])[["value", "weight"]].sum()
    return (sums["value"] / sums["weight"]).rename("value").reset_index()


def controlled_share(evidence: Evidence, name: str, rows: pd.DataFrame) -> float:
    """Share of the filters in layers where a test found its control, of those in layers where it was given one."""
    controls = evidence.table("filter_controls")
    controls = controls[controls["quantity"] == name]
    weights = rows.groupby("layer")["filters"].first()
    given = weights[weights.index.isin(controls["layer"])]
    found = controls["layer"][controls["smallest_share"] <= CONTROL_SHARE]
    return float(given[given.index.isin(found)].sum() / given.sum()) if len(given) else 0.0


def _doubts_of_controls(evidence: Evidence, rows: pd.DataFrame) -> list[str]:
    """Tests whose control was not found: their silence means nothing."""
    shares = {name: controlled_share(evidence, name, rows) for name in RANDOM}
    return [
        f"the test of {_NAMES[name]} finds its control at a share of {CONTROL_SHARE} in layers with only {share:.0%} "
        f"of the filters, needs {CONTROLLED:.0%}"
        for name, share in shares.items()
        if share < CONTROLLED
    ]


def _look_random(evidence: Evidence, arm: str) -> Finding:
    rows = _encoder_rows(evidence, arm)
    intervals, quantities, least = {}, [], 10**9
    for name, values in randomness(rows).items():
        seeds, by_seed = run_values(_over_layers(rows, values), "value") if values.notna().any() else ((), np.zeros(0))
        intervals[name] = t_interval(by_seed, confidence=evidence.confidence)
        quantities.append(quantity(_NAMES[name], intervals[name], len(seeds)))
        least = min(least, len(seeds))
    doubts = few_seeds(least)
    contradicted = any(intervals[name].low > limit for name, limit in STRUCTURED.items())
    within = all(intervals[name].high <= limit for name, limit in RANDOM.items())
    if within and not doubts:
        # Only a silent test needs its control: one that speaks has shown that it can.
        doubts += _doubts_of_controls(evidence, rows)
    return judge("C6", quantities, supported=within, contradicted=contradicted, doubts=doubts)


def c6(evidence: Evidence, alone: Alone) -> Finding:
    """Trained filters still look random: distribution, arrangement, spectrum, and start told from end."""
    return gated(evidence, lambda scratch: _look_random(evidence, scratch), alone, alone.arm)
