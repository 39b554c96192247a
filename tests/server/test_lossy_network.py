"""A network that loses and repeats: a writer that retries is learned once, in order, whole."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from organism.chunking import DEFAULT_CHUNK_BYTES
from server.episodes import Episodes
from server.learner import Learner
from server.life import Life
from server.storage.segment import Kind, Record
from tests.server.conftest import OCTETS, Daemon, small_genome

ALL = sys.maxsize
MOST_ATTEMPTS = 1000
FRAMES = 10


@dataclass(frozen=True)
class Fate:
    """What a connection meets.

    Attributes:
        up: bytes that reach the daemon before the connection is cut.
        down: bytes that come back before it is cut.
        delay_s: how late everything is.
        repeated: whether all that arrived arrives once more, when the connection has ended.
    """

    up: int = ALL
    down: int = ALL
    delay_s: float = 0.0
    repeated: bool = False


def mishaps(seed: int, up: int, down: int) -> Iterator[Fate]:
    """Draw fates without end, most of them bad; cuts come after at most so many bytes."""
    draws = random.Random(seed)
    while True:
        yield draws.choice(
            [
                Fate(up=0),
                Fate(up=draws.randrange(up)),
                Fate(down=0),
                Fate(down=draws.randrange(down)),
                Fate(delay_s=draws.uniform(0, 0.01)),
                Fate(repeated=True),
                Fate(repeated=True, down=draws.randrange(down)),
            ]
        )


class LossyProxy:
    """Stands between clients and a daemon; each connection has the next fate.

    Attributes:
        port: where it listens.
        happened: how often what came to pass.
    """

    def __init__(self, daemon: Daemon, fates: Iterator[Fate]) -> None:
        self._target = daemon.port
        self._fates = fates
        self._serving: set[asyncio.Task[None]] = set()
        self.happened: Counter[str] = Counter()

    def __enter__(self) -> LossyProxy:
        """Listen."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        """Let what is under way come to its end."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        fate = next(self._fates)
        arrived = await self._pass(fate, reader, writer)
        if fate.repeated:
            await self._repeat(arrived)

    async def _pass(
        self, fate: Fate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Pass bytes both ways until one side ends or it is cut; what reached the daemon."""
        up, down = bytearray(), bytearray()
        answers, daemon = await asyncio.open_connection("127.0.0.1", self._target)
        pumps = [
            asyncio.create_task(self._pump("up", fate.up, fate.delay_s, reader, daemon, up)),
            asyncio.create_task(self._pump("down", fate.down, fate.delay_s, answers, writer, down)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await _close(writer, daemon)
        return bytes(up)

    async def _pump(
        self,
        way: str,
        most: int,
        delay_s: float,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passed: bytearray,
    ) -> None:
        while some := await reader.read(1 << 16):
            await asyncio.sleep(delay_s)
            some = some[: most - len(passed)]
            passed += some
            writer.write(some)
            await writer.drain()
            if len(passed) == most:
                self.happened[f"cut {way}"] += 1
                return

    async def _repeat(self, arrived: bytes) -> None:
        """Send it all again, and see how it is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        writer.write(arrived)
        if arrived.startswith(b"GET"):  # a socket ends where its client does
            writer.write_eof()
        answer = b""
        with suppress(ConnectionError):
            while b"}" not in answer and (some := await reader.read(1 << 16)):
                answer += some
        await _close(writer)
        self.happened["repeated"] += 1
        self.happened["recognised"] += b'"duplicate":true' in answer
        self.happened["refused"] += b"claims offset" in answer


async def _close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def messages_of(seed: int, count: int) -> list[bytes]:
    """Messages of all sizes, many the same, some that end in the middle of a line."""
    draws = random.Random(seed)
    kinds: list[Callable[[], bytes]] = [
        lambda: b"the same again\n",
        lambda: b"no end of line",
        lambda: b"%d\nof several\n\nlines" % draws.randrange(1000),
        lambda: b"%d\n" % draws.randrange(1 << 60) * draws.randrange(1, 60),
    ]
    return [draws.choice(kinds)() for _ in range(count)]


def lived(messages: Sequence[bytes]) -> dict[str, object]:
    """The status of whoever lived these messages, one after the other."""
    learner = Learner(Episodes(1, 1))
    learner.wake(Life.born(small_genome(), 0, 0))
    for k, message in enumerate(messages):
        offset = learner.life.offset
        learner.fold([Record(Kind.LINES, DEFAULT_CHUNK_BYTES, k + 1, offset, message)])
    life = learner.life
    return {
        "offset": life.offset,
        "steps": int(life.cortex.steps),
        "state_sha256": life.state_sha256,
    }


def status(daemon: Daemon) -> dict[str, object]:
    """The same of a daemon."""
    found = daemon.status()
    return {name: found[name] for name in ("offset", "steps", "state_sha256")}


@contextmanager
def connecting(port: int) -> Iterator[httpx.Client]:
    """A client that makes a connection for every request."""
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30) as client:
        yield client


def post(client: httpx.Client, message: bytes, offset: int) -> httpx.Response:
    """Post a message that says where it belongs."""
    headers = {**OCTETS, "Upload-Offset": str(offset)}
    return client.post("/ingest", content=message, headers=headers)


