"""Kill the daemon again and again while it learns, and count what that costs: nothing may be lost.

``python -m benchmarks.chaos --kills N [--seed S] [--json]``. One writer owns the stream of a daemon
and feeds it lines by HTTP and by WebSocket, while somebody else asks and takes snapshots. At a
random moment the process gets SIGKILL, now and then once more before it is ready again. After each
start the writer resumes at the offset that it is told, and three things are counted:

lost_acked_bytes: bytes that were acknowledged and are gone. state_hash_mismatches: how often the
checksum of the daemon's state is not that of an oracle, which lives through the same lines in this
process, without journal or snapshot. duplicates_learned: chunks that were learned more than once;
bytes that had been acknowledged are sent again on purpose. Each must be 0: the exit status is 1
where one is not, or where the daemon does what it must not, which is told as fault.

A kill takes the process and leaves what the kernel has been given. What a crash of the machine
takes beyond that is simulated by the tests of ``server.storage``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from benchmarks.measure import ROOT, Figure, report
from benchmarks.processes import free_port
from organism.encoder import encode
from organism.fused import set_threads
from organism.genome import Genome, load
from organism.living import LivingCortex
from server.life import Life
from server.settings import ServerSettings
from server.storage.statedir import snapshot_folder

_PATIENCE_S = 60.0
_LONGEST_LIFE_S = 0.5
_LONGEST_PAUSE_S = 0.01
# Share of the starts that are cut short, and when, as a share of the time that a start takes: most
# of it is imports, the recovery comes last.
_STILLBORN = 0.25
_STILLBORN_AT = (0.65, 1.0)
_MESSAGE_BITS = 16
_FRAMES = 16
# Small, so that segments are begun and dropped all the time; what is sent again lies within it.
_JOURNAL_BYTES = 1 << 20

SETTINGS: Mapping[str, str] = {
    "ORGANISM_JOURNAL_BYTES": str(_JOURNAL_BYTES),
    "ORGANISM_SNAPSHOT_INTERVAL_S": "0.2",
}
"""Of the daemon that is killed."""

PROMISES = ("lost_acked_bytes", "state_hash_mismatches", "duplicates_learned")
"""What is counted and must be 0."""

GONE = (OSError, EOFError, HTTPException, WebSocketException)
"""What a client meets where the other side is gone."""


@dataclass
class Tally:
    """What was done to the daemon, and what came of it: the first three must stay 0.

    Attributes:
        lost_acked_bytes: acknowledged, and gone.
        state_hash_mismatches: states that are not the oracle's, or that moved by a repetition.
        duplicates_learned: chunks that were learned more than once.
        kills: by SIGKILL.
        kills_before_ready: those of a daemon that had not recovered yet.
        snapshots_cut_short: kills that left a snapshot half written.
        starts: that came to their end.
        resent: messages that were sent again although they had been acknowledged.
    """

    lost_acked_bytes: int = 0
    state_hash_mismatches: int = 0
    duplicates_learned: int = 0
    kills: int = 0
    kills_before_ready: int = 0
    snapshots_cut_short: int = 0
    starts: int = 0
    resent: int = 0

    @property
    def flawless(self) -> bool:
        """Whether nothing was lost, mistaken or learned twice."""
        return not any(getattr(self, name) for name in PROMISES)


class Chaos:
    """One daemon, its writer and its oracle; a context manager that leaves no process behind.

    Attributes:
        tally: what has been counted so far.
        daemon: the process that is killed.
        writer: who owns its stream.
    """

    def __init__(self, folder: Path, seed: int, settings: Mapping[str, str] = SETTINGS) -> None:
        """Prepare everything; nothing runs yet.

        Args:
            folder: an empty one, for the state and the log.
            seed: of the lines and of everything that happens to them.
            settings: of the daemon.
        """
        self.tally = Tally()
        self.daemon = Daemon(folder, settings)
        # Apart from the writer, who draws as often as there is time to.
        self._draws = random.Random(f"fate:{seed}")
        self._lines = Lines(seed)
        self._oracle = Oracle(load(ServerSettings().genome), self._lines)
        self.writer = Writer(self._lines, random.Random(f"writer:{seed}"), self.tally)

    def __enter__(self) -> Chaos:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind."""
        self.daemon.kill()

    def run(self, kills: int) -> Tally:
        """Kill it so often, then stop it as one should; compare after every start.

        Ends early where something is amiss: whatever came after it would say no more.

        Raises:
            RuntimeError: it does not start, does not stop, or refuses what it should take.
        """
        self.start()
        while self.tally.kills < kills and self.tally.flawless:
            self.live_and_die()
            while self.tally.kills < kills and self._draws.random() < _STILLBORN:
                self.die_before_ready()
            self.start()
        self.daemon.stop()
        self.start()
        return self.tally

    def start(self) -> None:
        """Start it, and compare what it has become with what it must be."""
        self.daemon.begin()
        self.daemon.wait_until_ready()
        self.tally.starts += 1
        with Client(self.daemon.port) as client:
            self._compare(client)

    def live_and_die(self) -> None:
        """Write, ask and take snapshots until it is killed."""
        asker = random.Random(self._draws.random())
        life_s = self._draws.uniform(0, _LONGEST_LIFE_S)
        before = self.daemon.half_written_at
        with killed_after(self.daemon, life_s) as struck, ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask_around, self.daemon.port, asker, struck)
            with until_killed(struck), Client(self.daemon.port) as client:
                self.writer.write(client)
            asking.result()
        self.tally.kills += 1
        self.tally.snapshots_cut_short += self.daemon.half_written_at not in (None, before)

    def die_before_ready(self) -> None:
        """Start it, and kill it on the way."""
        self.daemon.begin()
        time.sleep(self._draws.uniform(*_STILLBORN_AT) * self.daemon.seconds_to_ready)
        self.tally.kills_before_ready += not self.daemon.ready
        self.daemon.kill()
        self.tally.kills += 1

    def _compare(self, client: Client) -> None:
        """Count what is amiss, and let the writer resume where the daemon stands."""
        offset, status = client.offset(), client.status()
        tally, writer = self.tally, self.writer
        tally.lost_acked_bytes += max(writer.acked - offset, 0)
        expected = (offset, self._oracle.state_sha256(offset))
        tally.state_hash_mismatches += (status["offset"], status["state_sha256"]) != expected
        # Whatever the daemon takes its offset for, it can have lived what was sent, and once.
        lived = self._lines.count(min(offset, writer.sent))
        tally.duplicates_learned += max(status["steps"] - lived, 0)
        writer.acked = offset


