"""The ways in which a sweep's points run: here, as processes of this machine, or as jobs of a cluster.

Outside `debug` a point is one `python -m launch.study ...`, the command a user would give, so that a point that dies
takes nothing with it and can be repeated by hand. What it prints goes to its log.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.loop import Interrupted
from jaxseg.study import files, sweep
from jaxseg.types import UserError
from launch import slurm_queue, terminal, whole

JOB = "sweep_job.json"
"""File in a point's workdir with the last job submitted for it, written only by the submitting process.

The point's record names the job in which it last ran.
"""
ELSEWHERE = "left to another command, which works on it or has just done it"
_POLL_SECONDS = 0.2
_QUEUE_SECONDS = 15.0
"""The longest time between two questions to a cluster's queue; the first ones are asked sooner."""
_LINES = 5
"""How many lines of the log of a point that failed are shown."""
_UNIVERSAL = ("name", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "mem_gb", "timeout_min")
"""Parameters of submitit that are not Slurm's alone."""


@dataclasses.dataclass(frozen=True)
class Command:
    """The command that runs one point."""

    name: str
    workdir: Path
    argv: tuple[str, ...]


def state_of(point: sweep.Point) -> str:
    """Returns a point's state after asking for its job; one whose job is lost is noted as failed."""
    job = _awaited_job(point)
    if job and _in_queue(job):
        return "submitted"
    if job and job["queue"] == "slurm":
        _note_lost(point.workdir, job, waited=False)
    state = point.state
    return "interrupted" if state == "submitted" else state


def describe_failure(point: sweep.Point) -> str:
    """Says why a point failed, where its log is, and how the log ends."""
    log = point.workdir / sweep.LOG
    last = sweep.last_lines(log, _LINES)
    lines = [f"failed: {point.name}: {point.record.get('message')}", f"  log: {log}{', which ends' if last else ''}"]
    return "\n".join([*lines, *(f"    {line}" for line in last)])


def _awaited_job(point: sweep.Point) -> dict[str, Any] | None:
    """The job that is to go on with a point on which nothing works; None if there is none."""
    record = point.record
    state = record.get("state")
    if state not in ("submitted", "running", "interrupted") or sweep.is_worked_on(point.workdir):
        return None
    return sweep.read_note(point.workdir / JOB) if state == "submitted" else record.get("job")


def _in_queue(job: Mapping[str, Any]) -> bool:
    if job["queue"] == "local":
        return Path(f"/proc/{job['job']}").exists()
    return bool(slurm_queue.still_queued([job["job"]]))


# --------------------------------------------------------------------------------------------------- one point


@contextlib.contextmanager
def claimed(command: Command) -> Iterator[int | None]:
    """Claims a point; returns a descriptor that holds the claim, or None if another process works on the point."""
    command.workdir.mkdir(parents=True, exist_ok=True)
    claim = None if files.is_locked(command.workdir) else files.hold(command.workdir / sweep.CLAIM)
    try:
        yield claim
    finally:
        if claim is not None:
            os.close(claim)


def reopen(command: Command) -> None:
    """Lets a finished point go on."""
    with claimed(command) as claim:
        if claim is not None and sweep.read_record(command.workdir).get("state") == "done":
            sweep.write_state(command.workdir, "interrupted")


def start(
    command: Command, environment: Mapping[str, str] | None = None, *, job: Mapping[str, Any] | None = None
) -> subprocess.Popen[bytes] | None:
    """Starts a point's process; it gets no signals but those we send.

    Args:
        command: The point.
        environment: Variables to add to this process's own.
        job: The job in which this is; None outside a cluster.

    Returns:
        The process; None if another launcher runs the point or has run it meanwhile.
    """
    with claimed(command) as claim:
        before = sweep.read_record(command.workdir)
        if claim is None or before.get("state") == "done":
            return None
        attempts = before.get("attempts", 0) + 1
        sweep.write_state(command.workdir, "running", attempts=attempts, message=None, job=job, saved=False)
        with open(command.workdir / sweep.LOG, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"$ {shlex.join(command.argv)}\n")
            log.flush()
            return subprocess.Popen(
                command.argv,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | (environment or {}),
                start_new_session=True,
                pass_fds=[claim],  # so that the claim outlives a launcher that is killed
            )


