"""Processes that benchmarks measure, each on a free port of loopback, stopped by its own id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.measure import ROOT

_PATIENCE_S = 120.0

VW_FLAGS = ("--daemon", "--foreground", "--num_children", "1", "--loss_function", "logistic")
"""Vowpal Wabbit learns online by its default (adaptive, normalised gradient descent)."""
# The wheel has the library and not the command; a daemon is the library's own parser at work.
_VW = "import sys; from vowpalwabbit import pyvw; w = pyvw.Workspace(arg_list=sys.argv[1:]); "
_VW += "pyvw.pylibvw.vw.run_parser(w)"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: where it listens on 127.0.0.1.
        pid: its process.
        seconds_to_ready: from its start to its first answer.
    """

    port: int
    pid: int
    seconds_to_ready: float


@contextmanager
def daemon(**settings: str) -> Iterator[Server]:
    """Run the daemon on an empty state folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORGANISM_")}
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        environment |= {"ORGANISM_PORT": str(port), "ORGANISM_STATE_DIR": folder, **settings}
        command = [sys.executable, "-m", "server"]
        with _running(command, port, environment, b"GET /readyz HTTP/1.0\r\n\r\n") as server:
            yield server


@contextmanager
def bare() -> Iterator[Server]:
    """Run the bare app."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare", str(port)]
    with _running(command, port, dict(os.environ), b"GET / HTTP/1.0\r\n\r\n") as server:
        yield server


@contextmanager
def vowpal_wabbit() -> Iterator[Server]:
    """Run Vowpal Wabbit's daemon. It binds every address: only in a network of one's own."""
    port = free_port()
    command = [sys.executable, "-c", _VW, *VW_FLAGS, "--quiet", "--port", str(port)]
    with _running(command, port, dict(os.environ), b"| a\n") as server:
        yield server


@contextmanager
def _running(
    command: Sequence[str], port: int, environment: dict[str, str], question: bytes
) -> Iterator[Server]:
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while not _answers(port, question):
            if process.poll() is not None or time.perf_counter() - start > _PATIENCE_S:
                process.kill()
                raise RuntimeError(f"{command[:3]} does not answer: {process.communicate()[1]!r}")
            time.sleep(0.005)
        yield Server(port, process.pid, time.perf_counter() - start)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _answers(port: int, question: bytes) -> bool:
    """Whether a server answers, and over HTTP with a 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(question)
            answer = connection.recv(1024)
    except OSError:
        return False
    return b" 200 " in answer if answer.startswith(b"HTTP") else bool(answer)


def free_port() -> int:
    """Find a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
