"""The measurements of a training job, row by row: losses, validations, divergence and time of all of its runs.

Checkpoints hold the log up to their step, with checksums, so that a job resumes from exactly what it had measured.
`metrics.jsonl` beside them holds the same rows for people and programs that follow a job during training, as the live
page does. No job resumes from it.
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
    """Measurements of all runs between two steps."""

    step: int
    """The last step of the row."""
    loss: np.ndarray | None
    """Mean loss of each run over the steps; None in the row of the start."""
    val_dsc: np.ndarray | None
    """Validation DSC of each run, or the restored share of networks that learn without labels (see
    `jaxseg.study.restore`); None if there was no validation."""
    steps_alive: np.ndarray
    """Number of steps after which each run was alive."""
    step_seconds: float | None
    """Seconds per step of all runs together; None if they would include compilation."""

    def to_json(self) -> str:
        """Return the row as a line of metrics.jsonl."""
        values = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in self._asdict().items()
        }
        return json.dumps(values) + "\n"


@dataclasses.dataclass(frozen=True)
class TrainingLog:
    """All rows of a job, as arrays."""

    step: Int[np.ndarray, " rows"]
    loss: Float[np.ndarray, "runs rows"]
    """Mean loss; NaN in the row of the start, and where a run has diverged."""
    validated: Bool[np.ndarray, " rows"]
    val_dsc: Float[np.ndarray, "runs rows"]
    """Validation DSC; NaN in rows that are not `validated`."""
    steps_alive: Int[np.ndarray, "runs rows"]
    step_seconds: Float[np.ndarray, " rows"]
    """Seconds per step; NaN where they would include compilation."""

    @property
    def rows(self) -> list[Row]:
        """Return the log row by row."""
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
        """Return the step at which each run diverged (its first non-finite loss or gradient), or None."""
        lengths = np.diff(self.step, prepend=0)
        steps: list[int | None] = []
        for alive in self.steps_alive:
            short = np.flatnonzero(alive < lengths)
            steps.append(int((self.step - lengths + alive)[short[0]]) if short.size else None)
        return steps

    @property
    def median_step_seconds(self) -> float:
        """Return the median over compiled calls of seconds per step of all runs, without compilation and validation."""
        known = self.step_seconds[~np.isnan(self.step_seconds)]
        return float(np.median(known)) if known.size else float("nan")


def make_log(rows: Sequence[Row], num_runs: int) -> TrainingLog:
    """Convert the rows of a job to arrays; there may be no rows yet."""

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
    """Convert a log to the arrays of a checkpoint; empty if it has no rows, since Orbax saves no empty arrays."""
    return dataclasses.asdict(log) if len(log.step) else {}


def read_log(directory: Path, num_runs: int) -> TrainingLog:
    """Read the log of a job's last checkpoint; it has no rows if there is no checkpoint yet.

    Args:
        directory: Directory of the job.
        num_runs: Number of runs of the job.

    Raises:
        DamagedError: The checkpoint differs from what was written.
    """
    folder = directory / "checkpoints"
    steps = checkpoint.saved_steps(folder)
    arrays = checkpoint.read_log(folder, steps[-1]) if steps else {}
    return TrainingLog(**arrays) if arrays else make_log([], num_runs)


def write_lines(directory: Path, rows: Sequence[Row]) -> None:
    """Write metrics.jsonl atomically."""
    path = directory / METRICS_FILE
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with open(partial, "x", encoding="utf-8") as handle:
        handle.writelines(row.to_json() for row in rows)
    os.replace(partial, path)


def read_lines(directory: Path, num_runs: int) -> list[Row]:
    """Read the whole lines of metrics.jsonl, which another process may be writing, up to the first that is no row.

    Args:
        directory: Directory of the job.
        num_runs: Number of runs of the job; lines about another number of runs are no rows of it.

    Returns:
        The rows; none if the job has not begun.
    """
    try:
        text = (directory / METRICS_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    rows = []
    for line in text.split("\n")[:-1]:  # what follows the last newline is still being written
        row = _read_row(line, num_runs)
        if row is None:
            break
        rows.append(row)
    return rows


def _read_row(line: str, num_runs: int) -> Row | None:
    """The row that a line holds; None if it is no row of so many runs."""
    try:
        step, loss, val_dsc, alive, seconds = (json.loads(line)[name] for name in Row._fields)
        columns = [None if values is None else np.asarray(values, np.float64) for values in (loss, val_dsc, alive)]
        if columns[2] is None or any(values is not None and values.shape != (num_runs,) for values in columns):
            return None
        return Row(int(step), columns[0], columns[1], columns[2].astype(np.int64), seconds)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def mend_lines(directory: Path, num_runs: int) -> None:
    """Rewrite metrics.jsonl of a finished job if it differs from the log of the last checkpoint."""
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