def finish(command: Command, status: int, seconds: float) -> str:
    """Notes how a point's process ended."""
    if status != 0 and files.is_locked(command.workdir):
        return "running: a process of another command works on it"
    if status == 0:
        state, message = "done", None
    elif status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        state, message = "interrupted", None
    else:
        state, message = "failed", sweep.failure(command.workdir / sweep.LOG, status)
    before = sweep.read_record(command.workdir).get("seconds") or 0.0
    sweep.write_state(command.workdir, state, message=message, seconds=round(before + seconds, 1))
    return state if message is None else f"{state}: {message}"


def stop(process: subprocess.Popen[bytes]) -> int:
    """Asks a point's process to save and stop, and waits for it to end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    # By polling: in a signal handler a plain wait would wait for the wait that the signal interrupted.
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
    return process.returncode


# -------------------------------------------------------------------------------------------- on this machine


def run_here(commands: Sequence[Command], configs: Mapping[str, Any]) -> None:
    """Runs points one after another in this process, so that a debugger sees them; the first error ends it."""
    for command in commands:
        began = time.monotonic()
        with claimed(command) as claim:
            if claim is None:
                terminal.say(f"{command.name}: {ELSEWHERE}")
                continue
            sweep.write_state(command.workdir, "running", job=None)
            try:
                whole.run_study(configs[command.name], command.workdir)
            except Interrupted:
                sweep.write_state(command.workdir, "interrupted")
                raise
            except Exception as error:
                sweep.write_state(command.workdir, "failed", message=str(error))
                raise
            finish(command, 0, time.monotonic() - began)


def run_processes(commands: Sequence[Command], *, parallel: int) -> None:
    """Runs points as processes, some at once, each with its share of the devices.

    Raises:
        UserError: If more points run at once than there are devices.
        Interrupted: If a signal arrives; the points that ran have saved.
    """
    shares = share_devices(min(parallel, max(len(commands), 1)))
    free = list(range(len(shares)))
    waiting = collections.deque(enumerate(commands, start=1))
    running: dict[int, tuple[Command, int, subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                number, command = waiting.popleft()
                environment, cores = shares[free[0]]
                process = start(command, environment)
                if process is None:
                    terminal.say(f"[{number}/{len(commands)}] {command.name}: {ELSEWHERE}")
                    continue
                slot = free.pop(0)
                if cores:
                    os.sched_setaffinity(process.pid, cores)
                running[number] = command, slot, process, time.monotonic()
                terminal.say(f"[{number}/{len(commands)}] {command.name}: started, log {command.workdir / sweep.LOG}")
            for number, (command, slot, process, began) in list(running.items()):
                if process.poll() is not None:
                    seconds = time.monotonic() - began
                    outcome = finish(command, process.returncode, seconds)
                    terminal.say(f"[{number}/{len(commands)}] {command.name}: {outcome} ({seconds:.0f} s)")
                    del running[number]
                    free.append(slot)
            time.sleep(_POLL_SECONDS)
    except BaseException:
        for command, _, process, began in running.values():
            finish(command, stop(process), time.monotonic() - began)
        raise


def share_devices(parallel: int) -> list[tuple[dict[str, str], set[int]]]:
    """Returns the environment and the processor cores of each of several processes that run at once.

    Raises:
        UserError: If there are more processes than devices.
    """
    if parallel == 1:
        return [({}, set())]
    gpus = _gpus()
    cores = sorted(os.sched_getaffinity(0))
    what, there = ("GPUs", len(gpus)) if gpus else ("CPU cores", len(cores))
    if parallel > there:
        raise UserError(f"--parallel={parallel}, but this machine has {there} {what}; use at most {there}")
    return [
        (
            {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::parallel])} if gpus else {},
            set(cores[slot::parallel]),
        )
        for slot in range(parallel)
    ]


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs that this process may use, found without taking one."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


# ------------------------------------------------------------------------------------------------ on a cluster


def import_submitit() -> Any:
    """Imports submitit, which only this module needs.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--cluster=slurm needs submitit: pip install -e '.[slurm]'") from None
    return submitit


class PointJob:
    """A point in submitit's form: an object that is called in the job, and asked to save before the job is lost."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> str:
        """Runs the point in the job."""
        began = time.monotonic()
        environment = import_submitit().JobEnvironment()
        self._process = start(self.command, job=_describe_job(environment.cluster, environment))
        if self._process is None:
            return ELSEWHERE
        while self._process.poll() is None:
            time.sleep(_POLL_SECONDS)
        return finish(self.command, self._process.returncode, time.monotonic() - began)

    def checkpoint(self) -> Any:
        """Lets the point save when the job is preempted or out of time, and queues it again."""
        if self._process is not None:
            stop(self._process)
        # Where submitit or Slurm then refuses to queue it again, nothing was lost.
        sweep.write_state(self.command.workdir, "submitted", saved=True)
        return import_submitit().helpers.DelayedSubmission(PointJob(self.command))


def _jobs_folder(folder: Path) -> Path:
    return folder / "jobs"


def _describe_job(queue: str, job: Any) -> dict[str, str]:
    """What notes say of a job; `job` is submitit's, seen from outside or from within."""
    return {"queue": queue, "job": job.job_id, "log": str(job.paths.stderr)}


