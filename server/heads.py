r"""Heads of requests that came before: the same bytes ask for the same, and are not parsed again.

One who posts over a connection that is kept sends, time after time, a head in which at most the
length differs. To compare it costs a fraction of what the parser and its many calls do. A head is
given to this only once the parser has understood it; whatever differs in anything but its length is
the parser's again.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)(?=\r\n)", re.IGNORECASE)
# Whose body is not simply so many bytes behind its head.
_SPECIAL = re.compile(rb"\r\n(?:transfer-encoding|expect|upgrade) *:", re.IGNORECASE)
# Longer ones are not written; and int() takes its time for a number without end.
_LONGEST_LENGTH = 15


class Head(NamedTuple):
    """What stands before and behind the length in a head."""

    before: bytes
    behind: bytes

    def body_of(self, data: bytes) -> bytes | None:
        r"""The body of a request with this head and any length; None unless it is that, and whole.

        >>> head = head_of(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n", 4)
        >>> head.body_of(b"POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\nother bytes")
        b'other bytes'
        >>> head.body_of(b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\nother bytes") is None
        True
        """
        before, behind = self
        if not data.startswith(before):
            return None
        first = len(before)
        last = data.find(b"\r\n", first, first + _LONGEST_LENGTH + 2)
        length = data[first:last]
        if last < 0 or not length.isdigit() or not data.startswith(behind, last):
            return None
        start = last + len(behind)
        return data[start:] if len(data) - start == int(length) else None


def head_of(head: bytes, length: int) -> Head | None:
    r"""Split a head that the parser has understood, of a request with so many bytes of body.

    Args:
        head: from the first byte of the request to the empty line behind its head.
        length: of the body, by the parser.

    Returns:
        None where it may not be taken for the head of another request.

    >>> head_of(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\n", 4)
    Head(before=b'POST / HTTP/1.1\r\nHost: here\r\nContent-Length: ', behind=b'\r\n\r\n')
    >>> head_of(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 4) is None
    True
    """
    lengths = [*_LENGTH.finditer(head)]
    is_one = head.find(_END) == len(head) - len(_END)
    if not is_one or _SPECIAL.search(head) or len(lengths) != 1:
        return None
    (found,) = lengths
    if int(found[1]) != length:
        return None
    return Head(head[: found.start(1)], head[found.end(1) :])
