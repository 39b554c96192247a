"""How much of the engine's speed arrives over the wire, and how it stands beside others.

``python -m benchmarks.ingest [--json] [--lines FILE]``, on Linux. Everything runs
in a private network namespace, since Vowpal Wabbit's daemon binds every address; where none can be
had, its figure is left out. The lines are synthetic, or those of a file.

engine_fraction: lines learned a second over HTTP, 64 KiB messages on four connections, against the
engine called in this process. vw_ratio: the same against the examples a second that Vowpal Wabbit's
daemon learns from the same lines, as words, in one stream. http_bare_fraction: requests a second,
128-byte messages on 16 connections, against a bare ASGI app. ws_bare_fraction: frames a second, 128
bytes, 64 in flight, against a bare echo. Beside them stands what the disk alone allows: messages a
second where as many as can be in flight are appended and synced, and nothing else is done.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.clients import Connection, Socket, frame, post_for, request, stream_for
from benchmarks.measure import Figure, parser, quotients, report, take_turns
from benchmarks.processes import VW_FLAGS, Server, bare, daemon, vowpal_wabbit
from organism.fused import set_threads
from organism.genome import load
from organism.tasks.streams import StreamConfig, sample_stream
from server.engine import Engine
from server.metrics import Metrics
from server.settings import ServerSettings
from server.storage.disk import Disk

_LINES = 20_000
_MESSAGE_BYTES = 1 << 16
_SMALL_BYTES = 128
_CONNECTIONS, _SMALL_CONNECTIONS, _WINDOW = 4, 16, 64
_TURN_S = 1.5
_INSIDE = "ORGANISM_BENCH_NAMESPACE"
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def lines_of(path: Path | None) -> list[bytes]:
    """Lines to learn from, without their ends."""
    if path is not None:
        return [line for line in path.read_bytes().splitlines() if line.strip()]
    return sample_stream(StreamConfig(), _LINES, random.Random(0)).chunks


def messages_of(lines: Sequence[bytes], size: int) -> list[bytes]:
    """Join lines into messages of at most a size."""
    messages, message = [], b""
    for line in lines:
        if message and len(message) + len(line) + 1 > size:
            messages.append(message)
            message = b""
        message += line + b"\n"
    return [*messages, message]


def small_of(lines: Sequence[bytes]) -> list[bytes]:
    """Make messages of one size out of lines, one each, cut or filled up."""
    return [line[: _SMALL_BYTES - 1].ljust(_SMALL_BYTES - 1) + b"\n" for line in lines]


@contextmanager
def own_engine() -> Iterator[Engine]:
    """Run an engine in this process."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ServerSettings(state_dir=Path(folder))
        engine = Engine(settings, Metrics(), lambda: load(settings.genome))
        engine.start().result()
        try:
            yield engine
        finally:
            engine.stop()


def engine_lines(engine: Engine, messages: Sequence[bytes]) -> float:
    """Lines a second that the engine learns, as many messages waiting as over HTTP."""
    waiting = [engine.submit(message) for message in messages[:_CONNECTIONS]]
    learned, start, k = 0, time.perf_counter(), len(waiting)
    while (elapsed := time.perf_counter() - start) < _TURN_S:
        learned += waiting.pop(0).result().chunks
        waiting.append(engine.submit(messages[k % len(messages)]))
        k += 1
    for receipt in waiting:
        receipt.result()
    return learned / elapsed


def synced(messages: Sequence[bytes], group: int) -> float:
    """Messages a second that are appended to a file, so many at a time, and synced."""
    disk = Disk()
    with tempfile.TemporaryDirectory() as folder:
        file = disk.create(Path(folder) / "journal")
        try:
            written, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < _TURN_S:
                disk.write(file, messages[:group])
                disk.sync(file)
                written += group
        finally:
            disk.close(file)
    return written / elapsed


def vw_lines(port: int, lines: Sequence[bytes]) -> float:
    """Examples a second that Vowpal Wabbit learns, in one stream, every prediction read."""
    examples = b"".join(b"1 | " + line.translate(None, b":|") + b"\n" for line in lines)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sender = threading.Thread(target=connection.sendall, args=(examples,))
        start = time.perf_counter()
        sender.start()
        answered = 0
        while answered < len(lines):
            answered += connection.recv(1 << 16).count(b"\n")
        sender.join()
        return len(lines) / (time.perf_counter() - start)