def post_all(port: int, messages: Sequence[bytes]) -> None:
    """Post each message until it is acknowledged, and only then the next."""
    with connecting(port) as client:
        offset = 0
        for message in messages:
            receipt = retried(partial(post, client, message, offset))
            offset += len(message)
            assert (receipt.status_code, receipt.json()["offset"]) == (200, offset)


def retried(attempt: Callable[[], httpx.Response]) -> httpx.Response:
    """Try until there is an answer."""
    for _ in range(MOST_ATTEMPTS):
        with suppress(httpx.TransportError):
            return attempt()
    pytest.fail("never answered")


def opened(port: int, offset: int) -> ClientConnection:
    """Open a socket that says where its frames belong."""
    socket: ClientConnection = connect(f"ws://127.0.0.1:{port}/ingest/ws?offset={offset}")
    return socket


def stream_all(port: int, frames: Sequence[bytes]) -> None:
    """Send the frames that are not acknowledged yet, a few on each new socket."""
    starts = [0, *accumulate(map(len, frames))]
    acked = 0
    for _ in range(MOST_ATTEMPTS):
        if acked == starts[-1]:
            return
        first = starts.index(acked)
        some = frames[first : first + FRAMES]
        try:
            with opened(port, acked) as socket:
                for frame in some:
                    socket.send(frame)
                while acked < starts[first + len(some)]:
                    acked = json.loads(socket.recv(timeout=30))["offset"]
        except ConnectionClosed as closed:
            if closed.rcvd is not None:  # by the daemon, not by the network
                raise
        except (OSError, EOFError, WebSocketException):
            pass
    pytest.fail("never acknowledged")


@pytest.mark.parametrize(
    ("send", "up", "down"), [(post_all, 400, 300), (stream_all, 3000, 400)], ids=["http", "socket"]
)
def test_what_is_retried_is_learned_once(
    send: Callable[[int, Sequence[bytes]], None],
    up: int,
    down: int,
    tmp_path: Path,
    genome_path: Path,
) -> None:
    """Cut on the way there or back, delayed, repeated: the state is that of the messages alone."""
    messages = messages_of(1, 150)
    with Daemon(tmp_path / "state", genome_path) as daemon:
        with LossyProxy(daemon, mishaps(2, up, down)) as proxy:
            send(proxy.port, messages)
        assert status(daemon) == lived(messages)
    happened = proxy.happened
    assert min(happened["cut up"], happened["cut down"], happened["repeated"]) > 3, happened
    assert happened["refused"] == 0
    assert happened["recognised"] == (happened["repeated"] if send is post_all else 0)


def test_another_writer_is_found_out_by_post(tmp_path: Path, genome_path: Path) -> None:
    """A message that never arrived is refused where the stream has gone on; one that did is known.

    The refusal says where the stream stands, and the writer goes on from there.
    """
    fates = iter([Fate(up=0), Fate(), Fate(), Fate(down=0), Fate()])
    with (
        Daemon(tmp_path / "state", genome_path) as daemon,
        LossyProxy(daemon, fates) as proxy,
        connecting(proxy.port) as writer,
    ):
        with pytest.raises(httpx.TransportError):
            post(writer, b"mine 1\n", 0)
        assert daemon.ingest(b"another's 1\n").status_code == 200
        refused = post(writer, b"mine 1\n", 0)
        assert (refused.status_code, refused.json()["offset"]) == (409, 12)
        assert post(writer, b"mine 1\n", 12).json()["offset"] == 19
        with pytest.raises(httpx.TransportError):
            post(writer, b"mine 2\n", 19)
        assert daemon.ingest(b"another's 2\n").status_code == 200
        known = post(writer, b"mine 2\n", 19).json()
        assert (known["duplicate"], known["chunks"], known["offset"]) == (True, 0, 26)
        order = [b"another's 1\n", b"mine 1\n", b"mine 2\n", b"another's 2\n"]
        assert status(daemon) == lived(order)


def closed(socket: ClientConnection, frames: Sequence[bytes]) -> tuple[int, str]:
    """Send frames until the daemon closes the socket; its code and reason."""

    def send_and_wait() -> None:
        for frame in frames:
            socket.send(frame)
        socket.recv(timeout=30)

    with pytest.raises(ConnectionClosed) as caught:
        send_and_wait()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


def test_another_writer_is_found_out_by_socket(tmp_path: Path, genome_path: Path) -> None:
    """In the middle of a socket's life, or on one that opens where the stream was: 4409.

    No frame behind the other writer's bytes is learned, and the reason says where they end.
    """
    mine = [b"mine %d\n" % k for k in range(20)]
    with Daemon(tmp_path / "state", genome_path) as daemon:
        with opened(daemon.port, 0) as socket:
            socket.send(mine[0])
            assert json.loads(socket.recv(timeout=30)) == {"offset": 7}
            assert daemon.ingest(b"another's\n").status_code == 200
            code, reason = closed(socket, mine[1:])
            assert code == 4409
            assert "claims offset 7, the stream is at 17" in reason
        with opened(daemon.port, 7) as socket:
            assert closed(socket, mine[1:])[0] == 4409
        assert status(daemon) == lived([mine[0], b"another's\n"])
        with opened(daemon.port, 17) as socket:
            socket.send(mine[1])
            assert json.loads(socket.recv(timeout=30)) == {"offset": 24}
