"""Processes that the benchmark asks for one sample at a time, and whether the machine is free for them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class EndedError(Exception):
    """A contestant took longer than --limit, or its process ended."""


class Contestant:
    """A process that takes one sample for every line it is sent.

    Args:
        module: What it runs.
        settings: Of the workload; the module's argument.
        limit: Seconds that it may take to start and compile, from now on, and for each sample.
        xla_flags: Added to `XLA_FLAGS`.
    """

    def __init__(self, module: str, settings: dict[str, Any], limit: float, xla_flags: str = ""):
        self.settings, self.limit, self.began = settings, limit, time.monotonic()
        command = [sys.executable, "-m", module, json.dumps(settings)]
        flags = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}".strip()
        own = os.environ | ({"XLA_FLAGS": flags} if flags else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)
        self.ready: dict[str, Any] = {}
        self.samples: list[dict[str, float]] = []
        self.ended = ""

    def _read(self, limit: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], max(limit, 0.0))[0]:
            raise EndedError("compiling or one sample took longer than --limit")
        line = self.process.stdout.readline()
        if not line:
            raise EndedError(f"its process ended with status {self.process.wait()}")
        return json.loads(line)

    def start(self) -> None:
        """Waits until it is compiled and warm; where cores do the work, one after another, as each uses all of them."""
        if not self.ready:
            left = self.began + self.limit - time.monotonic()
            self._within(lambda: self.ready.update(self._read(left)))

    def sample(self, trace: str = "") -> None:
        """Takes one sample, its seconds per seed and step; one for a trace is not kept."""

        def ask() -> None:
            assert self.process.stdin is not None
            self.process.stdin.write(trace + "\n")
            self.process.stdin.flush()
            found = self._read(self.limit)
            if not trace:
                self.samples.append(found)

        self._within(ask)

    def _within(self, act: Callable[[], None]) -> None:
        """Does something unless the process has ended; ends it where the limit is passed now."""
        if self.ended:
            return
        try:
            act()
        except (EndedError, BrokenPipeError) as error:
            self.ended = str(error)
            self.process.kill()

    def close(self) -> None:
        """Lets the process end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that other processes use now, on Linux; 0 where the system does not tell."""

    def used() -> float:
        times = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]]
        idle = times[3] + times[4]
        own = sum(os.times()[:4])
        return (sum(times[:8]) - idle) / os.sysconf("SC_CLK_TCK") - own

    try:
        before, began = used(), time.monotonic()
        time.sleep(seconds)
        return max((used() - before) / (time.monotonic() - began), 0.0)
    except OSError:
        return 0.0
