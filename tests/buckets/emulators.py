"""Services like S3 and Google's on this machine, behind a connection that can be cut."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.conftest import ROOT
from tests.optional import optional_module

# Read when gcsfs is imported: it would ask for a newer kind of bucket, with credentials that nobody has here.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

BUCKET = "studies"
_PACKAGES = {"s3": ("s3fs", "moto.server", "flask", "boto3"), "gs": ("gcsfs", "gcp_storage_emulator")}


class Connection:
    """Passes bytes on between a port of its own and another, until it is cut."""

    def __init__(self, target: int) -> None:
        self._target, self._open, self._up = target, set[socket.socket](), True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends all transfers and takes no new ones."""
        self._up = False
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Takes transfers again."""
        self._up = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                near, _ = self._listener.accept()
                if not self._up:
                    near.close()
                    continue
                threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as far:
            ends = {near: far, far: near}
            self._open |= ends.keys()
            try:
                while True:
                    for end in select.select(list(ends), [], [])[0]:
                        content = end.recv(1 << 16)
                        if not content:
                            return
                        ends[end].sendall(content)
            finally:
                self._open -= ends.keys()


class Service(NamedTuple):
    """A running service with an empty bucket."""

    connection: Connection
    environment: dict[str, str]
    """What leads the drivers to it."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def emulated(scheme: str) -> Iterator[Service]:
    """Starts the service of a scheme; the test is skipped where it or its driver is not installed."""
    for package in _PACKAGES[scheme]:
        optional_module(package)
    port = _free_port()
    if scheme == "s3":
        argv = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    else:
        argv = ["-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
        argv.append(f"--default-bucket={BUCKET}")
    silent = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *argv], cwd=ROOT, stdout=silent, stderr=silent)
    try:
        _wait_for(port)
        if scheme == "s3":
            _make_bucket(port)
        connection = Connection(port)
        try:
            yield Service(connection, environment_of(scheme, connection.port))
        finally:
            connection.close()
    finally:
        process.kill()
        process.wait()


def environment_of(scheme: str, port: int) -> dict[str, str]:
    """The variables that lead a driver to a port of this machine."""
    if scheme == "s3":
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        return keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}


def _wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < until, "the service did not start"
            time.sleep(0.1)


def _make_bucket(port: int) -> None:
    boto3 = optional_module("boto3")
    own = {name.lower(): value for name, value in environment_of("s3", port).items()}
    boto3.client(
        "s3",
        endpoint_url=own["aws_endpoint_url"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket=BUCKET)


def free_of_proxies() -> dict[str, str]:
    """The environment of this process without what would send requests for this machine elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