class Lines:
    """An endless stream of lines that never come twice: seed and offset say which bytes."""

    def __init__(self, seed: int) -> None:
        self._draws = random.Random(f"lines:{seed}")
        self._bytes = bytearray()
        self._count = 0

    def read(self, start: int, end: int) -> bytes:
        """Read the bytes from one offset to another."""
        while len(self._bytes) < end:
            self._grow()
        return bytes(self._bytes[start:end])

    def message(self, start: int, size: int) -> bytes:
        """Read whole lines from an offset on, at least so many bytes."""
        while (end := self._bytes.find(b"\n", start + size - 1) + 1) == 0:
            self._grow()
        return bytes(self._bytes[start:end])

    def count(self, end: int) -> int:
        """Count the lines before an offset."""
        return self._bytes.count(b"\n", 0, end)

    def _grow(self) -> None:
        noise = self._draws.randbytes(self._draws.randrange(120)).translate(None, b"\r\n")
        self._bytes += b"%d %b\n" % (self._count, noise)
        self._count += 1


class Oracle:
    """Lives through the lines as the daemon should, and knows nothing of how it keeps them."""

    def __init__(self, genome: Genome, lines: Lines) -> None:
        self._genome = genome
        self._lines = lines
        self._cortex, self._offset = LivingCortex(genome), 0

    def state_sha256(self, offset: int) -> str:
        """Checksum of the state after the lines before an offset."""
        if offset < self._offset:
            self._cortex, self._offset = LivingCortex(self._genome), 0
        chunks = [line for line in self._lines.read(self._offset, offset).split(b"\n") if line]
        if chunks:
            config = self._genome.config
            vectors = encode(chunks, config.encoder, config.cortex.d_in)
            self._cortex.learn(vectors.numpy())
        self._offset = offset
        return Life(self._genome, self._cortex.copy(), offset).state_sha256


