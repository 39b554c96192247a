"""Messages to chunks."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from organism.chunking import Chunking, are_cut_as_one, chunk_spans, split_lines


def chunk_message(message: bytes, chunking: Chunking, size: int) -> list[tuple[int, bytes]]:
    """The chunks themselves, each with its offset."""
    return [(a, message[a:b]) for a, b in chunk_spans(message, chunking, size).tolist()]


MESSAGES = st.binary(max_size=80) | st.text("ab\r\n", max_size=40).map(str.encode)


@given(MESSAGES, st.integers(1, 10))
def test_chunks_stand_where_they_say(message: bytes, size: int) -> None:
    """Each chunk is the message's bytes at its offset, no longer than the limit, in order."""
    kinds: tuple[Chunking, ...] = ("lines", "windows")
    for chunking in kinds:
        chunks = chunk_message(message, chunking, size)
        assert all(message[start : start + len(chunk)] == chunk for start, chunk in chunks)
        assert all(0 < len(chunk) <= size for _, chunk in chunks)
        assert [start for start, _ in chunks] == sorted({start for start, _ in chunks})


@given(MESSAGES, st.integers(1, 10))
def test_windows_lose_nothing(message: bytes, size: int) -> None:
    """Windows side by side are the message."""
    assert b"".join(chunk for _, chunk in chunk_message(message, "windows", size)) == message


@given(MESSAGES)
def test_short_lines_are_the_lines_that_are_not_blank(message: bytes) -> None:
    """The daemon and the evaluation share one notion of a line."""
    chunks = [chunk for _, chunk in chunk_message(message, "lines", 1000)]
    assert chunks == [line for line in split_lines(message) if line]


def test_line_ends() -> None:
    r"""One trailing \r goes with the \n, further ones stay; the message's end ends a line."""
    assert chunk_message(b"a\r\n\r\nb\r\r\nc", "lines", 10) == [(0, b"a"), (5, b"b\r"), (9, b"c")]


WHOLE_LINES = st.lists(MESSAGES.map(lambda message: message + b"\n"), max_size=4)
WHOLE_WINDOWS = st.lists(st.binary(max_size=6).map(lambda part: part * 6), max_size=4)


@given(WHOLE_LINES | WHOLE_WINDOWS | st.lists(MESSAGES, max_size=4), MESSAGES, st.integers(1, 10))
def test_messages_that_are_cut_as_one(some: list[bytes], last: bytes, size: int) -> None:
    """Joined, they give the chunks that each gives by itself; those that do not are told apart."""
    messages = [*some, last]
    ends = list(accumulate(map(len, messages)))
    kinds: tuple[Chunking, ...] = ("lines", "windows")
    for chunking in kinds:
        apart = chunk_spans(b"".join(messages), chunking, size, ends).tolist()
        as_one = chunk_spans(b"".join(messages), chunking, size).tolist()
        if are_cut_as_one(messages, chunking, size):
            assert apart == as_one
    assert are_cut_as_one([message + b"\n" for message in messages], "lines", size)
    assert are_cut_as_one([message * size for message in messages], "windows", size)
