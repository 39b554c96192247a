"""The WebSocket: frames in, cumulative acknowledgements out, on a real socket."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.server.conftest import Daemon

# As docs/behaviour.md has it.
MOST_PIECES = 4096


def socket(daemon: Daemon, query: str = "", **arguments: Any) -> ClientConnection:
    """Open the ingest socket."""
    connection: ClientConnection = connect(
        f"ws://127.0.0.1:{daemon.port}/ingest/ws{query}", **arguments
    )
    return connection


def acknowledged(ws: ClientConnection, offset: int) -> list[int]:
    """Read acknowledgements up to an offset."""
    offsets: list[int] = []
    while not offsets or offsets[-1] < offset:
        offsets.append(json.loads(ws.recv(timeout=30))["offset"])
    return offsets


def test_frames_are_learned_in_order_and_acknowledged(daemon: Daemon) -> None:
    """Each acknowledgement is the offset after a frame and covers all before; the last, all."""
    start = int(str(daemon.status()["offset"]))
    frames = [b"frame %d\n" % i for i in range(50)]
    with socket(daemon) as ws:
        for frame in frames:
            ws.send(frame)
        ends = [start + end for end in accumulate(map(len, frames))]
        offsets = acknowledged(ws, ends[-1])
    assert offsets == sorted(set(offsets) & set(ends))
    assert daemon.status()["offset"] == offsets[-1]
    assert daemon.recall(b"frame 49").json()["recall_error"] == 0


def test_more_frames_than_the_window(tmp_path: Path, genome_path: Path) -> None:
    """The window bounds what is taken ahead, and loses nothing."""
    with (
        Daemon(tmp_path / "state", genome_path, {"ORGANISM_WS_WINDOW": "2"}) as daemon,
        socket(daemon) as ws,
    ):
        for i in range(20):
            ws.send(b"%02d\n" % i)
        offsets = acknowledged(ws, 60)
        assert offsets[-1] == 60
        assert all(b - a <= 6 for a, b in pairwise([0, *offsets]))


def test_frames_that_come_together_are_messages_of_their_own(
    tmp_path: Path, genome_path: Path
) -> None:
    """Sent at once, or each after the other was acknowledged: the same chunks, the same state."""
    frames = [b"no end", b" of a line", b"two\nlines\n", b"\r\n", b"last"] * 5
    states = []
    for name, together in (("one", True), ("other", False)):
        with Daemon(tmp_path / name, genome_path) as daemon, socket(daemon) as ws:
            end = 0
            for frame in frames:
                end += len(frame)
                ws.send(frame)
                if not together:
                    acknowledged(ws, end)
            if together:
                acknowledged(ws, end)
            states.append(daemon.status())
    assert states[0] == states[1]


@pytest.mark.parametrize(("bad", "code"), [(b"", 1007), ("text", 1003)])
def test_what_comes_together_with_a_refused_frame(
    daemon: Daemon, bad: bytes | str, code: int
) -> None:
    """Frames before it are learned, and acknowledged before the close; those behind it are not."""
    start = int(str(daemon.status()["offset"]))
    with socket(daemon) as ws:
        for frame in (b"1\n", b"2\n", bad, b"3\n"):
            ws.send(frame)
        assert acknowledged(ws, start + 4)[-1] == start + 4
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(timeout=30)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == code
    assert daemon.status()["offset"] == start + 4


def test_an_opening_offset_is_checked(daemon: Daemon) -> None:
    """The right one is taken; a wrong one closes with 4409 and says where the stream stands."""
    offset = int(str(daemon.status()["offset"]))
    with socket(daemon, f"?offset={offset}") as ws:
        ws.send(b"x\n")
        ws.send(b"y\n")
        assert acknowledged(ws, offset + 4)[-1] == offset + 4
    state = daemon.status()
    assert closed(daemon, [b"x\n"] * 20, "?offset=5") == (4409, f"at {state['offset']}")
    assert daemon.status() == state


def closed(daemon: Daemon, frames: list[bytes | str], query: str = "") -> tuple[int, str]:
    """Send frames of which one is refused; the close code, and where the stream is said to be."""
    with socket(daemon, query) as ws, pytest.raises(ConnectionClosed) as caught:
        send_and_wait(ws, frames)
    assert caught.value.rcvd is not None
    reason = caught.value.rcvd.reason
    start = reason.find("at ")
    return caught.value.rcvd.code, reason[start:].split(":")[0] if start >= 0 else reason


def send_and_wait(ws: ClientConnection, frames: list[bytes | str]) -> None:
    """Send frames without waiting, then read until the other side closes."""
    for frame in frames:
        ws.send(frame)
    while True:
        ws.recv(timeout=30)


def test_refused_frames_close_the_socket_and_change_nothing(
    tmp_path: Path, genome_path: Path
) -> None:
    """Text 1003, empty 1007, a bad offset 1007, too large 1009."""
    settings = {"ORGANISM_BODY_LIMIT_BYTES": "1000"}
    with Daemon(tmp_path / "state", genome_path, settings) as daemon:
        before = daemon.status()
        assert closed(daemon, ["text"])[0] == 1003
        assert closed(daemon, [b""])[0] == 1007
        assert closed(daemon, [], "?offset=many")[0] == 1007
        assert closed(daemon, [b"x" * 1001])[0] == 1009
        assert closed(daemon, [], f"?{'😀' * 100}=1")[0] == 1007
        assert daemon.status() == before


def test_a_message_in_pieces_without_end_is_refused(daemon: Daemon) -> None:
    """Many pieces make one message; too many, even of no bytes, close with 1009 at once."""
    start = int(str(daemon.status()["offset"]))
    with socket(daemon) as ws:
        ws.send([b"in ", *[b""] * 1000, b"pieces\n"])
        assert acknowledged(ws, start + 10)[-1] == start + 10
        # Up to the piece that is one too many: who sends on may find the connection gone.
        with ws.send_context():
            ws.protocol.send_binary(b"", fin=False)
            for _ in range(MOST_PIECES):
                ws.protocol.send_continuation(b"", fin=False)
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(timeout=30)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
    assert daemon.status()["offset"] == start + 10


def test_text_that_is_none_is_refused_as_text(daemon: Daemon) -> None:
    """Bytes that are not UTF-8 in a frame of text close with 1003, and are not traced."""
    with socket(daemon) as ws:
        with ws.send_context():
            ws.protocol.send_text(b"\xff\xfe")
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(timeout=30)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1003
    assert "Traceback" not in daemon.log.read_text()


def test_what_came_before_a_refused_frame_is_acknowledged(daemon: Daemon) -> None:
    """A writer knows how far it got."""
    before = int(str(daemon.status()["offset"]))
    with socket(daemon) as ws:
        for _ in range(20):
            ws.send(b"good\n")
        ws.send("bad")
        offsets = acknowledged(ws, before + 100)
        with pytest.raises(ConnectionClosed):
            ws.recv(timeout=30)
    assert offsets[-1] == before + 100 == daemon.status()["offset"]


def test_a_client_that_leaves_is_forgotten(daemon: Daemon) -> None:
    """What was taken from it is learned though nobody waits for it; the daemon goes on."""
    before = int(str(daemon.status()["offset"]))
    with socket(daemon) as ws:
        for _ in range(60):
            ws.send(b"parting words, one after the other\n")
        ws.recv(timeout=30)
        ws.close_socket()
    receipt = daemon.ingest(b"next\n")
    assert receipt.status_code == 200
    frames, rest = divmod(receipt.json()["offset"] - before - 5, 35)
    assert rest == 0
    assert 1 <= frames <= 60


def test_a_duplicate_is_acknowledged_up_to_its_own_end(daemon: Daemon) -> None:
    """Not beyond: what follows in the stream may be another writer's."""
    start = int(str(daemon.status()["offset"]))
    daemon.ingest(b"mine 1\n")
    daemon.ingest(b"other 2\n")
    with socket(daemon, f"?offset={start}") as ws:
        ws.send(b"mine 1\n")
        assert acknowledged(ws, start + 7) == [start + 7]
        ws.send(b"mine 2\n")
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(timeout=30)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 4409


def test_the_socket_asks_for_the_key(tmp_path: Path, genome_path: Path) -> None:
    """Refused before it opens; with the key, it opens."""
    with Daemon(tmp_path / "state", genome_path, {"ORGANISM_API_KEY": "key"}) as daemon:
        with pytest.raises(Exception, match="HTTP 403"):
            socket(daemon)
        headers = {"Authorization": "Bearer key"}
        with socket(daemon, additional_headers=headers) as ws:
            ws.send(b"x\n")
            assert json.loads(ws.recv(timeout=30)) == {"offset": 2}


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}], ids=str
)
def test_the_socket_is_closed_to_other_sites(daemon: Daemon, headers: dict[str, str]) -> None:
    """Refused before it opens, and counted; a page of the daemon's own may open it."""
    before = daemon.refused(403)
    with pytest.raises(Exception, match="HTTP 403"):
        socket(daemon, additional_headers=headers)
    assert daemon.refused(403) == before + 1
    own = {"Origin": f"http://127.0.0.1:{daemon.port}"}
    with socket(daemon, additional_headers=own) as ws:
        ws.send(b"from our own page\n")
        assert json.loads(ws.recv(timeout=30))["offset"] > 0
