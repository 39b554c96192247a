"""Connections: how many, and how long a request may take to come in. Below the application.

A client that sends a byte a minute, or headers without end, or reads no reply, must not hold a
place for ever. One that is silent altogether is the kernel's to drop (``listen`` tells it when).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server import errors
from server.errors import Problem
from server.metrics import Metrics
from server.settings import ServerSettings

_HEAD_LIMIT_BYTES = 1 << 16
_MOST_PIPELINED = 16


class _TooManyPipelined(Exception):
    """A client sends request after request and waits for no reply."""


def patient(settings: ServerSettings, metrics: Metrics) -> type[HttpToolsProtocol]:
    """Make the protocol that serves a connection within the limits of these settings."""
    timeout_s, most = settings.request_timeout_s, settings.connections

    class Patient(HttpToolsProtocol):
        """uvicorn's protocol, which ends what takes too long."""

        _since: float | None = None  # a request has begun to come in
        _unread_since: float | None = None  # replies have begun to wait for their reader
        _timer: asyncio.TimerHandle | None = None
        _in_head, _head_ended = True, False
        _head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._since = self.loop.time()
            if len(self.connections) > most:
                self._refuse(errors.too_many_connections())
            else:
                self._timer = self.loop.call_later(timeout_s, self._look)

        def pause_writing(self) -> None:
            self._unread_since = self.loop.time()
            super().pause_writing()

        def resume_writing(self) -> None:
            self._unread_since = None
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def handle_websocket_upgrade(self) -> None:
            self._forget()
            super().handle_websocket_upgrade()

        def data_received(self, data: bytes) -> None:
            only_head, self._head_ended = self._in_head, False
            super().data_received(data)
            self._head_bytes += len(data)
            if not only_head or self._head_ended:
                self._head_bytes = 0
            if self._head_bytes > _HEAD_LIMIT_BYTES and not self.transport.is_closing():
                self._refuse(errors.head_too_large(_HEAD_LIMIT_BYTES))

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._since = self.loop.time()

        def on_headers_complete(self) -> None:
            self._in_head, self._head_ended = False, True
            # A few bytes of a request become kilobytes of objects; the parser ends at an exception.
            if len(self.pipeline) >= _MOST_PIPELINED:
                raise _TooManyPipelined
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._since, self._in_head = None, True
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            detail = "this is not HTTP/1.1, or too many requests that wait for no reply"
            self._refuse(errors.malformed(detail))

        def _look(self) -> None:
            """End the connection if it is late, in or out; else look again when it could be."""
            now = self.loop.time()
            begun = [since for since in (self._since, self._unread_since) if since is not None]
            due = min(begun, default=now) + timeout_s
            if now < due:
                self._timer = self.loop.call_later(due - now, self._look)
            elif self._unread_since is not None:
                self.transport.abort()
            else:
                self._refuse(errors.too_slow(timeout_s))

        def _forget(self) -> None:
            """Let go of the timer: it would keep the connection's memory."""
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse(self, problem: Problem) -> None:
            metrics.refused(problem.status)
            if self.cycle is None or not self.cycle.response_started:
                self.transport.write(_response(problem))
            self.transport.close()

    return Patient


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
    # Linux: bytes sent and not taken for so long end the connection (RFC 5482), also while the
    # client's window stays shut. Elsewhere the connection stays, and its reader alone waits.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        timeout_ms = max(int(settings.request_timeout_s * 1000), 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    return listener


def _response(problem: Problem) -> bytes:
    """Write a whole reply that closes the connection; no application has given it an id."""
    response = errors.problem_response(problem, "none")
    headers: dict[str, Any] = dict(response.headers) | {"connection": "close"}
    lines = [f"HTTP/1.1 {problem.status} {problem.title}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + bytes(response.body)
