"""Clients that take their time, take a place, or do not speak HTTP: ended, while others are served.

Nothing here waits by the clock: what must outlast the time that a request has is looked at when a
slow client, begun later, has been ended.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from websockets.sync.client import connect as connect_websocket

from tests.server.conftest import OCTETS, Daemon

TIMEOUT_S = 0.6
# Beyond it: how busy the machine that runs the tests may be.
SLACK_S = 4.0
CONNECTIONS = 12
MOST_SENT_BYTES = 24 << 20
# What was read ahead and is being parsed, a body, and the allocator's share: without a bound it is
# a gigabyte.
MOST_MEMORY_BYTES = 32 << 20

POST = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
HANDSHAKE = (
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, genome_path: Path) -> Iterator[Daemon]:
    """A daemon with little time and few places."""
    settings = {
        "ORGANISM_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
        "ORGANISM_CONNECTIONS": str(CONNECTIONS),
        "ORGANISM_BODY_LIMIT_BYTES": "100000",
    }
    with Daemon(tmp_path_factory.mktemp("hasty"), genome_path, settings) as running:
        yield running


class Reply(NamedTuple):
    """What a raw connection brought before it ended."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, object]:
        """The problem that it must be."""
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["connection"] == "close"
        found: dict[str, object] = json.loads(self.body)
        assert found["status"] == self.status
        assert str(found["type"]).startswith("urn:organism:problem:")
        return found


def connect(daemon: Daemon) -> socket.socket:
    """Open a raw connection."""
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=30)


def to_the_end(connection: socket.socket) -> bytes:
    """Read until the other side closes, or drops what was not read."""
    received = b""
    try:
        while part := connection.recv(1 << 16):
            received += part
    except ConnectionResetError:
        pass
    return received


def only_reply(received: bytes) -> Reply:
    """Take the one reply there must be apart."""
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    pairs = [line.split(": ", 1) for line in lines[1:]]
    reply = Reply(int(lines[0].split()[1]), {k.lower(): v for k, v in pairs}, body)
    assert len(body) == int(reply.headers["content-length"])
    return reply