class Writer:
    """Owns the stream: sends lines where it stands, and sends some again.

    Attributes:
        acked: offset up to which the daemon has acknowledged the lines.
        sent: offset up to which they have ever been sent.
    """

    def __init__(self, lines: Lines, draws: random.Random, tally: Tally) -> None:
        self._lines = lines
        self._draws = draws
        self._tally = tally
        self.acked = self.sent = 0

    def write(self, client: Client) -> None:
        """Write for ever.

        Raises:
            OSError, EOFError, HTTPException, WebSocketException: the daemon is gone.
        """
        while True:
            act = self._draws.choice((self.post, self.post, self.stream, self.repeat))
            act(client)

    def post(self, client: Client) -> None:
        """Post a message that says where it belongs."""
        message = self._next(self.acked)
        _, receipt = client.ask("POST", "/ingest", message, self.acked)
        self.acked = receipt["offset"]

    def stream(self, client: Client) -> None:
        """Send frames, several on their way, over a socket; it may open at what is known."""
        start = max(self.acked - self._draws.choice((0, self._size())), 0)
        with connect(f"ws://127.0.0.1:{client.port}/ingest/ws?offset={start}") as ws:
            if start < self.acked:
                ws.send(self._lines.read(start, self.acked))
            for _ in range(self._draws.randrange(1, 4)):
                end = self.acked
                for _ in range(self._draws.randrange(1, _FRAMES)):
                    frame = self._next(end)
                    ws.send(frame)
                    end += len(frame)
                while self.acked < end:
                    self.acked = json.loads(ws.recv(timeout=_PATIENCE_S))["offset"]

    def repeat(self, client: Client) -> None:
        """Post bytes that were acknowledged, from anywhere in them: nothing may come of it."""
        start = max(self.acked - self._draws.randrange(1, _JOURNAL_BYTES), 0)
        known = self._lines.read(start, min(start + self._size(), self.acked))
        if not known:
            return
        before = client.status()
        code, receipt = client.ask("POST", "/ingest", known, start, allowed=(200, 409))
        if code == 409:  # it does not have what it had acknowledged
            self._tally.lost_acked_bytes += len(known)
        else:
            self._tally.duplicates_learned += max(receipt["chunks"], not receipt["duplicate"])
        self._tally.state_hash_mismatches += client.status() != before
        self._tally.resent += 1

    def _next(self, offset: int) -> bytes:
        """The lines at an offset, which are about to be sent."""
        message = self._lines.message(offset, self._size())
        self.sent = max(self.sent, offset + len(message))
        return message

    def _size(self) -> int:
        """Draw a size: small and large ones, up to 64 KiB."""
        return self._draws.randrange(1, 2 << self._draws.randrange(_MESSAGE_BITS))


def ask_around(port: int, draws: random.Random, struck: threading.Event) -> None:
    """Ask and take snapshots until the daemon is killed."""
    with until_killed(struck), Client(port) as client:
        while not struck.wait(draws.uniform(0, _LONGEST_PAUSE_S)):
            if draws.random() < 0.5:
                client.ask("POST", "/snapshots")
            else:
                client.ask("POST", "/recall", draws.randbytes(8).hex().encode())


@contextmanager
def killed_after(daemon: Daemon, seconds: float) -> Iterator[threading.Event]:
    """Kill a daemon in the middle of a block; the event is set just before."""
    struck = threading.Event()

    def strike() -> None:
        struck.set()
        daemon.kill()

    timer = threading.Timer(seconds, strike)
    timer.start()
    try:
        yield struck
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def until_killed(struck: threading.Event) -> Iterator[None]:
    """End a block where the daemon is gone; that it was killed is the one excuse.

    Raises:
        RuntimeError: it was not.
    """
    try:
        yield
    except GONE as error:
        if not struck.is_set():
            raise RuntimeError(f"the daemon hung up by itself: {error!r}") from error


