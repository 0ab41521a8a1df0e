"""Two virtual hosts: network namespaces that reach each other through a third, which can stop passing packets on.

To the hosts a cut is what a dead switch is: their own interfaces stay up, and nothing is answered, not even refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_FORWARDING = "/proc/sys/net/ipv4/ip_forward"
_FILES = Path("/etc/netns")
"""Of each namespace here, files that `ip netns exec` puts in place of those in /etc."""


def why_not() -> str | None:
    """The reason why there can be no virtual hosts here; None if they can be made."""
    if shutil.which("ip") is None:
        return "the program ip is not installed (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    name = f"jaxseg-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"`ip netns add` is not allowed here: {made.stderr.strip()}"
    linked = _ip("-n", name, "link", "add", "name", "a", "type", "veth", "peer", "name", "b", check=False)
    _ip("netns", "delete", name)
    return None if linked.returncode == 0 else f"`ip link add type veth` fails here: {linked.stderr.strip()}"


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)


class Network:
    """Two hosts and what is between them."""

    def __init__(self) -> None:
        name = f"jaxseg-{os.getpid()}"
        self._between = f"{name}-between"
        self._hosts = (f"{name}-0", f"{name}-1")
        self.addresses = ("10.231.0.1", "10.231.1.1")
        """Of the hosts."""
        self._started: list[subprocess.Popen[str]] = []

    def make(self) -> None:
        """Makes the namespaces and the links."""
        for name in (*self._hosts, self._between):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for index, (host, address) in enumerate(zip(self._hosts, self.addresses, strict=True)):
            gateway, end = f"10.231.{index}.2", f"to{index}"
            _ip(
                "link",
                "add",
                "name",
                "eth0",
                "netns",
                host,
                "type",
                "veth",
                "peer",
                "name",
                end,
                "netns",
                self._between,
            )
            for where, interface, own in ((host, "eth0", address), (self._between, end, gateway)):
                _ip("-n", where, "address", "add", f"{own}/24", "dev", interface)
                _ip("-n", where, "link", "set", interface, "up")
            _ip("-n", host, "route", "add", "default", "via", gateway)
            # As on other machines, the host's own name leads to the address at which the others reach it.
            (_FILES / host).mkdir(parents=True)
            (_FILES / host / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        self.mend()

    def mend(self) -> None:
        """Lets packets pass."""
        self._pass_on(1)

    def cut(self) -> None:
        """Drops every packet from one host to the other."""
        self._pass_on(0)

    def _pass_on(self, value: int) -> None:
        command = ["ip", "netns", "exec", self._between, "sh", "-c", f"echo {value} > {_FORWARDING}"]
        subprocess.run(command, check=True)

    def start(self, host: int, command: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Starts a process on a host; its words come through pipes unless the options say otherwise."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = subprocess.Popen(
            ["ip", "netns", "exec", self._hosts[host], *command], start_new_session=True, **(pipes | options)
        )  # type: ignore[call-overload]
        self._started.append(started)
        return started

    def remove(self) -> None:
        """Ends what runs on the hosts, and removes them."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in (*self._hosts, self._between):
            _ip("netns", "delete", name, check=False)
            shutil.rmtree(_FILES / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            _FILES.rmdir()  # unless others are in it


@contextlib.contextmanager
def between_two_hosts() -> Iterator[Network]:
    """Makes the hosts; at the end nothing is left of them."""
    network = Network()
    try:
        network.make()
        yield network
    finally:
        network.remove()
