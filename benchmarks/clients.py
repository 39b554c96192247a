"""Clients that ask little of the machine: bytes prepared beforehand, plain sockets, one thread.

They share the cores with what they measure; a general-purpose client would be the slower half.
"""

from __future__ import annotations

import base64
import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

_RECEIVED_BYTES = 1 << 16


def request(path: str, body: bytes) -> bytes:
    """Write a POST of raw bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """A kept-alive HTTP connection with one request on its way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self, message: bytes) -> None:
        """Send a request."""
        self.socket.sendall(message)

    def receive(self) -> bool:
        """Take what has come; whether the answer is whole.

        Raises:
            RuntimeError: the answer is not a 200.
        """
        self._received += self.socket.recv(_RECEIVED_BYTES)
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"refused: {self._received[:300]!r}")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < size:
            return False
        self._received = b""
        return True

    def answered(self) -> None:
        """Wait for a whole answer."""
        while not self.receive():
            pass


def post_for(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> float:
    """Post in turn, one request a connection at a time; requests answered a second."""
    open_ = [Connection(port) for _ in range(connections)]
    by_number = {connection.socket.fileno(): connection for connection in open_}
    poll = select.epoll()
    following = itertools.cycle(requests)
    for number, connection in by_number.items():
        poll.register(number, select.EPOLLIN)
        connection.send(next(following))
    answered, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for number, _ in poll.poll(1):
            connection = by_number[number]
            if connection.receive():
                answered += 1
                connection.send(next(following))
    poll.close()
    for connection in open_:
        connection.answered()
        connection.socket.close()
    return answered / elapsed


class Socket:
    """A WebSocket for binary frames, masked with zeros: the bytes stay as they are."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(1)
        if b" 101 " not in head:
            raise RuntimeError(f"refused: {head!r}")
        self._received = b""

    def payloads(self) -> list[bytes]:
        """Wait for frames; return what whole ones there are."""
        self._received += self.socket.recv(_RECEIVED_BYTES)
        found, start = [], 0
        while len(self._received) >= start + 2:
            size, head = self._received[start + 1], 2
            if size == 126:
                size, head = int.from_bytes(self._received[start + 2 : start + 4], "big"), 4
            if len(self._received) < start + head + size:
                break
            found.append(self._received[start + head : start + head + size])
            start += head + size
        self._received = self._received[start:]
        return found


def frame(payload: bytes) -> bytes:
    """Write a binary frame of 126 to 65,535 bytes."""
    return b"\x82\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload


def stream_for(
    socket_: Socket,
    frames: Sequence[bytes],
    window: int,
    seconds: float,
    closed: Callable[[bytes], int],
) -> float:
    """Keep a window of frames on their way, each sent by itself; frames acknowledged a second.

    Args:
        socket_: to send on.
        frames: sent in turn.
        window: most on their way.
        seconds: for so long.
        closed: how many frames a payload that came back acknowledges.
    """
    following = itertools.cycle(frames)
    for message in itertools.islice(following, window):
        socket_.socket.sendall(message)
    acknowledged, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count = sum(closed(payload) for payload in socket_.payloads())
        acknowledged += count
        for message in itertools.islice(following, count):
            socket_.socket.sendall(message)
    left = window
    while left > 0:
        left -= sum(closed(payload) for payload in socket_.payloads())
    socket_.socket.close()
    return acknowledged / elapsed
