"""Small posts: the short way past the application, which nobody can tell from the long one."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from itertools import accumulate, pairwise
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server import patience
from server.door import Door
from server.errors import Problem, offset_mismatch
from server.express import Express
from server.metrics import Metrics
from server.patience import patient
from server.replies import Replies, Take
from server.settings import ServerSettings
from server.wire import Receipt
from tests.server.conftest import Daemon, Transport, until

HEAD = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
RECEIPT = Receipt(7, 1, 0.5, 0.25, 1.0, False)


def head(size: int, *lines: bytes) -> bytes:
    """Write the head of a post."""
    return HEAD + b"".join(line + b"\r\n" for line in (*lines, b"Content-Length: %d" % size, b""))


def connect(daemon: Daemon) -> socket.socket:
    """Open a raw connection that sends what it is given at once."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Reader:
    """Takes replies apart, in the order in which they come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def reply(self) -> tuple[int, dict[str, str], bytes]:
        """Read one: status, headers, body."""
        while b"\r\n\r\n" not in self._received:
            self._more()
        start, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = start.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers["content-length"])
        while len(self._received) < size:
            self._more()
        body, self._received = self._received[:size], self._received[size:]
        return int(first.split()[1]), headers, body

    def ended(self) -> bool:
        """Wait for the other side to close; whether nothing more came before."""
        return not self._received and self._connection.recv(1) == b""

    def _more(self) -> None:
        part = self._connection.recv(1 << 16)
        assert part, "the connection ended"
        self._received += part


def test_both_ways_answer_alike(daemon: Daemon) -> None:
    """A body in the packet of its head goes the short way, a later one the long: same headers."""
    with connect(daemon) as connection:
        reader = Reader(connection)
        connection.sendall(head(6) + b"short\n")
        short = reader.reply()
        connection.sendall(head(5, b"Expect: 100-continue"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"long\n")
        long = reader.reply()
    assert short[0] == long[0] == 200
    assert [*short[1]] == [*long[1]]
    assert short[1]["content-type"] == long[1]["content-type"]
    learned, later = json.loads(short[2]), json.loads(long[2])
    assert [*learned] == [*later]
    assert later["offset"] == learned["offset"] + 5


def test_refusals_behind_the_queue_are_alike_too(daemon: Daemon) -> None:
    """A wrong offset is found out late: the same problem, with the id that was asked for."""
    found = []
    with connect(daemon) as connection:
        reader = Reader(connection)
        for expect in ((), (b"Expect: 100-continue",)):
            lines = (b"Upload-Offset: 999999999", b"X-Request-ID: mine", *expect)
            if expect:
                connection.sendall(head(4, *lines))
                assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
                connection.sendall(b"gap\n")
            else:
                connection.sendall(head(4, *lines) + b"gap\n")
            found.append(reader.reply())
    assert [status for status, _, _ in found] == [409, 409]
    assert all(headers["x-request-id"] == "mine" for _, headers, _ in found)
    short, long = ({**headers, "date": ""} for _, headers, _ in found)
    assert sorted(short.items()) == sorted(long.items())
    assert json.loads(found[0][2]) == json.loads(found[1][2])


def test_requests_in_one_packet_are_answered_in_order(daemon: Daemon) -> None:
    """Posts and questions mixed, all sent before the first reply."""
    question = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    posts = [head(8) + b"line %02d\n" % i for i in range(20)]
    with connect(daemon) as connection:
        reader = Reader(connection)
        connection.sendall(b"".join(post + question for post in posts))
        replies = [reader.reply() for _ in range(2 * len(posts))]
    assert {status for status, _, _ in replies} == {200}
    assert {body for _, _, body in replies[1::2]} == {b'{"status":"alive"}'}
    offsets = [json.loads(body)["offset"] for _, _, body in replies[::2]]
    assert all(b == a + 8 for a, b in pairwise(offsets))


@pytest.mark.parametrize("last", [b"HTTP/1.0", b"HTTP/1.1\r\nConnection: close"])
def test_a_last_request_ends_the_connection(daemon: Daemon, last: bytes) -> None:
    """It is answered, the reply says so, and nothing follows."""
    with connect(daemon) as connection:
        reader = Reader(connection)
        connection.sendall(head(5).replace(b"HTTP/1.1", last, 1) + b"last\n")
        status, headers, _ = reader.reply()
        assert status == 200
        assert headers["connection"] == "close"
        assert reader.ended()


def test_an_idle_connection_is_closed(daemon: Daemon) -> None:
    """Some seconds after its last reply, without a word."""
    with connect(daemon) as connection:
        reader = Reader(connection)
        for _ in range(2):
            connection.sendall(head(5) + b"idle\n")
            assert reader.reply()[0] == 200
        assert reader.ended()


def test_a_client_that_has_left_is_passed_over(daemon: Daemon) -> None:
    """What it sent is learned all the same, and the others are served."""
    before = int(str(daemon.status()["offset"]))
    with connect(daemon) as connection:
        connection.sendall(head(6) + b"leave\n")
    until(lambda: daemon.status()["offset"] == before + 6)
    assert daemon.ingest(b"others\n").status_code == 200


class Answers:
    """A protocol's side of an exchange."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes, bytes]] = []

    def __call__(self, status: int, lines: bytes, body: bytes) -> None:
        """Take a reply."""
        self.written.append((status, lines, body))