def submit(
    commands: Sequence[Command], folder: Path, *, parallel: int, given: Sequence[str], local: bool, wait: bool
) -> None:
    """Submits points as one job array, or as submitit's own processes on this machine.

    Args:
        commands: The points.
        folder: The sweep's folder, below which submitit writes.
        parallel: The most jobs of the array at once; 1 leaves it to the cluster.
        given: Parameters as `name=value`.
        local: Run on this machine, one after another unless `parallel` says otherwise.
        wait: Return only when all jobs have ended.

    Raises:
        UserError: If submitit is not installed, or refuses a parameter.
    """
    submitit = import_submitit()
    if not commands:
        return
    if not local and "%" in str(folder.absolute()):
        raise UserError(
            f"--workdir={folder}: with --cluster=slurm its path may not hold %, which Slurm replaces in the names of "
            f"logs; give another folder"
        )
    parameters = _parameters(given)
    if not local and parallel > 1:
        parameters["slurm_array_parallelism"] = parallel
    executor = submitit.AutoExecutor(folder=_jobs_folder(folder), cluster="local" if local else "slurm")
    executor.update_parameters(**{"name": "jaxseg", "timeout_min": 24 * 60, **parameters})
    at_once = parallel if local else len(commands)
    for first in range(0, len(commands), at_once):
        part = commands[first : first + at_once]
        for command in part:
            command.workdir.mkdir(parents=True, exist_ok=True)
            (command.workdir / JOB).unlink(missing_ok=True)  # an earlier job says nothing about this one
            sweep.write_state(command.workdir, "submitted", saved=False)
        jobs = executor.submit_array([PointJob(command) for command in part])
        for command, job in zip(part, jobs, strict=True):
            sweep.write_note(command.workdir / JOB, _describe_job(executor.cluster, job))
            terminal.say(f"{command.name}: submitted, job {job.job_id}, log {command.workdir / sweep.LOG}")
        if wait:
            _wait_for(jobs, local=local)
            for command, job in zip(part, jobs, strict=True):
                _note_lost(command.workdir, _describe_job(executor.cluster, job), waited=True)


def _wait_for(jobs: Sequence[Any], *, local: bool) -> None:
    """Waits until all jobs have ended, whether or not they said so."""
    pause = _POLL_SECONDS
    while not all(job.done() for job in jobs) if local else slurm_queue.still_queued([job.job_id for job in jobs]):
        time.sleep(pause)
        if not local:
            pause = min(2 * pause, _QUEUE_SECONDS)


def _note_lost(workdir: Path, job: Mapping[str, Any], *, waited: bool) -> None:
    """Notes as failed a point whose job ended and could no longer say how, as one that was cancelled.

    A command that did not wait for the job leaves out those which the next one continues.
    """
    record = sweep.read_record(workdir)
    if record.get("state") not in ("submitted", "running") or sweep.is_worked_on(workdir):
        return
    how = slurm_queue.how_it_ended(job["job"]) if job["queue"] == "slurm" else ""
    if not waited and (record.get("saved") or how in slurm_queue.CONTINUED):
        return
    log = Path(job.get("log", workdir / sweep.LOG))  # earlier notes named none
    message = f"job {job['job']} ended without a word{f' ({how})' if how else ''}; what it said is in {log}"
    if last := sweep.last_lines(log, 3):
        message += f": {'; '.join(last)}"
    sweep.write_state(workdir, "failed", message=message)


def _parameters(given: Sequence[str]) -> dict[str, Any]:
    """Parameters of submitit's AutoExecutor; those of Slurm alone get their prefix."""
    parameters: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UserError(f"--slurm={text!r} is not NAME=VALUE; for example --slurm=partition=gpu,timeout_min=600")
        full = name if name in _UNIVERSAL or name.startswith("slurm_") else f"slurm_{name}"
        parameters[full] = int(value) if value.isdigit() else value
    return parameters
