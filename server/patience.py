"""Connections: how many, and how long a request may take to come in. Below the application.

A client that sends a byte a minute, or headers without end, or reads no reply, must not hold a
place for ever. One that is silent altogether is the kernel's to drop (``listen`` tells it when).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, cast

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from server import errors
from server.errors import Problem
from server.express import Admitted, Express
from server.frames import read_messages
from server.heads import Head, head_of
from server.metrics import Metrics
from server.settings import ServerSettings
from server.stream import CONNECTION

_HEAD_LIMIT_BYTES = 1 << 16
# Parsed at a time: a few bytes of a request become kilobytes of objects.
_PARSED_BYTES = 1 << 14
_NOTHING = memoryview(b"")
# Frames that one message may come in: even empty ones take memory until it is whole.
_MOST_FRAGMENTS = 4096
_MESSAGE_TOO_BIG = 1009

_log = logging.getLogger("organism.patience")


class _Flow(FlowControl):
    """uvicorn's flow control, which reads nothing more while requests wait for their turn.

    Or else each reply would let in further requests, and a client that asks without end, and reads
    no reply, would fill the memory.
    """

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        if self._may_read():
            super().resume_reading()


class _Patient(HttpToolsProtocol):
    """uvicorn's protocol, which ends what takes too long."""

    limits: ServerSettings
    metrics: Metrics
    express: Express
    _since: float | None = None  # a request has begun to come in
    _unread_since: float | None = None  # replies have begun to wait for their reader
    _idle_since = 0.0  # the last reply was written
    _timer: asyncio.TimerHandle | None = None
    _begun: tuple[RequestResponseCycle, ASGI3Application] | None = None  # and not passed on yet
    _in_head = True
    _progressed = False
    _head_bytes = 0  # or of what else comes before, between and behind the bytes of a body
    _unparsed = _NOTHING
    _known: tuple[Head, Admitted] | None = None  # the head of a request that was taken

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self._may_read)
        self._since = self.loop.time()
        if len(self.connections) > self.limits.connections:
            self._refuse(errors.too_many_connections())
        else:
            self._look_again(self.limits.request_timeout_s)

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._unparsed, self._known = _NOTHING, None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._known is not None and self._take_again(*self._known, data):
            return
        if len(data) <= _PARSED_BYTES and not self._unparsed:
            self._parse(data)
        else:
            self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
            self._parse_some()

    def _take_again(self, head: Head, admitted: Admitted, data: bytes) -> bool:
        """Take a request whose head was understood before, if this is one and all of it."""
        cycle = self.cycle
        is_between = self._since is None and cycle.response_complete and not self._unparsed
        # One that the application has answered may be its task's still.
        is_ours = cycle.on_response is _nothing
        may_be_answered = is_between and is_ours and not self.flow.write_paused
        body = head.body_of(data) if may_be_answered else None
        if body is None or not self.express.take(admitted, body, partial(self._answer, cycle)):
            return False
        # The cycle of the request before goes round once more.
        cycle.response_started = cycle.response_complete = False
        cycle.on_response = self.on_response_complete
        self._head_bytes = 0
        return True

    def _parse_some(self) -> None:
        """Parse what was read, as long as no request has to wait for its turn."""
        while self._unparsed and not self.pipeline:
            data, self._unparsed = (
                self._unparsed[:_PARSED_BYTES],
                self._unparsed[_PARSED_BYTES:],
            )
            self._parse(bytes(data))
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                self._unparsed = _NOTHING

    def _may_read(self) -> bool:
        """Whether more may be read: not before all that was is parsed, and has its turn."""
        if self._unparsed and not self.pipeline:
            self.loop.call_soon(self._go_on)
        return not (self._unparsed or self.pipeline)

    def _go_on(self) -> None:
        self._parse_some()
        self.flow.resume_reading()

    def _parse(self, data: bytes) -> None:
        self._progressed = False
        # Whether no byte of a request has been parsed before these.
        begins = self._since is None or (self.cycle is None and not self._head_bytes)
        if self._since is None and (self.cycle is None or self.cycle.response_complete):
            # The parser does not tell of line ends before a request.
            self._since = self.loop.time()
        super().data_received(data)
        admitted = self._pass_on()
        if admitted is not None and begins:
            self._remember(admitted, data)
        self._head_bytes = 0 if self._progressed else self._head_bytes + len(data)
        if self._head_bytes > _HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self._refuse(errors.head_too_large(_HEAD_LIMIT_BYTES))

    def on_response_complete(self) -> None:
        # As uvicorn's, without its timer for each reply: one timer looks after the connection.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_since = self.loop.time()
        if self._unparsed or self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            self._pass_on()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Wait with a request until all of it that has come is parsed."""
        self._begun = cycle, app

    def _pass_on(self) -> Admitted | None:
        """Pass the request that has begun to the engine, if that can be, or to the application.

        Returns:
            What the engine has taken.
        """
        if self._begun is None:
            return None
        (cycle, app), self._begun = self._begun, None
        may_be_answered = not (self.flow.write_paused or cycle.waiting_for_100_continue)
        admitted = None
        if may_be_answered and not cycle.more_body:
            admitted = self.express.admit(cast(Scope, cycle.scope))
        if admitted is not None:
            answer = partial(self._answer, cycle)
            if self.express.take(admitted, bytes(cycle.body), answer):
                return admitted
        super()._start_asgi_task(cycle, app)
        return None

    def _remember(self, admitted: Admitted, data: bytes) -> None:
        """Take note of the head of a request that was taken, if another may have the same."""
        cycle = self.cycle
        if admitted.is_of_one_request or not cycle.keep_alive:
            return
        head = head_of(data[: len(data) - len(cycle.body)], len(cycle.body))
        self._known = None if head is None else (head, admitted)

    def _answer(self, cycle: RequestResponseCycle, status: int, head: bytes, body: bytes) -> None:
        """Write a whole reply, as the cycle would."""
        if cycle.disconnected:
            return
        cycle.response_started = cycle.response_complete = True
        # The server's, not the cycle's, which are of the second in which that was made.
        ours = _lines(tuple(self.server_state.default_headers))
        close = b"" if cycle.keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], ours, head, close, b"\r\n", body)))
        if not cycle.keep_alive:
            self.transport.close()
        on_response, cycle.on_response = cycle.on_response, _nothing
        on_response()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._since = self.loop.time()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head, self._progressed = False, True

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._progressed = True

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._since, self._in_head, self._progressed = None, True, True

    def send_400_response(self, msg: str) -> None:
        self._refuse(errors.malformed("this is not HTTP/1.1"))

    def handle_websocket_upgrade(self) -> None:
        self._forget()
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, WebSocketsSansIOProtocol)
        # A head that websockets cannot read is left without an answer, for ever.
        if protocol.conn.handshake_exc is not None and not self.transport.is_closing():
            self._refuse(errors.malformed("this is no handshake of a WebSocket"))

    def _look(self) -> None:
        """End the connection if it is late, in or out; else look again when it could be."""
        now, timeout_s = self.loop.time(), self.limits.request_timeout_s
        if self._since is not None and self._is_behind():
            self._since = now
        if self._unread_since is None and self.transport.is_closing():
            self._unread_since = now
        begun = [since for since in (self._since, self._unread_since) if since is not None]
        due = min(begun, default=now) + timeout_s
        is_idle = not begun and self.cycle is not None and self.cycle.response_complete
        if is_idle and now >= self._idle_since + self.timeout_keep_alive:
            self.transport.close()
            self._look_again(timeout_s)
        elif now < due:
            self._look_again(due - now)
        elif self._unread_since is not None:
            self.transport.abort()
        else:
            self._refuse(errors.too_slow(timeout_s))

    def _look_again(self, patience_s: float) -> None:
        """Look once more when the time is over, or when the connection could be idle."""
        patience_s = min(patience_s, self.timeout_keep_alive)
        self._timer = self.loop.call_later(patience_s, self._look)

    def _forget(self) -> None:
        """Let go of the timer: it would keep the connection's memory."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, problem: Problem) -> None:
        self.metrics.refused(problem.status)
        # A reply must not be taken for that to an earlier request, nor follow half of one.
        if not self._is_behind() and (self._in_head or not self.cycle.response_started):
            self.transport.write(_response(problem))
        self.transport.close()
        self._forget()
        self._look_again(self.limits.request_timeout_s)

    def _is_behind(self) -> bool:
        """Whether an earlier request than the one that comes in is still to be answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return bool(self.pipeline) or (self._in_head and not answered)


class PatientSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, a ``Connection`` past its queue.

    It takes no message in pieces without end, and reads no text.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._take: Callable[[list[bytes]], None] | None = None
        self._ready = _nothing
        self._early: list[bytes] = []  # messages that nobody took yet
        self._begun = b""  # the beginning of a message
        self._deaf = self._held = False

    def listen(self, take: Callable[[list[bytes]], None], ready: Callable[[], None]) -> None:
        """Have binary messages taken as they come, those that came before first."""
        self._take, self._ready = take, ready
        early, self._early = self._early, []
        self.hold(False)
        if early:
            take(early)

    def say(self, text: str) -> bool:
        """Send a text; whether it went out, or no longer can."""
        if self.close_sent or self.transport.is_closing():
            return True
        if not self.writable.is_set():
            return False
        self.conn.send_text(text.encode())
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def hold(self, held: bool) -> None:
        """Read nothing more for now; or go on."""
        if held is self._held:
            return
        self._held = held
        if held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of whoever listened, and of what was to be taken: each would hold the other."""
        super().connection_lost(exc)
        self._take, self._ready = None, _nothing
        self._early, self._begun = [], b""

    def resume_writing(self) -> None:
        """Say on."""
        super().resume_writing()
        self._ready()

    def handle_connect(self, event: Request) -> None:
        """Give the application the connection itself, too."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions = cast(dict[str, Any], self.scope["extensions"])
            extensions[CONNECTION] = self

    def data_received(self, data: bytes) -> None:
        """Read short messages at once, all that came; whatever else comes as uvicorn does."""
        if self._begun:
            data, self._begun = self._begun + data, b""
        conn = self.conn
        between = conn.state is State.OPEN and conn.current_size is None and not conn.reader.buffer
        if between and self._take is not None:
            messages, end, begun = read_messages(data, self.config.ws_max_size)
            if messages:
                self._pass_on(messages)
                data = data[end:]
            if begun:
                self._begun = data
                return
        if data:
            super().data_received(data)

    def handle_cont(self, event: Frame) -> None:
        """Take one more piece of a message."""
        if len(self.frames) < _MOST_FRAGMENTS:
            super().handle_cont(event)
            return
        self.frames = []
        self.conn.fail(_MESSAGE_TOO_BIG, f"a message in more than {_MOST_FRAGMENTS} frames")
        self.handle_parser_exception()

    def send_receive_event_to_app(self) -> None:
        """Pass a message on; the text of one is none of the application's, which refuses it."""
        if self.curr_msg_data_type == "text":
            # What comes behind it is not taken: the two do not go the same way.
            self._deaf = True
            self.frames = [b""]
            super().send_receive_event_to_app()
        else:
            message, self.frames = b"".join(self.frames), []
            self._pass_on([message])

    def _pass_on(self, messages: list[bytes]) -> None:
        if self._deaf or self.close_sent:
            return
        if self._take is not None:
            self._take(messages)
        else:
            self._early += messages
            self.hold(True)


