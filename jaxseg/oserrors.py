"""Errors of the operating system: whether an exception is the machine's fault or indicates a damaged file.

TensorStore raises such errors as a `ValueError` with the system's error number in its text, and ArrayRecord as a
`RuntimeError` with the system's message.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_NUMBER = re.compile(r"os_error_code='(\d+)'")
_WORDS = re.compile(r"\w+\(\) failed: ([^;]+); (?:reading|writing) ([^;\n]+)")
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}
_PLACE = re.compile(r'"(/[^"]*)"')
_PASSING = re.compile(r"^(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b")
_NO_THREAD = "can't start new thread"
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""Errors of a file that does not exist, or in whose place there is something else."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it.

    An error that was being handled when another came up led to it where the disk refused, as clean-up fails too then.
    A file that is not there is often handled with success, and what comes up meanwhile has a cause of its own.
    """
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        handled = None if at.__suppress_context__ else at.__context__
        if isinstance(handled, OSError) and handled.errno in _ABSENT:
            handled = None
        at = at.__cause__ or handled


def behind(error: BaseException) -> OSError | None:
    """Return the operating system's error behind an exception, with its path if known; None if there is none."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        found = _NUMBER.search(str(cause))
        if found:
            number, places = int(found[1]), _PLACE.findall(str(cause)[: found.start()])
            return OSError(number, os.strerror(number), *places[-1:])
        words = _WORDS.search(str(cause))
        if words and words[1] in _NUMBERS:
            return OSError(_NUMBERS[words[1]], words[1], words[2])
    return None


def of_machine(error: BaseException) -> BaseException | None:
    """Return the error to raise for an exception that says nothing about the file read; None if the file is at fault.

    A file that cannot be opened for lack of a permission, of memory or of file descriptors may be sound, and so may one
    that a network or a disk did not deliver. The caller must neither replace it nor set it aside.
    """
    cause = behind(error)
    if cause is not None:
        return None if cause.errno in _ABSENT else cause
    if isinstance(error, MemoryError) or _PASSING.match(str(error)) or _NO_THREAD in str(error):
        return error
    return None
