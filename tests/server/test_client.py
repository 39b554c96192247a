"""The Python client, against real daemons on real sockets."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.client import AsyncOrganism, OffsetLost, Organism, OrganismError, Refused, Unreachable
from server.wire import RetrainRequest
from tests.server.conftest import Daemon, until


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


def test_refusals_carry_the_problem(organism: Organism) -> None:
    """Status, kind, remedy and request id; an offset mismatch the right offset."""
    with pytest.raises(Refused, match="go on from there") as refused:
        organism.ingest(b"x\n", organism.offset() + 5)
    assert (refused.value.status, refused.value.slug) == (409, "offset-mismatch")
    assert refused.value.members["offset"] == organism.offset()
    assert refused.value.request_id
    with pytest.raises(Refused, match="one line"):
        organism.recall(b"two\nlines")
    with pytest.raises(Refused) as refused:
        organism.job("none")
    assert refused.value.status == 404
    with pytest.raises(ValueError, match="http"):
        Organism("127.0.0.1:8765")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        organism.retrain(RetrainRequest(outer_steps=0))


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
        with Organism(f"http://127.0.0.1:{unused.getsockname()[1]}") as organism:
            assert not organism.ready()
            with pytest.raises(Unreachable, match="organism serve"):
                organism.status()
            with pytest.raises(Unreachable, match="organism serve"):
                next(organism.events())
            with (
                pytest.raises(Unreachable, match="organism serve"),
                organism.stream(0, patience_s=0.2),
            ):
                pass


def lines(count: int, name: bytes) -> list[bytes]:
    """Frames of a line each."""
    return [b"%s says %d and %d\n" % (name, i, i * i) for i in range(count)]


def test_a_stream_survives_its_daemon(tmp_path: Path, genome_path: Path) -> None:
    """Killed in the midst of frames and started again, it has learned each of them once."""
    frames = lines(6000, b"sync")
    with Daemon(tmp_path / "calm", genome_path) as calm, Organism(url(calm)) as organism:
        organism.ingest(b"".join(frames))
        expected = organism.status().state_sha256
    with Daemon(tmp_path / "state", genome_path) as daemon, Organism(url(daemon)) as organism:
        with organism.stream() as stream:
            for k, frame in enumerate(frames):
                stream.send(frame)
                if k in (1000, 3500):
                    daemon.again()
        assert stream.offset == sum(map(len, frames))
        assert organism.status().state_sha256 == expected


def test_an_asynchronous_stream_survives_its_daemon(tmp_path: Path, genome_path: Path) -> None:
    """As the other one does."""
    frames = lines(3000, b"async")
    with Daemon(tmp_path / "calm", genome_path) as calm, Organism(url(calm)) as organism:
        organism.ingest(b"".join(frames))
        expected = organism.status().state_sha256

    async def stream(daemon: Daemon) -> None:
        async with AsyncOrganism(url(daemon)) as organism, await organism.stream() as stream:
            for k, frame in enumerate(frames):
                await stream.send(frame)
                if k == 1500:
                    daemon.again()
            await stream.flush()
            assert stream.offset == sum(map(len, frames))
            assert (await organism.status()).state_sha256 == expected

    with Daemon(tmp_path / "state", genome_path) as daemon:
        asyncio.run(stream(daemon))


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


def test_what_is_sent_ahead_is_bounded(tmp_path: Path, genome_path: Path) -> None:
    """While nothing is acknowledged, no more than a window of frames is taken."""
    sent = 0
    with Daemon(tmp_path / "state", genome_path) as daemon, Organism(url(daemon)) as organism:
        with organism.stream(patience_s=60) as stream:
            stream.send(b"first\n")
            stream.flush()
            daemon.process.send_signal(19)  # SIGSTOP: it is there, and does nothing

            def send() -> None:
                nonlocal sent
                for frame in lines(500, b"ahead"):
                    stream.send(frame)
                    sent += 1

            sender = threading.Thread(target=send)
            sender.start()
            until(lambda: sent >= 64)
            assert sent == 64
            daemon.process.send_signal(18)  # SIGCONT
            sender.join(60)
            assert sent == 500
        assert stream.offset == organism.offset()


def test_frames_have_bytes(organism: Organism) -> None:
    """An empty one would end the connection: it is refused before."""
    with organism.stream() as stream, pytest.raises(ValueError, match="at least one byte"):
        stream.send(b"")


def test_it_is_light_to_import() -> None:
    """Whoever only asks does not wait for the science."""
    code = "import sys, server.client; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