def patient(
    settings: ServerSettings, metrics: Metrics, express: Express
) -> type[HttpToolsProtocol]:
    """Make the protocol that serves a connection within the limits of these settings."""
    return type(
        "Patient", (_Patient,), {"limits": settings, "metrics": metrics, "express": express}
    )


def listen(settings: ServerSettings) -> socket.socket:
    """Bind the address; what is accepted there is dropped when its client is gone or deaf.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small replies at once only where it is told that this is TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError:
        listener.close()
        raise
    host, port = listener.getsockname()[:2]
    _log.info("dashboard at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
    # Linux: bytes sent and not taken for so long end the connection (RFC 5482), a WebSocket's too.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        timeout_ms = max(int(settings.request_timeout_s * 1000), 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    return listener


def _nothing() -> None:
    """Called when a reply is complete: the cycle must not hold its protocol for ever."""


@lru_cache(maxsize=2)
def _lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Write lines of a head; the same for all replies of a second."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _response(problem: Problem) -> bytes:
    """Write a whole reply that closes the connection; no application has given it an id."""
    response = errors.problem_response(problem, "none")
    headers: dict[str, Any] = dict(response.headers) | {"connection": "close"}
    lines = [f"HTTP/1.1 {problem.status} {problem.title}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + bytes(response.body)
