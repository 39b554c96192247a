"""The Python client, against real daemons on real sockets."""

from __future__ import annotations

import asyncio
import doctest
import inspect
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

from server import client
from server.client import AsyncOrganism, OffsetLost, Organism, OrganismError, Refused, Unreachable
from server.wire import RetrainRequest
from tests.server.conftest import Daemon, until
from tests.server.test_lossy_network import Fate, LossyProxy, lived, messages_of, status


def url(daemon: Daemon) -> str:
    """Where a daemon listens."""
    return f"http://127.0.0.1:{daemon.port}"


@pytest.fixture
def organism(daemon: Daemon) -> Iterator[Organism]:
    """A client of the module's daemon."""
    with Organism(url(daemon)) as client:
        yield client


def test_replies_are_typed(organism: Organism, daemon: Daemon) -> None:
    """Each method returns what the route says, bytes as bytes."""
    before = organism.offset()
    receipt = organism.ingest(b"a line for \xff the client\n", before)
    assert (receipt.offset, receipt.chunks, receipt.duplicate) == (before + 24, 1, False)
    assert organism.ingest(b"a line for \xff the client\n", before).duplicate
    found = organism.recall(b"a line for \xff the client")
    assert found.matches[0].raw == b"a line for \xff the client"
    assert found.matches[0].shared == [(0, 0, 23)]
    assert organism.status().offset == organism.offset() == receipt.offset
    assert organism.status().state_sha256 == daemon.status()["state_sha256"]
    assert organism.genome().parameters > len(organism.rule().terms) > 0
    assert organism.snapshot().offset == receipt.offset
    assert "organism_ingest_bytes_total" in organism.metrics()
    assert organism.ready()
    assert next(organism.events()).offset == receipt.offset


def test_the_asynchronous_client_says_the_same(daemon: Daemon) -> None:
    """Method by method."""

    async def ask() -> None:
        async with AsyncOrganism(url(daemon)) as organism:
            with Organism(url(daemon)) as other:
                await organism.ingest(b"said twice\n")
                assert await organism.offset() == other.offset()
                assert await organism.recall(b"said twice") == other.recall(b"said twice")
                assert await organism.status() == other.status()
                assert await organism.genome() == other.genome()
                assert await organism.rule() == other.rule()
                assert await organism.snapshot() == other.snapshot()
                assert await organism.ready()
                assert "organism_entropy" in await organism.metrics()
                async for pulse in organism.events():
                    assert pulse.offset == other.offset()
                    break

    asyncio.run(ask())


def test_retraining_is_asked_for_and_watched(tmp_path: Path, genome_path: Path) -> None:
    """A job is returned and found again by its id; a second one beside it is refused."""
    with Daemon(tmp_path / "state", genome_path) as daemon, Organism(url(daemon)) as organism:
        job = organism.retrain(RetrainRequest(seed=5), outer_steps=10_000)
        assert (job.status, job.outer_steps) == ("running", 10_000)
        assert organism.job(job.id).id == job.id

        async def ask() -> None:
            async with AsyncOrganism(url(daemon)) as other:
                assert (await other.job(job.id)).id == job.id
                with pytest.raises(Refused) as refused:
                    await other.retrain(outer_steps=1)
                assert refused.value.status == 409

        asyncio.run(ask())
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            organism.retrain(outer_steps=0)


def test_refusals_carry_the_problem(organism: Organism) -> None:
    """Status, kind, remedy and request id; an offset mismatch the right offset."""
    with pytest.raises(OffsetLost, match="go on from there") as lost:
        organism.ingest(b"x\n", organism.offset() + 5)
    assert (lost.value.status, lost.value.slug) == (409, "offset-mismatch")
    assert lost.value.type == "urn:organism:problem:offset-mismatch"
    assert lost.value.title == "Offset mismatch"
    assert lost.value.members == {"offset": organism.offset()}
    assert lost.value.request_id
    with pytest.raises(Refused, match="one line") as refused:
        organism.recall(b"two\nlines")
    assert (refused.value.status, refused.value.slug) == (400, "malformed-request")
    for job_id in ("none", "../status", ""):
        with pytest.raises(Refused) as refused:
            organism.job(job_id)
        assert refused.value.status == 404
    for address in ("127.0.0.1:8765", "ftp://a", "http://a:b"):
        with pytest.raises(ValueError, match="address"):
            Organism(address)
    with pytest.raises(ValueError, match="patience"):
        organism.stream(patience_s=0)


