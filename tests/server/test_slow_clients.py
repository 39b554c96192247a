"""Clients that take their time: each is ended, and nobody else waits for it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from websockets.sync.client import connect

from tests.server.conftest import Daemon

TIMEOUT_S = 1.0
CONNECTIONS = 12


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, genome_path: Path) -> Iterator[Daemon]:
    """A daemon with little patience."""
    settings = {
        "ORGANISM_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
        "ORGANISM_CONNECTIONS": str(CONNECTIONS),
    }
    with Daemon(tmp_path_factory.mktemp("impatient"), genome_path, settings) as running:
        yield running


def opened(daemon: Daemon) -> socket.socket:
    """A connection."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """What comes until the other side closes: status and problem."""
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


HEAD = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /ing", HEAD, HEAD + b"Content-Length: 10\r\n\r\nhalf"],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_a_request_that_does_not_come_is_ended(daemon: Daemon, sent: bytes) -> None:
    """With 408, in time, while another client is served; nothing is learned of it."""
    before = daemon.status()
    with opened(daemon) as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert daemon.recall(b"somebody else").status_code == 200
        status, problem = answer(connection)
        assert TIMEOUT_S * 0.5 < time.monotonic() - start < TIMEOUT_S * 5
    assert (status, problem["type"]) == (408, "urn:organism:problem:too-slow")
    assert daemon.status() == before


def test_a_byte_now_and_then_buys_no_time(daemon: Daemon) -> None:
    """The clock runs from the request's first byte."""
    with opened(daemon) as connection:
        start = time.monotonic()
        connection.settimeout(0.05)
        received = b""
        for byte in HEAD * 100:
            connection.sendall(bytes([byte]))
            try:
                received = connection.recv(1 << 16)
                break
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < TIMEOUT_S * 5


def test_a_head_without_end_is_refused(daemon: Daemon) -> None:
    """431 at 64 KiB, whatever the headers are; what is still on its way may reset the reply."""
    before = refused(daemon, 431)
    with opened(daemon) as connection, suppress(ConnectionError):
        connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n")
        for i in range(400):
            connection.sendall(b"X-Header-%d: %s\r\n" % (i, b"x" * 1000))
        status, problem = answer(connection)
        assert (status, problem["type"]) == (431, "urn:organism:problem:head-too-large")
    assert refused(daemon, 431) == before + 1


def refused(daemon: Daemon, status: int) -> float:
    """How many requests were refused with a status."""
    series = f'organism_requests_refused_total{{status="{status}"}} '
    lines = daemon.client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(series)).split()[-1])


def test_what_is_not_http_is_told_so(daemon: Daemon) -> None:
    """400, as a problem."""
    with opened(daemon) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        status, problem = answer(connection)
    assert (status, problem["type"]) == (400, "urn:organism:problem:malformed-request")


def test_a_few_requests_may_wait_for_each_other(daemon: Daemon) -> None:
    """Pipelined, they are answered in order; a flood of them is ended."""
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with opened(daemon) as connection:
        connection.sendall(request * 10)
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 10:
            received += connection.recv(1 << 16)
    with opened(daemon) as connection, suppress(ConnectionError):
        connection.sendall(request * 5000)
        while connection.recv(1 << 16):
            pass


def test_large_bodies_in_many_parts_have_no_head_limit(daemon: Daemon) -> None:
    """A kept connection may send several."""
    with opened(daemon) as connection:
        for _ in range(3):
            body = b"x" * 200_000
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
            for first in range(0, len(body), 30_000):
                connection.sendall(body[first : first + 30_000])
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(1 << 16)
            assert received.startswith(b"HTTP/1.1 200 ")


def test_too_many_connections(daemon: Daemon) -> None:
    """503 with Retry-After for those beyond the limit; those within are served."""
    daemon.client.close()
    with opened(daemon) as last:
        held = [opened(daemon) for _ in range(CONNECTIONS + 3)]
        refused = 0
        for connection in held[CONNECTIONS:]:
            status, problem = answer(connection)
            refused += (status, problem["type"]) == (
                503,
                "urn:organism:problem:too-many-connections",
            )
        assert refused == 3
        last.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert last.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        for connection in held:
            connection.close()


def test_a_quiet_socket_is_not_slow(tmp_path: Path, genome_path: Path) -> None:
    """It may wait for its next frame as long as it likes."""
    settings = {"ORGANISM_REQUEST_TIMEOUT_S": "0.3"}
    with (
        Daemon(tmp_path / "state", genome_path, settings) as daemon,
        connect(f"ws://127.0.0.1:{daemon.port}/ingest/ws") as ws,
    ):
        for i in range(3):
            ws.send(b"%d\n" % i)
            assert json.loads(ws.recv(timeout=30)) == {"offset": 2 * (i + 1)}
            with pytest.raises(TimeoutError):
                ws.recv(timeout=0.8)


def test_a_client_that_reads_no_reply_is_dropped(tmp_path: Path, genome_path: Path) -> None:
    """Though it goes on asking; others are served all the while."""
    with Daemon(tmp_path / "state", genome_path, {"ORGANISM_REQUEST_TIMEOUT_S": "1"}) as daemon:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", daemon.port))
        connection.settimeout(0.2)
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        process = psutil.Process(daemon.process.pid)
        deadline = time.monotonic() + 60
        ours = connection.getsockname()

        def is_open() -> bool:
            return any(c.raddr == ours for c in process.net_connections() if c.raddr)

        connection.sendall(asked)
        assert connection.recv(1).startswith(b"H")
        assert is_open()
        while is_open():
            assert time.monotonic() < deadline
            assert daemon.recall(b"somebody else").status_code == 200
            try:
                connection.sendall(asked)
            except OSError:
                continue
        connection.close()


def test_connections_that_are_gone_hold_no_memory(daemon: Daemon) -> None:
    """Hundreds that come with a body, are refused and leave: memory is that of the last few."""
    process = psutil.Process(daemon.process.pid)
    body = b"x" * 60_000
    request = b"POST /ingest HTTP/1.1\r\nHost: evil.example\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )

    def come_and_go(count: int) -> int:
        for _ in range(count):
            with opened(daemon) as connection:
                connection.sendall(request + body)
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 421 ")
        return int(process.memory_info().rss)

    before = come_and_go(300)
    assert come_and_go(1500) - before < 40 << 20
