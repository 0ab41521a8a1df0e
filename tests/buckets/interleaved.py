"""Processes whose operations on a bucket in memory happen in an order that a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxseg.buckets.objects import Objects
from tests.buckets.faults import objects_of


class _Process:
    """A thread that stops before every operation until it is told to go on."""

    def __init__(self, what: Callable[[], Any]) -> None:
        self._what, self._go, self._stopped = what, threading.Semaphore(0), threading.Semaphore(0)
        self.result: Any = None
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def _run(self) -> None:
        self.stop()
        try:
            self.result = self._what()
        except BaseException as error:
            self.result = error
        self.ended = True
        self._stopped.release()

    def stop(self) -> None:
        if self.ended:  # what the test itself does with the objects
            return
        self._stopped.release()
        self._go.acquire()

    def step(self) -> None:
        """Does one operation, and what follows it up to the next."""
        self._go.release()
        self._stopped.acquire()


def run(place: Any, programs: Sequence[Callable[[Objects], Any]], choose: Callable[[list[int]], int]) -> list[Any]:
    """Runs programs, each with the objects of one bucket; `choose` names the one of those left that goes on.

    Returns what each returned, or raised.
    """
    processes: list[_Process] = []

    def start(number: int, program: Callable[[Objects], Any]) -> _Process:
        objects = objects_of(place, lambda count, name: processes[number].stop())
        return _Process(lambda: program(objects))

    for number, program in enumerate(programs):
        processes.append(start(number, program))
    while left := [number for number, process in enumerate(processes) if not process.ended]:
        processes[choose(left)].step()
    return [process.result for process in processes]


def orders(switches: int) -> Iterator[Callable[[list[int]], int]]:
    """Yields a `choose` for every order in which it changes from one process to another at most so often.

    The end of a process is no change. Each must be used in one run before the next is taken.
    """
    forced: list[int] = []  # which of the choices there are, at each step
    while True:
        choices: list[tuple[int, int]] = []
        last: list[int] = []
        changes = [0]

        def choose(left: list[int], forced=tuple(forced), choices=choices, last=last, changes=changes) -> int:
            going_on = [number for number in left if number in last[-1:]]
            options = going_on + [number for number in left if number not in going_on]
            if going_on and changes[0] == switches:
                options = going_on
            step = len(choices)
            chosen = forced[step] if step < len(forced) else 0
            choices.append((chosen, len(options)))
            changes[0] += bool(going_on) and options[chosen] != last[-1]
            last.append(options[chosen])
            return options[chosen]

        yield choose
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices.pop()
        if not choices:
            return
        forced = [chosen for chosen, _ in choices[:-1]] + [choices[-1][0] + 1]


def held_up(after: int) -> Callable[[list[int]], int]:
    """A `choose` by which the first process stops after some operations until the second has ended."""
    steps = iter(range(after + 1))

    def choose(left: list[int]) -> int:
        return left[0] if len(left) == 1 or next(steps, after) < after else 1

    return choose
