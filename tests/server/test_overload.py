"""Ten times more than it can learn, and clients that never read: memory, refusals and recall."""

from __future__ import annotations

import json
import multiprocessing
import os
import selectors
import socket
import statistics
import threading
import time
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server.conftest import Daemon

SECONDS = float(os.environ.get("ORGANISM_OVERLOAD_S", "10"))
MIB = 1 << 20
BODY_BYTES = 1 << 16
QUEUE_BYTES = 2 * MIB
CONNECTIONS = 64
POSTERS = 40
SLOWEST_RECALL_S = 5.0

SETTINGS = {
    "ORGANISM_QUEUE_LIMIT_BYTES": str(QUEUE_BYTES),
    "ORGANISM_BODY_LIMIT_BYTES": str(BODY_BYTES),
    "ORGANISM_CONNECTIONS": str(CONNECTIONS),
    "ORGANISM_REQUEST_TIMEOUT_S": "5",
    "ORGANISM_JOURNAL_BYTES": str(16 * MIB),
    "ORGANISM_EPISODE_BYTES": str(MIB),
    # Two bytes a chunk: so slow that a client or two are ten times too many.
    "ORGANISM_CHUNKING": "windows",
    "ORGANISM_CHUNK_BYTES": "2",
}
# What a client has on its way in: a body, and what the protocol reads ahead of it.
CONNECTION_BYTES = BODY_BYTES + 320 * 1024
CAP_BYTES = 2 * QUEUE_BYTES + CONNECTIONS * CONNECTION_BYTES + 16 * MIB


def post_without_end(port: int, until: float, results: Queue[Any]) -> None:
    """Post on many connections; each sends again as soon as it is answered, whatever it is told."""
    body = os.urandom(BODY_BYTES)
    request = (
        b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body
    statuses: Counter[int] = Counter()
    advised = 0
    waiting: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(POSTERS):
            connection = socket.create_connection(("127.0.0.1", port))
            selector.register(connection, selectors.EVENT_READ, connection)
            connection.sendall(request)
            waiting[connection] = b""
        while time.monotonic() < until:
            for key, _ in selector.select(1):
                connection = key.data
                part = connection.recv(1 << 16)
                assert part, "hung up"
                received = waiting[connection] + part
                if b"\r\n\r\n" in received and received.endswith(b"}"):
                    status = int(received.split()[1])
                    statuses[status] += 1
                    advised += status == 503 and b"retry-after" in received.lower()
                    received = b""
                    connection.sendall(request)
                waiting[connection] = received
    for connection in waiting:
        connection.close()
    results.put((dict(statuses), advised))


def flood_a_socket(port: int, until: float, results: Queue[Any]) -> None:
    """Send frames and read acknowledgements in a thread of its own; on a close, open another."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    frame = os.urandom(BODY_BYTES)
    codes: Counter[int] = Counter()
    while time.monotonic() < until:
        try:
            with connect(f"ws://127.0.0.1:{port}/ingest/ws", open_timeout=30) as ws:
                reader = threading.Thread(target=_read, args=(ws,))
                reader.start()
                try:
                    while time.monotonic() < until:
                        ws.send(frame)
                except ConnectionClosed as closed:
                    codes[closed.rcvd.code if closed.rcvd else 0] += 1
                ws.close()
                reader.join()
        except OSError:
            codes[0] += 1
    results.put(dict(codes))


def _read(ws: Any) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        while True:
            json.loads(ws.recv())
    except ConnectionClosed:
        return


def never_read(port: int, until: float, path: bytes) -> None:
    """Ask again and again, or send frames again and again, and read no reply."""
    while time.monotonic() < until:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(0.5)
            connection.connect(("127.0.0.1", port))
            try:
                if path == b"/ingest/ws":
                    connection.sendall(
                        b"GET /ingest/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                        b"Sec-WebSocket-Version: 13\r\n\r\n"
                    )
                    connection.recv(4096)
                    sent = b"\x82\x82\x00\x00\x00\x00x\n"
                else:
                    sent = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
                while time.monotonic() < until:
                    try:
                        connection.sendall(sent * 50)
                    except TimeoutError:
                        continue
            except OSError:
                continue


@pytest.mark.slow
def test_ten_times_too_much(tmp_path: Path, genome_path: Path) -> None:
    """Memory under its cap, 503 or 1013 and nothing else, recall answers, and it ends well."""
    context = multiprocessing.get_context("spawn")
    with Daemon(tmp_path / "state", genome_path, SETTINGS) as daemon:
        for _ in range(20):
            assert daemon.ingest(os.urandom(BODY_BYTES)).status_code == 200
        process = psutil.Process(daemon.process.pid)
        before = process.memory_info().rss
        learned = int(str(daemon.status()["offset"]))
        until = time.monotonic() + SECONDS
        posted: Queue[Any] = context.Queue()
        closed: Queue[Any] = context.Queue()
        clients = [
            context.Process(target=post_without_end, args=(daemon.port, until, posted)),
            *(
                context.Process(target=flood_a_socket, args=(daemon.port, until, closed))
                for _ in range(2)
            ),
            *(
                context.Process(target=never_read, args=(daemon.port, until, path))
                for path in (b"/openapi.json", b"/ingest/ws")
            ),
        ]
        for client in clients:
            client.start()
        peak, waits, statuses = before, [], set()
        with httpx.Client(base_url=daemon.client.base_url, timeout=60) as asker:
            while time.monotonic() < until:
                start = time.monotonic()
                statuses.add(asker.get("/recall", params={"cue": "ab"}).status_code)
                waits.append(time.monotonic() - start)
                peak = max(peak, process.memory_info().rss)
        found, advised = posted.get(timeout=60)
        codes = [closed.get(timeout=60) for _ in range(2)]
        for client in clients:
            client.join(timeout=60)
            assert client.exitcode == 0
        assert daemon.ingest(b"ab").status_code == 200
        offset = int(str(daemon.status()["offset"]))
    print(f"peak {peak / MIB:.0f} MiB, before {before / MIB:.0f}, cap {CAP_BYTES / MIB:.0f} more")
    print(f"posts {found}, closes {codes}, {(offset - learned) / MIB:.1f} MiB learned")
    print(f"recall: median {statistics.median(waits):.3f} s, slowest {max(waits):.3f} s")
    assert peak - before < CAP_BYTES
    assert set(found) <= {200, 503}
    assert advised == found[503]
    assert found[503] > 10 * found.get(200, 0)
    # A close that is not told (0): the socket was already full of frames.
    assert {code for counts in codes for code in counts} <= {0, 1013}
    assert sum(counts.get(1013, 0) for counts in codes) > 0
    assert statuses == {200}
    assert max(waits) < SLOWEST_RECALL_S
    assert offset > learned