def test_the_asynchronous_client_is_refused_alike(organism: Organism, daemon: Daemon) -> None:
    """The same errors, of the same contents."""

    async def ask() -> None:
        async with AsyncOrganism(url(daemon)) as other:
            with pytest.raises(OffsetLost) as lost:
                await other.ingest(b"x\n", organism.offset() + 5)
            assert lost.value.members == {"offset": organism.offset()}
            with pytest.raises(Refused, match="one line"):
                await other.recall(b"two\nlines")
            with pytest.raises(OffsetLost):
                async with await other.stream(organism.offset() + 5) as stream:
                    await stream.send(b"x\n")
            async with await other.stream() as stream:
                organism.ingest(b"another's\n")
                await stream.send(b"mine\n")
                with pytest.raises(OffsetLost):
                    await stream.flush()
                stream.abandon()
                with pytest.raises(ValueError, match="at least one byte"):
                    await stream.send(b"")

    before = organism.offset()
    asyncio.run(ask())
    assert organism.offset() == before + len(b"another's\n")


def test_what_is_too_large_is_told(tmp_path: Path, genome_path: Path) -> None:
    """By a message and by a frame, at the daemon's limit; the largest that it takes is taken."""
    limit = {"ORGANISM_BODY_LIMIT_BYTES": "5000"}
    with Daemon(tmp_path / "state", genome_path, limit) as daemon:

        async def stream() -> None:
            async with AsyncOrganism(url(daemon)) as organism, await organism.stream() as stream:
                await stream.send(b"x" * 5001)
                await stream.flush()

        with Organism(url(daemon)) as organism:
            with pytest.raises(Refused) as posted:
                organism.ingest(b"x" * 5001)
            with pytest.raises(Refused) as streamed, organism.stream() as frames:
                frames.send(b"x" * 5001)
            with pytest.raises(Refused) as awaited:
                asyncio.run(stream())
            for refused in (posted, streamed, awaited):
                assert (refused.value.status, refused.value.slug) == (413, "too-large")
            with organism.stream() as frames:
                frames.send(b"x" * 5000)
            assert organism.offset() == 5000


def test_a_wrong_key_is_told(tmp_path: Path, genome_path: Path) -> None:
    """By requests, by streams of frames and by events; the right one is let in."""
    with Daemon(tmp_path / "state", genome_path, {"ORGANISM_API_KEY": "right"}) as daemon:
        with Organism(url(daemon), api_key="wrong") as organism:
            for ask in (organism.status, lambda: next(organism.events())):
                with pytest.raises(Refused) as refused:
                    ask()
                assert refused.value.status == 401
            with pytest.raises(Refused, match="key"), organism.stream(0):
                pass
        with Organism(url(daemon), api_key="right") as organism, organism.stream() as stream:
            stream.send(b"let in\n")
            stream.flush()
            assert stream.offset == 7


def test_where_nobody_answers_it_says_what_to_do() -> None:
    """The message names the address and the command."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Organism(nowhere) as organism:
            assert not organism.ready()
            for ask in (organism.status, organism.stream, lambda: next(organism.events())):
                with pytest.raises(Unreachable, match=f"{nowhere} .*organism serve"):
                    ask()
            with (
                pytest.raises(Unreachable, match=f"{nowhere} .*organism serve"),
                organism.stream(0, patience_s=0.2),
            ):
                pass

        async def ask_there() -> None:
            async with AsyncOrganism(nowhere) as organism:
                assert not await organism.ready()
                with pytest.raises(Unreachable, match=f"{nowhere} .*organism serve"):
                    await organism.status()
                with pytest.raises(Unreachable, match=f"{nowhere} .*organism serve"):
                    async for _ in organism.events():
                        pass
                with pytest.raises(Unreachable, match=f"{nowhere} .*organism serve"):
                    async with await organism.stream(0, patience_s=0.2):
                        pass

        asyncio.run(ask_there())


class _Stranger(BaseHTTPRequestHandler):
    """Answers everything with a page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def test_a_stranger_is_no_organism() -> None:
    """Another server on the port is told from a daemon, whatever it answers."""
    with HTTPServer(("127.0.0.1", 0), _Stranger) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with Organism(f"http://127.0.0.1:{server.server_port}") as organism:
                for ask in (organism.status, organism.offset):
                    with pytest.raises(Unreachable, match="another server"):
                        ask()
        finally:
            server.shutdown()
            serving.join()


