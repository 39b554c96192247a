"""A WebSocket past ASGI: the connection itself, and the window of frames that is open on it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Sequence

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server import errors
from server.intake import Sink
from server.patience import PatientSocket
from server.settings import ServerSettings
from server.stream import CONNECTION, Stream, _Refused, _Window
from server.wire import Receipt
from tests.server.conftest import HANDSHAKE, Transport


class Connection:
    """A connection whose client may stop reading."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.reads = True
        self.held = False

    def listen(self, take: Callable[[list[bytes]], None], ready: Callable[[], None]) -> None:
        """Keep whom to call."""
        self.take, self.ready = take, ready

    def say(self, text: str) -> bool:
        """Say it, if the client reads."""
        if self.reads:
            self.said.append(text)
        return self.reads

    def hold(self, held: bool) -> None:
        """Note it."""
        self.held = held


class Replies:
    """Takes what is put, and answers when told to."""

    def __init__(self) -> None:
        self.put: list[tuple[bytes, int | None]] = []
        self.room = 1000
        self.offset = 0

    def queue(self, messages: Sequence[bytes], upload_offset: int | None, sink: Sink) -> int:
        """Take what there is room for."""
        taken = messages[: self.room]
        if not taken:
            raise errors.overloaded()
        self.room -= len(taken)
        self.put += [(message, upload_offset) for message in taken]
        self.sink = sink
        return len(taken)

    async def answer(self, messages: int) -> None:
        """Have messages of one byte learned."""
        self.offset += messages
        self.sink.told(Receipt(self.offset, 1, 0.5, 0.5, 1.0, False), messages)
        self.sink.flush()
        await passed()