class Held(Replies):
    """Replies that are handed out when the test says so."""

    def __init__(self, refusal: Problem | None = None) -> None:
        self.takes: list[Take] = []
        self.messages: list[bytes] = []
        self.refusal = refusal

    def put(self, message: bytes, upload_offset: int | None, take: Take) -> None:
        """Keep whom to tell."""
        if self.refusal is not None:
            raise self.refusal
        self.messages.append(message)
        self.takes.append(take)


def make(replies: Replies, **settings: Any) -> tuple[Express, Metrics]:
    """The short way without a server."""
    metrics, given = Metrics(), ServerSettings(**settings)
    return Express(given, Door(cast(Any, None), given, metrics), replies), metrics


def scope(method: str = "POST", path: str = "/ingest", **headers: str) -> dict[str, Any]:
    """A request."""
    pairs = {"host": "localhost"} | headers
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in pairs.items()]
    return {"method": method, "path": path, "headers": lines}


def take(express: Express, request: dict[str, Any], body: bytes, answers: Answers) -> bool:
    """Offer a request; whether it is taken."""
    admitted = express.admit(request)
    return admitted is not None and express.take(admitted, body, answers)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (scope("GET"), b"x"),
        (scope(path="/recall"), b"x"),
        (scope(content_type="application/vnd.msgpack"), b"x"),
        (scope(), b""),
        (scope(), b"x" * 11),
        (scope(host="elsewhere.example"), b"x"),
        (scope(origin="http://elsewhere.example"), b"x"),
        (scope(authorization="Bearer wrong"), b"x"),
        (scope(authorization="Bearer right", upload_offset="-1"), b"x"),
    ],
)
def test_what_asks_for_more_goes_the_long_way(request_: dict[str, Any], body: bytes) -> None:
    """And leaves nothing behind: the application refuses it, or serves it."""
    replies, answers = Held(), Answers()
    express, _ = make(replies, body_limit_bytes=10, api_key="right")
    assert not take(express, request_, body, answers)
    assert not replies.takes
    assert take(express, scope(authorization="Bearer right"), body[:10] or b"x", answers)
    full, _ = make(Held(offset_mismatch(1, 2)))
    assert not take(full, scope(), b"x", answers)
    assert not answers.written


class Exchange:
    """A connection without a socket: what comes in is put to the engine, or asked of the app."""

    def __init__(self, **settings: Any) -> None:
        self.replies = Held()
        self.asked: list[str] = []
        express, self.metrics = make(self.replies, **settings)
        kind = patient(ServerSettings(**settings), self.metrics, express)
        config = uvicorn.Config(
            self._app, http=kind, interface="asgi3", lifespan="off", log_level="critical"
        )
        config.load()
        self.state = ServerState()
        self.protocol = kind(config=config, server_state=self.state, app_state={})
        self.lingering = asyncio.Event()
        self.transport = Transport()
        self.protocol.connection_made(self.transport)
        self.parsed = 0
        self._parser, self.protocol.parser = self.protocol.parser, cast(Any, self)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.asked.append(f"{scope['method']} {scope['path']} {body!r}")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        await self.lingering.wait()

    def feed_data(self, data: bytes) -> None:
        """Count the bytes that are parsed."""
        self.parsed += len(data)
        self._parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    async def send(self, data: bytes) -> None:
        """Have bytes come in, and whatever is put to the engine answered."""
        self.protocol.data_received(data)
        for _ in range(20):
            while self.replies.takes:
                self.replies.takes.pop(0)(RECEIPT, None)
            await asyncio.sleep(0)


def exchange(scenario: Callable[[Exchange], Awaitable[None]], **settings: Any) -> Exchange:
    """Play a scenario on a connection."""

    async def run() -> Exchange:
        connection = Exchange(**settings)
        await scenario(connection)
        connection.protocol.connection_lost(None)
        return connection

    return asyncio.run(run())