def one_reply(connection: socket.socket) -> bytes:
    """Read one reply of a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert found
    while len(body) < int(found[1]):
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def delivered(connection: socket.socket, part: bytes) -> bool:
    """Send, and tell whether the other side had not ended the connection before."""
    try:
        connection.sendall(part)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def trickle(daemon: Daemon, connection: socket.socket, part: bytes) -> bytes:
    """Send a little after each time that another client is served, until the other side ends it."""
    while not select.select([connection], [], [], 0)[0]:
        assert daemon.client.get("/status").status_code == 200
        if not delivered(connection, part):
            break
    return to_the_end(connection)


def outlast(daemon: Daemon, times: int = 2) -> None:
    """Let more time pass than a request has."""
    for _ in range(times):
        with connect(daemon) as silent:
            assert only_reply(to_the_end(silent)).status == 408


def test_a_connection_that_says_nothing_is_ended(hasty: Daemon) -> None:
    """It takes a place."""
    outlast(hasty, 1)


@pytest.mark.parametrize(
    ("before", "part"),
    [
        (b"POST /ing", b""),
        (GET + b"X-Slow: ", b"a"),
        (GET + b"X-Slow: ", b""),
        (b"", b"\r\n"),
        (POST + b"Content-Length: 20000\r\n\r\n" + b"a line\n" * 1500, b""),
        (POST + b"Content-Length: 20000\r\n\r\n", b"x"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nx\n\r\n0\r\n", b"A: b\r\n"),
    ],
    ids=[
        "part-of-a-line",
        "head-by-bytes",
        "part-of-a-head",
        "line-ends",
        "half-a-body",
        "body-by-bytes",
        "chunks-without-end",
        "trailers-without-end",
    ],
)
@pytest.mark.parametrize("earlier", [0, 1], ids=["first", "second"])
def test_a_slow_request_is_ended(hasty: Daemon, before: bytes, part: bytes, earlier: int) -> None:
    """By 408 when its time is over, be it the first of its connection or not; others are served."""
    state, count = hasty.status(), hasty.refused(408)
    with connect(hasty) as connection:
        for _ in range(earlier):
            connection.sendall(GET + b"\r\n")
            assert b" 200 " in one_reply(connection)
        start = time.monotonic()
        connection.sendall(before)
        reply = only_reply(trickle(hasty, connection, part))
        took_s = time.monotonic() - start
    assert reply.status == 408
    assert reply.problem["type"] == "urn:organism:problem:too-slow"
    assert f"{TIMEOUT_S:g} s" in str(reply.problem["detail"])
    assert TIMEOUT_S * 0.9 <= took_s < TIMEOUT_S + SLACK_S
    assert hasty.refused(408) == count + 1
    assert hasty.status() == state


@pytest.mark.parametrize(
    ("before", "part"),
    [
        (GET, b"X-More: and more\r\n" * 50),
        (GET + b"X-Long: ", b"a" * 1000),
        (b"", b"\r\n" * 500),
        (b"GET /", b"a" * 1000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X-More: more\r\n" * 50),
    ],
    ids=["headers", "a-header", "line-ends", "a-path", "trailers"],
)
def test_a_head_without_end_is_refused(hasty: Daemon, before: bytes, part: bytes) -> None:
    """431 after some kilobytes, however fast they come."""
    count, length = hasty.refused(431), 0
    with connect(hasty) as connection:
        connection.sendall(before)
        while not select.select([connection], [], [], 0)[0] and delivered(connection, part):
            length += len(part)
            assert length < 16 << 20
        reply = only_reply(to_the_end(connection))
    assert reply.status == 431
    assert reply.problem["type"] == "urn:organism:problem:head-too-large"
    assert reply.problem["limit_bytes"] == 1 << 16
    assert hasty.refused(431) == count + 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"GET /status HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /ingest HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /st\xffatus HTTP/1.1\r\n\r\n",
        GET.replace(b"healthz", b"ingest/ws") + b"X-Long: " + b"a" * 9000 + b"\r\n" + HANDSHAKE,
        b"POST /ingest/ws HTTP/1.1\r\nContent-Length: 1\r\n" + HANDSHAKE + b"x",
    ],
    ids=["tls", "ssh", "redis", "header", "smuggling", "path", "handshake", "posted-handshake"],
)
@pytest.mark.parametrize("earlier", [0, 1], ids=["first", "second"])
def test_what_is_not_http_is_refused(hasty: Daemon, garbage: bytes, earlier: int) -> None:
    """400, at once, and nothing is learned; behind a request that was answered, too."""
    state, count = hasty.status(), hasty.refused(400)
    with connect(hasty) as connection:
        for _ in range(earlier):
            connection.sendall(GET + b"\r\n")
            assert b" 200 " in one_reply(connection)
        connection.sendall(garbage)
        reply = only_reply(to_the_end(connection))
    assert reply.status == 400
    assert reply.problem["type"] == "urn:organism:problem:malformed-request"
    assert hasty.refused(400) == count + 1
    assert hasty.status() == state


@pytest.mark.parametrize(
    "behind", [b"\x00garbage", GET + b"X: " + b"a" * 70_000], ids=["garbage", "head"]
)
def test_a_refusal_is_no_reply_to_an_earlier_request(hasty: Daemon, behind: bytes) -> None:
    """A message that is being learned must not be taken for a refused one."""
    message = b"".join(b"%d\n" % i for i in range(15_000))
    head = POST + b"Content-Length: %d\r\n\r\n" % len(message)
    with connect(hasty) as connection:
        connection.sendall(head + message + behind[:64])
        for start in range(64, len(behind), 1000):
            if not delivered(connection, behind[start : start + 1000]):
                break
        assert not re.match(rb"HTTP/1.1 4", to_the_end(connection))


def gone(daemon: Daemon, port: int) -> bool:
    """Whether the daemon has let go of a connection, by the client's port."""
    held = psutil.Process(daemon.process.pid).net_connections("tcp")
    return all(c.raddr.port != port for c in held if c.raddr)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel knows no such time")
