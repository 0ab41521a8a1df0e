"""Parallel work on as many cases as fit into memory."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cost(NamedTuple):
    """Memory that a case takes, in bytes."""

    working: int
    """Memory while the case is in progress."""
    done: int
    """Memory from then on until the caller takes the result."""


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    cost_of: Callable[[Item], Cost],
    workers: int,
    budget: int,
) -> Iterator[tuple[Item, concurrent.futures.Future[Result]]]:
    """Work on items in threads and yield each with its finished future, in order.

    An item is started when its cost fits into the budget beside those that are started and not yet taken. An item
    larger than the budget is worked on alone. If memory runs out all the same, the item is tried once more when nothing
    else is in progress.

    The number of started items doubles whenever the caller has to wait for one. Thus a caller that is slower than two
    workers, such as one that compresses its results, causes memory to be held for few items, however many cores there
    are.

    Threads suffice: decompressing, NumPy and SciPy release the interpreter lock.

    Args:
        work: Function of an item.
        items: Items, taken one at a time when there is room for the next.
        cost_of: Estimates the cost of an item just before it is started.
        workers: Number of threads.
        budget: Bytes for all items together.
    """
    waiting: collections.deque[tuple[Item, Cost, concurrent.futures.Future[Result]]] = collections.deque()
    following: tuple[Item, Cost] | None = None
    todo = iter(items)
    ahead = 2  # items that may be begun and not yet taken
    taken = 0  # what the caller got last and holds until it asks for the next
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(waiting) < min(ahead, 2 * workers):
                    if following is None:
                        item = next(todo, None)
                        if item is None:
                            break
                        following = item, cost_of(item)
                    held = taken + sum(cost.done if future.done() else cost.working for _, cost, future in waiting)
                    if waiting and held + following[1].working > budget:
                        break
                    waiting.append((*following, pool.submit(work, following[0])))
                    following = None
                if not waiting:
                    return
                item, cost, future = waiting.popleft()
                taken = cost.done
                if not future.done():
                    ahead *= 2
                if isinstance(future.exception(), MemoryError):
                    concurrent.futures.wait([other for _, _, other in waiting])
                    future = pool.submit(work, item)
                    concurrent.futures.wait([future])
                yield item, future
        finally:
            for _, _, future in waiting:
                future.cancel()
