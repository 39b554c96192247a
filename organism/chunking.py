"""A message's bytes to chunks, the observations of a lifetime.

Owns the one definition of a line and of a window, shared by the daemon and the evaluation. Knows
nothing of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Chunking = Literal["lines", "windows"]

DEFAULT_CHUNK_BYTES = 4096
"""Longest line in bytes before it is cut; two pages hold all but a few lines of real logs."""


def split_lines(data: bytes) -> list[bytes]:
    r"""Split at ``\n`` and drop one trailing ``\r`` of each line; blank lines stay, as ``b""``.

    The end of the data ends the last line; data that ends in ``\n`` opens no further one.

    >>> split_lines(b"one\r\n\ntwo")
    [b'one', b'', b'two']
    """
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def chunk_message(data: bytes, chunking: Chunking, size_bytes: int) -> list[tuple[int, bytes]]:
    r"""Cut one message into the chunks that are learned, in order, each with its offset in it.

    Args:
        data: the message; its end ends the last chunk.
        chunking: ``lines`` (one longer than ``size_bytes`` is cut, a blank one teaches nothing)
            or ``windows``.
        size_bytes: longest chunk, or the width of a window; a last window may be shorter.

    >>> chunk_message(b"one\n\nlonger\n", "lines", 4)
    [(0, b'one'), (5, b'long'), (9, b'er')]
    >>> chunk_message(b"abcde", "windows", 2)
    [(0, b'ab'), (2, b'cd'), (4, b'e')]
    """
    if chunking == "windows":
        return list(_windows(data, 0, size_bytes))
    chunks: list[tuple[int, bytes]] = []
    start = 0
    for line in data.split(b"\n"):
        chunks += _windows(line.removesuffix(b"\r"), start, size_bytes)
        start += len(line) + 1
    return chunks


def _windows(data: bytes, start: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    for i in range(0, len(data), size_bytes):
        yield start + i, data[i : i + size_bytes]
