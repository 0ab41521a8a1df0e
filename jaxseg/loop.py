"""Host-side training of one job: chunks of steps, validation, logging, saving, resuming, and stopping on signals."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tensorboardX import SummaryWriter

from jaxseg import averaging, checkpoint, hosts, logs, seeds, trees
from jaxseg.settings import TrainSettings
from jaxseg.types import Cohort, Frozen, Params, Progress, RunInputs, RunLine, TrainState


class Interrupted(BaseException):
    """A signal asked to stop; progress is saved. It is not an Exception, so that no handler takes it for an error."""

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {where}")
        self.signum = signum


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[], int | None]]:
    """Hold SIGINT and SIGTERM back; yields a function that returns the signal that has arrived, or None.

    A second signal of the same kind acts at once, for a user who does not want to wait. One that came too late for the
    block to act on is delivered when the block ends: none is lost. Nothing is held outside the main thread, where
    Python delivers no signals, nor with several hosts, where SIGTERM is a preemption notice that JAX receives and
    passes on to all of them.
    """
    came: list[int] = []
    if hosts.count() > 1:
        yield lambda: None
        return

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
    if came:
        signal.raise_signal(came[0])


@dataclasses.dataclass(frozen=True)
class Fit:
    """All that `fit` needs to train one job; arrays are on the devices, this host's runs first."""

    directory: Path
    plan: seeds.SeedPlan
    names: tuple[str, ...]
    """Names of the job's runs for logs: `ARM/VARIANT/seed_ID`."""
    rows: tuple[int, ...]
    """Positions of this host's runs among the job's: all of them if there is one host (see `hosts.share`)."""
    like: TrainState
    """Shapes of the state of one run."""
    init: Callable[[], TrainState]
    """Creates the initial state of all runs; called only if there is no checkpoint."""
    shared: Callable[[], Frozen]
    """Creates the frozen parameters that all runs share, or `{}`; called together with `init`."""
    chunk: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    """The function that `train.make_train_chunk` returns, mapped over runs."""
    observe: Callable[[TrainState, jax.Array], TrainState] | None
    """The function that `train.make_observe` returns, mapped over runs; None if validation changes nothing."""
    feed: Callable[[int], Iterator[tuple[int, RunInputs]]]
    """Takes a step and yields, for each compiled call from there on, the step at which it ends and the inputs of the
    runs. Calls end at multiples of `settings.log_every` and at the last step, and may end more often."""
    cohort: Cohort
    validate: Callable[[Params, Frozen], np.ndarray]
    """Returns the validation score of each of this host's runs: DSC or, of networks that learn without labels, the
    share that they restore; larger is better."""
    settings: TrainSettings
    scored_at: tuple[int, ...]
    """Steps that are validated and kept whatever the settings say, since networks with these budgets are compared."""
    validate_from: int
    """Step before which only the start is validated."""
    keep: int
    meta: dict[str, Any]
    """JSON values that are saved with each checkpoint."""
    measure: str = "DSC"
    """What the validation score is called in notes and curves: `DSC` or `restored`."""


def is_done(directory: Path, steps: int) -> bool:
    """Return whether the last checkpoint of a job exists."""
    return steps in checkpoint.saved_steps(directory / "checkpoints")


