"""The host's side of training one job: chunks of steps, validation, logging, saving, resuming, stopping on signals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from jaxseg import checkpoint, seeds, trees
from jaxseg.types import Cohort, Frozen, Params, Progress, RunInputs, TrainSettings, TrainState

METRICS_FILE = "metrics.jsonl"


class Interrupted(BaseException):
    """A signal asked to stop; what was done is saved. Not an Exception, so that no handler takes it for an error."""

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {where}")
        self.signum = signum


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[], int | None]]:
    """Holds SIGINT and SIGTERM back until asked: yields a function that says which came, if any.

    A second signal of the same kind acts at once, for a user who will not wait. Outside the main thread, where Python
    delivers no signals, nothing is held.
    """
    came: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if came:
            raise Interrupted(signum, "without saving, as asked twice")
        came.append(signum)

    try:
        before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield lambda: came[0] if came else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@dataclasses.dataclass(frozen=True)
class Fit:
    """What `fit` needs to train one job; arrays lie on the devices, runs first."""

    directory: Path
    plan: seeds.SeedPlan
    names: tuple[str, ...]
    """One per run, for logs."""
    like: TrainState
    """Shapes of one run's state."""
    init: Callable[[], TrainState]
    """Makes the start of all runs; called only when no checkpoint is there."""
    chunk: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    """`train.make_train_chunk`, mapped over runs."""
    feed: Callable[[int], Iterator[tuple[int, RunInputs]]]
    """From a step on: the step at which each compiled call ends, and the runs' inputs for it. Calls end at multiples of
    `settings.log_every` and at the last step, and may end more often."""
    cohort: Cohort
    frozen: Frozen
    validate: Callable[[Params], np.ndarray]
    """Mean validation DSC of each run."""
    settings: TrainSettings
    keep: int
    meta: dict[str, Any]
    """Saved beside each checkpoint."""


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Rows of a job's metrics file, in order of steps; a row cut short by a crash is left out."""
    path = directory / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def diverged_at(rows: list[dict[str, Any]], num_runs: int) -> list[int | None]:
    """The step at which each run diverged (its first non-finite loss or gradient), or None."""
    steps: list[int | None] = [None] * num_runs
    last = 0
    for row in rows:
        for run, alive in enumerate(row["steps_alive"]):
            if steps[run] is None and alive < row["step"] - last:
                steps[run] = last + alive
        last = row["step"]
    return steps


def median_step_seconds(rows: list[dict[str, Any]]) -> float:
    """Median over compiled calls of the seconds of one step of all runs; compiling and validation are not in it."""
    times = [row["step_seconds"] for row in rows if row["step_seconds"] is not None]
    return float(np.median(times)) if times else float("nan")


def _replace_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a file of JSON lines whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(partial, path)


def is_done(directory: Path, steps: int) -> bool:
    """Whether a job's last checkpoint is there."""
    return steps in checkpoint.saved_steps(directory / "checkpoints")


def fit(job: Fit, progress: Progress) -> None:
    """Trains all runs of a job to their last step, from the last checkpoint if there is one.

    Steps between two host events run in one compiled call. Checkpoints hold step 0, the last few and the final step.
    On SIGINT or SIGTERM the compiled call in flight is finished and saved before `Interrupted` is raised.

    Raises:
        Interrupted: A signal came; the next call goes on where this one stopped.
    """
    settings, count = job.settings, len(job.names)
    job.directory.mkdir(parents=True, exist_ok=True)
    with checkpoint.open_manager(job.directory / "checkpoints", keep=job.keep) as manager, held_signals() as signalled:
        progress("compiling", 0, settings.steps)
        saved = manager.latest_step()
        if saved is None:
            saved = 0
            state = seeds.put(job.init(), job.plan)
            checkpoint.save(manager, saved, state, job.meta)
        else:
            # The saved axis may be padded for another number of devices.
            restored = checkpoint.restore(manager, saved, job.like)
            state = seeds.put(trees.take(restored, slice(0, count)), job.plan)
        rows = [row for row in read_metrics(job.directory) if row["step"] <= saved]
        if not rows:
            start_dsc = job.validate(state.params).tolist()
            rows = [{"step": 0, "loss": None, "val_dsc": start_dsc, "steps_alive": [0] * count, "step_seconds": None}]
        _replace_lines(job.directory / METRICS_FILE, rows)

        with (
            open(job.directory / METRICS_FILE, "a") as log,
            SummaryWriter(str(job.directory), purge_step=saved + 1) as board,
        ):
            feed = job.feed(saved)
            for step in range(saved, settings.steps, settings.log_every):
                stop = min(step + settings.log_every, settings.steps)
                began = time.perf_counter()
                state, loss, alive = _advance(job, feed, state, step, stop)
                seconds = (time.perf_counter() - began) / (stop - step)
                last = stop == settings.steps
                dsc = None
                if last or stop % settings.eval_every == 0:
                    progress("validating", stop, settings.steps)
                    dsc = job.validate(state.params)
                row = {
                    "step": stop,
                    "loss": loss.tolist(),
                    "val_dsc": None if dsc is None else dsc.tolist(),
                    "steps_alive": alive.tolist(),
                    # The first call of a process compiles, so its time says nothing about a step.
                    "step_seconds": None if step == saved else seconds,
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                _to_board(board, job.names, stop, loss, dsc)
                note = f"loss {np.nanmean(loss):.3f}" + ("" if dsc is None else f", DSC {np.nanmean(dsc):.3f}")
                progress("training", stop, settings.steps, f"{note}, {count / seconds:.1f} seed-steps/s")
                came = signalled()
                if last or came is not None or stop % settings.save_every == 0:
                    checkpoint.save(manager, stop, state, job.meta)
                if came is not None and not last:
                    manager.wait_until_finished()
                    raise Interrupted(
                        came, f"saved step {stop} of {job.directory}; the same command goes on from there"
                    )


def _advance(
    job: Fit, feed: Iterator[tuple[int, RunInputs]], state: TrainState, start: int, stop: int
) -> tuple[TrainState, np.ndarray, np.ndarray]:
    """Trains from one step to another; the mean loss of each run, and how many of the steps it was alive after."""
    count = len(job.names)
    loss_sum, alive = np.zeros(count), np.zeros(count, int)
    done = start
    while done < stop:
        end, runs = next(feed)
        state, metrics = job.chunk(state, runs, job.cohort, job.frozen, np.int32(done), np.int32(end))
        loss, steps_alive = seeds.fetch((metrics["loss"], metrics["steps_alive"]), count)
        loss_sum += loss * np.float64(end - done)
        alive += steps_alive
        done = end
    return state, (loss_sum / (stop - start)).astype(np.float32), alive


def _to_board(
    board: SummaryWriter, names: tuple[str, ...], step: int, loss: np.ndarray, dsc: np.ndarray | None
) -> None:
    for tag, values in (("loss", loss), ("val_dsc", dsc)):
        if values is not None:
            board.add_scalar(f"{tag}/mean", float(np.nanmean(values)), step)
            for name, value in zip(names, values, strict=True):
                board.add_scalar(f"{tag}/{name}", float(value), step)