def test_the_parser_takes_the_short_way() -> None:
    """With a post that has come whole; one that is still coming goes to the application."""

    async def scenario(connection: Exchange) -> None:
        await connection.send(head(4) + b"one\n")
        assert connection.transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
        body = json.dumps(RECEIPT._asdict()).replace(" ", "").encode()
        assert connection.transport.written.endswith(body)
        await connection.send(head(4) + b"tw")
        await connection.send(b"o\n")

    found = exchange(scenario)
    assert found.replies.messages == [b"one\n"]
    assert found.asked == ["POST /ingest b'two\\n'"]


def test_a_head_is_parsed_once() -> None:
    """Posts with the head of the one before, but for its length, are learned without the parser."""

    async def scenario(connection: Exchange) -> None:
        for body in (b"one\n", b"another\n", b"third\n"):
            await connection.send(head(len(body)) + body)
        first = len(head(4)) + 4
        assert connection.parsed == first
        await connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await connection.send(head(7) + b"fourth\n")

    found = exchange(scenario)
    assert found.replies.messages == [b"one\n", b"another\n", b"third\n", b"fourth\n"]
    assert found.asked == ["GET /healthz b''"]
    assert found.transport.written.count(b"HTTP/1.1 200 OK\r\n") == 4
    ids = [line for line in found.transport.written.split(b"\r\n") if b"x-request-id" in line]
    assert len({*ids}) == 4


@pytest.mark.parametrize("line", [b"X-Request-ID: mine", b"Upload-Offset: 4"])
def test_a_head_of_one_request_alone_is_not_kept(line: bytes) -> None:
    """One that names an id or an offset is parsed whenever it comes."""

    async def scenario(connection: Exchange) -> None:
        for _ in range(3):
            await connection.send(head(4, line) + b"one\n")

    found = exchange(scenario)
    assert found.replies.messages == 3 * [b"one\n"]
    assert found.parsed == 3 * (len(head(4, line)) + 4)


def test_a_known_head_that_cannot_be_taken_goes_the_long_way() -> None:
    """A body beyond the limit, or an engine that takes none: the application refuses it."""

    async def scenario(connection: Exchange) -> None:
        await connection.send(head(4) + b"one\n")
        await connection.send(head(11) + b"beyond ten\n")
        connection.replies.refusal = offset_mismatch(1, 2)
        await connection.send(head(4) + b"two\n")
        connection.replies.refusal = None
        await connection.send(head(6) + b"three\n")

    found = exchange(scenario, body_limit_bytes=10)
    assert found.replies.messages == [b"one\n", b"three\n"]
    assert found.asked == ["POST /ingest b'beyond ten\\n'", "POST /ingest b'two\\n'"]


def test_a_known_head_in_the_middle_of_a_request_is_part_of_it() -> None:
    """The very bytes of a post are learned nowhere but between two requests."""
    post = head(4) + b"one\n"

    async def scenario(connection: Exchange) -> None:
        await connection.send(post)
        await connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        await connection.send(post)  # a header's value, further headers, and a body
        await connection.send(head(len(post), b"Expect: 100-continue"))
        await connection.send(post)  # a body

    found = exchange(scenario)
    assert found.replies.messages == [b"one\n"]
    assert found.asked == ["GET /healthz b'one\\n'", f"POST /ingest {post!r}"]


def test_a_head_is_known_from_its_first_byte_on() -> None:
    """Bytes that ended a post in pieces begin no other."""

    async def scenario(connection: Exchange) -> None:
        post = head(4) + b"one\n"
        await connection.send(post[:9])
        await connection.send(post[9:])
        await connection.send(post[9:])

    found = exchange(scenario)
    assert found.replies.messages == [b"one\n"]
    assert b"HTTP/1.1 400" in found.transport.written


def test_a_known_head_waits_for_its_turn() -> None:
    """A post before the one before it is answered is held back, and nothing more is read."""

    async def scenario(connection: Exchange) -> None:
        await connection.send(head(4) + b"one\n")
        for body in (b"two\n", b"three\n"):
            connection.protocol.data_received(head(len(body)) + body)
        assert connection.replies.messages == [b"one\n", b"two\n"]
        assert not connection.transport.reading
        await connection.send(b"")
        assert connection.transport.reading

    assert exchange(scenario).replies.messages == [b"one\n", b"two\n", b"three\n"]


def test_replies_to_a_known_head_are_of_their_own_time() -> None:
    """What the server says in each reply, the date above all, is what it says then."""

    async def scenario(connection: Exchange) -> None:
        for date in (b"first", b"second", b"third"):
            connection.state.default_headers = [(b"date", date)]
            await connection.send(head(4) + b"one\n")

    written = exchange(scenario).transport.written
    assert re.findall(rb"date: (\S+)", written) == [b"first", b"second", b"third"]