def fit(job: Fit, progress: Progress) -> None:
    """Train all runs of a job to their last step, from the last sound checkpoint if there is one.

    All steps between two host events run in one compiled call. The measurements of a call are fetched and written after
    the next call is dispatched, so that the devices wait for the host only when it validates or saves. Checkpoints are
    kept for step 0, the snapshots, the last few steps and the final step. On SIGINT or SIGTERM, the compiled call in
    progress is finished and saved before `Interrupted` is raised.

    Raises:
        Interrupted: A signal arrived; the next call of `fit` resumes from there.
    """
    settings = job.settings
    kept = {*settings.snapshots, *job.scored_at}
    folder = job.directory / "checkpoints"
    job.directory.mkdir(parents=True, exist_ok=True)
    found = checkpoint.latest_sound(folder) if hosts.is_first() else None
    saved = hosts.from_first(-1 if found is None else found)
    with (
        held_signals() as signalled,  # until all is on the disk
        checkpoint.open_manager(folder, keep=job.keep, snapshots=sorted(kept)) as manager,
    ):
        progress("compiling", 0, settings.steps)
        at = _start(job, manager) if saved < 0 else _resume(job, manager, folder, saved)
        save = functools.partial(
            checkpoint.save,
            manager,
            meta=job.meta | {checkpoint.START: at.start_sums},
            shared=at.shared,
            join=functools.partial(seeds.across_hosts, plan=job.plan),
        )
        state, frozen, rows = at.state, seeds.replicate(at.shared, job.plan), at.rows
        if not rows:  # it stopped between saving the start and its first validation, or begins now
            dsc = _of_all(job, job.validate(averaging.scored_params(state), frozen))
            rows = [logs.Row(0, None, dsc, np.zeros(len(job.names), int), None)]
        with _Log(job, rows, progress) as log:
            feed = job.feed(at.step)
            for step in range(at.step, settings.steps, settings.log_every):
                stop = min(step + settings.log_every, settings.steps)
                log.dispatched(step, stop)
                state, parts = _advance(job, feed, state, frozen, step, stop)
                log.measured(parts)
                last = stop == settings.steps
                came = signalled() if hosts.count() == 1 else _preempted(manager, stop, settings)
                due = stop % settings.eval_every == 0 or stop in job.scored_at
                if last or (due and stop >= job.validate_from):
                    dsc = log.validated(functools.partial(job.validate, averaging.scored_params(state), frozen))
                    if job.observe is not None:
                        state = job.observe(state, seeds.put(dsc.astype(np.float32), job.plan))
                if last or came is not None or stop % settings.save_every == 0 or stop in kept:
                    log.flush()
                    save(stop, state, log=logs.to_arrays(log.whole()))
                if came is not None:
                    manager.wait_until_finished()
                    raise Interrupted(
                        came, f"saved step {stop} of {job.directory}; the same command goes on from there"
                    )


class _Begin(NamedTuple):
    """The state in which a call of `fit` takes up a job."""

    step: int
    state: TrainState
    shared: Frozen
    start_sums: dict[str, Any]
    """Checksums of step 0, which every later checkpoint repeats."""
    rows: list[logs.Row]
    """Rows of the log up to this step."""


def _start(job: Fit, manager: Any) -> _Begin:
    """The start of all runs, saved as step 0."""
    shared, state = job.shared(), seeds.put(job.init(), job.plan)
    return _Begin(0, state, shared, _save_start(manager, job, state, shared), [])


def _resume(job: Fit, manager: Any, folder: Path, saved: int) -> _Begin:
    """The runs as checkpoint `saved` holds them."""
    state = seeds.put(checkpoint.restore(manager, saved, job.like, job.rows), job.plan)
    shared, sums = checkpoint.read_shared(folder, saved), _start_sums(folder, saved)
    return _Begin(saved, state, shared, sums, logs.read_log(job.directory, len(job.names)).rows)


def _save_start(manager: Any, job: Fit, state: TrainState, shared: Frozen) -> dict[str, Any]:
    """Saves step 0 and gives its checksums."""
    join = functools.partial(seeds.across_hosts, plan=job.plan)
    return checkpoint.save(manager, 0, state, job.meta, shared, join=join)


def _start_sums(folder: Path, saved: int) -> dict[str, Any]:
    """Checksums of step 0, from the checkpoint that training goes on from."""
    meta = checkpoint.read_meta(folder, saved)
    return meta[checkpoint.CHECKSUMS if saved == 0 else checkpoint.START]


