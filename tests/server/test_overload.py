"""Ten times more than it can learn, from clients of which some never read: all that it promises.

Set ORGANISM_OVERLOAD_S for a longer time than the suite has.
"""

from __future__ import annotations

import base64
import multiprocessing
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from server.storage.segment import MESSAGES, read_head, read_records, segments
from tests.server.conftest import Daemon

SECONDS = float(os.environ.get("ORGANISM_OVERLOAD_S", "10"))
KIB, MIB = 1 << 10, 1 << 20
BODY_BYTES = 64 * KIB
QUEUE_BYTES = MIB
CONNECTIONS = 48
POSTERS, DEAF_POSTERS, STREAMERS, DEAF_STREAMERS = 24, 4, 4, 4
SLOWEST_RECALL_S = 2.0

SETTINGS = {
    "ORGANISM_BODY_LIMIT_BYTES": str(BODY_BYTES),
    "ORGANISM_QUEUE_LIMIT_BYTES": str(QUEUE_BYTES),
    "ORGANISM_CONNECTIONS": str(CONNECTIONS),
    "ORGANISM_REQUEST_TIMEOUT_S": "2",
    "ORGANISM_EPISODE_BYTES": str(MIB),
    "ORGANISM_SNAPSHOT_INTERVAL_S": "3600",
}
# Of each connection: a body as it comes and as it is handed on, what is read ahead of it, as it
# comes and as it is parsed, and replies that wait to be read.
CONNECTION_BYTES = 2 * BODY_BYTES + 2 * 256 * KIB + 64 * KIB
# Waiting messages, once more while they are journalled and learned; and the allocator's share,
# which does not grow with time.
CAP_BYTES = 2 * QUEUE_BYTES + CONNECTIONS * CONNECTION_BYTES + 32 * MIB

