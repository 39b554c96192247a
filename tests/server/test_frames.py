"""Short messages read at once: nobody can tell them from those that websockets reads."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from server.frames import read_messages
from server.patience import PatientSocket
from server.stream import CONNECTION
from tests.server.conftest import HANDSHAKE, Transport

LIMIT = 1 << 18

PAYLOADS = st.one_of(
    st.binary(max_size=5),
    st.integers(120, 132).map(lambda size: b"x" * size),
    st.integers(65_530, 65_540).map(lambda size: b"y" * size),
)


def frames(opcode: Opcode, *payloads: bytes) -> bytes:
    """Write a message in one frame, or in pieces, under random masks."""
    last = len(payloads) - 1
    return b"".join(
        Frame(Opcode.CONT if i else opcode, payload, fin=i == last).serialize(mask=True)
        for i, payload in enumerate(payloads)
    )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes at some places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


async def taken(parts: list[bytes]) -> tuple[list[bytes], Transport]:
    """What a connection passes on of bytes that come in parts, and what it writes."""
    messages: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        scope["extensions"][CONNECTION].listen(messages.extend, lambda: None)
        while (await receive())["type"] != "websocket.disconnect":
            pass

    config = uvicorn.Config(
        app, ws=PatientSocket, lifespan="off", log_level="critical", ws_max_size=LIMIT
    )
    config.load()
    socket, transport = PatientSocket(config, ServerState(), {}), Transport()
    socket.connection_made(transport)
    socket.data_received(HANDSHAKE)
    for _ in range(5):
        await asyncio.sleep(0)
    transport.written = b""
    for part in parts:
        socket.data_received(part)
    socket.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    return messages, transport


@given(
    st.lists(
        st.one_of(
            PAYLOADS.map(lambda payload: (Opcode.BINARY, (payload,))),
            st.lists(PAYLOADS, min_size=2, max_size=3).map(lambda p: (Opcode.BINARY, tuple(p))),
            st.binary(max_size=9).map(lambda payload: (Opcode.PING, (payload,))),
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 1 << 20), max_size=6),
)
def test_messages_come_whole_and_in_order(
    sent: list[tuple[Opcode, tuple[bytes, ...]]], places: list[int]
) -> None:
    """However they are framed and wherever the bytes are cut; a ping among them is answered."""
    data = b"".join(frames(opcode, *payloads) for opcode, payloads in sent)
    messages, transport = asyncio.run(taken(cut(data, places)))
    assert messages == [b"".join(p) for opcode, p in sent if opcode is Opcode.BINARY]
    pongs = [Frame(Opcode.PONG, p).serialize(mask=False) for o, (p, *_) in sent if o is Opcode.PING]
    assert transport.written == b"".join(pongs)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"\x82\x03one", 1002),  # not masked
        (b"\xc2\x83\x00\x00\x00\x00one", 1002),  # an extension that was not agreed on
        (b"\x83\x83\x00\x00\x00\x00one", 1002),  # an opcode that does not exist
        (b"\x80\x83\x00\x00\x00\x00one", 1002),  # the rest of no message
        (b"\x82\xff" + (LIMIT + 1).to_bytes(8, "big") + bytes(4), 1009),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(bad: bytes, code: int) -> None:
    """Messages before it are passed on, none behind it is."""
    good = frames(Opcode.BINARY, b"good")
    messages, transport = asyncio.run(taken([good + bad + good]))
    assert messages == [b"good"]
    assert transport.written[2:4] == code.to_bytes(2, "big")


def test_a_message_over_the_limit_is_left_to_the_parser() -> None:
    """Which refuses it."""
    data = frames(Opcode.BINARY, b"ok") + frames(Opcode.BINARY, b"x" * 11)
    messages, end, begun = read_messages(data, 10)
    assert (messages, begun) == ([b"ok"], False)
    assert data[end:] == data[8:]