def lines(count: int, name: bytes) -> list[bytes]:
    """Frames of a line each."""
    return [b"%s says %d and %d\n" % (name, i, i * i) for i in range(count)]


async def stream_all(
    url: str, frames: list[bytes], meanwhile: dict[int, Callable[[], None]]
) -> int:
    """Stream frames from asyncio; do something after some of them; return the last offset."""
    async with AsyncOrganism(url) as organism:
        async with await organism.stream(0) as stream:
            for k, frame in enumerate(frames):
                await stream.send(frame)
                meanwhile.get(k, lambda: None)()
        return stream.offset


@pytest.mark.slow
def test_a_stream_survives_its_daemon(tmp_path: Path, genome_path: Path) -> None:
    """Killed in the midst of frames and started again, it has learned each of them once."""
    frames = lines(3000, b"sync")
    with Daemon(tmp_path / "state", genome_path) as daemon, Organism(url(daemon)) as organism:
        with organism.stream() as stream:
            for k, frame in enumerate(frames):
                stream.send(frame)
                if k in (500, 1800):
                    daemon.again()
        assert stream.offset == sum(map(len, frames))
        assert status(daemon) == lived(frames)


@pytest.mark.slow
def test_an_asynchronous_stream_survives_its_daemon(tmp_path: Path, genome_path: Path) -> None:
    """As the other one does."""
    frames = lines(3000, b"async")
    with Daemon(tmp_path / "state", genome_path) as daemon:
        last = asyncio.run(stream_all(url(daemon), frames, {1500: daemon.again}))
        assert last == sum(map(len, frames))
        assert status(daemon) == lived(frames)


