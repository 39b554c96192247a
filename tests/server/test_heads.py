"""Heads that came before: what is understood without the parser, the parser understands alike."""

from __future__ import annotations

from typing import NamedTuple

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.heads import Head, head_of

START = b"POST /ingest HTTP/1.1\r\n"
LENGTH = b"Content-Length: 4\r\n"


class Parsed(NamedTuple):
    """A request as the parser tells of it: what it is, its headers but the length, its body."""

    method: bytes
    url: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Reader:
    """Takes down what the parser tells."""

    def __init__(self) -> None:
        self.url = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.begun = self.complete = 0

    def on_message_begin(self) -> None:
        """Count it."""
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        """Keep it."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep it, but the length, of which there is one."""
        if name.lower() != b"content-length":
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        """Keep it."""
        self.body += body

    def on_message_complete(self) -> None:
        """Count it."""
        self.complete += 1


def parsed(data: bytes) -> Parsed | None:
    """Parse bytes that are one whole request, and nothing else; None where they are not."""
    reader = Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if (reader.begun, reader.complete) != (1, 1):
        return None
    return Parsed(parser.get_method(), reader.url, reader.headers, reader.body)


LINES = st.sampled_from(
    [
        b"Host: localhost\r\n",
        b"X: content-length: 9\r\n",
        b"Content-Type: application/octet-stream\r\n",
        b"Connection: keep-alive\r\n",
        b"x-content-length: 9\r\n",
        b"content-length:4\r\n",
        b"CONTENT-LENGTH:   4\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
    ]
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.integers(0, 3),
        st.sampled_from([b"", b"0", b"12", b"\r\n", b" ", b"+", b"\r\n\r\n", b"x", b"4", b"\n"]),
    ),
    max_size=3,
)


@given(st.lists(LINES, max_size=4), st.integers(0, 4), st.binary(max_size=30), EDITS)
@example([], 0, b"other", [])
@example([], 0, b"POST /ingest HTTP/1.1\r\n\r\n", [])
def test_what_is_understood_is_what_the_parser_says(
    lines: list[bytes], place: int, body: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    """Of any bytes near to a request with the same head: the same request with another body."""
    lines.insert(place, LENGTH)
    head = START + b"".join(lines) + b"\r\n"
    first = parsed(head + b"abcd")
    known = head_of(head, 4)
    if first is None or first.body != b"abcd" or known is None:
        return  # the parser has not understood it, or it is not to be remembered
    data = known.before + b"%d" % len(body) + known.behind + body
    for position, removed, added in edits:
        data = data[:position] + added + data[position + removed :]
    found = known.body_of(data)
    if found is not None:
        assert parsed(data) == first._replace(body=found)
    if not edits:
        assert found == body


@pytest.mark.parametrize(
    "head",
    [
        START + b"Host: here\r\n\r\n",
        START + LENGTH + LENGTH + b"\r\n",
        START + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n",
        START + LENGTH + b"Expect : 100-continue\r\n\r\n",
        START + LENGTH + b"Upgrade: websocket\r\n\r\n",
        START + LENGTH.replace(b"4", b"5") + b"\r\n",
        START + LENGTH,
        START + LENGTH + b"\r\n" + START + LENGTH + b"\r\n",
        b"body of another\r\n\r\n" + START + LENGTH + b"\r\n",
    ],
)
def test_heads_that_are_not_remembered(head: bytes) -> None:
    """No length, two of them, another one; what asks for more; what is not one head."""
    assert head_of(head, 4) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"a:1;", b"a:;1", b"a:1;12", b"a:-1;", b"a:+1;1", b"a:9999999999999999;1", b"b:1;"],
)
def test_bytes_that_are_no_whole_request(data: bytes) -> None:
    """Cut short, too long, or with a length that is none: they are the parser's."""
    head = Head(b"a:", b"\r\n\r\n")
    data = data.replace(b";", b"\r\n\r\n")
    assert head.body_of(data) is None
    assert head.body_of(b"a:1\r\n\r\n1") == b"1"
