"""Compressed streams within files, which are read to their checksums in little memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

from jaxseg.data.volumes.headers import BadCaseError

_BLOCK, _UNPACKED_BLOCK = 1 << 20, 1 << 24
_EITHER = 47
"""zlib's code of a stream with its own header or with gzip's."""
_GZIP = b"\x1f\x8b"


def unpack(part: Path, start: int, most: int | None, take: Callable[[bytes], object]) -> tuple[int, int]:
    """Decompress a stream of zlib or gzip, and return its length and that of its contents.

    Streams of gzip may follow each other, as programs that compress in parallel write them. What else follows a stream
    is left out.

    Args:
        part: Path of the file.
        start: Byte of the file at which the stream begins.
        most: Length of contents beyond which the rest is not read, and lengths are those so far; None for no limit.
        take: Is given the contents block by block.

    Raises:
        BadCaseError: The stream is damaged or ends too early.
    """
    stream, length, held, left = zlib.decompressobj(_EITHER), 0, 0, b""
    with open(part, "rb") as file:
        file.seek(start)
        while most is None or held <= most:
            if len(left) < len(_GZIP):
                more = file.read(_BLOCK)
                length, left = length + len(more), left + more
            if stream.eof and left.startswith(_GZIP):
                stream = zlib.decompressobj(_EITHER)
            if stream.eof:
                return length - len(left), held
            if not left:
                raise BadCaseError(f"{part} is truncated: its compressed voxels end too early")
            try:
                block = stream.decompress(left, _UNPACKED_BLOCK)
            except zlib.error as error:
                raise BadCaseError(f"{part} is damaged: {error}") from None
            left = stream.unused_data if stream.eof else stream.unconsumed_tail
            held += len(block)
            take(block)
    return length - len(left), held
