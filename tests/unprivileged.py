"""Tests of what may not be read, also where they run as the superuser, as in a container."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

VERSION_3 = 0x20080522
"""The layout of `capget` and `capset`: two words each of effective, permitted and inheritable capabilities."""
READ_ANYTHING = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which permissions of files mean nothing to the superuser."""


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Lets permissions of files bind this thread, and threads that it starts, whoever runs it (see capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, held) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    less = (ctypes.c_uint32 * 6)(*held)
    less[0] &= ~READ_ANYTHING
    if libc.capset(header, less) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        libc.capset(header, held)