def cuts(seed: int) -> Iterator[Fate]:
    """Every connection is cut, somewhere on the way there or back."""
    draws = random.Random(seed)
    while True:
        yield draws.choice([Fate(up=draws.randrange(4000)), Fate(down=draws.randrange(350))])


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_survives_its_network(
    tmp_path: Path, genome_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """Frames lost on their way, and acknowledgements lost on theirs, are learned once, in order."""
    monkeypatch.setattr(client, "_LONGEST_PAUSE_S", client._FIRST_PAUSE_S)
    frames = messages_of(3, 200)
    with (
        Daemon(tmp_path / "state", genome_path) as daemon,
        LossyProxy(daemon, cuts(4)) as network,
    ):
        address = f"http://127.0.0.1:{network.port}"
        if asynchronous:
            asyncio.run(stream_all(address, frames, {}))
        else:
            with Organism(address) as organism, organism.stream(0) as stream:
                for frame in frames:
                    stream.send(frame)
        assert status(daemon) == lived(frames)
    assert network.happened["cut up"] >= 3
    assert network.happened["cut down"] >= 3


def test_an_overloaded_daemon_is_given_time(tmp_path: Path, genome_path: Path) -> None:
    """A stream that is told to try again later does so, and each byte is learned once."""
    small = {"ORGANISM_BODY_LIMIT_BYTES": "900", "ORGANISM_QUEUE_LIMIT_BYTES": "900"}
    draws = random.Random(5)
    frames = [draws.randbytes(draws.randrange(300, 900)) for _ in range(60)]
    with Daemon(tmp_path / "state", genome_path, small) as daemon:
        with Organism(url(daemon)) as organism, organism.stream() as stream:
            for frame in frames:
                stream.send(frame)
        assert status(daemon) == lived(frames)


def wait_in_vain(daemon: Daemon, frames: Iterator[bytes]) -> None:
    """Send to a daemon that has just stopped to do anything."""
    with Organism(url(daemon)) as organism, organism.stream(patience_s=0.5) as stream:
        daemon.process.send_signal(signal.SIGSTOP)
        for frame in frames:
            stream.send(frame)


async def wait_in_vain_asynchronously(daemon: Daemon, frames: Iterator[bytes]) -> None:
    """The same from asyncio."""
    async with (
        AsyncOrganism(url(daemon)) as organism,
        await organism.stream(patience_s=0.5) as stream,
    ):
        daemon.process.send_signal(signal.SIGSTOP)
        for frame in frames:
            await stream.send(frame)


def test_patience_with_a_daemon_that_hangs_ends(tmp_path: Path, genome_path: Path) -> None:
    """Also where a frame fits into no buffer on the way, so that sending itself is stuck."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        for size in (10, 3 << 20):
            frames = repeat(b"x" * size, 100)
            began = time.monotonic()
            with pytest.raises(Unreachable, match="organism serve"):
                wait_in_vain(daemon, frames)
            daemon.process.send_signal(signal.SIGCONT)
            with pytest.raises(Unreachable, match="organism serve"):
                asyncio.run(wait_in_vain_asynchronously(daemon, frames))
            daemon.process.send_signal(signal.SIGCONT)
            assert time.monotonic() - began < 30


def test_another_writer_is_noticed(organism: Organism) -> None:
    """Its bytes in between end the stream; nothing behind them is learned."""
    with organism.stream() as stream:
        stream.send(b"mine\n")
        stream.flush()
        there = organism.ingest(b"another's\n").offset
        stream.send(b"mine again\n")
        with pytest.raises(OffsetLost) as lost:
            stream.flush()
        stream.abandon()
    assert isinstance(lost.value, OrganismError)
    assert lost.value.status == 409
    assert organism.offset() == there


def test_what_is_sent_ahead_is_bounded(organism: Organism, daemon: Daemon) -> None:
    """While nothing is acknowledged, no more than a window of frames is taken."""
    sent = 0
    with organism.stream() as stream:
        stream.send(b"first\n")
        stream.flush()
        daemon.process.send_signal(signal.SIGSTOP)

        def send() -> None:
            nonlocal sent
            for frame in lines(500, b"ahead"):
                stream.send(frame)
                sent += 1

        sender = threading.Thread(target=send)
        sender.start()
        try:
            until(lambda: sent >= 64)
            sender.join(0.2)  # were there no window, it would be far beyond by now
            assert sent == 64
        finally:
            daemon.process.send_signal(signal.SIGCONT)
            sender.join(60)
        assert sent == 500
    assert stream.offset == organism.offset()


def test_frames_have_bytes(organism: Organism) -> None:
    """An empty one would end the connection: it is refused before."""
    with organism.stream() as stream, pytest.raises(ValueError, match="at least one byte"):
        stream.send(b"")


class _Clock:
    """Tells the time that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_backlog(clock: Callable[[], float] = time.monotonic, offset: int = 0) -> client._Backlog:
    """The memory of a stream, without one."""
    return client._Backlog(client._Address("http://127.0.0.1:1", None), offset, 60.0, clock)


def closed(code: int, reason: str = "") -> ConnectionClosedError:
    """How a connection ends by a close code."""
    return ConnectionClosedError(Close(code, reason), None)


@given(st.lists(st.integers(1, client._WINDOW_BYTES + 1), max_size=200), st.integers(0, 1 << 40))
def test_what_is_kept_is_what_is_not_acknowledged(sizes: list[int], start: int) -> None:
    """Frames and bytes are bounded, a large frame goes alone; what is kept begins at the offset."""
    whole = memoryview(bytes(client._WINDOW_BYTES + 1))
    backlog, end = a_backlog(offset=start), start
    for size in sizes:
        frame = whole[:size]
        while not backlog.has_room(frame):  # type: ignore[arg-type]
            backlog.hear(json.dumps({"offset": backlog.acknowledged + len(backlog.frames[0])}))
        backlog.add(frame)  # type: ignore[arg-type]
        end += size
        kept = sum(map(len, backlog.frames))
        assert len(backlog.frames) <= client._WINDOW_FRAMES
        assert kept <= client._WINDOW_BYTES or len(backlog.frames) == 1
        assert backlog.acknowledged + kept == end
    backlog.hear(json.dumps({"offset": end}))
    assert (backlog.acknowledged, [*backlog.frames]) == (end, [])


def test_an_acknowledgement_within_a_frame_is_of_another_stream() -> None:
    """It ends the stream: what of the frame was learned cannot be told."""
    backlog = a_backlog(offset=10)
    backlog.add(b"one\n")
    backlog.add(b"another\n")
    with pytest.raises(OffsetLost, match="17"):
        backlog.hear('{"offset": 17}')
    assert (backlog.acknowledged, [*backlog.frames]) == (14, [b"another\n"])


def test_pauses_grow_until_something_is_acknowledged() -> None:
    """At most 2 s, and no further than the patience; a call begins with all of it."""
    clock = _Clock()
    backlog = a_backlog(clock)
    backlog.add(b"one\n")
    assert backlog.pause_s() == 0
    pauses = []
    for _ in range(8):
        backlog.lost(closed(1013))
        pauses.append(backlog.pause_s())
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    clock.now_s = 59.0
    assert (backlog.pause_s(), backlog.left_s()) == (1.0, 1.0)
    backlog.begin()
    assert (backlog.pause_s(), backlog.left_s()) == (2.0, 60.0)
    clock.now_s = 200.0
    backlog.hear('{"offset": 4}')
    assert (backlog.pause_s(), backlog.left_s()) == (0.0, 60.0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (closed(1013, "the disk is full: make room"), "has taken nothing for 60 s: the disk"),
        (ConnectionClosedError(None, None), "organism serve"),
        (ConnectionRefusedError("refused"), "refused.*organism serve"),
        (TimeoutError(), "TimeoutError.*organism serve"),
        (InvalidStatus(Response(503, "Service Unavailable", Headers())), "503.*organism serve"),
    ],
)
def test_what_may_pass_is_waited_for(error: Exception, said: str) -> None:
    """It raises nothing before the patience ends, and then why."""
    clock = _Clock()
    backlog = a_backlog(clock)
    clock.now_s = 59.9
    backlog.lost(error)
    clock.now_s = 60.0
    with pytest.raises(Unreachable, match=said):
        backlog.lost(error)


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (closed(4409, "go on from there"), 409, "offset-mismatch"),
        (closed(1009), 413, "too-large"),
        (closed(1007), 400, "malformed-request"),
        (closed(1003), 415, "unsupported-media-type"),
        (InvalidStatus(Response(403, "Forbidden", Headers())), 403, "unknown"),
    ],
)
def test_what_lasts_is_not_waited_for(error: Exception, status: int, slug: str) -> None:
    """A new connection would meet the same: it is raised at once."""
    with pytest.raises(Refused) as refused:
        a_backlog().lost(error)
    assert (refused.value.status, refused.value.slug) == (status, slug)
    assert isinstance(refused.value, OffsetLost) == (status == 409)
    assert refused.value.detail


@pytest.mark.parametrize("owner", [client, Organism, client.Stream, AsyncOrganism])
def test_the_examples_run(owner: object, daemon: Daemon) -> None:
    """What the docstrings show is what comes."""
    shown = inspect.getdoc(owner) or ""
    shown = shown.replace(client.DEFAULT_URL, url(daemon)).replace("  # doctest: +SKIP", "")
    names = {name: getattr(client, name) for name in ("asyncio", "Organism", "AsyncOrganism")}
    example = doctest.DocTestParser().get_doctest(shown, names, "shown", None, None)
    said: list[str] = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)


def test_it_is_light_to_import() -> None:
    """Whoever only asks does not wait for the science."""
    code = (
        "import sys, server.client; print(*{'torch', 'numba', 'numpy', 'fastapi'} & {*sys.modules})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert said.stdout.split() == []