class Client:
    """Asks a daemon on one connection; a context manager that closes it.

    Attributes:
        port: of the daemon.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)

    def __enter__(self) -> Client:
        """It connects when it asks."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        offset: int | None = None,
        allowed: tuple[int, ...] = (200,),
    ) -> tuple[int, dict[str, Any]]:
        """Send a request; its status, and the object that it was answered with.

        Args:
            method: of the request.
            path: of the request.
            body: of the request.
            offset: where the body belongs in the stream, where it says so.
            allowed: statuses that are no fault.

        Raises:
            RuntimeError: it was answered with another status.
        """
        headers = {} if offset is None else {"Upload-Offset": str(offset)}
        self._connection.request(method, path, body, headers)
        with self._connection.getresponse() as response:
            content = response.read()
        if response.status not in allowed:
            raise RuntimeError(f"{method} {path}: {response.status}, {content[:300]!r}")
        return response.status, json.loads(content)

    def status(self) -> dict[str, Any]:
        """Ask where it stands, and what it has become."""
        return self.ask("GET", "/status")[1]

    def offset(self) -> int:
        """Ask where to go on writing."""
        self._connection.request("HEAD", "/ingest")
        with self._connection.getresponse() as response:
            return int(response.headers["Upload-Offset"])


class Daemon:
    """A daemon that is started again and again on the same folder and port.

    Attributes:
        state: its state folder.
        log: file of what it said, over all its lives.
        port: where it listens on 127.0.0.1.
        seconds_to_ready: what the last whole start took.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.state, self.log = folder / "state", folder / "log"
        self.port = free_port()
        self.seconds_to_ready = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ORGANISM_")}
        self._environment = environment | {
            "ORGANISM_PORT": str(self.port),
            "ORGANISM_STATE_DIR": str(self.state),
            **settings,
        }

    def begin(self) -> None:
        """Begin to start it."""
        self._began = time.perf_counter()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server"], env=self._environment, cwd=ROOT, stderr=log
            )

    @property
    def ready(self) -> bool:
        """Whether it takes messages."""
        with suppress(*GONE), Client(self.port) as client:
            return client.ask("GET", "/readyz", allowed=(200, 503))[0] == 200
        return False

    def wait_until_ready(self) -> None:
        """Wait until it takes messages.

        Raises:
            RuntimeError: it does not start.
        """
        assert self._process is not None
        while not self.ready:
            waited = time.perf_counter() - self._began
            if self._process.poll() is not None or waited > _PATIENCE_S:
                raise RuntimeError(f"the daemon does not start: {self._last_words()}")
            time.sleep(0.01)
        self.seconds_to_ready = time.perf_counter() - self._began

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Stop it as one should.

        Raises:
            RuntimeError: it did not end well.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        if code := self._process.wait(_PATIENCE_S):
            raise RuntimeError(f"the daemon stopped with {code}: {self._last_words()}")

    @property
    def half_written_at(self) -> int | None:
        """When it last wrote to the snapshot that it left half written; None where it left none."""
        folder = snapshot_folder(self.state)
        left = (path for path in folder.glob("*") if not path.suffix)
        return next((path.stat().st_mtime_ns for path in left), None)

    @property
    def replayed(self) -> int:
        """Records of the journal that it has replayed, over all its starts, by its log."""
        return sum(map(int, re.findall(rb"(\d+) records replayed", self.log.read_bytes())))

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often it is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the lines and what happens to them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    if given.kills < 1:
        parser.error("--kills: at least 1")
    set_threads(1)
    start, fault = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as folder, Chaos(Path(folder), given.seed) as chaos:
        try:
            chaos.run(given.kills)
        except RuntimeError as error:
            fault = str(error)
        details = {"acked_bytes": chaos.writer.acked, "records_replayed": chaos.daemon.replayed}
    details |= {"seed": given.seed, "seconds": round(time.perf_counter() - start)}
    tally = asdict(chaos.tally)
    figures = [Figure("kills", [tally.pop("kills")])]
    figures += [Figure(name, [tally.pop(name)], "0") for name in PROMISES]
    report("Killed while it learns", figures, {**tally, **details, "fault": fault}, given.json)
    return 0 if chaos.tally.flawless and fault is None else 1


if __name__ == "__main__":
    sys.exit(main())
