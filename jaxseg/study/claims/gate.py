"""Gate G: whether runs had converged, so that a claim about trained networks is not one about how long they trained.

Over the last quarter of the steps the smoothed training loss changes by under 2 % and validation DSC by under 0.005,
both in at least 7 of 8 runs; and with scratch trained for twice the steps the verdict is the same. Smoothed means a
straight line through all values of the quarter: its rise from end to end is the change, and for the loss its mean is
what the percentage is of. The line is known no better than the values scatter: where its standard error is near a
limit, runs at rest fail too, and the reason says how uncertain it is. Only a constant rate (after its warm-up) is
accepted: a rate that falls to nothing flattens every run at its end, converged or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxseg.study.claims.evidence import Evidence, surviving_curves
from jaxseg.study.claims.findings import INCONCLUSIVE, Finding, Lacking
from jaxseg.study.claims.rules import DSC_CHANGE, LOSS_CHANGE, SHARE_OF_RUNS, TELLING

_LEAST = 3
"""Values in the last quarter below which no line is drawn."""


def last_quarter_change(
    steps: Float[np.ndarray, " points"], values: Float[np.ndarray, "runs points"], total: int
) -> tuple[Float[np.ndarray, " runs"], Float[np.ndarray, " runs"]]:
    """Rise over the last quarter of a straight line through it, and the mean there; NaN with too few values.

    Args:
        steps: of the values.
        values: one row a run; a run with NaN in the quarter (diverged) gives NaN.
        total: steps trained.
    """
    late = steps > 0.75 * total
    if late.sum() < _LEAST:
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    x, y = steps[late] - steps[late].mean(), values[:, late]
    return (y @ x) / (x @ x) * 0.25 * total, y.mean(1)


def last_quarter_error(
    steps: Float[np.ndarray, " points"], values: Float[np.ndarray, "runs points"], total: int
) -> Float[np.ndarray, " runs"]:
    """Standard error of `last_quarter_change`'s rise, from the values' scatter about their line.

    Values are taken as independent: at least this uncertain. NaN with too few values.
    """
    late = steps > 0.75 * total
    if late.sum() < _LEAST:
        return np.full(len(values), np.nan)
    x, y = steps[late] - steps[late].mean(), values[:, late]
    y = y - y.mean(1, keepdims=True)
    scatter = (y**2).sum(1) - (y @ x) ** 2 / (x @ x)
    return np.sqrt(np.maximum(scatter, 0) / (late.sum() - 2) / (x @ x)) * 0.25 * total


def _by_run(curves: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    known = curves.dropna(subset=[column])
    table = known.pivot(index=["seed", "fold"], columns="step", values=column)
    return table.columns.to_numpy(np.float64), table.to_numpy(np.float64)


def _if_uncertain(loss_error: float, dsc_error: float) -> str:
    """What the reader can do where runs at rest would fail as well, or nothing."""
    if loss_error <= LOSS_CHANGE / TELLING and dsc_error <= DSC_CHANGE / TELLING:
        return ""
    return (
        ": too uncertain to tell rest from change, which takes more steps or larger batches (loss), "
        "more validations or validation cases (DSC)"
    )


def unconverged(evidence: Evidence, arm: str) -> str:
    """Why an arm's runs do not count as converged; empty where they do."""
    record, curves = evidence.arm(arm), surviving_curves(evidence, arm)
    if record.schedule != "constant":
        return (
            f"{arm} trained with schedule {record.schedule}, under which every run flattens at its end; needs constant"
        )
    losses, scores = (*_by_run(curves, "loss"), record.steps), (*_by_run(curves, "val_dsc"), record.steps)
    (rise, level), (gain, _) = last_quarter_change(*losses), last_quarter_change(*scores)
    if np.isnan(rise).all() or np.isnan(gain).all():
        return f"fewer than {_LEAST} losses or validations of {arm} in the last quarter"
    loss_flat, dsc_flat = np.abs(rise) < LOSS_CHANGE * np.abs(level), np.abs(gain) < DSC_CHANGE
    both = loss_flat & dsc_flat
    if both.mean() >= SHARE_OF_RUNS:
        return ""
    errors = np.nanmedian(last_quarter_error(*losses) / np.abs(level)), np.nanmedian(last_quarter_error(*scores))
    return (
        f"in the last quarter training loss changes by under {LOSS_CHANGE:.0%} and validation DSC by under "
        f"{DSC_CHANGE} in {both.sum()} of {len(both)} runs of {arm} (loss alone {loss_flat.sum()}, DSC alone "
        f"{dsc_flat.sum()}); needs 7 of 8. Standard errors of a run's changes, from its own scatter: {errors[0]:.1%} "
        f"and {errors[1]:.3f}{_if_uncertain(*errors)}"
    )


def gated(evidence: Evidence, judge: Callable[[str], Finding], arms: tuple[str, ...], baseline: str) -> Finding:
    """A finding, if all arms had converged and training scratch for longer leaves the verdict.

    Args:
        evidence: The study.
        judge: Makes the finding with the arm given in the place of `baseline`.
        arms: Whose runs must have converged, the baseline among them.
        baseline: The arm that stands for scratch.
    """
    found = judge(baseline)
    if found.verdict == INCONCLUSIVE:
        return found
    problem = next(filter(None, (unconverged(evidence, arm) for arm in arms)), "")
    if not problem:
        try:
            double = judge(f"{baseline}_double")
        except Lacking as error:
            problem = f"whether longer training would change the verdict is not known: {error}"
        else:
            if double.verdict != found.verdict:
                problem = f"with scratch trained for twice the steps it is {double.verdict} ({double.reason})"
    if not problem:
        return found
    return dataclasses.replace(found, verdict=INCONCLUSIVE, reason=f"not converged: {problem}")
