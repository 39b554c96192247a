"""Daemons for tests: real processes on real sockets, stopped by their own process id."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import pytest

from organism.genome import Genome, new_genome, save
from server.engine import Engine
from server.metrics import Metrics
from server.settings import load_settings
from server.storage.disk import Disk
from tests.conftest import small_config

OCTETS = {"Content-Type": "application/octet-stream"}
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def small_genome(seed: int = 1) -> Genome:
    """A tiny untrained genome with every mechanism on."""
    return new_genome(small_config(calibration=True), seed)


def make_engine(
    folder: Path, disk: Disk | None = None, genome: Genome | None = None, **changes: object
) -> Engine:
    """An engine that is not started; it takes snapshots only when asked, and at a stop."""
    values = {"state_dir": folder, "snapshot_interval_s": 86_400} | changes
    settings = load_settings({f"ORGANISM_{name.upper()}": str(v) for name, v in values.items()})
    return Engine(settings, Metrics(), lambda: genome or small_genome(), disk)


@contextmanager
def engine(
    folder: Path, disk: Disk | None = None, genome: Genome | None = None, **changes: object
) -> Iterator[Engine]:
    """An engine that has recovered, stopped at the end."""
    running = make_engine(folder, disk, genome, **changes)
    running.start()
    try:
        running.recovered.result(timeout=60)
        yield running
    finally:
        running.stop()


@contextmanager
def held(call: Callable[[Callable[[], None]], object]) -> Iterator[None]:
    """Hold whoever is called with something to do, until the block ends."""
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        release.wait(30)

    call(hold)
    assert entered.wait(30)
    try:
        yield
    finally:
        release.set()


class Transport(asyncio.Transport):
    """Keeps what is written, and whether anything is read."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written += data

    def pause_reading(self) -> None:
        """Note it."""
        self.reading = False

    def resume_reading(self) -> None:
        """Note it."""
        self.reading = True

    def is_closing(self) -> bool:
        """Never here."""
        return False

    def close(self) -> None:
        """Nothing to close."""


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition."""
    tick = threading.Event()
    for _ in range(3000):
        if holds():
            return
        tick.wait(0.01)
    raise AssertionError("it did not come true within 30 s")


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Daemon:
    """A daemon process and a client for it; a context manager that stops it by SIGTERM."""

    state_dir: Path
    genome: Path
    settings: dict[str, str] = field(default_factory=dict)
    wait: bool = True

    def __enter__(self) -> Self:
        """Start it and wait until it takes messages, if it is to be waited for."""
        self._launch()
        deadline = time.monotonic() + 60
        while self.wait and not self.ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "not ready within 60 s"
            time.sleep(0.02)
        return self

    def command(self) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "server"]

    def again(self) -> None:
        """Kill it, and start it anew on the port and the folder that it has."""
        self.kill()
        self.client.close()
        self._launch(self.port)

    def _launch(self, port: int | None = None) -> None:
        self.port = port or free_port()
        # Nothing of the surrounding environment's settings may leak in.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ORGANISM_")}
        environment |= {
            "ORGANISM_PORT": str(self.port),
            "ORGANISM_STATE_DIR": str(self.state_dir),
            "ORGANISM_GENOME": str(self.genome),
            **self.settings,
        }
        self.log = self.state_dir.parent / f"{self.state_dir.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command(), env=environment, stderr=log)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def __exit__(self, *_: object) -> None:
        """Stop it cleanly, if the test has not."""
        self.client.close()
        if self.process.poll() is None:
            self.stop()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to stop, and check that it did so cleanly."""
        self.process.send_signal(number)
        self.process.wait(timeout=60)
        assert self.process.returncode == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self.process.kill()
        self.process.wait(timeout=60)

    def ingest(self, data: bytes, **headers: str) -> httpx.Response:
        """Post bytes to be learned."""
        return self.client.post("/ingest", content=data, headers={**OCTETS, **headers})

    def recall(self, cue: bytes) -> httpx.Response:
        """Post a cue."""
        return self.client.post("/recall", content=cue, headers=OCTETS)

    def status(self) -> dict[str, object]:
        """Where it stands."""
        answer: dict[str, object] = self.client.get("/status").json()
        return answer

    def metric(self, series: str) -> float:
        """One series of the metrics, by its name and labels; it must be there."""
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{series} ")).split()[-1])

    def refused(self, status: int) -> float:
        """How many requests it has refused with a status."""
        return self.metric(f'organism_requests_refused_total{{status="{status}"}}')

    def ready(self) -> bool:
        """Whether it takes messages."""
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="session")
def genome_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A genome file to be born with."""
    path = tmp_path_factory.mktemp("genome") / "small.genome"
    save(small_genome(), path)
    return path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, genome_path: Path) -> Iterator[Daemon]:
    """One daemon for a module whose tests do not mind each other's bytes."""
    with Daemon(tmp_path_factory.mktemp("state"), genome_path) as running:
        yield running
