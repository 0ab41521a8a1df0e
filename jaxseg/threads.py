"""Work on the runs of an array, shared among threads.

Threads suffice, since NumPy releases the interpreter lock while it computes.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Pool = concurrent.futures.Executor | None
"""Threads that share the work; None where the caller's own does all of it."""
_PIECES = 16
"""Number of pieces that work is cut into: some for each of a few threads, and few enough to cost nothing."""


def share(pool: Pool, work: Callable[[int], object], count: int) -> None:
    """Do `work(index)` for each index below `count`, in any order, and return when all of it is done.

    Raises:
        Exception: What `work` raised first.
    """
    if pool is None or count < 2:
        for index in range(count):
            work(index)
        return

    def piece(number: int) -> None:
        for index in range(number, count, _PIECES):
            work(index)

    for _ in pool.map(piece, range(min(_PIECES, count))):
        pass


def ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, threaded: bool
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with its result, in order; while the caller uses one, the next is worked on.

    Args:
        work: Function of an item.
        items: Items, taken by the caller's thread, at most one before it is wanted.
        threaded: Whether to work ahead; otherwise each is worked on when it is asked for.
    """
    if not threaded:
        for item in items:
            yield item, work(item)
        return
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting: tuple[_Item, concurrent.futures.Future[_Result]] | None = None
        for item in items:
            following = item, thread.submit(work, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