def mend_start(job: Fit) -> str | None:
    """Recreate step 0 of a finished job if it is damaged or missing, and install it if its checksums agree.

    The start of a run is a function of its seed and of the weights it loads. A machine whose arithmetic differs in the
    last bits cannot recreate a lost start.

    Returns:
        The reason why it could not be recreated; None if step 0 is in place.
    """
    folder, aside = job.directory / "checkpoints", job.directory / "start"
    expected = _start_sums(folder, checkpoint.saved_steps(folder)[-1])
    with checkpoint.open_manager(aside, keep=1) as manager:
        made = _save_start(manager, job, _padded_start(job, len(expected["state/step"])), job.shared())
    same = hosts.from_first(made == expected)
    if hosts.is_first():
        if same:
            checkpoint.set_aside(folder, 0)
            os.replace(aside / "0", folder / "0")
        shutil.rmtree(aside)
    return None if same else "this machine or version computes the start to other numbers than those that were saved"


def _padded_start(job: Fit, saved: int) -> TrainState:
    """The start of all runs with as many rows as were saved: another number of devices pads otherwise."""
    if hosts.count() > 1:
        return seeds.put(job.init(), job.plan)
    rows = np.minimum(np.arange(saved), len(job.rows) - 1)
    return jax.device_put(trees.take(job.init(), rows))


