"""A message's bytes to chunks, the observations of a lifetime.

Owns the one definition of a line and of a window, shared by the daemon and the evaluation. Knows
nothing of vectors. A chunk is a span of the message, so that no byte is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from organism.jit import kernel

Chunking = Literal["lines", "windows"]

Bytes = npt.NDArray[np.uint8]
Spans = npt.NDArray[np.int64]

DEFAULT_CHUNK_BYTES = 4096
"""Longest line in bytes before it is cut; two pages hold all but a few lines of real logs."""

_NEWLINE, _RETURN = np.uint8(10), np.uint8(13)


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


def chunk_spans(
    data: bytes, chunking: Chunking, size_bytes: int, ends: Sequence[int] | None = None
) -> Spans:
    r"""Cut messages into the chunks that are learned, in order.

    Args:
        data: the messages, one behind the other.
        chunking: ``lines`` (one longer than ``size_bytes`` is cut, a blank one teaches nothing)
            or ``windows``.
        size_bytes: longest chunk, or the width of a window; a last window may be shorter.
        ends: where each message ends, rising; a chunk ends there at the latest. None: it is one
            message.

    Returns:
        Where each chunk starts and ends in the data, int64 ``(chunks, 2)``.

    >>> chunk_spans(b"one\n\nlonger\n", "lines", 4).tolist()
    [[0, 3], [5, 9], [9, 11]]
    >>> chunk_spans(b"abcde", "windows", 2).tolist()
    [[0, 2], [2, 4], [4, 5]]
    >>> chunk_spans(b"onetwo\n", "lines", 4, ends=[3, 7]).tolist()
    [[0, 3], [3, 6]]
    """
    limits = np.array([len(data)] if ends is None else ends, np.int64)
    return _spans(np.frombuffer(data, np.uint8), limits, chunking == "lines", size_bytes)


def are_cut_as_one(messages: Sequence[bytes], chunking: Chunking, size_bytes: int) -> bool:
    r"""Whether messages, joined, are cut into the same chunks as each by itself.

    >>> are_cut_as_one([b"one\n", b"two\n", b"th"], "lines", 4)
    True
    >>> are_cut_as_one([b"one", b"two\n"], "lines", 4)
    False
    >>> are_cut_as_one([b"abcd", b"ab", b"cd"], "windows", 2)
    True
    """
    if chunking == "lines":
        return all(message.endswith(b"\n") for message in messages[:-1])
    return not any(len(message) % size_bytes for message in messages[:-1])


@kernel(release=False)
def _spans(data: Bytes, ends: npt.NDArray[np.int64], lines: bool, size_bytes: int) -> Spans:
    nowhere = np.empty((0, 2), np.int64)
    spans = np.empty((_walk(data, ends, lines, size_bytes, nowhere), 2), np.int64)
    _walk(data, ends, lines, size_bytes, spans)
    return spans


@kernel()
def _walk(
    data: Bytes, ends: npt.NDArray[np.int64], lines: bool, size_bytes: int, spans: Spans
) -> int:
    """Count the chunks; write them down where there is room."""
    count, start = 0, 0
    for limit in ends:
        while start < limit:
            end = start if lines else limit
            while end < limit and data[end] != _NEWLINE:
                end += 1
            stop = end - 1 if lines and end > start and data[end - 1] == _RETURN else end
            for first in range(start, stop, size_bytes):
                if count < spans.shape[0]:
                    spans[count, 0], spans[count, 1] = first, min(first + size_bytes, stop)
                count += 1
            start = end + 1 if lines else end
        start = limit
    return count
