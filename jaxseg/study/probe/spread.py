"""Makes variability.csv: how much the runs of an arm differ, in one number for each quantity, with its interval.

Runs that share a source network are left out together, see `score.units`, and n_seeds counts the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxseg.analysis import statistics
from jaxseg.reserved import MEAN
from jaxseg.study.probe.representations import Represented
from jaxseg.study.probe.variation import OF_PAIRS, Agreement
from jaxseg.study.score.scores import group_means, read_scores
from jaxseg.study.score.units import Seeds, Sources, jackknife, mean_of_units


class _Arm(NamedTuple):
    """The runs of an arm in ascending order of seeds."""

    name: str
    seeds: tuple[int, ...]
    of_units: Seeds
    confidence: float

    def row(self, quantity: str, interval: statistics.Interval, *, layer: str = "", num_pairs: int = 0) -> Any:
        """A row of the table."""
        return {
            **{"arm": self.name, "quantity": quantity, "layer": layer, "value": interval.estimate},
            **{"ci_low": interval.low, "ci_high": interval.high},
            **{"n_seeds": len(np.unique(self.of_units)), "n_pairs": num_pairs},
        }

    def rows_of_pairs(self, quantity: str, matrix: Float[np.ndarray, "runs runs"], layer: str = "") -> list[Any]:
        """The row of a quantity of pairs; none if no pair has a value."""
        known = ~np.isnan(matrix)
        if not known.any():
            return []

        def mean(kept: Seeds) -> float:
            return float(statistics.mean_of_pairs(matrix, kept))

        interval = jackknife(mean, self.of_units, confidence=self.confidence)
        return [self.row(quantity, interval, layer=layer, num_pairs=int(known.sum()) // 2)]

    def spread(self, runs: Float[np.ndarray, " runs"]) -> statistics.Interval:
        """Standard deviation over runs."""

        def deviation(kept: Seeds) -> float:
            return float(runs[kept].std(ddof=1)) if len(kept) > 1 else np.nan

        return jackknife(deviation, self.of_units, confidence=self.confidence, log=True)

    def matrix(self, rows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "runs runs"]:
        """A symmetric matrix from rows of pairs; NaN for pairs that have none, and on the diagonal."""
        position = {seed: index for index, seed in enumerate(self.seeds)}
        matrix = np.full((len(self.seeds),) * 2, np.nan)
        for row in rows:
            i, j = position[row["seed_a"]], position[row["seed_b"]]
            matrix[i, j] = matrix[j, i] = row["value"]
        return matrix


def variability_rows(
    arms: Sequence[Represented],
    found: Agreement,
    pairs: Sequence[Mapping[str, Any]],
    similarities: Sequence[Mapping[str, Any]],
    cases: pd.DataFrame,
    *,
    confidence: float,
    sources: Sources,
) -> list[dict[str, Any]]:
    """Tabulates all quantities of all arms, with intervals that leave out one unit at a time.

    Args:
        arms: The arms' runs and layers.
        found: The agreement of the runs' predictions.
        pairs: Rows of pairs.csv.
        similarities: Rows of similarity.csv at the runs' last step.
        cases: The variant's rows of cases.csv.
        confidence: Confidence level of the intervals.
        sources: The source networks that runs start from.
    """
    rows: list[dict[str, Any]] = []
    own = {arm.arm: _Arm(arm.arm, arm.seeds, sources.units(arm.arm, np.array(arm.seeds)), confidence) for arm in arms}
    for represented, arm in zip(arms, own.values(), strict=True):
        for quantity in OF_PAIRS:
            chosen = [row for row in pairs if row["quantity"] == quantity and _within(row, arm.name)]
            rows += arm.rows_of_pairs(quantity, arm.matrix(chosen))
        errors = mean_of_units(found.error[arm.name], arm.of_units)
        if len(arm.seeds) > 1:
            rows.append(arm.row("entropy", statistics.from_left_out(found.entropy[arm.name], confidence=confidence)))
        rows.append(arm.row("error_rate", statistics.t_interval(errors, confidence=confidence)))
        rows += _representation_rows(arm, represented.layers, similarities)
    return rows + _score_rows(own, cases)


def _within(row: Mapping[str, Any], arm: str) -> bool:
    return row["arm_a"] == row["arm_b"] == arm


def _representation_rows(
    arm: _Arm, layers: Iterable[str], similarities: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """How far the runs' representations are from each other, on average and by layer."""
    chosen = [row for row in similarities if (row["comparison"], row["index"]) == ("within_arm", "cka")]
    chosen = [{**row, "value": 1 - row["value"]} for row in chosen if row["arm_a"] == arm.name]
    by_layer = {layer: arm.matrix([row for row in chosen if row["layer"] == layer]) for layer in layers}
    # A layer with too few points for its channels has no value, and is no part of the mean over layers. Of a run in
    # which another layer is constant, pairs have no value, and are no part of the mean over pairs (`n_pairs`).
    usable = [matrix for matrix in by_layer.values() if not np.isnan(matrix).all()]
    rows = arm.rows_of_pairs("representation_distance", np.mean(usable, axis=0)) if usable else []
    for layer, matrix in by_layer.items():
        rows += arm.rows_of_pairs("representation_distance", matrix, layer)
    return rows


def _score_rows(arms: Mapping[str, _Arm], cases: pd.DataFrame) -> list[dict[str, Any]]:
    """Standard deviations of the runs' scores, over the groups in which every run has one."""
    rows = []
    for scores in read_scores(cases, ("dsc", "hd95", "assd")):
        for name, arm in arms.items() if scores.label == MEAN else ():
            for metric in scores.metrics:
                groups = group_means(scores.of(name, metric), scores.groups)
                complete = np.isfinite(groups).all(0)
                if len(groups) > 1 and complete.any():
                    rows.append(arm.row(f"sd_{metric}", arm.spread(groups[:, complete].mean(1))))
    return rows
