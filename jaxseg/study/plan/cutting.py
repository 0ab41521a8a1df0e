"""How many runs train together: the sizes of the jobs that a group of runs is cut into."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import TypeVar

Member = TypeVar("Member")

MANY = 8
"""Jobs that a group is cut into, at most, for the sake of a common program: each reads its cases again, which takes a
second or more, and a program that is spared takes 10 to 60."""


def even_sizes(count: int, size: int) -> tuple[int, ...]:
    """Returns sizes of at most `size`, as equal as possible so that parts share a compiled shape.

    >>> even_sizes(10, 4)
    (4, 4, 2)
    """
    parts = -(-count // size)
    step = -(-count // parts)
    return tuple(min(step, count - start) for start in range(0, count, step))


def split(runs: Sequence[Member], sizes: Sequence[int]) -> list[Sequence[Member]]:
    """Splits runs into consecutive parts of the given sizes."""
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [runs[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def shared_size(together: Sequence[Hashable], sizes: Collection[int], *, devices: int) -> int | None:
    """Returns the size of jobs with which runs can use a program that is compiled anyway; None if none is worth it.

    A program is compiled for a number of runs: the smallest of `sizes` by which the runs can be divided serves both.

    Args:
        together: Of each run, what it shares with those that have to be in one job with it: their mean is scored, too.
        sizes: Numbers of runs that programs are compiled for.
        devices: Devices, which all have equally many runs.

    >>> shared_size(["scratch"] * 8 + ["transfer"] * 8, {8, 3}, devices=2)
    8
    >>> shared_size(["scratch"] * 16 + ["transfer"] * 16, {8}, devices=2)
    """
    count = len(together)
    fitting = [size for size in sizes if count % size == 0 and size % devices == 0 and count // size <= MANY]
    for size in sorted(fitting):
        if len({(name, place // size) for place, name in enumerate(together)}) == len(set(together)):
            return size
    return None


def taken(known: list[int], count: int) -> list[int]:
    """Takes sizes off the front of a list as long as they make up so many runs exactly; nothing if they do not."""
    for number in range(1, len(known) + 1):
        if sum(known[:number]) == count:
            taken = known[:number]
            del known[:number]
            return taken
    known.clear()  # the rest was cut otherwise, too
    return []


def halved(sizes: Sequence[int], chunk: int) -> tuple[int, ...]:
    """Halves the sizes from a chunk on, as far as they can be halved.

    >>> halved((8, 8, 5), 1)
    (8, 4, 4, 3, 2)
    """
    rest = [part for size in sizes[chunk:] for part in (-(-size // 2), size // 2) if part]
    return (*sizes[:chunk], *rest)
