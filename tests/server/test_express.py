"""Small posts: the short way past the application, which nobody can tell from the long one."""

from __future__ import annotations

import asyncio
import json
import socket
from itertools import pairwise
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

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
        self._refusal = refusal

    def put(self, message: bytes, upload_offset: int | None, take: Take) -> None:
        """Keep whom to tell."""
        if self._refusal is not None:
            raise self._refusal
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
    assert not express.take(request_, body, answers)
    assert not replies.takes
    assert express.take(scope(authorization="Bearer right"), body[:10] or b"x", answers)
    full, _ = make(Held(offset_mismatch(1, 2)))
    assert not full.take(scope(), b"x", answers)
    assert not answers.written


def test_the_parser_takes_the_short_way() -> None:
    """With a post that has come whole; one that is still coming goes to the application."""
    asked: list[str] = []
    replies = Held()
    express, metrics = make(replies)

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        asked.append(scope["path"])

    async def run() -> None:
        kind = patient(ServerSettings(), metrics, express)
        config = uvicorn.Config(app, http=kind, lifespan="off", log_level="critical")
        config.load()
        state = ServerState()
        protocol, transport = kind(config=config, server_state=state, app_state={}), Transport()
        protocol.connection_made(transport)
        protocol.data_received(head(4) + b"one\n")
        assert len(replies.takes) == 1
        replies.takes[0](RECEIPT, None)
        assert transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
        assert transport.written.endswith(json.dumps(RECEIPT._asdict()).replace(" ", "").encode())
        protocol.data_received(head(4) + b"tw")
        protocol.data_received(b"o\n")
        await asyncio.sleep(0)
        assert asked == ["/ingest"]
        assert len(replies.takes) == 1
        protocol.connection_lost(None)

    asyncio.run(run())


def test_a_stop_answers_those_who_wait() -> None:
    """Once, with 503; a receipt that comes later is told to nobody."""
    replies, answers = Held(), Answers()
    express, metrics = make(replies)
    assert express.take(scope(x_request_id="first"), b"a", answers)
    assert express.take(scope(x_request_id="second"), b"b", answers)
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
