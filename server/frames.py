"""Short WebSocket messages, many at a time: the one kind of frame that streams are made of.

The parser of websockets holds the interpreter for as long as a line takes to be learned. Whole
binary messages in one short masked frame without extensions (RFC 6455 §5.2) are read here; all
others, and whatever breaks the protocol, are left to it.
"""

from __future__ import annotations

from typing import NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # it has been installed without its part in C
    from websockets.utils import apply_mask

_WHOLE_BINARY = 0x82  # the first byte: final, no extension, binary
_MASKED = 0x80  # of the second byte; the rest of it is a length, or says how that is written
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_MASK_BYTES = 4


class Read(NamedTuple):
    """What was read.

    Attributes:
        messages: in order.
        end: where the bytes of the last end.
        begun: whether the bytes behind it are the beginning of one more.
    """

    messages: list[bytes]
    end: int
    begun: bool


def read_messages(data: bytes, limit: int) -> Read:
    r"""Read whole messages, as far as they are of the kind that is read here.

    Args:
        data: of a connection that is open, from between two messages on.
        limit: longest message in bytes.

    >>> read_messages(b"\x82\x83\0\0\0\0one\x82\x83\0\0\0\0two\x82\x83", 10)
    Read(messages=[b'one', b'two'], end=18, begun=True)
    """
    messages: list[bytes] = []
    position, size = 0, len(data)
    while position + 2 <= size and data[position] == _WHOLE_BINARY:
        length, start = data[position + 1] - _MASKED, position + 2
        if length == _TWO_BYTES:
            start += 2
            length = int.from_bytes(data[position + 2 : start], "big")
        if not 0 <= length <= limit or data[position + 1] == _MASKED + _EIGHT_BYTES:
            return Read(messages, position, False)
        end = start + _MASK_BYTES + length
        if end > size:
            return Read(messages, position, True)
        mask = data[start : start + _MASK_BYTES]
        messages.append(apply_mask(data[start + _MASK_BYTES : end], mask))
        position = end
    return Read(messages, position, position < size and data[position] == _WHOLE_BINARY)