def main() -> int:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--lines", type=Path, help="file of lines to learn from")
    given = options.parse_args()
    isolated = _isolated()
    set_threads(1)
    lines = lines_of(given.lines)
    messages, small = messages_of(lines, _MESSAGE_BYTES), small_of(lines)
    large = [request("/ingest", message) for message in messages]
    posts = [request("/ingest", message) for message in small]
    frames = [frame(message) for message in small]
    per_message = len(lines) / len(messages)
    with ExitStack() as stack:
        ours, least = stack.enter_context(daemon()), stack.enter_context(bare())
        engine = stack.enter_context(own_engine())
        contestants: dict[str, Callable[[], float]] = {
            "engine": lambda: engine_lines(engine, messages),
            "http": lambda: per_message * post_for(ours.port, large, _CONNECTIONS, _TURN_S),
            "small": lambda: post_for(ours.port, posts, _SMALL_CONNECTIONS, _TURN_S),
            "bare": lambda: post_for(least.port, posts, _SMALL_CONNECTIONS, _TURN_S),
            "frames": lambda: _our_frames(ours, frames),
            "echo": lambda: stream_for(
                Socket(least.port, "/"), frames, _WINDOW, _TURN_S, lambda _: 1
            ),
            "small_synced": lambda: synced(small, _SMALL_CONNECTIONS),
            "frames_synced": lambda: synced(small, _WINDOW),
        }
        if isolated:
            vw: Server = stack.enter_context(vowpal_wabbit())
            contestants["vw"] = lambda: vw_lines(vw.port, lines)
        found = take_turns(contestants, given.rounds)
    figures = [
        Figure("engine_fraction", quotients(found["http"], found["engine"]), "≥ 0.8"),
        Figure("http_bare_fraction", quotients(found["small"], found["bare"]), "≥ 0.4"),
        Figure("ws_bare_fraction", quotients(found["frames"], found["echo"]), "≥ 0.5"),
    ]
    if isolated:
        figures.insert(1, Figure("vw_ratio", quotients(found["http"], found["vw"]), "≥ 0.5"))
    details: dict[str, object] = {
        f"{name}_a_second": sorted(rates)[len(rates) // 2] for name, rates in found.items()
    }
    details |= {"mean_line_bytes": sum(map(len, lines)) / len(lines), "vw": " ".join(VW_FLAGS)}
    report("Learning over the wire", figures, details, given.json)
    return 0


def _our_frames(server: Server, frames: Sequence[bytes]) -> float:
    with_offset = Connection(server.port)
    with_offset.send(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = b""
    while b"}" not in answer:
        answer += with_offset.socket.recv(1 << 16)
    with_offset.socket.close()
    last = int(json.loads(answer.split(b"\r\n\r\n", 1)[1])["offset"])

    def closed(payload: bytes) -> int:
        nonlocal last
        before, last = last, int(json.loads(payload)["offset"])
        return (last - before) // _SMALL_BYTES

    return stream_for(Socket(server.port, "/ingest/ws"), frames, _WINDOW, _TURN_S, closed)


def _isolated() -> bool:
    """Whether this process has a network of its own; if it can have one, start again in it."""
    if importlib.util.find_spec("vowpalwabbit") is None:
        print("no vowpalwabbit here: pip install '.[bench]'; going on without", file=sys.stderr)
        return False
    if _INSIDE in os.environ:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            up = struct.pack("16sh", b"lo", _IFF_UP)
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, up)
        return True
    unshare = shutil.which("unshare")
    for way in (["--net"], ["--user", "--map-root-user", "--net"]):
        if unshare and subprocess.run([unshare, *way, "true"], capture_output=True).returncode == 0:
            os.environ[_INSIDE] = "1"
            command = [unshare, *way, sys.executable, "-m", "benchmarks.ingest", *sys.argv[1:]]
            os.execv(unshare, command)
    print("no network namespace to be had: going on without Vowpal Wabbit", file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(main())