ID_BYTES = 16
# Short lines: a message takes a quarter of a second to be learned.
LINES = b"".join(b"%07d\n" % i for i in range((BODY_BYTES - ID_BYTES) // 8))
POST = (
    "POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    f"Content-Length: {ID_BYTES + len(LINES)}\r\n\r\n"
).encode()
FRAME = b"\x82\xff" + (ID_BYTES + len(LINES)).to_bytes(8, "big") + bytes(4)


@dataclass
class Client:
    """One client over all its connections: what it sent, and what it was told.

    Attributes:
        kind: ``post`` or ``stream``, in capitals if it never reads.
        number: of this client, among all.
    """

    kind: str
    number: int
    sent: int = 0
    connections: int = 0
    acknowledged: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    acknowledgements: list[int] = field(default_factory=list)

    def open(self, port: int) -> None:
        """Connect, and begin to send."""
        self.socket = socket.socket()
        if self.kind == "STREAM":  # its acknowledgements are few, and short
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        self.socket.connect(("127.0.0.1", port))
        self.connections += 1
        self.received = b""
        self.left = memoryview(b"")
        if self.kind in ("stream", "STREAM"):
            key = base64.b64encode(os.urandom(16))
            self.socket.sendall(
                b"GET /ingest/ws HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
                + key
                + b"\r\n\r\n"
            )
            while not self.received.endswith(b"\r\n\r\n"):
                self.received += self.socket.recv(1)
            assert b" 101 " in self.received, self.received
            self.received = b""
        self.socket.setblocking(False)
        self.begin()

    @property
    def wants(self) -> int:
        """What it waits for."""
        reads = 0 if self.kind.isupper() else selectors.EVENT_READ
        return reads | (selectors.EVENT_WRITE if self.left else 0)

    def begin(self) -> None:
        """Make the next message."""
        self.id = b"%-6s%2d %6d\n" % (self.kind.encode(), self.number, self.sent)
        self.sent += 1
        head = POST if self.kind in ("post", "POST") else FRAME
        self.left = memoryview(head + self.id + LINES)

    def send(self) -> None:
        """Send some; who does not wait for a reply goes on with the next."""
        self.left = self.left[self.socket.send(self.left) :]
        if not self.left and self.kind != "post":
            self.begin()

    def send_whole(self) -> None:
        """Send a message before the others come, so that each stream has one that finds room.

        Later ones may not: a refusal ends the connection, and posts are sooner back.
        """
        self.socket.setblocking(True)
        self.socket.sendall(self.left)
        self.socket.setblocking(False)
        self.begin()

    def receive(self) -> None:
        """Take what has come."""
        part = self.socket.recv(64 * KIB)
        if not part:
            raise ConnectionResetError
        self.received += part
        if self.kind == "post":
            self._take_reply()
        else:
            self._take_frames()

    def _take_reply(self) -> None:
        head, separator, body = self.received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if not separator or len(body) < int(fields[b"content-length"]):
            return
        status = head.split()[1].decode()
        if status == "200":
            self.acknowledged.add(self.id)
        else:
            self.refused.add(self.id)
            self.refusals[status + (" advised" if b"retry-after" in fields else "")] += 1
        self.received = b""
        self.begin()

    def _take_frames(self) -> None:
        while len(self.received) >= 2 and len(self.received) >= 2 + self.received[1]:
            opcode, size = self.received[0] & 15, self.received[1]
            payload, self.received = self.received[2 : 2 + size], self.received[2 + size :]
            if opcode == 8:
                self.refusals[f"closed with {int.from_bytes(payload[:2], 'big')}"] += 1
                raise ConnectionResetError
            if opcode == 1:
                self.acknowledgements.append(int(payload[len(b'{"offset": ') : -1]))


def flood(port: int, seconds: float, results: Connection) -> None:
    """Be all clients at once, for so long; whoever is cut off comes again."""
    kinds = {
        "stream": STREAMERS,
        "STREAM": DEAF_STREAMERS,
        "post": POSTERS,
        "POST": DEAF_POSTERS,
    }
    names = [kind for kind, count in kinds.items() for _ in range(count)]
    clients = [Client(kind, number) for number, kind in enumerate(names)]
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.open(port)
            if client.kind in ("stream", "STREAM"):
                client.send_whole()
            selector.register(client.socket, client.wants, client)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for key, events in selector.select(0.1):
                client = key.data
                try:
                    if events & selectors.EVENT_READ:
                        client.receive()
                    if events & selectors.EVENT_WRITE:
                        client.send()
                    selector.modify(client.socket, client.wants, client)
                except (ConnectionResetError, BrokenPipeError):
                    selector.unregister(client.socket)
                    client.socket.close()
                    client.open(port)
                    selector.register(client.socket, client.wants, client)
    for client in clients:
        client.socket.close()
        del client.socket, client.left
    results.send(clients)


def journalled(state_dir: Path) -> Iterator[tuple[bytes, int]]:
    """Messages that were taken, in order: the beginning of each, and the offset after it."""
    for path in segments(state_dir / "journal"):
        data = path.read_bytes()
        for _, record in read_records(path, data, read_head(path, data)):
            if record.kind in MESSAGES:
                yield record.payload[:ID_BYTES], record.end


@pytest.mark.slow
def test_ten_times_too_much(tmp_path: Path, genome_path: Path) -> None:
    """Memory stays under its cap, and recall answers; nothing is refused but for want of room.

    What was acknowledged was learned, once; what was refused was not; what was neither is the last
    message of a connection that ended, or of one that never read.
    """
    context = multiprocessing.get_context("spawn")
    listening, telling = context.Pipe(duplex=False)
    with Daemon(tmp_path / "state", genome_path, SETTINGS) as daemon:
        for _ in range(4):
            assert daemon.ingest(b"warm-up        \n" + LINES).status_code == 200
        assert daemon.recall(b"0000007").status_code == 200
        process = psutil.Process(daemon.process.pid)
        before = process.memory_info().rss
        flooding = context.Process(target=flood, args=(daemon.port, SECONDS, telling))
        flooding.start()
        telling.close()
        waits, peak = [], before
        with closing(listening):
            while not listening.poll():
                assert flooding.is_alive()
                start = time.monotonic()
                assert daemon.recall(b"0000007").json()["recall_error"] == 0
                waits.append(time.monotonic() - start)
                peak = max(peak, process.memory_info().rss)
            clients: list[Client] = listening.recv()
        flooding.join(timeout=60)
        assert daemon.ingest(b"afterwards     \n").json()["chunks"] == 1
        assert daemon.recall(b"afterwards     ").json()["recall_error"] == 0
        offset = daemon.status()["offset"]
        daemon.stop()

    taken = [*journalled(tmp_path / "state")]
    assert taken[-1][1] == offset
    learned = [number for number, _ in taken]
    told = {kind: [c for c in clients if c.kind == kind] for kind in ("post", "stream")}
    refusals = sum((client.refusals for client in clients), Counter[str]())
    offered = sum(client.sent for client in clients)
    print(f"\n{SECONDS:g} s: {offered} messages offered, {len(taken)} learned; {dict(refusals)}")
    print(f"memory: {before / MIB:.0f} MiB, {(peak - before) / MIB:.0f} more at most, ", end="")
    print(f"cap {CAP_BYTES / MIB:.0f}; {len(waits)} recalls, slowest {max(waits):.2f} s")
    assert peak - before < CAP_BYTES
    assert max(waits) < SLOWEST_RECALL_S
    assert offered >= 10 * len(taken)
    assert refusals.keys() == {"503 advised", "closed with 1013"}

    assert len(set(learned)) == len(learned) - 3, "once each, but for the warm-up"
    ends = dict(taken)
    for client in told["post"]:
        mine = {number for number in learned if number.startswith(b"post  %2d " % client.number)}
        assert client.acknowledged <= mine
        assert not client.refused & mine
        assert len(mine - client.acknowledged) <= client.connections
    assert sum(len(client.acknowledged) for client in told["post"]) > 0
    for client in told["stream"]:
        mine = {number for number in learned if number.startswith(b"stream%2d " % client.number)}
        assert set(client.acknowledgements) <= {ends[number] for number in mine}
    assert sum(len(client.acknowledgements) for client in told["stream"]) > 0
