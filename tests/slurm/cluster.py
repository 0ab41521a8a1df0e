"""A Slurm of two nodes on this machine: munged, slurmctld and two slurmd, all on loopback and in one folder.

Nothing outside the folder is written, and no account or service of the system is used. Every process of this Slurm, the
tasks of its jobs among them, has the path of its configuration in its environment, by which it is found and ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODE_TIMEOUT = 5
"""Seconds without a sign of life after which a node counts as lost."""
_PROGRAMS = ("munged", "slurmctld", "slurmd", "scontrol", "srun", "sbatch", "squeue", "scancel")
_SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Where programs are looked for; the paths of users often lack the system's."""
_STARTS, _ENDS = 20.0, 10.0
"""Seconds that daemons are given."""

# Neither tracking by parents (linuxproc) nor task/none needs cgroups. Only with cons_tres do tasks share a node. A job
# that is queued again starts once its old credential is over, by default after two minutes (cred_expire).
_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdTimeout={timeout}
SlurmdParameters=config_overrides
ReturnToService=2
MessageTimeout=2
TCPTimeout=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
MpiDefault=none
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={nodes[0]} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=1024
NodeName={nodes[1]} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=1024
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """The reason why no Slurm can be started here; None if it can."""
    missing = [name for name in _PROGRAMS if _find(name) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: apt-get install slurm-wlm munge)"
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return f"the name of this machine, {socket.gethostname()}, has no address, and Slurm needs one"
    return None


def _find(name: str) -> str | None:
    return shutil.which(name, path=_SEARCH)


@dataclasses.dataclass
class Cluster:
    """A running Slurm."""

    folder: Path
    nodes: tuple[str, str]
    """The first has the name of this machine, so that the processes of a study can meet there."""
    daemons: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What its commands need, and nothing of a Slurm that these tests may run in."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return own | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _SEARCH}

    def call(self, *command: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
        """What a command of this Slurm prints."""
        done = subprocess.run(
            command,
            env=environment or self.environment,
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.said()}"
        return done.stdout

    def start_node(self, node: str) -> None:
        """Starts a node's slurmd, for instance after it was lost."""
        self._start(node, "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """Takes a node away as a power cut does: nothing on it runs any longer, and nobody was told."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for pid, environment in self.processes():
            if f"SLURMD_NODENAME={node}" in environment or f"{_NODE}={node}" in environment:
                _kill(pid)

    def kill_tasks(self, variable: str) -> None:
        """Kills the tasks with a variable in their environment, as the kernel does where memory runs out."""
        for pid, environment in sorted(self.processes()):  # the first processes first, which would note how others end
            if variable in environment and any(entry.startswith("SLURM_STEP_NODELIST=") for entry in environment):
                _kill(pid)

    def state(self, job: str) -> dict[str, str]:
        """What Slurm says about a job, for as long as it remembers it."""
        told = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def processes(self) -> list[tuple[int, list[str]]]:
        """PID and environment of all that this Slurm started."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (place / "environ").read_bytes().decode(errors="replace").split("\0")
                if f"SLURM_CONF={self.folder}/slurm.conf" in environment and int(place.name) != os.getpid():
                    found.append((int(place.name), environment))
        return found

    def said(self) -> str:
        """The ends of the daemons' logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [str(_find(program)), *arguments],
                env=self.environment | ({_NODE: name} if program == "slurmd" else {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which ends them in order
            )

    def start(self) -> None:
        """Starts all daemons and waits for the nodes."""
        at = {option: f"--{option}={self.folder}/munge.{option.split('-')[0]}" for option in ("socket", "key-file")}
        rest = [f"--{option}={self.folder}/munged.{option[:4]}" for option in ("pid-file", "log-file", "seed-file")]
        self._start("munged", "munged", "--foreground", *at.values(), *rest, "--num-threads=2")
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged", _STARTS, self.said)
        self._start("slurmctld", "slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        wait_for(lambda: self._idle() == len(self.nodes), "the nodes", _STARTS, self.said)

    def _idle(self) -> int:
        told = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return told.stdout.split().count("idle")

    def stop(self) -> None:
        """Ends all jobs and daemons, whatever state they are in."""
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(
                ["scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}"],
                env=self.environment,
                check=False,
                timeout=5,
                capture_output=True,
            )
        for daemon in self.daemons.values():
            daemon.terminate()
        deadline = time.monotonic() + _ENDS
        for daemon in self.daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(max(0.0, deadline - time.monotonic()))
        while left := self.processes():
            for pid, _ in left:
                _kill(pid)
            time.sleep(0.05)
        for daemon in self.daemons.values():
            daemon.wait()


_NODE = "JAXSEG_TESTS_NODE"
"""Variable in the environment of a node's slurmd, and of the slurmstepd that it starts."""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for(
    is_so: Callable[[], object], what: str, seconds: float, said: Callable[[], str] = str, every: float = 0.1
) -> None:
    """Waits until something is so.

    Raises:
        TimeoutError: If it is not so after some seconds; with what is said then.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}\n{said()}")
        time.sleep(every)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Starts a Slurm; at the end nothing is left of it."""
    host = socket.gethostname().split(".")[0]
    # In a short path, as a socket's may have 107 characters; munged wants it open to all users.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        nodes = (host, f"{host}-second")
        for part in ("state", *(f"spool-{node}" for node in nodes)):
            (folder / part).mkdir()
        (folder / "munge.key").touch(0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "slurm.conf").write_text(
            _CONF.format(
                host=host,
                user=getpass.getuser(),
                folder=folder,
                ports=_free_ports(3),
                timeout=NODE_TIMEOUT,
                nodes=nodes,
            )
        )
        cluster = Cluster(folder, nodes)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
