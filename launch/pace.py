"""The time that is left of what is being done, from how fast it went so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Pace:
    """Tells how long something still takes, as if the rest went like what was done since the first report.

    Saving and validation count, compiling does not: the first call ends with the first report of what it did.

    Args:
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int, int] | None = None
        self._last = (0.0, 0, 0)

    def reached(self, what: str, done: int, total: int) -> None:
        """Takes a report that `done` of `total` units of `what` are finished."""
        if what == "compiling":
            return
        self._last = self._clock(), done, total
        if self._first is None or total != self._first[2] or done < self._first[1]:
            self._first = self._last

    @property
    def seconds_each(self) -> float:
        """The seconds of one unit; NaN before there is something to tell it from."""
        if self._first is None or self._last[1] == self._first[1]:
            return math.nan
        return (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])

    @property
    def left(self) -> float:
        """The seconds that are left; NaN if they are not known."""
        _, done, total = self._last
        return self.seconds_each * (total - done)