def _preempted(manager: Any, stop: int, settings: TrainSettings) -> int | None:
    """SIGTERM once all hosts have come to the point at which they agreed to stop, after one of them was told to.

    The hosts agree on a call's number, one above the highest that any has reached.
    """
    return signal.SIGTERM if manager.reached_preemption(-(-stop // settings.log_every)) else None


def _of_all(job: Fit, values: np.ndarray) -> np.ndarray:
    """One value per run of the job, from this host's and the others'; stand-ins left out."""
    return hosts.gather(values)[: len(job.names)]


Parts = list[tuple[int, dict[str, jax.Array]]]
"""Steps and metrics of the compiled calls between two rows."""


def _advance(
    job: Fit, feed: Iterator[tuple[int, RunInputs]], state: TrainState, frozen: Frozen, start: int, stop: int
) -> tuple[TrainState, Parts]:
    """Dispatches the calls from one step to another; what they measure is not waited for."""
    done, parts = start, []
    while done < stop:
        end, runs = next(feed)
        state, metrics = job.chunk(state, runs, job.cohort, frozen, np.int32(done), np.int32(end))
        parts.append((end - done, metrics))
        done = end
    return state, parts


def _totals(parts: Parts, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of each run over the steps of some calls, and how many of the steps it was alive after."""
    loss_sum, alive = np.zeros(count), np.zeros(count, int)
    for steps, metrics in parts:
        loss, steps_alive = seeds.fetch((metrics["loss"], metrics["steps_alive"]), count)
        loss_sum += loss * np.float64(steps)
        alive += steps_alive
    return (loss_sum / sum(steps for steps, _ in parts)).astype(np.float32), alive


def _done_at(parts: Parts) -> float:
    """Blocks until calls are done, and tells when that was."""
    jax.block_until_ready(parts)
    return time.perf_counter()


@dataclasses.dataclass
class _Call:
    """A compiled call whose metrics may still be in the making."""

    start: int
    stop: int
    dispatched: float
    parts: Parts
    ready: Future[float]
    """When it was done."""
    seconds: float | None = None
    dsc: np.ndarray | None = None


class _Log:
    """Rows of the metrics file, curves for TensorBoard and the terminal's lines, one call behind the devices.

    Every host tells the others what it measured; the first one writes.
    """

    def __init__(self, job: Fit, rows: list[logs.Row], progress: Progress) -> None:
        self._job, self._rows, self._progress = job, rows, progress
        self._saved = rows[-1].step
        self._waiting: _Call | None = None
        self._begun = (0, 0, 0.0)
        self._ready = 0.0
        self._last_dsc: np.ndarray | None = None

    def __enter__(self) -> _Log:
        self._open = contextlib.ExitStack()
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="watch")
        self._open.callback(self._watch.shutdown, wait=False, cancel_futures=True)
        if hosts.is_first():
            logs.write_lines(self._job.directory, self._rows)
            self._file = self._open.enter_context(open(self._job.directory / logs.METRICS_FILE, "a", encoding="utf-8"))
            board = SummaryWriter(str(self._job.directory), purge_step=self._saved + 1)
            self._board = self._open.enter_context(contextlib.closing(board))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def whole(self) -> logs.TrainingLog:
        """All rows so far, those of earlier processes first."""
        return logs.make_log(self._rows, len(self._job.names))

    def dispatched(self, start: int, stop: int) -> None:
        """A call is about to be made."""
        self._begun = (start, stop, time.perf_counter())

    def measured(self, parts: Parts) -> None:
        """The call was made; what the one before measured is written now, while this one computes."""
        # A thread of its own sees when it is done: on a GPU, making the next call may take as long as that call.
        ready = self._watch.submit(_done_at, parts)
        self.flush()
        self._waiting = _Call(*self._begun, parts, ready)

    def validated(self, validate: Callable[[], np.ndarray]) -> np.ndarray:
        """Validates after the last call, and writes its row with the DSC; gives the DSC of this host's runs."""
        call = self._waiting
        assert call is not None  # a call was measured before
        self._wait(call)
        self._progress("validating", call.stop, self._job.settings.steps)
        dsc = validate()
        call.dsc = self._last_dsc = _of_all(self._job, dsc)
        self.flush()
        return dsc

    def _wait(self, call: _Call) -> None:
        """Blocks until a call is done, and notes the seconds that it had the devices for itself."""
        if call.seconds is None:
            began, self._ready = max(call.dispatched, self._ready), call.ready.result()
            call.seconds = self._ready - began

    def flush(self) -> None:
        """Writes the row of the last call, if it is not yet written."""
        call, self._waiting = self._waiting, None
        if call is None:
            return
        self._wait(call)
        assert call.seconds is not None  # it was waited for
        count, steps = len(self._job.names), call.stop - call.start
        seconds = call.seconds / steps
        loss, alive = (_of_all(self._job, values) for values in _totals(call.parts, len(self._job.rows)))
        # The first call of a process compiles, so its time says nothing about a step.
        row = logs.Row(call.stop, loss, call.dsc, alive, None if call.start == self._saved else seconds)
        self._rows.append(row)
        if not hosts.is_first():
            return
        self._file.write(row.to_json())
        self._file.flush()
        _to_board(self._board, self._job.names, call.stop, {"loss": loss, f"val_{self._job.measure.lower()}": call.dsc})
        known = [None] * count if self._last_dsc is None else self._last_dsc.tolist()
        lines = [RunLine(*line) for line in zip(self._job.names, loss.tolist(), known, alive == steps, strict=True)]
        note = f"loss {_mean(loss):.3f}" + ("" if call.dsc is None else f", {self._job.measure} {_mean(call.dsc):.3f}")
        note += f", {count / seconds:.1f} seed-steps/s"
        self._progress("training", call.stop, self._job.settings.steps, note, runs=lines)


def _mean(values: np.ndarray) -> float:
    """Return the mean over the runs that have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _to_board(
    board: SummaryWriter, names: tuple[str, ...], step: int, measured: Mapping[str, np.ndarray | None]
) -> None:
    """Curves by arm: `ARM/VARIANT/loss/seed_ID` and the mean over its runs."""
    arms: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        arms.setdefault(name.rpartition("/")[0], []).append(index)
    for tag, values in measured.items():
        if values is None:
            continue
        for arm, members in arms.items():
            board.add_scalar(f"{arm}/{tag}/mean", _mean(values[members]), step)
            for index in members:
                board.add_scalar(f"{arm}/{tag}/{names[index].rpartition('/')[2]}", float(values[index]), step)