async def passed() -> None:
    """Let the loop do what waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def in_a_loop(
    test: Callable[[_Window, Connection, Replies], Awaitable[None]], size: int = 4
) -> None:
    """Run a test with an open window."""

    async def run() -> None:
        connection, replies = Connection(), Replies()
        window = _Window(replies, size, connection)  # type: ignore[arg-type]
        window.open(None)
        await test(window, connection, replies)

    asyncio.run(run())


def test_no_more_than_a_window_is_put() -> None:
    """What finds no room waits, and nothing more is read; an acknowledgement makes room."""

    async def test(window: _Window, connection: Connection, replies: Replies) -> None:
        connection.take([b"1", b"2", b"3", b"4", b"5", b"6"])
        assert [message for message, _ in replies.put] == [b"1", b"2", b"3", b"4"]
        assert connection.held
        await replies.answer(3)
        assert connection.said == ['{"offset": 3}']
        assert [message for message, _ in replies.put[4:]] == [b"5", b"6"]
        assert not connection.held
        assert not window.over.done()

    in_a_loop(test)


def test_a_client_that_does_not_read_is_told_later() -> None:
    """Its frames stay open meanwhile; the last acknowledgement stands for those before it."""

    async def test(_: _Window, connection: Connection, replies: Replies) -> None:
        connection.reads = False
        connection.take([b"1", b"2", b"3", b"4", b"5"])
        await replies.answer(2)
        await replies.answer(2)
        assert connection.held
        assert len(replies.put) == 4
        connection.reads = True
        connection.ready()
        assert connection.said == ['{"offset": 4}']
        assert len(replies.put) == 5
        assert not connection.held

    in_a_loop(test)


def test_what_was_taken_is_acknowledged_before_the_end() -> None:
    """An empty frame is refused when those before it are told; those behind it are not put."""

    async def test(window: _Window, connection: Connection, replies: Replies) -> None:
        connection.take([b"1", b"2", b"", b"3"])
        connection.take([b"4"])
        await passed()
        assert not window.over.done()
        await replies.answer(2)
        assert connection.said == ['{"offset": 2}']
        refusal = await window.over
        assert isinstance(refusal, _Refused)
        assert refusal.code == 1007
        assert len(replies.put) == 2

    in_a_loop(test)


def test_a_refusal_of_the_engine_ends_it() -> None:
    """What was learned before it is acknowledged; what was learned behind it is not."""

    async def test(window: _Window, connection: Connection, replies: Replies) -> None:
        connection.take([b"1", b"2", b"3"])
        replies.sink.told(Receipt(1, 1, 0.5, 0.5, 1.0, False), 1)
        replies.sink.refused(errors.offset_mismatch(7, 1))
        replies.sink.told(Receipt(2, 1, 0.5, 0.5, 1.0, False), 1)
        replies.sink.flush()
        refusal = await window.over
        assert isinstance(refusal, _Refused)
        assert refusal.code == 4409
        assert connection.said == ['{"offset": 1}']

    in_a_loop(test)


def test_where_the_engine_has_no_room_it_ends() -> None:
    """With 1013, once what was taken is acknowledged."""

    async def test(window: _Window, connection: Connection, replies: Replies) -> None:
        replies.room = 2
        connection.take([b"1", b"2", b"3"])
        await replies.answer(2)
        refusal = await window.over
        assert isinstance(refusal, _Refused)
        assert refusal.code == 1013
        assert connection.said == ['{"offset": 2}']

    in_a_loop(test)


def test_frames_of_a_client_that_leaves_are_put_all_the_same() -> None:
    """Those too that had found no room; then it is over, without a word."""

    async def test(window: _Window, connection: Connection, replies: Replies) -> None:
        connection.take([b"1", b"2", b"3", b"4", b"5", b"6"])
        window.leave()
        assert not window.over.done()
        await replies.answer(4)
        assert len(replies.put) == 6
        assert await window.over is None

    in_a_loop(test)


def test_later_frames_follow_from_the_opening_offset() -> None:
    """Each put claims the place behind the frames before it."""

    async def test() -> None:
        connection, replies = Connection(), Replies()
        window = _Window(replies, 64, connection)  # type: ignore[arg-type]
        window.open(10)
        connection.take([b"abc", b"de"])
        connection.take([b"f"])
        assert replies.put == [(b"abc", 10), (b"de", 10), (b"f", 15)]

    asyncio.run(test())


def frame(opcode: int, payload: bytes, last: bool = True) -> bytes:
    """Write a frame of at most 125 bytes, masked with zeros."""
    return bytes([opcode | 0x80 * last, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def test_messages_are_taken_as_they_come() -> None:
    """Those that came before anyone listened are not lost; none is taken behind a text."""
    taken: list[list[bytes]] = []
    by_the_long_way: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        scope["extensions"].pop(CONNECTION).listen(taken.append, lambda: None)
        by_the_long_way.append((await receive())["type"])

    async def run() -> None:
        config = uvicorn.Config(app, ws=PatientSocket, lifespan="off", log_level="error")
        config.load()
        socket, transport = PatientSocket(config, ServerState(), {}), Transport()
        socket.connection_made(transport)
        socket.data_received(HANDSHAKE)
        socket.data_received(frame(2, b"early"))
        assert not transport.reading
        await passed()
        assert transport.reading
        assert taken == [[b"early"]]
        socket.data_received(frame(2, b"1") + frame(2, b"2") + frame(2, b"3")[:-1])
        socket.data_received(b"3" + frame(2, b"in ", last=False) + frame(9, b"") + frame(0, b"two"))
        assert taken[1:] == [[b"1", b"2"], [b"3"], [b"in two"]]
        assert socket.say("heard")
        assert transport.written.endswith(b"\x81\x05heard")
        socket.pause_writing()
        assert not socket.say("too much")
        socket.data_received(frame(2, b"4") + frame(1, b"text") + frame(2, b"behind"))
        await passed()
        assert taken[4:] == [[b"4"]]
        assert by_the_long_way == ["websocket.receive"]
        assert not transport.written.endswith(b"too much")

    asyncio.run(run())


def test_a_connection_that_is_gone_holds_no_memory() -> None:
    """Nor what came on it and found no room: it is freed at once, without a search for cycles."""
    replies = Replies()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Stream(ServerSettings(ws_window=1), replies)(scope, receive, send)  # type: ignore[arg-type]

    async def run() -> None:
        config = uvicorn.Config(app, ws=PatientSocket, lifespan="off", log_level="error")
        config.load()
        socket, transport = PatientSocket(config, ServerState(), {}), Transport()
        socket.connection_made(transport)
        socket.data_received(HANDSHAKE)
        await passed()
        socket.data_received(frame(2, b"1") + frame(2, b"2") + frame(2, b"3")[:-1])
        assert not transport.reading
        gone = weakref.ref(socket)
        socket.connection_lost(None)
        del socket
        await passed()
        await replies.answer(1)
        await replies.answer(1)
        assert [message for message, _ in replies.put] == [b"1", b"2"]
        del replies.sink
        await passed()
        assert gone() is None

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
