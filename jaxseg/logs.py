"""What training a job measured, row by row: losses, validations, divergence and time of all of its runs.

Checkpoints hold the log up to their step, under checksums, so that a job goes on from exactly what it had measured.
`metrics.jsonl` beside them is the same for people and for programs that follow a job while it trains; nothing is read
back from it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxseg import checkpoint

METRICS_FILE = "metrics.jsonl"


class Row(NamedTuple):
    """What was measured of all runs between two steps."""

    step: int
    """The last of them."""
    loss: np.ndarray | None
    """Mean over the steps, one value a run; None in the row of the start."""
    val_dsc: np.ndarray | None
    """Validation DSC of each run; None where there was no validation."""
    steps_alive: np.ndarray
    """How many of the steps each run was alive after."""
    step_seconds: float | None
    """Of one step of all runs; None where compiling would be in it."""

    def to_json(self) -> str:
        """The row as a line of metrics.jsonl."""
        values = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in self._asdict().items()
        }
        return json.dumps(values) + "\n"


@dataclasses.dataclass(frozen=True)
class TrainingLog:
    """All rows of a job, as arrays."""

    step: Int[np.ndarray, " rows"]
    loss: Float[np.ndarray, "runs rows"]
    """NaN in the row of the start, and where a run has diverged."""
    validated: Bool[np.ndarray, " rows"]
    val_dsc: Float[np.ndarray, "runs rows"]
    """NaN in rows that are not `validated`."""
    steps_alive: Int[np.ndarray, "runs rows"]
    step_seconds: Float[np.ndarray, " rows"]
    """NaN where compiling would be in it."""

    @property
    def rows(self) -> list[Row]:
        """The same, row by row."""
        return [
            Row(
                step,
                self.loss[:, index] if step else None,
                self.val_dsc[:, index] if self.validated[index] else None,
                self.steps_alive[:, index],
                None if np.isnan(self.step_seconds[index]) else float(self.step_seconds[index]),
            )
            for index, step in enumerate(self.step.tolist())
        ]

    @property
    def diverged_at(self) -> list[int | None]:
        """The step at which each run diverged (its first non-finite loss or gradient), or None."""
        lengths = np.diff(self.step, prepend=0)
        steps: list[int | None] = []
        for alive in self.steps_alive:
            short = np.flatnonzero(alive < lengths)
            steps.append(int((self.step - lengths + alive)[short[0]]) if short.size else None)
        return steps

    @property
    def median_step_seconds(self) -> float:
        """Median over compiled calls of the seconds of one step of all runs, without compiling and validation."""
        known = self.step_seconds[~np.isnan(self.step_seconds)]
        return float(np.median(known)) if known.size else float("nan")


def make_log(rows: Sequence[Row], num_runs: int) -> TrainingLog:
    """Rows of a job as arrays; there may be none yet."""

    def columns(name: str, kind: Any) -> np.ndarray:
        values = [getattr(row, name) for row in rows]
        found = [np.full(num_runs, np.nan) if value is None else np.asarray(value) for value in values]
        return np.stack(found, axis=1).astype(kind) if rows else np.zeros((num_runs, 0), kind)

    return TrainingLog(
        step=np.array([row.step for row in rows], np.int64),
        loss=columns("loss", np.float64),
        validated=np.array([row.val_dsc is not None for row in rows], bool),
        val_dsc=columns("val_dsc", np.float64),
        steps_alive=columns("steps_alive", np.int64),
        step_seconds=np.array([np.nan if row.step_seconds is None else row.step_seconds for row in rows], np.float64),
    )


def to_arrays(log: TrainingLog) -> dict[str, np.ndarray]:
    """A log as a checkpoint holds it; nothing where it has no rows, since Orbax saves no empty arrays."""
    return dataclasses.asdict(log) if len(log.step) else {}


def read_log(directory: Path, num_runs: int) -> TrainingLog:
    """The log of a job's last checkpoint; without rows where there is none yet.

    Args:
        directory: Of the job.
        num_runs: Of the job.

    Raises:
        DamagedError: The checkpoint is not as it was written.
    """
    folder = directory / "checkpoints"
    steps = checkpoint.saved_steps(folder)
    arrays = checkpoint.read_log(folder, steps[-1]) if steps else {}
    return TrainingLog(**arrays) if arrays else make_log([], num_runs)


def write_lines(directory: Path, rows: Sequence[Row]) -> None:
    """Writes metrics.jsonl, whole or not at all."""
    path = directory / METRICS_FILE
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with open(partial, "x", encoding="utf-8") as handle:
        handle.writelines(row.to_json() for row in rows)
    os.replace(partial, path)


def mend_lines(directory: Path, num_runs: int) -> None:
    """Writes metrics.jsonl of a finished job anew where it does not say what the last checkpoint says."""
    path = directory / METRICS_FILE
    rows = read_log(directory, num_runs).rows
    expected = "".join(row.to_json() for row in rows)
    try:
        found = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        found = ""
    if found != expected:
        warnings.warn(f"{path} differs from what was measured; it is written anew from the checkpoint", stacklevel=2)
        write_lines(directory, rows)