@pytest.mark.parametrize(
    ("kind", "room"),
    [("http", 1), ("http", 4096), ("http", 0), ("websocket", 1), ("websocket", 4096)],
)
def test_a_client_that_reads_nothing_is_dropped(hasty: Daemon, kind: str, room: int) -> None:
    """What it goes on to send is not read for ever; others are served, and its place is free."""
    frame = b"\x82\x83\x00\x00\x00\x00no\n"
    asked = GET.replace(b"healthz", b"genome") + b"\r\n"
    with socket.socket() as connection:
        if room:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.connect(("127.0.0.1", hasty.port))
        if kind == "websocket":
            connection.sendall(GET.replace(b"healthz", b"ingest/ws") + HANDSHAKE)
        connection.setblocking(False)
        data = memoryview((asked if kind == "http" else frame) * 1000)
        position, deadline = 0, time.monotonic() + 30
        while not gone(hasty, connection.getsockname()[1]):
            assert time.monotonic() < deadline
            assert hasty.client.get("/status").status_code == 200
            try:
                position = (position + connection.send(data[position:])) % len(data)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break


def test_many_requests_at_once_are_answered_in_their_order(daemon: Daemon) -> None:
    """However many come before the first reply; bodies, small and large, among them."""
    message = b"x" * 70_000
    post = POST + b"Content-Length: %d\r\nX-Request-ID: n-%%d\r\n\r\n" % len(message)
    requests = [
        (post % i + message) if i % 100 == 99 else GET + b"X-Request-ID: n-%d\r\n\r\n" % i
        for i in range(1500)
    ]
    before, received = int(str(daemon.status()["offset"])), b""
    with connect(daemon) as connection, ThreadPoolExecutor() as pool:
        sent = pool.submit(connection.sendall, b"".join(requests))
        while received.count(b"HTTP/1.1 200 ") < len(requests):
            part = connection.recv(1 << 16)
            assert part, received[-1000:]
            received += part
        sent.result(timeout=30)
    found = re.findall(rb"x-request-id: n-(\d+)", received)
    assert [int(number) for number in found] == [*range(1500)]
    assert daemon.status()["offset"] == before + 15 * len(message)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_requests_that_wait_are_bounded(hasty: Daemon, kind: str) -> None:
    """A client that sends request after request, and reads no reply, fills no memory."""
    process = psutil.Process(hasty.process.pid)
    request = GET + b"\r\n"
    if kind == "large":
        request = POST + b"Content-Length: 60000\r\n\r\n" + b"\n" * 60_000
    data = memoryview(request * (1 + MOST_SENT_BYTES // len(request)))
    before = peak = process.memory_info().rss
    with connect(hasty) as connection:
        connection.setblocking(False)
        sent = 0
        while sent < len(data) and not gone(hasty, connection.getsockname()[1]):
            peak = max(peak, process.memory_info().rss)
            try:
                sent += connection.send(data[sent:])
            except BlockingIOError:
                assert hasty.client.get("/status").status_code == 200
            except (BrokenPipeError, ConnectionResetError):
                break
    assert peak - before < MOST_MEMORY_BYTES


def test_too_many_connections_are_refused(hasty: Daemon) -> None:
    """503 for one more than there are places; those who have one are served, and so is the next."""
    with ExitStack() as stack:
        hasty.client.get("/healthz")
        placed = [stack.enter_context(connect(hasty)) for _ in range(CONNECTIONS - 1)]
        for connection in placed:
            connection.sendall(GET + b"\r\n")
            assert b" 200 " in one_reply(connection)
        with connect(hasty) as late:
            reply = only_reply(to_the_end(late))
        assert reply.status == 503
        assert reply.problem["type"] == "urn:organism:problem:too-many-connections"
        assert int(reply.headers["retry-after"]) >= 1
        for connection in placed:
            connection.sendall(GET + b"\r\n")
            assert b" 200 " in one_reply(connection)
        port = placed[0].getsockname()[1]
        placed[0].close()
        deadline = time.monotonic() + 30
        while not gone(hasty, port):
            assert time.monotonic() < deadline
        with connect(hasty) as following:
            following.sendall(GET + b"\r\n")
            assert b" 200 " in one_reply(following)
    assert hasty.refused(503) >= 1


def test_a_client_that_may_wait_is_not_ended(hasty: Daemon) -> None:
    """An idle WebSocket, one that sends now and then, and a connection between two requests."""
    url = f"ws://127.0.0.1:{hasty.port}/ingest/ws"
    with (
        connect_websocket(url) as idle,
        connect_websocket(url) as rare,
        connect(hasty) as kept,
    ):
        kept.sendall(GET + b"\r\n")
        assert b" 200 " in one_reply(kept)
        for _ in range(2):
            rare.send(b"now and then\n")
            assert json.loads(rare.recv(timeout=30))["offset"] > 0
            outlast(hasty, 1)
        idle.send(b"after a while\n")
        assert json.loads(idle.recv(timeout=30))["offset"] > 0
        kept.sendall(GET + b"\r\n")
        assert b" 200 " in one_reply(kept)


def test_time_spent_waiting_for_the_daemon_does_not_count(
    tmp_path: Path, genome_path: Path
) -> None:
    """A request behind one that takes long is late only by its own fault."""
    settings = {"ORGANISM_REQUEST_TIMEOUT_S": "0.1"}
    message = b"".join(b"%d\n" % i for i in range(100_000))
    head = POST + b"Content-Length: %d\r\n\r\n" % len(message)
    with Daemon(tmp_path / "state", genome_path, settings) as daemon, connect(daemon) as connection:
        connection.sendall(head + message + GET)
        assert b" 200 " in one_reply(connection)
        connection.sendall(b"\r\n")
        assert b" 200 " in one_reply(connection)
        assert daemon.ingest(b"on\n", **OCTETS).status_code == 200


def test_clients_write_nothing_into_the_log(hasty: Daemon) -> None:
    """Neither by what is not HTTP, nor by what they ask a WebSocket for: it is counted, at most."""
    before = hasty.log.read_text()
    for _ in range(5):
        with connect(hasty) as connection:
            connection.sendall(b"\x00garbage\r\n\r\n")
            assert only_reply(to_the_end(connection)).status == 400
        with connect(hasty) as connection:
            connection.sendall(GET.replace(b"healthz", b"ingest/ws?cue=s3cr3t") + HANDSHAKE)
            assert b" 101 " in connection.recv(1 << 16)
    assert hasty.log.read_text() == before


def test_large_bodies_in_many_parts_have_no_head_limit(daemon: Daemon) -> None:
    """A kept connection may send several."""
    with connect(daemon) as connection:
        for _ in range(3):
            body = b"x" * 200_000
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body))
            for first in range(0, len(body), 30_000):
                connection.sendall(body[first : first + 30_000])
            assert b" 200 " in one_reply(connection)


def test_connections_that_are_gone_hold_no_memory(hasty: Daemon) -> None:
    """Hundreds that come with a body, are refused and leave: memory is that of the last few."""
    process = psutil.Process(hasty.process.pid)
    body = b"x" * 60_000
    head = b"POST /ingest HTTP/1.1\r\nHost: evil.example\r\nContent-Length: %d\r\n\r\n" % len(body)

    def come_and_go(count: int) -> int:
        for _ in range(count):
            with connect(hasty) as connection:
                connection.sendall(head + body)
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 421 ")
        return int(process.memory_info().rss)

    before = come_and_go(300)
    assert come_and_go(1500) - before < 40 << 20