def test_a_known_head_behind_one_of_the_applications() -> None:
    """Its task may not be over with the reply: the next post has an exchange of its own."""

    async def scenario(connection: Exchange) -> None:
        await connection.send(head(4) + b"one\n")
        await connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.protocol.data_received(head(4) + b"two\n")
        connection.lingering.set()
        for _ in range(5):
            await asyncio.sleep(0)
        await connection.send(b"")
        await connection.send(head(6) + b"three\n")

    found = exchange(scenario)
    assert found.replies.messages == [b"one\n", b"two\n", b"three\n"]
    statuses = re.findall(rb"HTTP/1.1 (\d+)", found.transport.written)
    assert statuses == [b"200", b"204", b"200", b"200"]


def test_line_ends_between_requests_do_not_add_up() -> None:
    """A client may send one behind each of many posts, before it has its reply."""

    async def scenario(connection: Exchange) -> None:
        for _ in range(40):
            connection.protocol.data_received(head(4) + b"one\n")
            await connection.send(1000 * b"\r\n")

    found = exchange(scenario)
    assert len(found.replies.messages) == 40
    assert b'organism_requests_refused_total{status="431"} 0.0' in found.metrics.render()


def test_a_client_that_leaves_while_its_post_waits() -> None:
    """What came by a known head is learned, and its reply is written to nobody."""

    async def scenario(connection: Exchange) -> None:
        await connection.send(head(4) + b"one\n")
        connection.protocol.data_received(head(4) + b"two\n")
        connection.protocol.connection_lost(None)
        connection.replies.takes.pop()(RECEIPT, None)

    found = exchange(scenario)
    assert found.replies.messages == [b"one\n", b"two\n"]
    assert found.transport.written.count(b"HTTP/1.1 200") == 1


def test_a_last_request_is_not_remembered() -> None:
    """It ends the connection: what comes behind it is not taken for another."""

    async def scenario(connection: Exchange) -> None:
        for _ in range(2):
            await connection.send(head(5, b"Connection: close") + b"last\n")

    assert exchange(scenario).parsed == 2 * len(head(5, b"Connection: close") + b"last\n")


REQUESTS = st.lists(
    st.one_of(
        st.binary(max_size=12).map(lambda body: head(len(body)) + body),
        st.binary(max_size=12).map(lambda body: head(len(body), b"X: y") + body),
        st.just(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        st.just(b"\r\n"),
    ),
    min_size=1,
    max_size=6,
)


@given(REQUESTS, st.booleans(), st.lists(st.integers(0, 2000), max_size=4))
def test_nobody_can_tell_that_a_head_was_known(
    requests: list[bytes], one_by_one: bool, places: list[int]
) -> None:
    """Requests in any pieces: the same is learned and asked, the same written, as if all parsed."""
    stream = b"".join(requests)
    ends = {end for end in accumulate(map(len, requests)) if one_by_one}
    ends |= {place % (len(stream) + 1) for place in places} | {0, len(stream)}
    pieces = [stream[a:b] for a, b in pairwise(sorted(ends))]

    async def scenario(connection: Exchange) -> None:
        for piece in pieces:
            await connection.send(piece)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patience, "head_of", lambda *_: None)
        expected = exchange(scenario)
    found = exchange(scenario)
    assert expected.parsed == len(stream) >= found.parsed
    assert found.replies.messages == expected.replies.messages
    assert found.asked == expected.asked
    anonymous = [re.sub(rb"-id: \S+", b"", e.transport.written) for e in (found, expected)]
    assert anonymous[0] == anonymous[1]


def test_a_stop_answers_those_who_wait() -> None:
    """Once, with 503; a receipt that comes later is told to nobody."""
    replies, answers = Held(), Answers()
    express, metrics = make(replies)
    assert take(express, scope(x_request_id="first"), b"a", answers)
    assert take(express, scope(x_request_id="second"), b"b", answers)
    replies.takes[0](RECEIPT, None)
    express.give_up()
    replies.takes[1](RECEIPT, None)
    (status, lines, body), (late, late_lines, problem) = answers.written
    assert (status, late) == (200, 503)
    assert b"x-request-id: first\r\n" in lines
    assert b"x-request-id: second\r\n" in late_lines
    assert b"retry-after: " in late_lines
    assert json.loads(body) == RECEIPT._asdict()
    assert json.loads(problem)["request_id"] == "second"
    assert b'organism_requests_refused_total{status="503"} 1.0' in metrics.render()
